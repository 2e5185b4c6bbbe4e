//! Running this program under strace, and reading what strace and the program say.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::program;
use crate::scene::Scenario;
use crate::support::Dir;

/// Set for the program that is traced: its scenario.
pub(crate) const PLAY: &str = "POOL_MANAGER_TORTURE_PLAY";
/// And how long a peer waits, and a connection may be silent, in milliseconds.
pub(crate) const PATIENCE: &str = "POOL_MANAGER_TORTURE_PATIENCE";
pub(crate) const DEADLINE: &str = "POOL_MANAGER_TORTURE_DEADLINE";

/// What is done to a call, in strace's words.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) call: &'static str,
    pub(crate) error: &'static str,
    /// Which of its occurrences: `7`, or `7+2` for every second one from there.
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

/// What became of one run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    /// What the program printed, on both streams.
    pub(crate) said: Vec<String>,
    /// What it left in its directory.
    pub(crate) left: Vec<String>,
    /// How often each call was made before the first mark.
    pub(crate) before: HashMap<String, usize>,
    /// The calls between the marks.
    pub(crate) calls: Vec<String>,
}

impl Run {
    /// What the program said of this kind.
    pub(crate) fn all(&self, kind: &str) -> Vec<&str> {
        self.said.iter().filter_map(|line| line.strip_prefix(kind)).collect()
    }

    /// The calls that strace let fail.
    pub(crate) fn injected(&self) -> Vec<&str> {
        let injected = |line: &&String| line.contains("(INJECTED)");
        self.calls.iter().filter(injected).map(String::as_str).collect()
    }

    /// The number in front of this word, in the line of counts.
    pub(crate) fn count(&self, word: &str) -> u64 {
        let counts = self.all(program::COUNTS).concat();
        let before = counts.split([',', ';']).find_map(|part| part.trim().strip_suffix(word));
        before.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

/// Whether strace is there and may trace, and the calls are those that this knows.
pub(crate) fn is_possible() -> bool {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return false;
    }
    let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    probe.is_ok_and(|probe| probe.status.success())
}

/// Plays a scenario under strace, with a fault or without.
pub(crate) fn play(scenario: Scenario, fault: Option<&Fault>) -> Run {
    let directory = Dir::new();
    let log = directory.path(LOG);
    let mut strace = Command::new("strace");
    strace.arg("-o").arg(&log);
    if let Some(fault) = fault {
        strace.args(["-e", &format!("trace={},statx", fault.call), "-e", &fault.injection()]);
    }
    strace.arg(std::env::current_exe().expect("this program"));
    let (patience, deadline) = patience_and_deadline(fault);
    strace.env(PLAY, scenario.name()).env("TMPDIR", &directory.0);
    strace
        .env(PATIENCE, patience.as_millis().to_string())
        .env(DEADLINE, deadline.as_millis().to_string());
    let output = strace.output().expect("strace runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
    let (before, calls) =
        split_at(&log, |line| line.contains(program::BEGIN), |line| line.contains(program::END));
    Run { code: output.status.code(), said, left: left(&directory), before, calls }
}

/// How long a peer waits for anything, and how long a connection may be silent.
pub(crate) fn patience_and_deadline(fault: Option<&Fault>) -> (Duration, Duration) {
    let seconds =
        |patience, deadline| (Duration::from_secs_f32(patience), Duration::from_secs_f32(deadline));
    match fault {
        // What is not closed does not end for its peer either.
        Some(fault) if fault.call == "close" => seconds(1.0, 5.0),
        // The kernel says nothing is there, and it is: the deadline finds it.
        Some(fault) if fault.error == "EAGAIN" => seconds(10.0, 0.5),
        _ => seconds(10.0, 20.0),
    }
}

/// What a program left in the directory that was its own.
pub(crate) fn left(directory: &Dir) -> Vec<String> {
    let mut names = directory.names();
    names.retain(|name| name != LOG);
    names
}

/// The file that strace writes.
pub(crate) const LOG: &str = "strace";

/// How often each call was made before a line, and the calls from there to another.
pub(crate) fn split_at(
    log: &Path,
    begins: impl Fn(&str) -> bool,
    ends: impl Fn(&str) -> bool,
) -> (HashMap<String, usize>, Vec<String>) {
    let log = fs::read_to_string(log).unwrap_or_default();
    let mut before = HashMap::new();
    let early = log.lines().take_while(|line| !begins(line));
    early.for_each(|line| *before.entry(name(line).to_owned()).or_default() += 1);
    let late = log.lines().skip_while(|line| !begins(line)).take_while(|line| !ends(line));
    (before, late.map(str::to_owned).collect())
}

/// The name of a call in a line of strace's.
pub(crate) fn name(line: &str) -> &str {
    line.split('(').next().unwrap_or_default()
}
