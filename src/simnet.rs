//! Network: simulated stream sockets, with the kernel's habits and none of its haste.
//!
//! A connection has two ends, each with a bounded inbox. Readiness is kept as edges, which arise
//! on new bytes, on an end of file, on a reset, when a full peer has room again, and at
//! registration; they are lost once taken. Everything random comes from one seed. This room
//! knows neither the loop nor its backend.

mod calls;
mod counters;
mod faults;
mod queue;
mod readiness;
pub(crate) mod rng;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;

pub use calls::Answer;
use calls::{Call, Called};
pub use counters::{ConnSnapshot, Counters};
pub use faults::Faults;
use queue::Queue;
pub(crate) use readiness::Edge;
use rng::Rng;
pub use stream::Stream;

/// Reads, writes and waits without time passing, far above what any loop may do: one that comes here
/// goes in circles.
const ENDLESS: u32 = 1_000_000;

/// What goes wrong with a read or a write, once the connection itself is broken.
const BROKEN: [ErrorKind; 6] = [
    ErrorKind::ConnectionReset,
    ErrorKind::TimedOut,
    ErrorKind::HostUnreachable,
    ErrorKind::NetworkDown,
    ErrorKind::OutOfMemory,
    ErrorKind::Other,
];

/// One end of a connection.
#[derive(Debug)]
struct End {
    peer: usize,
    /// Which connection it is an end of, counted from 0.
    connection: usize,
    /// Whether it is the pool's end, which takes a descriptor of the pool's.
    ours: bool,
    inbox: VecDeque<u8>,
    capacity: usize,
    /// The other end will send no more.
    fin: bool,
    /// A reset that no read has reported yet.
    reset: bool,
    /// Nothing written gets through any more.
    broken: bool,
    open: bool,
    /// This end has said that it will send no more.
    shut: bool,
    /// A write of this end found no room.
    starved: bool,
    /// It was begun by the pool and has not come about; and why it never will, until that is told.
    calling: bool,
    failure: Option<ErrorKind>,
    token: Option<u64>,
    edge: Edge,
    received: u64,
    sent: u64,
    /// When a byte last moved through this end's reads and writes, or found no room, or when it
    /// was registered.
    moved: Duration,
}

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) now: Duration,
    ends: Slab<End>,
    /// Registered ends by token.
    registered: HashMap<u64, usize>,
    listeners: Vec<Queue>,
    hosts: HashMap<SocketAddr, Called>,
    /// Connections that the pool has begun and that will be answered.
    calls_out: Vec<Call>,
    retired: VecDeque<(u64, ConnSnapshot)>,
    connections: usize,
    /// Reads, writes and waits since time last passed.
    calls: u32,
    counted_at: Duration,
    pub(crate) counters: Counters,
    pub(crate) digest: u64,
    pub(crate) violations: Vec<String>,
    pub(crate) woken: bool,
}

pub(crate) type Shared = Arc<Mutex<Network>>;

pub(crate) fn lock(net: &Shared) -> MutexGuard<'_, Network> {
    net.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        Self {
            rng: Rng::new(seed),
            faults,
            now: Duration::from_secs(1),
            ends: Slab::new(),
            registered: HashMap::new(),
            listeners: Vec::new(),
            hosts: HashMap::new(),
            calls_out: Vec::new(),
            retired: VecDeque::new(),
            connections: 0,
            calls: 0,
            counted_at: Duration::ZERO,
            counters: Counters::default(),
            digest: 0xcbf2_9ce4_8422_2325,
            violations: Vec::new(),
            woken: false,
        }
    }

    /// A connection: the peer's end and the pool's, of the given capacities.
    pub(crate) fn pair(&mut self, capacities: [usize; 2]) -> [usize; 2] {
        let connection = self.connections;
        self.connections += 1;
        let ends = capacities.map(|capacity| {
            self.ends.insert(End {
                peer: 0,
                connection,
                ours: false,
                inbox: VecDeque::new(),
                capacity,
                fin: false,
                reset: false,
                broken: false,
                open: true,
                shut: false,
                starved: false,
                calling: false,
                failure: None,
                token: None,
                edge: Edge::default(),
                received: 0,
                sent: 0,
                moved: self.now,
            })
        });
        self.ends[ends[0]].peer = ends[1];
        self.ends[ends[1]].peer = ends[0];
        self.ends[ends[1]].ours = true;
        self.counters.open += 1;
        ends
    }

    pub(crate) fn connection(&self, end: usize) -> usize {
        self.ends[end].connection
    }

    /// Folds what happened into the digest (FNV-1a over words).
    pub(crate) fn note(&mut self, what: u64) {
        self.digest = (self.digest ^ what).wrapping_mul(0x0000_0100_0000_01b3);
    }

    /// One more call while time stands still.
    pub(crate) fn count_call(&mut self) {
        if self.now > self.counted_at {
            (self.counted_at, self.calls) = (self.now, 0);
        }
        self.calls += 1;
        assert!(self.calls < ENDLESS, "a loop that goes in circles");
    }

    /// What can go wrong in any call: a signal, or the connection breaks.
    fn fail(&mut self, end: usize, broken: u16) -> io::Result<()> {
        if !self.ends[end].ours {
            return Ok(());
        }
        self.count_call();
        if self.rng.permille(self.faults.interrupts) {
            return Err(ErrorKind::Interrupted.into());
        }
        if self.rng.permille(broken) {
            self.ends[end].broken = true;
            self.reset_peer_of(end);
            self.counters.broken += 1;
            return Err(BROKEN[self.rng.below(BROKEN.len())].into());
        }
        Ok(())
    }

    /// A part of `count`, of any order of magnitude.
    fn short(&mut self, count: usize) -> usize {
        let max = 1 << self.rng.below(12);
        1 + self.rng.below(count.min(max))
    }

    pub(crate) fn read(&mut self, end: usize, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            self.violations.push(format!("read into nothing (end {end})"));
        }
        self.check_called(end);
        self.fail(end, self.faults.failed_reads)?;
        let there = self.ends[end].inbox.len();
        if there == 0 {
            return self.read_nothing(end);
        }
        let mut count = there.min(into.len());
        if self.rng.permille(self.faults.short_reads) {
            count = self.short(count);
            self.counters.short_reads += 1;
        }
        let me = &mut self.ends[end];
        me.moved = self.now;
        me.received += count as u64;
        for (to, from) in into.iter_mut().zip(me.inbox.drain(..count)) {
            *to = from;
        }
        let peer = me.peer;
        if let Some(peer) = self.ends.get_mut(peer) {
            peer.edge.writable |= std::mem::take(&mut peer.starved);
        }
        self.note(end as u64 | (count as u64) << 32);
        Ok(count)
    }

    fn read_nothing(&mut self, end: usize) -> io::Result<usize> {
        let me = &mut self.ends[end];
        if std::mem::take(&mut me.reset) {
            me.broken = true;
            // After an end of file it is for writes to tell.
            if !std::mem::replace(&mut me.fin, true) {
                return Err(ErrorKind::ConnectionReset.into());
            }
        }
        if me.fin { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    pub(crate) fn write(&mut self, end: usize, bytes: &[u8]) -> io::Result<usize> {
        self.check_called(end);
        self.fail(end, self.faults.failed_writes)?;
        let me = &mut self.ends[end];
        if std::mem::take(&mut me.reset) {
            // Who is told of a reset first is told alone.
            (me.fin, me.broken) = (true, true);
            return Err(ErrorKind::ConnectionReset.into());
        }
        if me.shut || me.broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let peer = me.peer;
        let peer = &self.ends[peer];
        let (gone, room) = (!peer.open, peer.capacity - peer.inbox.len());
        let me = &mut self.ends[end];
        if gone {
            // The first write to who has gone succeeds, and is answered with a reset.
            (me.broken, me.edge) = (true, Edge::ALL);
            me.sent += bytes.len() as u64;
            me.moved = self.now;
            return Ok(bytes.len());
        }
        if room == 0 {
            if !std::mem::replace(&mut me.starved, true) {
                me.moved = self.now;
            }
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut count = bytes.len().min(room);
        if count > 0 && self.rng.permille(self.faults.short_writes) {
            count = self.short(count);
        }
        let me = &mut self.ends[end];
        self.counters.short_writes += u64::from(count < bytes.len() && me.ours);
        me.starved |= count < bytes.len() && count == room;
        me.sent += count as u64;
        me.moved = self.now;
        let peer = me.peer;
        let peer = &mut self.ends[peer];
        peer.inbox.extend(&bytes[..count]);
        peer.edge.readable |= count > 0;
        self.note(end as u64 | (count as u64) << 32 | 1 << 63);
        Ok(count)
    }

    pub(crate) fn shutdown_write(&mut self, end: usize) -> io::Result<()> {
        self.check_called(end);
        if self.ends[end].reset || self.ends[end].broken {
            return Err(ErrorKind::NotConnected.into());
        }
        self.ends[end].shut = true;
        let peer = self.ends[end].peer;
        self.finish(peer);
        Ok(())
    }

    fn finish(&mut self, end: usize) {
        let end = &mut self.ends[end];
        if !end.reset && !std::mem::replace(&mut end.fin, true) {
            end.edge.readable = true;
            end.edge.closed = true;
        }
    }

    /// Resets the peer of `end`: what it has not read may be lost.
    pub(crate) fn reset_peer_of(&mut self, end: usize) {
        let lossy = self.rng.permille(self.faults.destructive_resets);
        let peer = self.ends[end].peer;
        let peer = &mut self.ends[peer];
        if peer.open {
            peer.reset = true;
            peer.edge = Edge::ALL;
            if lossy && !peer.fin {
                peer.inbox.clear();
            }
        }
    }

    /// Closing with unread input resets the peer; without, it is an end of file.
    pub(crate) fn close(&mut self, end: usize) {
        if self.ends[end].token.is_some() {
            self.violations.push(format!("closed while registered (end {end})"));
            self.deregister(end);
        }
        self.hang_up(end);
        let unread = !self.ends[end].inbox.is_empty();
        self.ends[end].open = false;
        self.counters.open -= usize::from(self.ends[end].ours);
        let peer = self.ends[end].peer;
        if unread {
            self.reset_peer_of(end);
        } else {
            self.finish(peer);
        }
        if !self.ends[peer].open {
            self.ends.remove(end);
            self.ends.remove(peer);
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters { registered: self.registered.len(), ..self.counters }
    }
}
