//! Functions that examples share. They run a program and report its error in one line, print, log,
//! parse option values, stop on a signal, and bind a listener with a long backlog.
//!
//! `balanced`, `metrics`, `reactor_echo` and `tcp_ok` do not use this file: each of them is
//! complete in one file. To copy another example, copy this file with it.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use env_logger::Env;
use lexopt::ValueExt;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use socket2::{Domain, Protocol, Type};

/// The listen backlog. With the 128 of the standard library, some clients of a large burst have to
/// retry.
const BACKLOG: i32 = 4096;

/// Any error ends the program. A [`lexopt::Error`] stands for bad usage. [`usage`] creates such an
/// error.
pub(crate) type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Marks an error as bad usage.
pub(crate) fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> lexopt::Error {
    lexopt::Error::Custom(error.into())
}

/// Runs a program with its options, or prints `help` if `options` returns `None`.
///
/// Prints an error to stderr in one line. Returns exit code 2 for bad usage and 1 for any other
/// error.
pub(crate) fn main<O>(
    name: &str,
    help: &str,
    options: impl FnOnce() -> Result<Option<O>, lexopt::Error>,
    program: impl FnOnce(O) -> Result<()>,
) -> ExitCode {
    let outcome = match options() {
        Ok(Some(options)) => program(options),
        Ok(None) => {
            say(help);
            Ok(())
        }
        Err(error) => Err(error.into()),
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let (code, hint) = if error.is::<lexopt::Error>() { (2, "; try --help") } else { (1, "") };
    // `eprintln!` panics if stderr is closed.
    let _ = writeln!(io::stderr(), "{name}: {error}{hint}");
    ExitCode::from(code)
}

/// Prints a line to stdout. Unlike `println!`, it does not panic if stdout is closed.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Logs to stderr from `level` up. `RUST_LOG`, if set, replaces `level`.
pub(crate) fn log_from(level: &str) {
    env_logger::Builder::from_env(Env::default().default_filter_or(level)).init();
}

/// Parses the value of `option` as a number.
pub(crate) fn number<T>(parser: &mut lexopt::Parser, option: &str) -> Result<T, lexopt::Error>
where
    T: FromStr<Err: Into<Box<dyn Error + Send + Sync>>>,
{
    let value = parser.value()?;
    value.parse().map_err(|error| format!("{option}: {error}").into())
}

/// Parses the value of `option` as whole milliseconds.
pub(crate) fn millis(parser: &mut lexopt::Parser, option: &str) -> Result<Duration, lexopt::Error> {
    number(parser, option).map(Duration::from_millis)
}

/// Returns a socket that receives a byte for each SIGINT or SIGTERM. `Manager::stop_on` takes it.
pub(crate) fn signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    pipe::register(SIGINT, write.try_clone()?)?;
    pipe::register(SIGTERM, write)?;
    Ok(read)
}

/// Binds a listener with a long backlog. If `addr` resolves to several addresses, the first that
/// can be bound is used.
// `sharded` uses `bind_with` only.
#[allow(dead_code)]
pub(crate) fn bind(addr: &str) -> Result<TcpListener> {
    bind_with(addr, |_| Ok(()))
}

/// Binds a listener as [`bind`] does, but first calls `adapt`, which sets further socket options.
pub(crate) fn bind_with(
    addr: &str,
    adapt: impl Fn(&socket2::Socket) -> io::Result<()>,
) -> Result<TcpListener> {
    let failed = |error: io::Error| -> Box<dyn Error> {
        match error.kind() {
            io::ErrorKind::AddrInUse => format!("can't listen on {addr}: it is in use").into(),
            _ => format!("can't listen on {addr}: {error}").into(),
        }
    };
    let unknown = |error: io::Error| -> Box<dyn Error> {
        match error.kind() {
            io::ErrorKind::InvalidInput => usage(format!("{addr} is not HOST:PORT")).into(),
            _ => failed(error),
        }
    };
    let mut last_error = io::ErrorKind::AddrNotAvailable.into();
    for addr in addr.to_socket_addrs().map_err(unknown)? {
        match bind_one(addr, &adapt) {
            Ok(listener) => return Ok(listener),
            Err(error) => last_error = error,
        }
    }
    Err(failed(last_error))
}

fn bind_one(
    addr: SocketAddr,
    adapt: impl Fn(&socket2::Socket) -> io::Result<()>,
) -> io::Result<TcpListener> {
    let socket =
        socket2::Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    adapt(&socket)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
