//! Overload: what a listener does with a new connection when all workers are taken.

use std::borrow::Cow;
use std::fmt;

use super::ERROR_SERVER_BUSY;

/// Defines what a listener does with a new connection when all workers are taken.
///
/// ```
/// use pool_manager::{Config, Overload};
/// let http = Config::new().overload(Overload::Reject(b"HTTP/1.1 503 Busy\r\n\r\n".into()));
/// let waiting = Config::new().overload(Overload::Pause);
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overload {
    /// Accepts the connection, writes these bytes and closes it. Before the close, the input of the
    /// peer is read and discarded for up to 5 s. Unread input would cause a reset at the close, and
    /// the reset could destroy the reply.
    Reject(Cow<'static, [u8]>),
    /// Leaves the connection in the kernel's backlog until a worker is free.
    Pause,
    /// Closes the connection that has been idle longest, with [`CloseReason::Evicted`]. The new
    /// connection gets the worker of the closed connection.
    ///
    /// A connection is idle if it is between two requests or has not sent a request. It must hold
    /// no input, have no unsent output, and not be paused. Its last byte must have been read or
    /// written in an earlier millisecond of the loop's clock. The connection is read once more
    /// before it is closed. If data has arrived, the connection is served instead, and the search
    /// is repeated. At most four connections are tried. [`Handler::closed`](crate::Handler::closed)
    /// is called for the closed connection. The eviction causes no other callback.
    ///
    /// The cost of the search does not depend on the number of connections. The search looks at the
    /// next 256 slots in round-robin order, and takes the longest-idle connection among them. With
    /// at most 256 workers, this is the longest-idle connection of all. If the search finds no idle
    /// connection, the new connection is sent [`ERROR_SERVER_BUSY`] and closed.
    ///
    /// [`CloseReason::Evicted`]: crate::CloseReason::Evicted
    EvictIdle,
}

impl Overload {
    /// Returns the reply to a refused connection.
    pub(crate) fn refusal(&self) -> &[u8] {
        match self {
            Self::Reject(refusal) => refusal,
            Self::Pause | Self::EvictIdle => ERROR_SERVER_BUSY.as_bytes(),
        }
    }
}

impl fmt::Debug for Overload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reject(refusal) => write!(f, "Reject(\"{}\")", refusal.escape_ascii()),
            Self::Pause => f.write_str("Pause"),
            Self::EvictIdle => f.write_str("EvictIdle"),
        }
    }
}
