//! Measures a case. Each round measures all servers, one after the other, so that other activity on
//! the machine affects all servers equally.

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

/// Maximum time of a run. It is divided between the cases in proportion to their expected times. A
/// case that takes longer than expected has fewer rounds. A round that has begun is completed.
const LIMIT: Duration = Duration::from_secs(310);
/// As [`LIMIT`], with `--quick`.
const LIMIT_QUICK: Duration = Duration::from_secs(42);

/// Pause before the processor time of a server is read, so that the server is asleep by then.
const SETTLE_TIME: Duration = Duration::from_millis(1);

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
        // The progress bar is hidden if stderr is not a terminal.
        let progress = ProgressBar::new(expected.as_millis() as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { cores, quick: plan.quick, progress, notes: Vec::new() }
    }

    /// Measures all cases. Passes the results of each case to `each`.
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

    /// Ends the measurement. Returns a note for each case that a server could not handle.
    pub(crate) fn end(mut self) -> Vec<String> {
        mem::take(&mut self.notes)
    }

    /// Measures the rounds of a case. After `until` no further round begins, but at least one round
    /// is measured.
    fn case(&mut self, case: Case, until: Instant) -> Result<Results, Box<dyn Error>> {
        let effort = case.effort(self.quick);
        let mut rows: Vec<Row> =
            Kind::ALL.iter().map(|kind| Row { kind: *kind, samples: Vec::new() }).collect();
        let mut unable = Vec::new();
        for round in 0..effort.rounds {
            if round > 0 && Instant::now() > until {
                break;
            }
            // Each round begins with a different server.
            for place in 0..rows.len() {
                let row = &mut rows[(place + round) % Kind::ALL.len()];
                if unable.contains(&row.kind) {
                    continue;
                }
                self.progress.set_message(format!("{}, {}", case.name, row.kind.name()));
                match self.sample(&case, row.kind, effort) {
                    Ok(sample) => row.samples.push(sample),
                    Err(SampleError::Unable(error)) if may_be_unable(row.kind, &case) => {
                        unable.push(row.kind);
                        self.notes.push(format!(
                            "{}: the threads server cannot handle {} here ({error})",
                            case.name,
                            case.number()
                        ));
                    }
                    Err(SampleError::Unable(error) | SampleError::Wrong(error)) => {
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
    /// Clears the progress bar, so that later output begins on an empty line.
    fn drop(&mut self) {
        self.progress.finish_and_clear();
    }
}

/// Returns true if `kind` is allowed to fail in this case. Only the threads server is, with 10,000
/// connections or more, because the system limits the number of threads.
fn may_be_unable(kind: Kind, case: &Case) -> bool {
    kind == Kind::Threads && case.connections >= 10_000
}

/// The reason why there is no sample.
enum SampleError {
    /// The round failed before the measurement. The server possibly does not support this number of
    /// connections.
    Unable(io::Error),
    /// The round failed during the measurement, or a reply was wrong.
    Wrong(io::Error),
}

impl SampleError {
    fn before(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidData => Self::Wrong(error),
            _ => Self::Unable(error),
        }
    }
}

impl Measurement {
    /// Measures one round of one server, in a new process.
    fn sample(&self, case: &Case, kind: Kind, effort: Effort) -> Result<Sample, SampleError> {
        let (service, depth) = case.service();
        let child = Child::start(kind, service, self.cores.map(|cores| cores.server))
            .map_err(SampleError::before)?;
        if case.work == Work::Idle {
            return idle::sample(&child, case.connections).map_err(SampleError::before);
        }
        let load = Load {
            connections: case.connections,
            size: SIZE,
            depth,
            churn: case.work == Work::Churn,
            ..Load::new(Target::Tcp(child.addr))
        };
        let on_progress = &mut |_| ();
        let mut session = Session::connect(&load, on_progress).map_err(SampleError::before)?;
        let warm_up = session.run(Length::Time(effort.warm_up)).and_then(answered);
        warm_up.map_err(SampleError::before)?;
        measured(&child, &mut session, effort.measured).map_err(SampleError::Wrong)
    }
}

fn measured(child: &Child, session: &mut Session<'_>, time: Duration) -> io::Result<Sample> {
    thread::sleep(SETTLE_TIME);
    let before = child.cpu()?;
    let outcome = session.run(Length::Time(time)).and_then(answered)?;
    thread::sleep(SETTLE_TIME);
    Ok(Sample::of_work(&outcome, child.cpu()?.saturating_sub(before)))
}

fn answered(outcome: Outcome) -> io::Result<Outcome> {
    match outcome.into_result()? {
        outcome if outcome.requests > 0 => Ok(outcome),
        _ => Err(io::Error::other("no request was answered")),
    }
}

fn total(effort: Effort) -> Duration {
    effort.expected * (effort.rounds * Kind::ALL.len()) as u32
}
