//! Compares pool-manager with other ways to serve connections on one core.
//!
//! Each server runs in a separate process of this program. One client on another core drives the
//! servers one after the other. The servers end when the program ends.

mod cases;
mod child;
mod cores;
mod figures;
mod idle;
mod machine;
mod measure;
mod named;
mod options;
mod plots;
mod servers;
mod table;

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use cores::Cores;
use machine::Usage;
use measure::Measurement;
use options::{Command, HELP, Plan};
use table::LEGEND;

fn main() -> ExitCode {
    let command = match options::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => return print_error(&format!("{error}; try --help"), 2),
    };
    let outcome = match command {
        Command::Help => writeln!(io::stdout(), "{HELP}").map_err(Into::into),
        Command::Serve { kind, service, core } => core
            .map_or(Ok(()), cores::pin)
            .and_then(|()| servers::serve(kind, service))
            .map_err(Into::into),
        Command::Measure(plan) => measure(plan),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => print_error(&*error, 1),
    }
}

fn print_error(error: &(impl std::fmt::Display + ?Sized), code: u8) -> ExitCode {
    // `eprintln!` would panic if stderr is closed.
    let _ = writeln!(io::stderr(), "versus: {error}");
    ExitCode::from(code)
}

fn measure(mut plan: Plan) -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout();
    // Create the folder first, so that a failure is reported before the measurement, not after it.
    fs::create_dir_all(&plan.out).map_err(|error| format!("{}: {error}", plan.out.display()))?;
    let begin = Instant::now();
    let cores = Cores::choose()?;
    match cores {
        Some(cores) => cores::pin(cores.client)?,
        None => writeln!(out, "Only one core is available: server and client share it.\n")?,
    }
    for note in cases::fit(&mut plan.cases, machine::descriptors()) {
        writeln!(out, "{note}\n")?;
    }
    let usage = Usage::now(cores);
    let mut measurement = Measurement::new(&plan, cores);
    let results = measurement.run(&plan.cases, |results| writeln!(out, "{results}"))?;
    for note in measurement.end() {
        writeln!(out, "{note}\n")?;
    }
    writeln!(out, "{LEGEND}\n")?;
    for path in plots::write(&results, &plan.out)? {
        writeln!(out, "wrote {}", path.display())?;
    }
    let seconds = begin.elapsed().as_secs();
    write!(out, "{}; {seconds} s", machine::describe())?;
    if let Some((now, then)) = Usage::now(cores).zip(usage) {
        let others = now.of_others_since(then) * 100.0;
        write!(out, ", other processes used {others:.0}% of the cores")?;
    }
    writeln!(out)?;
    Ok(())
}
