//! A load generator for echo servers, with a closed or an open loop. It checks every byte of the
//! replies.
//!
//! `cargo run --release -p bench --bin load -- 127.0.0.1:6263`; `--help` lists the options.

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
        Ok(Some(options)) => load(&options).unwrap_or_else(|error| print_error(&error, 1)),
        Ok(None) => {
            print(HELP);
            ExitCode::SUCCESS
        }
        Err(error) => print_error(&format_args!("{error}; try --help"), 2),
    }
}

/// Runs the load, prints the report and writes the plot. Prints each failure as a line on stderr.
/// If there is a failure, the exit code is 1.
fn load(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    let (load, outcome) = run_first(options)?;
    print(report::text(&load, &outcome));
    if let Some(path) = &options.svg {
        let series = [Series { name: &report::load(&load), latency: &outcome.latency }];
        let svg = plot::latency(&format!("Latency of {}", report::target(&load)), &series);
        std::fs::write(path, svg).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    for note in report::notes(&outcome) {
        print_error(&format_args!("note: {note}"), 0);
    }
    let failures = report::failures(&outcome);
    for failure in &failures {
        print_error(failure, 1);
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tries the addresses of the name in order. Returns the outcome of the first run that does not
/// fail.
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

fn print_error(message: &impl Display, code: u8) -> ExitCode {
    // `eprintln!` would panic if stderr is closed.
    let _ = writeln!(io::stderr(), "load: {message}");
    ExitCode::from(code)
}

fn print(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}
