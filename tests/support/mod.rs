//! What the tests share: a manager whose handler writes down what it sees, driven turn by turn
//! on the test's own thread, and the other end of its connections.
//!
//! Nothing here sleeps and hopes: [`Rig::until`] turns the loop until something holds, and fails
//! the test with the record so far if it does not within [`PATIENCE`].

// Each test binary uses a part of this.
#![allow(dead_code)]

pub(crate) mod plain;

/// The generator of the simulator: seeded, so that a failure can be repeated.
#[allow(dead_code)]
#[path = "../../src/simnet/rng.rs"]
pub(crate) mod rng;

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rng::Rng;

use pool_manager::{
    Cause, CloseReason, Closed, Commands, Config, Conn, ConnId, Handler, Manager, Turn,
};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a handler saw, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Opened(ConnId),
    Request(ConnId, Cause, Vec<u8>),
    Flushed(ConnId),
    Closed(ConnId, CloseReason),
}

/// The record of a rig's handler, shared with the test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record(pub(crate) Rc<RefCell<Vec<Seen>>>, pub(crate) Rc<RefCell<Vec<Closed>>>);

impl Record {
    pub(crate) fn all(&self) -> Vec<Seen> {
        self.0.borrow().clone()
    }

    /// The bodies delivered so far, with why.
    pub(crate) fn requests(&self) -> Vec<(Cause, Vec<u8>)> {
        let request = |seen: &Seen| match seen {
            Seen::Request(_, cause, body) => Some((*cause, body.clone())),
            _ => None,
        };
        self.0.borrow().iter().filter_map(request).collect()
    }

    /// What was delivered for all connections but this one, as one stream.
    pub(crate) fn of_others(&self, id: ConnId) -> Vec<u8> {
        let body = |seen: &Seen| match seen {
            Seen::Request(of, _, body) if *of != id => Some(body.clone()),
            _ => None,
        };
        self.0.borrow().iter().filter_map(body).flatten().collect()
    }

    /// Why connections ended so far, in order.
    pub(crate) fn closed(&self) -> Vec<CloseReason> {
        let closed = |seen: &Seen| match seen {
            Seen::Closed(_, reason) => Some(*reason),
            _ => None,
        };
        self.0.borrow().iter().filter_map(closed).collect()
    }

    /// How connections ended so far, in order.
    pub(crate) fn ends(&self) -> Vec<Closed> {
        self.1.borrow().clone()
    }

    pub(crate) fn closed_with(&self, reason: CloseReason) -> bool {
        self.closed().contains(&reason)
    }
}

/// A handler that records everything and leaves the reply to a closure.
pub(crate) struct Recorder<F> {
    record: Record,
    reply: F,
}

impl<F> Handler for Recorder<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.record.0.borrow_mut().push(Seen::Opened(conn.id()));
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        let seen = Seen::Request(conn.id(), conn.cause(), body.to_vec());
        self.record.0.borrow_mut().push(seen);
        (self.reply)(conn, body)
    }

    fn flushed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.record.0.borrow_mut().push(Seen::Flushed(conn.id()));
        Ok(())
    }

    fn closed(&mut self, end: &Closed, (): (), _desk: &mut Commands) {
        self.record.0.borrow_mut().push(Seen::Closed(end.id, end.reason));
        self.record.1.borrow_mut().push(*end);
    }
}

/// A running manager under test.
pub(crate) struct Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    pub(crate) manager: Manager<Recorder<F>>,
    pub(crate) record: Record,
}

/// A rig that echoes every body.
pub(crate) fn echo(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    rig(config, |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body))
}

/// A rig that answers as `reply` says; started.
pub(crate) fn rig<F>(config: Config, reply: F) -> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let record = Record::default();
    let recorder = Recorder { record: record.clone(), reply };
    let mut manager = Manager::with_handler(config, recorder).expect("a valid configuration");
    manager.start().expect("the manager starts");
    Rig { manager, record }
}

impl<F> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// A TCP connection: the client's end, and the id of the one that was put.
    pub(crate) fn connect(&mut self) -> (TcpStream, ConnId) {
        let (client, ours) = pair();
        (client, self.manager.put(ours).expect("put"))
    }

    /// One turn that waits for nothing.
    pub(crate) fn turn(&mut self) -> Turn {
        self.manager.turn(Some(Duration::ZERO)).expect("turn")
    }

    /// Turns until `done` says so.
    #[track_caller]
    pub(crate) fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "it never came: {:#?}", self.record.all());
            self.manager.turn(Some(Duration::from_millis(10))).expect("turn");
        }
    }

    /// Turns until nothing is left to do and nothing more comes for a moment.
    #[track_caller]
    pub(crate) fn quiet(&mut self) {
        let mut last = None;
        self.until(|rig| {
            let turn = rig.manager.turn(Some(Duration::from_millis(5))).expect("turn");
            let stats = rig.manager.stats();
            let moved = last.replace((stats.bytes_in, stats.bytes_out, stats.closed_total()));
            turn.events == 0 && turn.served == 0 && turn.accepted == 0 && moved == last
        });
    }

    /// Turns until this much time has passed.
    #[track_caller]
    pub(crate) fn pass(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            let left = time.saturating_sub(began.elapsed());
            self.manager.turn(Some(left)).expect("turn");
        }
    }

    /// Turns until this much time has passed, and counts the turns: few, unless something spins.
    #[track_caller]
    pub(crate) fn turns_in(&mut self, time: Duration) -> u64 {
        let before = self.manager.stats().turns;
        self.pass(time);
        self.manager.stats().turns - before
    }

    /// Turns until `count` bytes were read in all.
    #[track_caller]
    pub(crate) fn bytes_in(&mut self, count: u64) {
        self.until(|rig| rig.manager.stats().bytes_in >= count);
    }

    /// Turns until `count` bodies were delivered, and returns them all.
    #[track_caller]
    pub(crate) fn requests(&mut self, count: usize) -> Vec<(Cause, Vec<u8>)> {
        self.until(|rig| rig.record.requests().len() >= count);
        self.record.requests()
    }

    /// Turns until a connection has closed, and returns why the first one did.
    #[track_caller]
    pub(crate) fn first_close(&mut self) -> CloseReason {
        self.until(|rig| !rig.record.closed().is_empty());
        self.record.closed()[0]
    }

    /// Turns until the client has read exactly `count` bytes.
    #[track_caller]
    pub(crate) fn read_exact(&mut self, client: &mut TcpStream, count: usize) -> Vec<u8> {
        client.set_nonblocking(true).expect("non-blocking");
        let (mut got, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
        self.until(|_| {
            let room = (count - got.len()).min(chunk.len());
            match client.read(&mut chunk[..room]) {
                Ok(0) => panic!("end of file after {} of {count} bytes", got.len()),
                Ok(n) => got.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error} after {} of {count} bytes", got.len()),
            }
            got.len() == count
        });
        got
    }

    /// Turns until the client has read to the end of file, and returns what came before it.
    #[track_caller]
    pub(crate) fn read_to_end(&mut self, client: &mut TcpStream) -> io::Result<Vec<u8>> {
        client.set_nonblocking(true)?;
        let (mut got, mut chunk, mut outcome) = (Vec::new(), vec![0; 64 << 10], None);
        self.until(|_| {
            match client.read(&mut chunk) {
                Ok(0) => outcome = Some(Ok(())),
                Ok(n) => got.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => outcome = Some(Err(error)),
            }
            outcome.is_some()
        });
        outcome.expect("an outcome").map(|()| got)
    }
}

/// Two ends of a TCP connection over loopback: the client's, which sends at once what it is
/// told to, and the other.
pub(crate) fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    client.set_nodelay(true).expect("no delay");
    (client, listener.accept().expect("accept").0)
}

/// Two ends of a Unix connection, where bytes taken make room at once and no timer of TCP is in
/// the way. The client's is dressed as what the rig reads from.
pub(crate) fn unix_pair() -> (TcpStream, UnixStream) {
    let (client, ours) = UnixStream::pair().expect("pair");
    (TcpStream::from(std::os::fd::OwnedFd::from(client)), ours)
}

/// Closes a connection so that its peer sees a reset.
pub(crate) fn reset(client: TcpStream) {
    let socket = socket2::Socket::from(client);
    socket.set_linger(Some(Duration::ZERO)).expect("linger");
}

/// Makes the kernel's buffers of both ends as small as it lets them be.
pub(crate) fn shrink_buffers(client: &TcpStream, ours: &TcpStream) {
    socket2::SockRef::from(client).set_recv_buffer_size(1).expect("receive buffer");
    socket2::SockRef::from(ours).set_send_buffer_size(1).expect("send buffer");
}

/// How many descriptors this process has open.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// How much memory this process has in use.
pub(crate) fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).map_or(0, |pages| pages.parse::<u64>().expect("a number") * 4096)
}

/// Returns `count` random bytes.
pub(crate) fn random_bytes(rng: &mut Rng, count: usize) -> Vec<u8> {
    (0..count.div_ceil(8)).flat_map(|_| rng.number().to_le_bytes()).take(count).collect()
}

/// A client that gives up after [`PATIENCE`], and sends at once what it is told to.
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(addr).expect("connect");
    socket.set_nodelay(true).expect("no delay");
    patient(socket)
}

pub(crate) fn patient(socket: TcpStream) -> TcpStream {
    socket.set_read_timeout(Some(PATIENCE)).expect("read timeout");
    socket.set_write_timeout(Some(PATIENCE)).expect("write timeout");
    socket
}

/// A listener with a long queue: the standard library's may be too short.
pub(crate) fn deep_listener(host: Ipv4Addr) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("socket");
    socket.bind(&SocketAddr::from((host, 0)).into()).expect("bind");
    socket.listen(4096).expect("listen");
    socket.into()
}

/// Listens on so many addresses, so that ports that wait out their last connection do not run
/// short.
pub(crate) fn listen_on_many<H: Handler>(manager: &mut Manager<H>, hosts: u8) -> Vec<SocketAddr> {
    let listen = |host| {
        let listener = deep_listener([127, 0, 0, host].into());
        let addr = listener.local_addr().expect("address");
        manager.listen_on(listener).expect("listen");
        addr
    };
    (1..=hosts).map(listen).collect()
}

/// Turns until `done` says so.
#[track_caller]
pub(crate) fn turn_until<H: Handler>(
    manager: &mut Manager<H>,
    mut done: impl FnMut(&mut Manager<H>) -> bool,
) {
    let deadline = Instant::now() + 3 * PATIENCE;
    while !done(manager) {
        assert!(Instant::now() < deadline, "it never came: {}", manager.stats());
        manager.turn(Some(Duration::from_millis(5))).expect("turn");
    }
}

/// Once the clients are gone, nothing is left of them.
#[track_caller]
pub(crate) fn assert_nothing_left<H: Handler>(manager: &mut Manager<H>, descriptors_before: usize) {
    turn_until(manager, |manager| {
        let stats = manager.stats();
        stats.live == 0 && stats.lingering == 0
    });
    let stats = manager.stats();
    assert_eq!(stats.closed_total(), stats.put, "each that was put was closed once: {stats}");
    assert_eq!(descriptors(), descriptors_before, "descriptors: {stats}");
}

/// Sends bytes with descriptors beside them.
pub(crate) fn pass(client: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    let head = size_of::<usize>() + 2 * size_of::<i32>();
    let length = head + fds.len() * size_of::<RawFd>();
    let mut control = Vec::new();
    control.extend(length.to_ne_bytes());
    control.extend(SOL_SOCKET.to_ne_bytes());
    control.extend(SCM_RIGHTS.to_ne_bytes());
    control.extend(fds.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()));
    control.resize(length.next_multiple_of(size_of::<usize>()), 0);
    let buffers = [IoSlice::new(bytes)];
    let message = socket2::MsgHdr::new().with_buffers(&buffers).with_control(&control);
    socket2::SockRef::from(client).sendmsg(&message, 0)
}

/// Writes all of `bytes` from another thread, for input larger than the kernel's buffers.
pub(crate) fn write_behind(
    client: &TcpStream,
    bytes: Vec<u8>,
) -> std::thread::JoinHandle<io::Result<()>> {
    let mut client = client.try_clone().expect("clone");
    std::thread::spawn(move || client.write_all(&bytes))
}

impl Record {
    /// Fails if a connection was closed twice, or was heard of after it was closed or before it
    /// was opened. Returns how many are open still.
    #[track_caller]
    pub(crate) fn open_lives(&self) -> usize {
        let (mut open, mut ended) = (HashSet::new(), HashSet::new());
        for seen in self.all() {
            match seen {
                Seen::Opened(id) => {
                    assert!(open.insert(id) && !ended.contains(&id), "{id} opened twice");
                }
                Seen::Closed(id, _) => {
                    assert!(open.remove(&id), "{id} closed twice, or never opened");
                    ended.insert(id);
                }
                Seen::Request(id, ..) | Seen::Flushed(id) => {
                    assert!(open.contains(&id), "{id} was heard of though it is not open");
                }
            }
        }
        open.len()
    }
}

/// Set for the process that a test runs in alone: the test's name.
pub(crate) const ALONE: &str = "POOL_MANAGER_TEST_ALONE";

/// Runs `test` in a process of its own, where nobody else opens descriptors, with at most
/// `descriptors` of them. `name` is the calling test's, with its module. What it writes to
/// standard error is passed on.
#[track_caller]
pub(crate) fn alone(name: &str, descriptors: u32, test: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some_and(|alone| alone == name) {
        return test();
    }
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().expect("this program"))
        .args(one_test(name))
        .env(ALONE, name)
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{name} on its own: {said}{errors}");
    eprint!("{errors}");
}

/// The arguments of a test program that run one test and let it speak.
pub(crate) fn one_test(name: &str) -> [&str; 6] {
    [name, "--exact", "--include-ignored", "--nocapture", "--test-threads", "1"]
}

/// Remembers what each thread logs; nothing is printed.
struct Log;

thread_local! {
    static LOGGED: RefCell<Vec<(log::Level, String)>> = const { RefCell::new(Vec::new()) };
}

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.with_borrow_mut(|lines| lines.push((record.level(), record.args().to_string())));
    }

    fn flush(&self) {}
}

/// Begins to remember what is logged; what this thread logged before is forgotten.
pub(crate) fn remember_log() {
    // Another test of this process may have done it already.
    let _ = log::set_logger(&Log);
    log::set_max_level(log::LevelFilter::Trace);
    LOGGED.with_borrow_mut(Vec::clear);
}

/// What this thread logged at `level`.
pub(crate) fn logged(level: log::Level) -> Vec<String> {
    let at = |(of, line): &(log::Level, String)| (*of == level).then(|| line.clone());
    LOGGED.with_borrow(|lines| lines.iter().filter_map(at).collect())
}

/// A fresh directory, removed with everything in it.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pm-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What is in it, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // Left behind, it is a test's litter in a temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}
