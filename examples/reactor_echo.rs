//! Echoes what it is sent: the pool's main job in one short program.
//!
//! `cargo run --release --example reactor_echo`, then `nc 127.0.0.1 6263`.

mod common;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{
    Failure, TURN, bind, log_from, millis, number, run_error, say, stop_flag, usage_error,
};
use lexopt::{Arg, ValueExt};
use pool_manager::{Cause, Config, Conn, Framing, Manager};

const HELP: &str = "\
Echoes what it is sent, on one thread.

Usage: reactor_echo [OPTIONS]

  --listen ADDR              address to listen on [127.0.0.1:6263]
  --unix PATH                listen on a Unix domain socket as well
  --min N                    workers kept warm [0]
  --max N                    connections at a time; more are told ERROR_SERVER_BUSY [no maximum]
  --buffer-size BYTES        longest body [5120]
  --deadline-ms MS           how long a peer may be silent [3000]
  --request-deadline-ms MS   how long a request may take to arrive; 0: any time [30000]
  --framing KIND             filled: when the buffer is full, at end of file or at the deadline
                             drained: as soon as there is no more to read [default]
                             lines: each line, with its newline
  --spin-us MICROS           how long to poll before sleeping: quicker, at the price of the core [0]
  --stats-every SECS         print the counters every SECS seconds
  --debug                    log every connection
  --help                     this text

It logs to stderr, which has to be read: if it is a pipe that is full, the next line waits, and
everybody with it. Without --debug only the start, the stop and warnings are logged.
SIGINT or SIGTERM stops gracefully; a second one at once.";

struct Options {
    listen: String,
    unix: Option<PathBuf>,
    stats_every: Option<Duration>,
    lines: bool,
    config: Config,
}

fn main() -> ExitCode {
    common::main("reactor_echo", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
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
            Arg::Long("max") => config.max_workers(number(&mut parser, "--max")?),
            Arg::Long("buffer-size") => config.buffer_size(number(&mut parser, "--buffer-size")?),
            Arg::Long("deadline-ms") => {
                config.clients_deadline(millis(&mut parser, "--deadline-ms")?)
            }
            Arg::Long("request-deadline-ms") => {
                config.request_deadline(millis(&mut parser, "--request-deadline-ms")?)
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
                    return Err(usage_error("--stats-every: must be at least 1"));
                }
                options.stats_every = Some(Duration::from_secs(seconds));
                config
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
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

fn serve(options: Options) -> Result<(), Failure> {
    let lines = options.lines;
    let echo = move |conn: &mut Conn<'_>, body: &[u8]| {
        conn.write_all(body)?;
        if lines && conn.cause() == Cause::Framed {
            conn.write_all(b"\n")?;
        }
        Ok(())
    };
    let debug = options.config.debug;
    // What is wrong with the configuration is wrong with the arguments.
    let mut manager = Manager::new(options.config, echo).map_err(usage_error)?;
    let listener = bind(&options.listen)?;
    let addr = listener.local_addr().map_err(run_error)?;
    log_from(if debug { "debug" } else { "info" });
    let stop = stop_flag().map_err(run_error)?;
    manager.start().map_err(run_error)?;
    manager.listen_on(listener).map_err(run_error)?;
    if let Some(path) = &options.unix {
        manager.listen_unix(path).map_err(run_error)?;
    }
    // Only the end of file makes a short body complete under `filled`.
    let client = match manager.config().framing {
        Framing::Filled => "echo hello | nc -N",
        _ => "nc",
    };
    say(format_args!("listening on {addr}; try: {client} {} {}", addr.ip(), addr.port()));
    if let Some(path) = &options.unix {
        say(format_args!("listening on {0}; try: {client} -U {0}", path.display()));
    }
    let patience = manager.config().clients_deadline;
    log::info!("a peer that is silent for {patience:?} is closed; --deadline-ms changes that");
    let mut told = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        manager.turn(Some(TURN)).map_err(run_error)?;
        if options.stats_every.is_some_and(|every| told.elapsed() >= every) {
            told = Instant::now();
            say(manager.stats());
        }
    }
    let report = manager.stop().map_err(run_error)?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}
