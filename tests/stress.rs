//! Many connections at once over loopback: every byte checked, every refusal counted, and nothing
//! left behind.
//!
//! The tests run one at a time, because each counts the descriptors of this process.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use pool_manager::{
    CloseReason, Config, Conn, ConnId, ERROR_SERVER_BUSY, Framing, Handler, Manager,
};
use support::rng::Rng;
use support::{
    Dir, assert_nothing_left, connect, descriptors, listen_on_many, pair, patient, random_bytes,
    reset, resident_bytes, shrink_buffers, turn_until, unix_pair,
};

/// Longer than any of these tests takes: nobody's deadline passes unless a test means it to.
const NEVER: Duration = Duration::from_secs(300);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(NEVER).request_deadline(NEVER)
}

/// Clients that each send a request and wait for it to come back, all of them in every round.
struct Clients {
    sockets: Vec<TcpStream>,
    rng: Rng,
    noise: Vec<u8>,
    reply: Vec<u8>,
}

impl Clients {
    fn new(sockets: Vec<TcpStream>, largest: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let noise = random_bytes(rng, 1 << 20);
        Self { sockets, rng, noise, reply: vec![0; largest] }
    }

    /// One request of random size each, all under way at once; returns how many bytes.
    fn round(&mut self) -> u64 {
        let mut requests = Vec::new();
        for socket in &mut self.sockets {
            let size = 1 + self.rng.below(self.reply.len());
            let start = self.rng.below(self.noise.len() - size);
            socket.write_all(&self.noise[start..start + size]).expect("send a request");
            requests.push(start..start + size);
        }
        let mut total = 0;
        for (index, (socket, request)) in self.sockets.iter_mut().zip(requests).enumerate() {
            let reply = &mut self.reply[..request.len()];
            socket.read_exact(reply).expect("a reply as long as its request");
            assert!(reply == &self.noise[request], "client {index} got other bytes than it sent");
            total += reply.len() as u64;
        }
        total
    }
}

#[test]
fn a_thousand_connections_get_every_byte_of_fifty_requests_back() {
    const THREADS: u64 = 2;
    const EACH: usize = 500;
    const ROUNDS: usize = 50;
    let _alone = alone();
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let mut manager = Manager::new(drained(), echo).expect("a manager");
    manager.start().expect("start");
    let addr = manager.listen("127.0.0.1:0").expect("listen");
    let before = descriptors();
    let all_connected = Barrier::new(THREADS as usize);

    let sent: u64 = thread::scope(|scope| {
        let client = |seed| {
            let all_connected = &all_connected;
            scope.spawn(move || {
                let sockets = (0..EACH).map(|_| connect(addr)).collect();
                let mut clients = Clients::new(sockets, 20_000, seed);
                all_connected.wait();
                let sent: u64 = (0..ROUNDS).map(|_| clients.round()).sum();
                all_connected.wait();
                sent
            })
        };
        let threads: Vec<_> = (0..THREADS).map(client).collect();
        turn_until(&mut manager, |_| threads.iter().all(thread::ScopedJoinHandle::is_finished));
        threads.into_iter().map(|thread| thread.join().expect("a client thread")).sum()
    });

    assert_nothing_left(&mut manager, before);
    let stats = manager.stats();
    let count = THREADS * EACH as u64;
    assert_eq!((stats.accepted, stats.put, stats.busy), (count, count, 0));
    assert_eq!(stats.peak, count, "all at once");
    assert_eq!((stats.bytes_in, stats.bytes_out), (sent, sent));
    assert_eq!(stats.closed(CloseReason::Eof), count);
    assert_eq!((stats.bytes_dropped, stats.bytes_unsent, stats.stale_events), (0, 0, 0));
}

/// What clients saw of a pool that has too few places for them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    served: u64,
    refused: u64,
}

/// How a client leaves: half of them by a reset.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// It reads what it is told, to the end.
    Politely,
    /// By a reset, once it knows whether it was served.
    Abruptly,
    /// By a reset as soon as it is connected.
    AtOnce,
}

impl Tally {
    /// Opens `count` connections, holds all but those that leave at once, then closes them.
    fn wave(&mut self, addr: SocketAddr, count: usize) {
        let leaves = [Leave::Politely, Leave::Abruptly, Leave::Politely, Leave::AtOnce];
        let mut held = Vec::new();
        for leave in leaves.into_iter().cycle().take(count) {
            let mut client = connect(addr);
            if leave == Leave::AtOnce {
                reset(client);
            } else {
                client.write_all(b"?").expect("send a request");
                held.push((leave, client));
            }
        }
        let held: Vec<_> = held
            .into_iter()
            .map(|(leave, mut client)| {
                let mut first = [0];
                client.read_exact(&mut first).expect("an answer");
                (leave, client, first == *b"?")
            })
            .collect();
        // Nobody leaves before all were answered, so there are too few places in every wave.
        for (leave, mut client, served) in held {
            self.served += u64::from(served);
            self.refused += u64::from(!served);
            if leave == Leave::Abruptly {
                reset(client);
            } else if !served {
                let mut rest = String::new();
                client.read_to_string(&mut rest).expect("an end of file, not a reset");
                assert_eq!(rest, ERROR_SERVER_BUSY[1..]);
            }
        }
    }
}

#[test]
fn of_twenty_thousand_connections_each_is_served_or_refused_and_counted() {
    const WAVES: usize = 50;
    const WAVE: usize = 400;
    const PLACES: usize = 200;
    let _alone = alone();
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let mut manager = Manager::new(drained().max_workers(PLACES), echo).expect("a manager");
    manager.start().expect("start");
    let addrs = listen_on_many(&mut manager, 4);
    let before = descriptors();

    let tally = thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut tally = Tally::default();
            for &addr in addrs.iter().cycle().take(WAVES) {
                tally.wave(addr, WAVE);
            }
            tally
        });
        turn_until(&mut manager, |_| clients.is_finished());
        clients.join().expect("the clients' thread")
    });

    turn_until(&mut manager, |manager| manager.stats().accepted == (WAVES * WAVE) as u64);
    assert_nothing_left(&mut manager, before);
    let stats = manager.stats();
    assert_eq!(stats.accepted, stats.put + stats.busy, "{stats}");
    assert_eq!(stats.peak, PLACES as u64, "as many as there are places, and never more");
    let left_at_once = (WAVES * WAVE / 4) as u64;
    assert_eq!(tally.served + tally.refused + left_at_once, stats.accepted);
    let uncertain = 0..=left_at_once;
    assert!(uncertain.contains(&(stats.put - tally.served)), "{tally:?}; {stats}");
    assert!(uncertain.contains(&(stats.busy - tally.refused)), "{tally:?}; {stats}");
    let held = WAVE - WAVE / 4;
    assert!(tally.refused >= (WAVES * (held - PLACES)) as u64, "{tally:?}; {stats}");
    let resets = stats.closed(CloseReason::Reset);
    assert!(resets > 0, "{stats}");
    assert_eq!(resets + stats.closed(CloseReason::Eof), stats.put);
}

/// Peers that take nothing of what they are sent.
struct Deaf {
    /// They send as much as they can, and so are owed as much.
    talkers: Vec<TcpStream>,
    /// They say nothing, and are sent what others say.
    listeners: Vec<(TcpStream, ConnId)>,
}

impl Deaf {
    /// Sends on for those that still can.
    fn talk(&mut self, noise: &[u8]) {
        self.talkers.retain_mut(|talker| match talker.write(noise) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
    }
}

/// A connection whose buffers are small, so that it is full soon.
fn put_deaf<H: Handler>(manager: &mut Manager<H>) -> (TcpStream, ConnId) {
    let (peer, ours) = pair();
    shrink_buffers(&peer, &ours);
    peer.set_nonblocking(true).expect("non-blocking");
    (peer, manager.put(ours).expect("put"))
}

/// A connection that takes a reply in several writes.
fn put_reader<H: Handler>(manager: &mut Manager<H>) -> TcpStream {
    let (peer, ours) = pair();
    socket2::SockRef::from(&ours).set_send_buffer_size(1).expect("send buffer");
    manager.put(ours).expect("put");
    patient(peer)
}

#[test]
fn peers_that_never_read_end_and_cost_those_that_do_nothing() {
    const DEAF: u64 = 50;
    const READERS: u64 = 100;
    const LIMIT: usize = 128 << 10;
    const MARK: u8 = 0;
    let _alone = alone();
    // A peer whose first byte says so is deaf, and is not waited for so long.
    let echo = |conn: &mut Conn<'_>, body: &[u8]| -> io::Result<()> {
        if conn.bytes_out() == 0 && body[0] == MARK {
            conn.set_idle_deadline(Duration::from_millis(300));
        }
        conn.write_all(body)
    };
    let mut manager = Manager::new(drained().write_limit(LIMIT), echo).expect("a manager");
    manager.start().expect("start");
    let (before, handle, noise) = (descriptors(), manager.handle(), vec![MARK; 64 << 10]);
    let mut deaf = Deaf {
        talkers: (0..DEAF).map(|_| put_deaf(&mut manager).0).collect(),
        listeners: (0..DEAF).map(|_| put_deaf(&mut manager)).collect(),
    };
    let readers = (0..READERS).map(|_| put_reader(&mut manager)).collect();
    let resident_before = resident_bytes();

    let (read, resident) = thread::scope(|scope| {
        let readers = scope.spawn(|| {
            // Larger than what is sent at once, and so than what a socket takes at once.
            let mut readers = Clients::new(readers, 100_000, 7);
            (0..30).map(|_| readers.round()).sum::<u64>()
        });
        let mut resident = 0;
        turn_until(&mut manager, |manager| {
            deaf.talk(&noise);
            let stats = manager.stats();
            if stats.closed(CloseReason::WriteLimit) < DEAF {
                for (_, id) in &deaf.listeners {
                    handle.send(*id, &noise[..16 << 10]).expect("send");
                }
            }
            resident = resident.max(resident_bytes());
            let closed =
                stats.closed(CloseReason::WriteLimit) + stats.closed(CloseReason::WriteStalled);
            closed == 2 * DEAF && readers.is_finished()
        });
        (readers.join().expect("the readers' thread"), resident)
    });

    let stats = manager.stats();
    assert_eq!(stats.closed(CloseReason::WriteStalled), DEAF, "who is owed is not read: {stats}");
    assert_eq!(stats.closed(CloseReason::WriteLimit), DEAF, "{stats}");
    assert!(stats.bytes_out > read, "{stats}");
    let most_unsent = 2 * DEAF * LIMIT as u64;
    assert!((1..=most_unsent).contains(&stats.bytes_unsent), "{}", stats.bytes_unsent);
    let grown = resident.saturating_sub(resident_before);
    assert!(grown <= 2 * most_unsent + (16 << 20), "grown by {grown} bytes");
    drop(deaf);
    assert_nothing_left(&mut manager, before);
    let stats = manager.stats();
    assert_eq!(stats.closed(CloseReason::Eof), READERS, "each reader ended well");
}

/// One connection by each way there is, all of which were served once.
/// `door` is a listener of the test's own, for those that are put.
fn visit<H: Handler>(
    manager: &mut Manager<H>,
    addr: SocketAddr,
    path: &Path,
    door: &TcpListener,
) -> [TcpStream; 4] {
    // Dressed as a TCP connection, so that all are of one kind.
    let unix: OwnedFd = UnixStream::connect(path).expect("connect").into();
    let put = connect(door.local_addr().expect("address"));
    let (handed_over, theirs) = unix_pair();
    let mut visitors = [connect(addr), patient(unix.into()), put, patient(handed_over)];
    manager.put(door.accept().expect("accept").0).expect("put");
    manager.handle().put(theirs).expect("put by a handle");
    for visitor in &mut visitors {
        visitor.write_all(b"hello").expect("send a request");
    }
    let served = manager.stats().bytes_out + 4 * 5;
    turn_until(manager, |manager| manager.stats().bytes_out == served);
    for visitor in &mut visitors {
        let mut reply = [0; 5];
        visitor.read_exact(&mut reply).expect("a reply");
        assert_eq!(&reply, b"hello");
    }
    visitors
}

/// Two leave, one of them by a reset, and one comes whom no turn will serve.
fn change<H: Handler>(manager: &mut Manager<H>, visitors: [TcpStream; 4]) -> [TcpStream; 3] {
    let [gone, unix, reset_by_peer, stays] = visitors;
    drop(gone);
    reset(reset_by_peer);
    turn_until(manager, |manager| manager.stats().live == 2);
    let (queued, ours) = unix_pair();
    manager.handle().put(ours).expect("two places are free");
    [unix, stays, patient(queued)]
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

#[test]
fn two_thousand_restarts_under_traffic_leave_nothing_behind() {
    const CYCLES: u64 = 2_000;
    const WARM: u64 = 500;
    let _alone = alone();
    support::alone("two_thousand_restarts_under_traffic_leave_nothing_behind", 64, || {
        // As many places as there are visitors: one that is lost is missed in the next cycle.
        let config = drained().min_workers(2).max_workers(4).stop_deadline(Duration::ZERO);
        let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
        let mut manager = Manager::new(config, echo).expect("a manager");
        // A host of its own, so that nobody takes the port between a stop and a start.
        let (dir, mut addr) = (Dir::new(), SocketAddr::from(([127, 0, 0, 77], 0)));
        let path = dir.path("echo.sock");
        let door = TcpListener::bind(addr).expect("bind");
        let before = (descriptors(), threads());
        let mut resident = 0;
        for cycle in 0..CYCLES {
            manager.start().expect("start");
            addr = manager.listen(addr).expect("the address of the last cycle");
            manager.listen_unix(&path).expect("the path of the last cycle");
            let visitors = visit(&mut manager, addr, &path, &door);
            assert!(manager.put(unix_pair().1).expect_err("no place is left").is_busy());
            let left = if cycle % 2 == 0 {
                assert_eq!(manager.stop().expect("stop").idle, 4);
                Vec::from(visitors)
            } else {
                let left = change(&mut manager, visitors);
                assert_eq!(manager.stop().expect("stop").idle, 2);
                Vec::from(left)
            };
            for mut visitor in left {
                assert_eq!(visitor.read(&mut [0]).expect("an end of file"), 0);
            }
            assert_eq!((descriptors(), threads()), before, "after cycle {cycle}");
            assert_eq!(dir.names(), [""; 0], "the path is removed");
            if cycle == WARM {
                resident = resident_bytes();
            }
        }
        let stats = manager.stats();
        assert_eq!((stats.live, stats.lingering, stats.spare), (0, 0, 0));
        assert_eq!((stats.put, stats.closed_total()), (4 * CYCLES, 4 * CYCLES));
        assert_eq!((stats.accepted, stats.busy, stats.admit_failures), (2 * CYCLES, CYCLES, 0));
        assert_eq!((stats.bytes_in, stats.bytes_out), (20 * CYCLES, 20 * CYCLES));
        assert_eq!(stats.closed(CloseReason::Stopped), 3 * CYCLES);
        assert_eq!((stats.bytes_dropped, stats.bytes_unsent, stats.stale_events), (0, 0, 0));
        let grown = resident_bytes().saturating_sub(resident);
        assert!(grown <= 100 * (CYCLES - WARM), "grown by {grown} bytes");
    });
}
