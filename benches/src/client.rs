//! The load client: many connections on one thread send requests and check every byte of the
//! replies.

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

/// The address of the server.
#[derive(Clone, Debug)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The rule that determines when requests are sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Closed loop: each connection sends its next batch when its previous batch is answered.
    Closed,
    /// Open loop: all connections together send this many requests per second. They keep this rate
    /// even if the server is too slow for it. Latency is measured from the time at which a request
    /// was due, so it includes the time for which the request waited to be sent.
    Open(f64),
}

/// The length of a run.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// The measured time.
    Time(Duration),
    /// The number of measured requests of all connections together.
    Requests(u64),
}

/// The load to put on an echo server.
#[derive(Clone, Debug)]
pub struct Load {
    pub target: Target,
    pub connections: usize,
    /// Bytes per request, including its newline.
    pub size: usize,
    /// Maximum requests in flight per connection. A closed loop sends them as one batch.
    pub depth: usize,
    pub pace: Pace,
    pub length: Length,
    /// Opens a connection for each request. Each connection serves one echo and is then closed.
    pub churn: bool,
    /// Time under load before the measurement starts.
    pub warmup: Duration,
    /// A connection that waits this long without sending or receiving a byte has failed.
    pub timeout: Duration,
}

impl Load {
    /// Returns a load of one connection that sends one 64-byte request at a time, for one second.
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
            timeout: Duration::from_secs(5),
        }
    }

    /// Returns the maximum number of requests in flight per connection.
    fn max_in_flight(&self) -> usize {
        if self.churn { 1 } else { self.depth.max(1) }
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    pub requests: u64,
    pub bytes: u64,
    pub elapsed: Duration,
    /// Latency in nanoseconds, up to the last byte of the reply. It is measured from the time at
    /// which the request was sent, or in an open loop from the time at which it was due.
    pub latency: Histogram<u64>,
    /// Replies that differ from their requests. The client closes a connection with a wrong reply,
    /// because it cannot match later bytes to requests.
    pub wrong: u64,
    /// A description of the first wrong reply.
    pub first_wrong: Option<String>,
    /// The number of failed connections for each kind of error.
    pub errors: Vec<(io::ErrorKind, u64)>,
    /// Requests without a reply on failed connections.
    pub missing: u64,
    /// Open loop: requests that were due but not sent when the run ended. `latency` includes the
    /// time for which each of these requests waited until the end of the run.
    pub unsent: u64,
    /// Open loop: the maximum delay of the client behind its own schedule. `latency` includes this
    /// delay.
    pub late: Duration,
}

impl Outcome {
    /// Returns true if no reply was wrong or missing and no connection failed.
    #[must_use]
    pub fn is_correct(&self) -> bool {
        self.wrong == 0 && self.missing == 0 && self.errors.is_empty()
    }

    /// Returns the outcome if it [is correct](Self::is_correct).
    ///
    /// # Errors
    /// Returns the first failure. Its kind is `InvalidData` if a reply was wrong.
    pub fn into_result(self) -> io::Result<Self> {
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

/// The state of a run at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub elapsed: Duration,
    /// Requests measured so far.
    pub requests: u64,
    /// The completed part of the run, from 0.0 to 1.0.
    pub done: f64,
    /// Open connections.
    pub connections: usize,
}

/// Connects, sends the load and checks the replies. Calls `on_progress` about ten times per second.
///
/// Unless `churn` is set, each connection sends one additional request before the run. This request
/// is not counted.
///
/// # Errors
/// Returns an error if a connection fails before any reply was received, if waiting for readiness
/// fails, or if the process runs out of file descriptors.
pub fn run(load: &Load, on_progress: &mut dyn FnMut(Progress)) -> io::Result<Outcome> {
    Engine::new(load, on_progress)?.run()
}
