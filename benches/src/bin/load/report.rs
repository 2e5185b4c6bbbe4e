//! Formats the report of a run as text.

use std::fmt::Write;
use std::io;

use bench::client::{Load, Outcome, Pace, Target};
use bench::human;
use indicatif::HumanCount;

const PERCENTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// Formats the table of results.
pub(super) fn text(load: &Load, outcome: &Outcome) -> String {
    let seconds = outcome.elapsed.as_secs_f64().max(1e-9);
    let requests = HumanCount(outcome.requests);
    let rate = human::amount(outcome.requests as f64 / seconds);
    let bytes = human::amount(outcome.bytes as f64 / seconds);
    let mut text = format!("{}: {}\n", target(load), self::load(load));
    let mut row = |name: &str, value: &str| {
        write!(text, "\n{name:>10}  {value}").expect("writing to a string cannot fail");
    };
    row("requests", &format!("{requests} in {}", human::time(seconds * 1e9)));
    row("throughput", &format!("{rate} requests/s, {} each way\n", bytes_a_second(&bytes)));
    for (name, quantile) in PERCENTILES {
        row(name, &human::time(outcome.latency.value_at_quantile(quantile) as f64));
    }
    row("max", &human::time(outcome.latency.max() as f64));
    row("mean", &human::time(outcome.latency.mean()));
    text
}

/// Describes the load in one line.
pub(super) fn load(load: &Load) -> String {
    let connections = HumanCount(load.connections as u64);
    let size = HumanCount(load.size as u64);
    let pace = match load.pace {
        Pace::Closed => "closed loop".to_owned(),
        Pace::Open(rate) => format!("open loop at {} requests/s", human::amount(rate)),
    };
    let depth = if load.churn { "churn".to_owned() } else { format!("depth {}", load.depth) };
    let s = if load.connections == 1 { "" } else { "s" };
    format!("{connections} connection{s}, {size} bytes, {depth}, {pace}")
}

pub(super) fn target(load: &Load) -> String {
    match &load.target {
        Target::Tcp(addr) => addr.to_string(),
        Target::Unix(path) => path.display().to_string(),
    }
}

/// Returns notes that are not failures.
pub(super) fn notes(outcome: &Outcome) -> Vec<String> {
    let mut notes = Vec::new();
    if outcome.unsent > 0 {
        let unsent = HumanCount(outcome.unsent);
        notes.push(format!(
            "requests that were due but not sent at the end: {unsent}; \
             the server does not keep up with the rate"
        ));
    }
    if outcome.late.as_millis() > 0 {
        let late = human::time(outcome.late.as_nanos() as f64);
        notes.push(format!(
            "this program was up to {late} behind its schedule; the latencies include this delay"
        ));
    }
    notes
}

/// Returns one line for each failure. The exit code is 1 if there are any.
pub(super) fn failures(outcome: &Outcome) -> Vec<String> {
    let mut failures = Vec::new();
    if outcome.wrong > 0 {
        let first = outcome.first_wrong.as_deref().unwrap_or("unknown");
        failures.push(format!("wrong replies: {}; the first: {first}", outcome.wrong));
    }
    for (kind, count) in &outcome.errors {
        failures.push(format!("failed connections: {count}: {}", reason(*kind)));
    }
    if outcome.missing > 0 {
        failures.push(format!("missing replies: {}", HumanCount(outcome.missing)));
    }
    if outcome.requests == 0 && failures.is_empty() {
        failures.push("no request was answered during the run".to_owned());
    }
    failures
}

/// Describes the error of a run that has no outcome.
pub(super) fn first_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::TimedOut => reason(error.kind()),
        _ => error.to_string(),
    }
}

fn reason(kind: io::ErrorKind) -> String {
    match kind {
        io::ErrorKind::UnexpectedEof => "the server closed too early".to_owned(),
        io::ErrorKind::TimedOut => "no byte was transferred within --timeout".to_owned(),
        other => other.to_string(),
    }
}

fn bytes_a_second(amount: &str) -> String {
    match amount.split_once(' ') {
        Some((digits, prefix)) => format!("{digits} {prefix}B/s"),
        None => format!("{amount} B/s"),
    }
}
