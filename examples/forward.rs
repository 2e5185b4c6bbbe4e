//! TCP forwarder: each client gets its own connection to another address, and bytes go both ways.
//!
//! `cargo run --release --example forward -- --to 127.0.0.1:80`, then
//! `curl http://127.0.0.1:6269/`.
//!
//! A client is paused until its upstream connection is established, so nothing that it sends is
//! lost or queued. If the connection fails, the client is closed. If one side takes bytes more
//! slowly than they arrive, the other side is paused until all queued bytes have been sent. At most
//! the bytes of a few reads are queued for each side.
//!
//! When one side sends the end of file, the queued bytes and then the end of file are sent to the
//! other side. The opposite direction stays open until it ends too, so a client can shut down its
//! sending side and then receive the reply. When one side fails, the other side is closed.
//!
//! Uses `main`, `say`, `log_from`, `number`, `millis`, `signals`, `bind` and `usage` of
//! `examples/common`: start, output, options, signals and the listener.

mod common;

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use common::{Result, bind, log_from, millis, number, say, signals, usage};
use lexopt::{Arg, ValueExt};
use pool_manager::{
    CloseReason, Closed, Commands, Config, Conn, ConnId, ConnectOptions, Framing, Handler, Manager,
};

const HELP: &str = "\
Forwards each connection to another address, both ways.

Usage: forward --to ADDR [OPTIONS]

  --to ADDR          address to forward to; a name is resolved once, at start
  --listen ADDR      address to listen on [127.0.0.1:6269]
  --max N            clients at a time; further ones get ERROR_SERVER_BUSY, or are closed if no
                     worker is free for their upstream connection [10000]
  --connect-ms MS    how long connecting to the other address may take [3000]
  --deadline-ms MS   how long a connection may move no bytes [60000]
  --debug            log every connection
  --help             print this text

The end of file is forwarded in each direction separately. When one side fails, the other side is
closed.
SIGINT or SIGTERM stops gracefully; a second one completes the stop at once.";

/// The size of one read in bytes.
const BUFFER: usize = 64 << 10;

struct Forwarder {
    to: SocketAddr,
    /// Clients whose upstream connection is not established yet, by the key of that connection.
    waiting: HashMap<u64, ConnId>,
    /// The other side of each connection.
    others: HashMap<ConnId, ConnId>,
}

impl Handler for Forwarder {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
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
            // The client has closed in the meantime.
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

    /// Forwards the end of file. This side stays open for output until the other side ends too.
    fn read_closed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        match self.others.get(&conn.id()) {
            Some(&other) => conn.commands().finish(other)?,
            None => conn.finish(),
        }
        Ok(())
    }

    /// Called when this side does not take all bytes: pauses the other side.
    fn blocked(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        if let Some(&other) = self.others.get(&conn.id()) {
            conn.commands().pause(other)?;
        }
        Ok(())
    }

    /// Called when all queued bytes have been sent: resumes the other side.
    fn flushed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        if let Some(&other) = self.others.get(&conn.id()) {
            conn.commands().resume(other)?;
        }
        Ok(())
    }

    fn closed(&mut self, end: &Closed, _: Option<()>, commands: &mut Commands) {
        let other = match self.others.remove(&end.id) {
            Some(other) => {
                self.others.remove(&other);
                Some(other)
            }
            // This is an upstream connection that failed, or a client that was still waiting.
            None => self.waiting.remove(&end.key.unwrap_or(end.id.as_u64())),
        };
        if let (CloseReason::Unreachable, Some(error)) = (end.reason, &end.error) {
            log::info!("{} can't be reached: {error}", self.to);
        }
        if let Some(other) = other.filter(|&other| other != end.id) {
            // If the command queue is full, the deadline closes the other side.
            let _ = commands.close(other);
        }
    }
}

struct Options {
    to: String,
    listen: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("forward", HELP, options, serve)
}

/// Parses the arguments. Returns `None` for `--help`.
fn options() -> Result<Option<Options>, lexopt::Error> {
    let (mut to, mut listen, mut max) = (None, "127.0.0.1:6269".into(), 10_000_usize);
    let mut config = Config::new()
        .framing(Framing::Drained)
        .buffer_size(BUFFER)
        .request_deadline(None)
        // A side is paused while the other side is blocked. The deadline of the other side applies.
        .paused_deadline(None)
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
            other => return Err(other.unexpected()),
        };
    }
    let to = to.ok_or("--to is missing")?;
    // A client and its upstream connection take one worker each.
    let config = config.max_workers(max.saturating_mul(2));
    Ok(Some(Options { to, listen, config }))
}

/// Resolves the address to forward to.
fn resolve(to: &str) -> Result<SocketAddr> {
    let failed = |error: io::Error| -> Box<dyn Error> {
        match error.kind() {
            io::ErrorKind::InvalidInput => usage(format!("{to} is not HOST:PORT")).into(),
            _ => format!("can't look up {to}: {error}").into(),
        }
    };
    let addr = to.to_socket_addrs().map_err(failed)?.next();
    Ok(addr.ok_or("--to: a name without an address")?)
}

fn serve(options: Options) -> Result<()> {
    let to = resolve(&options.to)?;
    log_from(if options.config.debug { "debug" } else { "warn" });
    let signals = signals()?;
    let forwarder = Forwarder { to, waiting: HashMap::new(), others: HashMap::new() };
    let mut manager = Manager::with_handler(options.config, forwarder).map_err(usage)?;
    let listener = bind(&options.listen)?;
    let bound = listener.local_addr()?;
    manager.stop_on(signals)?;
    manager.start()?;
    manager.listen_on(listener)?;
    say(format_args!("listening on {bound}; forwarding to {to}"));
    let report = manager.run()?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}
