//! Time as the loop sees it: whole milliseconds since the backend's epoch.
//!
//! The present is rounded down and every deadline is rounded up, so that nothing fires early.
//! This room reads no clock; it is told the time.

use std::time::Duration;

/// A point in time, in whole milliseconds since the backend's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(pub(crate) u64);

impl Tick {
    /// Later than every deadline: what a clock that does not run shows.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    /// This tick moved by `by`, rounded up; saturates at [`Tick::NEVER`].
    pub(crate) fn after(self, by: Duration) -> Self {
        let (whole, partial) = millis(by);
        Self(self.0.saturating_add(whole).saturating_add(partial.into()))
    }

    /// How long from this tick until `later`; zero if that has begun.
    #[inline]
    pub(crate) fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

/// The one clock reading of a turn, in the two forms that its phases need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Rounded down: what deadlines are compared with.
    pub(crate) floor: Tick,
    /// Rounded up: what deadlines are counted from.
    pub(crate) ceil: Tick,
}

/// When a turn read the clock, and when it had done its work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) began: Tick,
    pub(crate) ended: Tick,
}

impl Span {
    /// The tick just before its end, from which counts what happened in it. From before its end,
    /// because the next turn may begin at that very tick, and slow turns must not add up.
    #[inline]
    pub(crate) fn last(self) -> Tick {
        Tick(self.ended.0.saturating_sub(1)).max(self.began)
    }

    /// Whether it matters where in it something happened.
    #[inline]
    pub(crate) fn is_long(self) -> bool {
        self.ended.0 > self.began.0 + 1
    }
}

impl Now {
    /// So many whole milliseconds since the epoch, and perhaps a part of one more.
    #[inline]
    pub(crate) fn new((whole, partial): (u64, bool)) -> Self {
        Self { floor: Tick(whole), ceil: Tick(whole + u64::from(partial)) }
    }
}

/// The whole milliseconds in a span, and whether there is a part of one more.
pub(crate) fn millis(span: Duration) -> (u64, bool) {
    let whole = span.subsec_millis();
    let partial = span.subsec_nanos() != whole * 1_000_000;
    (span.as_secs().saturating_mul(1_000).saturating_add(u64::from(whole)), partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_present_rounds_down_and_deadlines_round_up() {
        assert_eq!(Tick(5).after(Duration::from_nanos(1)), Tick(6));
        let now = Now::new(millis(Duration::from_nanos(1_000_001)));
        assert_eq!((now.floor, now.ceil), (Tick(1), Tick(2)));
        let now = Now::new(millis(Duration::from_millis(3)));
        assert_eq!((now.floor, now.ceil), (Tick(3), Tick(3)));
    }

    #[test]
    fn the_largest_durations_saturate() {
        assert_eq!(Tick(1).after(Duration::MAX), Tick::NEVER);
        let day = Duration::from_secs(86_400);
        assert_eq!(Tick(0).after(day * 50), Tick(50 * 86_400_000));
    }

    #[test]
    fn a_tick_that_has_begun_is_zero_away() {
        assert_eq!(Tick(3).until(Tick(5)), Duration::from_millis(2));
        assert_eq!(Tick(4).until(Tick(3)), Duration::ZERO);
    }
}
