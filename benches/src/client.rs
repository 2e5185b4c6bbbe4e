//! Client: many connections on one thread that send requests and check every byte of the replies.

mod connection;
mod content;
mod engine;
mod schedule;
mod session;
mod sources;
mod stream;
mod tally;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;

use self::engine::Engine;
pub use self::session::Session;

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
    /// How long to load before measuring.
    pub warmup: Duration,
    /// A connection that waits for so long without a byte moving has failed.
    pub patience: Duration,
}

impl Load {
    /// One request of 64 bytes at a time on one connection, for a second.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            connections: 1,
            size: 64,
            depth: 1,
            pace: Pace::Closed,
            length: Length::Time(Duration::from_secs(1)),
            churn: false,
            warmup: Duration::ZERO,
            patience: Duration::from_secs(5),
        }
    }

    /// How many requests may be in flight on one connection.
    fn at_once(&self) -> usize {
        if self.churn { 1 } else { self.depth.max(1) }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub requests: u64,
    pub bytes: u64,
    pub elapsed: Duration,
    /// Nanoseconds from a request (or from when it was due) to the last byte of its reply.
    pub latency: Histogram<u64>,
    /// Replies that were not what was sent. Their connections end: what follows makes no sense.
    pub wrong: u64,
    /// The first of them, for people.
    pub first_wrong: Option<String>,
    /// Connections that failed, by kind of error.
    pub errors: Vec<(io::ErrorKind, u64)>,
    /// Requests without a reply, of connections that failed.
    pub missing: u64,
    /// Open loop: requests that were due and still waited to be sent when the time was over. How
    /// long they had waited by then is among the latencies.
    pub unsent: u64,
    /// Open loop: how late the client itself once looked at its schedule. It is part of latencies.
    pub late: Duration,
}

impl Outcome {
    /// If every request had the reply it should have.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.wrong == 0 && self.missing == 0 && self.errors.is_empty()
    }

    /// This, if it [is right](Self::is_right).
    ///
    /// # Errors
    /// What went wrong; of kind `InvalidData` if it was a byte.
    pub fn if_right(self) -> io::Result<Self> {
        if let Some(wrong) = self.first_wrong {
            return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
        }
        if let Some((kind, times)) = self.errors.first() {
            return Err(io::Error::new(*kind, format!("{times} connections failed: {kind}")));
        }
        match self.missing {
            0 => Ok(self),
            missing => Err(io::Error::other(format!("{missing} replies are missing"))),
        }
    }
}

/// A moment of a run.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub elapsed: Duration,
    /// Measured so far.
    pub requests: u64,
    /// Of `1.0`.
    pub done: f64,
    /// That are open.
    pub connections: usize,
}

/// Connects, loads, and checks; `tell` is called about ten times a second.
///
/// Unless it churns, each connection says one request more, before the run, that is not counted.
///
/// # Errors
/// If the first connection cannot be made, or readiness cannot be waited for, or descriptors run
/// out.
pub fn run(load: &Load, tell: &mut dyn FnMut(Progress)) -> io::Result<Outcome> {
    Engine::new(load, tell)?.run()
}
