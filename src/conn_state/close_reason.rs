//! The reasons for which connections end.

use std::fmt;
use std::io;

/// Why a connection was closed.
///
/// ```
/// use pool_manager::CloseReason;
/// assert_eq!(CloseReason::WriteStalled.to_string(), "the peer took no reply until its deadline");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed its side, and every request was answered.
    Eof,
    /// A deadline passed, and no output was unsent.
    Expired,
    /// A deadline passed while output was unsent.
    WriteStalled,
    /// The unsent output would have exceeded `write_limit`.
    WriteLimit,
    /// A frame was longer than `max_request` or than the framing's limit.
    Overlong,
    /// An incomplete request could not be kept within `memory_limit`.
    MemoryLimit,
    /// A custom framing reported that the bytes are invalid.
    Invalid,
    /// The connection did not begin with the expected PROXY protocol header
    /// ([`ListenOptions`](crate::ListenOptions)). The handler gets no callback for it.
    BadHeader,
    /// An outgoing connection ([`Manager::connect`](crate::Manager::connect)) failed, for example
    /// because it was refused, the address is unreachable, or no descriptor was left. The kind of
    /// [`Closed::error`](crate::Closed::error) is [`TimedOut`](io::ErrorKind::TimedOut) if the
    /// connect deadline passed. [`Handler::opened`](crate::Handler::opened) was not called.
    Unreachable,
    /// A callback or a handle closed the connection.
    Requested,
    /// A callback aborted the connection, without sending its output.
    Aborted,
    /// A callback returned an error, which is [`Closed::error`](crate::Closed::error).
    Failed,
    /// A callback panicked.
    Panicked,
    /// The peer reset the connection.
    Reset,
    /// The socket failed in another way. [`Closed::error`](crate::Closed::error) is its error.
    Io,
    /// The manager was stopped or dropped.
    Stopped,
    /// The connection was idle, and its worker was needed for a new connection
    /// ([`Overload::EvictIdle`](crate::Overload)).
    Evicted,
}

impl CloseReason {
    /// The number of classes that [`CloseReason::class`] returns.
    pub(crate) const CLASSES: usize = 17;

    /// Returns the class of the reason, which is its index in arrays of counters.
    pub(crate) fn class(self) -> usize {
        match self {
            Self::Eof => 0,
            Self::Expired => 1,
            Self::WriteStalled => 2,
            Self::WriteLimit => 3,
            Self::Overlong => 4,
            Self::Invalid => 5,
            Self::Requested => 6,
            Self::Aborted => 7,
            Self::Failed => 8,
            Self::Panicked => 9,
            Self::Reset => 10,
            Self::Io => 11,
            Self::Stopped => 12,
            Self::MemoryLimit => 13,
            Self::BadHeader => 14,
            Self::Evicted => 15,
            Self::Unreachable => 16,
        }
    }

    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Reset,
            _ => Self::Io,
        }
    }

    /// Returns whether this is a natural end: the peer closed, a deadline passed, a frame was too
    /// long, or `memory_limit` was reached. A natural close waits while the connection is paused,
    /// and another reason may replace it.
    pub(crate) fn is_natural(self) -> bool {
        matches!(self, Self::Eof | Self::Expired | Self::Overlong | Self::MemoryLimit)
    }

    /// Returns whether the connection ended because of an error that the handler gets in
    /// [`Closed::error`](crate::Closed::error).
    pub(crate) fn is_failure(self) -> bool {
        matches!(self, Self::Reset | Self::Io | Self::Unreachable | Self::Failed)
    }

    /// Returns whether unsent output is sent before the close. The socket may linger only in this
    /// case.
    pub(crate) fn is_polite(self) -> bool {
        !matches!(
            self,
            Self::WriteStalled
                | Self::WriteLimit
                | Self::BadHeader
                | Self::Unreachable
                | Self::Aborted
                | Self::Reset
                | Self::Io
        )
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eof => "the peer closed",
            Self::Expired => "its deadline passed",
            Self::WriteStalled => "the peer took no reply until its deadline",
            Self::WriteLimit => "its unsent output would have exceeded write_limit",
            Self::Overlong => "a frame was too long",
            Self::MemoryLimit => "memory_limit was used up",
            Self::Invalid => "the framing found its bytes invalid",
            Self::BadHeader => "it did not begin with a PROXY header",
            Self::Unreachable => "it could not be reached",
            Self::Requested => "a callback or a handle closed it",
            Self::Aborted => "it was aborted",
            Self::Failed => "its callback failed",
            Self::Panicked => "its callback panicked",
            Self::Reset => "the peer reset it",
            Self::Io => "its socket failed",
            Self::Stopped => "the manager stopped",
            Self::Evicted => "it was idle and its worker was needed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_close_reason_has_its_own_class_and_text() {
        let reasons = [
            CloseReason::Eof,
            CloseReason::Expired,
            CloseReason::WriteStalled,
            CloseReason::WriteLimit,
            CloseReason::Overlong,
            CloseReason::MemoryLimit,
            CloseReason::Invalid,
            CloseReason::Requested,
            CloseReason::Aborted,
            CloseReason::Failed,
            CloseReason::Panicked,
            CloseReason::Reset,
            CloseReason::Io,
            CloseReason::Stopped,
            CloseReason::Evicted,
            CloseReason::BadHeader,
            CloseReason::Unreachable,
        ];
        let mut classes: Vec<usize> = reasons.iter().map(|reason| reason.class()).collect();
        let mut words: Vec<String> = reasons.iter().map(CloseReason::to_string).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), reasons.len(), "each text is unique: {words:?}");
        classes.sort_unstable();
        classes.dedup();
        assert_eq!(classes.len(), CloseReason::CLASSES);
        assert_eq!(classes.last(), Some(&(CloseReason::CLASSES - 1)));
    }
}
