//! Strings of operations: every short one in the simulated network, random ones there and on real
//! sockets alike. Each symbol is one thing that one of two peers, a handle or time may do.

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

/// Operations of a peer or on it; there are two peers.
const PAIRWISE: [Operation; 9] = [
    Operation::Put,
    Operation::Say(b"ab\n"),
    Operation::Say(b"c"),
    Operation::Say(b"0123456789\nx\n"),
    Operation::Finish,
    Operation::Reset,
    Operation::Close,
    Operation::PauseOrResume,
    Operation::Send,
];

/// How many symbols there are: those for each of two peers, and three for time and the manager.
pub(crate) const SYMBOLS: u8 = 2 * PAIRWISE.len() as u8 + 3;
/// A turn, and nothing else.
const TURN: u8 = SYMBOLS - 3;
/// Stop if it runs, start if it does not.
const STOP_OR_START: u8 = SYMBOLS - 2;
/// Time passes, beyond every deadline. Real sockets have no patience for this one.
pub(crate) const EXPIRE: u8 = SYMBOLS - 1;

const DEADLINE: Duration = Duration::from_secs(20);
const BUFFER: usize = 8;

#[derive(Clone, Copy)]
enum Operation {
    Put,
    Say(&'static [u8]),
    Finish,
    Reset,
    Close,
    PauseOrResume,
    Send,
}

/// A network: where connections come from, and how time passes.
pub(crate) trait Net {
    type Backend: Backend;
    type Peer: Read + Write;

    fn backend(&self) -> Self::Backend;
    /// A peer that never blocks, and the pool's socket.
    fn pair(&self) -> (Self::Peer, Socket);
    fn finish(peer: &Self::Peer);
    fn reset(peer: Self::Peer);
    fn pass(&self, time: Duration);
    /// How long to wait for what is on its way.
    fn patience(&self) -> Duration;
    /// What the loop has done that it may not, or has forgotten to do.
    fn complaints(&self, _served: &[ConnId]) -> Vec<String> {
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

    fn pass(&self, time: Duration) {
        self.advance(time);
    }

    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    fn complaints(&self, served: &[ConnId]) -> Vec<String> {
        let mut complaints = self.violations();
        for &id in served {
            let Some(look) = self.snapshot(id) else { continue };
            if (look.unread > 0 || look.ended) && !look.pending {
                complaints.push(format!("{id}: asleep over input"));
            }
        }
        complaints
    }
}

/// Loopback sockets and the system's readiness.
pub(crate) struct Loopback {
    listener: TcpListener,
    patience: Duration,
}

impl Loopback {
    /// Waits so long for what may be on its way.
    pub(crate) fn new(patience: Duration) -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").expect("a listener"), patience }
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
        // Else a second small write waits for the first one's acknowledgement.
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

    fn pass(&self, _time: Duration) {}

    fn patience(&self) -> Duration {
        self.patience
    }
}

/// What was seen of one connection, from both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The bodies, each with its cause.
    delivered: Vec<(String, Vec<u8>)>,
    closed: Option<CloseReason>,
    got: Vec<u8>,
    /// How it ended for the peer.
    ended: Option<&'static str>,
}

type Log = Rc<RefCell<BTreeMap<ConnId, Seen>>>;

/// Echoes, and writes down what it sees.
struct Scribe {
    log: Log,
    /// Where a chunk of the stream ends depends on the time, so they count as one.
    chunks: bool,
}

impl Handler for Scribe {
    type Session = ();

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

    fn closed(&mut self, end: &Closed, (): (), _desk: &mut Commands) {
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

struct Stage<'a, N: Net> {
    net: &'a N,
    manager: Manager<Scribe, N::Backend>,
    log: Log,
    clients: [Option<Client<N::Peer>>; 2],
    /// All connections, in the order in which they were put.
    ids: Vec<ConnId>,
    paused: BTreeSet<ConnId>,
    running: bool,
}

/// Plays a string and lets everything come to its end.
pub(crate) fn play<N: Net>(net: &N, framing: Framing, string: &[u8]) {
    let mut stage = Stage::new(net, framing);
    for &symbol in string {
        stage.perform(symbol);
    }
    stage.settle();
}

/// Plays a string, and returns what was seen of each connection, in the order they were put, once
/// all was quiet after each operation and in the end.
pub(crate) fn watch<N: Net>(net: &N, framing: Framing, string: &[u8]) -> Vec<Vec<Seen>> {
    let mut stage = Stage::new(net, framing);
    let mut watched = Vec::new();
    for &symbol in string {
        stage.perform(symbol);
        stage.quiet();
        (0..2).for_each(|index| stage.hear(index));
        watched.push(stage.seen());
    }
    stage.settle();
    watched.push(stage.seen());
    watched
}

impl<'a, N: Net> Stage<'a, N> {
    fn new(net: &'a N, framing: Framing) -> Self {
        let chunks = matches!(framing, Framing::Drained);
        let config = Config::new()
            .framing(framing)
            .buffer_size(BUFFER)
            .max_workers(2)
            .clients_deadline(DEADLINE)
            .stop_deadline(Duration::from_secs(1));
        let log = Log::default();
        let scribe = Scribe { log: log.clone(), chunks };
        let mut manager = Manager::with_backend(config, scribe, net.backend()).expect("a manager");
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

impl<N: Net> Stage<'_, N> {
    fn perform(&mut self, symbol: u8) {
        match symbol {
            TURN => self.turns(1),
            EXPIRE => {
                self.net.pass(DEADLINE + Duration::from_millis(1));
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
                self.perform_for(client, PAIRWISE[operation]);
                self.turns(1);
            }
        }
    }

    fn perform_for(&mut self, index: usize, operation: Operation) {
        if matches!(operation, Operation::Put) {
            if self.clients[index].is_none() && self.running {
                self.put(index);
            }
            return;
        }
        let Some(client) = &mut self.clients[index] else { return };
        let handle = self.manager.handle();
        match (operation, &mut client.stream) {
            (Operation::Say(bytes), Some(stream)) => {
                // Who is gone does not hear it.
                let _ = stream.write(bytes);
            }
            (Operation::Finish, Some(stream)) => N::finish(stream),
            (Operation::Reset, Some(_)) => {
                self.hear(index);
                let stream = self.clients[index].take().and_then(|client| client.stream);
                N::reset(stream.expect("it is there"));
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
        // A place is free, unless the last one here has not been missed yet.
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

    /// Turns until nothing is left to do, and nothing was forgotten.
    fn quiet(&mut self) {
        let mut quiet = 0;
        while self.running && quiet < 2 {
            let turn = self.manager.turn(Some(self.net.patience())).expect("a turn");
            let busy = turn.events > 0 || self.manager.next_timeout() == Some(Duration::ZERO);
            quiet = if busy { 0 } else { quiet + 1 };
        }
        let log = self.log.borrow();
        let served = |id: &ConnId| log[id].closed.is_none() && !self.paused.contains(id);
        let served: Vec<ConnId> = self.ids.iter().copied().filter(served).collect();
        assert_eq!(self.net.complaints(&served), [""; 0]);
    }

    /// What a peer has got by now, and how it ended.
    fn hear(&mut self, index: usize) {
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
        self.quiet();
    }

    fn stop(&mut self) {
        self.quiet();
        // Who is paused would be waited for.
        self.resume_all();
        // Who lingers would be waited for, too.
        (0..2).for_each(|index| self.hear(index));
        for client in self.clients.iter_mut().flatten() {
            if self.log.borrow()[&client.id].closed.is_some() {
                client.stream.iter().for_each(N::finish);
            }
        }
        self.quiet();
        self.manager.stop().expect("a stop");
        self.running = false;
        assert!(self.log.borrow().values().all(|seen| seen.closed.is_some()), "not told of an end");
        (0..2).for_each(|index| self.hear(index));
        self.clients = [None, None];
    }

    /// Everybody goes on and says goodbye, and all is over.
    fn settle(&mut self) {
        if self.running {
            self.quiet();
            for index in 0..2 {
                self.hear(index);
            }
            self.resume_all();
            for client in self.clients.iter().flatten() {
                client.stream.iter().for_each(N::finish);
            }
            self.quiet();
            (0..2).for_each(|index| self.hear(index));
            let stats = self.manager.stats();
            assert_eq!(stats.live, 0, "somebody stays though everybody has gone: {stats}");
            self.stop();
        }
        let stats = self.manager.stats();
        assert_eq!((stats.live, stats.put), (0, stats.closed_total()), "{stats}");
    }
}
