//! Count: runs a case under callgrind and under strace, and reads what they counted.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cases::{Case, Kind};
use crate::lockstep::{Told, drive};
use crate::server::COLLECTED;

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
const PLAIN: &str = "glibc.cpu.hwcaps=-AVX_Fast_Unaligned_Load,-AVX2,-AVX,-AVX512VL,-AVX512BW,-ERMS,-FSRM,-SSE4_2,-SSSE3";

/// Measures `case`, and leaves callgrind's file in `keep`.
pub(crate) fn cost(case: &Case, keep: &Path) -> Result<Cost, Box<dyn Error>> {
    let file = profile_of(case, keep);
    let (instructions, allocations) = collect(case, &file)?;
    let served = (case.rounds * case.requests()) as f64;
    Ok(Cost {
        instructions: instructions as f64 / served,
        allocations: allocations as f64 / served,
        calls: system_calls(case, keep)?,
    })
}

/// Where callgrind's file of a case is kept.
pub(crate) fn profile_of(case: &Case, keep: &Path) -> PathBuf {
    keep.join(case.name).with_extension("callgrind")
}

/// Instructions and allocations of all measured rounds.
fn collect(case: &Case, file: &Path) -> Result<(u64, u64), Box<dyn Error>> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "-q", "--combine-dumps=yes", "--dump-instr=yes"]);
    valgrind.arg(format!("--toggle-collect={COLLECTED}"));
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    let told = run(&mut valgrind, case, case.rounds)?;
    Ok((read_callgrind(&fs::read_to_string(file)?)?, told.allocations))
}

/// The difference of two lengths, so that neither start nor end counts; less what the lockstep
/// takes, which is a write and a read each time the server asks for something.
fn system_calls(case: &Case, folder: &Path) -> Result<f64, Box<dyn Error>> {
    let file = folder.join(case.name).with_extension("strace");
    let total = |rounds| -> Result<_, Box<dyn Error>> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&file);
        let told = run(&mut strace, case, rounds)?;
        Ok((told.before, read_strace(&fs::read_to_string(&file)?)?))
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
fn run(tool: &mut Command, case: &Case, rounds: u64) -> Result<Told, Box<dyn Error>> {
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
        let told = drive(case, asks, done);
        let status = server.wait()?;
        let told = told.map_err(|error| format!("{} under {program}: {error}", case.name))?;
        if !status.success() {
            return Err(format!("{} under {program}: {status}", case.name).into());
        }
        if told.turns % rounds == 0 {
            return Ok(told);
        }
        let turns = told.turns;
        eprintln!("{}: {turns} turns for {rounds} rounds, so it was disturbed: again", case.name);
    }
    Err(format!("{}: no run was undisturbed", case.name).into())
}

fn read_callgrind(text: &str) -> Result<u64, Box<dyn Error>> {
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    match totals.map(|count| count.trim().parse()).transpose()? {
        Some(count @ 1..) => Ok(count),
        _ => Err(format!("callgrind has collected nothing in {COLLECTED}").into()),
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
    fn a_collection_of_nothing_is_an_error() {
        assert_eq!(read_callgrind("events: Ir\nfn=(1) serve\n1 10\ntotals: 199\n").unwrap(), 199);
        assert!(read_callgrind("events: Ir\ntotals: 0\n").is_err());
        assert!(read_callgrind("").is_err());
    }

    #[test]
    fn all_calls_are_in_the_last_line_of_a_summary() {
        let text = "    calls syscall\n--------- ------\n      600 recvfrom\n      601 write\n\
                    --------- ------\n     1201 total\n";
        assert_eq!(read_strace(text).unwrap(), 1201);
        assert!(read_strace("").is_err());
    }
}
