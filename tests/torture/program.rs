//! The program under test: an echo server on the main thread, which strace traces, and its peers on
//! another thread. At the end it prints the failures and the descriptors that are still open. Then
//! it serves once more, to show that the manager is still usable.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use log::Level;
use pool_manager::{
    CloseReason, Closed, Commands, Config, Conn, ConnId, Error, Framing, Handler, Manager, Socket,
};

use crate::peers::Peers;
use crate::shared::{PutRequest, Scenario, Shared};
use crate::support::{descriptors, logged, remember_log};

/// The paths of two files that do not exist. The program looks up the first path before the part of
/// the run that is examined, and the second path after that part. The lookups mark the two places
/// in the log of strace.
pub(crate) const BEGIN: &str = "/torture/begin";
pub(crate) const END: &str = "/torture/end";

/// The number of copies of the request in a reply of [`Scenario::Blocked`].
pub(crate) const REPEATS: usize = 100_000;

/// The maximum wait of one turn, as in `reactor_echo`.
const TURN: Duration = Duration::from_millis(200);

/// Time limit for the whole program.
const LIMIT: Duration = Duration::from_secs(25);
pub(crate) const HANGS: i32 = 3;

/// Prefixes of the lines of the report.
pub(crate) const PEER_FAILED: &str = "peer failed: ";
pub(crate) const CALL_FAILED: &str = "call failed: ";
pub(crate) const WARNED: &str = "warned: ";
pub(crate) const CLOSED: &str = "closed: ";
pub(crate) const OPEN: &str = "still open: ";
pub(crate) const COUNTS: &str = "counts: ";

struct Echo {
    scenario: Scenario,
    opened: Sender<ConnId>,
    callbacks: Rc<Cell<(u64, u64)>>,
}

impl Handler for Echo {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
        let (opened, closed) = self.callbacks.get();
        self.callbacks.set((opened + 1, closed));
        // Only one scenario reads the channel.
        let _ = self.opened.send(conn.id());
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        let repeats = if self.scenario == Scenario::Blocked { REPEATS } else { 1 };
        conn.write_all(&body.repeat(repeats))
    }

    fn closed(&mut self, _: &Closed, _: Option<()>, _: &mut Commands) {
        let (opened, closed) = self.callbacks.get();
        self.callbacks.set((opened, closed + 1));
    }
}

struct Program {
    shared: Arc<Shared>,
    manager: Manager<Echo>,
    /// The errors that calls of the manager returned.
    failed: Vec<String>,
    running: bool,
    addr: Option<SocketAddr>,
}

/// Plays a scenario and prints a report. Panics if an expectation that must hold after any fault is
/// not met.
pub(crate) fn play(shared: Shared) {
    let shared = Arc::new(shared);
    thread::spawn(|| {
        // A watchdog that is never joined. The sleep of this thread ends only if the program hangs.
        thread::sleep(LIMIT);
        println!("the program hangs");
        process::exit(HANGS);
    });
    remember_log();
    let (opened, ids) = channel();
    let callbacks = Rc::new(Cell::new((0, 0)));
    let echo = Echo { scenario: shared.scenario, opened, callbacks: callbacks.clone() };
    let manager = Manager::with_handler(config(&shared), echo).expect("a manager");
    let failed = Vec::new();
    let mut program =
        Program { shared: shared.clone(), manager, failed, running: false, addr: None };
    if shared.scenario == Scenario::Unix {
        drop(UnixListener::bind(&shared.path).expect("a stale path"));
    }
    let before = descriptors();

    // In the first lookup, the standard library also tests whether the kernel has the system call.
    // This lookup is therefore not examined.
    mark(END);
    mark(BEGIN);
    let failures = program.serve(ids);
    mark(END);

    let after = descriptors();
    let (opened, closed) = callbacks.get();
    let stats = program.manager.stats();
    assert_eq!((opened, opened), (stats.put, stats.closed_total()), "{stats}");
    assert_eq!(opened, closed, "hooks");
    assert_eq!((stats.live, stats.lingering), (0, 0), "{stats}");
    assert_eq!(stats.panics, 0);
    if shared.scenario != Scenario::Handle {
        assert_eq!(stats.accepted, stats.put + stats.busy + stats.admit_failures, "{stats}");
    }
    program.report(&failures);
    if before != after {
        println!("{OPEN}{} more than before: {:?}", after - before, open());
    }
    program.run_again();
    assert_eq!(descriptors(), after, "descriptors left: {:?}", open());
}

fn config(shared: &Shared) -> Config {
    let config = Config::new().debug(true).clients_deadline(shared.deadline);
    let config = config.stop_deadline(2 * shared.deadline);
    match shared.scenario {
        Scenario::Restart => config.framing(Framing::Delimited(b'\n')),
        Scenario::Busy => config.framing(Framing::Drained).max_workers(1),
        _ => config.framing(Framing::Drained),
    }
}

/// Lists the open descriptors and their targets.
fn open() -> Vec<String> {
    let link = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        Some(format!("{} {}", path.display(), fs::read_link(&path).ok()?.display()))
    };
    fs::read_dir("/proc/self/fd").map_or(Vec::new(), |all| all.filter_map(link).collect())
}

fn mark(path: &str) {
    assert!(fs::metadata(path).is_err(), "{path} exists");
}

impl Program {
    /// Serves from the first start to the last stop. Returns the failures of the peers.
    fn serve(&mut self, opened: Receiver<ConnId>) -> Vec<String> {
        self.open();
        let (put_requests, requests) = channel();
        let (shared, handle) = (self.shared.clone(), self.manager.handle());
        let peers =
            thread::spawn(move || Peers { shared: &shared, handle, put_requests, opened }.play());
        while !self.shared.with_state(|state| state.done) {
            match self.manager.turn(Some(TURN)) {
                Ok(turn) => {
                    self.running = turn.stopped.is_none();
                    for request in requests.try_iter() {
                        self.run_put(request);
                    }
                }
                Err(error) => self.fail(&error),
            }
            let stats = self.manager.stats();
            self.shared.with_state(|state| state.stats = stats);
            if !self.running && !self.shared.with_state(|state| state.done) {
                self.open();
            }
        }
        let failures = peers.join().expect("no unexpected reply");
        if self.running {
            if let Err(error) = self.manager.stop() {
                self.fail(&error);
            }
        }
        failures
    }

    /// Starts and listens. Retries once after an error.
    fn open(&mut self) {
        if self.try_open().is_err() {
            if self.failed.last().is_some_and(|error| error.contains("in use")) {
                self.addr = None;
            }
            self.try_open().expect("the fault occurs only once");
        }
        self.shared.with_state(|state| {
            state.starts += 1;
            state.addr = self.addr;
        });
    }

    fn try_open(&mut self) -> Result<(), Error> {
        if !self.running {
            self.manager.start().inspect_err(|error| self.failed.push(error.to_string()))?;
            self.running = true;
        }
        self.listen().inspect_err(|error| self.failed.push(error.to_string()))
    }

    fn listen(&mut self) -> Result<(), Error> {
        let addr = self.addr.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        match self.shared.scenario {
            Scenario::Handle => return Ok(()),
            Scenario::Unix => return self.manager.listen_unix(&self.shared.path),
            Scenario::Blocked => {
                let failed = |source| Error::Listen { addr: addr.to_string(), source };
                let (listener, addr) = small_buffer_listener(addr).map_err(failed)?;
                self.manager.listen_on(listener)?;
                self.addr = Some(addr);
            }
            _ => self.addr = Some(self.manager.listen(addr)?),
        }
        Ok(())
    }

    fn fail(&mut self, error: &Error) {
        assert!(matches!(error, Error::Wait(_)), "{error}");
        self.failed.push(error.to_string());
        self.running = false;
    }

    /// Puts a socket. If a fault makes `put` fail, the returned socket is put again.
    fn run_put(&mut self, request: PutRequest) {
        match request {
            PutRequest::Put(socket) => {
                let Err(error) = self.manager.put(socket) else { return };
                self.failed.push(error.to_string());
                let socket: Socket = error.into_socket();
                self.manager.put(socket).expect("put, the second time");
            }
            PutRequest::PutByHandle(socket) => {
                self.manager.handle().put(socket).expect("put by a handle");
            }
        }
    }

    fn report(&self, failures: &[String]) {
        let stats = self.manager.stats();
        let by_fault = |line: &String| {
            line.contains("its socket failed") || line.contains(&CloseReason::Reset.to_string())
        };
        let (debug, warn, error) =
            (logged(Level::Debug), logged(Level::Warn), logged(Level::Error));
        let closed: Vec<String> = debug.into_iter().filter(by_fault).collect();
        let sections = [
            (PEER_FAILED, failures),
            (CALL_FAILED, &self.failed),
            (WARNED, &[warn, error].concat()),
            (CLOSED, &closed),
        ];
        for (what, lines) in sections {
            for line in lines {
                println!("{what}{line}");
            }
        }
        println!("{COUNTS}{} turns, {} lost; {stats}", stats.turns, stats.admit_failures);
    }

    /// Starts the same manager again with a single worker. The peer gets a reply only if no earlier
    /// connection still holds a worker. The system calls of this run are not examined.
    fn run_again(&mut self) {
        let config = self.manager.config().clone().max_workers(1);
        self.manager.set_config(config).expect("a configuration");
        self.manager.start().expect("start");
        let addr = self.manager.listen("127.0.0.1:0").expect("listen");
        let handle = self.manager.handle();
        let peer = thread::spawn(move || {
            let reply = ask(addr);
            // Stop even if the peer failed. Without a stop, the loop would not end.
            handle.stop().expect("stop");
            reply
        });
        self.manager.run().expect("the second run");
        let reply = peer.join().expect("a peer");
        assert_eq!(reply.expect("a reply"), *b"word");
    }
}

/// Sends a line and returns the reply.
fn ask(addr: SocketAddr) -> io::Result<[u8; 4]> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"word\n")?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

/// Binds a listener whose connections have a small send buffer.
fn small_buffer_listener(addr: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_send_buffer_size(32 << 10)?;
    socket.bind(&addr.into())?;
    socket.listen(128)?;
    let listener = TcpListener::from(socket);
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}
