//! Many connections at the same time over loopback. The tests check every byte and the counters.
//! They also check that no resource is left.
//!
//! The tests run one at a time, because each counts the descriptors of the process.

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
    Dir, assert_nothing_left, connect, descriptors, listen_on_many, pair, random_bytes, reset,
    resident_bytes, shrink_buffers, turn_until, unix_pair, with_timeouts,
};

/// A deadline that does not expire during a test.
const NEVER: Duration = Duration::from_secs(300);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(NEVER).request_deadline(NEVER)
}

/// Clients that each send one request per round and wait for its echo.
struct Clients {
    sockets: Vec<TcpStream>,
    rng: Rng,
    noise: Vec<u8>,
    reply: Vec<u8>,
}

impl Clients {
    fn new(sockets: Vec<TcpStream>, largest: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let noise = random_bytes(&mut rng, 1 << 20);
        Self { sockets, rng, noise, reply: vec![0; largest] }
    }

    /// Sends one request of random size from each client, and then reads all echoes. Returns the
    /// number of bytes.
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
            socket.read_exact(reply).expect("a reply of the length of the request");
            assert!(
                reply == &self.noise[request],
                "client {index} received other bytes than it sent"
            );
            total += reply.len() as u64;
        }
        total
    }
}

#[test]
fn a_thousand_connections_receive_every_byte_of_fifty_requests() {
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
    assert_eq!(stats.peak, count, "all at the same time");
    assert_eq!((stats.bytes_in, stats.bytes_out), (sent, sent));
    assert_eq!(stats.closed(CloseReason::Eof), count);
    assert_eq!((stats.bytes_dropped, stats.bytes_unsent, stats.stale_events), (0, 0, 0));
}

/// Numbers of clients that were served and refused by a pool with too few workers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcomes {
    served: u64,
    refused: u64,
}

/// The way in which a client ends its connection. Half of the clients send a reset.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// Reads to the end of file.
    Politely,
    /// Sends a reset after it was served or refused.
    Abruptly,
    /// Sends a reset as soon as it is connected.
    AtOnce,
}

impl Outcomes {
    /// Opens `count` connections. Waits until all clients are answered, except those that leave at
    /// once. Then closes the connections.
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
        // No client leaves before all are answered, so the workers are exhausted in every wave.
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
fn each_of_twenty_thousand_connections_is_served_or_refused() {
    const WAVES: usize = 50;
    const WAVE: usize = 400;
    const WORKERS: usize = 200;
    let _alone = alone();
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let mut manager = Manager::new(drained().max_workers(WORKERS), echo).expect("a manager");
    manager.start().expect("start");
    let addrs = listen_on_many(&mut manager, 4);
    let before = descriptors();

    let outcomes = thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut outcomes = Outcomes::default();
            for &addr in addrs.iter().cycle().take(WAVES) {
                outcomes.wave(addr, WAVE);
            }
            outcomes
        });
        turn_until(&mut manager, |_| clients.is_finished());
        clients.join().expect("the thread of the clients")
    });

    turn_until(&mut manager, |manager| manager.stats().accepted == (WAVES * WAVE) as u64);
    assert_nothing_left(&mut manager, before);
    let stats = manager.stats();
    assert_eq!(stats.accepted, stats.put + stats.busy, "{stats}");
    assert_eq!(stats.peak, WORKERS as u64, "all workers and no more");
    let left_at_once = (WAVES * WAVE / 4) as u64;
    assert_eq!(outcomes.served + outcomes.refused + left_at_once, stats.accepted);
    let uncertain = 0..=left_at_once;
    assert!(uncertain.contains(&(stats.put - outcomes.served)), "{outcomes:?}; {stats}");
    assert!(uncertain.contains(&(stats.busy - outcomes.refused)), "{outcomes:?}; {stats}");
    let held = WAVE - WAVE / 4;
    assert!(outcomes.refused >= (WAVES * (held - WORKERS)) as u64, "{outcomes:?}; {stats}");
    let resets = stats.closed(CloseReason::Reset);
    assert!(resets > 0, "{stats}");
    assert_eq!(resets + stats.closed(CloseReason::Eof), stats.put);
}

/// Peers that never read.
struct NonReaders {
    /// Peers that send as much as they can, so that the echo to them stays unsent.
    senders: Vec<TcpStream>,
    /// Peers that send nothing. The test sends bytes to them through the handle.
    receivers: Vec<(TcpStream, ConnId)>,
}

impl NonReaders {
    /// Sends more bytes on the connections that are still open.
    fn send_more(&mut self, noise: &[u8]) {
        self.senders.retain_mut(|sender| match sender.write(noise) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
    }
}

/// Puts a connection with small buffers, which are full soon.
fn put_non_reader<H: Handler>(manager: &mut Manager<H>) -> (TcpStream, ConnId) {
    let (peer, ours) = pair();
    shrink_buffers(&peer, &ours);
    peer.set_nonblocking(true).expect("non-blocking");
    (peer, manager.put(ours).expect("put"))
}

/// Puts a connection with a small send buffer, so that a reply needs several writes.
fn put_reader<H: Handler>(manager: &mut Manager<H>) -> TcpStream {
    let (peer, ours) = pair();
    socket2::SockRef::from(&ours).set_send_buffer_size(1).expect("send buffer");
    manager.put(ours).expect("put");
    with_timeouts(peer)
}

#[test]
fn peers_that_never_read_are_closed_and_do_not_affect_readers() {
    const NON_READERS: u64 = 50;
    const READERS: u64 = 100;
    const LIMIT: usize = 128 << 10;
    const MARK: u8 = 0;
    let _alone = alone();
    // `MARK` as the first byte marks a peer that does not read. Its connection gets a short idle
    // deadline.
    let echo = |conn: &mut Conn<'_>, body: &[u8]| -> io::Result<()> {
        if conn.bytes_out() == 0 && body[0] == MARK {
            conn.set_idle_deadline(Duration::from_millis(300));
        }
        conn.write_all(body)
    };
    let mut manager = Manager::new(drained().write_limit(LIMIT), echo).expect("a manager");
    manager.start().expect("start");
    let (before, handle, noise) = (descriptors(), manager.handle(), vec![MARK; 64 << 10]);
    let mut non_readers = NonReaders {
        senders: (0..NON_READERS).map(|_| put_non_reader(&mut manager).0).collect(),
        receivers: (0..NON_READERS).map(|_| put_non_reader(&mut manager)).collect(),
    };
    let readers = (0..READERS).map(|_| put_reader(&mut manager)).collect();
    let resident_before = resident_bytes();

    let (read, resident) = thread::scope(|scope| {
        let readers = scope.spawn(|| {
            // The replies are larger than one write.
            let mut readers = Clients::new(readers, 100_000, 7);
            (0..30).map(|_| readers.round()).sum::<u64>()
        });
        let mut resident = 0;
        turn_until(&mut manager, |manager| {
            non_readers.send_more(&noise);
            let stats = manager.stats();
            if stats.closed(CloseReason::WriteLimit) < NON_READERS {
                for (_, id) in &non_readers.receivers {
                    handle.send(*id, &noise[..16 << 10]).expect("send");
                }
            }
            resident = resident.max(resident_bytes());
            let closed =
                stats.closed(CloseReason::WriteLimit) + stats.closed(CloseReason::WriteStalled);
            closed == 2 * NON_READERS && readers.is_finished()
        });
        (readers.join().expect("the thread of the readers"), resident)
    });

    let stats = manager.stats();
    assert_eq!(
        stats.closed(CloseReason::WriteStalled),
        NON_READERS,
        "a peer with unsent bytes is not read: {stats}"
    );
    assert_eq!(stats.closed(CloseReason::WriteLimit), NON_READERS, "{stats}");
    assert!(stats.bytes_out > read, "{stats}");
    let most_unsent = 2 * NON_READERS * LIMIT as u64;
    assert!((1..=most_unsent).contains(&stats.bytes_unsent), "{}", stats.bytes_unsent);
    let grown = resident.saturating_sub(resident_before);
    assert!(grown <= 2 * most_unsent + (16 << 20), "grown by {grown} bytes");
    drop(non_readers);
    assert_nothing_left(&mut manager, before);
    let stats = manager.stats();
    assert_eq!(stats.closed(CloseReason::Eof), READERS, "each reader ends with end of file");
}

/// Opens one connection in each of four ways: over TCP, over a Unix socket, by `put` and by a
/// handle. Exchanges one message on each. `acceptor` is a listener of the test. It accepts the
/// connection for `put`.
fn connect_four<H: Handler>(
    manager: &mut Manager<H>,
    addr: SocketAddr,
    path: &Path,
    acceptor: &TcpListener,
) -> [TcpStream; 4] {
    // The Unix connection is wrapped as a TCP connection, so that all clients have the same type.
    let unix: OwnedFd = UnixStream::connect(path).expect("connect").into();
    let put = connect(acceptor.local_addr().expect("address"));
    let (handed_over, theirs) = unix_pair();
    let mut clients = [connect(addr), with_timeouts(unix.into()), put, with_timeouts(handed_over)];
    manager.put(acceptor.accept().expect("accept").0).expect("put");
    manager.handle().put(theirs).expect("put by a handle");
    for client in &mut clients {
        client.write_all(b"hello").expect("send a request");
    }
    let served = manager.stats().bytes_out + 4 * 5;
    turn_until(manager, |manager| manager.stats().bytes_out == served);
    for client in &mut clients {
        let mut reply = [0; 5];
        client.read_exact(&mut reply).expect("a reply");
        assert_eq!(&reply, b"hello");
    }
    clients
}

/// Closes two connections, one of them with a reset. Then puts another connection by a handle. No
/// turn runs after that, so the connection stays queued. Returns the three open connections.
fn replace_two<H: Handler>(manager: &mut Manager<H>, clients: [TcpStream; 4]) -> [TcpStream; 3] {
    let [closed, unix, reset_by_peer, stays] = clients;
    drop(closed);
    reset(reset_by_peer);
    turn_until(manager, |manager| manager.stats().live == 2);
    let (queued, ours) = unix_pair();
    manager.handle().put(ours).expect("two workers are free");
    [unix, stays, with_timeouts(queued)]
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

#[test]
fn two_thousand_restarts_under_traffic_leak_nothing() {
    const CYCLES: u64 = 2_000;
    const WARM: u64 = 500;
    let _alone = alone();
    support::alone("two_thousand_restarts_under_traffic_leak_nothing", 64, || {
        // There are as many workers as clients, so that a lost worker makes the next cycle fail.
        let config = drained().min_workers(2).max_workers(4).stop_deadline(Duration::ZERO);
        let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
        let mut manager = Manager::new(config, echo).expect("a manager");
        // This address is separate, so that no other program takes the port between a stop and a
        // start.
        let (dir, mut addr) = (Dir::new(), SocketAddr::from(([127, 0, 0, 77], 0)));
        let path = dir.path("echo.sock");
        let acceptor = TcpListener::bind(addr).expect("bind");
        let before = (descriptors(), threads());
        let mut resident = 0;
        for cycle in 0..CYCLES {
            manager.start().expect("start");
            addr = manager.listen(addr).expect("the address of the last cycle");
            manager.listen_unix(&path).expect("the path of the last cycle");
            let clients = connect_four(&mut manager, addr, &path, &acceptor);
            assert!(manager.put(unix_pair().1).expect_err("no worker is free").is_busy());
            let left = if cycle % 2 == 0 {
                assert_eq!(manager.stop().expect("stop").idle, 4);
                Vec::from(clients)
            } else {
                let left = replace_two(&mut manager, clients);
                assert_eq!(manager.stop().expect("stop").idle, 2);
                Vec::from(left)
            };
            for mut client in left {
                assert_eq!(client.read(&mut [0]).expect("an end of file"), 0);
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
