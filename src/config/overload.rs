//! Overload: what becomes of newcomers when there is no place.

use std::borrow::Cow;
use std::fmt;

use super::ERROR_SERVER_BUSY;

/// What a listener does with new connections when all workers are taken.
///
/// ```
/// use pool_manager::{Config, Overload};
/// let http = Config::new().overload(Overload::Reject(b"HTTP/1.1 503 Busy\r\n\r\n".into()));
/// let patient = Config::new().overload(Overload::Pause);
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overload {
    /// Accept, write this as a last word, and close (lingering, so that it arrives).
    Reject(Cow<'static, [u8]>),
    /// Leave it in the kernel's backlog until a worker is free.
    Pause,
    /// Close the connection that has been idle longest ([`CloseReason::Evicted`]) and give its place
    /// to the new one. Idle is who is between two requests, or has sent none: nothing is held, owed
    /// or paused, and nothing has moved for a millisecond or two, so that newcomers have a moment to
    /// speak. Who turns out to have spoken, at a last read, is served and stays. No callback but
    /// [`closed`](crate::Handler::closed) runs for who goes.
    ///
    /// Nothing is kept in order for it: 256 slots are looked at for each newcomer, going round, and
    /// the one of these that is idle longest goes. So it is the longest of all with up to 256
    /// workers, and with more one of the longest. If none of these is idle, the newcomer is
    /// told [`ERROR_SERVER_BUSY`] and closed.
    ///
    /// [`CloseReason::Evicted`]: crate::CloseReason::Evicted
    EvictIdle,
}

impl Overload {
    /// What is said to who is refused.
    pub(crate) fn last_word(&self) -> &[u8] {
        match self {
            Self::Reject(last_word) => last_word,
            Self::Pause | Self::EvictIdle => ERROR_SERVER_BUSY.as_bytes(),
        }
    }
}

impl fmt::Debug for Overload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reject(last_word) => write!(f, "Reject(\"{}\")", last_word.escape_ascii()),
            Self::Pause => f.write_str("Pause"),
            Self::EvictIdle => f.write_str("EvictIdle"),
        }
    }
}
