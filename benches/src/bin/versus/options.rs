//! The options of the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Error, Parser, ValueExt};

use crate::cases::{CASES, Case, DEADLINE};
use crate::named::Named;
use crate::servers::{Kind, Service};

pub(crate) const HELP: &str = "\
Compares pool-manager with other ways to serve connections on one core: raw epoll, a bare mio loop,
tokio with timeouts, blocking threads. Takes less than 6 minutes.

Usage: versus [OPTIONS]
       versus serve SERVER MODE [--core N] [--deadline SECS]

  --quick       fewer and shorter rounds, no case with 10,000 connections: less than a minute
  --only CASE   measure this case; may be repeated
  --out DIR     folder of the plots [target/versus]
  --help        print this text

Cases:   echo-1 echo-64 echo-1000 echo-10000: one request at a time on each connection
         lines-1 lines-64 lines-1000 lines-10000: 16 lines at a time on each connection
         churn: connect, one echo, close
         idle: memory of idle connections
Servers: pool-manager epoll mio tokio threads
Modes:   echo lines idle

`versus` starts `versus serve` for each server. The server prints its port, and ends when its parent
process ends. It closes connections that are silent for longer than --deadline (3 seconds by
default); epoll and mio ignore this option. With --core, it runs on the given core.";

#[derive(Debug)]
pub(crate) enum Command {
    Help,
    Serve { kind: Kind, service: Service, core: Option<usize> },
    Measure(Plan),
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) cases: Vec<Case>,
    pub(crate) out: PathBuf,
}

pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut parser = Parser::from_args(args);
    let (mut quick, mut only, mut out) = (false, Vec::new(), PathBuf::from("target/versus"));
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("quick") => quick = true,
            Arg::Long("only") => only.push(parser.value()?.parse_with(case)?),
            Arg::Long("out") => out = parser.value()?.into(),
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Value(command) if command == "serve" => return serve(&mut parser),
            unknown => return Err(unknown.unexpected()),
        }
    }
    let wanted = |case: &Case| {
        if only.is_empty() { !(quick && case.is_long()) } else { only.contains(&case.name) }
    };
    Ok(Command::Measure(Plan { quick, cases: CASES.into_iter().filter(wanted).collect(), out }))
}

fn serve(parser: &mut Parser) -> Result<Command, Error> {
    let kind = parser.value()?.parse_with(named)?;
    let mode = parser.value()?.parse_with(named)?;
    let (mut core, mut deadline) = (None, DEADLINE);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("core") => core = Some(parser.value()?.parse()?),
            Arg::Long("deadline") => deadline = Duration::from_secs(parser.value()?.parse()?),
            unknown => return Err(unknown.unexpected()),
        }
    }
    Ok(Command::Serve { kind, service: Service { mode, deadline }, core })
}

fn case(name: &str) -> Result<&'static str, &'static str> {
    let case = CASES.iter().find(|case| case.name == name);
    case.map(|case| case.name).ok_or("unknown case")
}

fn named<N: Named>(name: &str) -> Result<N, &'static str> {
    N::from_name(name).ok_or("unknown server or mode")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::Mode;

    fn names(args: &[&str]) -> Vec<&'static str> {
        match parse(args.iter().map(Into::into)) {
            Ok(Command::Measure(plan)) => plan.cases.iter().map(|case| case.name).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_cases_are_measured_unless_some_are_selected() {
        assert_eq!(names(&[]).len(), CASES.len());
        assert!(!names(&["--quick"]).contains(&"echo-10000"));
        assert_eq!(
            names(&["--only", "churn", "--quick", "--only", "echo-10000"]),
            ["churn", "echo-10000"]
        );
    }

    #[test]
    fn the_help_names_every_case_server_and_mode() {
        let kinds = Kind::ALL.iter().map(|kind| kind.name());
        let modes = Mode::ALL.iter().map(|mode| mode.name());
        for name in kinds.chain(modes).chain(CASES.map(|case| case.name)) {
            assert!(HELP.contains(name), "{name}");
        }
    }

    #[test]
    fn invalid_arguments_are_refused() {
        for args in [
            &["--only", "nothing"][..],
            &["serve", "mio"],
            &["serve", "mio", "echo", "--core", "x"],
        ] {
            assert!(parse(args.iter().map(Into::into)).is_err(), "{args:?}");
        }
    }
}
