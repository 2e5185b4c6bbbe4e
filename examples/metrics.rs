//! An echo service that a monitoring system can watch: its counters are scraped over HTTP.
//!
//! `cargo run --release --example metrics`, then `curl http://127.0.0.1:6264/metrics`.
//!
//! Two managers share one thread. The one that answers scrapes has places, a framing and deadlines
//! of its own, so that it still answers when the service is full, which is when one looks.

mod common;

use std::cell::Cell;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{
    Failure, TURN, bind, log_from, millis, number, run_error, say, stop_flag, usage_error,
};
use lexopt::{Arg, ValueExt};
use pool_manager::{Cause, Config, Conn, Error, Frame, Framing, Handler, Manager, Stats};

const HELP: &str = "\
Echoes what it is sent, and serves its counters to Prometheus, on one thread.

Usage: metrics [OPTIONS]

  --listen ADDR         address of the echo service [127.0.0.1:6263]
  --metrics ADDR        address that answers GET /metrics [127.0.0.1:6264]
  --max N               connections at a time of the service [no maximum]
  --deadline-ms MS      how long a peer of the service may be silent [3000]
  --help                this text

A scrape waits 20 ms at most for its turn. SIGINT or SIGTERM stops gracefully.";

struct Options {
    listen: String,
    metrics: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("metrics", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
    let mut options = Options {
        listen: "127.0.0.1:6263".into(),
        metrics: "127.0.0.1:6264".into(),
        config: Config::new().framing(Framing::Drained),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        match arg {
            Arg::Long("listen") => options.listen = parser.value()?.string()?,
            Arg::Long("metrics") => options.metrics = parser.value()?.string()?,
            Arg::Long("max") => options.config = config.max_workers(number(&mut parser, "--max")?),
            Arg::Long("deadline-ms") => {
                options.config = config.clients_deadline(millis(&mut parser, "--deadline-ms")?);
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
        }
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<(), Failure> {
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let mut service = Manager::new(options.config, echo).map_err(usage_error)?;
    let latest = Rc::new(Cell::new(Stats::default()));
    let shown = latest.clone();
    let answer = move |conn: &mut Conn<'_>, head: &[u8]| answer(conn, head, &shown.get());
    let mut scrapes = Manager::new(scrapes_config(), answer).map_err(usage_error)?;
    let listeners = [bind(&options.listen)?, bind(&options.metrics)?];
    let addrs = listeners.each_ref().map(std::net::TcpListener::local_addr);
    log_from("info");
    let stop = stop_flag().map_err(run_error)?;
    service.start().map_err(run_error)?;
    scrapes.start().map_err(run_error)?;
    let [echoes, metrics] = listeners;
    service.listen_on(echoes).map_err(run_error)?;
    scrapes.listen_on(metrics).map_err(run_error)?;
    let [echoes, metrics] = addrs;
    let (echoes, metrics) = (echoes.map_err(run_error)?, metrics.map_err(run_error)?);
    say(format_args!("listening on {echoes}; try: nc {} {}", echoes.ip(), echoes.port()));
    say(format_args!("metrics on {metrics}; try: curl http://{metrics}/metrics"));
    // How often scrapes have their turn, which costs the service a system call each time.
    let pause = TURN / 10;
    let mut turn_ended = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        service.turn(Some(pause)).map_err(run_error)?;
        if turn_ended.elapsed() >= pause {
            latest.set(service.stats());
            turn_until_done(&mut scrapes).map_err(run_error)?;
            turn_ended = Instant::now();
        }
    }
    scrapes.stop().map_err(run_error)?;
    let report = service.stop().map_err(run_error)?;
    say(format_args!("stopped: {report}; {}", service.stats()));
    Ok(())
}

/// Few at a time, with little patience: who scrapes is no crowd.
fn scrapes_config() -> Config {
    let head = |held: &[u8]| match held.windows(4).position(|end| end == b"\r\n\r\n") {
        Some(at) => Frame::Complete(at + 4),
        None => Frame::Partial,
    };
    Config::new().framing(Framing::custom(head)).max_workers(16)
}

/// A scrape takes a turn to be accepted and another to be answered; bounded, as all is.
fn turn_until_done<H: Handler>(scrapes: &mut Manager<H>) -> Result<(), Error> {
    for _ in 0..8 {
        let turn = scrapes.turn(Some(Duration::ZERO))?;
        if turn.accepted + turn.served == 0 {
            break;
        }
    }
    Ok(())
}

/// Answers one request and closes, which keeps HTTP simple.
fn answer(conn: &mut Conn<'_>, head: &[u8], stats: &Stats) -> io::Result<()> {
    conn.close();
    if conn.cause() != Cause::Framed {
        return reply(conn, "400 Bad Request", "this was no request\n");
    }
    let target = head.strip_prefix(b"GET ").map(|rest| rest.split(|&byte| byte == b' ').next());
    match target {
        Some(Some(b"/metrics")) => reply(conn, "200 OK", stats.prometheus()),
        Some(_) => reply(conn, "404 Not Found", "the counters are at /metrics\n"),
        None => reply(conn, "405 Method Not Allowed", "only GET\n"),
    }
}

fn reply(conn: &mut Conn<'_>, status: &str, body: impl Display) -> io::Result<()> {
    let body = body.to_string();
    write!(
        conn,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
