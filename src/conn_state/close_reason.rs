//! Reason: why connections end, and what is worth doing first.

use std::fmt;
use std::io;

/// Why a connection was closed: the last thing said about it.
///
/// ```
/// use pool_manager::CloseReason;
/// assert_eq!(CloseReason::WriteStalled.to_string(), "the peer took no reply until its deadline");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed its side, and was answered.
    Eof,
    /// A deadline passed with no reply owed.
    Expired,
    /// A deadline passed with a reply still unsent.
    WriteStalled,
    /// More reply than `write_limit` would have been unsent.
    WriteLimit,
    /// A frame was longer than `max_request` or the framing's limit.
    Overlong,
    /// A part of a request could not be kept within `memory_limit`.
    MemoryLimit,
    /// A custom framing found the bytes invalid.
    Invalid,
    /// It was to begin with a header of the PROXY protocol
    /// ([`ListenOptions`](crate::ListenOptions)), and did not. The handler never knew of it.
    BadHeader,
    /// It was to begin here ([`Manager::connect`](crate::Manager::connect)) and could not: refused,
    /// unreachable, out of descriptors; [`TimedOut`](io::ErrorKind::TimedOut) past its deadline.
    /// [`Handler::opened`](crate::Handler::opened) never ran.
    Unreachable(io::ErrorKind),
    /// A callback or a handle asked for it.
    Requested,
    /// A callback asked for it, without flushing.
    Aborted,
    /// A callback returned an error.
    Failed,
    /// A callback panicked.
    Panicked,
    /// The peer reset the connection.
    Reset,
    /// The socket failed in another way.
    Io(io::ErrorKind),
    /// The manager was stopped or dropped.
    Stopped,
    /// It was idle, and made a place for another ([`Overload::EvictIdle`](crate::Overload)).
    Evicted,
}

impl CloseReason {
    /// How many classes [`CloseReason::class`] tells apart.
    pub(crate) const CLASSES: usize = 17;

    /// An index for counters; all kinds of [`CloseReason::Io`] are one class, and all of
    /// [`CloseReason::Unreachable`].
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
            Self::Io(_) => 11,
            Self::Stopped => 12,
            Self::MemoryLimit => 13,
            Self::BadHeader => 14,
            Self::Evicted => 15,
            Self::Unreachable(_) => 16,
        }
    }

    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Reset,
            kind => Self::Io(kind),
        }
    }

    /// Whether it is the way of things, rather than anybody's wish or fault.
    pub(crate) fn is_natural(self) -> bool {
        matches!(self, Self::Eof | Self::Expired | Self::Overlong | Self::MemoryLimit)
    }

    /// Whether what is owed is worth sending first, and worth lingering for.
    pub(crate) fn is_polite(self) -> bool {
        !matches!(
            self,
            Self::WriteStalled
                | Self::WriteLimit
                | Self::BadHeader
                | Self::Unreachable(_)
                | Self::Aborted
                | Self::Reset
                | Self::Io(_)
        )
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eof => "the peer closed",
            Self::Expired => "its deadline passed",
            Self::WriteStalled => "the peer took no reply until its deadline",
            Self::WriteLimit => "more reply than write_limit was unsent",
            Self::Overlong => "a frame was too long",
            Self::MemoryLimit => "memory_limit was used up",
            Self::Invalid => "the framing found its bytes invalid",
            Self::BadHeader => "it began with no header of the PROXY protocol",
            Self::Unreachable(kind) => return write!(f, "it could not be reached: {kind}"),
            Self::Requested => "it was asked for",
            Self::Aborted => "it was aborted",
            Self::Failed => "its callback failed",
            Self::Panicked => "its callback panicked",
            Self::Reset => "the peer reset it",
            Self::Io(kind) => return write!(f, "its socket failed: {kind}"),
            Self::Stopped => "the manager stopped",
            Self::Evicted => "it was idle and others came",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_reason_is_distinct_and_so_are_its_words() {
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
            CloseReason::Io(io::ErrorKind::Other),
            CloseReason::Stopped,
            CloseReason::Evicted,
            CloseReason::BadHeader,
            CloseReason::Unreachable(io::ErrorKind::Other),
        ];
        let mut classes: Vec<usize> = reasons.iter().map(|reason| reason.class()).collect();
        let mut words: Vec<String> = reasons.iter().map(CloseReason::to_string).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), reasons.len(), "each says something else: {words:?}");
        classes.sort_unstable();
        classes.dedup();
        assert_eq!(classes.len(), CloseReason::CLASSES);
        assert_eq!(classes.last(), Some(&(CloseReason::CLASSES - 1)));
    }
}
