//! Echo server: sends back what it receives. This is the main use of the pool in one short program.
//!
//! `cargo run --release --example reactor_echo`, then `nc 127.0.0.1 6263`.
//!
//! This file is complete: it uses nothing of `examples/common`.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Conn, Framing, Handler, Manager, StopReport};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

const HELP: &str = "\
Sends back what it receives, on one thread.

Usage: reactor_echo [OPTIONS]

  --listen ADDR              address to listen on [127.0.0.1:6263]
  --unix PATH                listen on a Unix domain socket as well
  --min N                    connections for which buffers stay allocated [0]
  --max N                    connections at a time; further ones get ERROR_SERVER_BUSY [no maximum]
  --buffer-size BYTES        longest body [5120]
  --deadline-ms MS           how long a connection may be silent [3000]
  --request-deadline-ms MS   how long a request may take to arrive; 0: no limit [30000]
  --framing KIND             filled: when the buffer is full, at end of file or at the deadline
                             drained: as soon as the socket has no more to read [default]
                             lines: each complete line, with its newline
  --spin-us MICROS           how long to poll before sleeping; lowers latency and uses the core [0]
  --stats-every SECS         print the counters every SECS seconds
  --debug                    log every connection
  --help                     print this text

The program logs to stderr. If stderr is a full pipe, the next log line blocks all connections.
Without --debug it logs only its start, its stop and warnings.
SIGINT or SIGTERM stops gracefully; a second one completes the stop at once.";

/// The listen backlog; the standard library uses 128.
const BACKLOG: i32 = 4096;

struct Options {
    listen: String,
    unix: Option<PathBuf>,
    stats_every: Option<Duration>,
    lines: bool,
    config: Config,
}

/// Returns exit code 2 for bad usage, which is a [`lexopt::Error`], and 1 for any other error.
fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    let (code, hint) = if error.is::<lexopt::Error>() { (2, "; try --help") } else { (1, "") };
    // `eprintln!` panics if stderr is closed.
    let _ = writeln!(io::stderr(), "reactor_echo: {error}{hint}");
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
    let mut options = Options {
        listen: "127.0.0.1:6263".into(),
        unix: None,
        stats_every: None,
        lines: false,
        config: Config::new().framing(Framing::Drained),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        options.config = match arg {
            Arg::Long("min") => config.min_workers(number(&mut parser, "--min")?),
            Arg::Long("max") => config.max_workers(number::<usize>(&mut parser, "--max")?),
            Arg::Long("buffer-size") => config.buffer_size(number(&mut parser, "--buffer-size")?),
            Arg::Long("deadline-ms") => {
                config.clients_deadline(millis(&mut parser, "--deadline-ms")?)
            }
            Arg::Long("request-deadline-ms") => {
                let limit = millis(&mut parser, "--request-deadline-ms")?;
                config.request_deadline(Some(limit).filter(|limit| !limit.is_zero()))
            }
            Arg::Long("spin-us") => {
                config.spin(Duration::from_micros(number(&mut parser, "--spin-us")?))
            }
            Arg::Long("debug") => config.debug(true),
            Arg::Long("framing") => {
                let framing = parser.value()?.parse_with(framing)?;
                options.lines = matches!(framing, Framing::Delimited(_));
                config.framing(framing)
            }
            Arg::Long("listen") => {
                options.listen = parser.value()?.string()?;
                config
            }
            Arg::Long("unix") => {
                options.unix = Some(parser.value()?.into());
                config
            }
            Arg::Long("stats-every") => {
                let seconds: u64 = number(&mut parser, "--stats-every")?;
                if seconds == 0 {
                    return Err("--stats-every: must be at least 1".into());
                }
                options.stats_every = Some(Duration::from_secs(seconds));
                config
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected()),
        };
    }
    Ok(Some(options))
}

fn framing(name: &str) -> Result<Framing, &'static str> {
    match name {
        "filled" => Ok(Framing::Filled),
        "drained" => Ok(Framing::Drained),
        "lines" => Ok(Framing::Delimited(b'\n')),
        _ => Err("the framings are filled, drained and lines"),
    }
}

fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let lines = options.lines;
    let echo = move |conn: &mut Conn<'_>, body: &[u8]| {
        conn.write_all(body)?;
        if lines {
            conn.write_all(b"\n")?;
        }
        Ok(())
    };
    let debug = options.config.debug;
    // An invalid configuration comes from the arguments.
    let mut manager = Manager::new(options.config, echo).map_err(usage)?;
    let listener = bind(&options.listen)?;
    let addr = listener.local_addr()?;
    let level = env_logger::Env::default().default_filter_or(if debug { "debug" } else { "info" });
    env_logger::Builder::from_env(level).init();
    manager.stop_on(signals()?)?;
    manager.start()?;
    manager.listen_on(listener)?;
    if let Some(path) = &options.unix {
        manager.listen_unix(path)?;
    }
    // With `filled`, a body that is shorter than the buffer is complete if the peer has sent the
    // end of file.
    let client = match manager.config().framing {
        Framing::Filled => "echo hello | nc -N",
        _ => "nc",
    };
    say(format_args!("listening on {addr}; try: {client} {} {}", addr.ip(), addr.port()));
    if let Some(path) = &options.unix {
        say(format_args!("listening on {0}; try: {client} -U {0}", path.display()));
    }
    let deadline = manager.config().clients_deadline;
    log::info!("a peer that is silent for {deadline:?} is closed; --deadline-ms changes that");
    let report = match options.stats_every {
        Some(every) => run_with_stats(&mut manager, every)?,
        None => manager.run()?,
    };
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}

/// Runs the manager as [`Manager::run`] does, and prints the counters at the given interval.
fn run_with_stats<H: Handler>(
    manager: &mut Manager<H>,
    every: Duration,
) -> Result<StopReport, pool_manager::Error> {
    let mut last_stats = Instant::now();
    loop {
        let left = every.saturating_sub(last_stats.elapsed());
        if let Some(report) = manager.turn(Some(left))?.stopped {
            return Ok(report);
        }
        if last_stats.elapsed() >= every {
            last_stats = Instant::now();
            say(manager.stats());
        }
    }
}

fn bind(addr: &str) -> Result<TcpListener, Box<dyn Error>> {
    let listener = TcpListener::bind(addr).map_err(|error| -> Box<dyn Error> {
        match error.kind() {
            // An error without a number comes from parsing `addr`.
            ErrorKind::InvalidInput if error.raw_os_error().is_none() => {
                usage(format!("{addr} is not HOST:PORT")).into()
            }
            ErrorKind::AddrInUse => format!("can't listen on {addr}: it is in use").into(),
            _ => format!("can't listen on {addr}: {error}").into(),
        }
    })?;
    socket2::SockRef::from(&listener).listen(BACKLOG)?;
    Ok(listener)
}

/// Marks an error as bad usage.
fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> lexopt::Error {
    lexopt::Error::Custom(error.into())
}

/// Parses the value of `option` as a number.
fn number<T>(parser: &mut lexopt::Parser, option: &str) -> Result<T, lexopt::Error>
where
    T: FromStr<Err: Into<Box<dyn Error + Send + Sync>>>,
{
    parser.value()?.parse().map_err(|error| format!("{option}: {error}").into())
}

/// Parses the value of `option` as whole milliseconds.
fn millis(parser: &mut lexopt::Parser, option: &str) -> Result<Duration, lexopt::Error> {
    number(parser, option).map(Duration::from_millis)
}

/// Returns a socket that receives a byte for each SIGINT or SIGTERM.
fn signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    pipe::register(SIGINT, write.try_clone()?)?;
    pipe::register(SIGTERM, write)?;
    Ok(read)
}

/// Prints a line to stdout. Unlike `println!`, it does not panic if stdout is closed.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
