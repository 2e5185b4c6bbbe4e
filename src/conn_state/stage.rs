//! The stage of a connection: connecting, awaiting its PROXY header, or open.

/// The stage of a connection. A connection can begin in any stage, and can change only to `Open`.
///
/// Closing is not a stage, because a connection can close in every stage. The stage in which a
/// connection closes decides whether [`Handler::closed`](crate::Handler::closed) is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// An outgoing connection that is not established yet.
    /// [`Handler::opened`](crate::Handler::opened) was not called. If the connection ends now,
    /// [`Handler::closed`](crate::Handler::closed) is called.
    Connecting,
    /// The PROXY header has not arrived completely. The handler gets no callback, not even
    /// [`Handler::closed`](crate::Handler::closed).
    AwaitingHeader,
    /// The handler gets all callbacks.
    Open,
}
