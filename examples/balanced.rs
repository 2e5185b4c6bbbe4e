//! One of several server processes behind a load balancer. The process takes the clients' addresses
//! from the balancer (PROXY protocol). It reports to the balancer how many of its workers are free.
//! Before the process stops, it tells the balancer to send new clients to other processes.
//!
//! `examples/haproxy/haproxy.cfg` is the balancer's configuration for two such processes.
//!
//! `cargo run --release --example balanced`, then `nc 127.0.0.1 7101` shows the report, and
//! `nc 127.0.0.1 7001` is echoed.
//!
//! This file is complete: it uses nothing of `examples/common`.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use lexopt::{Arg, ValueExt};
use pool_manager::{
    Commands, Config, Conn, Framing, Handle, Handler, IpNet, ListenOptions, Manager, Socket, Stats,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

const HELP: &str = "\
Sends back the lines that it receives behind a load balancer, on one thread.

Usage: balanced [OPTIONS]

  --listen ADDR       address to listen on [127.0.0.1:7001]
  --agent ADDR        address of the report for the balancer (agent check) [127.0.0.1:7101]
  --trust NETWORK     addresses of balancers that send the client's address in a PROXY protocol
                      header; may be repeated
  --max N             connections at a time [1000]
  --deadline-ms MS    how long a connection may be silent [3000]
  --drain-ms MS       time for the balancer to send clients elsewhere before the stop [1000]
  --help              print this text

The line \"who\" is answered with the client's address, any other line with itself.
The report is \"ready up 73%\" if 73 of 100 workers are free, and \"drain\" during a stop.
SIGINT or SIGTERM reports \"drain\" for --drain-ms, then stops gracefully; a second one completes the
stop at once.";

/// The listen backlog; the standard library uses 128.
const BACKLOG: i32 = 4096;
/// Workers for the balancer's agent checks, in addition to those for clients.
const AGENT_WORKERS: usize = 8;

struct Options {
    listen: String,
    agent: String,
    trusted: Vec<IpNet>,
    drain: Duration,
    max: usize,
    config: Config,
}

/// Returns exit code 2 for bad usage, which is a [`lexopt::Error`], and 1 for any other error.
fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    let (code, hint) = if error.is::<lexopt::Error>() { (2, "; try --help") } else { (1, "") };
    // `eprintln!` panics if stderr is closed.
    let _ = writeln!(io::stderr(), "balanced: {error}{hint}");
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
        listen: "127.0.0.1:7001".into(),
        agent: "127.0.0.1:7101".into(),
        trusted: Vec::new(),
        drain: Duration::from_secs(1),
        max: 1000,
        config: Config::new().framing(Framing::Delimited(b'\n')),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("listen") => options.listen = parser.value()?.string()?,
            Arg::Long("agent") => options.agent = parser.value()?.string()?,
            Arg::Long("trust") => {
                let network = parser.value()?.string()?;
                options.trusted.push(network.parse().map_err(usage)?);
            }
            Arg::Long("max") => {
                options.max = number(&mut parser, "--max")?;
                if !(1..1 << 30).contains(&options.max) {
                    return Err("--max: must be 1 to 1073741823".into());
                }
            }
            Arg::Long("deadline-ms") => {
                let deadline = millis(&mut parser, "--deadline-ms")?;
                options.config = options.config.clients_deadline(deadline);
            }
            Arg::Long("drain-ms") => options.drain = millis(&mut parser, "--drain-ms")?,
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected()),
        }
    }
    Ok(Some(options))
}

struct Balanced {
    /// The counters at the end of the last turn.
    stats: Stats,
    /// The program has received a signal.
    draining: bool,
    /// The address of the report.
    agent: SocketAddr,
    max: usize,
}

impl Balanced {
    /// Returns the report in the format of `HAProxy`'s agent check.
    fn report(&self) -> String {
        if self.draining {
            return "drain\n".into();
        }
        let busy = usize::try_from(self.stats.live).unwrap_or(usize::MAX);
        let free = self.max.saturating_sub(busy);
        format!("ready up {}%\n", (free * 100).div_ceil(self.max))
    }
}

impl Handler for Balanced {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
        if let Socket::Tcp(stream) = conn.socket() {
            if stream.local_addr()?.port() == self.agent.port() {
                conn.write_all(self.report().as_bytes())?;
                conn.close();
            }
        }
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), line: &[u8]) -> io::Result<()> {
        match conn.peer_addr().filter(|_| line == b"who") {
            Some(client) => write!(conn, "{client}")?,
            None => conn.write_all(line)?,
        }
        conn.write_all(b"\n")
    }

    /// The thread that receives the signals notifies the manager when the first signal arrives.
    fn notified(&mut self, _: &mut Commands) {
        self.draining = true;
    }
}

fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let (listener, agent_listener) = (bind(&options.listen)?, bind(&options.agent)?);
    let (addr, agent) = (listener.local_addr()?, agent_listener.local_addr()?);
    if agent.port() == addr.port() {
        // The handler tells agent checks from clients by the port.
        return Err(usage("--agent: must have another port than --listen").into());
    }
    let max = options.max;
    let handler = Balanced { stats: Stats::default(), draining: false, agent, max };
    let config = options.config.max_workers(max + AGENT_WORKERS);
    let mut manager = Manager::with_handler(config, handler).map_err(usage)?;
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level).init();
    let signals = signals()?;
    let (read, stop) = UnixStream::pair()?;
    manager.stop_on(read)?;
    manager.start()?;
    let trusting = ListenOptions::new().proxy_protocol(options.trusted);
    manager.listen_with(listener, trusting)?;
    manager.listen_on(agent_listener)?;
    say(format_args!("listening on {addr}; agent on {agent}; process {}", std::process::id()));
    let handle = manager.handle();
    // The thread ends with the process.
    thread::spawn(move || drain_and_stop(signals, stop, &handle, options.drain));
    let report = loop {
        if let Some(report) = manager.turn(None)?.stopped {
            break report;
        }
        manager.handler_mut().stats = manager.stats();
    };
    say(format_args!(
        "stopped: {report}; {}; {} proxied",
        manager.stats(),
        manager.stats().proxied
    ));
    Ok(())
}

/// Waits for a signal, then reports "drain" for the given time, then begins the stop. A second
/// signal ends the wait and completes the stop at once.
///
/// New connections are served during the wait, because the balancer may not have read the report
/// yet.
fn drain_and_stop(
    mut signals: UnixStream,
    mut stop: UnixStream,
    handle: &Handle,
    drain: Duration,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    signals.read_exact(&mut [0])?;
    handle.notify()?;
    // A socket cannot have a timeout of zero.
    signals.set_read_timeout(Some(drain.max(Duration::from_millis(1))))?;
    let second = signals.read_exact(&mut [0]);
    handle.stop()?;
    // This call returns after the manager has executed the command. A byte that arrives later
    // completes the stop.
    let _ = handle.stats();
    if second.is_err() {
        signals.set_read_timeout(None)?;
        signals.read_exact(&mut [0])?;
    }
    stop.write_all(&[0])?;
    Ok(())
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
