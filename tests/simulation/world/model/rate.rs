//! Rate: when the next request may come, read from when the last ones came.

use std::time::Duration;

use pool_manager::{Config, RateLimit};

use super::Account;

/// As many of the last requests are looked at.
const KNOWN: usize = 300;

/// A request may come early by what it was counted in.
pub(super) const TICKS: Duration = Duration::from_millis(2);

impl Account {
    /// From when on one more request keeps the rate: of any that have come since one of them,
    /// no more than a burst may be ahead of it.
    pub(super) fn due(&self, limit: Option<RateLimit>) -> Duration {
        let Some(limit) = limit else { return Duration::ZERO };
        let gap = Duration::from_secs(1) / limit.per_second;
        let since = self.requests.iter().rev().zip(1_u32..);
        let due = |(&at, count): (&Duration, u32)| at + gap * count.saturating_sub(limit.burst - 1);
        let ahead = since.filter(|&(_, count)| count >= limit.burst);
        ahead.map(due).max().unwrap_or_default()
    }

    /// A request is delivered: not too early for all that may be in effect.
    pub(super) fn delivers(&mut self, configs: &[Config], now: Duration) -> Result<(), String> {
        let dues = configs.iter().map(|config| self.due(config.rate_limit));
        let due = dues.min().unwrap_or_default();
        self.requests.push_back(now);
        if self.requests.len() > KNOWN {
            self.requests.pop_front();
        }
        if now + TICKS < due {
            return Err(format!("a request that was not due before {due:?}"));
        }
        Ok(())
    }

    /// Whether a request may have to wait still.
    pub(super) fn may_be_held(&self, limit: Option<RateLimit>, now: Duration) -> bool {
        limit.is_some() && now < self.due(limit) + TICKS
    }
}
