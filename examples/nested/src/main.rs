//! Echo server inside the event loop of another library: tokio or calloop.
//!
//! `cargo run --release -p nested -- --loop tokio`, then `nc 127.0.0.1 6265`.
//!
//! Uses `main`, `say`, `log_from`, `millis`, `bind` and `usage` of `examples/common`: start,
//! output, options and the listener.

// tokio and calloop have their own signal handling, so `signals` is not used.
#[allow(dead_code)]
#[path = "../../common/mod.rs"]
mod common;
mod in_calloop;
mod in_tokio;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use common::{Result, bind, log_from, millis, say, usage};
use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Conn, Framing, Handler, Manager};

const HELP: &str = "\
Sends back what it receives, inside the event loop of another library, on one thread.

Usage: nested [OPTIONS]

  --loop NAME         event loop to run in: tokio [default] or calloop
  --listen ADDR       address to listen on [127.0.0.1:6265]
  --deadline-ms MS    how long a connection may be silent [3000]
  --debug             log every connection
  --help              print this text

SIGINT or SIGTERM stops gracefully; a second one ends the program at once.";

/// The error after a second signal.
const SECOND_SIGNAL: &str = "second signal: stopped at once, connections were cut off";

#[derive(Clone, Copy, Debug)]
enum Loop {
    Tokio,
    Calloop,
}

struct Options {
    event_loop: Loop,
    listen: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("nested", HELP, options, serve)
}

/// Parses the arguments. Returns `None` for `--help`.
fn options() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        event_loop: Loop::Tokio,
        listen: "127.0.0.1:6265".into(),
        config: Config::new().framing(Framing::Drained),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        match arg {
            Arg::Long("loop") => {
                options.event_loop = match parser.value()?.to_str() {
                    Some("tokio") => Loop::Tokio,
                    Some("calloop") => Loop::Calloop,
                    _ => return Err("the loops are tokio and calloop".into()),
                }
            }
            Arg::Long("listen") => options.listen = parser.value()?.string()?,
            Arg::Long("deadline-ms") => {
                options.config = config.clients_deadline(millis(&mut parser, "--deadline-ms")?);
            }
            Arg::Long("debug") => options.config = config.debug(true),
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected()),
        }
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<()> {
    let debug = options.config.debug;
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    // An invalid configuration comes from the arguments.
    let mut manager = Manager::new(options.config, echo).map_err(usage)?;
    let listener = bind(&options.listen)?;
    let addr = listener.local_addr()?;
    log_from(if debug { "debug" } else { "info" });
    manager.start()?;
    manager.listen_on(listener)?;
    let ready = || {
        say(format_args!("listening on {addr}; try: nc {} {}", addr.ip(), addr.port()));
    };
    let report = match options.event_loop {
        Loop::Tokio => in_tokio::run(&mut manager, ready),
        Loop::Calloop => in_calloop::run(manager, ready),
    };
    say(format_args!("stopped: {}", report?));
    Ok(())
}

/// Duplicates the manager's descriptor. The event loop owns the duplicate while the manager is
/// borrowed for its turns.
fn descriptor<H: Handler>(manager: &Manager<H>) -> io::Result<OwnedFd> {
    manager.as_fd().try_clone_to_owned()
}
