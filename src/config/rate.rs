//! Rate: how many requests a connection may make, and in what bursts.

use super::ConfigError;

/// How many requests a second a connection may make, and how many at once
/// ([`Config::rate_limit`](super::Config::rate_limit)).
///
/// ```
/// use pool_manager::{Config, RateLimit};
/// let config = Config::new().rate_limit(RateLimit::per_second(100).burst(20));
/// assert_eq!(config.rate_limit.map(|limit| limit.burst), Some(20));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimit {
    /// Requests a second in the long run; at least 1, at most 1,000,000.
    pub per_second: u32,
    /// Requests that may come at once after a silence; at least 1. Default: 1. Time is counted in
    /// milliseconds, so what comes in one of them may come at once as well.
    pub burst: u32,
}

impl RateLimit {
    /// So many requests a second, one at a time.
    #[must_use]
    pub fn per_second(requests: u32) -> Self {
        Self { per_second: requests, burst: 1 }
    }

    /// Sets [`burst`](Self::burst).
    #[must_use]
    pub fn burst(mut self, requests: u32) -> Self {
        self.burst = requests;
        self
    }

    pub(super) fn check(self) -> Result<(), ConfigError> {
        for (field, value) in
            [("rate_limit.per_second", self.per_second), ("rate_limit.burst", self.burst)]
        {
            if value == 0 {
                return Err(ConfigError::Zero { field });
            }
        }
        let (value, max) = (self.per_second as usize, 1_000_000);
        if value > max {
            return Err(ConfigError::TooLarge { field: "rate_limit.per_second", value, max });
        }
        Ok(())
    }
}
