//! Commands for the loop. The loop executes them at turn boundaries.

use crate::config::Config;
use crate::connect_options::ConnectRequest;
use crate::id::ConnId;
use crate::socket::Socket;

/// A command of a callback or a handle.
pub(crate) enum Command {
    /// Serves a connection. Its permit is taken already.
    Put(Socket),
    /// Starts an outgoing connection. Its permit is taken already.
    Connect(Box<ConnectRequest>),
    /// Lets a refused connection linger. Its reply is written already.
    Linger(Socket),
    Send(ConnId, Vec<u8>),
    Close(ConnId),
    Abort(ConnId),
    Finish(ConnId),
    Pause(ConnId),
    Resume(ConnId),
    SetConfig(Box<Config>),
    /// Publishes the stats as the answer to the request with this number.
    PublishStats(u64),
    Stop,
}
