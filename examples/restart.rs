//! Echo service that can be replaced while it runs, without a refused connection. The process
//! passes its listening socket to a successor, which may be another version of the program.
//!
//! `cargo run --release --example restart`, then `nc 127.0.0.1 6263`, and `kill -HUP PID` with the
//! process ID that the program prints. Or let systemd hold the socket:
//! `systemd-socket-activate -l 6263 target/release/examples/restart`.
//!
//! Uses `main`, `say`, `log_from`, `millis`, `signals` and `bind` of `examples/common`: start,
//! output, options, signals and the listener.

mod common;

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs};

use common::{Result, bind, log_from, millis, say, signals};
use lexopt::{Arg, ValueExt};
use listenfd::ListenFd;
use pool_manager::{Config, Conn, Framing, Handle, Handler, ListenSocket, Manager, StopReport};
use signal_hook::consts::SIGHUP;
use signal_hook::low_level::pipe;

const HELP: &str = "\
Sends back each line. On SIGHUP, hands its listening socket over to a successor, so that no
connection is refused.

Usage: restart [OPTIONS]

  --listen ADDR       address to listen on [127.0.0.1:6263]; not used if a socket is inherited
                      from systemd (socket activation) or from a predecessor
  --deadline-ms MS    how long a connection may be silent; after a handover, connections may stay
                      for twice as long [3000]
  --help              print this text

On SIGHUP the process runs its program file again, with the same arguments. When the new process
listens, the old one stops accepting, serves its connections until they end, and exits. If the new
process fails, the old one continues. It notifies systemd when it is ready (Type=notify).
SIGINT or SIGTERM stops gracefully; a second one completes the stop at once.";

/// Maximum time that a successor may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// While a successor starts, a thread checks at this interval whether it has ended.
const START_CHECK: Duration = Duration::from_millis(20);

struct Options {
    listen: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("restart", HELP, options, serve)
}

/// Parses the arguments. Returns `None` for `--help`.
fn options() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        listen: "127.0.0.1:6263".into(),
        config: Config::new().framing(Framing::Delimited(b'\n')),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("listen") => options.listen = parser.value()?.string()?,
            Arg::Long("deadline-ms") => {
                let deadline = millis(&mut parser, "--deadline-ms")?;
                options.config = options.config.clients_deadline(deadline);
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected()),
        }
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<()> {
    let echo = |conn: &mut Conn<'_>, line: &[u8]| {
        conn.write_all(line)?;
        conn.write_all(b"\n")
    };
    let mut manager = Manager::new(options.config, echo)?;
    log_from("info");
    manager.stop_on(signals()?)?;
    let (hangups, write) = UnixStream::pair()?;
    pipe::register(SIGHUP, write)?;
    manager.start()?;
    let (listener, origin) = match inherited()? {
        Some(listener) => (listener, "inherited"),
        None => (bind(&options.listen)?, "bound here"),
    };
    let addr = listener.local_addr()?;
    manager.listen_on(listener)?;
    say(listening(addr, origin));
    notify()?;
    let (sender, events) = mpsc::channel();
    let notifier = Notifier { sender, handle: manager.handle() };
    pass_on(hangups, notifier.clone())?;
    let report = run(&mut manager, &events, &notifier)?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}

fn listening(addr: SocketAddr, origin: &str) -> String {
    let (ip, port) = (addr.ip(), addr.port());
    format!("listening on {addr}; {origin}; process {}; try: nc {ip} {port}", std::process::id())
}

/// Returns the listener that systemd or a predecessor has passed to this process, if any.
fn inherited() -> Result<Option<std::net::TcpListener>> {
    let listener = ListenFd::from_env().take_tcp_listener(0);
    Ok(listener.map_err(|error| format!("can't listen on the inherited socket: {error}"))?)
}

/// Notifies systemd or the predecessor that this process listens (`sd_notify(3)`).
fn notify() -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    UnixDatagram::unbound()?.send_to(b"READY=1", path).map(|_| ())
}

/// An event that a thread reports to the loop.
enum Event {
    /// SIGHUP has arrived.
    Hangup,
    /// The successor listens, or it has failed.
    Started(Result<u32, String>),
}

/// Sends events to the loop and wakes it.
#[derive(Clone)]
struct Notifier {
    sender: Sender<Event>,
    handle: Handle,
}

impl Notifier {
    /// Returns whether the loop is still running.
    fn send(&self, event: Event) -> bool {
        self.sender.send(event).is_ok() && self.handle.notify().is_ok()
    }
}

/// Starts a thread that sends an event for each SIGHUP. The thread ends with the process.
fn pass_on(mut hangups: UnixStream, notifier: Notifier) -> io::Result<()> {
    let run = move || while hangups.read_exact(&mut [0]).is_ok() && notifier.send(Event::Hangup) {};
    thread::Builder::new().name("hangups".into()).spawn(run).map(drop)
}

/// Runs turns until a stop is complete. On SIGHUP, starts a successor. When the successor listens,
/// this process stops accepting connections. It serves the remaining connections until they have
/// ended, but at most for twice the idle deadline.
fn run<H: Handler>(
    manager: &mut Manager<H>,
    events: &Receiver<Event>,
    notifier: &Notifier,
) -> Result<StopReport> {
    let max = manager.config().clients_deadline.saturating_mul(2);
    let (mut starting, mut replaced): (Option<JoinHandle<()>>, Option<Instant>) = (None, None);
    loop {
        let left = replaced.map(|since| max.saturating_sub(since.elapsed()));
        if let Some(report) = manager.turn(left)?.stopped {
            // Wait for the thread: the successor needs the socket to which it reports, and the
            // thread holds this socket.
            let _ = starting.map(JoinHandle::join);
            return Ok(report);
        }
        for event in events.try_iter() {
            match event {
                Event::Hangup if starting.is_some() || replaced.is_some() => {}
                Event::Hangup => starting = start_successor(manager, notifier)?,
                Event::Started(Ok(process)) => {
                    log::info!("handed over to process {process}");
                    drop(manager.take_listeners());
                    (starting, replaced) = (None, Some(Instant::now()));
                }
                Event::Started(Err(error)) => {
                    log::error!("there is no successor, going on: {error}");
                    starting = None;
                }
            }
        }
        if replaced.is_some_and(|since| manager.stats().live == 0 || since.elapsed() >= max) {
            return Ok(manager.stop()?);
        }
    }
}

/// Starts a new process, and a thread that waits until the process listens. Meanwhile this process
/// continues to accept connections. Returns `None` if the new process cannot be started.
fn start_successor<H: Handler>(
    manager: &mut Manager<H>,
    notifier: &Notifier,
) -> Result<Option<JoinHandle<()>>> {
    let listeners = manager.take_listeners();
    let spawned = spawn(&listeners);
    for listener in listeners {
        manager.listen_on(listener)?;
    }
    let (ready, successor) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => {
            log::error!("there is no successor, going on: {error}");
            return Ok(None);
        }
    };
    let notifier = notifier.clone();
    let wait = move || {
        let started = wait_until_ready(&ready, successor).map_err(|error| error.to_string());
        notifier.send(Event::Started(started));
    };
    Ok(Some(thread::Builder::new().name("successor".into()).spawn(wait)?))
}

/// Waits until the new process listens. Returns its ID.
fn wait_until_ready(ready: &ReadySocket, mut successor: Child) -> Result<u32> {
    let began = Instant::now();
    while !ready.is_notified()? {
        if let Some(status) = successor.try_wait()? {
            return Err(format!("it has ended: {status}").into());
        }
        if began.elapsed() > START_TIMEOUT {
            successor.kill()?;
            successor.wait()?;
            return Err(format!("it does not listen after {START_TIMEOUT:?}").into());
        }
    }
    Ok(successor.id())
}

/// Runs this program again and passes it the listener as systemd does (`sd_listen_fds(3)`). Returns
/// the socket to which the new process reports.
fn spawn(listeners: &[ListenSocket]) -> Result<(ReadySocket, Child)> {
    let ready = ReadySocket::new()?;
    let [listener] = listeners else { return Err("there is not one listener".into()) };
    let fd = listener.fd().ok_or("the listener has no descriptor")?;
    let socket = socket2::SockRef::from(&fd);
    socket.set_cloexec(false)?;
    // The file at this path may be another version of the program by now.
    let mut command = Command::new(env::args_os().next().ok_or("this program has no name")?);
    command.args(env::args_os().skip(1));
    command.env("LISTEN_FDS", "1").env("LISTEN_FDS_FIRST_FD", fd.as_raw_fd().to_string());
    command.env_remove("LISTEN_PID").env("NOTIFY_SOCKET", &ready.path);
    let successor = command.spawn();
    socket.set_cloexec(true)?;
    Ok((ready, successor?))
}

/// The socket to which the successor sends `READY=1` when it listens, as a service does to systemd.
struct ReadySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl ReadySocket {
    fn new() -> io::Result<Self> {
        let path = env::temp_dir().join(format!("restart-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(START_CHECK))?;
        Ok(Self { socket, path })
    }

    /// Waits for the message, at most for [`START_CHECK`].
    fn is_notified(&self) -> io::Result<bool> {
        let mut message = [0; 64];
        match self.socket.recv(&mut message) {
            Ok(count) => Ok(&message[..count] == b"READY=1"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for ReadySocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
