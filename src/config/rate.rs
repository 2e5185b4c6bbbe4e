//! The rate limit: requests per second of one connection, and the size of a burst.

use super::ConfigError;

/// Maximum number of requests per second of a connection, and the size of a burst
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
    /// Maximum average number of requests per second. Minimum: 1. Maximum: 1,000,000.
    pub per_second: u32,
    /// Maximum number of requests that are delivered together, without a delay between them.
    /// Minimum: 1. Default: 1. After `burst / per_second` seconds without a request, a connection
    /// may make a full burst again.
    ///
    /// Time is counted in milliseconds. Requests that are due in the same millisecond are therefore
    /// also delivered together.
    pub burst: u32,
}

impl RateLimit {
    /// Creates a limit of this many requests per second, with a burst of 1.
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
                let instead = "for no limit, set no rate_limit";
                return Err(ConfigError::Zero { field, instead });
            }
        }
        let (value, max) = (self.per_second as usize, 1_000_000);
        if value > max {
            return Err(ConfigError::TooLarge { field: "rate_limit.per_second", value, max });
        }
        Ok(())
    }
}
