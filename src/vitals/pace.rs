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
pub(crate) struct Pace {
    /// Between two requests.
    gap: u64,
    /// How far ahead a request may be.
    ahead: u64,
}

impl From<Option<RateLimit>> for Pace {
    fn from(limit: Option<RateLimit>) -> Self {
        let Some(RateLimit { per_second, burst }) = limit else { return Self::default() };
        let gap = (1_000 << FINER) / u64::from(per_second.max(1));
        Self { gap, ahead: gap.saturating_mul(u64::from(burst.saturating_sub(1))) }
    }
}

impl Pace {
    /// Whether there is a limit.
    #[inline(always)]
    pub(crate) fn is_limited(self) -> bool {
        self.gap > 0
    }

    /// The tick at which the next request may be delivered.
    pub(crate) fn due(self, evenly: u64) -> Tick {
        if self.is_limited() { Tick(evenly.saturating_sub(self.ahead) >> FINER) } else { Tick(0) }
    }

    /// When the request after one that is delivered at `now` would come evenly.
    pub(crate) fn after(self, evenly: u64, now: Tick) -> u64 {
        evenly.max(now.0.saturating_mul(1 << FINER)).saturating_add(self.gap)
    }

    /// What another limit allowed before, as far as this one would have: a burst.
    pub(crate) fn forgiving(self, evenly: u64, now: Tick) -> u64 {
        let latest = now.0.saturating_add(1).saturating_mul(1 << FINER);
        evenly.min(latest.saturating_add(self.ahead).saturating_add(self.gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests are delivered by each of these ticks if there are always some.
    fn delivered(limit: RateLimit, ticks: impl Iterator<Item = u64>) -> Vec<u32> {
        let (pace, mut evenly, mut count) = (Pace::from(Some(limit)), 0, 0);
        let by = |tick| {
            while pace.due(evenly) <= Tick(tick) {
                evenly = pace.after(evenly, Tick(tick));
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
            let most = u64::from(per_second) * 10;
            let tick = u64::from(per_second).div_ceil(1_000);
            // A gap is rounded down, by a thousandth of one at most.
            let most = most..=most + most / 1_000 + 1 + tick;
            assert!(most.contains(&last), "{last} of {most:?}");
        }
    }

    #[test]
    fn without_a_limit_everything_is_due_and_the_largest_do_not_overflow() {
        assert_eq!(Pace::default().due(u64::MAX), Tick(0));
        let pace = Pace::from(Some(RateLimit::per_second(1).burst(u32::MAX)));
        assert_eq!(pace.due(0), Tick(0));
        assert_eq!(pace.after(u64::MAX, Tick::NEVER), u64::MAX);
    }
}
