//! Strings of operations. Every short string runs in the simulated network. Random strings run both
//! in the simulated network and on real sockets, and the results must be equal. Each symbol stands
//! for one operation of a peer, of a handle, of the manager or of the clock.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use pool_manager::sim::{Sim, Stream};
use pool_manager::sys::{Backend, Os};
use pool_manager::{
    CloseReason, Closed, Commands, Config, Conn, ConnId, Framing, Handler, Manager, Socket,
};

/// Operations that concern one of the two clients.
const CLIENT_OPERATIONS: [Operation; 9] = [
    Operation::Put,
    Operation::Write(b"ab\n"),
    Operation::Write(b"c"),
    Operation::Write(b"0123456789\nx\n"),
    Operation::Finish,
    Operation::Reset,
    Operation::Close,
    Operation::PauseOrResume,
    Operation::Send,
];

/// Number of symbols: the operations of each client, and three that concern time and the manager.
pub(crate) const SYMBOLS: u8 = 2 * CLIENT_OPERATIONS.len() as u8 + 3;
/// Only runs a turn.
const TURN: u8 = SYMBOLS - 3;
/// Stops the manager if it runs, starts it if it does not.
const STOP_OR_START: u8 = SYMBOLS - 2;
/// Advances the time beyond every deadline. Real sockets never run this operation.
pub(crate) const EXPIRE: u8 = SYMBOLS - 1;

const DEADLINE: Duration = Duration::from_secs(20);
const BUFFER: usize = 8;

#[derive(Clone, Copy)]
enum Operation {
    Put,
    Write(&'static [u8]),
    Finish,
    Reset,
    Close,
    PauseOrResume,
    Send,
}

/// A network: the source of connections, and the way in which time passes.
pub(crate) trait Net {
    type Backend: Backend;
    type Peer: Read + Write;

    fn backend(&self) -> Self::Backend;
    /// Returns a non-blocking peer and the pool's socket.
    fn pair(&self) -> (Self::Peer, Socket);
    fn finish(peer: &Self::Peer);
    fn reset(peer: Self::Peer);
    fn pass_time(&self, time: Duration);
    /// Returns the maximum time for which a turn waits for data that may be on its way.
    fn turn_timeout(&self) -> Duration;
    /// Returns the errors of the loop, such as unread input that no event will report.
    fn failures(&self, _served: &[ConnId]) -> Vec<String> {
        Vec::new()
    }
}

impl Net for Sim {
    type Backend = Sim;
    type Peer = Stream;

    fn backend(&self) -> Sim {
        self.clone()
    }

    fn pair(&self) -> (Stream, Socket) {
        let (peer, ours) = Sim::pair(self);
        (peer, ours.into())
    }

    fn finish(peer: &Stream) {
        let _ = peer.shutdown_write();
    }

    fn reset(peer: Stream) {
        peer.reset();
    }

    fn pass_time(&self, time: Duration) {
        self.advance(time);
    }

    fn turn_timeout(&self) -> Duration {
        Duration::ZERO
    }

    fn failures(&self, served: &[ConnId]) -> Vec<String> {
        let mut failures = self.violations();
        for &id in served {
            let Some(snapshot) = self.snapshot(id) else { continue };
            if (snapshot.unread > 0 || snapshot.ended) && !snapshot.pending {
                failures.push(format!("{id}: the loop sleeps although there is unread input"));
            }
        }
        failures
    }
}

/// The network of the operating system, with sockets over loopback.
pub(crate) struct Loopback {
    listener: TcpListener,
    turn_timeout: Duration,
}

impl Loopback {
    /// `turn_timeout` is the maximum time for which a turn waits for data that may be on its way.
    pub(crate) fn new(turn_timeout: Duration) -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").expect("a listener"), turn_timeout }
    }
}

impl Net for Loopback {
    type Backend = Os;
    type Peer = TcpStream;

    fn backend(&self) -> Os {
        Os::new().expect("an event loop")
    }

    fn pair(&self) -> (TcpStream, Socket) {
        let peer =
            TcpStream::connect(self.listener.local_addr().expect("an address")).expect("connect");
        let (ours, _) = self.listener.accept().expect("accept");
        peer.set_nonblocking(true).expect("set_nonblocking");
        // Without this option, a second small write waits for the acknowledgement of the first.
        for socket in [&peer, &ours] {
            socket.set_nodelay(true).expect("set_nodelay");
        }
        (peer, ours.into())
    }

    fn finish(peer: &TcpStream) {
        let _ = peer.shutdown(std::net::Shutdown::Write);
    }

    fn reset(peer: TcpStream) {
        let peer = socket2::Socket::from(peer);
        peer.set_linger(Some(Duration::ZERO)).expect("set_linger");
    }

    fn pass_time(&self, _time: Duration) {}

    fn turn_timeout(&self) -> Duration {
        self.turn_timeout
    }
}

/// The observations of one connection, from both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The requests, complete and incomplete, each with its cause.
    delivered: Vec<(String, Vec<u8>)>,
    /// `read_closed` was called.
    read_closed: bool,
    closed: Option<CloseReason>,
    got: Vec<u8>,
    /// The end of the connection as the peer saw it.
    ended: Option<&'static str>,
}

type Log = Rc<RefCell<BTreeMap<ConnId, Seen>>>;

/// Echoes each body, and records all callbacks.
struct Recorder {
    log: Log,
    /// The boundaries between the chunks of a stream depend on timing, so all chunks are recorded
    /// as one.
    chunks: bool,
}

impl Handler for Recorder {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        let mut log = self.log.borrow_mut();
        let seen = log.entry(conn.id()).or_default();
        assert_eq!(seen.closed, None, "a callback after the end");
        let cause = if self.chunks { "a chunk".into() } else { format!("{:?}", conn.cause()) };
        match seen.delivered.last_mut() {
            Some((_, bytes)) if self.chunks => bytes.extend(body),
            _ => seen.delivered.push((cause, body.to_vec())),
        }
        conn.write_all(body)
    }

    fn incomplete(&mut self, conn: &mut Conn<'_>, (): &mut (), held: &[u8]) -> io::Result<()> {
        let mut log = self.log.borrow_mut();
        let seen = log.entry(conn.id()).or_default();
        assert_eq!(seen.closed, None, "a callback after the end");
        seen.delivered.push((format!("incomplete, {:?}", conn.cause()), held.to_vec()));
        conn.write_all(held)
    }

    fn read_closed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        let mut log = self.log.borrow_mut();
        let seen = log.entry(conn.id()).or_default();
        assert!(!std::mem::replace(&mut seen.read_closed, true), "`read_closed` called twice");
        conn.finish();
        Ok(())
    }

    fn closed(&mut self, end: &Closed, _: Option<()>, _commands: &mut Commands) {
        let mut log = self.log.borrow_mut();
        let twice = log.entry(end.id).or_default().closed.replace(end.reason);
        assert_eq!(twice, None, "closed twice");
    }
}

struct Client<P> {
    /// `None` once it was reset.
    stream: Option<P>,
    id: ConnId,
}

struct StringRun<'a, N: Net> {
    net: &'a N,
    manager: Manager<Recorder, N::Backend>,
    log: Log,
    clients: [Option<Client<N::Peer>>; 2],
    /// All connections, in the order in which they were put.
    ids: Vec<ConnId>,
    paused: BTreeSet<ConnId>,
    running: bool,
}

/// Runs a string and ends all connections.
pub(crate) fn run<N: Net>(net: &N, framing: Framing, string: &[u8]) {
    let mut run = StringRun::new(net, framing);
    for &symbol in string {
        run.apply(symbol);
    }
    run.settle();
}

/// Runs a string. After each operation and after the end, the peers read, and a list is added to
/// the result. The list has the observations of each connection, in the order in which the
/// connections were put.
pub(crate) fn observe<N: Net>(net: &N, framing: Framing, string: &[u8]) -> Vec<Vec<Seen>> {
    let mut run = StringRun::new(net, framing);
    let mut observed = Vec::new();
    for &symbol in string {
        run.apply(symbol);
        run.turn_until_idle();
        (0..2).for_each(|index| run.read_peer(index));
        observed.push(run.seen());
    }
    run.settle();
    observed.push(run.seen());
    observed
}

impl<'a, N: Net> StringRun<'a, N> {
    fn new(net: &'a N, framing: Framing) -> Self {
        let chunks = matches!(framing, Framing::Drained);
        let config = Config::new()
            .framing(framing)
            .buffer_size(BUFFER)
            .max_workers(2)
            .clients_deadline(DEADLINE)
            .stop_deadline(Duration::from_secs(1));
        let log = Log::default();
        let recorder = Recorder { log: log.clone(), chunks };
        let mut manager =
            Manager::with_backend(config, recorder, net.backend()).expect("a manager");
        manager.start().expect("start");
        Self {
            net,
            manager,
            log,
            clients: [None, None],
            ids: Vec::new(),
            paused: BTreeSet::new(),
            running: true,
        }
    }
}

impl<N: Net> StringRun<'_, N> {
    fn apply(&mut self, symbol: u8) {
        match symbol {
            TURN => self.turns(1),
            EXPIRE => {
                self.net.pass_time(DEADLINE + Duration::from_millis(1));
                self.turns(2);
            }
            STOP_OR_START if self.running => {
                self.stop();
            }
            STOP_OR_START => {
                self.manager.start().expect("start again");
                self.running = true;
            }
            _ => {
                let (client, operation) = (usize::from(symbol % 2), usize::from(symbol / 2));
                self.apply_to_client(client, CLIENT_OPERATIONS[operation]);
                self.turns(1);
            }
        }
    }

    fn apply_to_client(&mut self, index: usize, operation: Operation) {
        if matches!(operation, Operation::Put) {
            if self.clients[index].is_none() && self.running {
                self.put(index);
            }
            return;
        }
        let Some(client) = &mut self.clients[index] else { return };
        let handle = self.manager.handle();
        match (operation, &mut client.stream) {
            (Operation::Write(bytes), Some(stream)) => {
                // The connection may have ended already.
                let _ = stream.write(bytes);
            }
            (Operation::Finish, Some(stream)) => N::finish(stream),
            (Operation::Reset, Some(_)) => {
                self.read_peer(index);
                let stream = self.clients[index].take().and_then(|client| client.stream);
                N::reset(stream.expect("matched above"));
            }
            (Operation::Close, _) => drop(handle.close(client.id)),
            (Operation::PauseOrResume, _) => {
                let resumed = self.paused.remove(&client.id);
                if resumed {
                    drop(handle.resume(client.id));
                } else {
                    self.paused.insert(client.id);
                    drop(handle.pause(client.id));
                }
            }
            (Operation::Send, _) => drop(handle.send(client.id, *b"sent")),
            _ => {}
        }
    }

    fn seen(&self) -> Vec<Seen> {
        self.ids.iter().map(|id| self.log.borrow()[id].clone()).collect()
    }

    fn put(&mut self, index: usize) {
        let (stream, socket) = self.net.pair();
        // `put` fails if the pool has not noticed yet that an earlier connection of this client has
        // ended.
        let Ok(id) = self.manager.put(socket) else { return };
        self.log.borrow_mut().entry(id).or_default();
        self.ids.push(id);
        self.clients[index] = Some(Client { stream: Some(stream), id });
    }

    fn turns(&mut self, max: usize) {
        for _ in 0..max {
            if self.running {
                self.manager.turn(Some(Duration::ZERO)).expect("a turn");
            }
        }
    }

    /// Runs turns until the loop has no work left, and checks that the network finds no error of
    /// the loop.
    fn turn_until_idle(&mut self) {
        let mut idle_turns = 0;
        while self.running && idle_turns < 2 {
            let turn = self.manager.turn(Some(self.net.turn_timeout())).expect("a turn");
            let busy = turn.events > 0 || self.manager.next_timeout() == Some(Duration::ZERO);
            idle_turns = if busy { 0 } else { idle_turns + 1 };
        }
        let log = self.log.borrow();
        let served = |id: &ConnId| log[id].closed.is_none() && !self.paused.contains(id);
        let served: Vec<ConnId> = self.ids.iter().copied().filter(served).collect();
        assert_eq!(self.net.failures(&served), [""; 0]);
    }

    /// Reads on the side of a peer. Records the bytes that it has received and the end of its
    /// connection.
    fn read_peer(&mut self, index: usize) {
        let Some(client) = &mut self.clients[index] else { return };
        let Some(stream) = &mut client.stream else { return };
        let mut log = self.log.borrow_mut();
        let seen = log.entry(client.id).or_default();
        let mut bytes = [0; 256];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => break seen.ended = seen.ended.or(Some("end of file")),
                Ok(count) => seen.got.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => break seen.ended = Some("reset"),
            }
        }
    }

    fn resume_all(&mut self) {
        for id in std::mem::take(&mut self.paused) {
            self.manager.handle().resume(id).expect("resume");
        }
        self.turn_until_idle();
    }

    fn stop(&mut self) {
        self.turn_until_idle();
        // Resume paused connections, because a stop would wait for them.
        self.resume_all();
        // End lingering connections, because a stop would wait for them too.
        (0..2).for_each(|index| self.read_peer(index));
        for client in self.clients.iter_mut().flatten() {
            if self.log.borrow()[&client.id].closed.is_some() {
                client.stream.iter().for_each(N::finish);
            }
        }
        self.turn_until_idle();
        self.manager.stop().expect("a stop");
        self.running = false;
        assert!(
            self.log.borrow().values().all(|seen| seen.closed.is_some()),
            "`closed` was not called for a connection"
        );
        (0..2).for_each(|index| self.read_peer(index));
        self.clients = [None, None];
    }

    /// Resumes all connections and shuts down all peers. Checks that every connection ends.
    fn settle(&mut self) {
        if self.running {
            self.turn_until_idle();
            for index in 0..2 {
                self.read_peer(index);
            }
            self.resume_all();
            for client in self.clients.iter().flatten() {
                client.stream.iter().for_each(N::finish);
            }
            self.turn_until_idle();
            (0..2).for_each(|index| self.read_peer(index));
            let stats = self.manager.stats();
            assert_eq!(stats.live, 0, "connections remain although all peers have left: {stats}");
            self.stop();
        }
        let stats = self.manager.stats();
        assert_eq!((stats.live, stats.put), (0, stats.closed_total()), "{stats}");
    }
}
