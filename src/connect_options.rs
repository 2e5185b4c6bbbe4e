//! Outgoing: what is asked for with a connection that begins here.
//!
//! Values alone: it knows neither sockets nor who asks.

use std::net::SocketAddr;
use std::time::Duration;

/// How to connect; for [`Manager::connect_with`](crate::Manager::connect_with).
///
/// ```
/// use pool_manager::{Config, ConnectOptions, Manager};
/// use std::time::Duration;
///
/// let upstream = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let mut manager = Manager::new(Config::new(), |_, _| Ok(()))?;
/// manager.start()?;
/// let options = ConnectOptions::new().deadline(Duration::from_millis(200)).key(7);
/// let id = manager.connect_with(upstream.local_addr()?, options)?;
/// manager.turn(Some(Duration::from_secs(1)))?;
/// assert_eq!(manager.stats().connected, 1, "{id}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    deadline: Duration,
    key: Option<u64>,
}

impl ConnectOptions {
    /// The defaults: the configured deadline, and no key.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How long it may take until the connection is there; rounded up to a millisecond, at most 49
    /// days. Default, and what zero means: [`connect_deadline`](crate::Config::connect_deadline).
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// A number of the caller's own, which [`Conn::key`](crate::Conn::key) and
    /// [`Closed::key`](crate::End::key) give back: who connects from a callback has no id yet, and
    /// knows the connection by it. Default: none.
    #[must_use]
    pub fn key(mut self, key: u64) -> Self {
        self.key = Some(key);
        self
    }
}

/// A connection that is to begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectRequest {
    pub(crate) addr: SocketAddr,
    options: ConnectOptions,
}

impl ConnectRequest {
    pub(crate) fn new(addr: SocketAddr, options: ConnectOptions) -> Self {
        Self { addr, options }
    }

    pub(crate) fn key(&self) -> Option<u64> {
        self.options.key
    }

    /// How long it may take, if it is not `otherwise`.
    pub(crate) fn deadline(&self, otherwise: Duration) -> Duration {
        let own = self.options.deadline;
        if own.is_zero() { otherwise } else { own }
    }
}
