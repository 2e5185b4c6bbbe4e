//! State: what takes a connection out of the ordinary, in one word, so that a visit asks of most
//! connections once for all of it.

use std::ops::BitOr;

/// A set of such things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State(u8);

impl State {
    /// A write found the socket full, and no writable event was served since.
    pub(crate) const BLOCKED: Self = Self(1);
    /// Nothing is read or delivered until it is resumed.
    pub(crate) const PAUSED: Self = Self(1 << 1);
    /// A request is held until its time has come, by the rate limit.
    pub(crate) const THROTTLED: Self = Self(1 << 2);
    /// The handler does not know of it yet: its header is still to come, or it is connecting.
    pub(crate) const UNKNOWN: Self = Self(1 << 3);
    /// Its socket is a transport of somebody's own, which may hold bytes of which the kernel knows
    /// nothing.
    pub(crate) const BOXED: Self = Self(1 << 4);
    /// It may keep a buffer of its own.
    pub(crate) const KEEPS: Self = Self(1 << 5);
    /// It may be due sooner than the wheel knows.
    pub(crate) const SOONER: Self = Self(1 << 7);
    /// Nothing more is read or delivered: what is owed is flushed, then it closes.
    pub(crate) const ENDING: Self = Self(1 << 6);

    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it is in one of these states.
    #[inline]
    pub(crate) fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    #[inline]
    pub(crate) fn set(&mut self, to: Self, on: bool) {
        self.0 = if on { self.0 | to.0 } else { self.0 & !to.0 };
    }

    /// Enters a state; false if it was in it.
    #[inline]
    pub(crate) fn enter(&mut self, state: Self) -> bool {
        let enters = !self.any(state);
        self.set(state, true);
        enters
    }

    /// Leaves a state; false if it was not in it.
    #[inline]
    pub(crate) fn leave(&mut self, state: Self) -> bool {
        let leaves = self.any(state);
        self.set(state, false);
        leaves
    }
}

impl BitOr for State {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_entered_and_left_one_by_one() {
        let all = [
            State::BLOCKED,
            State::PAUSED,
            State::THROTTLED,
            State::UNKNOWN,
            State::BOXED,
            State::KEEPS,
            State::ENDING,
            State::SOONER,
        ];
        let mut state = State::default();
        for one in all {
            assert!(!state.any(one) && state.enter(one) && !state.enter(one));
        }
        for (left, one) in all.into_iter().enumerate() {
            assert!(!state.is_empty() && state.leave(one) && !state.leave(one));
            assert!(all[left + 1..].iter().all(|&other| state.any(other)), "{left}");
        }
        assert!(state.is_empty());
        assert!(State::PAUSED.any(State::PAUSED | State::BLOCKED));
    }
}
