//! Count: runs a case under callgrind and under strace, and reads their counts.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cases::{Case, Kind};
use crate::lockstep::{Report, drive};
use crate::server::COLLECTED;

/// The cost of one request, or of one connection for [`Kind::Churn`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    /// Instructions in user space.
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
    /// System calls.
    pub(crate) calls: f64,
}

/// Maximum number of attempts if other activity on the machine disturbs a run.
const ATTEMPTS: usize = 5;

/// Processor features that glibc must not use. glibc chooses its string functions by the features
/// of the processor. With only the remaining features, it chooses the same functions on all x86-64
/// processors.
const PLAIN_STRING_FUNCTIONS: &str = "glibc.cpu.hwcaps=-AVX_Fast_Unaligned_Load,-AVX2,-AVX,-AVX512VL,-AVX512BW,-ERMS,-FSRM,-SSE4_2,-SSSE3";

/// Measures `case` and writes callgrind's file to `folder`.
pub(crate) fn cost(case: &Case, folder: &Path) -> Result<Cost, Box<dyn Error>> {
    let file = profile_of(case, folder);
    let (instructions, allocations) = collect(case, &file)?;
    let served = (case.rounds * case.requests()) as f64;
    Ok(Cost {
        instructions: instructions as f64 / served,
        allocations: allocations as f64 / served,
        calls: system_calls(case, folder)?,
    })
}

/// Returns the path of callgrind's file for a case.
pub(crate) fn profile_of(case: &Case, folder: &Path) -> PathBuf {
    folder.join(case.name).with_extension("callgrind")
}

/// Counts the instructions and the allocations of all measured rounds.
fn collect(case: &Case, file: &Path) -> Result<(u64, u64), Box<dyn Error>> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "-q", "--combine-dumps=yes", "--dump-instr=yes"]);
    valgrind.arg(format!("--toggle-collect={COLLECTED}"));
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    let report = run(&mut valgrind, case, case.rounds)?;
    Ok((read_callgrind(&fs::read_to_string(file)?)?, report.allocations))
}

/// Counts the system calls per request, from two runs of different length. Their difference
/// excludes the calls at the start and at the end. Then the calls of the lockstep are subtracted:
/// one write and one read for each action that the server asks for.
fn system_calls(case: &Case, folder: &Path) -> Result<f64, Box<dyn Error>> {
    let file = folder.join(case.name).with_extension("strace");
    let total = |rounds| -> Result<_, Box<dyn Error>> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&file);
        let report = run(&mut strace, case, rounds)?;
        Ok((report.before, read_strace(&fs::read_to_string(&file)?)?))
    };
    for _ in 0..ATTEMPTS {
        let (once, twice) = (total(case.rounds)?, total(2 * case.rounds)?);
        if once.0 == twice.0 {
            let actions = if case.kind == Kind::Churn { 2 } else { 1 };
            let lockstep = 2 * actions * case.rounds;
            let calls =
                (twice.1 - once.1).checked_sub(lockstep).ok_or("system calls are missing")?;
            return Ok(calls as f64 / (case.rounds * case.requests()) as f64);
        }
        eprintln!("{}: two starts took {} and {} turns; repeating", case.name, once.0, twice.0);
    }
    Err(format!("{}: no two starts took the same number of turns", case.name).into())
}

/// Runs the server of `case` under a tool. Repeats the run if not all rounds took the same number
/// of turns, because then some bytes arrived late.
fn run(tool: &mut Command, case: &Case, rounds: u64) -> Result<Report, Box<dyn Error>> {
    let path = env::var_os("PATH").unwrap_or_default();
    tool.arg(env::current_exe()?).args(["--serve", case.name, "--rounds", &rounds.to_string()]);
    tool.env_clear().env("PATH", path).env("GLIBC_TUNABLES", PLAIN_STRING_FUNCTIONS);
    tool.stdin(Stdio::piped()).stdout(Stdio::piped());
    for _ in 0..ATTEMPTS {
        let program = tool.get_program().to_string_lossy().into_owned();
        let mut server = tool.spawn().map_err(|error| format!("can't run {program}: {error}"))?;
        let (Some(stdout), Some(stdin)) = (server.stdout.take(), server.stdin.take()) else {
            return Err("no pipes".into());
        };
        let report = drive(case, stdout, stdin);
        let status = server.wait()?;
        let report = report.map_err(|error| format!("{} under {program}: {error}", case.name))?;
        if !status.success() {
            return Err(format!("{} under {program}: {status}", case.name).into());
        }
        if report.turns % rounds == 0 {
            return Ok(report);
        }
        let turns = report.turns;
        eprintln!("{}: disturbed, {turns} turns for {rounds} rounds; repeating", case.name);
    }
    Err(format!("{}: every run was disturbed", case.name).into())
}

fn read_callgrind(text: &str) -> Result<u64, Box<dyn Error>> {
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    match totals.map(|count| count.trim().parse()).transpose()? {
        Some(count @ 1..) => Ok(count),
        _ => Err(format!("callgrind collected nothing in {COLLECTED}").into()),
    }
}

/// Reads the total number of calls in a table of `strace -c -U calls,name`.
fn read_strace(text: &str) -> Result<u64, Box<dyn Error>> {
    let total = text.lines().rev().find_map(|line| line.trim().strip_suffix(" total"));
    Ok(total.ok_or("strace counted nothing")?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_collection_is_an_error() {
        assert_eq!(read_callgrind("events: Ir\nfn=(1) serve\n1 10\ntotals: 199\n").unwrap(), 199);
        assert!(read_callgrind("events: Ir\ntotals: 0\n").is_err());
        assert!(read_callgrind("").is_err());
    }

    #[test]
    fn the_total_of_calls_is_in_the_last_line() {
        let text = "    calls syscall\n--------- ------\n      600 recvfrom\n      601 write\n\
                    --------- ------\n     1201 total\n";
        assert_eq!(read_strace(text).unwrap(), 1201);
        assert!(read_strace("").is_err());
    }
}
