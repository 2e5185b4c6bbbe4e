//! The rate limit of a connection, by the generic cell rate algorithm (ITU-T I.371, annex A).
//!
//! The algorithm stores one number per connection, the theoretical arrival time (`tat`). It is the
//! time at which the next request is expected if the peer sends at exactly the rate of the limit. A
//! request may be delivered before this time, but not by more than the burst tolerance. Each
//! delivered request moves the theoretical arrival time ahead by one emission interval. If this
//! time is in the past, it is first set to the current time. Unused capacity therefore does not
//! accumulate beyond one burst.
//!
//! Times are in units of 2^-20 ticks, which is precise enough for a million requests per second.
//! The time at which a request may be delivered is rounded down to a whole tick, so a request may
//! be less than one tick early. The theoretical arrival time is not rounded, so the long-term rate
//! still holds.

use crate::config::RateLimit;
use crate::time::Tick;

/// Base-2 logarithm of the number of units per tick.
const FINER: u32 = 20;

/// A rate limit in units. Without a limit, both fields are 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gcra {
    /// The time between two requests at the rate of the limit.
    emission_interval: u64,
    /// A request may be delivered before its theoretical arrival time by at most this time.
    burst_tolerance: u64,
}

impl From<Option<RateLimit>> for Gcra {
    fn from(limit: Option<RateLimit>) -> Self {
        let Some(RateLimit { per_second, burst }) = limit else { return Self::default() };
        let emission_interval = (1_000 << FINER) / u64::from(per_second.max(1));
        Self {
            emission_interval,
            burst_tolerance: emission_interval.saturating_mul(u64::from(burst.saturating_sub(1))),
        }
    }
}

impl Gcra {
    /// Returns whether there is a limit.
    pub(crate) fn is_limited(self) -> bool {
        self.emission_interval > 0
    }

    /// Returns the tick at which the next request may be delivered.
    pub(crate) fn due(self, tat: u64) -> Tick {
        if self.is_limited() {
            Tick(tat.saturating_sub(self.burst_tolerance) >> FINER)
        } else {
            Tick(0)
        }
    }

    /// Returns the theoretical arrival time after a request that is delivered at `now`.
    pub(crate) fn after(self, tat: u64, now: Tick) -> u64 {
        tat.max(now.0.saturating_mul(1 << FINER)).saturating_add(self.emission_interval)
    }

    /// Adjusts a theoretical arrival time that was computed under another limit. The result is not
    /// later than the theoretical arrival time after a full burst of this limit. This burst is
    /// assumed to be delivered one tick after `now`.
    pub(crate) fn clamp(self, tat: u64, now: Tick) -> u64 {
        let latest = now.0.saturating_add(1).saturating_mul(1 << FINER);
        tat.min(latest.saturating_add(self.burst_tolerance).saturating_add(self.emission_interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of requests that are delivered until each of these ticks, if a request is
    /// always waiting.
    fn delivered(limit: RateLimit, ticks: impl Iterator<Item = u64>) -> Vec<u32> {
        let (rate, mut tat, mut count) = (Gcra::from(Some(limit)), 0, 0);
        let by = |tick| {
            while rate.due(tat) <= Tick(tick) {
                tat = rate.after(tat, Tick(tick));
                count += 1;
            }
            count
        };
        ticks.map(by).collect()
    }

    #[test]
    fn a_burst_is_delivered_at_once_and_the_rest_evenly() {
        let limit = RateLimit::per_second(100).burst(5);
        let ticks = [1_000, 1_009, 1_010, 1_050, 2_000, 9_000, 9_001];
        let counts = delivered(limit, ticks.into_iter());
        assert_eq!(counts, [5, 5, 6, 10, 15, 20, 20], "a quiet time allows one burst");
    }

    #[test]
    fn the_rate_holds_for_intervals_that_are_no_whole_ticks() {
        for per_second in [1, 3, 7, 300, 999, 1_000, 1_001, 7_777, 1_000_000] {
            let limit = RateLimit::per_second(per_second);
            let last = u64::from(delivered(limit, 1_000..=11_000)[10_000]);
            let max = u64::from(per_second) * 10;
            let tick = u64::from(per_second).div_ceil(1_000);
            // The interval is rounded down, by at most a thousandth.
            let max = max..=max + max / 1_000 + 1 + tick;
            assert!(max.contains(&last), "{last} of {max:?}");
        }
    }

    #[test]
    fn no_limit_never_delays_and_large_values_do_not_overflow() {
        assert_eq!(Gcra::default().due(u64::MAX), Tick(0));
        let rate = Gcra::from(Some(RateLimit::per_second(1).burst(u32::MAX)));
        assert_eq!(rate.due(0), Tick(0));
        assert_eq!(rate.after(u64::MAX, Tick::NEVER), u64::MAX);
    }
}
