//! Echoes on every core: a manager on each, one port for all, one stop for all.
//!
//! `cargo run --release --example sharded`, then `nc 127.0.0.1 6266`. The kernel deals new
//! connections out to the listeners that share the port (`SO_REUSEPORT`); from then on a
//! connection is one shard's, and no two shards share anything.

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{
    Failure, TURN, bind_with, log_from, millis, number, run_error, say, stop_flag, usage_error,
};
use core_affinity::CoreId;
use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Conn, Error, Framing, Handle, Manager, Overload, Stats, StopReport};

const HELP: &str = "\
Echoes what it is sent, on one thread a core.

Usage: sharded [OPTIONS]

  --listen ADDR       address to listen on [127.0.0.1:6266]
  --shards N          how many threads [one for each core it may use]
  --max N             connections at a time and shard; more wait to be accepted [no maximum]
  --deadline-ms MS    how long a peer may be silent [3000]
  --stats-every SECS  print the counters of all shards together every SECS seconds
  --help              this text

Each shard is pinned to a core; to leave some out, start it with taskset.
SIGINT or SIGTERM stops all gracefully: who waits to be accepted is served. A second one at once.";

struct Options {
    listen: String,
    shards: usize,
    stats_every: Option<Duration>,
    config: Config,
}

fn main() -> ExitCode {
    common::main("sharded", HELP, options, |options| serve(&options))
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
    let mut options = Options {
        listen: "127.0.0.1:6266".into(),
        shards: 0,
        stats_every: None,
        config: Config::new().framing(Framing::Drained).overload(Overload::Pause),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        match arg {
            Arg::Long("listen") => options.listen = parser.value()?.string()?,
            Arg::Long("shards") => {
                options.shards = number(&mut parser, "--shards")?;
                if !(1..=1024).contains(&options.shards) {
                    return Err(usage_error("--shards: must be 1 to 1024"));
                }
            }
            Arg::Long("max") => options.config = config.max_workers(number(&mut parser, "--max")?),
            Arg::Long("deadline-ms") => {
                options.config = config.clients_deadline(millis(&mut parser, "--deadline-ms")?);
            }
            Arg::Long("stats-every") => {
                let seconds: u64 = number(&mut parser, "--stats-every")?;
                if seconds == 0 {
                    return Err(usage_error("--stats-every: must be at least 1"));
                }
                options.stats_every = Some(Duration::from_secs(seconds));
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
        }
    }
    Ok(Some(options))
}

/// A thread with a manager of its own, and how to reach it.
struct Shard {
    handle: Handle,
    thread: JoinHandle<Result<(StopReport, Stats), Error>>,
}

fn serve(options: &Options) -> Result<(), Failure> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let shards = if options.shards > 0 { options.shards } else { cores.len().max(1) };
    let listeners = bind_all(&options.listen, shards)?;
    let addr = listeners[0].local_addr().map_err(run_error)?;
    log_from("info");
    let stop = stop_flag().map_err(run_error)?;
    let mut running = Vec::new();
    for (index, listener) in listeners.into_iter().enumerate() {
        let core = cores.get(index % cores.len().max(1)).copied();
        running.push(start(index, core, listener, options.config.clone())?);
    }
    say(format_args!(
        "listening on {addr}; {shards} shards; try: nc {} {}",
        addr.ip(),
        addr.port()
    ));
    let mut told = Instant::now();
    // One that ends by itself has failed, and the others are not to hide it.
    let failed = || running.iter().any(|shard| shard.thread.is_finished());
    while !stop.load(Ordering::Relaxed) && !failed() {
        thread::sleep(TURN);
        if options.stats_every.is_some_and(|every| told.elapsed() >= every) {
            told = Instant::now();
            say(running.iter().map(|shard| shard.handle.stats()).sum::<Stats>());
        }
    }
    end(running)
}

/// Stops all, and only then waits for each.
fn end(shards: Vec<Shard>) -> Result<(), Failure> {
    for shard in &shards {
        // One that has failed is not there to be stopped.
        let _ = shard.handle.stop();
    }
    let (mut reports, mut stats) = (Vec::new(), Vec::new());
    for (index, shard) in shards.into_iter().enumerate() {
        let ended =
            shard.thread.join().map_err(|_| run_error(format!("shard {index} panicked")))?;
        let (report, counted) = ended.map_err(run_error)?;
        say(format_args!("shard {index}: {report}; {} accepted", counted.accepted));
        reports.push(report);
        stats.push(counted);
    }
    let (report, stats): (StopReport, Stats) = (reports.into_iter().sum(), stats.into_iter().sum());
    say(format_args!("stopped: {report}; {stats}"));
    Ok(())
}

/// Starts a manager on a thread of its own. It is made there, so that its memory is near its core.
fn start(
    index: usize,
    core: Option<CoreId>,
    listener: TcpListener,
    config: Config,
) -> Result<Shard, Failure> {
    let (sender, handles) = std::sync::mpsc::channel();
    let run = move || {
        if core.is_some_and(|core| !core_affinity::set_for_current(core)) {
            log::warn!("shard {index} can't be pinned, and runs wherever there is room");
        }
        let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
        let mut manager = Manager::new(config, echo)?;
        manager.start()?;
        manager.listen_on(listener)?;
        // It is received, or the program is about to end.
        let _ = sender.send(manager.handle());
        let report = manager.run()?;
        Ok((report, manager.stats()))
    };
    let thread = thread::Builder::new().name(format!("shard-{index}")).spawn(run);
    let thread = thread.map_err(run_error)?;
    match handles.recv() {
        Ok(handle) => Ok(Shard { handle, thread }),
        Err(_) => Err(match thread.join() {
            Ok(Err(error @ Error::Config(_))) => usage_error(error),
            Ok(Err(error)) => run_error(error),
            _ => run_error(format!("shard {index} did not start")),
        }),
    }
}

/// Binds a listener for each shard to one address. All are bound before the first accepts, so
/// that the kernel deals out connections to all of them from the beginning.
fn bind_all(addr: &str, shards: usize) -> Result<Vec<TcpListener>, Failure> {
    let mut addr = addr.to_owned();
    let mut listeners = Vec::new();
    for _ in 0..shards {
        let listener = bind_with(&addr, |socket| socket.set_reuse_port(true))?;
        // For port 0 the first has found one.
        addr = listener.local_addr().map_err(run_error)?.to_string();
        listeners.push(listener);
    }
    Ok(listeners)
}
