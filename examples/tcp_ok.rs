//! The Go package's own program: a thread accepts and puts, the pool answers `OK`.
//!
//! `cargo run --release --example tcp_ok`, then `echo hello | nc -N 127.0.0.1 6263`.

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use common::{Failure, TURN, bind, log_from, millis, run_error, say, stop_flag};
use lexopt::{Arg, ValueExt};
use pool_manager::{Config, ERROR_SERVER_BUSY, Handle, Manager};

const HELP: &str = "\
Answers OK to what it is sent, ERROR to silence, ERROR_SERVER_BUSY to the 11th at a time.

Usage: tcp_ok [OPTIONS]

  --listen ADDR       address to listen on [127.0.0.1:6263]
  --deadline-ms MS    how long a peer may be silent before it is answered [3000]
  --help              this text

A request is complete at 5120 bytes, at end of file or at the deadline, so close the sending
side to be answered at once: echo hello | nc -N 127.0.0.1 6263
SIGINT or SIGTERM stops gracefully; a second one at once.";

/// How long to wait after an accept that failed: descriptors may have run out.
const PAUSE: Duration = Duration::from_millis(100);

struct Options {
    listen: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("tcp_ok", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
    let config = Config::new().min_workers(5).max_workers(10).buffer_size(5120);
    let mut options = Options { listen: "127.0.0.1:6263".into(), config };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("listen") => options.listen = parser.value()?.string()?,
            Arg::Long("deadline-ms") => {
                let deadline = millis(&mut parser, "--deadline-ms")?;
                options.config = options.config.clients_deadline(deadline);
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
        }
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<(), Failure> {
    let mut manager = Manager::new(options.config, |conn, body| {
        conn.write_all(if body.is_empty() { b"ERROR" } else { b"OK" })
    })
    .map_err(run_error)?;
    let listener = bind(&options.listen)?;
    let addr = listener.local_addr().map_err(run_error)?;
    log_from("info");
    let stop = stop_flag().map_err(run_error)?;
    manager.start().map_err(run_error)?;
    say(format_args!("listening on {addr}; try: echo hello | nc -N {} {}", addr.ip(), addr.port()));
    let handle = manager.handle();
    // Ends with the process: nothing interrupts a blocking accept.
    thread::spawn(move || accept(&listener, &handle));
    while !stop.load(Ordering::Relaxed) {
        manager.turn(Some(TURN)).map_err(run_error)?;
    }
    let report = manager.stop().map_err(run_error)?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}

fn accept(listener: &TcpListener, handle: &Handle) {
    let mut starved = false;
    loop {
        let (socket, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // Said once: it will be so for a while.
                if !std::mem::replace(&mut starved, true) {
                    log::warn!("can't accept, will try again: {error}");
                }
                thread::sleep(PAUSE);
                continue;
            }
        };
        starved = false;
        if let Err(refused) = handle.put(socket) {
            log::debug!("{refused}");
            // A peer that is gone already misses nothing.
            let _ = handle.reject(refused.into_socket(), ERROR_SERVER_BUSY.as_bytes());
        }
    }
}
