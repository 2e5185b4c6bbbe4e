//! What the programs do alike: say what went wrong in one line, bind with a deep backlog,
//! and stop on a signal.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use env_logger::Env;
use lexopt::ValueExt;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use socket2::{Domain, Protocol, Type};

/// How long one turn may wait, so that a signal between two turns is soon noticed.
pub(crate) const TURN: Duration = Duration::from_millis(200);

/// More than std asks for: a burst of connections waits here rather than being refused.
const BACKLOG: i32 = 4096;

pub(crate) enum Failure {
    /// The arguments make no sense: exit code 2.
    Usage(Box<dyn Error>),
    /// Something failed at run time: exit code 1.
    Run(Box<dyn Error>),
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::Usage(error.into())
    }
}

pub(crate) fn run_error(error: impl Into<Box<dyn Error>>) -> Failure {
    Failure::Run(error.into())
}

pub(crate) fn usage_error(error: impl Into<Box<dyn Error>>) -> Failure {
    Failure::Usage(error.into())
}

/// Runs a program with its options, or prints its help if it has none: one line and an exit code
/// for whatever fails.
pub(crate) fn main<O>(
    name: &str,
    help: &str,
    options: impl FnOnce() -> Result<Option<O>, Failure>,
    program: impl FnOnce(O) -> Result<(), Failure>,
) -> ExitCode {
    let outcome = options().and_then(|options| {
        let Some(options) = options else {
            say(help);
            return Ok(());
        };
        program(options)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => complain(name, &format!("{error}; try --help"), 2),
        Err(Failure::Run(error)) => complain(name, &error, 1),
    }
}

fn complain(name: &str, error: &impl Display, code: u8) -> ExitCode {
    use io::Write;
    // With stderr closed there is nobody to tell, which is no reason to panic.
    let _ = writeln!(io::stderr(), "{name}: {error}");
    ExitCode::from(code)
}

/// Prints to stdout; a closed one ends the program quietly later, not with a panic here.
pub(crate) fn say(line: impl Display) {
    use io::Write;
    let _ = writeln!(io::stdout(), "{line}");
}

/// Logs to stderr, from this level on unless `RUST_LOG` says otherwise.
pub(crate) fn log_from(level: &str) {
    env_logger::Builder::from_env(Env::default().default_filter_or(level)).init();
}

/// The value of the option just parsed, as a whole number.
pub(crate) fn number<T>(parser: &mut lexopt::Parser, option: &str) -> Result<T, Failure>
where
    T: FromStr<Err: Into<Box<dyn Error + Send + Sync>>>,
{
    let value = parser.value()?;
    value.parse().map_err(|error| usage_error(format!("{option}: {error}")))
}

/// The value of the option just parsed, in whole milliseconds.
pub(crate) fn millis(parser: &mut lexopt::Parser, option: &str) -> Result<Duration, Failure> {
    number(parser, option).map(Duration::from_millis)
}

/// A flag that the first SIGINT or SIGTERM sets; the second ends the process at once.
pub(crate) fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Binds a listener with a deep backlog, on the first of the addresses that can be.
// One program shares its port.
#[allow(dead_code)]
pub(crate) fn bind(addr: &str) -> Result<TcpListener, Failure> {
    bind_with(addr, |_| Ok(()))
}

/// The same, with options of one's own.
pub(crate) fn bind_with(
    addr: &str,
    adapt: impl Fn(&socket2::Socket) -> io::Result<()>,
) -> Result<TcpListener, Failure> {
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => run_error(format!("can't listen on {addr}: it is in use")),
        _ => run_error(format!("can't listen on {addr}: {error}")),
    };
    let unknown = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidInput => usage_error(format!("{addr} is not HOST:PORT")),
        _ => cannot(error),
    };
    let mut refused = io::ErrorKind::AddrNotAvailable.into();
    for addr in addr.to_socket_addrs().map_err(unknown)? {
        match bind_one(addr, &adapt) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = error,
        }
    }
    Err(cannot(refused))
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
