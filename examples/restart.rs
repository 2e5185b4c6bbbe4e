//! Echo service that can be replaced while it runs, without a refused connection: the process hands
//! its listening socket over to a successor, which may be another version of the program.
//!
//! `cargo run --release --example restart`, then `nc 127.0.0.1 6263`, and `kill -HUP PID` with the
//! process ID that the program prints. Or let systemd hold the socket:
//! `systemd-socket-activate -l 6263 target/release/examples/restart`.
//!
//! Uses `main`, `say`, `log_from`, `millis`, `stop_flag` and `bind` of `examples/common`: start,
//! output, options, signals and the listener.

mod common;

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs};

use common::{Result, TURN, bind, log_from, millis, say, stop_flag};
use lexopt::{Arg, ValueExt};
use listenfd::ListenFd;
use pool_manager::{Config, Conn, Framing, Handler, ListenSocket, Manager};
use signal_hook::consts::SIGHUP;

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
SIGINT or SIGTERM stops gracefully; a second one ends the program at once.";

/// How long a successor may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

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
    let stop = stop_flag()?;
    let hangup = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGHUP, hangup.clone())?;
    manager.start()?;
    let (listener, origin) = match inherited()? {
        Some(listener) => (listener, "inherited"),
        None => (bind(&options.listen)?, "bound here"),
    };
    let addr = listener.local_addr()?;
    manager.listen_on(listener)?;
    say(listening(addr, origin));
    notify()?;
    let mut replaced = false;
    while !stop.load(Ordering::Relaxed) && !replaced {
        manager.turn(Some(TURN))?;
        if hangup.swap(false, Ordering::Relaxed) {
            replaced = hand_over(&mut manager)?;
        }
    }
    if replaced {
        finish(&mut manager, &stop)?;
    }
    let report = manager.stop()?;
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

/// Hands the listening socket over to a new process. Returns false, and listens again, if the new
/// process fails.
fn hand_over<H: Handler>(manager: &mut Manager<H>) -> Result<bool> {
    let listeners = manager.take_listeners();
    let outcome = start_successor(manager, &listeners);
    if let Err(error) = outcome {
        log::error!("there is no successor, going on: {error}");
        for listener in listeners {
            manager.listen_on(listener)?;
        }
        return Ok(false);
    }
    Ok(true)
}

/// Starts a new process and waits until it listens. Meanwhile this process serves its connections;
/// new ones wait in the accept queue of the socket.
fn start_successor<H: Handler>(manager: &mut Manager<H>, listeners: &[ListenSocket]) -> Result<()> {
    let ready = ReadySocket::new()?;
    let mut successor = spawn(listeners, &ready)?;
    let began = Instant::now();
    while !ready.is_notified()? {
        manager.turn(Some(Duration::from_millis(5)))?;
        if let Some(status) = successor.try_wait()? {
            return Err(format!("it has ended: {status}").into());
        }
        if began.elapsed() > START_TIMEOUT {
            successor.kill()?;
            successor.wait()?;
            return Err(format!("it does not listen after {START_TIMEOUT:?}").into());
        }
    }
    log::info!("handed over to process {}", successor.id());
    Ok(())
}

/// Runs this program again and passes it the socket as systemd does (`sd_listen_fds(3)`).
fn spawn(listeners: &[ListenSocket], ready: &ReadySocket) -> Result<Child> {
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
    Ok(successor?)
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
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path })
    }

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

/// Serves the remaining connections until they have ended, at most for twice the idle deadline.
fn finish<H: Handler>(manager: &mut Manager<H>, stop: &AtomicBool) -> Result<()> {
    let max = manager.config().clients_deadline * 2;
    let began = Instant::now();
    while manager.stats().live > 0 && began.elapsed() < max && !stop.load(Ordering::Relaxed) {
        manager.turn(Some(TURN))?;
    }
    Ok(())
}
