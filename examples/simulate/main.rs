//! Runs the real loop in the simulated network, with hostile peers and callbacks, and checks the
//! invariants after every turn.
//!
//! ```text
//! cargo run --release --features sim --example simulate -- --seeds 0..2000 --steps 300
//! cargo run --release --features sim --example simulate -- --seeds 0..100 --digest
//! cargo run --release --features sim --example simulate -- --trace 42 --steps 20
//! cargo run --release --features sim --example simulate -- --canary all
//! ```

mod canary;
mod shrink;
#[path = "../../tests/simulation/world/mod.rs"]
mod world;

use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use world::{Marks, Violation};

const HELP: &str = "\
Runs the real loop in the simulated network and checks the invariants after every turn.

Usage: simulate [--seeds A..B] [--steps N] [--digest] [--only STEPS]
                [--keep-going] [--marks] [--no-shrink] [--jobs N]
       simulate --trace SEED [--steps N] [--only STEPS]
       simulate --canary NAME|all [--seeds A..B] [--steps N]

  --seeds A..B    the seeds to run, without B (default 0..2000)
  --steps N       steps of each seed (default 300)
  --digest        run each seed twice, and fail at the first turn that differs
  --only STEPS    run only these steps, such as 3,7..12, to replay a shrunk violation
  --keep-going    run the other seeds as well after a violation
  --marks         print how often each mark was hit
  --no-shrink     do not search for the fewest steps of a violation
  --jobs N        number of seeds to run in parallel (default: the number of cores)
  --trace SEED    print the events of each step of one seed
  --canary NAME   plant one known bug, or each in turn; each must be found
";

struct Options {
    seeds: Range<u64>,
    steps: usize,
    only: Option<Vec<usize>>,
    twice: bool,
    jobs: usize,
    shrink: bool,
    keep_going: bool,
    marks: bool,
    trace: Option<u64>,
    canary: Option<String>,
}

fn options() -> Result<Options, lexopt::Error> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options {
        seeds: 0..2_000,
        steps: 300,
        only: None,
        twice: false,
        jobs: cores,
        shrink: true,
        keep_going: false,
        marks: false,
        trace: None,
        canary: None,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seeds") => options.seeds = parser.value()?.parse_with(range)?,
            Long("steps") => options.steps = parser.value()?.parse()?,
            Long("only") => options.only = Some(parser.value()?.parse_with(shrink::parse)?),
            Long("digest") => options.twice = true,
            Long("jobs") => options.jobs = parser.value()?.parse::<usize>()?.max(1),
            Long("marks") => options.marks = true,
            Long("keep-going") => options.keep_going = true,
            Long("no-shrink") => options.shrink = false,
            Long("trace") => options.trace = Some(parser.value()?.parse()?),
            Long("canary") => options.canary = Some(parser.value()?.string()?),
            Short('h') | Long("help") => {
                print!("{HELP}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(options)
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let ends = text.split_once("..").ok_or("seeds must be A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    let range = number(ends.0)?..number(ends.1)?;
    if range.is_empty() { Err("the range of seeds is empty".into()) } else { Ok(range) }
}

impl Options {
    fn steps(&self) -> Vec<usize> {
        match &self.only {
            Some(only) => only.clone(),
            None => (0..self.steps).collect(),
        }
    }
}

/// The result of all seeds.
struct Run<'a> {
    options: &'a Options,
    next: AtomicU64,
    done: AtomicU64,
    failed: AtomicBool,
    total: Mutex<Total>,
}

#[derive(Default)]
struct Total {
    marks: Marks,
    /// Does not depend on the order in which the seeds run.
    digest: u64,
    violations: Vec<(u64, Violation)>,
}

impl Run<'_> {
    /// Runs seeds until none is left or one has failed.
    fn work(&self, steps: &[usize]) {
        while !self.failed.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.options.seeds.end {
                return;
            }
            let outcome = self.run_seed(seed, steps);
            let mut total = self.total.lock().unwrap();
            match outcome {
                Ok(outcome) => {
                    total.marks.add(&outcome.marks);
                    total.digest ^= (outcome.digest ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                }
                Err(violation) => {
                    self.failed.store(!self.options.keep_going, Ordering::Relaxed);
                    total.violations.push((seed, violation));
                }
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn run_seed(&self, seed: u64, steps: &[usize]) -> Result<world::Outcome, Violation> {
        let outcome = world::run(seed, steps.iter().copied(), false)?;
        if self.options.twice {
            let again = world::run(seed, steps.iter().copied(), false)?;
            let same =
                outcome.turns.iter().zip(&again.turns).take_while(|(one, other)| one == other);
            let turn = same.count();
            if turn < outcome.turns.len().max(again.turns.len()) {
                let what = format!("seed {seed} differs between two runs from turn {turn} on");
                return Err(Violation { step: steps.len(), what });
            }
        }
        Ok(outcome)
    }

    /// Shows the progress if stderr is a terminal.
    fn show_progress(&self, over: &AtomicBool) {
        let all = self.options.seeds.end - self.options.seeds.start;
        while std::io::stderr().is_terminal() && !over.load(Ordering::Relaxed) {
            let done = self.done.load(Ordering::Relaxed);
            let filled = (done * 40 / all) as usize;
            eprint!("\r[{:<40}] {done} of {all} seeds", "#".repeat(filled));
            let _ = std::io::stderr().flush();
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn simulate(options: &Options) -> ExitCode {
    let run = Run {
        options,
        next: AtomicU64::new(options.seeds.start),
        done: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        total: Mutex::default(),
    };
    let (steps, began, over) = (options.steps(), Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| run.show_progress(&over));
        let workers: Vec<_> = (0..options.jobs).map(|_| scope.spawn(|| run.work(&steps))).collect();
        for worker in workers {
            worker.join().expect("a worker thread panicked");
        }
        over.store(true, Ordering::Relaxed);
    });
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    let seeds = run.done.into_inner();
    let mut total = run.total.into_inner().unwrap();
    total.violations.sort_by_key(|(seed, _)| *seed);
    let all_steps = seeds * steps.len() as u64;
    let missed = total.marks.missed(seeds, steps.len() as u64);
    let unmarked = total.violations.is_empty() && !missed.is_empty();
    for (index, (seed, violation)) in total.violations.iter().enumerate() {
        println!("seed {seed}, step {}: {}", violation.step, violation.what);
        shrink::report(*seed, violation, &steps, options.shrink && index == 0);
    }
    if options.marks {
        total.marks.counts().for_each(|(mark, count)| println!("{count:>9} {mark}"));
    }
    if unmarked {
        println!("marks never hit: {}", missed.join(", "));
    }
    println!(
        "seeds={seeds} steps={all_steps} violations={} marks={}/{} digest={:016x} \
         steps_per_s={}",
        total.violations.len(),
        total.marks.counts().filter(|(_, count)| *count > 0).count(),
        total.marks.counts().count(),
        total.digest,
        u128::from(all_steps) * 1_000 / began.elapsed().as_millis().max(1)
    );
    if unmarked || !total.violations.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn trace(seed: u64, options: &Options) -> ExitCode {
    match world::run(seed, options.steps().into_iter(), true) {
        Ok(_) => ExitCode::SUCCESS,
        Err(violation) => {
            println!("seed {seed}, step {}: {}", violation.step, violation.what);
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("simulate: {error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match (&options.canary, options.trace) {
        (Some(name), _) => canary::find(name, &options.seeds, options.steps),
        (None, Some(seed)) => trace(seed, &options),
        (None, None) => simulate(&options),
    }
}
