//! Echo server on all cores: one manager per core, with one port and one stop for all of them.
//!
//! `cargo run --release --example sharded`, then `nc 127.0.0.1 6266`.
//!
//! All listeners share the port (`SO_REUSEPORT`), and the kernel distributes new connections over
//! them. A connection stays with its shard. The shards share no data.
//!
//! Uses `main`, `say`, `log_from`, `number`, `millis`, `signals`, `bind_with` and `usage` of
//! `examples/common`: start, output, options, signals and the listener.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Result, bind_with, log_from, millis, number, say, signals, usage};
use core_affinity::CoreId;
use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Conn, Error, Framing, Handle, Manager, Overload, Stats, StopReport};

const HELP: &str = "\
Sends back what it receives, on one thread per core.

Usage: sharded [OPTIONS]

  --listen ADDR       address to listen on [127.0.0.1:6266]
  --shards N          number of threads [one for each core that the process may use]
  --max N             connections at a time per shard; further ones wait to be accepted [no maximum]
  --deadline-ms MS    how long a connection may be silent [3000]
  --stats-every SECS  print the sum of all shards' counters every SECS seconds
  --help              print this text

Each shard is pinned to a core. To use only some cores, start the program with taskset.
SIGINT or SIGTERM stops all shards gracefully: connections that wait to be accepted are served. A
second one completes the stop at once.";

struct Options {
    listen: String,
    shards: usize,
    stats_every: Option<Duration>,
    config: Config,
}

fn main() -> ExitCode {
    common::main("sharded", HELP, options, |options| serve(&options))
}

/// Parses the arguments. Returns `None` for `--help`.
fn options() -> Result<Option<Options>, lexopt::Error> {
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
                    return Err("--shards: must be 1 to 1024".into());
                }
            }
            Arg::Long("max") => {
                options.config = config.max_workers(number::<usize>(&mut parser, "--max")?);
            }
            Arg::Long("deadline-ms") => {
                options.config = config.clients_deadline(millis(&mut parser, "--deadline-ms")?);
            }
            Arg::Long("stats-every") => {
                let seconds: u64 = number(&mut parser, "--stats-every")?;
                if seconds == 0 {
                    return Err("--stats-every: must be at least 1".into());
                }
                options.stats_every = Some(Duration::from_secs(seconds));
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected()),
        }
    }
    Ok(Some(options))
}

/// An event for which the main thread waits.
enum Event {
    Signal,
    /// The thread of a shard has ended.
    Ended,
}

/// Sends an event when it is dropped, also during a panic.
struct Ending(Sender<Event>);

impl Drop for Ending {
    fn drop(&mut self) {
        // Fails only if the program is about to end.
        let _ = self.0.send(Event::Ended);
    }
}

/// A thread that runs a manager.
struct Shard {
    handle: Handle,
    /// A byte begins the stop, and a second one completes it.
    stop: UnixStream,
    thread: JoinHandle<Result<(StopReport, Stats), Error>>,
}

fn serve(options: &Options) -> Result<()> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let shards = if options.shards > 0 { options.shards } else { cores.len().max(1) };
    let listeners = bind_all(&options.listen, shards)?;
    let addr = listeners[0].local_addr()?;
    log_from("info");
    let (sender, events) = mpsc::channel();
    pass_on(signals()?, sender.clone())?;
    let mut running = Vec::new();
    for (index, listener) in listeners.into_iter().enumerate() {
        let core = cores.get(index % cores.len().max(1)).copied();
        running.push(start(index, core, listener, options.config.clone(), &sender)?);
    }
    say(format_args!(
        "listening on {addr}; {shards} shards; try: nc {} {}",
        addr.ip(),
        addr.port()
    ));
    supervise(&running, &events, options.stats_every);
    end(running)
}

/// Starts a thread that sends an event for each signal.
fn pass_on(mut signals: UnixStream, events: Sender<Event>) -> Result<()> {
    let run = move || {
        while signals.read_exact(&mut [0]).is_ok() && events.send(Event::Signal).is_ok() {}
    };
    thread::Builder::new().name("signals".into()).spawn(run)?;
    Ok(())
}

/// Passes each signal on to all shards, and prints the counters until the stop. Returns when all
/// shards have ended.
fn supervise(shards: &[Shard], events: &Receiver<Event>, stats_every: Option<Duration>) {
    let stop = || {
        for mut shard in shards.iter().map(|shard| &shard.stop) {
            // Fails if the shard has ended already.
            let _ = shard.write_all(&[0]);
        }
    };
    let (mut ended, mut stopping, mut last_stats) = (0, false, Instant::now());
    while ended < shards.len() {
        let event = match stats_every.filter(|_| !stopping) {
            Some(every) => events.recv_timeout(every.saturating_sub(last_stats.elapsed())),
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(Event::Signal) => {
                stopping = true;
                stop();
            }
            Ok(Event::Ended) => {
                ended += 1;
                // A shard that ends before the stop has failed. The others are stopped.
                if !stopping {
                    stopping = true;
                    stop();
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                last_stats = Instant::now();
                say(shards.iter().map(|shard| shard.handle.stats()).sum::<Stats>());
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Waits for each shard, and prints the reports.
fn end(shards: Vec<Shard>) -> Result<()> {
    let (mut reports, mut stats) = (Vec::new(), Vec::new());
    for (index, shard) in shards.into_iter().enumerate() {
        let ended = shard.thread.join().map_err(|_| format!("shard {index} panicked"))?;
        let (report, counted) = ended?;
        say(format_args!("shard {index}: {report}; {} accepted", counted.accepted));
        reports.push(report);
        stats.push(counted);
    }
    let (report, stats): (StopReport, Stats) = (reports.into_iter().sum(), stats.into_iter().sum());
    say(format_args!("stopped: {report}; {stats}"));
    Ok(())
}

/// Starts a thread that runs a manager. The thread creates the manager, so that its memory is
/// allocated near the thread's core.
fn start(
    index: usize,
    core: Option<CoreId>,
    listener: TcpListener,
    config: Config,
    events: &Sender<Event>,
) -> Result<Shard> {
    let (sender, handles) = mpsc::channel();
    let (read, stop) = UnixStream::pair()?;
    let ending = Ending(events.clone());
    let run = move || {
        let _ending = ending;
        if core.is_some_and(|core| !core_affinity::set_for_current(core)) {
            log::warn!("shard {index} can't be pinned to a core");
        }
        let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
        let mut manager = Manager::new(config, echo)?;
        manager.stop_on(read)?;
        manager.start()?;
        manager.listen_on(listener)?;
        // Fails only if the program is about to end.
        let _ = sender.send(manager.handle());
        let report = manager.run()?;
        Ok((report, manager.stats()))
    };
    let thread = thread::Builder::new().name(format!("shard-{index}")).spawn(run)?;
    match handles.recv() {
        Ok(handle) => Ok(Shard { handle, stop, thread }),
        Err(_) => Err(match thread.join() {
            Ok(Err(error @ Error::Config(_))) => usage(error).into(),
            Ok(Err(error)) => error.into(),
            _ => format!("shard {index} did not start").into(),
        }),
    }
}

/// Binds a listener for each shard to one address. All listeners are bound before the first one
/// accepts, so that the kernel distributes connections over all of them from the start.
fn bind_all(addr: &str, shards: usize) -> Result<Vec<TcpListener>> {
    let mut addr = addr.to_owned();
    let mut listeners = Vec::new();
    for _ in 0..shards {
        let listener = bind_with(&addr, |socket| socket.set_reuse_port(true))?;
        // If the port is 0, the system has chosen one for the first listener.
        addr = listener.local_addr()?.to_string();
        listeners.push(listener);
    }
    Ok(listeners)
}
