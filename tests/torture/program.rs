//! The program that is tortured: an echo server on the main thread, which is the one that strace
//! looks at, and its peers on another. It says at the end what went wrong and what it has still
//! open, and then lives once more to show that nothing is.

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
use crate::scene::{Errand, Scenario, Scene};
use crate::support::{descriptors, logged, remember_log};

/// What strace sees when the part that is tortured begins and ends: a look at a file that is not
/// there.
pub(crate) const BEGIN: &str = "/torture/begin";
pub(crate) const END: &str = "/torture/end";

/// How often [`Scenario::Blocked`] answers with its request.
pub(crate) const REPEATS: usize = 100_000;

/// As in `reactor_echo`: how long one turn may wait.
const TURN: Duration = Duration::from_millis(200);

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(25);
pub(crate) const HANGS: i32 = 3;

/// Said between what peers missed, what calls returned and what was logged.
pub(crate) const MISSED: &str = "missed: ";
pub(crate) const FAILED: &str = "failed: ";
pub(crate) const WARNED: &str = "warned: ";
pub(crate) const CLOSED: &str = "closed: ";
pub(crate) const OPEN: &str = "still open: ";
pub(crate) const COUNTS: &str = "counts: ";

struct Echo {
    scenario: Scenario,
    opened: Sender<ConnId>,
    lives: Rc<Cell<(u64, u64)>>,
}

impl Handler for Echo {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        let (opened, closed) = self.lives.get();
        self.lives.set((opened + 1, closed));
        // Only one scenario listens to it.
        let _ = self.opened.send(conn.id());
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        let repeats = if self.scenario == Scenario::Blocked { REPEATS } else { 1 };
        conn.write_all(&body.repeat(repeats))
    }

    fn closed(&mut self, _: &Closed, (): (), _: &mut Commands) {
        let (opened, closed) = self.lives.get();
        self.lives.set((opened, closed + 1));
    }
}

struct Program {
    scene: Arc<Scene>,
    manager: Manager<Echo>,
    /// What calls returned that failed.
    failed: Vec<String>,
    running: bool,
    addr: Option<SocketAddr>,
}

/// Plays a scenario and reports on it; panics if something is wrong in any case.
pub(crate) fn play(scene: Scene) {
    let scene = Arc::new(scene);
    thread::spawn(|| {
        // The watchdog: nobody waits for it, and it is not reached unless something hangs.
        thread::sleep(LIMIT);
        println!("it hangs");
        process::exit(HANGS);
    });
    remember_log();
    let (opened, ids) = channel();
    let lives = Rc::new(Cell::new((0, 0)));
    let echo = Echo { scenario: scene.scenario, opened, lives: lives.clone() };
    let manager = Manager::with_handler(config(&scene), echo).expect("a manager");
    let failed = Vec::new();
    let mut program = Program { scene: scene.clone(), manager, failed, running: false, addr: None };
    if scene.scenario == Scenario::Unix {
        drop(UnixListener::bind(&scene.path).expect("a stale path"));
    }
    let before = descriptors();

    // The first look at a missing file also looks for the call itself.
    mark(END);
    mark(BEGIN);
    let missed = program.live(ids);
    mark(END);

    let after = descriptors();
    let (opened, closed) = lives.get();
    let stats = program.manager.stats();
    assert_eq!((opened, opened), (stats.put, stats.closed_total()), "{stats}");
    assert_eq!(opened, closed, "hooks");
    assert_eq!((stats.live, stats.lingering), (0, 0), "{stats}");
    assert_eq!(stats.panics, 0);
    if scene.scenario != Scenario::Handle {
        assert_eq!(stats.accepted, stats.put + stats.busy + stats.admit_failures, "{stats}");
    }
    program.report(&missed);
    if before != after {
        println!("{OPEN}{} more than before: {:?}", after - before, open());
    }
    program.live_again();
    assert_eq!(descriptors(), after, "descriptors left: {:?}", open());
}

fn config(scene: &Scene) -> Config {
    let config = Config::new().debug(true).clients_deadline(scene.deadline);
    let config = config.stop_deadline(2 * scene.deadline);
    match scene.scenario {
        Scenario::Restart => config.framing(Framing::Delimited(b'\n')),
        Scenario::Busy => config.framing(Framing::Drained).max_workers(1),
        _ => config.framing(Framing::Drained),
    }
}

/// Every descriptor there is, and what it is.
fn open() -> Vec<String> {
    let link = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        Some(format!("{} {}", path.display(), fs::read_link(&path).ok()?.display()))
    };
    fs::read_dir("/proc/self/fd").map_or(Vec::new(), |all| all.filter_map(link).collect())
}

fn mark(path: &str) {
    assert!(fs::metadata(path).is_err(), "{path} is there");
}

impl Program {
    /// From before the first start to after the last stop; what peers missed.
    fn live(&mut self, opened: Receiver<ConnId>) -> Vec<String> {
        self.open();
        let (errands, to_do) = channel();
        let (scene, handle) = (self.scene.clone(), self.manager.handle());
        let peers = thread::spawn(move || Peers { scene: &scene, handle, errands, opened }.play());
        while !self.scene.tell(|news| news.done) {
            match self.manager.turn(Some(TURN)) {
                Ok(turn) => {
                    self.running = turn.stopped.is_none();
                    for errand in to_do.try_iter() {
                        self.run_errand(errand);
                    }
                }
                Err(error) => self.fail(&error),
            }
            let stats = self.manager.stats();
            self.scene.tell(|news| news.stats = stats);
            if !self.running && !self.scene.tell(|news| news.done) {
                self.open();
            }
        }
        let missed = peers.join().expect("peers that understand what they hear");
        if self.running {
            if let Err(error) = self.manager.stop() {
                self.fail(&error);
            }
        }
        missed
    }

    /// Starts and listens. What fails once is tried again.
    fn open(&mut self) {
        if self.try_open().is_err() {
            if self.failed.last().is_some_and(|error| error.contains("in use")) {
                self.addr = None;
            }
            self.try_open().expect("a single fault does not come twice");
        }
        self.scene.tell(|news| {
            news.lives += 1;
            news.addr = self.addr;
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
        match self.scene.scenario {
            Scenario::Handle => return Ok(()),
            Scenario::Unix => return self.manager.listen_unix(&self.scene.path),
            Scenario::Blocked => {
                let failed = |source| Error::Listen { addr: addr.to_string(), source };
                let (listener, addr) = narrow_listener(addr).map_err(failed)?;
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

    /// A socket that is refused for a single fault comes back as it was.
    fn run_errand(&mut self, errand: Errand) {
        match errand {
            Errand::Put(socket) => {
                let Err(error) = self.manager.put(socket) else { return };
                self.failed.push(error.to_string());
                let socket: Socket = error.into_socket();
                self.manager.put(socket).expect("put, the second time");
            }
            Errand::PutByHandle(socket) => {
                self.manager.handle().put(socket).expect("put by a handle");
            }
        }
    }

    fn report(&self, missed: &[String]) {
        let stats = self.manager.stats();
        let by_fault = |line: &String| {
            line.contains("its socket failed") || line.contains(&CloseReason::Reset.to_string())
        };
        let (debug, warn, error) =
            (logged(Level::Debug), logged(Level::Warn), logged(Level::Error));
        let closed: Vec<String> = debug.into_iter().filter(by_fault).collect();
        let sections = [
            (MISSED, missed),
            (FAILED, &self.failed),
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

    /// The same manager once more, out of sight of strace. It has one place, which nobody may have
    /// kept.
    fn live_again(&mut self) {
        let config = self.manager.config().clone().max_workers(1);
        self.manager.set_config(config).expect("a configuration");
        self.manager.start().expect("start");
        let addr = self.manager.listen("127.0.0.1:0").expect("listen");
        let handle = self.manager.handle();
        let peer = thread::spawn(move || {
            let heard = ask(addr);
            // Whatever it heard, or the loop would not end.
            handle.stop().expect("stop");
            heard
        });
        self.manager.run().expect("a life without faults");
        let heard = peer.join().expect("a peer");
        assert_eq!(heard.expect("a reply"), *b"word");
    }
}

/// What comes back for a word.
fn ask(addr: SocketAddr) -> io::Result<[u8; 4]> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"word\n")?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

/// A listener whose connections have little room for what they send.
fn narrow_listener(addr: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_send_buffer_size(32 << 10)?;
    socket.bind(&addr.into())?;
    socket.listen(128)?;
    let listener = TcpListener::from(socket);
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}
