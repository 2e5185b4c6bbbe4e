//! Rate limit: the earliest time of the next request, computed from the times of the last requests.

use std::time::Duration;

use pool_manager::{Config, RateLimit};

use super::ConnRecord;

/// Number of requests that are remembered.
const KNOWN: usize = 300;

/// Maximum time by which a request may be early, because of the resolution of the pool's clock.
pub(super) const TOLERANCE: Duration = Duration::from_millis(2);

impl ConnRecord {
    /// Returns the time from which one more request is within the limit. Counted from any earlier
    /// request on, the number of requests may exceed what the rate allows for that time by at most
    /// one burst.
    pub(super) fn due(&self, limit: Option<RateLimit>) -> Duration {
        let Some(limit) = limit else { return Duration::ZERO };
        let interval = Duration::from_secs(1) / limit.per_second;
        let since = self.requests.iter().rev().zip(1_u32..);
        let due =
            |(&at, count): (&Duration, u32)| at + interval * count.saturating_sub(limit.burst - 1);
        let ahead = since.filter(|&(_, count)| count >= limit.burst);
        ahead.map(due).max().unwrap_or_default()
    }

    /// Records a request. Checks that at least one configuration that may be in effect allows it.
    /// The clock of the pool showed a time between `now` and `latest`.
    pub(super) fn check_rate(
        &mut self,
        configs: &[Config],
        now: Duration,
        latest: Duration,
    ) -> Result<(), String> {
        let dues = configs.iter().map(|config| self.due(config.rate_limit));
        let due = dues.min().unwrap_or_default();
        self.requests.push_back(now);
        if self.requests.len() > KNOWN {
            self.requests.pop_front();
        }
        if latest + TOLERANCE < due {
            return Err(format!("a request before it was due, at {due:?}"));
        }
        Ok(())
    }

    /// Returns whether a request may still have to wait.
    pub(super) fn may_wait_for_rate(&self, limit: Option<RateLimit>, now: Duration) -> bool {
        limit.is_some() && now < self.due(limit) + TOLERANCE
    }
}
