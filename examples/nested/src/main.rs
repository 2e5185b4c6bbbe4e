//! Echoes from within somebody else's loop: of tokio, or of calloop.
//!
//! `cargo run --release -p nested -- --loop tokio`, then `nc 127.0.0.1 6265`.

// These loops have ways of their own to wait for a signal.
#[allow(dead_code)]
#[path = "../../common/mod.rs"]
mod common;
mod in_calloop;
mod in_tokio;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use common::{Failure, bind, log_from, millis, run_error, say, usage_error};
use lexopt::{Arg, ValueExt};
use pool_manager::{Config, Conn, Framing, Handler, Manager};

const HELP: &str = "\
Echoes what it is sent, from within another loop than its own, on one thread.

Usage: nested [OPTIONS]

  --loop NAME         whose loop it is: tokio [default] or calloop
  --listen ADDR       address to listen on [127.0.0.1:6265]
  --deadline-ms MS    how long a peer may be silent [3000]
  --debug             log every connection
  --help              this text

SIGINT or SIGTERM stops gracefully; a second one at once.";

/// Why a second signal ends it.
const TWICE: &str = "told to stop twice: connections were cut off";

#[derive(Clone, Copy, Debug)]
enum Loop {
    Tokio,
    Calloop,
}

struct Options {
    within: Loop,
    listen: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("nested", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
    let mut options = Options {
        within: Loop::Tokio,
        listen: "127.0.0.1:6265".into(),
        config: Config::new().framing(Framing::Drained),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        match arg {
            Arg::Long("loop") => {
                options.within = match parser.value()?.to_str() {
                    Some("tokio") => Loop::Tokio,
                    Some("calloop") => Loop::Calloop,
                    _ => return Err(usage_error("the loops are tokio and calloop")),
                }
            }
            Arg::Long("listen") => options.listen = parser.value()?.string()?,
            Arg::Long("deadline-ms") => {
                options.config = config.clients_deadline(millis(&mut parser, "--deadline-ms")?);
            }
            Arg::Long("debug") => options.config = config.debug(true),
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
        }
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<(), Failure> {
    let debug = options.config.debug;
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    // What is wrong with the configuration is wrong with the arguments.
    let mut manager = Manager::new(options.config, echo).map_err(usage_error)?;
    let listener = bind(&options.listen)?;
    let addr = listener.local_addr().map_err(run_error)?;
    log_from(if debug { "debug" } else { "info" });
    manager.start().map_err(run_error)?;
    manager.listen_on(listener).map_err(run_error)?;
    let ready = || {
        say(format_args!("listening on {addr}; try: nc {} {}", addr.ip(), addr.port()));
    };
    let report = match options.within {
        Loop::Tokio => in_tokio::run(&mut manager, ready),
        Loop::Calloop => in_calloop::run(manager, ready),
    };
    say(format_args!("stopped: {}", report.map_err(Failure::Run)?));
    Ok(())
}

/// The manager's descriptor under a number of its own, so that the other loop can keep it while
/// the manager is turn_ended.
fn descriptor<H: Handler>(manager: &Manager<H>) -> io::Result<OwnedFd> {
    manager.as_fd().try_clone_to_owned()
}
