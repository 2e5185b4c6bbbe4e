//! The options of the command line.

use std::fmt::Display;
use std::net::ToSocketAddrs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bench::client::{Length, Load, Pace, Target};
use lexopt::{Arg, Parser, ValueExt};

pub(super) const HELP: &str = "\
Sends requests to an echo server, on TCP or a Unix socket, and checks every byte of the replies.

Usage: load ADDR [OPTIONS]

  ADDR               HOST:PORT, unix:PATH, or a path with a slash
  --connections N    concurrent connections [64]
  --size BYTES       bytes per request, including the newline at its end [64]
  --depth N          requests in flight per connection [1]
  --duration SECS    measured time, may be fractional [10]
  --requests N       measure this many requests instead of a duration
  --rate N           open loop: all connections together send this many requests per second, even
                     if the server falls behind [closed loop: a connection sends its next batch
                     when its previous batch is answered]
  --churn            open a connection for each request: connect, one echo, close
  --warmup SECS      time under load before the measurement [0]
  --timeout SECS     a connection that waits this long without transferring a byte has failed [5]
  --svg FILE         write a plot of latency by percentile
  --help             print this text

In an open loop, latency is measured from the time at which a request was due, even if it was sent
later. Stalls of the server are therefore visible. In a closed loop, latency is measured from the
time at which a batch of --depth requests is sent. With --churn, it is measured from the time at
which the connection is started. An open loop does not sleep if the next request is due within a
millisecond, so run it on a dedicated core.

Requests are unique lines of text, so a server may echo bytes or lines. Except with --churn, each
connection sends one request before the run. Its reply is checked but not measured.

With --churn, the client closes first and then waits for the server to close. The ports of the
client therefore stay in TIME_WAIT for a minute. Connections to 127.0.0.0/8 use 250 source addresses
in rotation, so that the client does not run out of ports.

The exit code is 0 if every reply was correct; 1 for a wrong byte, a surplus byte, a failed
connection or a missing reply; 2 for invalid arguments.";

/// Maximum of connections times depth: the client stores the due time of each request in flight.
const IN_FLIGHT: usize = 1 << 24;

#[derive(Debug)]
pub(super) struct Options {
    pub(super) addr: Addr,
    /// The target of this load is a placeholder, because [`targets`] resolves `addr` later.
    pub(super) load: Load,
    pub(super) svg: Option<PathBuf>,
}

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Addr {
    Name(String),
    Path(PathBuf),
}

/// Returns the parsed options, or `None` if `--help` was given.
pub(super) fn parse(mut parser: Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut addr = None;
    let mut svg = None;
    let (mut duration, mut requests) = (None, None);
    let mut load = Load::new(Target::Unix(PathBuf::new()));
    load.connections = 64;
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("connections") => load.connections = number(&mut parser, 1..=1 << 20)?,
            Arg::Long("size") => load.size = number(&mut parser, 1..=1 << 30)?,
            Arg::Long("depth") => load.depth = number(&mut parser, 1..=1 << 20)?,
            Arg::Long("duration") => duration = Some(seconds(&mut parser, 1e-3)?),
            Arg::Long("requests") => requests = Some(number(&mut parser, 1..=u64::MAX >> 16)?),
            Arg::Long("rate") => load.pace = Pace::Open(number(&mut parser, 1e-3..=1e8)?),
            Arg::Long("churn") => load.churn = true,
            Arg::Long("warmup") => load.warmup = seconds(&mut parser, 0.0)?,
            Arg::Long("timeout") => load.timeout = seconds(&mut parser, 1e-3)?,
            Arg::Long("svg") => svg = Some(parser.value()?.into()),
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Value(value) if addr.is_none() => addr = Some(value.parse::<Addr>()?),
            unknown => return Err(unknown.unexpected()),
        }
    }
    load.length = match (duration, requests) {
        (Some(_), Some(_)) => return Err("--duration and --requests exclude each other".into()),
        (None, Some(requests)) => Length::Requests(requests),
        (duration, None) => Length::Time(duration.unwrap_or(Duration::from_secs(10))),
    };
    if load.churn && load.depth > 1 {
        return Err("--churn sends one request per connection and excludes --depth".into());
    }
    if load.connections.saturating_mul(load.depth) > IN_FLIGHT {
        return Err(format!("--connections times --depth is above {IN_FLIGHT}").into());
    }
    let addr = addr.ok_or("an address is missing")?;
    Ok(Some(Options { addr, load, svg }))
}

/// Resolves an address to at least one target.
pub(super) fn targets(addr: &Addr) -> Result<Vec<Target>, String> {
    match addr {
        Addr::Path(path) => Ok(vec![Target::Unix(path.clone())]),
        Addr::Name(name) => {
            let found = name.to_socket_addrs().map_err(|error| format!("{name}: {error}"))?;
            let targets: Vec<_> = found.map(Target::Tcp).collect();
            if targets.is_empty() { Err(format!("{name}: has no address")) } else { Ok(targets) }
        }
    }
}

impl FromStr for Addr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: needs a path"),
            Some(path) => Ok(Self::Path(path.into())),
            None if text.contains('/') => Ok(Self::Path(text.into())),
            None => {
                let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
                port.and_then(|(_, port)| port.parse::<u16>().ok())
                    .map(|_| Self::Name(text.into()))
                    .ok_or("an address is HOST:PORT, unix:PATH, or a path with a slash")
            }
        }
    }
}

/// Parses the value of the current option as a number in `range`.
fn number<N>(parser: &mut Parser, range: RangeInclusive<N>) -> Result<N, lexopt::Error>
where
    N: FromStr + PartialOrd + Display,
{
    let value = parser.value()?;
    let wrong = || {
        let (value, low, high) = (value.to_string_lossy(), range.start(), range.end());
        format!("{value:?} is not a number from {low} to {high}")
    };
    match value.to_str().and_then(|text| text.parse().ok()) {
        Some(number) if range.contains(&number) => Ok(number),
        _ => Err(wrong().into()),
    }
}

fn seconds(parser: &mut Parser, min: f64) -> Result<Duration, lexopt::Error> {
    number(parser, min..=1e6).map(Duration::from_secs_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_args(args: &[&str]) -> Result<Option<Options>, lexopt::Error> {
        parse(Parser::from_args(args))
    }

    #[test]
    fn every_option_sets_its_field() {
        let args = "[::1]:80 --connections 3 --size 9 --depth 2 --duration 0.5 --rate 2.5 \
                    --warmup 0.25 --timeout 7 --svg a.svg";
        let args: Vec<_> = args.split_whitespace().collect();
        let Options { addr, load, svg } = parse_args(&args).unwrap().unwrap();
        assert_eq!(addr, Addr::Name("[::1]:80".into()));
        assert_eq!((load.connections, load.size, load.depth, load.churn), (3, 9, 2, false));
        assert!(matches!(load.length, Length::Time(time) if time == Duration::from_millis(500)));
        assert!(matches!(load.pace, Pace::Open(rate) if rate.to_string() == "2.5"));
        assert_eq!(
            (load.warmup, load.timeout),
            (Duration::from_millis(250), Duration::from_secs(7))
        );
        assert_eq!(svg, Some("a.svg".into()));
        let more = parse_args(&["unix:s", "--churn", "--requests=8"]).unwrap().unwrap();
        assert_eq!(more.addr, Addr::Path("s".into()));
        assert!(more.load.churn && matches!(more.load.length, Length::Requests(8)));
    }

    #[test]
    fn invalid_arguments_are_reported_in_one_line() {
        for (args, expected) in [
            (&[][..], "address is missing"),
            (&["localhost"], "HOST:PORT"),
            (&["localhost:http"], "HOST:PORT"),
            (&[":80"], "HOST:PORT"),
            (&["unix:"], "needs a path"),
            (&["a:1", "b:2"], "b:2"),
            (&["a:1", "--rate", "0"], "\"0\" is not a number from 0.001"),
            (&["a:1", "--rate", "NaN"], "NaN"),
            (&["a:1", "--rate", "inf"], "inf"),
            (&["a:1", "--duration", "-1"], "-1"),
            (&["a:1", "--duration", "1", "--requests", "1"], "exclude"),
            (&["a:1", "--connections", "many"], "many"),
            (&["a:1", "--connections"], "connections"),
            (&["a:1", "--churn", "--depth", "2"], "--churn"),
            (&["a:1", "--connections", "1000000", "--depth", "1000"], "16777216"),
            (&["a:1", "--fast"], "--fast"),
        ] {
            let error = parse_args(args).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{args:?}: {error}");
        }
    }

    #[test]
    fn help_needs_no_address() {
        assert!(parse_args(&["--help"]).unwrap().is_none());
    }
}
