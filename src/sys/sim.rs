//! A backend with a simulated network and a virtual clock. The real loop and the user's handler run
//! in a network with faults. The same seed gives the same run.
//!
//! Time passes only while the loop waits, or when [`Sim::advance`] is called. Nothing sleeps, and
//! all random decisions come from the seed.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Backend, Event, ListenSocket, Wake};
use crate::id::ConnId;
pub use crate::simnet::rng::Rng;
pub use crate::simnet::{Answer, ConnSnapshot, Counters, Faults, Stream};
use crate::simnet::{Edge, Network, Shared, lock};
use crate::socket::Socket;

/// Default capacity in bytes of an inbox.
const CAPACITY: usize = 64 << 10;

/// Time by which the clock advances in a wait without a timeout if nothing happens.
const FOR_EVER: Duration = Duration::from_secs(3_600);
/// Duration of a wait with a zero timeout.
const POLL: Duration = Duration::from_micros(1);

/// A simulated network with a virtual clock. Pass a clone to
/// [`Manager::with_backend`](crate::Manager::with_backend), and keep another clone to act as the
/// peers and to read the clock.
///
/// ```
/// use pool_manager::sim::Sim;
/// use pool_manager::{Config, Conn, Framing, Manager};
/// use std::io::{Read, Write};
/// use std::time::Duration;
///
/// let sim = Sim::new(42);
/// let config = Config::new().framing(Framing::Delimited(b'\n'));
/// let echo = |conn: &mut Conn<'_>, line: &[u8]| conn.write_all(line);
/// let mut manager = Manager::with_backend(config, echo, sim.clone())?;
/// manager.start()?;
/// let (mut peer, ours) = sim.pair();
/// manager.put(ours)?;
///
/// peer.write_all(b"hello\n")?;
/// manager.turn(Some(Duration::ZERO))?;
/// let mut reply = [0; 5];
/// peer.read_exact(&mut reply)?;
/// assert_eq!(&reply, b"hello");
///
/// // The peer sends no more, so the idle deadline passes after three virtual seconds.
/// while manager.stats().live > 0 {
///     manager.turn(None)?;
/// }
/// assert_eq!(sim.now(), Duration::from_secs(4));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Sim {
    net: Shared,
    events: Vec<Event>,
}

impl Sim {
    /// Creates a network without faults.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_faults(seed, Faults::none())
    }

    /// Creates a network with faults.
    #[must_use]
    pub fn with_faults(seed: u64, faults: Faults) -> Self {
        Self { net: Arc::new(Mutex::new(Network::new(seed, faults))), events: Vec::new() }
    }

    /// Changes the faults from now on.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.net).faults = faults;
    }

    /// Creates a connection. Returns the peer's end and the pool's end.
    #[must_use]
    pub fn pair(&self) -> (Stream, Stream) {
        self.pair_with(CAPACITY, CAPACITY)
    }

    /// Creates a connection with inboxes of limited size. The peer's end holds at most `peer`
    /// unread bytes. The pool's end holds at most `pool` unread bytes.
    #[must_use]
    pub fn pair_with(&self, peer: usize, pool: usize) -> (Stream, Stream) {
        let [here, there] = lock(&self.net).pair([peer.max(1), pool.max(1)]);
        (Stream::new(self.net.clone(), here), Stream::new(self.net.clone(), there))
    }

    /// Creates a listener, for [`Manager::listen_on`](crate::Manager::listen_on).
    #[must_use]
    pub fn listener(&self) -> Listener {
        let index = lock(&self.net).listen();
        Listener { net: self.net.clone(), index }
    }

    /// Returns the host at an address that the pool may connect to.
    #[must_use]
    pub fn host(&self, addr: SocketAddr) -> Host {
        Host { net: self.net.clone(), addr }
    }

    /// Returns the virtual time.
    #[must_use]
    pub fn now(&self) -> Duration {
        lock(&self.net).now
    }

    /// Advances the virtual time, as a slow callback would.
    pub fn advance(&self, by: Duration) {
        lock(&self.net).now += by;
    }

    /// Returns a digest of the events, reads and writes so far. If two runs have equal digests,
    /// their events, reads and writes were almost certainly the same and in the same order.
    #[must_use]
    pub fn digest(&self) -> u64 {
        lock(&self.net).digest
    }

    /// Returns the state of a connection that is being served. If the connection has ended
    /// recently, returns its last state.
    #[must_use]
    pub fn snapshot(&self, id: ConnId) -> Option<ConnSnapshot> {
        lock(&self.net).snapshot(id.token())
    }

    /// Returns the counters of the network.
    #[must_use]
    pub fn counters(&self) -> Counters {
        lock(&self.net).counters()
    }

    /// Returns the violations since the last call. A violation is a wrong operation of the loop,
    /// such as closing a socket that is still registered. A correct loop causes none.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.net).violations)
    }
}

/// A simulated listener, to which peers connect.
#[derive(Clone, Debug)]
pub struct Listener {
    net: Shared,
    index: usize,
}

impl Listener {
    /// Connects, and returns the peer's end.
    #[must_use]
    pub fn connect(&self) -> Stream {
        self.arrive(None)
    }

    /// Connects from this address, and returns the peer's end.
    #[must_use]
    pub fn connect_from(&self, addr: impl Into<IpAddr>) -> Stream {
        self.arrive(Some(addr.into()))
    }

    fn arrive(&self, from: Option<IpAddr>) -> Stream {
        let mut net = lock(&self.net);
        let [here, there] = net.pair([CAPACITY; 2]);
        net.arrive(self.index, there, from);
        Stream::new(self.net.clone(), here)
    }

    /// Returns the number of connections that were not accepted yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        lock(&self.net).waiting(self.index)
    }

    /// Returns whether the listener has an event that no wait has reported yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        lock(&self.net).is_pending(self.index)
    }
}

/// A host at an address that the pool connects to ([`Manager::connect`](crate::Manager::connect)).
/// Until its answer is set, it refuses connections.
///
/// ```
/// use pool_manager::sim::{Answer, Sim};
/// use pool_manager::{Config, Conn, Manager};
/// use std::time::Duration;
///
/// let sim = Sim::new(1);
/// let ignore = |_: &mut Conn<'_>, _: &[u8]| Ok(());
/// let mut manager = Manager::with_backend(Config::new(), ignore, sim.clone())?;
/// manager.start()?;
/// let host = sim.host("10.0.0.1:80".parse()?);
/// host.set_answer(Answer::Accept(Duration::from_millis(20)));
/// let id = manager.connect(host.addr())?;
/// manager.turn(None)?;
/// assert!(host.accept().is_some() && sim.snapshot(id).is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Host {
    net: Shared,
    addr: SocketAddr,
}

impl Host {
    /// Returns the address of the host.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sets the answer to connect attempts that start from now on.
    pub fn set_answer(&self, answer: Answer) {
        lock(&self.net).set_answer(self.addr, answer);
    }

    /// Returns the number of connect attempts, successful or not.
    #[must_use]
    pub fn connect_attempts(&self) -> u64 {
        lock(&self.net).connect_attempts(self.addr)
    }

    /// Returns the peer's end of the next established connection, if there is one.
    #[must_use]
    pub fn accept(&self) -> Option<Stream> {
        let end = lock(&self.net).arrived(self.addr)?;
        Some(Stream::new(self.net.clone(), end))
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.addr)
    }
}

impl From<Listener> for ListenSocket {
    fn from(listener: Listener) -> Self {
        Self::Sim(listener)
    }
}

impl Backend for Sim {
    type Listener = Listener;

    fn start(&mut self) -> io::Result<Wake> {
        let failing = lock(&self.net).faults.failed_starts;
        if lock(&self.net).rng.permille(failing) {
            return Err(io::Error::other("too many open files"));
        }
        let net = self.net.clone();
        Ok(Arc::new(move || {
            lock(&net).woken = true;
            Ok(())
        }))
    }

    fn stop(&mut self) {
        lock(&self.net).woken = false;
        self.events.clear();
    }

    fn now(&mut self) -> Duration {
        lock(&self.net).now
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.events.clear();
        let mut net = lock(&self.net);
        let faults = net.faults;
        net.counters.asked = net.now;
        if net.rng.permille(faults.clock_jumps) {
            let jump = Duration::from_millis(net.rng.below(7_200_000) as u64);
            net.now += jump;
            if timeout == Some(Duration::ZERO) {
                net.counters.asked = net.now;
            }
            net.counters.jumped += jump;
            net.counters.longest_jump = net.counters.longest_jump.max(jump);
        }
        if net.rng.permille(faults.failed_waits) {
            return Err(ErrorKind::InvalidInput.into());
        }
        if net.rng.permille(faults.interrupts) {
            net.counters.interrupted_waits += 1;
            net.counters.waited = net.now;
            return Err(ErrorKind::Interrupted.into());
        }
        let woken = std::mem::take(&mut net.woken);
        net.answer_attempts();
        if !woken && !net.any_edge() {
            let until = net.now + timeout.map_or(FOR_EVER, |timeout| timeout.max(POLL));
            net.now = until.min(net.next_answer());
            net.answer_attempts();
        }
        net.counters.waited = net.now;
        for (token, edge) in net.take_edges() {
            report(&mut self.events, token, edge, faults.split_events);
        }
        for (permille, dead) in [(faults.spurious_events, false), (faults.stale_events, true)] {
            if net.rng.permille(permille) {
                let edge = Edge { closed: net.rng.permille(300), hung_up: false, ..Edge::ALL };
                if let Some(token) = net.any_token(dead) {
                    report(&mut self.events, token, edge, faults.split_events);
                }
            }
        }
        for event in &self.events {
            net.note(event.token.rotate_left(7) | u64::from(event.readable));
        }
        Ok(woken || !self.events.is_empty())
    }

    fn events(&mut self, each: impl FnMut(Event)) {
        self.events.drain(..).for_each(each);
    }

    fn register(&mut self, socket: &Socket, token: u64) -> io::Result<()> {
        lock(&self.net).register(simulated(socket)?.end(), token)
    }

    fn deregister(&mut self, socket: &Socket) {
        if let Ok(stream) = simulated(socket) {
            lock(&self.net).deregister(stream.end());
        }
    }

    fn listen(&mut self, bound: ListenSocket, token: u64) -> io::Result<Listener> {
        match bound {
            ListenSocket::Sim(listener) => {
                lock(&self.net).open_listener(listener.index, token);
                Ok(listener)
            }
            _ => Err(ErrorKind::Unsupported.into()),
        }
    }

    fn release_listener(&mut self, listener: Listener) -> Option<ListenSocket> {
        lock(&self.net).release_listener(listener.index);
        Some(ListenSocket::Sim(listener))
    }

    fn close_listener(&mut self, listener: Listener) {
        lock(&self.net).close_listener(listener.index);
    }

    fn accept(&mut self, listener: &mut Listener) -> io::Result<(Socket, Option<IpAddr>)> {
        let (end, from) = lock(&self.net).accept(listener.index)?;
        Ok((Socket::Sim(Stream::new(self.net.clone(), end)), from))
    }

    fn connect(&mut self, addr: SocketAddr) -> io::Result<Socket> {
        let end = lock(&self.net).connect(addr)?;
        Ok(Socket::Sim(Stream::new(self.net.clone(), end)))
    }

    fn is_connected(&mut self, socket: &Socket) -> io::Result<bool> {
        lock(&self.net).is_connected(simulated(socket)?.end())
    }

    /// Returns false if a fault makes reads short or splits events. If not, returns true, because a
    /// simulated stream has no urgent data and passes no descriptors.
    fn short_read_is_drained(&self, _socket: &Socket) -> bool {
        let faults = lock(&self.net).faults;
        faults.short_reads == 0 && !faults.split_events
    }
}

fn simulated(socket: &Socket) -> io::Result<&Stream> {
    match socket {
        Socket::Sim(stream) => Ok(stream),
        _ => Err(ErrorKind::Unsupported.into()),
    }
}

fn report(events: &mut Vec<Event>, token: u64, edge: Edge, split: bool) {
    let Edge { readable, writable, closed, hung_up } = edge;
    let event = Event { token, readable, writable, closed, hung_up, priority: false };
    if split && readable && writable {
        events.push(Event { writable: false, ..event });
        events.push(Event { readable: false, closed: false, hung_up: false, ..event });
    } else {
        events.push(event);
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("now", &self.now()).finish_non_exhaustive()
    }
}
