//! Forward: each client gets a connection of its own to another address, and bytes go both ways.
//!
//! `cargo run --release --example forward -- --to 127.0.0.1:80`, then `curl http://127.0.0.1:6269/`
//!
//! A client is paused until its upstream is there, so nothing it says is lost or piles up; if the
//! upstream cannot be reached, the client is closed. Whoever takes bytes slower than they come
//! pauses the other side until it has caught up: neither holds more than a few reads of it.
//!
//! When one side ends, what it said still goes out and the other side is closed: a connection
//! that is open in one direction only is not kept, so a client that says it is done before it has
//! the answer gets none.

mod common;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{
    Failure, TURN, bind, log_from, millis, number, run_error, say, stop_flag, usage_error,
};
use lexopt::{Arg, ValueExt};
use pool_manager::{
    CloseReason, Closed, Commands, Config, Conn, ConnId, ConnectOptions, Framing, Handler, Manager,
};

const HELP: &str = "\
Forwards each connection to another address, both ways.

Usage: forward --to ADDR [OPTIONS]

  --to ADDR          where to; a name is looked up once, at start
  --listen ADDR      address to listen on [127.0.0.1:6269]
  --max N            clients at a time; more are told ERROR_SERVER_BUSY, or closed while their
                     upstream has no place [10000]
  --connect-ms MS    how long reaching the other address may take [3000]
  --deadline-ms MS   how long a side may go without moving a byte [60000]
  --debug            log every connection
  --help             this text

When a side ends, what it said still goes out, and the other side is closed.

SIGINT or SIGTERM stops gracefully; a second one at once.";

/// Bytes that are read at a time.
const BUFFER: usize = 64 << 10;

struct Forwarder {
    to: SocketAddr,
    /// Clients whose upstream is still to come, by the key it was asked for with.
    waiting: HashMap<u64, ConnId>,
    /// The other side of each.
    others: HashMap<ConnId, ConnId>,
}

impl Handler for Forwarder {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        let id = conn.id();
        let Some(key) = conn.key() else {
            let key = id.as_u64();
            conn.pause();
            conn.commands().connect_with(self.to, ConnectOptions::new().key(key))?;
            self.waiting.insert(key, id);
            return Ok(());
        };
        match self.waiting.remove(&key) {
            Some(client) => {
                self.others.insert(client, id);
                self.others.insert(id, client);
                conn.commands().resume(client)?;
            }
            // It has gone meanwhile.
            None => conn.close(),
        }
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        if let Some(&other) = self.others.get(&conn.id()).filter(|_| !body.is_empty()) {
            conn.commands().send(other, body)?;
        }
        Ok(())
    }

    /// More comes for this side than it takes: the other one is to wait.
    fn blocked(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        if let Some(&other) = self.others.get(&conn.id()) {
            conn.commands().pause(other)?;
        }
        Ok(())
    }

    fn flushed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        if let Some(&other) = self.others.get(&conn.id()) {
            conn.commands().resume(other)?;
        }
        Ok(())
    }

    fn closed(&mut self, end: &Closed, (): (), commands: &mut Commands) {
        let other = match self.others.remove(&end.id) {
            Some(other) => {
                self.others.remove(&other);
                Some(other)
            }
            // An upstream that never came, or a client that did not wait for it.
            None => self.waiting.remove(&end.key.unwrap_or(end.id.as_u64())),
        };
        if let CloseReason::Unreachable(kind) = end.reason {
            log::info!("{} can't be reached: {kind}", self.to);
        }
        if let Some(other) = other.filter(|&other| other != end.id) {
            // With 65,536 commands before it, its deadline will close it.
            let _ = commands.close(other);
        }
    }
}

struct Options {
    to: SocketAddr,
    listen: String,
    config: Config,
}

/// `None` if help was asked for.
fn options() -> Result<Option<Options>, Failure> {
    let (mut to, mut listen, mut max) = (None, "127.0.0.1:6269".into(), 10_000_usize);
    let mut config = Config::new()
        .framing(Framing::Drained)
        .buffer_size(BUFFER)
        .request_deadline(Duration::ZERO)
        .clients_deadline(Duration::from_secs(60));
    let mut parser = lexopt::Parser::from_env();
    while let Some(option) = parser.next()? {
        config = match option {
            Arg::Long("to") => {
                to = Some(parser.value()?.string()?);
                config
            }
            Arg::Long("listen") => {
                listen = parser.value()?.string()?;
                config
            }
            Arg::Long("max") => {
                max = number(&mut parser, "--max")?;
                config
            }
            Arg::Long("connect-ms") => {
                config.connect_deadline(millis(&mut parser, "--connect-ms")?)
            }
            Arg::Long("deadline-ms") => {
                config.clients_deadline(millis(&mut parser, "--deadline-ms")?)
            }
            Arg::Long("debug") => config.debug(true),
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        };
    }
    let to = to.ok_or_else(|| usage_error("--to is missing"))?;
    let unknown = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidInput => usage_error(format!("{to} is not HOST:PORT")),
        _ => run_error(format!("can't look up {to}: {error}")),
    };
    let to = to.to_socket_addrs().map_err(unknown)?.next();
    let to = to.ok_or_else(|| run_error("--to: a name without an address"))?;
    // A client and its upstream have a place each.
    let config = config.max_workers(max.saturating_mul(2));
    Ok(Some(Options { to, listen, config }))
}

fn run(options: Options) -> Result<(), Failure> {
    log_from(if options.config.debug { "debug" } else { "warn" });
    let stop = stop_flag().map_err(run_error)?;
    let forwarder = Forwarder { to: options.to, waiting: HashMap::new(), others: HashMap::new() };
    let mut manager = Manager::with_handler(options.config, forwarder).map_err(usage_error)?;
    let listener = bind(&options.listen)?;
    let bound = listener.local_addr().map_err(run_error)?;
    manager.start().map_err(run_error)?;
    manager.listen_on(listener).map_err(run_error)?;
    say(format_args!("listening on {bound}; forwarding to {}", options.to));
    while !stop.load(Ordering::Relaxed) {
        manager.turn(Some(TURN)).map_err(run_error)?;
    }
    let report = manager.stop().map_err(run_error)?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}

fn main() -> ExitCode {
    common::main("forward", HELP, options, run)
}
