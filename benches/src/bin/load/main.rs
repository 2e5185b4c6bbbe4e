//! Loads an echo server, closed or open loop, and checks every byte of its replies.
//!
//! `cargo run --release -p bench --bin load -- 127.0.0.1:6263`; `--help` says the rest.

mod live;
mod options;
mod report;

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use bench::client::{self, Load, Outcome};
use bench::plot::{self, Series};

use self::live::Live;
use self::options::{HELP, Options};

fn main() -> ExitCode {
    match options::parse(lexopt::Parser::from_env()) {
        Ok(Some(options)) => load(&options).unwrap_or_else(|error| complain(&error, 1)),
        Ok(None) => {
            say(HELP);
            ExitCode::SUCCESS
        }
        Err(error) => complain(&format_args!("{error}; try --help"), 2),
    }
}

/// Loads, reports, draws. Whatever failed is a line on stderr, and an exit code of 1.
fn load(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    let (load, outcome) = run_first(options)?;
    say(report::text(&load, &outcome));
    if let Some(path) = &options.svg {
        let series = [Series { name: &report::load(&load), latency: &outcome.latency }];
        let svg = plot::latency(&format!("Latency of {}", report::target(&load)), &series);
        std::fs::write(path, svg).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    for note in report::notes(&outcome) {
        complain(&format_args!("note: {note}"), 0);
    }
    let failures = report::failures(&outcome);
    for failure in &failures {
        complain(failure, 1);
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Loads the first address of a name that somebody answers on.
fn run_first(options: &Options) -> Result<(Load, Outcome), String> {
    let mut failure = String::new();
    for target in options::targets(&options.addr)? {
        let load = Load { target, ..options.load.clone() };
        let live = Live::new();
        let outcome = client::run(&load, &mut |progress| live.show(progress));
        live.finish();
        match outcome {
            Ok(outcome) => return Ok((load, outcome)),
            Err(error) => {
                failure = format!("{}: {}", report::target(&load), report::first_error(&error));
            }
        }
    }
    Err(failure)
}

fn complain(what: &impl Display, code: u8) -> ExitCode {
    // With stderr closed there is nobody to tell, which is no reason to panic.
    let _ = writeln!(io::stderr(), "load: {what}");
    ExitCode::from(code)
}

fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}
