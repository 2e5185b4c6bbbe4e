//! What can be asked for on the command line.

use std::fmt::Display;
use std::net::ToSocketAddrs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bench::client::{Length, Load, Pace, Target};
use lexopt::{Arg, Parser, ValueExt};

pub(super) const HELP: &str = "\
Loads a server that echoes, on TCP or a Unix socket, and checks every byte of its replies.

Usage: load ADDR [OPTIONS]

  ADDR               HOST:PORT, unix:PATH, or a path with a slash
  --connections N    connections at a time [64]
  --size BYTES       bytes of a request, the newline at its end among them [64]
  --depth N          requests in flight on a connection [1]
  --duration SECS    how long to measure; fractions are fine [10]
  --requests N       measure so many requests instead
  --rate N           open loop: so many requests a second in all, on schedule whether or not the
                     server keeps up [closed loop: send when the last reply is there]
  --churn            a connection for each request: connect, one echo, close
  --warmup SECS      load for so long before measuring [0]
  --timeout SECS     a connection that waits so long without a byte moving has failed [5]
  --svg FILE         draw latency by percentile
  --help             this text

In an open loop latency counts from when a request was due, whether or not it could be sent then,
so a server that stalls shows it. In a closed loop it counts from when a batch of --depth requests
is sent, with --churn from when the connection is begun. An open loop does not sleep when the next
request is due within a millisecond: give it a core of its own.

Requests are lines of text, no two alike, so a server may echo bytes or lines. Except with --churn,
each connection says one request before the run; it is checked but not measured.

With --churn this side closes first and waits for the server to do so too, so ports rest here for a
minute; connections to 127.0.0.0/8 come from 250 addresses in turns, so they do not run out.

The exit code is 0 if every reply was right, 1 if not (a wrong byte, one too many, a failed
connection, a missing reply), 2 if the arguments make no sense.";

/// The most of connections times depth: the times of requests in flight are kept.
const IN_FLIGHT: usize = 1 << 24;

#[derive(Debug)]
pub(super) struct Options {
    pub(super) addr: Addr,
    /// Its target is not yet that of `addr`: names are looked up later.
    pub(super) load: Load,
    pub(super) svg: Option<PathBuf>,
}

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Addr {
    Name(String),
    Path(PathBuf),
}

/// What was given; `None` if the help is wanted.
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
            Arg::Long("timeout") => load.patience = seconds(&mut parser, 1e-3)?,
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
        return Err("--churn sends one request on a connection: --depth makes no sense".into());
    }
    if load.connections.saturating_mul(load.depth) > IN_FLIGHT {
        return Err(format!("--connections times --depth is above {IN_FLIGHT}").into());
    }
    let addr = addr.ok_or("an address is missing")?;
    Ok(Some(Options { addr, load, svg }))
}

/// What an address stands for; at least one.
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

/// The value of the option just met.
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

fn seconds(parser: &mut Parser, least: f64) -> Result<Duration, lexopt::Error> {
    number(parser, least..=1e6).map(Duration::from_secs_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[&str]) -> Result<Option<Options>, lexopt::Error> {
        parse(Parser::from_args(args))
    }

    #[test]
    fn all_options_arrive_where_they_belong() {
        let args = "[::1]:80 --connections 3 --size 9 --depth 2 --duration 0.5 --rate 2.5 \
                    --warmup 0.25 --timeout 7 --svg a.svg";
        let args: Vec<_> = args.split_whitespace().collect();
        let Options { addr, load, svg } = given(&args).unwrap().unwrap();
        assert_eq!(addr, Addr::Name("[::1]:80".into()));
        assert_eq!((load.connections, load.size, load.depth, load.churn), (3, 9, 2, false));
        assert!(matches!(load.length, Length::Time(time) if time == Duration::from_millis(500)));
        assert!(matches!(load.pace, Pace::Open(rate) if rate.to_string() == "2.5"));
        assert_eq!(
            (load.warmup, load.patience),
            (Duration::from_millis(250), Duration::from_secs(7))
        );
        assert_eq!(svg, Some("a.svg".into()));
        let more = given(&["unix:s", "--churn", "--requests=8"]).unwrap().unwrap();
        assert_eq!(more.addr, Addr::Path("s".into()));
        assert!(more.load.churn && matches!(more.load.length, Length::Requests(8)));
    }

    #[test]
    fn what_makes_no_sense_is_said_in_one_line() {
        for (args, says) in [
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
            let error = given(args).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{args:?}: {error}");
        }
    }

    #[test]
    fn help_comes_before_everything() {
        assert!(given(&["--help"]).unwrap().is_none());
    }
}
