//! One of several processes behind a balancer: it believes the balancer who its clients are, tells it
//! how much of it is free, and is drained by it before it stops. `examples/haproxy/haproxy.cfg` is the
//! other half.
//!
//! `cargo run --release --example balanced`, then `nc 127.0.0.1 7101` asks what the balancer asks.

mod common;

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{
    Failure, TURN, bind, log_from, millis, number, run_error, say, stop_flag, usage_error,
};
use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Conn, Framing, Handler, IpNet, ListenOptions, Manager, Socket, Stats};

const HELP: &str = "\
Echoes lines behind a balancer, on one thread.

Usage: balanced [OPTIONS]

  --listen ADDR       address to listen on [127.0.0.1:7001]
  --agent ADDR        address at which the balancer asks how we are [127.0.0.1:7101]
  --trust NETWORK     balancers that say who the client is (PROXY protocol); may be repeated
  --max N             connections at a time [1000]
  --deadline-ms MS    how long a peer may be silent [3000]
  --drain-ms MS       how long the balancer gets to send its clients elsewhere [1000]
  --help              this text

A line that is \"who\" is answered with the client's address, others with themselves.
The agent answers \"ready up 73%\" if 73 of 100 workers are free, and \"drain\" once a stop is asked for.
SIGINT or SIGTERM: drain for as long as --drain-ms says, then stop gracefully; a second one at once.";

struct Options {
    listen: String,
    agent: String,
    trusted: Vec<IpNet>,
    drain: Duration,
    max: usize,
    config: Config,
}

fn main() -> ExitCode {
    common::main("balanced", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
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
                options.trusted.push(network.parse().map_err(usage_error)?);
            }
            Arg::Long("max") => {
                options.max = number(&mut parser, "--max")?;
                if !(1..1 << 30).contains(&options.max) {
                    return Err(usage_error("--max: must be 1 to 1073741823"));
                }
            }
            Arg::Long("deadline-ms") => {
                let deadline = millis(&mut parser, "--deadline-ms")?;
                options.config = options.config.clients_deadline(deadline);
            }
            Arg::Long("drain-ms") => options.drain = millis(&mut parser, "--drain-ms")?,
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
        }
    }
    Ok(Some(options))
}

/// Places kept for the balancer's questions, beyond what clients are said to have.
const QUESTIONS: usize = 8;

/// What the balancer may know, as of the last turn.
#[derive(Default)]
struct Condition {
    stats: Stats,
    draining: bool,
}

struct Balanced {
    condition: Rc<RefCell<Condition>>,
    /// Where the balancer asks.
    agent: SocketAddr,
    max: usize,
}

impl Balanced {
    /// What the balancer is told, in the words of `HAProxy`'s agent check.
    fn answer(&self) -> String {
        let condition = self.condition.borrow();
        let busy = usize::try_from(condition.stats.live).unwrap_or(usize::MAX);
        if condition.draining {
            return "drain\n".into();
        }
        let free = self.max.saturating_sub(busy);
        format!("ready up {}%\n", (free * 100).div_ceil(self.max))
    }
}

impl Handler for Balanced {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        if let Socket::Tcp(stream) = conn.socket() {
            if stream.local_addr()?.port() == self.agent.port() {
                conn.write_all(self.answer().as_bytes())?;
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
}

fn serve(options: Options) -> Result<(), Failure> {
    let (listener, questions) = (bind(&options.listen)?, bind(&options.agent)?);
    let addr = listener.local_addr().map_err(run_error)?;
    let agent = questions.local_addr().map_err(run_error)?;
    if agent.port() == addr.port() {
        // By its port a connection is known to be a question.
        return Err(usage_error("--agent: must have another port than --listen"));
    }
    let (condition, max) = (Rc::new(RefCell::new(Condition::default())), options.max);
    let handler = Balanced { condition: condition.clone(), agent, max };
    let config = options.config.max_workers(max + QUESTIONS);
    let mut manager = Manager::with_handler(config, handler).map_err(usage_error)?;
    log_from("info");
    let stop = stop_flag().map_err(run_error)?;
    manager.start().map_err(run_error)?;
    let trusting = ListenOptions::new().proxy_protocol(options.trusted);
    manager.listen_with(listener, trusting).map_err(run_error)?;
    manager.listen_on(questions).map_err(run_error)?;
    say(format_args!("listening on {addr}; agent on {agent}; process {}", std::process::id()));
    // Who comes while we drain is served: the balancer may not have asked yet.
    let mut draining: Option<Instant> = None;
    while draining.is_none_or(|since| since.elapsed() < options.drain) {
        manager.turn(Some(TURN)).map_err(run_error)?;
        if stop.load(Ordering::Relaxed) && draining.is_none() {
            draining = Some(Instant::now());
        }
        *condition.borrow_mut() =
            Condition { stats: manager.stats(), draining: draining.is_some() };
    }
    let report = manager.stop().map_err(run_error)?;
    say(format_args!(
        "stopped: {report}; {}; {} proxied",
        manager.stats(),
        manager.stats().proxied
    ));
    Ok(())
}
