//! Outgoing connections of the pool, and the hosts that answer them.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use super::Network;
use super::readiness::Edge;

/// Capacity in bytes of each inbox of an outgoing connection.
const CAPACITY: usize = 64 << 10;

/// The errors of an attempt that fails at once: no route, no descriptor, no free port, or a packet
/// filter.
const CONNECT_ERRORS: [ErrorKind; 4] = [
    ErrorKind::NetworkUnreachable,
    ErrorKind::Other,
    ErrorKind::AddrNotAvailable,
    ErrorKind::PermissionDenied,
];

/// The answer of a simulated [`Host`](crate::sim::Host) to a connect attempt.
///
/// ```
/// use pool_manager::sim::Answer;
/// assert_eq!(Answer::default(), Answer::Refuse(std::time::Duration::ZERO));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// Accepts after this time.
    Accept(Duration),
    /// Refuses after this time.
    Refuse(Duration),
    /// Fails with `HostUnreachable` after this time.
    Fail(Duration),
    /// Never answers.
    Never,
}

impl Default for Answer {
    /// Refuses at once, as an address without a listener does.
    fn default() -> Self {
        Self::Refuse(Duration::ZERO)
    }
}

/// A connect attempt that will be answered.
#[derive(Debug)]
pub(super) struct ConnectAttempt {
    end: usize,
    addr: SocketAddr,
    due: Duration,
    /// The error of an attempt that will fail. `None` if the attempt will succeed.
    failure: Option<ErrorKind>,
}

/// The state of a host that the pool may connect to.
#[derive(Debug, Default)]
pub(super) struct HostState {
    answer: Answer,
    /// The peer's ends of established connections that were not accepted yet.
    arrived: VecDeque<usize>,
    /// The number of connect attempts.
    count: u64,
}

impl Network {
    pub(crate) fn set_answer(&mut self, addr: SocketAddr, answer: Answer) {
        self.hosts.entry(addr).or_default().answer = answer;
    }

    /// Returns the peer's end of the next established connection to `addr`.
    pub(crate) fn arrived(&mut self, addr: SocketAddr) -> Option<usize> {
        self.hosts.get_mut(&addr)?.arrived.pop_front()
    }

    /// Returns the number of connect attempts to `addr`, successful or not.
    pub(crate) fn connect_attempts(&self, addr: SocketAddr) -> u64 {
        self.hosts.get(&addr).map_or(0, |host| host.count)
    }

    /// Starts a connect attempt.
    pub(crate) fn connect(&mut self, addr: SocketAddr) -> io::Result<usize> {
        self.count_call();
        let host = self.hosts.entry(addr).or_default();
        host.count += 1;
        let answer = host.answer;
        let limit = self.faults.descriptors;
        if limit > 0 && self.counters.open >= limit {
            return Err(io::Error::other("too many open files"));
        }
        if self.rng.permille(self.faults.failed_connects) {
            return Err(CONNECT_ERRORS[self.rng.below(CONNECT_ERRORS.len())].into());
        }
        let [_, end] = self.pair([CAPACITY; 2]);
        self.ends[end].connecting = true;
        let (after, failure) = match answer {
            Answer::Accept(after) => (after, None),
            Answer::Refuse(after) => (after, Some(ErrorKind::ConnectionRefused)),
            Answer::Fail(after) => (after, Some(ErrorKind::HostUnreachable)),
            Answer::Never => return Ok(end),
        };
        self.attempts.push(ConnectAttempt { end, addr, due: self.now + after, failure });
        Ok(end)
    }

    /// Returns whether a connection is established. If the attempt has failed, the first call
    /// returns the error, and later calls return false.
    pub(crate) fn is_connected(&mut self, end: usize) -> io::Result<bool> {
        self.count_call();
        self.answer_attempts();
        let end = &mut self.ends[end];
        match end.failure.take() {
            Some(kind) => Err(kind.into()),
            None => Ok(!end.connecting),
        }
    }

    /// Returns the time at which the next attempt is answered, or `Duration::MAX` if no attempt
    /// will be answered.
    pub(crate) fn next_answer(&self) -> Duration {
        self.attempts.iter().map(|attempt| attempt.due).min().unwrap_or(Duration::MAX)
    }

    /// Answers the attempts whose time has passed.
    pub(crate) fn answer_attempts(&mut self) {
        let now = self.now;
        let attempts = std::mem::take(&mut self.attempts);
        let (due, later) =
            attempts.into_iter().partition::<Vec<_>, _>(|attempt| attempt.due <= now);
        self.attempts = later;
        for ConnectAttempt { end, addr, failure, .. } in due {
            let peer = self.ends[end].peer;
            let me = &mut self.ends[end];
            me.failure = failure;
            if failure.is_some() {
                me.edge = Edge::ALL;
                continue;
            }
            me.connecting = false;
            me.edge.writable = true;
            self.hosts.entry(addr).or_default().arrived.push_back(peer);
        }
    }

    /// Removes the connect attempt of an end that closes before the connection is established. The
    /// peer's end closes too.
    pub(super) fn cancel_attempt(&mut self, end: usize) {
        if self.ends[end].connecting {
            self.attempts.retain(|attempt| attempt.end != end);
            let peer = self.ends[end].peer;
            self.ends[peer].open = false;
        }
    }

    /// Records a violation if the connection is not established yet.
    pub(super) fn check_connected(&mut self, end: usize) {
        if self.ends[end].connecting {
            self.violations.push(format!("used before it is established (end {end})"));
        }
    }
}
