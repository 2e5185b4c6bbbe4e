//! Work on other threads: callbacks pass requests to threads, and the threads send the answers
//! later, in order.
//!
//! `cargo run --release -p offload`, then `echo 9999999999999937 | nc -N 127.0.0.1 6265`.
//!
//! Modules: `factor` is the work, `threads` passes it to threads and sends the answers, this module
//! is the handler.
//!
//! Up to 64 lines that have arrived are one request. Its connection is paused until all of them are
//! answered. This limits the lines in progress for each connection, keeps the connection open for
//! the answers after the peer has shut down its sending side, and suspends the idle deadline.
//!
//! Uses `main`, `say`, `log_from`, `number`, `millis`, `signals`, `bind` and `usage` of
//! `examples/common`: start, output, options, signals and the listener.

#[path = "../../common/mod.rs"]
mod common;
mod factor;
mod threads;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use common::{Result, bind, log_from, millis, number, say, signals, usage};
use lexopt::{Arg, ValueExt};
use pool_manager::{
    Cause, Closed, Commands, Config, Conn, ConnId, Frame, Framing, Handler, Manager,
};
use threads::{Batch, Counts, Jobs, Threads};

const HELP: &str = "\
Factors numbers, one per line. Worker threads compute, one thread serves the connections.

Usage: offload [OPTIONS]

  --listen ADDR      address to listen on [127.0.0.1:6265]
  --threads N        number of worker threads [2]
  --max N            connections at a time; further ones get ERROR_SERVER_BUSY [1000]
  --deadline-ms MS   how long a connection may be silent while it waits for no answer [10000]
  --drain-ms MS      how long a stop waits for answers [10000]
  --debug            log every connection
  --help             print this text

SIGINT or SIGTERM stops gracefully; a second one completes the stop at once.";

/// Maximum number of lines of one connection in progress.
const LINES_MAX: usize = 64;
/// Size of a connection's input buffer. A valid line is much shorter, so the buffer holds many.
const BUFFER_SIZE: usize = 4 << 10;

/// The handler: passes requests to the threads.
struct Dispatcher {
    jobs: Jobs,
}

/// The lines of a connection that are in progress.
struct Pending(Option<Arc<Batch>>);

impl Handler for Dispatcher {
    type Session = Pending;

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<Pending> {
        Ok(Pending(None))
    }

    fn request(
        &mut self,
        conn: &mut Conn<'_>,
        pending: &mut Pending,
        body: &[u8],
    ) -> io::Result<()> {
        let text = String::from_utf8_lossy(body);
        let lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        if let Some(batch) = self.jobs.submit(conn.id(), lines) {
            pending.0 = Some(batch);
            conn.pause();
            return Ok(());
        }
        text.lines().try_for_each(|_| writeln!(conn, "! too busy, try again later"))
    }

    fn incomplete(
        &mut self,
        conn: &mut Conn<'_>,
        pending: &mut Pending,
        held: &[u8],
    ) -> io::Result<()> {
        match conn.cause() {
            // As with `factor`, the last line does not need a newline.
            Cause::Eof => self.request(conn, pending, held),
            Cause::Overlong => writeln!(conn, "! the line is too long"),
            Cause::Unanswered => writeln!(conn, "! the answer takes too long"),
            _ => Ok(()),
        }
    }

    /// Cancels the rest of the work for the connection. If an answer was not completely sent,
    /// counts this answer as lost.
    fn closed(&mut self, closed: &Closed, pending: Option<Pending>, _: &mut Commands) {
        if let Some(batch) = pending.and_then(|pending| pending.0) {
            batch.cancel();
        }
        if closed.bytes_unsent > 0 {
            self.jobs.lost(closed.id, closed.bytes_unsent as usize);
        }
    }

    /// Counts an answer that a thread sent after the connection had closed.
    fn undelivered(&mut self, id: ConnId, bytes: Vec<u8>, _: &mut Commands) {
        self.jobs.lost(id, bytes.len());
    }
}

/// The framing: up to `LINES_MAX` complete lines are one request.
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

/// Parses the arguments. Returns `None` for `--help`.
fn options() -> Result<Option<Options>, lexopt::Error> {
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
            Arg::Long("max") => config.max_workers(number::<usize>(&mut parser, "--max")?),
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
            unknown => return Err(unknown.unexpected()),
        };
    }
    if !(1..=1024).contains(&options.threads) {
        return Err("--threads: must be 1 to 1024".into());
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<()> {
    let debug = options.config.debug;
    let (jobs, work) = threads::jobs();
    // An invalid configuration comes from the arguments.
    let mut manager = Manager::with_handler(options.config, Dispatcher { jobs }).map_err(usage)?;
    let listener = bind(&options.listen)?;
    let addr = listener.local_addr()?;
    log_from(if debug { "debug" } else { "info" });
    manager.stop_on(signals()?)?;
    manager.start()?;
    manager.listen_on(listener)?;
    let threads = Threads::start(options.threads, work, &manager.handle());
    say(format_args!("listening on {addr}; try: seq 1 20 | nc -N {} {}", addr.ip(), addr.port()));
    let report = manager.run()?;
    let stats = manager.stats();
    // This drops the handler and the sending half of the job queue, which ends the threads.
    drop(manager);
    let Counts { answered, skipped, lost } = threads.finish();
    say(format_args!("stopped: {report}; {stats}"));
    say(format_args!("{answered} lines answered, {skipped} skipped, {lost} answers lost"));
    Ok(())
}
