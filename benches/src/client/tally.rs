//! Tally: the counters of a run.

use std::io;
use std::ops::Range;

use hdrhistogram::Histogram;

use super::schedule::{Nanos, Schedule};

/// The longest recorded latency. Longer latencies are recorded as this value.
const LONGEST: Nanos = 3_600 * 1_000_000_000;

/// Maximum histogram entries for the unsent requests of one connection.
const POINTS: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Tally {
    /// Requests that were due before this time are not measured.
    pub(super) measured_from: Nanos,
    pub(super) latency: Histogram<u64>,
    /// The number of all replies, including those that are not measured.
    pub(super) answered: u64,
    pub(super) last_reply: Nanos,
    pub(super) wrong: u64,
    pub(super) first_wrong: Option<String>,
    pub(super) errors: Vec<(io::ErrorKind, u64)>,
    pub(super) missing: u64,
}

impl Tally {
    pub(super) fn new() -> io::Result<Self> {
        let latency = Histogram::new_with_bounds(1, LONGEST, 3).map_err(io::Error::other)?;
        Ok(Self {
            measured_from: Nanos::MAX,
            latency,
            answered: 0,
            last_reply: 0,
            wrong: 0,
            first_wrong: None,
            errors: Vec::new(),
            missing: 0,
        })
    }

    /// Records the complete reply to a request that was due at `due`.
    pub(super) fn answered(&mut self, due: Nanos, now: Nanos) {
        self.answered += 1;
        self.last_reply = now;
        if due >= self.measured_from {
            self.latency.saturating_record(now.saturating_sub(due).max(1));
        }
    }

    /// Records requests that a connection did not send. Their latency is the time from when they
    /// were due to the end of the run.
    pub(super) fn unsent(&mut self, schedule: &Schedule, connection: usize, left: Range<u64>) {
        let step = (left.end - left.start).div_ceil(POINTS).max(1);
        for first in left.clone().step_by(step as usize) {
            let count = step.min(left.end - first);
            let waited = schedule.waited(connection, first + count / 2);
            self.latency.saturating_record_n(waited.max(1), count);
        }
    }

    pub(super) fn wrong(&mut self, description: String) {
        self.wrong += 1;
        self.first_wrong.get_or_insert(description);
    }

    pub(super) fn error(&mut self, kind: io::ErrorKind) {
        match self.errors.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => self.errors.push((kind, 1)),
        }
    }
}
