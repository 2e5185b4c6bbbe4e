//! Running this program under strace, and reading what strace and the program say.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

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

/// What became of one run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    /// What the program printed, on both streams.
    pub(crate) said: Vec<String>,
    /// How often each call was made before the first mark.
    pub(crate) before: HashMap<String, usize>,
    /// The calls between the marks.
    pub(crate) calls: Vec<String>,
    pub(crate) took: Duration,
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

/// Whether strace is there and may trace.
pub(crate) fn is_possible() -> bool {
    let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    probe.is_ok_and(|probe| probe.status.success())
}

/// Plays a scenario under strace, with a fault or without.
pub(crate) fn play(scenario: Scenario, fault: Option<&Fault>) -> Run {
    let directory = Dir::new();
    let log = directory.path("strace");
    let mut strace = Command::new("strace");
    strace.arg("-o").arg(&log);
    if let Some(Fault { call, error, when }) = fault {
        strace.arg("-e").arg(format!("trace={call},statx"));
        strace.arg("-e").arg(format!("inject={call}:error={error}:when={when}"));
    }
    strace.arg(std::env::current_exe().expect("this program"));
    let times = Times::of(fault);
    strace.env(PLAY, scenario.name()).env("TMPDIR", &directory.0);
    strace.env(PATIENCE, times.patience.to_string()).env(DEADLINE, times.deadline.to_string());
    let began = Instant::now();
    let output = strace.output().expect("strace runs");
    let took = began.elapsed();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
    let (before, calls) = split_at_marks(&log);
    Run { code: output.status.code(), said, before, calls, took }
}

/// How patient peers and the program are, in milliseconds.
struct Times {
    patience: u64,
    deadline: u64,
}

impl Times {
    fn of(fault: Option<&Fault>) -> Self {
        match fault {
            // What is not closed does not end for its peer either.
            Some(fault) if fault.call == "close" => Self { patience: 1_000, deadline: 5_000 },
            // The kernel says nothing is there, and it is: the deadline finds it.
            Some(fault) if fault.error == "EAGAIN" => Self { patience: 10_000, deadline: 500 },
            _ => Self { patience: 10_000, deadline: 20_000 },
        }
    }
}

/// What the main thread did up to its first mark, and from there to the second.
fn split_at_marks(log: &Path) -> (HashMap<String, usize>, Vec<String>) {
    let log = fs::read_to_string(log).unwrap_or_default();
    let (mut before, mut lines) = (HashMap::new(), log.lines());
    for line in lines.by_ref() {
        *before.entry(name(line).to_owned()).or_default() += 1;
        if line.contains(program::BEGIN) {
            break;
        }
    }
    let calls = lines.take_while(|line| !line.contains(program::END));
    (before, calls.map(str::to_owned).collect())
}

/// The name of a call in a line of strace's.
pub(crate) fn name(line: &str) -> &str {
    line.split('(').next().unwrap_or_default()
}

