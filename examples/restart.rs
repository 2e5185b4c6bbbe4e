//! A service that is replaced while it runs, with nobody refused: the listening socket is handed
//! on to the successor, which may be another version of the program.
//!
//! `cargo run --release --example restart`, then `kill -HUP` it as often as you like, or let
//! systemd hold the socket: `systemd-socket-activate -l 6263 target/release/examples/restart`.

mod common;

use std::error::Error;
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

use common::{Failure, TURN, bind, log_from, millis, run_error, say, stop_flag};
use lexopt::{Arg, ValueExt};
use listenfd::ListenFd;
use pool_manager::{Config, Conn, Framing, Handler, ListenSocket, Manager};
use signal_hook::consts::SIGHUP;

const HELP: &str = "\
Echoes lines, and hands its listening socket on to a successor on SIGHUP: nobody is refused.

Usage: restart [OPTIONS]

  --listen ADDR       address to listen on [127.0.0.1:6263]; not used if a socket is inherited,
                      from systemd (socket activation) or from a predecessor
  --deadline-ms MS    how long a peer may be silent, and those of a predecessor may stay [3000]
  --help              this text

On SIGHUP it runs its own program again, with the same arguments. Once that one listens, this one
accepts nobody any more, serves those it has, and ends. If the successor fails, nothing changes.
It tells systemd when it is ready (Type=notify). SIGINT or SIGTERM stops gracefully.";

/// How long a successor may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);

struct Options {
    listen: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("restart", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
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
            unknown => return Err(unknown.unexpected().into()),
        }
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<(), Failure> {
    let echo = |conn: &mut Conn<'_>, line: &[u8]| {
        conn.write_all(line)?;
        conn.write_all(b"\n")
    };
    let mut manager = Manager::new(options.config, echo).map_err(run_error)?;
    log_from("info");
    let stop = stop_flag().map_err(run_error)?;
    let hangup = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGHUP, hangup.clone()).map_err(run_error)?;
    manager.start().map_err(run_error)?;
    let (listener, whence) = match inherited()? {
        Some(listener) => (listener, "inherited"),
        None => (bind(&options.listen)?, "bound here"),
    };
    let addr = listener.local_addr().map_err(run_error)?;
    manager.listen_on(listener).map_err(run_error)?;
    say(listening(addr, whence));
    notify().map_err(run_error)?;
    let mut replaced = false;
    while !stop.load(Ordering::Relaxed) && !replaced {
        manager.turn(Some(TURN)).map_err(run_error)?;
        if hangup.swap(false, Ordering::Relaxed) {
            replaced = hand_on(&mut manager)?;
        }
    }
    if replaced {
        finish(&mut manager, &stop)?;
    }
    let report = manager.stop().map_err(run_error)?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}

fn listening(addr: SocketAddr, whence: &str) -> String {
    let (ip, port) = (addr.ip(), addr.port());
    format!("listening on {addr}; {whence}; process {}; try: nc {ip} {port}", std::process::id())
}

/// The listener that systemd or a predecessor has given to this process, if one has.
fn inherited() -> Result<Option<std::net::TcpListener>, Failure> {
    let wrong = |error| run_error(format!("can't listen on the socket inherited: {error}"));
    ListenFd::from_env().take_tcp_listener(0).map_err(wrong)
}

/// Says that this process listens to whoever wants to know: systemd, or a predecessor.
fn notify() -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    UnixDatagram::unbound()?.send_to(b"READY=1", path).map(|_| ())
}

/// Starts a successor on the same socket. Whether it is there: if not, this one listens again.
fn hand_on<H: Handler>(manager: &mut Manager<H>) -> Result<bool, Failure> {
    let listeners = manager.take_listeners();
    let outcome = succeed(manager, &listeners);
    if let Err(error) = outcome {
        log::error!("there is no successor, going on: {error}");
        for listener in listeners {
            manager.listen_on(listener).map_err(run_error)?;
        }
        return Ok(false);
    }
    Ok(true)
}

/// Those who are here are served until the successor listens; those who come wait for it.
fn succeed<H: Handler>(
    manager: &mut Manager<H>,
    listeners: &[ListenSocket],
) -> Result<(), Box<dyn Error>> {
    let word = Word::new()?;
    let mut successor = spawn(listeners, &word)?;
    let began = Instant::now();
    while !word.has_come()? {
        manager.turn(Some(Duration::from_millis(5)))?;
        if let Some(status) = successor.try_wait()? {
            return Err(format!("it has ended: {status}").into());
        }
        if began.elapsed() > PATIENCE {
            successor.kill()?;
            successor.wait()?;
            return Err(format!("it does not listen after {PATIENCE:?}").into());
        }
    }
    log::info!("process {} goes on", successor.id());
    Ok(())
}

/// Runs this program again, with what systemd would tell it of its socket.
fn spawn(listeners: &[ListenSocket], word: &Word) -> Result<Child, Box<dyn Error>> {
    let [listener] = listeners else { return Err("there is not one listener".into()) };
    let fd = listener.fd().ok_or("it has no descriptor")?;
    let socket = socket2::SockRef::from(&fd);
    socket.set_cloexec(false)?;
    // By its name, at which there may be another version by now.
    let mut command = Command::new(env::args_os().next().ok_or("this program has no name")?);
    command.args(env::args_os().skip(1));
    command.env("LISTEN_FDS", "1").env("LISTEN_FDS_FIRST_FD", fd.as_raw_fd().to_string());
    command.env_remove("LISTEN_PID").env("NOTIFY_SOCKET", &word.path);
    let successor = command.spawn();
    socket.set_cloexec(true)?;
    Ok(successor?)
}

/// Where the successor says that it listens, as a service says it to systemd.
struct Word {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Word {
    fn new() -> io::Result<Self> {
        let path = env::temp_dir().join(format!("restart-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path })
    }

    fn has_come(&self) -> io::Result<bool> {
        let mut word = [0; 64];
        match self.socket.recv(&mut word) {
            Ok(count) => Ok(&word[..count] == b"READY=1"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Serves those who are here until they have left, or for twice as long as one may be silent.
fn finish<H: Handler>(manager: &mut Manager<H>, stop: &AtomicBool) -> Result<(), Failure> {
    let max = manager.config().clients_deadline * 2;
    let began = Instant::now();
    while manager.stats().live > 0 && began.elapsed() < max && !stop.load(Ordering::Relaxed) {
        manager.turn(Some(TURN)).map_err(run_error)?;
    }
    Ok(())
}
