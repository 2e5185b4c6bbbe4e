//! Time as the loop uses it: whole milliseconds since the backend's epoch.
//!
//! The current time is rounded down and every deadline is rounded up, so that no deadline passes
//! early. This module does not read the clock.

use std::time::Duration;

/// A point in time, in whole milliseconds since the backend's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(pub(crate) u64);

impl Tick {
    /// A tick later than every deadline. It is the value of a deadline that is suspended or not
    /// set.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    /// Returns this tick plus `by`, rounded up. Saturates at [`Tick::NEVER`].
    pub(crate) fn after(self, by: Duration) -> Self {
        let (whole, partial) = millis(by);
        Self(self.0.saturating_add(whole).saturating_add(partial.into()))
    }

    /// Returns the time from this tick until `later`, or zero if `later` has passed.
    #[inline]
    pub(crate) fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

/// The clock reading of a turn, rounded down and up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Rounded down. Deadlines are compared with it.
    pub(crate) floor: Tick,
    /// Rounded up. Deadlines are counted from it.
    pub(crate) ceil: Tick,
}

/// The time from one clock reading to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) began: Tick,
    pub(crate) ended: Tick,
}

impl Span {
    /// Returns the tick just before the end of the span. For an empty span, returns the end itself.
    /// A timestamp that equals the beginning of the span is moved to this tick. It is not moved to
    /// the end of the span, because the next span may begin at that end. The timestamp would then
    /// be moved again for the next span, although there was no new activity.
    #[inline]
    pub(crate) fn last(self) -> Tick {
        Tick(self.ended.0.saturating_sub(1)).max(self.began)
    }

    /// Returns whether the span is longer than one tick. If it is not, [`Span::last`] equals its
    /// beginning.
    #[inline]
    pub(crate) fn is_long(self) -> bool {
        self.ended.0 > self.began.0 + 1
    }
}

impl Now {
    /// Creates a reading from the time since the epoch: the whole milliseconds, and whether a part
    /// of the next millisecond has passed.
    #[inline]
    pub(crate) fn new((whole, partial): (u64, bool)) -> Self {
        Self { floor: Tick(whole), ceil: Tick(whole + u64::from(partial)) }
    }
}

/// Returns the whole milliseconds of a duration, and whether a part of a millisecond is left over.
pub(crate) fn millis(span: Duration) -> (u64, bool) {
    let whole = span.subsec_millis();
    let partial = span.subsec_nanos() != whole * 1_000_000;
    (span.as_secs().saturating_mul(1_000).saturating_add(u64::from(whole)), partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_is_rounded_down_and_deadlines_are_rounded_up() {
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
    fn the_time_until_a_past_tick_is_zero() {
        assert_eq!(Tick(3).until(Tick(5)), Duration::from_millis(2));
        assert_eq!(Tick(4).until(Tick(3)), Duration::ZERO);
    }
}
