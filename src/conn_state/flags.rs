//! Connection flags in two bytes. A flag that is set keeps the connection off the fast path.

use std::ops::BitOr;

/// Connection flags. Only a connection with no flag set takes the fast path in
/// [`Worker::serve`](crate::worker::Worker::serve).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u16);

impl Flags {
    /// The socket did not take all of the output, and the rest is not sent yet. On an outgoing
    /// connection, this flag is also set until the connection is established.
    pub(crate) const BLOCKED: Self = Self(1);
    /// Nothing is read or delivered until the connection is resumed.
    pub(crate) const PAUSED: Self = Self(1 << 1);
    /// The rate limit delays a held request.
    pub(crate) const THROTTLED: Self = Self(1 << 2);
    /// The stage is not `Open`.
    pub(crate) const NOT_OPEN: Self = Self(1 << 3);
    /// The socket is a [`Transport`](crate::Transport), which may hold bytes in its own buffers.
    pub(crate) const BOXED: Self = Self(1 << 4);
    /// The worker may keep an input or output buffer between visits.
    pub(crate) const HAS_BUFFER: Self = Self(1 << 5);
    /// Nothing more is read or delivered. The connection closes when its output is sent.
    pub(crate) const CLOSING: Self = Self(1 << 6);
    /// The due time may be sooner than the tick for which the timer is armed.
    pub(crate) const TIMER_STALE: Self = Self(1 << 7);
    /// [`Handler::read_closed`](crate::Handler::read_closed) was called: the peer will send no
    /// more, and everything that it sent was delivered.
    pub(crate) const READ_CLOSED: Self = Self(1 << 8);
    /// [`Conn::finish`](crate::Conn::finish) was called: later output is discarded, and the write
    /// side is closed when the output before it is sent.
    pub(crate) const FINISHED: Self = Self(1 << 9);
    /// The write side of the socket is closed.
    pub(crate) const WRITE_CLOSED: Self = Self(1 << 10);

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns whether any of `flags` is set.
    pub(crate) fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    pub(crate) fn set(&mut self, flags: Self, on: bool) {
        self.0 = if on { self.0 | flags.0 } else { self.0 & !flags.0 };
    }

    /// Sets a flag. Returns false if it was set already.
    pub(crate) fn insert(&mut self, flag: Self) -> bool {
        let changes = !self.intersects(flag);
        self.set(flag, true);
        changes
    }

    /// Clears a flag. Returns false if it was not set.
    pub(crate) fn remove(&mut self, flag: Self) -> bool {
        let changes = self.intersects(flag);
        self.set(flag, false);
        changes
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_set_and_cleared_one_by_one() {
        let all = [
            Flags::BLOCKED,
            Flags::PAUSED,
            Flags::THROTTLED,
            Flags::NOT_OPEN,
            Flags::BOXED,
            Flags::HAS_BUFFER,
            Flags::CLOSING,
            Flags::TIMER_STALE,
            Flags::READ_CLOSED,
            Flags::FINISHED,
            Flags::WRITE_CLOSED,
        ];
        let mut flags = Flags::default();
        for flag in all {
            assert!(!flags.intersects(flag) && flags.insert(flag) && !flags.insert(flag));
        }
        for (left, flag) in all.into_iter().enumerate() {
            assert!(!flags.is_empty() && flags.remove(flag) && !flags.remove(flag));
            assert!(all[left + 1..].iter().all(|&other| flags.intersects(other)), "{left}");
        }
        assert!(flags.is_empty());
        assert!(Flags::PAUSED.intersects(Flags::PAUSED | Flags::BLOCKED));
    }
}
