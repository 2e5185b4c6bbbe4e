//! Echo server over TLS: shows how to write a transport.
//!
//! `cargo run --release -p tls_echo -- --cert cert.pem --key key.pem`, then `openssl s_client
//! -quiet -connect 127.0.0.1:6264`. The command that makes a certificate is in
//! `examples/README.md`.
//!
//! Modules: `transport` is the TLS session over a socket, `config` builds the rustls configuration.
//!
//! Uses `main`, `say`, `log_from`, `number`, `millis`, `signals`, `bind` and `usage` of
//! `examples/common`: start, output, options, signals and the listener.

#[path = "../../common/mod.rs"]
mod common;
mod config;
mod transport;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use common::{Result, bind, log_from, millis, number, say, signals, usage};
use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Conn, Framing, Handler, Manager, Overload, Socket};
use rustls::ServerConfig;

use transport::Tls;

const HELP: &str = "\
Sends back what it receives over TLS 1.2 and 1.3, on one thread.

Usage: tls_echo --cert FILE --key FILE [OPTIONS]

  --listen ADDR         address to listen on [127.0.0.1:6264]
  --cert FILE           certificate and its intermediate certificates, in PEM
  --key FILE            private key of the certificate, in PEM
  --client-ca FILE      ask clients for a certificate issued by one of these authorities, in PEM
  --client-auth KIND    required: refuse clients without a certificate [default]; optional: accept
  --alpn NAMES          application protocols, in order of preference, such as echo/2,echo/1
  --max N               connections at a time; further ones wait in the backlog [no maximum]
  --handshake-ms MS     time limit for the handshake and the first byte after it [5000]
  --deadline-ms MS      how long a connection may be silent after that [30000]
  --debug               log every connection
  --help                print this text

A peer that ends its stream with close_notify gets a close_notify back. A stream that ends without
it is truncated; --debug logs it as `unexpected end of file`.
SIGINT or SIGTERM stops gracefully; a second one completes the stop at once.";

struct Options {
    listen: String,
    tls: config::Options,
    handshake: Duration,
    config: Config,
}

fn main() -> ExitCode {
    common::main("tls_echo", HELP, options, serve)
}

/// Parses the arguments. Returns `None` for `--help`.
fn options() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        listen: "127.0.0.1:6264".into(),
        tls: config::Options::default(),
        handshake: Duration::from_secs(5),
        // A body is at most as long as the plaintext of one TLS record.
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
                    _ => return Err("--client-auth is required or optional".into()),
                }
            }
            Arg::Long("alpn") => {
                let names = parser.value()?.string()?;
                options.tls.alpn = names.split(',').map(|name| name.as_bytes().to_vec()).collect();
                if options.tls.alpn.iter().any(|name| !(1..=255).contains(&name.len())) {
                    return Err("--alpn: a name has 1 to 255 bytes".into());
                }
            }
            Arg::Long("max") => {
                options.config = config.max_workers(number::<usize>(&mut parser, "--max")?);
            }
            Arg::Long("handshake-ms") => {
                options.handshake = millis(&mut parser, "--handshake-ms")?;
            }
            Arg::Long("deadline-ms") => {
                options.config = config.clients_deadline(millis(&mut parser, "--deadline-ms")?);
            }
            Arg::Long("debug") => options.config = config.debug(true),
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected()),
        }
    }
    if options.tls.cert.as_os_str().is_empty() || options.tls.key.as_os_str().is_empty() {
        return Err("--cert and --key are needed".into());
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

    /// Sets the handshake's time limit. The idle deadline counts from the last plaintext byte, so a
    /// slow handshake does not extend it.
    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
        conn.set_idle_deadline(self.handshake);
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        conn.set_idle_deadline(None);
        conn.write_all(body)
    }
}

fn serve(options: Options) -> Result<()> {
    let Options { listen, tls, handshake, config } = options;
    let debug = config.debug;
    let handler = Echo { tls: config::server(&tls)?, handshake };
    // An invalid configuration comes from the arguments.
    let mut manager = Manager::with_handler(config, handler).map_err(usage)?;
    let listener = bind(&listen)?;
    let addr = listener.local_addr()?;
    log_from(if debug { "debug" } else { "info" });
    manager.stop_on(signals()?)?;
    manager.start()?;
    manager.listen_on(listener)?;
    say(format_args!("listening on {addr}; try: openssl s_client -quiet -connect {addr}"));
    let report = manager.run()?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}
