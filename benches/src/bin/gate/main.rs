//! Gate: what a request costs in instructions, allocations and system calls, counted and held
//! against committed figures. Nothing is timed, so it says the same on a busy machine.
//!
//! ```text
//! cargo run --release -p bench --bin gate                # all cases, against benches/figures.txt
//! cargo run --release -p bench --bin gate -- --write     # renews that file
//! cargo run --release -p bench --bin gate -- --case echo-64 --profile    # where it goes
//! cargo run --release -p bench --bin gate -- --case echo-64 --keep target
//! callgrind_annotate --inclusive=yes target/echo-64.callgrind           # the same, line by line
//! ```
//!
//! The exit code is 1 if a figure is more than 3 % above the committed one, allocations and system
//! calls if they are any higher, or if a bar of the case is passed. Needs valgrind and strace.
//!
//! The figures are those of one compiler, one libc and one valgrind, which the file names. Others
//! may be used: the gate says so, and holds to the same figures. If it then fails for a
//! change that is innocent, the figures are renewed with what is in use now.

mod cases;
mod clock;
mod count;
mod figures;
mod lockstep;
mod profile;
mod server;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use lexopt::prelude::*;
use rustix::process::{Resource, getrlimit, setrlimit};

use cases::{CASES, Case};
use figures::{Figures, Row, Verdict};

/// Descriptors that the largest case needs.
const DESCRIPTORS: u64 = 10_100;

const HELP: &str = "\
Counts what a request costs, in instructions, allocations and system calls, and holds it against
the committed figures. Needs valgrind and strace.

Usage: gate [OPTIONS]

  --case NAME  count this case; may be given several times [all]
  --profile    tell where the instructions go, by function and what was inlined into it
  --keep DIR   leave the profiles there: callgrind_annotate DIR/NAME.callgrind
  --write      renew benches/figures.txt
  --help       this text";

#[derive(Default)]
struct Wanted {
    cases: Vec<&'static Case>,
    help: bool,
    write: bool,
    profile: bool,
    keep: Option<PathBuf>,
    /// Be the server of the first case, for that many rounds.
    serve: Option<u64>,
}

fn main() -> ExitCode {
    let outcome = wanted().and_then(|wanted| match wanted.serve {
        _ if wanted.help => {
            println!("{HELP}");
            Ok(true)
        }
        Some(rounds) => server::serve(wanted.cases[0], rounds).map(|()| true),
        None => gate(&wanted),
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wanted() -> Result<Wanted, Box<dyn Error>> {
    let mut wanted = Wanted::default();
    let mut serve = false;
    let mut rounds = 1;
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("help") | Short('h') => wanted.help = true,
            Long("write") => wanted.write = true,
            Long("profile") => wanted.profile = true,
            Long("keep") => wanted.keep = Some(arguments.value()?.into()),
            Long(option @ ("case" | "serve")) => {
                serve |= option == "serve";
                let name = arguments.value()?.string()?;
                let names = || CASES.each_ref().map(|case| case.name).join(", ");
                let case = Case::named(&name);
                wanted
                    .cases
                    .push(case.ok_or_else(|| format!("no case {name}; there are {}", names()))?);
            }
            Long("rounds") => rounds = arguments.value()?.parse()?,
            _ => return Err(argument.unexpected().into()),
        }
    }
    wanted.serve = serve.then_some(rounds);
    if wanted.write && !wanted.cases.is_empty() {
        return Err("the figures are renewed all at once: leave out --case or --write".into());
    }
    if wanted.cases.is_empty() {
        wanted.cases = CASES.iter().collect();
    }
    Ok(wanted)
}

/// Measures, compares and tells. `false` if a figure is too high.
fn gate(wanted: &Wanted) -> Result<bool, Box<dyn Error>> {
    allow_descriptors()?;
    let scratch = env::temp_dir().join(format!("pool-manager-gate-{}", std::process::id()));
    let folder = wanted.keep.as_ref().unwrap_or(&scratch);
    fs::create_dir_all(folder)?;
    let rows = measure(wanted, folder);
    if wanted.keep.is_none() {
        fs::remove_dir_all(&scratch)?;
    }
    let rows = rows?;
    let failed: Vec<&Row> = rows.iter().filter(|row| row.verdict == Verdict::Worse).collect();
    for row in &failed {
        eprintln!("gate: {}", row.line);
    }
    if !failed.is_empty() {
        eprintln!("gate: where it goes: --case NAME --profile; if it is meant, renew: --write");
    }
    Ok(failed.is_empty())
}

fn measure(wanted: &Wanted, folder: &Path) -> Result<Vec<Row>, Box<dyn Error>> {
    let committed = if wanted.write { Figures::default() } else { Figures::committed()? };
    let mut costs = Vec::new();
    let mut rows = Vec::new();
    println!("{}", figures::head());
    let mut tell = |row: Row| {
        println!("{}", row.line);
        rows.push(row);
    };
    for &case in &wanted.cases {
        let cost = count::cost(case, folder)?;
        let known = committed.of(case);
        if known.is_none() && !wanted.write {
            return Err(
                format!("{} has no committed figures; --write makes them", case.name).into()
            );
        }
        figures::compare(case, cost, known).into_iter().for_each(&mut tell);
        if wanted.profile {
            let served = case.rounds * case.requests();
            profile::tell(&count::profile_of(case, folder), &env::current_exe()?, served)?;
        }
        costs.push((case, cost));
    }
    figures::growth(&costs).into_iter().for_each(&mut tell);
    if wanted.write {
        Figures::write(&costs)?;
    } else {
        for note in committed.made_otherwise() {
            println!("note: {note}");
        }
    }
    Ok(rows)
}

/// As many descriptors as the largest case needs, here and in the servers.
fn allow_descriptors() -> Result<(), Box<dyn Error>> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < DESCRIPTORS) {
        return Err(format!("it needs {DESCRIPTORS} descriptors; raise `ulimit -Hn`").into());
    }
    if limit.current.is_some_and(|current| current < DESCRIPTORS) {
        limit.current = Some(DESCRIPTORS);
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}
