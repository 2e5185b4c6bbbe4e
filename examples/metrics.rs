//! Echo service with monitoring: Prometheus scrapes its counters over HTTP.
//!
//! `cargo run --release --example metrics`, then `curl http://127.0.0.1:6264/metrics`.
//!
//! Two managers share one thread. The second one answers scrapes. It has its own workers, framing
//! and deadlines, so that it answers even while the service is full. The thread can wait for the
//! events of only one manager, which is the service's manager. It therefore wakes every 20 ms and
//! runs turns of the other manager. A signal takes effect at once, because the service's manager
//! receives it.
//!
//! This file is complete: it uses nothing of `examples/common`.

use std::cell::Cell;
use std::error::Error;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant};

use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Conn, Frame, Framing, Handler, Manager, Stats};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

const HELP: &str = "\
Sends back what it receives, and serves its counters to Prometheus, on one thread.

Usage: metrics [OPTIONS]

  --listen ADDR         address of the echo service [127.0.0.1:6263]
  --metrics ADDR        address that answers GET /metrics [127.0.0.1:6264]
  --max N               connections of the service at a time [no maximum]
  --deadline-ms MS      how long a connection of the service may be silent [3000]
  --help                print this text

A scrape waits at most 20 ms until it is served.
SIGINT or SIGTERM stops gracefully; a second one completes the stop at once.";

/// The time between two visits to the manager that answers scrapes. Each visit costs at least one
/// system call. This time is also the longest wait of one turn of the service.
const PERIOD: Duration = Duration::from_millis(20);
/// The listen backlog; the standard library uses 128.
const BACKLOG: i32 = 4096;

struct Options {
    listen: String,
    metrics: String,
    config: Config,
}

/// Returns exit code 2 for bad usage, which is a [`lexopt::Error`], and 1 for any other error.
fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    let (code, hint) = if error.is::<lexopt::Error>() { (2, "; try --help") } else { (1, "") };
    // `eprintln!` panics if stderr is closed.
    let _ = writeln!(io::stderr(), "metrics: {error}{hint}");
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
        metrics: "127.0.0.1:6264".into(),
        config: Config::new().framing(Framing::Drained),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        match arg {
            Arg::Long("listen") => options.listen = parser.value()?.string()?,
            Arg::Long("metrics") => options.metrics = parser.value()?.string()?,
            Arg::Long("max") => {
                options.config = config.max_workers(number::<usize>(&mut parser, "--max")?);
            }
            Arg::Long("deadline-ms") => {
                let deadline = Duration::from_millis(number(&mut parser, "--deadline-ms")?);
                options.config = config.clients_deadline(deadline);
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected()),
        }
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let mut service = Manager::new(options.config, echo).map_err(usage)?;
    let latest = Rc::new(Cell::new(Stats::default()));
    let shown = latest.clone();
    let answer = move |conn: &mut Conn<'_>, head: &[u8]| answer(conn, head, &shown.get());
    let mut scrapes = Manager::new(scrapes_config(), answer).map_err(usage)?;
    let (echo_listener, metrics_listener) = (bind(&options.listen)?, bind(&options.metrics)?);
    let (echoes, metrics) = (echo_listener.local_addr()?, metrics_listener.local_addr()?);
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level).init();
    service.stop_on(signals()?)?;
    service.start()?;
    scrapes.start()?;
    service.listen_on(echo_listener)?;
    scrapes.listen_on(metrics_listener)?;
    say(format_args!("listening on {echoes}; try: nc {} {}", echoes.ip(), echoes.port()));
    say(format_args!("metrics on {metrics}; try: curl http://{metrics}/metrics"));
    let mut last_scrapes = Instant::now();
    let report = loop {
        if let Some(report) = service.turn(Some(PERIOD))?.stopped {
            break report;
        }
        if last_scrapes.elapsed() >= PERIOD {
            latest.set(service.stats());
            serve_scrapes(&mut scrapes)?;
            last_scrapes = Instant::now();
        }
    };
    scrapes.stop()?;
    say(format_args!("stopped: {report}; {}", service.stats()));
    Ok(())
}

/// Returns a configuration for few connections, whose requests end at the first empty line.
fn scrapes_config() -> Config {
    let head = |held: &[u8]| match held.windows(4).position(|end| end == b"\r\n\r\n") {
        Some(at) => Frame::Complete(at + 4),
        None => Frame::Partial,
    };
    Config::new().framing(Framing::custom(head)).max_workers(16)
}

/// Runs turns of the manager that answers scrapes until it has nothing to do, but at most 8 turns.
/// A scrape takes one turn to be accepted and another to be answered.
fn serve_scrapes<H: Handler>(scrapes: &mut Manager<H>) -> Result<(), pool_manager::Error> {
    for _ in 0..8 {
        let turn = scrapes.turn(Some(Duration::ZERO))?;
        if turn.accepted + turn.served == 0 {
            break;
        }
    }
    Ok(())
}

/// Answers one request, then closes the connection.
fn answer(conn: &mut Conn<'_>, head: &[u8], stats: &Stats) -> io::Result<()> {
    conn.close();
    let target = head.strip_prefix(b"GET ").map(|rest| rest.split(|&byte| byte == b' ').next());
    match target {
        Some(Some(b"/metrics")) => reply(conn, "200 OK", stats.prometheus()),
        Some(_) => reply(conn, "404 Not Found", "the counters are at /metrics\n"),
        None => reply(conn, "405 Method Not Allowed", "only GET\n"),
    }
}

fn reply(conn: &mut Conn<'_>, status: &str, body: impl Display) -> io::Result<()> {
    let body = body.to_string();
    write!(
        conn,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
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
