//! The causes of a callback.

use super::CloseReason;

/// Why a callback runs.
///
/// ```
/// use pool_manager::{Cause, Config, Manager};
/// use std::io::Write;
/// // As in the original Go package, a peer that sends nothing until its deadline gets an error.
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
    /// The framing found a complete frame.
    Framed,
    /// `buffer_size` bytes are held.
    Full,
    /// The peer has closed its side. In [`Handler::request`](crate::Handler::request), the body is
    /// the rest of its bytes. In [`Handler::incomplete`](crate::Handler::incomplete), a part of a
    /// request is held. In [`Handler::read_closed`](crate::Handler::read_closed), everything was
    /// delivered.
    Eof,
    /// A deadline passed. The connection closes after the reply.
    Expired,
    /// The bytes of an incomplete request cannot be kept, because `memory_limit` is reached. The
    /// connection closes after the reply. The peer may try again later.
    MemoryLimit,
    /// The frame is longer than `max_request`, or than the framing's limit. The connection closes
    /// after the reply.
    Overlong,
    /// The connection was paused for [`paused_deadline`](crate::Config::paused_deadline). The
    /// connection closes after the reply.
    Unanswered,
    /// In [`Handler::opened`](crate::Handler::opened): the connection is new.
    Opened,
    /// In [`Handler::blocked`](crate::Handler::blocked): the socket did not take all of the output.
    Blocked,
    /// In [`Handler::flushed`](crate::Handler::flushed): the connection was blocked, and all of its
    /// output has been sent now.
    Flushed,
}

impl Cause {
    /// The causes of [`Handler::request`](crate::Handler::request).
    pub(crate) const REQUESTS: [Self; 6] =
        [Self::Drained, Self::Framed, Self::Full, Self::Eof, Self::Expired, Self::MemoryLimit];

    /// The causes of [`Handler::incomplete`](crate::Handler::incomplete).
    pub(crate) const INCOMPLETE: [Self; 5] =
        [Self::Eof, Self::Expired, Self::MemoryLimit, Self::Overlong, Self::Unanswered];

    /// Returns the reason for which the connection closes after a callback with this cause. Returns
    /// `None` if the connection stays open.
    pub(crate) fn ends(self) -> Option<CloseReason> {
        match self {
            Self::Expired | Self::Unanswered => Some(CloseReason::Expired),
            Self::Overlong => Some(CloseReason::Overlong),
            Self::MemoryLimit => Some(CloseReason::MemoryLimit),
            _ => None,
        }
    }
}
