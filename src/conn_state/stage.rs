//! Stage: how far a connection has come.

/// A connection's stage. It only moves to `Open`.
///
/// Closing is not a stage: a connection may be asked to close in each of them, and which one it was
/// in decides whether the handler is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It begins here and is not established. [`Handler::opened`](crate::Handler::opened) has not
    /// run; [`Handler::closed`](crate::Handler::closed) will.
    Connecting,
    /// Its PROXY header has not arrived. The handler does not know it and is not told of its end.
    AwaitingHeader,
    /// The handler knows it.
    Open,
}
