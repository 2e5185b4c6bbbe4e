//! HTTP/1.1 on a framing of its own: keep-alive, pipelining, plain and chunked bodies, and an
//! answer for everything that is wrong.
//!
//! `cargo run --release --example http`, then `curl -i http://127.0.0.1:8080/`. Three rooms:
//! `message` is pure and says where a request ends, `service` answers, this one sets up.
//!
//! `Expect: 100-continue` is not answered, for a framing says nothing while a request is incomplete:
//! who sends it waits a moment and goes on (RFC 9110, 10.1.1), or is told at once that its body is
//! too long.

#[path = "../common/mod.rs"]
mod common;
mod message;
mod service;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{
    Failure, TURN, bind_with, log_from, millis, number, run_error, say, stop_flag, usage_error,
};
use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Framing, Manager, Overload};

const HELP: &str = "\
Serves HTTP/1.1, on one thread: GET /, POST /echo, GET /size/N (of at most 512 KiB).

Usage: http [OPTIONS]

  --listen ADDR              address to listen on [127.0.0.1:8080]
  --max N                    connections at a time; more are told 503 [4096]
  --max-request BYTES        longest request, header section and body; more is told 431 or
                             413 [65536]
  --deadline-ms MS           how long a peer may be silent [5000]
  --request-deadline-ms MS   how long a request may take to arrive, or it is told 408, and a reply
                             to go out [10000]
  --debug                    log every connection
  --help                     this text

SIGINT or SIGTERM stops gracefully; a second one at once.";

/// What the kernel holds of a reply that its peer does not read. Left to itself it takes up to
/// 4 MiB for each, and with 1,000 such peers it has none left for anybody else.
const SEND_BUFFER: usize = 128 << 10;

const BUFFER_SIZE: usize = 8 << 10;
/// The header section of a reply is shorter.
const HEAD_MAX: usize = 1 << 10;

struct Options {
    listen: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("http", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
    let config = Config::new()
        .max_workers(4096)
        .max_request(64 << 10)
        .clients_deadline(Duration::from_secs(5))
        .request_deadline(Duration::from_secs(10))
        .overload(Overload::Reject(service::BUSY.into()));
    let mut options = Options { listen: "127.0.0.1:8080".into(), config };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        options.config = match arg {
            Arg::Long("max") => config.max_workers(number(&mut parser, "--max")?),
            Arg::Long("max-request") => config.max_request(number(&mut parser, "--max-request")?),
            Arg::Long("deadline-ms") => {
                config.clients_deadline(millis(&mut parser, "--deadline-ms")?)
            }
            Arg::Long("request-deadline-ms") => {
                config.request_deadline(millis(&mut parser, "--request-deadline-ms")?)
            }
            Arg::Long("debug") => config.debug(true),
            Arg::Long("listen") => {
                options.listen = parser.value()?.string()?;
                config
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
        };
    }
    let max = options.config.max_request;
    if max == 0 {
        return Err(usage_error("--max-request: must be at least 1"));
    }
    // Most requests are short: only those that are not take more than this.
    options.config = options.config.buffer_size(max.min(BUFFER_SIZE));
    Ok(Some(options))
}

fn serve(options: Options) -> Result<(), Failure> {
    let stop = stop_flag().map_err(run_error)?;
    let debug = options.config.debug;
    let max = options.config.max_request;
    let config = options
        .config
        .framing(Framing::custom(move |held| message::frame(held, max)))
        // What was sent has to be echoed, and what was asked for to be written at once.
        .write_limit(max.max(service::SIZE_MAX) + HEAD_MAX);
    let service = service::Service::new(max, stop.clone());
    // What is wrong with the configuration is wrong with the arguments.
    let mut manager = Manager::with_handler(config, service).map_err(usage_error)?;
    // What is accepted inherits it.
    let listener = bind_with(&options.listen, |socket| socket.set_send_buffer_size(SEND_BUFFER))?;
    let addr = listener.local_addr().map_err(run_error)?;
    log_from(if debug { "debug" } else { "info" });
    manager.start().map_err(run_error)?;
    manager.listen_on(listener).map_err(run_error)?;
    say(format_args!("listening on {addr}; try: curl -i http://{addr}/"));
    while !stop.load(Ordering::Relaxed) {
        manager.turn(Some(TURN)).map_err(run_error)?;
    }
    let report = manager.stop().map_err(run_error)?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}
