//! Cause: why a callback runs.

use super::CloseReason;

/// Why the callback runs now.
///
/// ```
/// use pool_manager::{Cause, Config, Manager};
/// use std::io::Write;
/// // The Go package's own program: silence until the deadline is an error.
/// let manager = Manager::new(Config::new(), |conn, body| match conn.cause() {
///     Cause::Expired if body.is_empty() => conn.write_all(b"ERROR"),
///     _ => conn.write_all(b"OK"),
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The socket has no more to read ([`Framing::Drained`](crate::Framing::Drained)).
    Drained,
    /// The framing says that this is a complete frame.
    Framed,
    /// `buffer_size` bytes are held.
    Full,
    /// The peer will send no more; this is what it left. The connection closes after the reply.
    Eof,
    /// A deadline passed; this is what was there, nothing if the peer never sent a byte (or not
    /// all of a length prefix: [`Conn::bytes_in`](crate::Conn::bytes_in) tells). The connection
    /// closes after the reply.
    Expired,
    /// The frame is longer than `max_request`, or than the framing's limit; this is as much as was
    /// there. The connection closes after the reply.
    Overlong,
    /// Keeping what is there of the request would take more than `memory_limit` leaves; this is
    /// all that is there. The connection closes after the reply; the peer may try again later.
    MemoryLimit,
    /// In [`Handler::opened`](crate::Handler::opened): the connection is new.
    Opened,
    /// In [`Handler::blocked`](crate::Handler::blocked): a reply has to wait for the peer.
    Blocked,
    /// In [`Handler::flushed`](crate::Handler::flushed): a reply that had to wait has gone out.
    Flushed,
}

impl Cause {
    /// The causes a request can have.
    pub(crate) const REQUESTS: [Self; 7] = [
        Self::Drained,
        Self::Framed,
        Self::Full,
        Self::Eof,
        Self::Expired,
        Self::Overlong,
        Self::MemoryLimit,
    ];

    /// Why the connection closes after a callback of this cause, if it does.
    pub(crate) fn ends(self) -> Option<CloseReason> {
        match self {
            Self::Eof => Some(CloseReason::Eof),
            Self::Expired => Some(CloseReason::Expired),
            Self::Overlong => Some(CloseReason::Overlong),
            Self::MemoryLimit => Some(CloseReason::MemoryLimit),
            _ => None,
        }
    }
}
