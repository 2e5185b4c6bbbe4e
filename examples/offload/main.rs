//! Offload: callbacks hand their work to threads, and the answers come later, in order.
//!
//! `cargo run --release --example offload`, then `echo 9999999999999937 | nc -N 127.0.0.1 6265`.
//! Three rooms: `factor` is the work, `crew` the threads, and this one the loop.
//!
//! The lines at hand are handed over together, and their connection is paused until all are
//! answered: so it has a bounded number of them under way, does not close before they are
//! answered though its peer has said its last, and is not taken for idle meanwhile.

#[path = "../common/mod.rs"]
mod common;
mod crew;
mod factor;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{
    Failure, TURN, bind, log_from, millis, number, run_error, say, stop_flag, usage_error,
};
use crew::{Batch, Crew, Jobs, Tally};
use lexopt::{Arg, ValueExt};
use pool_manager::{
    Cause, Closed, Commands, Config, Conn, ConnId, Frame, Framing, Handler, Manager,
};

const HELP: &str = "\
Factors numbers, one a line, on a few threads behind one loop.

Usage: offload [OPTIONS]

  --listen ADDR      address to listen on [127.0.0.1:6265]
  --threads N        threads that work [2]
  --max N            connections at a time; more are told ERROR_SERVER_BUSY [1000]
  --deadline-ms MS   how long a peer may be silent that waits for nothing [10000]
  --drain-ms MS      how long a stop waits for answers [10000]
  --debug            log every connection
  --help             this text

SIGINT or SIGTERM stops gracefully; a second one at once.";

/// Lines of one connection that are under way at a time.
const LINES_MAX: usize = 64;
/// The longest line is far shorter; this is what is read ahead.
const BUFFER_SIZE: usize = 4 << 10;

/// Hands over what comes in.
struct Office {
    jobs: Jobs,
}

/// What is under way for a connection.
#[derive(Default)]
struct UnderWay(Option<Arc<Batch>>);

impl Handler for Office {
    type Session = UnderWay;

    fn request(
        &mut self,
        conn: &mut Conn<'_>,
        under_way: &mut UnderWay,
        body: &[u8],
    ) -> io::Result<()> {
        match conn.cause() {
            Cause::Expired => return Ok(()),
            Cause::Overlong => return writeln!(conn, "! a line is far shorter"),
            _ => {}
        }
        let text = String::from_utf8_lossy(body);
        let lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        if let Some(batch) = self.jobs.hand_over(conn.id(), lines) {
            under_way.0 = Some(batch);
            conn.pause();
            return Ok(());
        }
        text.lines().try_for_each(|_| writeln!(conn, "! too busy, try again later"))
    }

    /// An answer may still be under way: what is left of the work is not needed.
    fn closed(&mut self, end: &Closed, under_way: UnderWay, _: &mut Commands) {
        if let Some(batch) = under_way.0 {
            batch.abandon();
        }
        if end.bytes_unsent > 0 {
            self.jobs.lost(end.id, end.bytes_unsent as usize);
        }
    }

    /// It was sent between the end of the connection and the word of it.
    fn undelivered(&mut self, id: ConnId, bytes: Vec<u8>, _: &mut Commands) {
        self.jobs.lost(id, bytes.len());
    }
}

/// All whole lines that are there, up to a limit.
fn lines(held: &[u8]) -> Frame {
    let ends = held.iter().enumerate().filter(|&(_, &byte)| byte == b'\n');
    match ends.take(LINES_MAX).last() {
        Some((end, _)) => Frame::Complete(end + 1),
        None => Frame::Partial,
    }
}

struct Options {
    listen: String,
    threads: usize,
    config: Config,
}

fn main() -> ExitCode {
    common::main("offload", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
    let config = Config::new()
        .max_workers(1_000)
        .buffer_size(BUFFER_SIZE)
        .framing(Framing::custom(lines))
        .clients_deadline(Duration::from_secs(10))
        .stop_deadline(Duration::from_secs(10));
    let mut options = Options { listen: "127.0.0.1:6265".into(), threads: 2, config };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        options.config = match arg {
            Arg::Long("max") => config.max_workers(number(&mut parser, "--max")?),
            Arg::Long("deadline-ms") => {
                config.clients_deadline(millis(&mut parser, "--deadline-ms")?)
            }
            Arg::Long("drain-ms") => config.stop_deadline(millis(&mut parser, "--drain-ms")?),
            Arg::Long("debug") => config.debug(true),
            Arg::Long("threads") => {
                options.threads = number(&mut parser, "--threads")?;
                config
            }
            Arg::Long("listen") => {
                options.listen = parser.value()?.string()?;
                config
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
        };
    }
    if !(1..=1024).contains(&options.threads) {
        return Err(usage_error("--threads: must be 1 to 1024"));
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<(), Failure> {
    let debug = options.config.debug;
    let (jobs, work) = crew::jobs();
    // What is wrong with the configuration is wrong with the arguments.
    let mut manager =
        Manager::with_handler(options.config, Office { jobs }).map_err(usage_error)?;
    let listener = bind(&options.listen)?;
    let addr = listener.local_addr().map_err(run_error)?;
    log_from(if debug { "debug" } else { "info" });
    let stop = stop_flag().map_err(run_error)?;
    manager.start().map_err(run_error)?;
    manager.listen_on(listener).map_err(run_error)?;
    let crew = Crew::start(options.threads, work, &manager.handle());
    say(format_args!("listening on {addr}; try: seq 1 20 | nc -N {} {}", addr.ip(), addr.port()));
    while !stop.load(Ordering::Relaxed) {
        manager.turn(Some(TURN)).map_err(run_error)?;
    }
    let report = manager.stop().map_err(run_error)?;
    let stats = manager.stats();
    // With it goes the handler, and with that the threads have nothing more to wait for.
    drop(manager);
    let Tally { answered, spared, lost } = crew.finish();
    say(format_args!("stopped: {report}; {stats}"));
    say(format_args!("{answered} lines answered, {spared} spared, {lost} answers lost"));
    Ok(())
}
