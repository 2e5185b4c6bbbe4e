//! System calls that fail: each call that the loop makes, each of its occurrences, each error that
//! its manual page names, one at a time, in several scenarios.
//!
//! strace lets the calls fail. It counts those of one thread, so this program runs itself with the
//! loop on its main thread; that is why it has a `main` of its own. By default it plays the
//! scenarios once without faults. The faults take minutes:
//!
//! ```sh
//! cargo test --test torture -- --ignored            # up to SAMPLES occurrences of each call
//! TORTURE=all cargo test --test torture -- --ignored     # all of them
//! cargo test --test torture -- --ignored busy:shutdown:  # those whose name begins so
//! ```

#[path = "../support/mod.rs"]
mod support;

mod faults;
mod judge;
mod peers;
mod program;
mod scene;
mod trace;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, thread};

use faults::{CALLS, SPARED};
use judge::judge;
use scene::{Scenario, Scene};
use trace::{DEADLINE, Fault, PATIENCE, PLAY, Run, name};

/// Occurrences of a call that are let fail, in one scenario, unless all are asked for.
const SAMPLES: usize = 5;

/// Programs at a time. They mostly wait.
const PARALLEL: usize = 4;

/// Faults that come again and again, from an occurrence on: every second time, or many in a row.
/// None is noticed.
const STORMS: [(&str, &str, &str); 8] = [
    ("epoll_wait", "EINTR", "+2"),
    ("recvfrom", "EINTR", "+2"),
    ("sendto", "EINTR", "+2"),
    ("accept4", "EINTR", "+2"),
    ("accept4", "ECONNABORTED", "+2"),
    ("accept4", "EMFILE", "+2"),
    ("accept4", "ECONNABORTED", "..+100"),
    ("epoll_wait", "EINTR", "..+50"),
];

struct Job {
    scenario: Scenario,
    fault: Fault,
}

impl Job {
    fn name(&self) -> String {
        let Fault { call, error, when } = &self.fault;
        format!("{}:{call}:{error}:{when}", self.scenario.name())
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
        println!("torture: skipped, for strace is missing or may not trace here");
        return ExitCode::SUCCESS;
    }
    torture(filter.map_or("", String::as_str))
}

fn millis(variable: &str) -> Duration {
    let millis = env::var(variable).ok().and_then(|millis| millis.parse().ok());
    Duration::from_millis(millis.expect("set along with the scenario"))
}

fn torture(filter: &str) -> ExitCode {
    let all = env::var("TORTURE").is_ok_and(|how| how == "all");
    let (mut runs, mut missed, mut failures) = (0, 0, 0);
    for scenario in Scenario::ALL {
        let began = Instant::now();
        let clean = trace::play(scenario, None);
        if let Err(what) = judge(None, &clean, &clean) {
            println!("{}: without a fault: {what}: {:#?}", scenario.name(), clean.said);
            return ExitCode::FAILURE;
        }
        let mut jobs = jobs(scenario, &clean, if all { usize::MAX } else { SAMPLES });
        jobs.retain(|job| job.name().starts_with(filter));
        let count = jobs.len();
        let outcome = run(jobs.into(), &clean);
        for failure in &outcome.failures {
            println!("{failure}");
        }
        println!(
            "{}: {count} faults, {} of them never came about, {} failures, {:.1} s",
            scenario.name(),
            outcome.missed,
            outcome.failures.len(),
            began.elapsed().as_secs_f32()
        );
        runs += count;
        missed += outcome.missed;
        failures += outcome.failures.len();
    }
    println!("torture: {runs} runs, {missed} without their fault, {failures} failures");
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every fault of a scenario, by what it does without one.
fn jobs(scenario: Scenario, clean: &Run, samples: usize) -> Vec<Job> {
    let mut jobs = Vec::new();
    let mut job = |call, error, when| jobs.push(Job { scenario, fault: Fault { call, error, when } });
    for call in clean.calls.iter().map(|line| name(line)) {
        let known = CALLS.iter().any(|known| known.name == call) || SPARED.contains(&call);
        assert!(known, "nobody tortures {call}, which the loop calls");
    }
    for call in &CALLS {
        let before = clean.before.get(call.name).copied().unwrap_or(0);
        let made = clean.calls.iter().filter(|line| name(line) == call.name);
        let made = made.enumerate().filter(|(_, line)| is_fair(line));
        let places: Vec<usize> = made.map(|(index, _)| before + index + 1).collect();
        for place in spread(&places, samples) {
            for error in call.errors.split_whitespace() {
                job(call.name, error, place.to_string());
            }
        }
        let storms = STORMS.iter().filter(|(of, ..)| *of == call.name);
        for (&(_, error, how), first) in storms.zip(std::iter::repeat(places.first())) {
            let Some(first) = first else { continue };
            let when = match how.strip_prefix("..+") {
                Some(many) => format!("{first}..{}", first + many.parse::<usize>().expect("a number")),
                None => format!("{first}{how}"),
            };
            job(call.name, error, when);
        }
    }
    jobs
}

/// The standard library, built for debugging, looks at a descriptor before it closes it, and takes
/// an error there for a bug.
fn is_fair(line: &str) -> bool {
    !line.contains("F_GETFD")
}

/// At most `most` of them, evenly, with the first and the last.
fn spread(places: &[usize], most: usize) -> Vec<usize> {
    if places.len() <= most {
        return places.to_vec();
    }
    (0..most).map(|index| places[index * (places.len() - 1) / (most - 1)]).collect()
}

#[derive(Default)]
struct Outcome {
    missed: usize,
    slowest: Option<(Duration, String)>,
    failures: Vec<String>,
}

/// Runs the jobs, several at a time.
fn run(jobs: VecDeque<Job>, clean: &Run) -> Outcome {
    let (jobs, outcome) = (Mutex::new(jobs), Mutex::new(Outcome::default()));
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        while let Some(job) = next() {
            let run = trace::play(job.scenario, Some(&job.fault));
            let injected = run.injected();
            // How often a call is made varies a little: this one may have come too late.
            let fair = !injected.is_empty() && injected.iter().all(|line| is_fair(line));
            let verdict = if fair { judge(Some(&job.fault), &run, clean) } else { Ok(()) };
            let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
            outcome.missed += usize::from(!fair);
            outcome.slowest = outcome.slowest.take().max(Some((run.took, job.name())));
            if run.took > Duration::from_secs(2) { eprintln!("SLOW {} {:?} {:?}", job.name(), run.took, run.said); }
            if let Err(what) = verdict {
                let said = run.said.join("\n    ");
                outcome.failures.push(format!(
                    "{}: {what}, code {:?}, {:?}\n    {injected:?}\n    {said}",
                    job.name(),
                    run.code,
                    run.took
                ));
            }
        }
    };
    thread::scope(|scope| (0..PARALLEL).for_each(|_| drop(scope.spawn(work))));
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}
