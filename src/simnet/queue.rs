//! Simulated listeners, and the connections that wait to be accepted.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::IpAddr;

use super::Network;
use super::readiness::Source;

/// The errors of `accept(2)` that concern one connection.
const ABORTED: [ErrorKind; 6] = [
    ErrorKind::ConnectionAborted,
    ErrorKind::ConnectionReset,
    ErrorKind::PermissionDenied,
    ErrorKind::NetworkDown,
    ErrorKind::HostUnreachable,
    ErrorKind::TimedOut,
];

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// For each waiting connection, the pool's end and the address of the peer. The address is
    /// `None` if the peer did not give one.
    waiting: VecDeque<(usize, Option<IpAddr>)>,
    /// True if the listener is open. A listener that a backend has released is still open, but its
    /// `token` is `None`.
    open: bool,
    token: Option<u64>,
    pub(super) edge: bool,
}

impl Network {
    pub(crate) fn listen(&mut self) -> usize {
        self.listeners.push(Queue::default());
        self.listeners.len() - 1
    }

    pub(crate) fn open_listener(&mut self, listener: usize, token: u64) {
        let queue = &mut self.listeners[listener];
        queue.open = true;
        queue.token = Some(token);
        queue.edge = !queue.waiting.is_empty();
    }

    /// Stops reporting readiness. The listener stays open.
    pub(crate) fn release_listener(&mut self, listener: usize) {
        self.listeners[listener].token = None;
    }

    /// Closes a listener. The waiting connections are reset.
    pub(crate) fn close_listener(&mut self, listener: usize) {
        self.listeners[listener].token = None;
        self.listeners[listener].open = false;
        while let Some((end, _)) = self.listeners[listener].waiting.pop_front() {
            self.counters.turned_away += 1;
            self.refuse(end);
        }
    }

    /// Returns the number of waiting connections.
    pub(crate) fn waiting(&self, listener: usize) -> usize {
        self.listeners[listener].waiting.len()
    }

    /// Returns whether the listener has an edge that was not taken yet.
    pub(crate) fn is_pending(&self, listener: usize) -> bool {
        self.listeners[listener].edge
    }

    /// Adds a waiting connection. If the listener is not open, the connection is reset at once.
    pub(crate) fn arrive(&mut self, listener: usize, end: usize, from: Option<IpAddr>) {
        self.ends[end].ours = false;
        self.counters.open -= 1;
        let queue = &mut self.listeners[listener];
        if !queue.open {
            return self.refuse(end);
        }
        queue.waiting.push_back((end, from));
        queue.edge = true;
    }

    fn refuse(&mut self, end: usize) {
        self.reset_peer_of(end);
        self.close(end);
    }

    pub(crate) fn accept(&mut self, listener: usize) -> io::Result<(usize, Option<IpAddr>)> {
        if self.listeners[listener].waiting.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.rng.permille(self.faults.interrupts) {
            return Err(ErrorKind::Interrupted.into());
        }
        let limit = self.faults.descriptors;
        let exhausted = limit > 0 && self.counters().open >= limit;
        if exhausted || self.rng.permille(self.faults.starved_accepts) {
            self.counters.starved_accepts += 1;
            return Err(io::Error::other("too many open files"));
        }
        let end = self.listeners[listener].waiting.pop_front();
        let (end, from) = end.ok_or(ErrorKind::WouldBlock)?;
        if self.rng.permille(self.faults.aborted_accepts) {
            self.refuse(end);
            return Err(ABORTED[self.rng.below(ABORTED.len())].into());
        }
        self.ends[end].ours = true;
        self.counters.open += 1;
        self.counters.accepted += 1;
        Ok((end, from))
    }

    pub(super) fn ready_listeners(&self) -> Vec<(u64, Source)> {
        let ready = self.listeners.iter().enumerate().filter(|(_, queue)| queue.edge);
        ready.filter_map(|(index, queue)| Some((queue.token?, Source::Listener(index)))).collect()
    }
}
