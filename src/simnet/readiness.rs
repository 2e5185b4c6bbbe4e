//! Registration, and the readiness edges of sockets and listeners.

use std::io::{self, ErrorKind};

use super::{ConnSnapshot, Network};

/// Maximum number of deregistered ends that are remembered. Stale events and snapshots of ended
/// connections use them.
const RETIRED: usize = 512;

/// The errors of registering a socket: no memory, no space for another watch, a socket that cannot
/// be polled, or a socket that is already registered.
const UNREGISTERED: [ErrorKind; 4] = [
    ErrorKind::OutOfMemory,
    ErrorKind::StorageFull,
    ErrorKind::PermissionDenied,
    ErrorKind::AlreadyExists,
];

/// The readiness that a socket has gained since its edge was last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) closed: bool,
    pub(crate) hung_up: bool,
}

impl Edge {
    pub(crate) const ALL: Self =
        Self { readable: true, writable: true, closed: true, hung_up: true };

    pub(crate) fn any(self) -> bool {
        self.readable || self.writable || self.closed || self.hung_up
    }
}

/// The source of an edge.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Listener(usize),
    End(usize),
}

impl Network {
    /// Returns the state of the connection that is registered under `token`. If the connection was
    /// deregistered, returns its last state. Returns `None` if `token` is unknown or was forgotten.
    pub(crate) fn snapshot(&self, token: u64) -> Option<ConnSnapshot> {
        let Some(&end) = self.registered.get(&token) else {
            let retired = self.retired.iter().rev().find(|retired| retired.0 == token);
            return retired.map(|retired| retired.1);
        };
        let end = &self.ends[end];
        let peer = &self.ends[end.peer];
        Some(ConnSnapshot {
            connection: end.connection,
            connecting: end.connecting,
            unread: end.inbox.len(),
            ended: end.fin || end.reset,
            finished: end.shut || end.reset,
            received: end.received,
            sent: end.sent,
            room: if peer.open { peer.capacity - peer.inbox.len() } else { usize::MAX },
            full: end.starved,
            pending: end.edge.any(),
            broken: end.reset || end.broken,
            moved: end.moved,
        })
    }

    pub(crate) fn register(&mut self, end: usize, token: u64) -> io::Result<()> {
        if self.rng.permille(self.faults.failed_registers) {
            return Err(UNREGISTERED[self.rng.below(UNREGISTERED.len())].into());
        }
        if self.registered.insert(token, end).is_some() {
            self.violations.push(format!("two sockets registered as {token:#x}"));
        }
        let peer = &self.ends[self.ends[end].peer];
        let room = !peer.open || peer.inbox.len() < peer.capacity;
        let me = &mut self.ends[end];
        let ended = me.fin || me.reset;
        let readable = ended || !me.inbox.is_empty();
        me.token = Some(token);
        me.moved = self.now;
        me.edge = if me.connecting {
            Edge::default()
        } else {
            Edge { readable, writable: room, closed: ended, hung_up: me.reset }
        };
        Ok(())
    }

    pub(crate) fn deregister(&mut self, end: usize) {
        let token = self.ends[end].token;
        let Some((token, look)) = token.and_then(|token| Some((token, self.snapshot(token)?)))
        else {
            return self.violations.push(format!("deregistered twice (end {end})"));
        };
        self.ends[end].token = None;
        self.registered.remove(&token);
        if self.retired.len() == RETIRED {
            self.retired.pop_front();
        }
        self.retired.push_back((token, look));
    }

    /// Takes the edges and returns them in random order. A fault may leave some of them for the
    /// next call.
    pub(crate) fn take_edges(&mut self) -> Vec<(u64, Edge)> {
        self.count_call();
        let mut found = self.ready_listeners();
        let ends = self.ends.iter().filter(|(_, end)| end.edge.any());
        found.extend(ends.filter_map(|(key, end)| Some((end.token?, Source::End(key)))));
        self.rng.shuffle(&mut found);
        if !found.is_empty() && self.rng.permille(self.faults.truncated_waits) {
            let kept = 1 + self.rng.below(found.len());
            self.counters.truncated_waits += u64::from(kept < found.len());
            found.truncate(kept);
        }
        found.into_iter().map(|(token, source)| (token, self.take_edge(source))).collect()
    }

    fn take_edge(&mut self, source: Source) -> Edge {
        match source {
            Source::Listener(index) => {
                self.listeners[index].edge = false;
                Edge { readable: true, ..Edge::default() }
            }
            Source::End(key) => std::mem::take(&mut self.ends[key].edge),
        }
    }

    pub(crate) fn any_edge(&self) -> bool {
        !self.ready_listeners().is_empty()
            || self.ends.iter().any(|(_, end)| end.token.is_some() && end.edge.any())
    }

    /// Returns the token of a random socket. If `dead` is true, the socket is a deregistered one.
    /// If not, the socket is registered.
    pub(crate) fn any_token(&mut self, dead: bool) -> Option<u64> {
        if dead {
            let index = self.rng.below(self.retired.len());
            return self.retired.get(index).map(|retired| retired.0);
        }
        let tokens: Vec<u64> = self.ends.iter().filter_map(|(_, end)| end.token).collect();
        let index = self.rng.below(tokens.len());
        tokens.get(index).copied()
    }
}
