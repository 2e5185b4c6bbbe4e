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
        Self(self.0.saturating_add(millis_ceil(by)))
    }

    /// How long from `at` until this tick begins; zero once it has.
    pub(crate) fn away(self, at: Duration) -> Duration {
        Duration::from_millis(self.0).saturating_sub(at)
    }

    /// How long from this tick until `later`.
    pub(crate) fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

/// The one clock reading of a turn, in the three forms that its phases need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// As it was read.
    pub(crate) at: Duration,
    /// Rounded down: what deadlines are compared with.
    pub(crate) tick: Tick,
    /// Rounded up: what deadlines are counted from.
    pub(crate) stamp: Tick,
}

/// When a turn read the clock, and when it had done its work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) began: Tick,
    pub(crate) ended: Tick,
}

impl Now {
    pub(crate) fn new(at: Duration) -> Self {
        Self { at, tick: Tick(millis_floor(at)), stamp: Tick(millis_ceil(at)) }
    }
}

fn millis_floor(span: Duration) -> u64 {
    span.as_secs().saturating_mul(1_000).saturating_add(u64::from(span.subsec_millis()))
}

fn millis_ceil(span: Duration) -> u64 {
    let partial = span.subsec_nanos() % 1_000_000 != 0;
    millis_floor(span).saturating_add(u64::from(partial))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_present_rounds_down_and_deadlines_round_up() {
        assert_eq!(Tick(5).after(Duration::from_nanos(1)), Tick(6));
        let now = Now::new(Duration::from_nanos(1_000_001));
        assert_eq!((now.tick, now.stamp), (Tick(1), Tick(2)));
        let now = Now::new(Duration::from_millis(3));
        assert_eq!((now.tick, now.stamp), (Tick(3), Tick(3)));
    }

    #[test]
    fn the_largest_durations_saturate() {
        assert_eq!(Tick(1).after(Duration::MAX), Tick::NEVER);
        let day = Duration::from_secs(86_400);
        assert_eq!(Tick(0).after(day * 50), Tick(50 * 86_400_000));
    }

    #[test]
    fn a_tick_that_has_begun_is_zero_away() {
        assert_eq!(Tick(3).away(Duration::from_micros(2_500)), Duration::from_micros(500));
        assert_eq!(Tick(3).away(Duration::from_millis(4)), Duration::ZERO);
    }
}
