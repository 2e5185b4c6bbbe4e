//! Command: one queued request to the loop, carried out at the turn boundary.

use crate::config::Config;
use crate::connect_options::ConnectRequest;
use crate::id::ConnId;
use crate::socket::Socket;

/// What callbacks and handles ask for; done at the turn boundary.
pub(crate) enum Command {
    /// A connection whose place is taken already.
    Put(Socket),
    /// A connection that is to begin, whose place is taken already.
    Connect(Box<ConnectRequest>),
    /// A refused connection whose last word is written.
    Linger(Socket),
    Send(ConnId, Vec<u8>),
    Close(ConnId),
    Pause(ConnId),
    Resume(ConnId),
    SetConfig(Box<Config>),
    /// The number of the question, which the answer bears.
    PublishStats(u64),
    Stop,
}
