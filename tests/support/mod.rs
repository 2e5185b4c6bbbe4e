//! Helpers that the tests share. [`Rig`] is a manager with a recording handler; the test runs its
//! turns on the test's own thread. Most other helpers are for the client side.
//!
//! Helpers wait for a condition instead of sleeping: [`Rig::until`] runs turns until its condition
//! holds. If it does not hold within [`TIMEOUT`], the test fails and prints the record so far.

// Each test binary uses only a part of this module.
#![allow(dead_code)]

pub(crate) mod plain;

/// The seeded generator of the simulator. With the same seed, a failure can be reproduced.
#[allow(dead_code)]
#[allow(unreachable_pub)]
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

/// Time limit for any single wait in a test.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// A callback of the handler, with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Opened(ConnId),
    Request(ConnId, Cause, Vec<u8>),
    Incomplete(ConnId, Cause, Vec<u8>),
    ReadClosed(ConnId, Cause),
    Flushed(ConnId),
    Closed(ConnId, CloseReason),
    Undelivered(ConnId, Vec<u8>),
}

/// The callbacks of a rig's handler in order, and the details of each close. Shared with the test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record(pub(crate) Rc<RefCell<Vec<Seen>>>, pub(crate) Rc<RefCell<Vec<Closed>>>);

impl Record {
    pub(crate) fn all(&self) -> Vec<Seen> {
        self.0.borrow().clone()
    }

    /// Returns the bodies delivered so far, with their causes.
    pub(crate) fn requests(&self) -> Vec<(Cause, Vec<u8>)> {
        let request = |seen: &Seen| match seen {
            Seen::Request(_, cause, body) => Some((*cause, body.clone())),
            _ => None,
        };
        self.0.borrow().iter().filter_map(request).collect()
    }

    /// Returns the bytes that `incomplete` has got so far, with the causes.
    pub(crate) fn incomplete(&self) -> Vec<(Cause, Vec<u8>)> {
        let incomplete = |seen: &Seen| match seen {
            Seen::Incomplete(_, cause, held) => Some((*cause, held.clone())),
            _ => None,
        };
        self.0.borrow().iter().filter_map(incomplete).collect()
    }

    /// Returns the number of calls of `read_closed` so far.
    pub(crate) fn read_closed(&self) -> usize {
        self.0.borrow().iter().filter(|seen| matches!(seen, Seen::ReadClosed(..))).count()
    }

    /// Returns the bodies delivered for all connections except `id`, concatenated.
    pub(crate) fn of_others(&self, id: ConnId) -> Vec<u8> {
        let body = |seen: &Seen| match seen {
            Seen::Request(of, _, body) if *of != id => Some(body.clone()),
            _ => None,
        };
        self.0.borrow().iter().filter_map(body).flatten().collect()
    }

    /// Returns the reasons of all closes so far, in order.
    pub(crate) fn closed(&self) -> Vec<CloseReason> {
        let closed = |seen: &Seen| match seen {
            Seen::Closed(_, reason) => Some(*reason),
            _ => None,
        };
        self.0.borrow().iter().filter_map(closed).collect()
    }

    /// Returns the details of all closes so far, in order.
    pub(crate) fn ends(&self) -> Vec<Closed> {
        self.1.borrow().clone()
    }

    pub(crate) fn closed_with(&self, reason: CloseReason) -> bool {
        self.closed().contains(&reason)
    }
}

/// What a hook of a [`Recorder`] does after it has recorded its call. The bytes are the held bytes.
type Hook = Box<dyn FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>>;

/// A handler that records every callback and calls a closure to reply. A test can replace what
/// `opened`, `incomplete` and `read_closed` do. Otherwise they do what the defaults of the trait do.
pub(crate) struct Recorder<F> {
    record: Record,
    reply: F,
    opened: Hook,
    incomplete: Hook,
    read_closed: Hook,
}

impl<F> Handler for Recorder<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
        self.record.0.borrow_mut().push(Seen::Opened(conn.id()));
        (self.opened)(conn, b"")
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        let seen = Seen::Request(conn.id(), conn.cause(), body.to_vec());
        self.record.0.borrow_mut().push(seen);
        (self.reply)(conn, body)
    }

    fn incomplete(&mut self, conn: &mut Conn<'_>, (): &mut (), held: &[u8]) -> io::Result<()> {
        let seen = Seen::Incomplete(conn.id(), conn.cause(), held.to_vec());
        self.record.0.borrow_mut().push(seen);
        (self.incomplete)(conn, held)
    }

    fn read_closed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.record.0.borrow_mut().push(Seen::ReadClosed(conn.id(), conn.cause()));
        (self.read_closed)(conn, b"")
    }

    fn flushed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.record.0.borrow_mut().push(Seen::Flushed(conn.id()));
        Ok(())
    }

    fn closed(&mut self, end: &Closed, _: Option<()>, _commands: &mut Commands) {
        self.record.0.borrow_mut().push(Seen::Closed(end.id, end.reason));
        self.record.1.borrow_mut().push(end.clone());
    }

    fn undelivered(&mut self, id: ConnId, bytes: Vec<u8>, _commands: &mut Commands) {
        self.record.0.borrow_mut().push(Seen::Undelivered(id, bytes));
    }
}

/// A started manager and the record of its handler.
pub(crate) struct Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    pub(crate) manager: Manager<Recorder<F>>,
    pub(crate) record: Record,
}

/// Returns a rig that echoes every body.
pub(crate) fn echo(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    rig(config, |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body))
}

/// Returns a started rig whose handler calls `reply` for each body.
pub(crate) fn rig<F>(config: Config, reply: F) -> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let record = Record::default();
    let recorder = Recorder {
        record: record.clone(),
        reply,
        opened: Box::new(|_, _| Ok(())),
        incomplete: Box::new(|_, _| Ok(())),
        read_closed: Box::new(|conn, _| {
            conn.finish();
            Ok(())
        }),
    };
    let mut manager = Manager::with_handler(config, recorder).expect("a valid configuration");
    manager.start().expect("the manager starts");
    Rig { manager, record }
}

impl<F> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// Replaces what `opened` does after its call is recorded.
    pub(crate) fn on_opened(
        mut self,
        mut hook: impl FnMut(&mut Conn<'_>) -> io::Result<()> + 'static,
    ) -> Self {
        self.manager.handler_mut().opened = Box::new(move |conn, _| hook(conn));
        self
    }

    /// Replaces what `incomplete` does after its call is recorded.
    pub(crate) fn on_incomplete(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()> + 'static,
    ) -> Self {
        self.manager.handler_mut().incomplete = Box::new(hook);
        self
    }

    /// Replaces what `read_closed` does after its call is recorded.
    pub(crate) fn on_read_closed(
        mut self,
        mut hook: impl FnMut(&mut Conn<'_>) -> io::Result<()> + 'static,
    ) -> Self {
        self.manager.handler_mut().read_closed = Box::new(move |conn, _| hook(conn));
        self
    }

    /// Puts a TCP connection. Returns the client's end and the id of the connection.
    pub(crate) fn connect(&mut self) -> (TcpStream, ConnId) {
        let (client, ours) = pair();
        (client, self.manager.put(ours).expect("put"))
    }

    /// Runs one turn that does not wait.
    pub(crate) fn turn(&mut self) -> Turn {
        self.manager.turn(Some(Duration::ZERO)).expect("turn")
    }

    /// Runs turns until `done` returns true.
    #[track_caller]
    pub(crate) fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !done(self) {
            assert!(Instant::now() < deadline, "timed out: {:#?}", self.record.all());
            self.manager.turn(Some(Duration::from_millis(10))).expect("turn");
        }
    }

    /// Runs turns until a turn has no event, serves and accepts no connection, and changes neither
    /// the byte counters nor the number of closes.
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

    /// Runs turns until `time` has passed.
    #[track_caller]
    pub(crate) fn pass(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            let left = time.saturating_sub(began.elapsed());
            self.manager.turn(Some(left)).expect("turn");
        }
    }

    /// Runs turns until `time` has passed, and returns the number of turns. This number is small
    /// unless the loop spins.
    #[track_caller]
    pub(crate) fn turns_in(&mut self, time: Duration) -> u64 {
        let before = self.manager.stats().turns;
        self.pass(time);
        self.manager.stats().turns - before
    }

    /// Runs turns until the manager has read at least `count` bytes in total.
    #[track_caller]
    pub(crate) fn bytes_in(&mut self, count: u64) {
        self.until(|rig| rig.manager.stats().bytes_in >= count);
    }

    /// Runs turns until at least `count` bodies were delivered, and returns all of them.
    #[track_caller]
    pub(crate) fn requests(&mut self, count: usize) -> Vec<(Cause, Vec<u8>)> {
        self.until(|rig| rig.record.requests().len() >= count);
        self.record.requests()
    }

    /// Runs turns until `incomplete` was called, and returns all of its calls.
    #[track_caller]
    pub(crate) fn incomplete(&mut self) -> Vec<(Cause, Vec<u8>)> {
        self.until(|rig| !rig.record.incomplete().is_empty());
        self.record.incomplete()
    }

    /// Runs turns until a connection has closed, and returns the reason of the first close.
    #[track_caller]
    pub(crate) fn first_close(&mut self) -> CloseReason {
        self.until(|rig| !rig.record.closed().is_empty());
        self.record.closed()[0]
    }

    /// Runs turns until the client has read exactly `count` bytes.
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

    /// Runs turns until the client has read to the end of file, and returns the bytes before it.
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

/// Returns the two ends of a TCP connection over loopback. The first is the client's end, which has
/// `TCP_NODELAY` set.
pub(crate) fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    client.set_nodelay(true).expect("no delay");
    (client, listener.accept().expect("accept").0)
}

/// Returns the two ends of a Unix connection. Unlike on TCP, a read frees buffer space at once, and
/// no timer delays data. The client's end is wrapped in a `TcpStream`, because the rig's helpers
/// take that type.
pub(crate) fn unix_pair() -> (TcpStream, UnixStream) {
    let (client, ours) = UnixStream::pair().expect("pair");
    (TcpStream::from(std::os::fd::OwnedFd::from(client)), ours)
}

/// Closes a TCP connection with a reset.
pub(crate) fn reset(client: TcpStream) {
    let socket = socket2::Socket::from(client);
    socket.set_linger(Some(Duration::ZERO)).expect("linger");
}

/// Sets the client's receive buffer and our send buffer to the smallest size that the kernel
/// allows.
pub(crate) fn shrink_buffers(client: &TcpStream, ours: &TcpStream) {
    socket2::SockRef::from(client).set_recv_buffer_size(1).expect("receive buffer");
    socket2::SockRef::from(ours).set_send_buffer_size(1).expect("send buffer");
}

/// Returns the number of open descriptors of this process.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Returns the resident memory of this process.
pub(crate) fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).map_or(0, |pages| pages.parse::<u64>().expect("a number") * 4096)
}

/// Returns `count` random bytes.
pub(crate) fn random_bytes(rng: &mut Rng, count: usize) -> Vec<u8> {
    (0..count.div_ceil(8)).flat_map(|_| rng.number().to_le_bytes()).take(count).collect()
}

/// Connects a client with `TCP_NODELAY` set. Its reads and writes fail after [`TIMEOUT`].
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(addr).expect("connect");
    socket.set_nodelay(true).expect("no delay");
    with_timeouts(socket)
}

/// Sets the read and write timeouts of a socket to [`TIMEOUT`].
pub(crate) fn with_timeouts(socket: TcpStream) -> TcpStream {
    socket.set_read_timeout(Some(TIMEOUT)).expect("read timeout");
    socket.set_write_timeout(Some(TIMEOUT)).expect("write timeout");
    socket
}

/// Binds a listener whose accept queue is longer than the default of the standard library.
pub(crate) fn deep_listener(host: Ipv4Addr) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("socket");
    socket.bind(&SocketAddr::from((host, 0)).into()).expect("bind");
    socket.listen(4096).expect("listen");
    socket.into()
}

/// Listens on `hosts` loopback addresses, so that clients do not run out of ports while earlier
/// connections are in `TIME_WAIT`.
pub(crate) fn listen_on_many<H: Handler>(manager: &mut Manager<H>, hosts: u8) -> Vec<SocketAddr> {
    let listen = |host| {
        let listener = deep_listener([127, 0, 0, host].into());
        let addr = listener.local_addr().expect("address");
        manager.listen_on(listener).expect("listen");
        addr
    };
    (1..=hosts).map(listen).collect()
}

/// Runs turns until `done` returns true.
#[track_caller]
pub(crate) fn turn_until<H: Handler>(
    manager: &mut Manager<H>,
    mut done: impl FnMut(&mut Manager<H>) -> bool,
) {
    let deadline = Instant::now() + 3 * TIMEOUT;
    while !done(manager) {
        assert!(Instant::now() < deadline, "timed out: {}", manager.stats());
        manager.turn(Some(Duration::from_millis(5))).expect("turn");
    }
}

/// Runs turns until no connection is left, then checks the counters and the descriptors. The
/// clients must have closed their ends before.
#[track_caller]
pub(crate) fn assert_nothing_left<H: Handler>(manager: &mut Manager<H>, descriptors_before: usize) {
    turn_until(manager, |manager| {
        let stats = manager.stats();
        stats.live == 0 && stats.lingering == 0
    });
    let stats = manager.stats();
    assert_eq!(stats.closed_total(), stats.put, "closed once per put: {stats}");
    assert_eq!(descriptors(), descriptors_before, "descriptors: {stats}");
}

/// Sends bytes and descriptors (`SCM_RIGHTS`) in one message.
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

/// Writes `bytes` on another thread. This allows input that is larger than the kernel's buffers.
pub(crate) fn write_behind(
    client: &TcpStream,
    bytes: Vec<u8>,
) -> std::thread::JoinHandle<io::Result<()>> {
    let mut client = client.try_clone().expect("clone");
    std::thread::spawn(move || client.write_all(&bytes))
}

impl Record {
    /// Fails if a connection was opened or closed twice, or has a callback before `opened` or after
    /// `closed`, or a request after `read_closed`. Returns the number of open connections.
    #[track_caller]
    pub(crate) fn open_lives(&self) -> usize {
        let (mut open, mut ended) = (HashSet::new(), HashSet::new());
        let mut read_closed = HashSet::new();
        for seen in self.all() {
            match seen {
                Seen::Opened(id) => {
                    assert!(open.insert(id) && !ended.contains(&id), "{id} opened twice");
                }
                Seen::Closed(id, _) => {
                    assert!(open.remove(&id), "{id} closed twice or never opened");
                    ended.insert(id);
                }
                Seen::Request(id, ..) => {
                    assert!(open.contains(&id), "a request of {id}, which is not open");
                    assert!(!read_closed.contains(&id), "a request of {id} after its end of file");
                }
                Seen::ReadClosed(id, _) => {
                    assert!(open.contains(&id), "an end of file of {id}, which is not open");
                    assert!(read_closed.insert(id), "a second end of file of {id}");
                }
                Seen::Undelivered(..) => {}
                Seen::Incomplete(id, ..) | Seen::Flushed(id) => {
                    assert!(open.contains(&id), "callback for {id}, which is not open");
                }
            }
        }
        open.len()
    }
}

/// Environment variable of a process that runs a single test: the test's name.
pub(crate) const ALONE: &str = "POOL_MANAGER_TEST_ALONE";

/// Runs `test` in a separate process with a limit of `descriptors` open descriptors. No other test
/// opens descriptors there. `name` is the name of the calling test, including its module. At the
/// end, prints the standard error of the process.
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
    let stdout = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && stdout.contains("1 passed");
    assert!(passed, "{name} in a separate process: {stdout}{errors}");
    eprint!("{errors}");
}

/// Returns the arguments with which a test program runs one test and shows its output.
pub(crate) fn one_test(name: &str) -> [&str; 6] {
    [name, "--exact", "--include-ignored", "--nocapture", "--test-threads", "1"]
}

/// A logger that stores the logged lines, separately for each thread. It prints nothing.
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

/// Installs the logger and clears the lines of this thread.
pub(crate) fn remember_log() {
    // Another test of this process may have installed it already.
    let _ = log::set_logger(&Log);
    log::set_max_level(log::LevelFilter::Trace);
    LOGGED.with_borrow_mut(Vec::clear);
}

/// Returns the lines that this thread has logged at `level`.
pub(crate) fn logged(level: log::Level) -> Vec<String> {
    let at = |(of, line): &(log::Level, String)| (*of == level).then(|| line.clone());
    LOGGED.with_borrow(|lines| lines.iter().filter_map(at).collect())
}

/// A new temporary directory. It is removed with its contents on drop.
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

    /// Returns the names of the entries, sorted.
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
        // If this fails, a temporary directory is left behind, which does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}
