//! HTTP/1.1 server with a custom framing: keep-alive, pipelining, plain and chunked bodies, and an
//! error reply for each kind of malformed request.
//!
//! `cargo run --release -p http`, then `curl -i http://127.0.0.1:8080/`.
//!
//! Modules: `message` parses requests and is pure, `service` is the handler that writes replies,
//! this module parses the options and runs the manager.
//!
//! `Expect: 100-continue` is not answered, because a framing cannot write while a request is
//! incomplete. A client that sends it waits a moment and then sends the body (RFC 9110, section
//! 10.1.1), or gets 413 at once if the body is too long.
//!
//! Uses `main`, `say`, `log_from`, `number`, `millis`, `signals`, `bind_with` and `usage` of
//! `examples/common`: start, output, options, signals and the listener.

#[path = "../../common/mod.rs"]
mod common;
mod message;
mod service;

use std::process::ExitCode;
use std::time::Duration;

use common::{Result, bind_with, log_from, millis, number, say, signals, usage};
use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Framing, Manager, Overload};

const HELP: &str = "\
Serves HTTP/1.1, on one thread: GET /, POST /echo, GET /size/N (at most 524288 bytes).

Usage: http [OPTIONS]

  --listen ADDR              address to listen on [127.0.0.1:8080]
  --max N                    connections at a time; further ones get 503 [4096]
  --max-request BYTES        longest request, including header section and body; longer ones get
                             431 or 413 [65536]
  --deadline-ms MS           how long a connection may be silent [5000]
  --request-deadline-ms MS   how long a request may take to arrive before it gets 408, and how long
                             a reply may take to be sent [10000]
  --debug                    log every connection
  --help                     print this text

SIGINT or SIGTERM stops gracefully; a second one completes the stop at once.";

/// Kernel send buffer of a connection. By default it grows to 4 MiB for a peer that does not read,
/// and 1,000 such peers could use up the kernel's memory for sockets.
const SEND_BUFFER: usize = 128 << 10;

/// Size of a connection's input buffer in bytes; a longer request grows it.
const BUFFER_SIZE: usize = 8 << 10;
/// More than the longest header section of a reply, in bytes.
const HEAD_MAX: usize = 1 << 10;

struct Options {
    listen: String,
    max_request: usize,
    config: Config,
}

fn main() -> ExitCode {
    common::main("http", HELP, options, serve)
}

/// Parses the arguments. Returns `None` for `--help`.
fn options() -> Result<Option<Options>, lexopt::Error> {
    let config = Config::new()
        .max_workers(4096)
        .clients_deadline(Duration::from_secs(5))
        .request_deadline(Duration::from_secs(10))
        .overload(Overload::Reject(service::BUSY.into()));
    let mut options = Options { listen: "127.0.0.1:8080".into(), max_request: 64 << 10, config };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        options.config = match arg {
            Arg::Long("max") => config.max_workers(number::<usize>(&mut parser, "--max")?),
            Arg::Long("max-request") => {
                options.max_request = number(&mut parser, "--max-request")?;
                config
            }
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
            unknown => return Err(unknown.unexpected()),
        };
    }
    if options.max_request == 0 {
        return Err("--max-request: must be at least 1".into());
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<()> {
    let signals = signals()?;
    let debug = options.config.debug;
    let max = options.max_request;
    let config = options
        .config
        // Most requests are short, so a connection starts with a small buffer.
        .buffer_size(max.min(BUFFER_SIZE))
        .max_request(max)
        .framing(Framing::custom(move |held| message::frame(held, max)))
        // The reply to `/echo` or `/size/N` is written in one callback, so it must fit.
        .write_limit(max.max(service::SIZE_MAX) + HEAD_MAX);
    let service = service::Service::new(max);
    // An invalid configuration comes from the arguments.
    let mut manager = Manager::with_handler(config, service).map_err(usage)?;
    // Accepted connections inherit the size of the send buffer.
    let listener = bind_with(&options.listen, |socket| socket.set_send_buffer_size(SEND_BUFFER))?;
    let addr = listener.local_addr()?;
    log_from(if debug { "debug" } else { "info" });
    manager.stop_on(signals)?;
    manager.start()?;
    manager.listen_on(listener)?;
    say(format_args!("listening on {addr}; try: curl -i http://{addr}/"));
    let report = manager.run()?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}
