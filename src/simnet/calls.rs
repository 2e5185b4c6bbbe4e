//! Calls: connections that the pool begins, and how those that it calls answer.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use super::Network;
use super::readiness::Edge;

/// What each end of such a connection holds.
const CAPACITY: usize = 64 << 10;

/// How a call fails at once: no route, no descriptor, no free port, a filter.
const UNCALLED: [ErrorKind; 4] = [
    ErrorKind::NetworkUnreachable,
    ErrorKind::Other,
    ErrorKind::AddrNotAvailable,
    ErrorKind::PermissionDenied,
];

/// How a simulated [`Host`](crate::sim::Host) answers who connects to it.
///
/// ```
/// use pool_manager::sim::Answer;
/// assert_eq!(Answer::default(), Answer::Refuse(std::time::Duration::ZERO));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It accepts after this time.
    Accept(Duration),
    /// It refuses after this time.
    Refuse(Duration),
    /// It cannot be reached, which turns out after this time.
    Fail(Duration),
    /// It never answers.
    Never,
}

impl Default for Answer {
    /// As where nobody listens.
    fn default() -> Self {
        Self::Refuse(Duration::ZERO)
    }
}

/// A call that will be answered.
#[derive(Debug)]
pub(super) struct Call {
    end: usize,
    addr: SocketAddr,
    due: Duration,
    /// Why it will fail, if it will.
    failure: Option<ErrorKind>,
}

/// Who can be called.
#[derive(Debug, Default)]
pub(super) struct Called {
    answer: Answer,
    /// The peer's ends of connections that have come about.
    arrived: VecDeque<usize>,
    /// How often it was called.
    count: u64,
}

impl Network {
    pub(crate) fn set_answer(&mut self, addr: SocketAddr, answer: Answer) {
        self.hosts.entry(addr).or_default().answer = answer;
    }

    /// The peer's end of a connection to `addr` that has come about.
    pub(crate) fn arrived(&mut self, addr: SocketAddr) -> Option<usize> {
        self.hosts.get_mut(&addr)?.arrived.pop_front()
    }

    /// How often `addr` was called, in vain or not.
    pub(crate) fn connect_attempts(&self, addr: SocketAddr) -> u64 {
        self.hosts.get(&addr).map_or(0, |host| host.count)
    }

    /// Begins a connection.
    pub(crate) fn call(&mut self, addr: SocketAddr) -> io::Result<usize> {
        self.count_call();
        let host = self.hosts.entry(addr).or_default();
        host.count += 1;
        let answer = host.answer;
        let limit = self.faults.descriptors;
        if limit > 0 && self.counters.open >= limit {
            return Err(io::Error::other("too many open files"));
        }
        if self.rng.permille(self.faults.failed_connects) {
            return Err(UNCALLED[self.rng.below(UNCALLED.len())].into());
        }
        let [_, end] = self.pair([CAPACITY; 2]);
        self.ends[end].calling = true;
        let (after, failure) = match answer {
            Answer::Accept(after) => (after, None),
            Answer::Refuse(after) => (after, Some(ErrorKind::ConnectionRefused)),
            Answer::Fail(after) => (after, Some(ErrorKind::HostUnreachable)),
            Answer::Never => return Ok(end),
        };
        self.calls_out.push(Call { end, addr, due: self.now + after, failure });
        Ok(end)
    }

    /// Whether a connection that was begun has come about; a failure is told once.
    pub(crate) fn is_connected(&mut self, end: usize) -> io::Result<bool> {
        self.count_call();
        self.answer_calls();
        let end = &mut self.ends[end];
        match end.failure.take() {
            Some(kind) => Err(kind.into()),
            None => Ok(!end.calling),
        }
    }

    /// When the next call will be answered.
    pub(crate) fn next_answer(&self) -> Duration {
        self.calls_out.iter().map(|call| call.due).min().unwrap_or(Duration::MAX)
    }

    /// Answers the calls whose time has come.
    pub(crate) fn answer_calls(&mut self) {
        let now = self.now;
        let calls = std::mem::take(&mut self.calls_out);
        let (due, later) = calls.into_iter().partition::<Vec<_>, _>(|call| call.due <= now);
        self.calls_out = later;
        for Call { end, addr, failure, .. } in due {
            let peer = self.ends[end].peer;
            let me = &mut self.ends[end];
            me.failure = failure;
            if failure.is_some() {
                me.edge = Edge::ALL;
                continue;
            }
            me.calling = false;
            me.edge.writable = true;
            self.hosts.entry(addr).or_default().arrived.push_back(peer);
        }
    }

    /// A call is over before there is a peer.
    pub(super) fn hang_up(&mut self, end: usize) {
        if self.ends[end].calling {
            self.calls_out.retain(|call| call.end != end);
            let peer = self.ends[end].peer;
            self.ends[peer].open = false;
        }
    }

    /// Nothing may be done with a connection that has not come about.
    pub(super) fn check_called(&mut self, end: usize) {
        if self.ends[end].calling {
            self.violations.push(format!("used before it is there (end {end})"));
        }
    }
}
