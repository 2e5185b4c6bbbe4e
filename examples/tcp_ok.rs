//! Port of the program in the Go package that this crate replaces: a thread accepts connections and
//! puts them into the pool, and the pool answers each request with `OK`.
//!
//! `cargo run --release --example tcp_ok`, then `echo hello | nc -N 127.0.0.1 6263`.
//!
//! This file is complete: it uses nothing of `examples/common`.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use lexopt::{Arg, ValueExt};
use pool_manager::{Config, ERROR_SERVER_BUSY, Handle, Manager};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

const HELP: &str = "\
Serves 10 connections at a time. Answers OK to a request, ERROR to a connection that has sent
nothing until its deadline, and ERROR_SERVER_BUSY to the 11th connection.

Usage: tcp_ok [OPTIONS]

  --listen ADDR       address to listen on [127.0.0.1:6263]
  --deadline-ms MS    how long a connection may be silent before it is answered [3000]
  --help              print this text

A request is complete at 5120 bytes, at end of file or at the deadline. For an answer at once, close
the sending side after the request: echo hello | nc -N 127.0.0.1 6263
SIGINT or SIGTERM stops gracefully; a second one completes the stop at once.";

/// The wait after a failed accept. The program waits because the process may have run out of file
/// descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// The listen backlog; the standard library uses 128.
const BACKLOG: i32 = 4096;

struct Options {
    listen: String,
    config: Config,
}

/// Returns exit code 2 for bad usage, which is a [`lexopt::Error`], and 1 for any other error.
fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    let (code, hint) = if error.is::<lexopt::Error>() { (2, "; try --help") } else { (1, "") };
    // `eprintln!` panics if stderr is closed.
    let _ = writeln!(io::stderr(), "tcp_ok: {error}{hint}");
    ExitCode::from(code)
}

fn run() -> Result<(), Box<dyn Error>> {
    let Some(options) = options()? else {
        say(HELP);
        return Ok(());
    };
    serve(options)
}

/// Parses the arguments. Returns `None` for `--help`.
fn options() -> Result<Option<Options>, lexopt::Error> {
    let config = Config::new().min_workers(5).max_workers(10).buffer_size(5120);
    let mut options = Options { listen: "127.0.0.1:6263".into(), config };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("listen") => options.listen = parser.value()?.string()?,
            Arg::Long("deadline-ms") => {
                let millis = parser.value()?.parse();
                let millis = millis.map_err(|error| format!("--deadline-ms: {error}"))?;
                options.config = options.config.clients_deadline(Duration::from_millis(millis));
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected()),
        }
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let mut manager = Manager::new(options.config, |conn, body| {
        conn.write_all(if body.is_empty() { b"ERROR" } else { b"OK" })
    })?;
    let listener = bind(&options.listen)?;
    let addr = listener.local_addr()?;
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level).init();
    // The manager receives a byte for each signal.
    let (read, write) = UnixStream::pair()?;
    pipe::register(SIGINT, write.try_clone()?)?;
    pipe::register(SIGTERM, write)?;
    manager.stop_on(read)?;
    manager.start()?;
    say(format_args!("listening on {addr}; try: echo hello | nc -N {} {}", addr.ip(), addr.port()));
    let handle = manager.handle();
    // The thread ends with the process: nothing interrupts a blocking accept.
    thread::spawn(move || accept(&listener, &handle));
    let report = manager.run()?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}

/// Accepts connections and puts them into the pool.
fn accept(listener: &TcpListener, handle: &Handle) {
    let mut failing = false;
    loop {
        let (socket, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // Logs only the first failure of a series.
                if !std::mem::replace(&mut failing, true) {
                    log::warn!("can't accept, will try again: {error}");
                }
                thread::sleep(PAUSE);
                continue;
            }
        };
        failing = false;
        if let Err(refused) = handle.put(socket) {
            log::debug!("{refused}");
            // Fails if the peer has closed the connection already.
            let _ = handle.reject(refused.into_socket(), ERROR_SERVER_BUSY.as_bytes());
        }
    }
}

fn bind(addr: &str) -> Result<TcpListener, Box<dyn Error>> {
    let listener = TcpListener::bind(addr).map_err(|error| -> Box<dyn Error> {
        match error.kind() {
            // An error without a number comes from parsing `addr`.
            ErrorKind::InvalidInput if error.raw_os_error().is_none() => {
                lexopt::Error::from(format!("{addr} is not HOST:PORT")).into()
            }
            ErrorKind::AddrInUse => format!("can't listen on {addr}: it is in use").into(),
            _ => format!("can't listen on {addr}: {error}").into(),
        }
    })?;
    socket2::SockRef::from(&listener).listen(BACKLOG)?;
    Ok(listener)
}

/// Prints a line to stdout. Unlike `println!`, it does not panic if stdout is closed.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
