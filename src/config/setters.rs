//! The setters of [`Config`], for chaining.

use std::time::Duration;

use super::{Config, Overload, RateLimit};
use crate::framing::Framing;

/// Setters. Each returns the configuration with one field changed.
impl Config {
    /// Creates a configuration with the default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`debug`](Self::debug).
    #[must_use]
    pub fn debug(mut self, debug: bool) -> Self {
        self.debug = debug;
        self
    }

    /// Sets [`buffer_size`](Self::buffer_size), in bytes.
    #[must_use]
    pub fn buffer_size(mut self, bytes: usize) -> Self {
        self.buffer_size = bytes;
        self
    }

    /// Sets [`max_request`](Self::max_request), in bytes.
    #[must_use]
    pub fn max_request(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.max_request = bytes.into();
        self
    }

    /// Sets [`memory_limit`](Self::memory_limit), in bytes.
    #[must_use]
    pub fn memory_limit(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.memory_limit = bytes.into();
        self
    }

    /// Sets [`min_workers`](Self::min_workers).
    #[must_use]
    pub fn min_workers(mut self, workers: usize) -> Self {
        self.min_workers = workers;
        self
    }

    /// Sets [`max_workers`](Self::max_workers).
    #[must_use]
    pub fn max_workers(mut self, workers: impl Into<Option<usize>>) -> Self {
        self.max_workers = workers.into();
        self
    }

    /// Sets [`clients_deadline`](Self::clients_deadline).
    #[must_use]
    pub fn clients_deadline(mut self, deadline: Duration) -> Self {
        self.clients_deadline = deadline;
        self
    }

    /// Sets [`request_deadline`](Self::request_deadline).
    #[must_use]
    pub fn request_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.request_deadline = deadline.into();
        self
    }

    /// Sets [`paused_deadline`](Self::paused_deadline).
    #[must_use]
    pub fn paused_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.paused_deadline = deadline.into();
        self
    }

    /// Sets [`connect_deadline`](Self::connect_deadline).
    #[must_use]
    pub fn connect_deadline(mut self, deadline: Duration) -> Self {
        self.connect_deadline = deadline;
        self
    }

    /// Sets [`framing`](Self::framing).
    #[must_use]
    pub fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Sets [`write_limit`](Self::write_limit), in bytes.
    #[must_use]
    pub fn write_limit(mut self, bytes: usize) -> Self {
        self.write_limit = bytes;
        self
    }

    /// Sets [`reap_interval`](Self::reap_interval).
    #[must_use]
    pub fn reap_interval(mut self, interval: Duration) -> Self {
        self.reap_interval = interval;
        self
    }

    /// Sets [`stop_deadline`](Self::stop_deadline).
    #[must_use]
    pub fn stop_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.stop_deadline = deadline.into();
        self
    }

    /// Sets [`max_per_peer`](Self::max_per_peer).
    #[must_use]
    pub fn max_per_peer(mut self, connections: impl Into<Option<usize>>) -> Self {
        self.max_per_peer = connections.into();
        self
    }

    /// Sets [`rate_limit`](Self::rate_limit).
    #[must_use]
    pub fn rate_limit(mut self, limit: impl Into<Option<RateLimit>>) -> Self {
        self.rate_limit = limit.into();
        self
    }

    /// Sets [`overload`](Self::overload).
    #[must_use]
    pub fn overload(mut self, overload: Overload) -> Self {
        self.overload = overload;
        self
    }

    /// Sets [`spin`](Self::spin).
    #[must_use]
    pub fn spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }

    /// Sets [`tick`](Self::tick).
    #[must_use]
    pub fn tick(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.tick = interval.into();
        self
    }

    /// Sets [`slow_callback`](Self::slow_callback).
    #[must_use]
    pub fn slow_callback(mut self, longer_than: impl Into<Option<Duration>>) -> Self {
        self.slow_callback = longer_than.into();
        self
    }
}
