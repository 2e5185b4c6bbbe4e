//! System calls that fail: each call that the loop makes, each of its occurrences, each error that
//! its manual page names, one at a time, in several scenarios and in `reactor_echo`.
//!
//! strace lets the calls fail. It counts those of one thread, so this program runs itself with the
//! loop on its main thread; that is why it has a `main` of its own. Thousands of runs take two
//! minutes, so they have to be asked for:
//!
//! ```sh
//! cargo test --test torture -- --ignored
//! cargo test --test torture -- --ignored busy:shutdown:  # those whose name begins so
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
mod scene;
mod trace;

use std::ops::AddAssign;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

use faults::{CALLS, Call, SPARED};
use judge::judge;
use scene::{Scenario, Scene};
use trace::{DEADLINE, Fault, PATIENCE, PLAY, Run, name};

/// Programs at a time. They mostly wait.
const PARALLEL: usize = 4;

/// How a fault comes more than once, from the first time the call is made.
#[derive(Clone, Copy)]
enum Storm {
    Alternating,
    InARow(usize),
}

/// Faults that come again and again. None is noticed.
const STORMS: [(&str, &str, Storm); 8] = [
    ("epoll_wait", "EINTR", Storm::Alternating),
    ("epoll_wait", "EINTR", Storm::InARow(50)),
    ("recvfrom", "EINTR", Storm::Alternating),
    ("sendto", "EINTR", Storm::Alternating),
    ("accept4", "EINTR", Storm::Alternating),
    ("accept4", "ECONNABORTED", Storm::Alternating),
    ("accept4", "ECONNABORTED", Storm::InARow(100)),
    ("accept4", "EMFILE", Storm::Alternating),
];

/// What is tortured.
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

    /// What is wrong, if something is; `clean` is a run without faults.
    fn judge(self, fault: Option<&Fault>, run: &Run, clean: &Run) -> Result<(), String> {
        match self {
            Self::Scenario(_) => judge(fault, run, clean),
            Self::ReactorEcho => echo::judge(fault, run),
        }
    }
}

fn main() -> ExitCode {
    if let Some(scenario) = env::var(PLAY).ok().and_then(|name| Scenario::named(&name)) {
        let path = env::temp_dir().join("socket");
        program::play(Scene::new(scenario, path, millis(PATIENCE), millis(DEADLINE)));
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
        println!("torture: skipped: it needs strace, which may trace here, and Linux on x86-64");
        return ExitCode::SUCCESS;
    }
    torture(filter.map_or("", String::as_str))
}

fn millis(variable: &str) -> Duration {
    let millis = env::var(variable).ok().and_then(|millis| millis.parse().ok());
    Duration::from_millis(millis.expect("set along with the scenario"))
}

fn torture(filter: &str) -> ExitCode {
    let mut total = Outcome::default();
    for subject in Subject::all() {
        let began = Instant::now();
        let clean = subject.play(None);
        if let Err(what) = subject.judge(None, &clean, &clean) {
            println!("{}: without a fault: {what}: {:#?}", subject.name(), clean.said);
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
    // Faults that do not come prove nothing.
    let proven = total.unmet * 20 <= total.runs;
    if proven && total.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every fault that may come, by what is done without one.
fn faults(clean: &Run) -> Vec<Fault> {
    for call in clean.calls.iter().map(|line| name(line)) {
        let known = CALLS.iter().any(|known| known.name == call) || SPARED.contains(&call);
        assert!(known || !call.starts_with(char::is_alphabetic), "nobody tortures {call}");
    }
    CALLS.iter().flat_map(|call| faults_of(call, clean)).collect()
}

fn faults_of(call: &Call, clean: &Run) -> Vec<Fault> {
    let before = clean.before.get(call.name).copied().unwrap_or(0);
    let made = clean.calls.iter().filter(|line| name(line) == call.name);
    let made = made.enumerate().filter(|(_, line)| is_fair(line));
    let places: Vec<usize> = made.map(|(index, _)| before + index + 1).collect();
    let fault = |error, when| Fault { call: call.name, error, when };
    let errors = || call.errors.split_whitespace();
    let mut faults: Vec<Fault> = places
        .iter()
        .flat_map(|place| errors().map(move |error| fault(error, place.to_string())))
        .collect();
    if let Some(first) = places.first() {
        let storms = STORMS.iter().filter(|(name, ..)| *name == call.name);
        faults.extend(storms.map(|&(_, error, how)| match how {
            Storm::Alternating => fault(error, format!("{first}+2")),
            Storm::InARow(count) => fault(error, format!("{first}..{}", first + count)),
        }));
    }
    faults
}

/// Whether a fault here is one that may come, and not at a mark. The standard library, built for
/// debugging, looks at a descriptor before it closes it, and takes an error for a bug; and where
/// `reactor_echo` says that it listens, a test has to read it.
fn is_fair(line: &str) -> bool {
    !["F_GETFD", "write(1,", program::BEGIN].iter().any(|spared| line.contains(spared))
}

#[derive(Default)]
struct Outcome {
    runs: usize,
    /// Runs in which the call was not made so often.
    unmet: usize,
    failures: Vec<String>,
}

impl AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.unmet += other.unmet;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, unmet, failures } = self;
        write!(f, "{runs} runs, {unmet} without their fault, {} failures", failures.len())
    }
}

/// Runs the program once with each fault, several at a time.
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

/// How often a call is made varies a little, so one that was not made often enough gets another
/// chance.
const ATTEMPTS: u32 = 3;

fn run_one(subject: Subject, fault: &Fault, clean: &Run) -> Outcome {
    for _ in 0..ATTEMPTS {
        let run = subject.play(Some(fault));
        let injected = run.injected();
        if injected.is_empty() || !injected.iter().all(|line| is_fair(line)) {
            continue;
        }
        let failure = subject.judge(Some(fault), &run, clean).err().map(|what| {
            let (name, code, said) = (subject.name(), run.code, run.said.join("\n    "));
            format!("{name}:{fault}: {what}; it ended with {code:?}\n    {injected:?}\n    {said}")
        });
        return Outcome { runs: 1, unmet: 0, failures: Vec::from_iter(failure) };
    }
    Outcome { runs: 1, unmet: 1, failures: Vec::new() }
}
