//! Client: many connections on one thread that send requests and check every byte of the replies.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Where to connect to.
#[derive(Clone, Debug)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Closed loop: each connection sends its next batch when the last one is answered.
    Closed,
    /// Open loop: this many requests a second in all, on schedule whether or not the server keeps
    /// up. Latency counts from when a request was due, so waiting is not left out.
    Open(f64),
}

/// When a run is over.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Time(Duration),
    /// Requests in all.
    Requests(u64),
}

/// What to do to a server that echoes.
#[derive(Clone, Debug)]
pub struct Load {
    pub target: Target,
    pub connections: usize,
    /// Bytes of one request, of its newline too.
    pub size: usize,
    /// Requests sent at once on one connection.
    pub depth: usize,
    pub pace: Pace,
    pub length: Length,
    /// Connect, one echo, close, again.
    pub churn: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub requests: u64,
    pub bytes: u64,
    pub elapsed: Duration,
    /// Nanoseconds from a request (or from when it was due) to the last byte of its reply.
    pub latency: Histogram<u64>,
    /// Replies that were not what was sent.
    pub wrong: u64,
    /// Connections that failed, by kind of error.
    pub errors: Vec<(io::ErrorKind, u64)>,
}

/// A moment of a run.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub elapsed: Duration,
    pub requests: u64,
    /// Of `1.0`.
    pub done: f64,
}

/// Connects, loads, and checks; `tell` is called about ten times a second.
///
/// # Errors
/// If the first connection cannot be made, or readiness cannot be waited for.
pub fn run(load: &Load, tell: &mut dyn FnMut(Progress)) -> io::Result<Outcome> {
    let _ = (load, tell);
    Err(io::ErrorKind::Unsupported.into())
}
