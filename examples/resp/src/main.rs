//! Server for a subset of the Redis protocol: a custom framing, requests of any size up to a limit,
//! pipelining, and a store that needs no lock because there is one thread.
//!
//! `cargo run --release -p resp`, then `redis-cli -p 6379`.
//!
//! Modules: `protocol` parses requests and writes replies, `commands` executes them, `store` holds
//! the keys, this module parses the options and runs the manager.
//!
//! Uses `main`, `say`, `log_from`, `number`, `millis`, `signals`, `bind` and `usage` of
//! `examples/common`: start, output, options, signals and the listener.

mod commands;
#[path = "../../common/mod.rs"]
mod common;
mod protocol;
mod store;

use std::io;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use commands::{Args, Client, Context};
use common::{Result, bind, log_from, millis, number, say, signals, usage};
use lexopt::{Arg, ValueExt};
use pool_manager::{Cause, Config, Conn, Framing, Handler, Manager, Overload};
use protocol::{ProtocolError, Reply};
use store::Store;

const HELP: &str = "\
Serves a subset of the Redis protocol, on one thread. Values are strings. They are kept in memory
only, and their number is not limited.

Usage: resp [OPTIONS]

  --listen ADDR          address to listen on [127.0.0.1:6379]
  --max N                clients at a time; further ones get an error [10000]
  --max-request BYTES    longest request; a value may have 524288 bytes [1048576]
  --memory-limit BYTES   memory for incomplete requests of all clients together; 0: no limit
                         [67108864]
  --deadline-ms MS       how long a client may be silent; 0: no limit [0]
  --help                 print this text

Commands: PING ECHO GET SET [EX|PX|NX|XX] MGET MSET INCR DEL EXISTS EXPIRE TTL PTTL DBSIZE FLUSHALL
SELECT CLIENT COMMAND CONFIG QUIT. A request may have 16384 arguments.
SIGINT or SIGTERM stops gracefully; a second one completes the stop at once.";

struct Options {
    listen: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("resp", HELP, options, serve)
}

/// Parses the arguments. Returns `None` for `--help`.
fn options() -> Result<Option<Options>, lexopt::Error> {
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
            Arg::Long("max") => config.max_workers(number::<usize>(&mut parser, "--max")?),
            Arg::Long("max-request") => {
                config.max_request(number::<usize>(&mut parser, "--max-request")?)
            }
            Arg::Long("memory-limit") => {
                let limit = number::<usize>(&mut parser, "--memory-limit")?;
                config.memory_limit(Some(limit).filter(|&limit| limit > 0))
            }
            Arg::Long("deadline-ms") => {
                let deadline = millis(&mut parser, "--deadline-ms")?;
                config.clients_deadline(if deadline.is_zero() { Duration::MAX } else { deadline })
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected()),
        };
    }
    Ok(Some(Options { listen, config }))
}

/// The handler. All clients share one store without a lock, because there is one thread.
#[derive(Default)]
struct Server {
    store: Store,
    /// Positions of the arguments in the current request. The vector is reused to avoid
    /// allocations.
    spans: Vec<Range<usize>>,
}

impl Handler for Server {
    type Session = Client;

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<Client> {
        Ok(Client::default())
    }

    fn request(&mut self, conn: &mut Conn<'_>, client: &mut Client, body: &[u8]) -> io::Result<()> {
        match self.answer(conn, client, body) {
            Ok(outcome) => outcome,
            Err(error) => {
                conn.close();
                conn.error(&format!("ERR {error}"))
            }
        }
    }

    fn incomplete(&mut self, conn: &mut Conn<'_>, _: &mut Client, _: &[u8]) -> io::Result<()> {
        match conn.cause() {
            Cause::Overlong => conn.error("ERR Protocol error: too big request"),
            Cause::MemoryLimit => conn.error("OOM too many large requests at a time"),
            // As in Redis, the end of file and the deadline are not answered.
            _ => Ok(()),
        }
    }
}

impl Server {
    /// Executes one request and writes its reply.
    fn answer(
        &mut self,
        conn: &mut Conn<'_>,
        client: &mut Client,
        request: &[u8],
    ) -> Result<io::Result<()>, ProtocolError> {
        self.spans.clear();
        protocol::walk(request, |span| self.spans.push(span))?;
        let converted;
        let request = if request.starts_with(b"*") {
            request
        } else {
            converted = protocol::from_line(request)?;
            protocol::walk(&converted, |span| self.spans.push(span))?;
            &converted
        };
        if self.spans.is_empty() {
            return Ok(Ok(()));
        }
        let args = Args { request, spans: &self.spans };
        let mut context = Context { store: &mut self.store, client, conn };
        Ok(commands::run(&mut context, args))
    }
}

fn serve(options: Options) -> Result<()> {
    // An invalid configuration comes from the arguments.
    let mut manager = Manager::with_handler(options.config, Server::default()).map_err(usage)?;
    let listener = bind(&options.listen)?;
    let addr = listener.local_addr()?;
    // Accepted connections inherit TCP_NODELAY, so that the kernel sends small replies at once.
    socket2::SockRef::from(&listener).set_tcp_nodelay(true)?;
    log_from("info");
    manager.stop_on(signals()?)?;
    manager.start()?;
    manager.listen_on(listener)?;
    say(format_args!("listening on {addr}; try: redis-cli -h {} -p {}", addr.ip(), addr.port()));
    let report = manager.run()?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}
