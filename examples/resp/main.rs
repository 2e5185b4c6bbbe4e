//! A small server of the Redis protocol: a framing of one's own, requests of any size up to a
//! limit, pipelines, and a state that no lock guards.
//!
//! `cargo run --release --example resp`, then `redis-cli -p 6379`.

#[path = "../common/mod.rs"]
mod common;

mod commands;
mod protocol;
mod store;

use std::io;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use commands::{Args, Client, Context};
use common::{
    Failure, TURN, bind, log_from, millis, number, run_error, say, stop_flag, usage_error,
};
use lexopt::{Arg, ValueExt};
use pool_manager::{Cause, Config, Conn, Framing, Handler, Manager, Overload};
use protocol::{Broken, Reply};
use store::Store;

const HELP: &str = "\
A small server of the Redis protocol, on one thread. Strings only; it keeps them in memory, as many
as clients set, and nowhere else.

Usage: resp [OPTIONS]

  --listen ADDR          address to listen on [127.0.0.1:6379]
  --max N                clients at a time [10000]
  --max-request BYTES    longest request; a value may have 524288 bytes [1048576]
  --memory-limit BYTES   what requests that have come in part may take, together; 0: no limit
                         [67108864]
  --deadline-ms MS       how long a client may be silent; 0: any time [0]
  --help                 this text

Commands: PING ECHO GET SET [EX|PX|NX|XX] MGET MSET INCR DEL EXISTS EXPIRE TTL PTTL DBSIZE FLUSHALL
SELECT CLIENT COMMAND CONFIG QUIT. A request may have 16384 words.
SIGINT or SIGTERM stops gracefully; a second one at once.";

struct Options {
    listen: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("resp", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
    let mut listen = "127.0.0.1:6379".into();
    let mut config = Config::new()
        .framing(Framing::custom(protocol::frame))
        .buffer_size(32 << 10)
        .max_request(1 << 20)
        .memory_limit(64 << 20)
        .write_limit(64 << 20)
        .max_workers(10_000)
        .clients_deadline(Duration::MAX)
        .stop_deadline(Duration::from_secs(3))
        .overload(Overload::Reject(b"-ERR max number of clients reached\r\n".into()));
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        config = match arg {
            Arg::Long("listen") => {
                listen = parser.value()?.string()?;
                config
            }
            Arg::Long("max") => config.max_workers(number(&mut parser, "--max")?),
            Arg::Long("max-request") => config.max_request(number(&mut parser, "--max-request")?),
            Arg::Long("memory-limit") => {
                config.memory_limit(number(&mut parser, "--memory-limit")?)
            }
            Arg::Long("deadline-ms") => {
                let deadline = millis(&mut parser, "--deadline-ms")?;
                config.clients_deadline(if deadline.is_zero() { Duration::MAX } else { deadline })
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
        };
    }
    Ok(Some(Options { listen, config }))
}

/// The handler: all clients share one store, and nothing guards it, for there is one thread.
#[derive(Default)]
struct Server {
    store: Store,
    /// Where the arguments of the request at hand are, kept for its memory.
    spans: Vec<Range<usize>>,
}

impl Handler for Server {
    type Session = Client;

    fn request(&mut self, conn: &mut Conn<'_>, client: &mut Client, body: &[u8]) -> io::Result<()> {
        match conn.cause() {
            Cause::Framed => match self.answer(conn, client, body) {
                Ok(outcome) => outcome,
                Err(broken) => {
                    conn.close();
                    conn.error(&format!("ERR {broken}"))
                }
            },
            Cause::Overlong => conn.error("ERR Protocol error: too big request"),
            Cause::MemoryLimit => conn.error("OOM too many large requests at a time"),
            // Half a request at the end: there is nobody to answer.
            _ => Ok(()),
        }
    }
}

impl Server {
    fn answer(
        &mut self,
        conn: &mut Conn<'_>,
        client: &mut Client,
        request: &[u8],
    ) -> Result<io::Result<()>, Broken> {
        self.spans.clear();
        protocol::walk(request, |span| self.spans.push(span))?;
        let typed;
        let request = if request.starts_with(b"*") {
            request
        } else {
            typed = protocol::from_line(request)?;
            protocol::walk(&typed, |span| self.spans.push(span))?;
            &typed
        };
        if self.spans.is_empty() {
            return Ok(Ok(()));
        }
        let args = Args { request, spans: &self.spans };
        let mut context = Context { store: &mut self.store, client, conn };
        Ok(commands::run(&mut context, args))
    }
}

fn serve(options: Options) -> Result<(), Failure> {
    // What is wrong with the configuration is wrong with the arguments.
    let mut manager =
        Manager::with_handler(options.config, Server::default()).map_err(usage_error)?;
    let listener = bind(&options.listen)?;
    let addr = listener.local_addr().map_err(run_error)?;
    // Accepted connections inherit it: a reply that is a segment by itself does not wait.
    socket2::SockRef::from(&listener).set_tcp_nodelay(true).map_err(run_error)?;
    log_from("info");
    let stop = stop_flag().map_err(run_error)?;
    manager.start().map_err(run_error)?;
    manager.listen_on(listener).map_err(run_error)?;
    say(format_args!("listening on {addr}; try: redis-cli -h {} -p {}", addr.ip(), addr.port()));
    while !stop.load(Ordering::Relaxed) {
        manager.turn(Some(TURN)).map_err(run_error)?;
    }
    let report = manager.stop().map_err(run_error)?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}
