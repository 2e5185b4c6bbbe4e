//! Count: runs a case under callgrind and under strace, and reads what they counted.

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cases::{Case, Kind};
use crate::lockstep::{Turns, drive};
use crate::server::MEASURED;

/// What one request costs, or one connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    /// In user space.
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
    /// System calls.
    pub(crate) calls: f64,
}

/// How often a run is repeated that something else on the machine has disturbed.
const ATTEMPTS: usize = 5;

/// glibc chooses its string functions by processor; all have these.
const PLAIN: &str = "glibc.cpu.hwcaps=-AVX2,-AVX,-AVX512VL,-AVX512BW,-ERMS,-FSRM,-SSE4_2,-SSSE3";

const ALLOCATORS: [&str; 6] =
    ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"];

/// Measures `case`, and leaves callgrind's file in `keep`.
pub(crate) fn cost(case: &Case, keep: &Path) -> Result<Cost, Box<dyn Error>> {
    let file = keep.join(case.name).with_extension("callgrind");
    let (instructions, allocations) = collect(case, &file)?;
    let served = (case.rounds * case.requests()) as f64;
    Ok(Cost {
        instructions: instructions as f64 / served,
        allocations: allocations as f64 / served,
        calls: system_calls(case, keep)?,
    })
}

fn collect(case: &Case, file: &Path) -> Result<(u64, u64), Box<dyn Error>> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "-q", "--combine-dumps=yes"]);
    valgrind.arg(format!("--toggle-collect={MEASURED}"));
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    run(&mut valgrind, case, case.rounds)?;
    read_callgrind(&fs::read_to_string(file)?)
}

/// The difference of two lengths, so that neither start nor end counts; less what the lockstep
/// takes, which is a write and a read each time the server asks for something.
fn system_calls(case: &Case, folder: &Path) -> Result<f64, Box<dyn Error>> {
    let file = folder.join(case.name).with_extension("strace");
    let total = |rounds| -> Result<_, Box<dyn Error>> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&file);
        let turns = run(&mut strace, case, rounds)?;
        Ok((turns.before, read_strace(&fs::read_to_string(&file)?)?))
    };
    for _ in 0..ATTEMPTS {
        let (once, twice) = (total(case.rounds)?, total(2 * case.rounds)?);
        if once.0 == twice.0 {
            let asks = if case.kind == Kind::Churn { 2 } else { 1 };
            let lockstep = 2 * asks * case.rounds;
            let calls = (twice.1 - once.1).checked_sub(lockstep).ok_or("fewer than it asked")?;
            return Ok(calls as f64 / (case.rounds * case.requests()) as f64);
        }
        eprintln!("{}: two starts took {} and {} turns: again", case.name, once.0, twice.0);
    }
    Err(format!("{}: no two starts were alike", case.name).into())
}

/// Runs the server of `case` under a tool. Again, if its rounds did not all take as many turns:
/// then something had not arrived when it should have.
fn run(tool: &mut Command, case: &Case, rounds: u64) -> Result<Turns, Box<dyn Error>> {
    let path = env::var_os("PATH").unwrap_or_default();
    tool.arg(env::current_exe()?).args(["--serve", case.name, "--rounds", &rounds.to_string()]);
    tool.env_clear().env("PATH", path).env("GLIBC_TUNABLES", PLAIN);
    tool.stdin(Stdio::piped()).stdout(Stdio::piped());
    for _ in 0..ATTEMPTS {
        let program = tool.get_program().to_string_lossy().into_owned();
        let mut server = tool.spawn().map_err(|error| format!("can't run {program}: {error}"))?;
        let (Some(asks), Some(done)) = (server.stdout.take(), server.stdin.take()) else {
            return Err("no pipes".into());
        };
        let turns = drive(case, asks, done);
        let status = server.wait()?;
        let turns = turns.map_err(|error| format!("{} under {program}: {error}", case.name))?;
        if !status.success() {
            return Err(format!("{} under {program}: {status}", case.name).into());
        }
        if turns.measured % rounds == 0 {
            return Ok(turns);
        }
        let turns = turns.measured;
        eprintln!("{}: {turns} turns for {rounds} rounds, so it was disturbed: again", case.name);
    }
    Err(format!("{}: no run was undisturbed", case.name).into())
}

/// Instructions in all, and calls of what allocates.
fn read_callgrind(text: &str) -> Result<(u64, u64), Box<dyn Error>> {
    let mut names = HashMap::new();
    let (mut instructions, mut allocations, mut callee) = (None, 0, "");
    for line in text.lines() {
        let function = line.strip_prefix("fn=").or_else(|| line.strip_prefix("cfn="));
        if let Some((number, name)) = function.and_then(|function| function.split_once(')')) {
            // A name is told once, and named by its number from then on.
            let name = name.trim_start();
            callee = if name.is_empty() { names.get(number).copied().unwrap_or("") } else { name };
            names.insert(number, callee);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            if ALLOCATORS.contains(&callee) {
                let count = calls.split_whitespace().next().unwrap_or_default();
                allocations += count.parse::<u64>()?;
            }
        } else if let Some(totals) = line.strip_prefix("totals: ") {
            instructions = Some(totals.trim().parse()?);
        }
    }
    match instructions {
        Some(count @ 1..) => Ok((count, allocations)),
        _ => Err(format!("callgrind has collected nothing in {MEASURED}").into()),
    }
}

/// All calls of a table of `strace -c -U calls,name`.
fn read_strace(text: &str) -> Result<u64, Box<dyn Error>> {
    let total = text.lines().rev().find_map(|line| line.trim().strip_suffix(" total"));
    Ok(total.ok_or("strace has counted nothing")?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_what_allocates_are_found_under_their_numbers() {
        let text = "events: Ir\nfn=(1) serve\n1 10\ncfn=(2) malloc\ncalls=3 0\n1 90\n\
                    fn=(2)\n5 90\nfn=(3) other\ncfn=(2)\ncalls=4 0\n1 9\ncfn=(4) free\ncalls=7 0\n\
                    1 9\ntotals: 199\n";
        assert_eq!(read_callgrind(text).unwrap(), (199, 7));
        assert!(read_callgrind("events: Ir\ntotals: 0\n").is_err());
    }

    #[test]
    fn all_calls_are_in_the_last_line_of_a_summary() {
        let text = "    calls syscall\n--------- ------\n      600 recvfrom\n      601 write\n\
                    --------- ------\n     1201 total\n";
        assert_eq!(read_strace(text).unwrap(), 1201);
        assert!(read_strace("").is_err());
    }
}
