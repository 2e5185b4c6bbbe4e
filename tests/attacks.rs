//! Attacks by untrusted peers over loopback, with realistic numbers of connections and bytes.
//! `docs/threat-model.md` lists the defences and the tests that prove them.
//!
//! Each test runs its server in a separate process, in which only the manager uses memory and
//! descriptors. Most tests run the attacking clients in another process. The tests measure with
//! their own clocks. A well-behaved client, the bystander, measures the delay of its echoes. The
//! figures are printed with `--nocapture`.
//!
//! The longer tests run with `cargo test --release --test attacks -- --ignored --test-threads 1`.

#![cfg(target_os = "linux")]

mod support;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pool_manager::{
    Cause, CloseReason, Closed, Commands, Config, Conn, ERROR_SERVER_BUSY, Frame, Framing, Handler,
    Manager, Prefix,
};
use support::rng::Rng;
use support::{
    ALONE, Dir, TIMEOUT, alone, assert_nothing_left, connect, deep_listener, descriptors,
    listen_on_many, logged, one_test, pass, random_bytes, remember_log, reset, resident_bytes,
    turn_until,
};

/// The maximum time from a deadline to the close of the connection. The time for which the thread
/// waited for a core is not counted.
const SLACK: Duration = Duration::from_millis(500);

/// Returns the total time for which this thread waited for a core (`schedstat` in proc(5)).
fn run_delay() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split(' ').nth(1).and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Returns [`SLACK`] plus the time for which this thread has waited for a core since [`run_delay`]
/// returned `delay_before`.
fn slack_since(delay_before: Duration) -> Duration {
    SLACK + run_delay().saturating_sub(delay_before)
}

/// A deadline that does not expire during a test.
const NEVER: Duration = Duration::from_secs(600);

/// The environment variable with the addresses or paths to which the attacking clients connect. It
/// is set only in the process that runs these clients.
const TARGETS_VAR: &str = "POOL_MANAGER_TEST_TARGETS";

/// If this is the process of the [`Attackers`], runs `clients` and returns true.
fn is_attacker<T: FromStr<Err: fmt::Debug>>(clients: impl FnOnce(&[T])) -> bool {
    let Ok(targets) = std::env::var(TARGETS_VAR) else { return false };
    let targets: Result<Vec<T>, _> = targets.split(' ').map(str::parse).collect();
    clients(&targets.expect("addresses or paths"));
    true
}

/// Runs the server of a test in a separate process with a limit of `max` descriptors.
fn run_server(name: &str, max: u32, server: impl FnOnce()) {
    let allowed = Command::new("sh").args(["-c", &format!("ulimit -n {max}")]).output();
    if !allowed.expect("a shell").status.success() {
        eprintln!("{name} is skipped: it needs {max} descriptors, but the limit is lower");
        return;
    }
    alone(name, max, server);
}

/// The process of the attacking clients. It is killed on drop.
struct Attackers(Child);

impl Attackers {
    fn spawn(targets: &[impl ToString]) -> Self {
        let name = std::env::var(ALONE).expect("the server runs in a separate process");
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(one_test(&name))
            .env(TARGETS_VAR, targets.join(" "))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.expect("a process"))
    }

    /// Serves the clients until their process exits. Returns the standard error of that process.
    fn finish<H: Handler>(mut self, manager: &mut Manager<H>) -> String {
        turn_until(manager, |_| self.0.try_wait().expect("a child").is_some());
        let mut output = String::new();
        let mut errors = self.0.stderr.take().expect("a pipe");
        errors.read_to_string(&mut output).expect("text");
        assert!(self.0.wait().expect("a child").success(), "the clients failed: {output}");
        output
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        // The process is still running only if the test has failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A well-behaved client, which sends lines and measures the delay of their echoes.
struct Bystander {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Delays>,
}

impl Bystander {
    fn start(addr: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut client = connect(addr);
            let mut delays = Vec::new();
            loop {
                let began = Instant::now();
                client.write_all(b"bystander\n").expect("send");
                let mut echo = [0; 10];
                client.read_exact(&mut echo).expect("an echo");
                assert_eq!(&echo, b"bystander\n");
                delays.push(began.elapsed());
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                // Keep the load of the bystander low.
                thread::sleep(Duration::from_millis(2));
            }
            delays.sort_unstable();
            Delays(delays)
        });
        Self { stop, thread }
    }

    /// Requests the end of the bystander, and serves it until its thread has ended.
    fn finish<H: Handler>(self, manager: &mut Manager<H>) -> Delays {
        self.stop.store(true, Ordering::Relaxed);
        turn_until(manager, |_| self.thread.is_finished());
        self.thread.join().expect("the bystander")
    }
}

/// The delays of a bystander's echoes, sorted.
struct Delays(Vec<Duration>);

impl Delays {
    fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    fn worst(&self) -> Duration {
        *self.0.last().expect("an echo")
    }

    /// Fails if the bystander had to wait too long. Without load, an echo takes 0.1 ms. The limits
    /// are higher, because the machine may be busy during an attack.
    #[track_caller]
    fn assert_served(&self) {
        assert!(self.median() <= Duration::from_millis(200), "starved: {self}");
        assert!(self.worst() <= Duration::from_secs(2), "starved: {self}");
    }
}

impl fmt::Display for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, median, worst) = (self.0.len(), self.median(), self.worst());
        write!(f, "bystander: {count} echoes, median {median:.1?}, worst {worst:.1?}")
    }
}

/// The history of one connection, measured with a clock other than that of the loop.
struct History {
    closed: Closed,
    /// The time from `opened` to `closed`.
    lifetime: Duration,
    /// The time from the first request to `closed`.
    since_request: Option<Duration>,
    /// The length of the last request, or of an incomplete one that followed it.
    last_length: usize,
}

/// A handler that stores the history of every connection. It calls a function to reply, also to an
/// incomplete request.
struct Recorder<F> {
    histories: Rc<RefCell<Vec<History>>>,
    reply: F,
}

struct Times {
    opened: Instant,
    first_request: Option<Instant>,
    last_length: usize,
}

impl<F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> Handler for Recorder<F> {
    type Session = Times;

    fn opened(&mut self, _conn: &mut Conn<'_>) -> io::Result<Times> {
        Ok(Times { opened: Instant::now(), first_request: None, last_length: 0 })
    }

    fn request(&mut self, conn: &mut Conn<'_>, times: &mut Times, body: &[u8]) -> io::Result<()> {
        times.first_request = times.first_request.or_else(|| Some(Instant::now()));
        times.last_length = body.len();
        (self.reply)(conn, body)
    }

    fn incomplete(
        &mut self,
        conn: &mut Conn<'_>,
        times: &mut Times,
        held: &[u8],
    ) -> io::Result<()> {
        times.last_length = held.len();
        (self.reply)(conn, held)
    }

    fn closed(&mut self, closed: &Closed, times: Option<Times>, _commands: &mut Commands) {
        let times = times.expect("opened before it is closed");
        let since_request = times.first_request.map(|first_request| first_request.elapsed());
        let history = History {
            closed: closed.clone(),
            lifetime: times.opened.elapsed(),
            since_request,
            last_length: times.last_length,
        };
        self.histories.borrow_mut().push(history);
    }
}

type Histories = Rc<RefCell<Vec<History>>>;

fn recording_manager<F>(config: Config, reply: F) -> (Manager<Recorder<F>>, Histories)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    // Reserve the space, so that it does not count as memory of a connection.
    let histories: Histories = Rc::new(RefCell::new(Vec::with_capacity(32_768)));
    let recorder = Recorder { histories: histories.clone(), reply };
    let mut manager = Manager::with_handler(config, recorder).expect("a configuration");
    manager.start().expect("start");
    (manager, histories)
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(NEVER).request_deadline(NEVER)
}

/// Echoes complete lines. Does not answer a partial line.
fn echo_line(conn: &mut Conn<'_>, body: &[u8]) -> io::Result<()> {
    if conn.cause() != Cause::Framed {
        return Ok(());
    }
    conn.write_all(body)?;
    conn.write_all(b"\n")
}

/// Checks that there are `count` histories and that all of them end with `reason`.
#[track_caller]
fn assert_all_ended<'a>(
    histories: impl IntoIterator<Item = &'a History>,
    reason: CloseReason,
    count: usize,
) {
    let mut ended = 0;
    for history in histories {
        ended += 1;
        assert_eq!(
            history.closed.reason, reason,
            "{:?} after {:?}",
            history.closed, history.lifetime
        );
    }
    assert_eq!(ended, count, "{reason}");
}

/// Returns the shortest and the longest of the times.
fn range(times: impl Iterator<Item = Duration> + Clone) -> (Duration, Duration) {
    (times.clone().min().unwrap_or_default(), times.max().unwrap_or_default())
}

// Silent peers.

#[test]
fn ten_thousand_silent_peers_expire_and_use_little_memory() {
    const NAME: &str = "ten_thousand_silent_peers_expire_and_use_little_memory";
    const PEERS: usize = 10_000;
    /// Maximum memory per peer, without the memory that the kernel uses for the socket.
    const BYTES_PER_PEER: u64 = 512;
    let idle = Duration::from_secs(4);
    let silence = |addrs: &[SocketAddr]| {
        let peers: Vec<_> = addrs.iter().cycle().take(PEERS).map(|&addr| connect(addr)).collect();
        for mut peer in peers {
            assert_eq!(peer.read(&mut [0]).expect("an end of file"), 0);
        }
    };
    if is_attacker(silence) {
        return;
    }
    run_server(NAME, 12_000, || {
        let config = lines().clients_deadline(idle).max_workers(PEERS + 1);
        let (mut manager, histories) = recording_manager(config, echo_line);
        let addrs = listen_on_many(&mut manager, 4);
        let (open, used) = (descriptors(), resident_bytes());
        let attackers = Attackers::spawn(&addrs);
        let all = PEERS as u64;
        turn_until(&mut manager, |manager| manager.stats().live == all);
        let grown = resident_bytes().saturating_sub(used);
        let delay_before = run_delay();
        let bystander = Bystander::start(addrs[0]);
        turn_until(&mut manager, |manager| manager.stats().live == all + 1);
        let mut refused = connect(addrs[0]);
        turn_until(&mut manager, |manager| manager.stats().busy == 1);
        let mut message = String::new();
        refused.read_to_string(&mut message).expect("the message to a refused connection");
        assert_eq!(message, ERROR_SERVER_BUSY);
        drop(refused);
        turn_until(&mut manager, |_| histories.borrow().len() == PEERS);
        let slack = slack_since(delay_before);
        attackers.finish(&mut manager);
        let delays = bystander.finish(&mut manager);
        let second_bystander = Bystander::start(addrs[0]);
        turn_until(&mut manager, |manager| manager.stats().put == all + 2);
        second_bystander.finish(&mut manager).assert_served();

        let histories = histories.take();
        let lifetimes = range(histories[..PEERS].iter().map(|history| history.lifetime));
        eprintln!(
            "silence: {PEERS} peers, {} bytes each; lifetimes {lifetimes:.2?}; {delays}",
            grown / all,
        );
        assert_all_ended(&histories[..PEERS], CloseReason::Expired, PEERS);
        for history in &histories[..PEERS] {
            assert!((idle..=idle + slack).contains(&history.closed.age), "{:?}", history.closed);
            assert!(history.lifetime.abs_diff(idle) <= slack, "{:?}", history.lifetime);
            assert_eq!(
                (history.last_length, history.closed.bytes_in),
                (0, 0),
                "a callback with data"
            );
        }
        let stats = manager.stats();
        let calls = (stats.requests(Cause::Expired), stats.incomplete(Cause::Expired));
        assert_eq!(calls, (0, all), "one empty callback for each");
        assert!(grown <= all * BYTES_PER_PEER, "{} bytes per peer", grown / all);
        delays.assert_served();
        assert_nothing_left(&mut manager, open);
    });
}

// Slow senders.

/// Peers that send single bytes, just often enough not to be idle.
#[derive(Clone, Copy)]
struct SlowSenders {
    peers: usize,
    every: Duration,
    idle: Duration,
    total: Duration,
}

impl SlowSenders {
    /// Runs the clients. Prints the longest interval between two bytes, in milliseconds.
    fn clients(self, addrs: &[SocketAddr]) {
        let began = Instant::now();
        let connect_sender = |&addr| {
            let mut peer = connect(addr);
            peer.write_all(b"x").expect("a first byte");
            peer.set_nonblocking(true).expect("non-blocking");
            (peer, Instant::now())
        };
        let mut peers: Vec<_> = addrs.iter().cycle().take(self.peers).map(connect_sender).collect();
        let mut longest = Duration::ZERO;
        for sweep in 1.. {
            // The clients sleep, because the attack is to send at a low rate.
            thread::sleep((began + self.every * sweep).saturating_duration_since(Instant::now()));
            peers.retain_mut(|(peer, last_sent)| {
                let no_end = peer.read(&mut [0]).is_err_and(|error| would_block(&error));
                let open = no_end && peer.write(b"x").is_ok();
                if open {
                    longest = longest.max(last_sent.elapsed());
                    *last_sent = Instant::now();
                }
                open
            });
            if peers.is_empty() {
                break;
            }
        }
        eprintln!("{}", longest.as_millis());
    }

    fn server(self) {
        // If the machine delays the bytes, the peers are closed as idle. Such a run proves nothing.
        for _ in 0..3 {
            if self.run_once() {
                return;
            }
        }
        panic!("the bytes were late three times: this machine is too busy");
    }

    /// Returns false if the bytes were late. Such a run proves nothing.
    fn run_once(self) -> bool {
        let config = lines().clients_deadline(self.idle).request_deadline(self.total);
        let (mut manager, histories) = recording_manager(config, echo_line);
        let addrs = listen_on_many(&mut manager, 4);
        let (open, delay_before) = (descriptors(), run_delay());
        let bystander = Bystander::start(addrs[0]);
        let output = Attackers::spawn(&addrs).finish(&mut manager);
        let slack = slack_since(delay_before);
        let longest = Duration::from_millis(output.trim().parse().expect("milliseconds"));
        if longest >= self.idle {
            return false;
        }
        assert_eq!(manager.stats().live, 1, "only the bystander is left");
        let delays = bystander.finish(&mut manager);

        let histories = histories.take();
        let lifetimes = range(histories[..self.peers].iter().map(|history| history.lifetime));
        eprintln!(
            "slow senders: {} peers, a byte every {:.2?} (at most {longest:.2?}), idle at {:.2?}; \
             lifetimes {lifetimes:.2?}; {delays}",
            self.peers, self.every, self.idle,
        );
        assert_all_ended(&histories[..self.peers], CloseReason::Expired, self.peers);
        let bytes_min = self.total.saturating_sub(SLACK).as_millis() / self.every.as_millis();
        for history in &histories[..self.peers] {
            assert!(
                history.closed.age >= self.total,
                "closed before the deadline: {:?}",
                history.closed
            );
            let late = history.lifetime.saturating_sub(self.total);
            assert!(late <= slack, "{late:?} late: {:?}", history.closed);
            assert_eq!(
                history.closed.bytes_in, history.last_length as u64,
                "all bytes in one last call"
            );
            assert!(
                history.last_length as u128 >= bytes_min,
                "the peer was idle, not slow: {:?}",
                history.closed
            );
        }
        delays.assert_served();
        assert_nothing_left(&mut manager, open);
        true
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

#[test]
fn a_thousand_slow_senders_are_closed_at_the_request_deadline() {
    const NAME: &str = "a_thousand_slow_senders_are_closed_at_the_request_deadline";
    let millis = Duration::from_millis;
    let senders =
        SlowSenders { peers: 1_000, every: millis(450), idle: millis(750), total: millis(3_000) };
    if is_attacker(|addrs: &[_]| senders.clients(addrs)) {
        return;
    }
    run_server(NAME, 2_000, || senders.server());
}

#[test]
// CI runs the ignored tests of this file.
#[ignore = "takes as long as the default request deadline, half a minute"]
fn a_thousand_senders_of_a_byte_per_2_9_s_are_closed_after_30_s() {
    const NAME: &str = "a_thousand_senders_of_a_byte_per_2_9_s_are_closed_after_30_s";
    let Config { clients_deadline: idle, request_deadline, .. } = Config::new();
    let total = request_deadline.unwrap();
    let senders = SlowSenders { peers: 1_000, every: Duration::from_millis(2_900), idle, total };
    if is_attacker(|addrs: &[_]| senders.clients(addrs)) {
        return;
    }
    run_server(NAME, 2_000, || senders.server());
}

// Peers that do not read.

/// The reply to one request of a peer that does not read.
const REPLY: [u8; 16 << 10] = [b'x'; 16 << 10];
/// The maximum number of replies to the request `all`. Together they are larger than any limit of
/// the test.
const REPLIES_MAX: usize = 256;

/// Binds a listener whose connections have small buffers in the kernel, so that unsent replies stay
/// in the memory of the manager.
fn small_buffer_listener() -> TcpListener {
    let listener = deep_listener([127, 0, 0, 1].into());
    socket2::SockRef::from(&listener).set_send_buffer_size(1).expect("send buffer");
    listener
}

fn connect_small_buffer(addr: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("socket");
    socket.set_recv_buffer_size(1).expect("receive buffer");
    socket.connect(&addr.into()).expect("connect");
    socket.set_nonblocking(true).expect("non-blocking");
    socket.into()
}

/// Connects peers that send requests and read nothing. Every tenth peer requests a reply that
/// exceeds the write limit. The others request one reply after the other.
fn request_without_reading(addrs: &[SocketAddr], peers: usize) {
    let connect_peer = |index| {
        let request: &[u8] = if index % 10 == 0 { b"all\n" } else { b"more\nmore\n" };
        (connect_small_buffer(addrs[0]), request)
    };
    let mut peers: Vec<_> = (0..peers).map(connect_peer).collect();
    let deadline = Instant::now() + TIMEOUT;
    while !peers.is_empty() {
        assert!(Instant::now() < deadline, "{} peers are still open", peers.len());
        peers.retain_mut(|(peer, request)| {
            peer.write(request).map_or_else(|error| would_block(&error), |_| true)
        });
        // Sleep, so that the server can use the core.
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_thousand_peers_that_never_read_are_closed_within_their_limit() {
    const NAME: &str = "a_thousand_peers_that_never_read_are_closed_within_their_limit";
    const PEERS: usize = 1_000;
    const OVER_LIMIT: usize = PEERS / 10;
    const LIMIT: usize = 128 << 10;
    /// The manager collects replies up to this size before it writes to the socket.
    const QUEUED_MAX: u64 = (64 << 10) + REPLY.len() as u64;
    let total = Duration::from_secs(3);
    let reply = |conn: &mut Conn<'_>, body: &[u8]| match body {
        b"more" => conn.write_all(&REPLY),
        b"all" => (0..REPLIES_MAX).try_for_each(|_| conn.write_all(&REPLY)),
        _ => echo_line(conn, body),
    };
    if is_attacker(|addrs: &[_]| request_without_reading(addrs, PEERS)) {
        return;
    }
    run_server(NAME, 2_000, || {
        let config = lines().clients_deadline(total / 2).request_deadline(total);
        let (mut manager, histories) = recording_manager(config.write_limit(LIMIT), reply);
        let listener = small_buffer_listener();
        let addrs = [listener.local_addr().expect("address")];
        manager.listen_on(listener).expect("listen");
        let (open, used, delay_before) = (descriptors(), resident_bytes(), run_delay());
        let bystander = Bystander::start(addrs[0]);
        let attackers = Attackers::spawn(&addrs);
        let mut max = 0;
        turn_until(&mut manager, |_| {
            max = max.max(resident_bytes());
            histories.borrow().len() == PEERS
        });
        let slack = slack_since(delay_before);
        attackers.finish(&mut manager);
        let delays = bystander.finish(&mut manager);

        let (histories, grown) = (histories.take(), max.saturating_sub(used));
        let (over_limit, stalled): (Vec<&History>, Vec<&History>) = histories[..PEERS]
            .iter()
            .partition(|history| history.closed.reason == CloseReason::WriteLimit);
        let ended = range(stalled.iter().filter_map(|history| history.since_request));
        eprintln!(
            "no reads: {PEERS} peers, {} KiB each at most, {} KiB unsent; closed {ended:.2?} after \
             the first request; {delays}",
            grown / PEERS as u64 / 1024,
            manager.stats().bytes_unsent / PEERS as u64 / 1024,
        );
        assert_eq!(over_limit.len(), OVER_LIMIT, "peers with a reply above the limit");
        assert_all_ended(stalled.iter().copied(), CloseReason::WriteStalled, PEERS - OVER_LIMIT);
        for history in stalled {
            assert!(
                (1..=QUEUED_MAX).contains(&history.closed.bytes_unsent),
                "{:?}",
                history.closed
            );
            assert!(
                history.since_request.is_some_and(|age| age <= total + slack),
                "{:?}",
                history.closed
            );
        }
        let unsent: u64 = histories.iter().map(|history| history.closed.bytes_unsent).sum();
        assert_eq!(manager.stats().bytes_unsent, unsent, "the counter agrees");
        assert!(
            manager.stats().peak > (PEERS - OVER_LIMIT) as u64,
            "all at the same time, and the bystander"
        );
        assert!(grown <= (PEERS * LIMIT + (16 << 20)) as u64, "{grown} bytes");
        delays.assert_served();
        assert_nothing_left(&mut manager, open);
    });
}

// Storms.

/// The maximum number of connections accepted from one listener per turn.
const ACCEPTS_MAX: u64 = 64;

/// Runs two threads that call `each` until it returns false. The arguments of `each` are the number
/// of previous calls on the same thread and an address. Returns the number of calls of `each` that
/// returned true.
fn storm(addrs: &[SocketAddr], each: impl Fn(u64, SocketAddr) -> bool + Sync) -> u64 {
    let run = |thread: u64| {
        let mut count = 0;
        while each(count, addrs[(2 * count + thread) as usize % addrs.len()]) {
            count += 1;
        }
        count
    };
    thread::scope(|scope| {
        let threads = [0, 1].map(|thread| scope.spawn(move || run(thread)));
        threads.into_iter().map(|thread| thread.join().expect("a client thread")).sum()
    })
}

/// Measures the maximum number of connections accepted in one turn.
struct Batch {
    max: u64,
    accepted: u64,
}

impl Batch {
    fn new<H: Handler>(manager: &Manager<H>) -> Self {
        Self { max: 0, accepted: manager.stats().accepted }
    }

    fn sample<H: Handler>(&mut self, manager: &Manager<H>) {
        let accepted = manager.stats().accepted;
        self.max = self.max.max(accepted - self.accepted);
        self.accepted = accepted;
    }
}

/// Opens `count` connections and resets each: at once, after half a request, or after a request
/// whose reply is not read.
fn reset_storm(addrs: &[SocketAddr], count: u64) {
    let opened = storm(addrs, |done, addr| {
        if done == count / 2 {
            return false;
        }
        let mut client = TcpStream::connect(addr).expect("connect");
        let request: &[u8] = [b"", &b"half a requ"[..], b"a request\n"][done as usize % 3];
        client.write_all(request).expect("send");
        reset(client);
        true
    });
    assert_eq!(opened, count);
}

fn test_reset_storm(name: &str, count: u64) {
    if is_attacker(|addrs: &[_]| reset_storm(addrs, count)) {
        return;
    }
    run_server(name, 4_000, || {
        let (mut manager, histories) = recording_manager(lines(), echo_line);
        let addrs = listen_on_many(&mut manager, 8);
        let open = descriptors();
        let bystander = Bystander::start(addrs[0]);
        let (began, attackers) = (Instant::now(), Attackers::spawn(&addrs));
        let mut batch = Batch::new(&manager);
        turn_until(&mut manager, |manager| {
            batch.sample(manager);
            histories.borrow().len() as u64 == count
        });
        let took = began.elapsed();
        attackers.finish(&mut manager);
        assert_eq!(manager.stats().live, 1);
        let delays = bystander.finish(&mut manager);

        let stats = manager.stats();
        let histories = histories.take();
        eprintln!(
            "resets: {count} in {took:.2?}, at most {} accepted in a turn; {delays}",
            batch.max
        );
        assert_all_ended(&histories[..count as usize], CloseReason::Reset, count as usize);
        assert!(batch.max <= ACCEPTS_MAX * addrs.len() as u64, "{} in one turn", batch.max);
        assert_eq!((stats.accepted, stats.put, stats.busy), (count + 1, count + 1, 0));
        assert_eq!((stats.closed(CloseReason::Reset), stats.accept_errors), (count, 0));
        // If a reset follows half a request, these bytes are dropped and not delivered.
        let dropped: u64 = histories.iter().map(|history| history.closed.bytes_dropped).sum();
        assert_eq!(stats.bytes_dropped, dropped);
        assert_eq!(stats.requests_total(), stats.requests(Cause::Framed));
        delays.assert_served();
        assert_nothing_left(&mut manager, open);
    });
}

#[test]
fn a_storm_of_twenty_thousand_resets_is_counted_exactly() {
    // The queues of the listeners can hold this many connections, so the kernel drops none.
    const NAME: &str = "a_storm_of_twenty_thousand_resets_is_counted_exactly";
    test_reset_storm(NAME, 20_000);
}

/// Opens connections until `time` has passed. Most clients close at once. Every sixteenth client
/// stays open. If more than `STAYING` of these clients are open, the oldest one closes. Another
/// thread checks the message to refused connections.
fn connect_and_close(addrs: &[SocketAddr], time: Duration) {
    const STAYING: usize = 1_500;
    let began = Instant::now();
    let staying = Mutex::new(VecDeque::new());
    let read_refusals = || {
        while began.elapsed() < time {
            let mut message = String::new();
            connect(addrs[0]).read_to_string(&mut message).expect("an end of file");
            assert_eq!(message, ERROR_SERVER_BUSY);
        }
    };
    let count = thread::scope(|scope| {
        scope.spawn(read_refusals);
        storm(addrs, |done, addr| {
            // `connect` fails if the kernel has no free port at the moment.
            if let (Ok(client), 0) = (TcpStream::connect(addr), done % 16) {
                let mut staying = staying.lock().expect("a queue");
                staying.push_back(client);
                if staying.len() > STAYING {
                    staying.pop_front();
                }
            }
            began.elapsed() < time
        })
    });
    eprintln!("{count}");
}

fn test_full_pool(name: &str, time: Duration) {
    /// The maximum number of lingering connections.
    const LINGERING: u64 = 256;
    const HELD: usize = 64;
    if is_attacker(|addrs: &[_]| connect_and_close(addrs, time)) {
        return;
    }
    run_server(name, 2_000, || {
        let (mut manager, histories) = recording_manager(lines().max_workers(HELD + 1), echo_line);
        let addrs = listen_on_many(&mut manager, 4);
        let open = descriptors();
        let held: Vec<TcpStream> = (0..HELD).map(|_| connect(addrs[0])).collect();
        let bystander = Bystander::start(addrs[0]);
        turn_until(&mut manager, |manager| manager.stats().live == HELD as u64 + 1);
        let (before, attackers) = (manager.stats(), Attackers::spawn(&addrs));
        let open_before = descriptors();
        let (mut lingering, mut most_open) = (0, 0);
        let until = Instant::now() + time;
        let mut batch = Batch::new(&manager);
        turn_until(&mut manager, |manager| {
            batch.sample(manager);
            if manager.stats().turns % 256 == 0 {
                // This sleep delays the loop, as a slow callback would, so that the queues fill.
                thread::sleep(Duration::from_millis(100));
            }
            lingering = lingering.max(manager.stats().lingering);
            most_open = most_open.max(descriptors());
            Instant::now() > until
        });
        let count: u64 = attackers.finish(&mut manager).trim().parse().expect("a count");
        // The connections that are still in the backlog must be refused before workers become free.
        while manager.turn(Some(Duration::ZERO)).expect("turn").accepted > 0 {}
        let delays = bystander.finish(&mut manager);
        drop(held);

        let stats = manager.stats();
        let turns = stats.turns - before.turns;
        eprintln!(
            "storm: {count} connections in {time:.2?}, {} refused, at most {} accepted in a turn \
             and {lingering} lingering, {turns} turns; {delays}",
            stats.busy, batch.max,
        );
        assert!(stats.busy > 1_000, "too few connections: {stats}");
        assert_eq!((stats.put, stats.peak), (before.put, before.put), "the pool was full");
        assert_eq!(stats.accepted, stats.put + stats.busy, "{stats}");
        assert!(batch.max <= ACCEPTS_MAX * addrs.len() as u64, "{} in one turn", batch.max);
        assert!((LINGERING / 2..=LINGERING).contains(&lingering), "{lingering} lingering");
        assert!(most_open <= open_before + LINGERING as usize, "{most_open} descriptors");
        delays.assert_served();
        assert_nothing_left(&mut manager, open);
        assert_all_ended(histories.borrow().iter(), CloseReason::Eof, HELD + 1);
    });
}

#[test]
fn a_storm_against_a_full_pool_does_not_delay_open_connections() {
    const NAME: &str = "a_storm_against_a_full_pool_does_not_delay_open_connections";
    test_full_pool(NAME, Duration::from_secs(3));
}

#[test]
// The long form, for CI.
#[ignore = "takes 20 seconds"]
fn a_long_storm_against_a_full_pool_does_not_delay_open_connections() {
    const NAME: &str = "a_long_storm_against_a_full_pool_does_not_delay_open_connections";
    test_full_pool(NAME, Duration::from_secs(20));
}

// Urgent data.

/// The value of urgent bytes. In-band bytes have other values.
const URGENT: u8 = b'!';

/// Sends in-band bytes with urgent bytes between them on every connection, and checks the echo.
/// Returns the number of sends.
fn burst(clients: &mut [TcpStream], rng: &mut Rng) -> u64 {
    let (mut bands, mut sends) = (Vec::new(), 0);
    for client in &mut *clients {
        let length = 2 + rng.below(100);
        let mut band = random_bytes(rng, length);
        band.iter_mut().filter(|byte| **byte == URGENT).for_each(|byte| *byte = b'.');
        let (before, after) = band.split_at(1 + rng.below(length - 1));
        client.write_all(before).expect("send");
        for _ in 0..=rng.below(4) {
            socket2::SockRef::from(&*client).send_out_of_band(&[URGENT]).expect("send");
            sends += 1;
        }
        client.write_all(after).expect("send");
        sends += 2;
        bands.push(band);
    }
    for (client, band) in clients.iter_mut().zip(bands) {
        let mut echo = vec![0; band.len()];
        client.read_exact(&mut echo).expect("all in-band bytes");
        assert!(echo == band, "the in-band bytes differ");
    }
    sends
}

#[test]
fn urgent_data_neither_spins_the_loop_nor_changes_in_band_data() {
    const NAME: &str = "urgent_data_neither_spins_the_loop_nor_changes_in_band_data";
    const PEERS: usize = 100;
    const ROUNDS: usize = 100;
    let idle_time = Duration::from_millis(500);
    // An urgent byte becomes in-band data when the next urgent byte replaces it.
    let echo_band = |conn: &mut Conn<'_>, body: &[u8]| {
        let band: Vec<u8> = body.iter().copied().filter(|&byte| byte != URGENT).collect();
        conn.write_all(&band)
    };
    run_server(NAME, 2_000, || {
        let (mut manager, _) = recording_manager(lines().framing(Framing::Drained), echo_band);
        let addrs = listen_on_many(&mut manager, 1);
        let open = descriptors();
        let bystander = Bystander::start(addrs[0]);
        let bursts = thread::spawn(move || {
            let mut clients: Vec<_> = (0..PEERS).map(|_| connect(addrs[0])).collect();
            let mut rng = Rng::new(1);
            let sends: u64 = (0..ROUNDS).map(|_| burst(&mut clients, &mut rng)).sum();
            for client in &clients {
                socket2::SockRef::from(client).send_out_of_band(&[URGENT]).expect("send");
            }
            (clients, sends)
        });
        turn_until(&mut manager, |_| bursts.is_finished());
        let delays = bystander.finish(&mut manager);
        let (clients, sends) = bursts.join().expect("all in-band bytes are echoed");
        turn_until(&mut manager, |manager| manager.stats().live == PEERS as u64);
        let busy = manager.stats();
        // The last urgent byte of each connection is never read.
        let until = Instant::now() + idle_time;
        turn_until(&mut manager, |_| Instant::now() > until);
        let rest = manager.stats();

        eprintln!(
            "urgent: {sends} sends, {} reads, {} turns; then in {idle_time:.0?} {} reads, {} \
             events; {delays}",
            busy.reads,
            busy.turns,
            rest.reads - busy.reads,
            rest.events - busy.events,
        );
        assert!(busy.reads <= 2 * sends && busy.turns <= 2 * sends, "{busy}");
        assert_eq!((rest.reads, rest.events), (busy.reads, busy.events), "the loop spins");
        // `turn_until` waits for 5 ms at a time.
        assert!(rest.turns - busy.turns <= 120, "{} turns without work", rest.turns);
        delays.assert_served();
        drop(clients);
        assert_nothing_left(&mut manager, open);
    });
}

// Passed descriptors.

/// Sends single bytes until `time` has passed, and passes as many descriptors with each byte as one
/// message can carry. Then checks that the server has closed all of them. Prints the number of
/// passed descriptors.
fn pass_for(path: &Path, time: Duration) {
    const PER_MESSAGE: usize = 253;
    let began = Instant::now();
    let mut clients: Vec<_> = (0..4)
        .map(|_| {
            let client = UnixStream::connect(path).expect("connect");
            client.set_read_timeout(Some(TIMEOUT)).expect("read timeout");
            client
        })
        .collect();
    let (mut observer, fd) = UnixStream::pair().expect("a pair");
    let fds = [fd.as_fd(); PER_MESSAGE];
    let mut passed = 0;
    while began.elapsed() < time {
        for client in &mut clients {
            assert_eq!(pass(client, b"x", &fds).expect("pass"), 1);
            passed += PER_MESSAGE;
        }
        for client in &mut clients {
            client.read_exact(&mut [0]).expect("an echo");
        }
    }
    drop(fd);
    observer.set_read_timeout(Some(TIMEOUT)).expect("read timeout");
    assert_eq!(observer.read(&mut [0]).expect("the other end is closed"), 0);
    eprintln!("{passed}");
}

fn test_passing(name: &str, time: Duration) {
    if is_attacker(|path: &[PathBuf]| pass_for(&path[0], time)) {
        return;
    }
    run_server(name, 2_000, || {
        let dir = Dir::new();
        let path = dir.path("s");
        let (mut manager, _) =
            recording_manager(lines().framing(Framing::Drained), |conn, body| conn.write_all(body));
        manager.listen_unix(&path).expect("listen");
        let addrs = listen_on_many(&mut manager, 1);
        let open = descriptors();
        let bystander = Bystander::start(addrs[0]);
        let mut attackers = Attackers::spawn(&[path.display()]);
        // The bystander adds two descriptors, one for each end. The attackers add four connections.
        let max = descriptors() + 2 + 4;
        let mut seen = 0;
        turn_until(&mut manager, |_| {
            seen = seen.max(descriptors());
            attackers.0.try_wait().expect("a child").is_some()
        });
        let passed: u64 = attackers.finish(&mut manager).trim().parse().expect("a count");
        let delays = bystander.finish(&mut manager);
        eprintln!("descriptors: {passed} passed in {time:.1?}, at most {seen} open; {delays}");
        assert!(passed > 10_000, "only {passed}");
        assert!(seen <= max, "{seen} descriptors, not {max}");
        delays.assert_served();
        assert_nothing_left(&mut manager, open);
    });
}

#[test]
fn descriptors_passed_by_peers_are_closed() {
    const NAME: &str = "descriptors_passed_by_peers_are_closed";
    test_passing(NAME, Duration::from_secs(1));
}

// Garbage.

/// Bytes that must not reach a terminal or a log.
const FORGED: &[u8] = b"\x1b]0;FORGED\x07\x1b[2J\r\n[ERROR pool_manager] FORGED\n\0";

/// Returns random bytes between escape sequences and forged log lines, with a newline at the end.
fn garbage(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = FORGED.to_vec();
    let length = rng.below(60_000);
    bytes.extend(random_bytes(rng, length));
    bytes.extend_from_slice(FORGED);
    bytes.push(b'\n');
    bytes
}

/// Sends garbage and checks its echo until `volume` bytes were exchanged.
fn exchange_garbage(mut client: TcpStream, seed: u64, volume: usize) {
    let (mut rng, mut done) = (Rng::new(seed), 0);
    while done < volume {
        let sent = garbage(&mut rng);
        client.write_all(&sent).expect("send");
        let mut echo = vec![0; sent.len()];
        client.read_exact(&mut echo).expect("an echo");
        assert!(echo == sent, "the echo differs");
        done += sent.len();
    }
}

/// Sends garbage to a server that may close at any time, and reconnects.
fn send_and_reconnect(addr: SocketAddr, seed: u64, volume: usize) {
    let (mut rng, mut done) = (Rng::new(seed), 0);
    while done < volume {
        let mut client = connect(addr);
        for _ in 0..=rng.below(4) {
            let sent = garbage(&mut rng);
            done += sent.len();
            if client.write_all(&sent).is_err() {
                break;
            }
        }
    }
}

/// Echoes all bytes with any framing.
fn echo_all(conn: &mut Conn<'_>, body: &[u8]) -> io::Result<()> {
    conn.write_all(body)?;
    if conn.cause() == Cause::Framed { conn.write_all(b"\n") } else { Ok(()) }
}

/// Returns an error or panics for some bodies. The message contains the body.
fn fail_with_body(conn: &mut Conn<'_>, body: &[u8]) -> io::Result<()> {
    let text = String::from_utf8_lossy(body);
    match body.iter().map(|&byte| usize::from(byte)).sum::<usize>() % 16 {
        1 => Err(io::Error::other(text)),
        2 => panic!("planned panic: {text}"),
        _ => echo_line(conn, body),
    }
}

fn frame_by_first_byte(held: &[u8]) -> Frame {
    match held[0] {
        7 => Frame::Invalid,
        length if held.len() > usize::from(length) => Frame::Complete(usize::from(length).max(1)),
        _ => Frame::Partial,
    }
}

/// Runs `client` on four threads and serves them until all have returned.
fn serve_four<H: Handler>(manager: &mut Manager<H>, client: impl Fn(SocketAddr, u64) + Sync) {
    let addrs = listen_on_many(manager, 1);
    let (open, addr, client) = (descriptors(), addrs[0], &client);
    thread::scope(|scope| {
        let threads = [1, 2, 3, 4].map(|seed| scope.spawn(move || client(addr, seed)));
        turn_until(manager, |_| threads.iter().all(thread::ScopedJoinHandle::is_finished));
    });
    assert_nothing_left(manager, open);
}

/// Fails if a logged line contains bytes of a peer.
#[track_caller]
fn assert_log_is_clean() {
    use log::Level::{Debug, Error, Info, Trace, Warn};
    let lines: Vec<String> =
        [Error, Warn, Info, Debug, Trace].into_iter().flat_map(logged).collect();
    assert!(lines.iter().any(|line| line.contains("closed after")), "a line about a close");
    for line in lines {
        let clean = !line.contains("FORGED") && !line.contains(char::is_control);
        assert!(clean, "logged: {}", line.escape_debug());
    }
}

fn test_garbage(name: &str, volume: usize) {
    run_server(name, 2_000, || {
        // Hide the messages of planned panics. The library leaves panic messages to the panic hook
        // of the program.
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.to_string().contains("planned panic: ") {
                others(info);
            }
        }));
        remember_log();
        let began = Instant::now();
        let config = lines().debug(true).buffer_size(1 << 16);
        let mut echoed = 0;
        for framing in [Framing::Drained, Framing::Delimited(b'\n')] {
            let (mut manager, _) = recording_manager(config.clone().framing(framing), echo_all);
            let volume = volume / 2;
            serve_four(&mut manager, |addr, seed| exchange_garbage(connect(addr), seed, volume));
            let stats = manager.stats();
            assert_eq!((stats.bytes_in, stats.bytes_dropped), (stats.bytes_out, 0));
            echoed += stats.bytes_in;
            assert_log_is_clean();
        }

        let prefix = Framing::LengthPrefixed { prefix: Prefix::U16Be, limit: Framing::NO_LIMIT };
        let mut sent = 0;
        for framing in [
            Framing::Delimited(b'\n'),
            prefix,
            Framing::custom(frame_by_first_byte),
            Framing::Filled,
        ] {
            let (mut manager, histories) =
                recording_manager(config.clone().framing(framing), fail_with_body);
            serve_four(&mut manager, |addr, seed| send_and_reconnect(addr, seed, volume / 4));

            let histories = histories.take();
            let stats = manager.stats();
            sent += stats.bytes_in;
            assert_eq!(histories.len() as u64, stats.put, "one close per put");
            assert!(stats.panics > 0 && stats.closed(CloseReason::Failed) > 0, "{stats}");
            assert_log_is_clean();
        }
        eprintln!(
            "garbage: {} MiB echoed, {} MiB rejected, {} KiB per second",
            echoed >> 20,
            sent >> 20,
            (u128::from(echoed + sent) / began.elapsed().as_millis()),
        );
    });
}

#[test]
fn garbage_is_echoed_or_rejected_and_never_logged() {
    const NAME: &str = "garbage_is_echoed_or_rejected_and_never_logged";
    test_garbage(NAME, 16 << 20);
}

#[test]
// The long form, for CI.
#[ignore = "takes half a minute"]
fn a_gigabyte_of_garbage_is_echoed_or_rejected_and_never_logged() {
    const NAME: &str = "a_gigabyte_of_garbage_is_echoed_or_rejected_and_never_logged";
    test_garbage(NAME, 256 << 20);
}
