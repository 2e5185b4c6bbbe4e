//! Pace: when a connection's next request may be delivered, by the generic cell rate algorithm
//! (ITU-T I.371, annex A): one number a connection, and no clock but the tick.
//!
//! That number is when the next request would come if they came evenly, in units so much smaller
//! than a tick that a million a second are told apart. Who is ahead of it by no more than the burst
//! allows is served; who is behind it starts anew. What a tick allows may come at its beginning:
//! so the rate is held though the loop wakes at ticks, and a request comes early by less than one.

use crate::config::RateLimit;
use crate::time::Tick;

/// Units a tick, as a power of two.
const FINER: u32 = 20;

/// A rate limit in units; of none both are 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gcra {
    /// Between two requests.
    emission_interval: u64,
    /// How far ahead a request may be.
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
    /// Whether there is a limit.
    #[inline(always)]
    pub(crate) fn is_limited(self) -> bool {
        self.emission_interval > 0
    }

    /// The tick at which the next request may be delivered.
    pub(crate) fn due(self, tat: u64) -> Tick {
        if self.is_limited() {
            Tick(tat.saturating_sub(self.burst_tolerance) >> FINER)
        } else {
            Tick(0)
        }
    }

    /// When the request after one that is delivered at `now` would come evenly.
    pub(crate) fn after(self, tat: u64, now: Tick) -> u64 {
        tat.max(now.0.saturating_mul(1 << FINER)).saturating_add(self.emission_interval)
    }

    /// What another limit allowed before, as far as this one would have: a burst.
    pub(crate) fn clamp(self, tat: u64, now: Tick) -> u64 {
        let latest = now.0.saturating_add(1).saturating_mul(1 << FINER);
        tat.min(latest.saturating_add(self.burst_tolerance).saturating_add(self.emission_interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests are delivered by each of these ticks if there are always some.
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
    fn a_burst_comes_at_once_and_the_rest_evenly() {
        let limit = RateLimit::per_second(100).burst(5);
        let ticks = [1_000, 1_009, 1_010, 1_050, 2_000, 9_000, 9_001];
        let counts = delivered(limit, ticks.into_iter());
        assert_eq!(counts, [5, 5, 6, 10, 15, 20, 20], "a silence saves up a burst and no more");
    }

    #[test]
    fn the_rate_is_held_exactly_though_it_is_no_whole_number_of_ticks() {
        for per_second in [1, 3, 7, 300, 999, 1_000, 1_001, 7_777, 1_000_000] {
            let limit = RateLimit::per_second(per_second);
            let last = u64::from(delivered(limit, 1_000..=11_000)[10_000]);
            let max = u64::from(per_second) * 10;
            let tick = u64::from(per_second).div_ceil(1_000);
            // A gap is rounded down, by a thousandth of one at most.
            let max = max..=max + max / 1_000 + 1 + tick;
            assert!(max.contains(&last), "{last} of {max:?}");
        }
    }

    #[test]
    fn without_a_limit_everything_is_due_and_the_largest_do_not_overflow() {
        assert_eq!(Gcra::default().due(u64::MAX), Tick(0));
        let rate = Gcra::from(Some(RateLimit::per_second(1).burst(u32::MAX)));
        assert_eq!(rate.due(0), Tick(0));
        assert_eq!(rate.after(u64::MAX, Tick::NEVER), u64::MAX);
    }
}
