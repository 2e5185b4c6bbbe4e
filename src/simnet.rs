//! The simulated network: stream sockets that behave like kernel sockets, in virtual time.
//!
//! A connection has two ends. Each end has a bounded inbox for bytes that it has not read yet.
//! Readiness is stored as edges. An end gets an edge when bytes, an end of file or a reset arrive.
//! An end also gets an edge when it is registered, and when the full inbox of its peer has space
//! again. A wait clears each edge that it reports. All random decisions come from one seed.

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
use calls::{ConnectAttempt, HostState};
pub use counters::{ConnSnapshot, Counters};
pub use faults::Faults;
use queue::Queue;
pub(crate) use readiness::Edge;
use rng::Rng;
pub use stream::Stream;

/// Maximum number of calls that the pool may make while the virtual time stands still. A correct
/// loop needs far fewer, so a loop that reaches this number makes no progress.
const ENDLESS: u32 = 1_000_000;

/// The errors of a read or a write that breaks its connection.
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
    /// The number of the connection, counted from 0.
    connection: usize,
    /// True if this is the pool's end, and the end uses a descriptor of the pool. An end that waits
    /// at a listener uses no descriptor.
    ours: bool,
    inbox: VecDeque<u8>,
    capacity: usize,
    /// The other end will send no more.
    fin: bool,
    /// The connection was reset, and no call has reported this yet.
    reset: bool,
    /// Writes fail from now on.
    broken: bool,
    open: bool,
    /// This end has shut down its sending side.
    shut: bool,
    /// A write by this end found too little space, and the peer has read nothing since.
    starved: bool,
    /// This is the pool's end of an outgoing connection that is not established.
    connecting: bool,
    /// The error of a failed connect attempt, until it is reported.
    failure: Option<ErrorKind>,
    token: Option<u64>,
    edge: Edge,
    received: u64,
    sent: u64,
    /// The time at which this end last read or wrote a byte, found no space to write, or was
    /// registered.
    moved: Duration,
}

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) now: Duration,
    ends: Slab<End>,
    /// The registered ends by token.
    registered: HashMap<u64, usize>,
    listeners: Vec<Queue>,
    hosts: HashMap<SocketAddr, HostState>,
    /// The connect attempts of the pool that wait for an answer. Attempts that are never answered
    /// are not in the list.
    attempts: Vec<ConnectAttempt>,
    retired: VecDeque<(u64, ConnSnapshot)>,
    connections: usize,
    /// The number of calls that the pool has made since the virtual time last advanced.
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
            attempts: Vec::new(),
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

    /// Creates a connection. `capacities` are the capacities of the two inboxes. In `capacities`
    /// and in the returned array, the peer's end comes first and the pool's end second.
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
                connecting: false,
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

    /// Adds an event to the digest (FNV-1a over words).
    pub(crate) fn note(&mut self, what: u64) {
        self.digest = (self.digest ^ what).wrapping_mul(0x0000_0100_0000_01b3);
    }

    /// Counts a call that the pool makes. Panics if the pool makes too many calls while the virtual
    /// time stands still.
    pub(crate) fn count_call(&mut self) {
        if self.now > self.counted_at {
            (self.counted_at, self.calls) = (self.now, 0);
        }
        self.calls += 1;
        assert!(
            self.calls < ENDLESS,
            "the loop makes no progress: too many calls while time stands still"
        );
    }

    /// Makes a call by the pool fail at random: a signal interrupts the call, or the connection
    /// breaks.
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

    /// Returns a random number from 1 to `count`. The number is also at most a random power of two
    /// from 1 to 2048. The order of magnitude of the number therefore varies.
    fn short(&mut self, count: usize) -> usize {
        let max = 1 << self.rng.below(12);
        1 + self.rng.below(count.min(max))
    }

    pub(crate) fn read(&mut self, end: usize, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            self.violations.push(format!("read into an empty slice (end {end})"));
        }
        self.check_connected(end);
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
            // After an end of file, a read does not report the reset. The next write reports it.
            if !std::mem::replace(&mut me.fin, true) {
                return Err(ErrorKind::ConnectionReset.into());
            }
        }
        if me.fin { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    pub(crate) fn write(&mut self, end: usize, bytes: &[u8]) -> io::Result<usize> {
        self.check_connected(end);
        self.fail(end, self.faults.failed_writes)?;
        let me = &mut self.ends[end];
        if std::mem::take(&mut me.reset) {
            // The reset is reported once. Later reads return the end of file.
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
            // The first write to a closed peer succeeds, and causes a reset.
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
        self.check_connected(end);
        if self.ends[end].reset || self.ends[end].broken {
            return Err(ErrorKind::NotConnected.into());
        }
        let me = &mut self.ends[end];
        me.shut = true;
        me.edge.hung_up |= me.fin;
        me.edge.closed |= me.fin;
        let peer = me.peer;
        self.finish(peer);
        Ok(())
    }

    fn finish(&mut self, end: usize) {
        let end = &mut self.ends[end];
        if !end.reset && !std::mem::replace(&mut end.fin, true) {
            end.edge.readable = true;
            end.edge.closed = true;
            end.edge.hung_up |= end.shut;
        }
    }

    /// Resets the peer of `end`. The bytes that the peer has not read may be lost.
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

    /// Closes an end. If this end has unread input, the peer sees a reset. If not, the peer sees an
    /// end of file.
    pub(crate) fn close(&mut self, end: usize) {
        if self.ends[end].token.is_some() {
            self.violations.push(format!("closed while registered (end {end})"));
            self.deregister(end);
        }
        self.cancel_attempt(end);
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
