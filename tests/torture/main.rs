//! Injects faults into system calls, one kind of fault per run. There is a run for each call that
//! the loop makes, for each occurrence of that call, and for each error that its manual page lists.
//! The programs under test are several scenarios and `reactor_echo`.
//!
//! strace injects the errors. It traces only the main thread here, so this program runs itself
//! under strace with the loop on the main thread. This is why it defines its own `main`. The
//! thousands of runs take two minutes, so they start only on request:
//!
//! ```sh
//! cargo test --test torture -- --ignored
//! cargo test --test torture -- --ignored busy:shutdown:  # only names with this prefix
//! ```

#[path = "../support/examples.rs"]
mod examples;
#[path = "../support/mod.rs"]
mod support;

mod echo;
mod faults;
mod judge;
mod peers;
mod program;
mod shared;
mod trace;

use std::ops::AddAssign;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

use faults::{CALLS, Call, IGNORED};
use judge::judge;
use shared::{Scenario, Shared};
use trace::{DEADLINE_VAR, Fault, Run, SCENARIO_VAR, TIMEOUT_VAR, name};

/// Number of programs that run at the same time. They mostly wait.
const PARALLEL: usize = 4;

/// Says which occurrences of a call fail. The first occurrence always fails.
#[derive(Clone, Copy)]
enum Repeat {
    Alternating,
    InARow(usize),
}

/// Faults that occur repeatedly in one run. If the program under test is a scenario, no peer and no
/// call of the manager may fail because of these faults. [`echo::judge`] checks the runs of
/// `reactor_echo` instead.
const REPEATED: [(&str, &str, Repeat); 8] = [
    ("epoll_wait", "EINTR", Repeat::Alternating),
    ("epoll_wait", "EINTR", Repeat::InARow(50)),
    ("recvfrom", "EINTR", Repeat::Alternating),
    ("sendto", "EINTR", Repeat::Alternating),
    ("accept4", "EINTR", Repeat::Alternating),
    ("accept4", "ECONNABORTED", Repeat::Alternating),
    ("accept4", "ECONNABORTED", Repeat::InARow(100)),
    ("accept4", "EMFILE", Repeat::Alternating),
];

/// A program under test.
#[derive(Clone, Copy)]
enum Subject {
    Scenario(Scenario),
    ReactorEcho,
}

impl Subject {
    fn all() -> impl Iterator<Item = Self> {
        Scenario::ALL.into_iter().map(Self::Scenario).chain([Self::ReactorEcho])
    }

    fn name(self) -> &'static str {
        match self {
            Self::Scenario(scenario) => scenario.name(),
            Self::ReactorEcho => "reactor_echo",
        }
    }

    fn play(self, fault: Option<&Fault>) -> Run {
        match self {
            Self::Scenario(scenario) => trace::play(scenario, fault),
            Self::ReactorEcho => echo::play(fault),
        }
    }

    /// Checks a run. The error says which expectation failed. `clean` is a run without a fault.
    fn judge(self, fault: Option<&Fault>, run: &Run, clean: &Run) -> Result<(), String> {
        match self {
            Self::Scenario(_) => judge(fault, run, clean),
            Self::ReactorEcho => echo::judge(fault, run),
        }
    }
}

fn main() -> ExitCode {
    if let Some(scenario) = env::var(SCENARIO_VAR).ok().and_then(|name| Scenario::named(&name)) {
        let path = env::temp_dir().join("socket");
        program::play(Shared::new(scenario, path, millis(TIMEOUT_VAR), millis(DEADLINE_VAR)));
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    if arguments.iter().any(|argument| argument == "--list") {
        println!("torture: test");
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument.ends_with("ignored")) {
        println!("torture: skipped; cargo test --test torture -- --ignored");
        return ExitCode::SUCCESS;
    }
    if !trace::is_possible() {
        println!(
            "torture: skipped: it needs Linux on x86-64 and strace with the permission to trace"
        );
        return ExitCode::SUCCESS;
    }
    run_all(filter.map_or("", String::as_str))
}

fn millis(variable: &str) -> Duration {
    let millis = env::var(variable).ok().and_then(|millis| millis.parse().ok());
    Duration::from_millis(millis.expect("set together with the scenario"))
}

fn run_all(filter: &str) -> ExitCode {
    let mut total = Outcome::default();
    for subject in Subject::all() {
        let began = Instant::now();
        let clean = subject.play(None);
        if let Err(what) = subject.judge(None, &clean, &clean) {
            println!("{}: without a fault: {what}: {:#?}", subject.name(), clean.lines);
            return ExitCode::FAILURE;
        }
        let faults = faults(&clean);
        let named = |fault: &Fault| format!("{}:{fault}", subject.name()).starts_with(filter);
        let outcome = run(subject, faults.into_iter().filter(named).collect(), &clean);
        outcome.failures.iter().for_each(|failure| println!("{failure}"));
        println!("{}: {outcome}, {:.1} s", subject.name(), began.elapsed().as_secs_f32());
        total += outcome;
    }
    println!("torture: {total}");
    // A run in which the fault did not occur proves nothing. At most 5 % of the runs may end like
    // this.
    let enough = total.missing * 20 <= total.runs;
    if enough && total.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns all faults to inject, derived from the calls of a run without faults.
fn faults(clean: &Run) -> Vec<Fault> {
    for call in clean.calls.iter().map(|line| name(line)) {
        let known = CALLS.iter().any(|known| known.name == call) || IGNORED.contains(&call);
        assert!(
            known || !call.starts_with(char::is_alphabetic),
            "{call} is in neither list of faults.rs"
        );
    }
    CALLS.iter().flat_map(|call| faults_of(call, clean)).collect()
}

fn faults_of(call: &Call, clean: &Run) -> Vec<Fault> {
    let before = clean.before.get(call.name).copied().unwrap_or(0);
    let made = clean.calls.iter().filter(|line| name(line) == call.name);
    let made = made.enumerate().filter(|(_, line)| is_injectable(line));
    let occurrences: Vec<usize> = made.map(|(index, _)| before + index + 1).collect();
    let fault = |error, when| Fault { call: call.name, error, when };
    let errors = || call.errors.split_whitespace();
    let mut faults: Vec<Fault> = occurrences
        .iter()
        .flat_map(|occurrence| errors().map(move |error| fault(error, occurrence.to_string())))
        .collect();
    if let Some(first) = occurrences.first() {
        let repeated = REPEATED.iter().filter(|(name, ..)| *name == call.name);
        faults.extend(repeated.map(|&(_, error, repeat)| match repeat {
            Repeat::Alternating => fault(error, format!("{first}+2")),
            Repeat::InARow(count) => fault(error, format!("{first}..{}", first + count)),
        }));
    }
    faults
}

/// Returns whether a fault may be injected into this call. There are three exceptions. The first is
/// a lookup of [`program::BEGIN`], which only marks a place in the log of strace. The second is a
/// line that `reactor_echo` prints to standard output for the test. The third is the `F_GETFD`
/// check before a close. If this check fails, a standard library with debug assertions treats the
/// failure as a bug.
fn is_injectable(line: &str) -> bool {
    !["F_GETFD", "write(1,", program::BEGIN].iter().any(|excluded| line.contains(excluded))
}

#[derive(Default)]
struct Outcome {
    runs: usize,
    /// Runs in which the fault did not occur in any attempt.
    missing: usize,
    failures: Vec<String>,
}

impl AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.missing += other.missing;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, missing, failures } = self;
        write!(f, "{runs} runs, {missing} without their fault, {} failures", failures.len())
    }
}

/// Runs the program once with each fault, [`PARALLEL`] at a time.
fn run(subject: Subject, faults: Vec<Fault>, clean: &Run) -> Outcome {
    let (faults, total) = (Mutex::new(faults.into_iter()), Mutex::new(Outcome::default()));
    let next = || faults.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some(fault) = next() {
            let outcome = run_one(subject, &fault, clean);
            *total.lock().unwrap_or_else(PoisonError::into_inner) += outcome;
        }
    };
    thread::scope(|scope| (0..PARALLEL).for_each(|_| drop(scope.spawn(work))));
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Maximum number of attempts per fault. The number of calls varies a little between runs, so a
/// fault that did not occur is tried again.
const ATTEMPTS: u32 = 3;

fn run_one(subject: Subject, fault: &Fault, clean: &Run) -> Outcome {
    for _ in 0..ATTEMPTS {
        let run = subject.play(Some(fault));
        let injected = run.injected();
        if injected.is_empty() || !injected.iter().all(|line| is_injectable(line)) {
            continue;
        }
        let failure = subject.judge(Some(fault), &run, clean).err().map(|what| {
            let (name, code, lines) = (subject.name(), run.code, run.lines.join("\n    "));
            format!("{name}:{fault}: {what}; exit code {code:?}\n    {injected:?}\n    {lines}")
        });
        return Outcome { runs: 1, missing: 0, failures: Vec::from_iter(failure) };
    }
    Outcome { runs: 1, missing: 1, failures: Vec::new() }
}
