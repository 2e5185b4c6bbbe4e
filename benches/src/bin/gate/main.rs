//! Gate: counts the instructions, allocations and system calls of a request, and compares the
//! counts with committed figures. A busy machine does not change the counts.
//!
//! ```text
//! cargo run --release -p bench --bin gate                # all cases, against benches/figures.txt
//! cargo run --release -p bench --bin gate -- --write     # renews that file
//! cargo run --release -p bench --bin gate -- --case echo-64 --profile   # instructions by function
//! cargo run --release -p bench --bin gate -- --case echo-64 --keep target
//! callgrind_annotate --inclusive=yes target/echo-64.callgrind           # instructions by line
//! ```
//!
//! The exit code is 1 if the instructions of a case are more than 3 % above the committed figure,
//! or if its allocations or system calls exceed the committed figure by any amount. It is also 1 if
//! a figure exceeds the `bar` of its case, which is a fixed limit. Needs valgrind and strace.
//!
//! The figures depend on the versions of the compiler, libc and valgrind, which the file records.
//! With other versions, the gate prints a note and compares with the same figures. If it then fails
//! although the code is unchanged, renew the figures with the versions in use.

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
Counts the instructions, allocations and system calls of a request, and compares them with the
committed figures. Needs valgrind and strace.

Usage: gate [OPTIONS]

  --case NAME  measure this case; may be repeated [all]
  --profile    print the instructions of each function and of the functions inlined into it
  --keep DIR   keep the profiles in DIR: callgrind_annotate DIR/NAME.callgrind
  --write      renew benches/figures.txt
  --help       print this text";

#[derive(Default)]
struct Wanted {
    cases: Vec<&'static Case>,
    help: bool,
    write: bool,
    profile: bool,
    keep: Option<PathBuf>,
    /// Run as the server of the first case, for this number of rounds.
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
                let case = Case::by_name(&name);
                wanted.cases.push(
                    case.ok_or_else(|| format!("unknown case {name}; the cases are {}", names()))?,
                );
            }
            Long("rounds") => rounds = arguments.value()?.parse()?,
            _ => return Err(argument.unexpected().into()),
        }
    }
    wanted.serve = serve.then_some(rounds);
    if wanted.write && !wanted.cases.is_empty() {
        return Err("--write renews the figures of all cases and excludes --case".into());
    }
    if wanted.cases.is_empty() {
        wanted.cases = CASES.iter().collect();
    }
    Ok(wanted)
}

/// Measures and compares the cases and prints the table. Returns false if a figure is too high.
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
        eprintln!(
            "gate: find the cause with --case NAME --profile, or accept the figures with --write"
        );
    }
    Ok(failed.is_empty())
}

fn measure(wanted: &Wanted, folder: &Path) -> Result<Vec<Row>, Box<dyn Error>> {
    let committed = if wanted.write { Figures::default() } else { Figures::committed()? };
    let mut costs = Vec::new();
    let mut rows = Vec::new();
    println!("{}", figures::head());
    let mut print_row = |row: Row| {
        println!("{}", row.line);
        rows.push(row);
    };
    for &case in &wanted.cases {
        let cost = count::cost(case, folder)?;
        let known = committed.of(case);
        if known.is_none() && !wanted.write {
            return Err(format!(
                "{} has no committed figures; create them with --write",
                case.name
            )
            .into());
        }
        figures::compare(case, cost, known).into_iter().for_each(&mut print_row);
        if wanted.profile {
            let served = case.rounds * case.requests();
            profile::print(&count::profile_of(case, folder), &env::current_exe()?, served)?;
        }
        costs.push((case, cost));
    }
    figures::growth(&costs).into_iter().for_each(&mut print_row);
    if wanted.write {
        Figures::write(&costs)?;
    } else {
        for note in committed.tool_differences() {
            println!("note: {note}");
        }
    }
    Ok(rows)
}

/// Raises the limit of descriptors for the largest case, in this process and in the servers.
fn allow_descriptors() -> Result<(), Box<dyn Error>> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < DESCRIPTORS) {
        return Err(format!("{DESCRIPTORS} descriptors are needed; raise `ulimit -Hn`").into());
    }
    if limit.current.is_some_and(|current| current < DESCRIPTORS) {
        limit.current = Some(DESCRIPTORS);
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}
