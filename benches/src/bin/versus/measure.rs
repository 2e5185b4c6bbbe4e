//! Measures a case: all servers in turn, round after round, so that what else the machine does
//! meets all of them.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::mem;
use std::thread;
use std::time::{Duration, Instant};

use bench::client::{Length, Load, Outcome, Session, Target};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cases::{Case, Effort, SIZE, Work};
use crate::child::Child;
use crate::cores::Cores;
use crate::figures::{Results, Row, Sample};
use crate::idle;
use crate::named::Named;
use crate::options::Plan;
use crate::servers::Kind;

/// When a run is over, and each case by its share of it: what takes longer than was expected has
/// fewer rounds. The last one is not cut short.
const LIMIT: Duration = Duration::from_secs(310);
const LIMIT_QUICK: Duration = Duration::from_secs(42);

/// How long a server is left alone before its time is read, so that it sleeps again.
const REST: Duration = Duration::from_millis(1);

pub(crate) struct Measurement {
    cores: Option<Cores>,
    quick: bool,
    progress: ProgressBar,
    notes: Vec<String>,
}

impl Measurement {
    pub(crate) fn new(plan: &Plan, cores: Option<Cores>) -> Self {
        let expected: Duration = plan.cases.iter().map(|case| total(case.effort(plan.quick))).sum();
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}, {eta} left");
        // Where stderr is not a terminal it shows nothing.
        let progress = ProgressBar::new(expected.as_millis() as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { cores, quick: plan.quick, progress, notes: Vec::new() }
    }

    /// Measures all cases, and gives `each` what came of it.
    pub(crate) fn run(
        &mut self,
        cases: &[Case],
        mut each: impl FnMut(&Results) -> io::Result<()>,
    ) -> Result<Vec<Results>, Box<dyn Error>> {
        let begin = Instant::now();
        let all: Duration = cases.iter().map(|case| total(case.effort(self.quick))).sum();
        let limit = if self.quick { LIMIT_QUICK } else { LIMIT };
        let mut planned = Duration::ZERO;
        let mut every = Vec::new();
        for case in cases {
            planned += total(case.effort(self.quick));
            let share = limit.mul_f64(planned.as_secs_f64() / all.as_secs_f64());
            let results = self.case(*case, begin + share)?;
            self.progress.suspend(|| each(&results))?;
            every.push(results);
        }
        Ok(every)
    }

    /// What servers could not do, and why.
    pub(crate) fn end(mut self) -> Vec<String> {
        mem::take(&mut self.notes)
    }

    /// All rounds of a case, or as many as there is time for, but one.
    fn case(&mut self, case: Case, until: Instant) -> Result<Results, Box<dyn Error>> {
        let effort = case.effort(self.quick);
        let mut rows: Vec<Row> =
            Kind::ALL.iter().map(|kind| Row { kind: *kind, samples: Vec::new() }).collect();
        let mut unable = Vec::new();
        for round in 0..effort.rounds {
            if round > 0 && Instant::now() > until {
                break;
            }
            // Nobody is always the first.
            for place in 0..rows.len() {
                let row = &mut rows[(place + round) % Kind::ALL.len()];
                if unable.contains(&row.kind) {
                    continue;
                }
                self.progress.set_message(format!("{}, {}", case.name, row.kind.name()));
                match self.sample(&case, row.kind, effort) {
                    Ok(sample) => row.samples.push(sample),
                    Err(Stopped::Unable(error)) if may_be_unable(row.kind, &case) => {
                        unable.push(row.kind);
                        self.notes.push(format!(
                            "{}: threads cannot do {} here ({error})",
                            case.name,
                            case.number()
                        ));
                    }
                    Err(Stopped::Unable(error) | Stopped::Wrong(error)) => {
                        let kind = row.kind.name();
                        return Err(format!("{kind} failed in {}: {error}", case.name).into());
                    }
                }
                self.progress.inc(effort.expected.as_millis() as u64);
            }
        }
        Ok(Results { case, rows })
    }
}

impl Drop for Measurement {
    /// Whatever comes next on the terminal has a line of its own.
    fn drop(&mut self) {
        self.progress.finish_and_clear();
    }
}

/// Threads have limits that the others have not.
fn may_be_unable(kind: Kind, case: &Case) -> bool {
    kind == Kind::Threads && case.connections >= 10_000
}

/// Why there is no sample.
enum Stopped {
    /// Before it was measured: as many connections may be more than it can have.
    Unable(io::Error),
    /// While it was measured; or a reply was wrong.
    Wrong(io::Error),
}

impl Stopped {
    fn before(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidData => Self::Wrong(error),
            _ => Self::Unable(error),
        }
    }
}

impl Measurement {
    /// One round of one server, in a process of its own that knows no earlier one.
    fn sample(&self, case: &Case, kind: Kind, effort: Effort) -> Result<Sample, Stopped> {
        let (service, depth) = case.service();
        let child = Child::start(kind, service, self.cores.map(|cores| cores.server))
            .map_err(Stopped::before)?;
        if case.work == Work::Idle {
            return idle::sample(&child, case.connections).map_err(Stopped::before);
        }
        let load = Load {
            connections: case.connections,
            size: SIZE,
            depth,
            churn: case.work == Work::Churn,
            ..Load::new(Target::Tcp(child.addr))
        };
        let tell = &mut |_| ();
        let mut session = Session::connect(&load, tell).map_err(Stopped::before)?;
        let warm_up = session.run(Length::Time(effort.warm_up)).and_then(answered);
        warm_up.map_err(Stopped::before)?;
        measured(&child, &mut session, effort.measured).map_err(Stopped::Wrong)
    }
}

fn measured(child: &Child, session: &mut Session<'_>, time: Duration) -> io::Result<Sample> {
    thread::sleep(REST);
    let before = child.cpu()?;
    let outcome = session.run(Length::Time(time)).and_then(answered)?;
    thread::sleep(REST);
    Ok(Sample::of_work(&outcome, child.cpu()?.saturating_sub(before)))
}

fn answered(outcome: Outcome) -> io::Result<Outcome> {
    match outcome.if_right()? {
        outcome if outcome.requests > 0 => Ok(outcome),
        _ => Err(io::Error::other("no request was answered")),
    }
}

fn total(effort: Effort) -> Duration {
    effort.expected * (effort.rounds * Kind::ALL.len()) as u32
}
