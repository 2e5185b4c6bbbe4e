//! Runs this program under strace. Parses the log of strace and the output of the program.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::program;
use crate::shared::Scenario;
use crate::support::Dir;

/// Environment variable of the traced program: the scenario.
pub(crate) const SCENARIO_VAR: &str = "POOL_MANAGER_TORTURE_SCENARIO";
/// Environment variable: the time limit for any single wait of a peer, in milliseconds.
pub(crate) const TIMEOUT_VAR: &str = "POOL_MANAGER_TORTURE_TIMEOUT";
/// Environment variable: `clients_deadline`, in milliseconds.
pub(crate) const DEADLINE_VAR: &str = "POOL_MANAGER_TORTURE_DEADLINE";

/// An injected fault, in the syntax of strace.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) call: &'static str,
    pub(crate) error: &'static str,
    /// The occurrences of the call that fail: `7` for the seventh, `7+2` for every second one from
    /// the seventh on, or `7..9` for the seventh to the ninth.
    pub(crate) when: String,
}

impl Fault {
    pub(crate) fn injection(&self) -> String {
        format!("inject={}:error={}:when={}", self.call, self.error, self.when)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.call, self.error, self.when)
    }
}

/// The outcome of one run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    /// The lines that the program printed on both streams.
    pub(crate) lines: Vec<String>,
    /// The files that the program left in its directory.
    pub(crate) left: Vec<String>,
    /// For each call, the number of times it was made before the lookup of [`program::BEGIN`].
    pub(crate) before: HashMap<String, usize>,
    /// The calls between the lookups of [`program::BEGIN`] and [`program::END`].
    pub(crate) calls: Vec<String>,
}

impl Run {
    /// Returns the lines that begin with `kind`, with that prefix removed.
    pub(crate) fn all(&self, kind: &str) -> Vec<&str> {
        self.lines.iter().filter_map(|line| line.strip_prefix(kind)).collect()
    }

    /// Returns the calls into which strace injected an error.
    pub(crate) fn injected(&self) -> Vec<&str> {
        let injected = |line: &&String| line.contains("(INJECTED)");
        self.calls.iter().filter(injected).map(String::as_str).collect()
    }

    /// Returns the number that stands before `word` in the line that begins with
    /// [`program::COUNTS`], or 0 if there is none.
    pub(crate) fn count(&self, word: &str) -> u64 {
        let counts = self.all(program::COUNTS).concat();
        let before = counts.split([',', ';']).find_map(|part| part.trim().strip_suffix(word));
        before.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

/// Returns whether faults can be injected on this machine. This needs strace with the permission to
/// trace. It also needs Linux on x86-64, since `faults.rs` lists the calls of that platform.
pub(crate) fn is_possible() -> bool {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return false;
    }
    let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    probe.is_ok_and(|probe| probe.status.success())
}

/// Plays a scenario under strace, with or without a fault.
pub(crate) fn play(scenario: Scenario, fault: Option<&Fault>) -> Run {
    let directory = Dir::new();
    let log = directory.path(LOG);
    let mut strace = Command::new("strace");
    strace.arg("-o").arg(&log);
    if let Some(fault) = fault {
        strace.args(["-e", &format!("trace={},statx", fault.call), "-e", &fault.injection()]);
    }
    strace.arg(std::env::current_exe().expect("this program"));
    let (timeout, deadline) = timeout_and_deadline(fault);
    strace.env(SCENARIO_VAR, scenario.name()).env("TMPDIR", &directory.0);
    strace
        .env(TIMEOUT_VAR, timeout.as_millis().to_string())
        .env(DEADLINE_VAR, deadline.as_millis().to_string());
    let output = strace.output().expect("strace runs");
    let lines = [output.stdout, output.stderr].concat();
    let lines = String::from_utf8_lossy(&lines).lines().map(str::to_owned).collect();
    let (before, calls) =
        split_at(&log, |line| line.contains(program::BEGIN), |line| line.contains(program::END));
    Run { code: output.status.code(), lines, left: left(&directory), before, calls }
}

/// Returns the time limit for a wait of a peer, and `clients_deadline`.
pub(crate) fn timeout_and_deadline(fault: Option<&Fault>) -> (Duration, Duration) {
    let seconds =
        |timeout, deadline| (Duration::from_secs_f32(timeout), Duration::from_secs_f32(deadline));
    match fault {
        // While the descriptor stays open, its peer receives no end of file.
        Some(fault) if fault.call == "close" => seconds(1.0, 5.0),
        // After a false `EAGAIN`, the loop does not notice the available data until the deadline.
        Some(fault) if fault.error == "EAGAIN" => seconds(10.0, 0.5),
        _ => seconds(10.0, 20.0),
    }
}

/// Returns the files in the directory, except for the log of strace.
pub(crate) fn left(directory: &Dir) -> Vec<String> {
    let mut names = directory.names();
    names.retain(|name| name != LOG);
    names
}

/// The name of the log of strace.
pub(crate) const LOG: &str = "strace";

/// Splits the log of strace at the first line that `begins` accepts. Returns how often each call
/// was made before that line, and the lines from there up to the first one that `ends` accepts.
pub(crate) fn split_at(
    log: &Path,
    begins: impl Fn(&str) -> bool,
    ends: impl Fn(&str) -> bool,
) -> (HashMap<String, usize>, Vec<String>) {
    let log = fs::read_to_string(log).unwrap_or_default();
    let mut before = HashMap::new();
    let first = log.lines().take_while(|line| !begins(line));
    first.for_each(|line| *before.entry(name(line).to_owned()).or_default() += 1);
    let rest = log.lines().skip_while(|line| !begins(line)).take_while(|line| !ends(line));
    (before, rest.map(str::to_owned).collect())
}

/// Returns the name of the call in a line of strace.
pub(crate) fn name(line: &str) -> &str {
    line.split('(').next().unwrap_or_default()
}
