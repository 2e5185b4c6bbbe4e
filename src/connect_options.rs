//! Options of an outgoing connection, and the request to start one.

use std::net::SocketAddr;
use std::time::Duration;

/// Options of an outgoing connection, for [`Manager::connect_with`](crate::Manager::connect_with).
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
    deadline: Option<Duration>,
    key: Option<u64>,
}

impl ConnectOptions {
    /// Creates the default options: the configured deadline and no key.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum time until the connection is established. It is rounded up to a
    /// millisecond, at least one. Default: `None`, which means
    /// [`connect_deadline`](crate::Config::connect_deadline). Maximum: 49 days.
    #[must_use]
    pub fn deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.deadline = deadline.into();
        self
    }

    /// Sets a number that [`Conn::key`](crate::Conn::key) and [`Closed::key`](crate::Closed::key)
    /// return. A callback that starts a connection does not get the id of the connection. It can
    /// recognize the connection by this key. Default: none.
    #[must_use]
    pub fn key(mut self, key: u64) -> Self {
        self.key = Some(key);
        self
    }
}

/// A request to start a connection.
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

    /// Returns the request's own deadline, or `otherwise` if the request has no deadline.
    pub(crate) fn deadline(&self, otherwise: Duration) -> Duration {
        self.options.deadline.unwrap_or(otherwise)
    }
}
