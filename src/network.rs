//! Network: simulated stream sockets, with the kernel's habits and none of its haste.
//!
//! A connection has two ends, each with a bounded inbox. Readiness is kept as edges, which arise
//! on new bytes, on an end of file, on a reset, when a full peer has room again, and at
//! registration; they are lost once taken. Everything random comes from one seed. This room
//! knows neither the loop nor its backend.

mod faults;
mod stream;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::dice::Dice;
pub use faults::Faults;
pub use stream::Stream;

/// What the network knows of one of the pool's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Look {
    /// Bytes that the peer has sent and the pool has not read.
    pub unread: usize,
    /// When the pool last read or wrote a byte or found no room to, or the connection was
    /// registered.
    pub moved: Duration,
    /// Whether the pool's last write found no more room.
    pub full: bool,
}

/// What a socket has become ready for since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) closed: bool,
}

impl Edge {
    pub(crate) fn any(self) -> bool {
        self.readable || self.writable || self.closed
    }
}

/// One end of a connection.
#[derive(Debug)]
struct End {
    peer: usize,
    inbox: VecDeque<u8>,
    capacity: usize,
    /// The other end will send no more.
    fin: bool,
    reset: bool,
    open: bool,
    /// This end has said that it will send no more.
    shut: bool,
    /// A write of this end found no room.
    starved: bool,
    token: Option<u64>,
    edge: Edge,
    /// When a byte last moved through this end's reads and writes, or found no room, or when it
    /// was registered.
    moved: Duration,
}

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) dice: Dice,
    pub(crate) faults: Faults,
    pub(crate) now: Duration,
    ends: Vec<End>,
    /// Connections that wait to be accepted, per listener, with the listener's token and edge.
    listeners: Vec<Queue>,
    /// Tokens of ends that were deregistered, for stale events.
    retired: Vec<u64>,
    pub(crate) digest: u64,
    pub(crate) violations: Vec<String>,
    pub(crate) woken: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<usize>,
    token: Option<u64>,
    edge: bool,
}

pub(crate) type Shared = Arc<Mutex<Network>>;

pub(crate) fn lock(net: &Shared) -> MutexGuard<'_, Network> {
    net.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        Self {
            dice: Dice::new(seed),
            faults,
            now: Duration::from_secs(1),
            ends: Vec::new(),
            listeners: Vec::new(),
            retired: Vec::new(),
            digest: 0xcbf2_9ce4_8422_2325,
            violations: Vec::new(),
            woken: false,
        }
    }

    /// A connection: two ends of the given capacities.
    pub(crate) fn pair(&mut self, capacities: [usize; 2]) -> [usize; 2] {
        let first = self.ends.len();
        for (end, capacity) in capacities.into_iter().enumerate() {
            self.ends.push(End {
                peer: first + 1 - end,
                inbox: VecDeque::new(),
                capacity,
                fin: false,
                reset: false,
                open: true,
                shut: false,
                starved: false,
                token: None,
                edge: Edge::default(),
                moved: self.now,
            });
        }
        [first, first + 1]
    }

    /// Folds what happened into the digest (FNV-1a over words).
    pub(crate) fn note(&mut self, what: u64) {
        self.digest = (self.digest ^ what).wrapping_mul(0x0000_0100_0000_01b3);
    }

    fn must_be_open(&mut self, end: usize, what: &str) {
        if !self.ends[end].open {
            self.violations.push(format!("{what} on a closed socket (end {end})"));
        }
    }

    pub(crate) fn read(&mut self, end: usize, into: &mut [u8]) -> io::Result<usize> {
        self.must_be_open(end, "read");
        if into.is_empty() {
            self.violations.push(format!("read into nothing (end {end})"));
        }
        if self.dice.permille(self.faults.interrupts) {
            return Err(ErrorKind::Interrupted.into());
        }
        let there = self.ends[end].inbox.len();
        if there == 0 {
            return self.read_nothing(end);
        }
        let mut count = there.min(into.len());
        if self.dice.permille(self.faults.short_reads) {
            count = 1 + self.dice.below(count);
        }
        let me = &mut self.ends[end];
        me.moved = self.now;
        for (to, from) in into.iter_mut().zip(me.inbox.drain(..count)) {
            *to = from;
        }
        let peer = me.peer;
        let peer = &mut self.ends[peer];
        if std::mem::take(&mut peer.starved) {
            peer.edge.writable = true;
        }
        self.note(end as u64 | (count as u64) << 32);
        Ok(count)
    }

    fn read_nothing(&mut self, end: usize) -> io::Result<usize> {
        let me = &mut self.ends[end];
        if std::mem::take(&mut me.reset) {
            me.fin = true;
            return Err(ErrorKind::ConnectionReset.into());
        }
        if me.fin { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    pub(crate) fn write(&mut self, end: usize, bytes: &[u8]) -> io::Result<usize> {
        self.must_be_open(end, "write");
        if self.dice.permille(self.faults.interrupts) {
            return Err(ErrorKind::Interrupted.into());
        }
        let (peer, shut) = (self.ends[end].peer, self.ends[end].shut);
        if shut || self.ends[end].reset || !self.ends[peer].open {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let room = self.ends[peer].capacity - self.ends[peer].inbox.len();
        if room == 0 {
            self.ends[end].starved = true;
            self.ends[end].moved = self.now;
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut count = bytes.len().min(room);
        if count > 0 && self.dice.permille(self.faults.short_writes) {
            count = 1 + self.dice.below(count);
        }
        self.ends[end].starved |= count < bytes.len() && count == room;
        self.ends[end].moved = self.now;
        let peer = &mut self.ends[peer];
        peer.inbox.extend(&bytes[..count]);
        peer.edge.readable |= count > 0;
        self.note(end as u64 | (count as u64) << 32 | 1 << 63);
        Ok(count)
    }

    pub(crate) fn shutdown_write(&mut self, end: usize) -> io::Result<()> {
        self.must_be_open(end, "shutdown");
        if self.ends[end].reset {
            return Err(ErrorKind::NotConnected.into());
        }
        self.ends[end].shut = true;
        let peer = self.ends[end].peer;
        self.finish(peer);
        Ok(())
    }

    fn finish(&mut self, end: usize) {
        let end = &mut self.ends[end];
        if !std::mem::replace(&mut end.fin, true) {
            end.edge.readable = true;
            end.edge.closed = true;
        }
    }

    /// Resets the peer of `end`: what it has not read may be lost.
    pub(crate) fn reset_peer_of(&mut self, end: usize) {
        let lossy = self.dice.permille(self.faults.destructive_resets);
        let peer = self.ends[end].peer;
        let peer = &mut self.ends[peer];
        if peer.open {
            peer.reset = true;
            peer.edge = Edge { readable: true, writable: true, closed: true };
            if lossy {
                peer.inbox.clear();
            }
        }
    }

    /// Closing with unread input resets the peer; without, it is an end of file.
    pub(crate) fn close(&mut self, end: usize) {
        self.must_be_open(end, "close");
        if self.ends[end].token.is_some() {
            self.violations.push(format!("closed while registered (end {end})"));
        }
        let unread = !self.ends[end].inbox.is_empty();
        self.ends[end].open = false;
        if unread {
            self.reset_peer_of(end);
        } else {
            let peer = self.ends[end].peer;
            self.finish(peer);
        }
    }

    /// The tokens of ends that have something to read, or an end to see, and no edge to come
    /// that says so, although they do not wait for room to write.
    pub(crate) fn silent_inputs(&self) -> Vec<u64> {
        let silent = |end: &End| {
            let input = !end.inbox.is_empty() || end.fin || end.reset;
            end.token.filter(|_| input && !end.edge.any() && !end.starved)
        };
        self.ends.iter().filter_map(silent).collect()
    }

    /// What is known of the connection that is registered under `token`.
    pub(crate) fn look(&self, token: u64) -> Option<Look> {
        let end = self.ends.iter().find(|end| end.token == Some(token))?;
        Some(Look { unread: end.inbox.len(), moved: end.moved, full: end.starved })
    }

    pub(crate) fn register(&mut self, end: usize, token: u64) -> io::Result<()> {
        self.must_be_open(end, "register");
        if self.dice.permille(self.faults.failed_registers) {
            return Err(ErrorKind::OutOfMemory.into());
        }
        let peer = &self.ends[self.ends[end].peer];
        let room = !peer.open || peer.inbox.len() < peer.capacity;
        let me = &mut self.ends[end];
        let ended = me.fin || me.reset;
        let readable = ended || !me.inbox.is_empty();
        me.token = Some(token);
        me.moved = self.now;
        me.edge = Edge { readable, writable: room, closed: ended };
        Ok(())
    }

    pub(crate) fn deregister(&mut self, end: usize) {
        self.must_be_open(end, "deregister");
        match self.ends[end].token.take() {
            Some(token) => self.retired.push(token),
            None => self.violations.push(format!("deregistered twice (end {end})")),
        }
    }

    pub(crate) fn listen(&mut self) -> usize {
        self.listeners.push(Queue::default());
        self.listeners.len() - 1
    }

    pub(crate) fn open_listener(&mut self, listener: usize, token: u64) {
        let queue = &mut self.listeners[listener];
        queue.token = Some(token);
        queue.edge = !queue.waiting.is_empty();
    }

    /// Closing a listener resets who still waits.
    pub(crate) fn close_listener(&mut self, listener: usize) {
        self.listeners[listener].token = None;
        while let Some(end) = self.listeners[listener].waiting.pop_front() {
            self.ends[end].open = false;
            self.reset_peer_of(end);
        }
    }

    pub(crate) fn arrive(&mut self, listener: usize, end: usize) {
        self.listeners[listener].waiting.push_back(end);
        self.listeners[listener].edge = true;
    }

    pub(crate) fn waiting(&self, listener: usize) -> usize {
        self.listeners[listener].waiting.len()
    }

    pub(crate) fn accept(&mut self, listener: usize) -> io::Result<usize> {
        if self.listeners[listener].waiting.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.dice.permille(self.faults.starved_accepts) {
            return Err(io::Error::other("too many open files"));
        }
        let end = self.listeners[listener].waiting.pop_front();
        let end = end.ok_or(ErrorKind::WouldBlock)?;
        if self.dice.permille(self.faults.aborted_accepts) {
            self.ends[end].open = false;
            self.reset_peer_of(end);
            return Err(ErrorKind::ConnectionAborted.into());
        }
        Ok(end)
    }

    /// Takes the edges that have arisen, in random order and perhaps not all of them.
    pub(crate) fn take_edges(&mut self) -> Vec<(u64, Edge)> {
        let mut found = Vec::new();
        for index in 0..self.listeners.len() {
            let queue = &self.listeners[index];
            if let (Some(token), true) = (queue.token, queue.edge) {
                found.push((token, Source::Listener(index)));
            }
        }
        for index in 0..self.ends.len() {
            let end = &self.ends[index];
            if let (Some(token), true) = (end.token, end.edge.any()) {
                found.push((token, Source::End(index)));
            }
        }
        self.dice.shuffle(&mut found);
        if !found.is_empty() && self.dice.permille(self.faults.truncated_waits) {
            let kept = 1 + self.dice.below(found.len());
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
            Source::End(index) => std::mem::take(&mut self.ends[index].edge),
        }
    }

    pub(crate) fn any_edge(&self) -> bool {
        self.listeners.iter().any(|queue| queue.token.is_some() && queue.edge)
            || self.ends.iter().any(|end| end.token.is_some() && end.edge.any())
    }

    /// A token that some live or dead socket has or had.
    pub(crate) fn any_token(&mut self, dead: bool) -> Option<u64> {
        let tokens: Vec<u64> = if dead {
            self.retired.clone()
        } else {
            self.ends.iter().filter_map(|end| end.token).collect()
        };
        (!tokens.is_empty()).then(|| tokens[self.dice.below(tokens.len())])
    }
}

#[derive(Clone, Copy)]
enum Source {
    Listener(usize),
    End(usize),
}
