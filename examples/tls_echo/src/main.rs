//! Echoes over TLS: what a transport of one's own takes.
//!
//! `cargo run --release -p tls_echo -- --cert cert.pem --key key.pem`, then
//! `openssl s_client -quiet -connect 127.0.0.1:6264`.

#[path = "../../common/mod.rs"]
mod common;
mod config;
mod transport;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{
    Failure, TURN, bind, log_from, millis, number, run_error, say, stop_flag, usage_error,
};
use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Conn, Framing, Handler, Manager, Overload, Socket};
use rustls::ServerConfig;

use transport::Tls;

const HELP: &str = "\
Echoes over TLS 1.2 and 1.3 what it is sent, on one thread.

Usage: tls_echo --cert FILE --key FILE [OPTIONS]

  --listen ADDR         address to listen on [127.0.0.1:6264]
  --cert FILE           certificate, and those between it and its root, in PEM
  --key FILE            its private key, in PEM
  --client-ca FILE      ask clients for a certificate that one of these has issued, in PEM
  --client-auth KIND    required: turn away who has none [default]; optional: let them in
  --alpn NAMES          application protocols, the preferred first: echo/2,echo/1
  --max N               connections at a time; more wait in the backlog [no maximum]
  --handshake-ms MS     how long it may take until the first byte behind a handshake [5000]
  --deadline-ms MS      how long a peer may be silent after that [30000]
  --debug               log every connection
  --help                this text

A peer that ends with a close_notify is answered and told goodbye in the same way. One whose stream
just ends has been cut off: with --debug that is `unexpected end of file`.
SIGINT or SIGTERM stops gracefully; a second one at once.";

struct Options {
    listen: String,
    tls: config::Options,
    handshake: Duration,
    config: Config,
}

fn main() -> ExitCode {
    common::main("tls_echo", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
    let mut options = Options {
        listen: "127.0.0.1:6264".into(),
        tls: config::Options::default(),
        handshake: Duration::from_secs(5),
        // A body is at most what fits into one record.
        config: Config::new()
            .framing(Framing::Drained)
            .buffer_size(16 << 10)
            .clients_deadline(Duration::from_secs(30))
            .overload(Overload::Pause),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        match arg {
            Arg::Long("listen") => options.listen = parser.value()?.string()?,
            Arg::Long("cert") => options.tls.cert = parser.value()?.into(),
            Arg::Long("key") => options.tls.key = parser.value()?.into(),
            Arg::Long("client-ca") => options.tls.client_ca = Some(parser.value()?.into()),
            Arg::Long("client-auth") => {
                options.tls.anonymous = match parser.value()?.to_str() {
                    Some("optional") => true,
                    Some("required") => false,
                    _ => return Err(usage_error("--client-auth is required or optional")),
                }
            }
            Arg::Long("alpn") => {
                let names = parser.value()?.string()?;
                options.tls.alpn = names.split(',').map(|name| name.as_bytes().to_vec()).collect();
                if options.tls.alpn.iter().any(|name| !(1..=255).contains(&name.len())) {
                    return Err(usage_error("--alpn: a name has 1 to 255 bytes"));
                }
            }
            Arg::Long("max") => {
                options.config = config.max_workers(number(&mut parser, "--max")?);
            }
            Arg::Long("handshake-ms") => {
                options.handshake = millis(&mut parser, "--handshake-ms")?;
            }
            Arg::Long("deadline-ms") => {
                options.config = config.clients_deadline(millis(&mut parser, "--deadline-ms")?);
            }
            Arg::Long("debug") => options.config = config.debug(true),
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
        }
    }
    if options.tls.cert.as_os_str().is_empty() || options.tls.key.as_os_str().is_empty() {
        return Err(usage_error("--cert and --key are needed"));
    }
    Ok(Some(options))
}

struct Echo {
    tls: Arc<ServerConfig>,
    handshake: Duration,
}

impl Handler for Echo {
    type Session = ();

    fn wrap(&mut self, socket: Socket) -> io::Result<Socket> {
        match socket {
            Socket::Tcp(stream) => Ok(Socket::boxed(Tls::new(stream, self.tls.clone())?)),
            _ => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Only plaintext counts as a sign of life, so whoever drips a handshake gains no time by it.
    fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        conn.set_idle_deadline(self.handshake);
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        conn.set_idle_deadline(Duration::ZERO);
        conn.write_all(body)
    }
}

fn serve(options: Options) -> Result<(), Failure> {
    let Options { listen, tls, handshake, config } = options;
    let debug = config.debug;
    let handler = Echo { tls: config::server(&tls)?, handshake };
    // What is wrong with the configuration is wrong with the arguments.
    let mut manager = Manager::with_handler(config, handler).map_err(usage_error)?;
    let listener = bind(&listen)?;
    let addr = listener.local_addr().map_err(run_error)?;
    log_from(if debug { "debug" } else { "info" });
    let stop = stop_flag().map_err(run_error)?;
    manager.start().map_err(run_error)?;
    manager.listen_on(listener).map_err(run_error)?;
    say(format_args!("listening on {addr}; try: openssl s_client -quiet -connect {addr}"));
    while !stop.load(Ordering::Relaxed) {
        manager.turn(Some(TURN)).map_err(run_error)?;
    }
    let report = manager.stop().map_err(run_error)?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}
