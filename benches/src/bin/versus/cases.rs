//! What is measured, and how long it may take.

use std::time::Duration;

use crate::named::Named;
use crate::servers::{Mode, Service};
use crate::table::whole;

/// Bytes of a request, of its newline too.
pub(crate) const SIZE: usize = 64;

/// How long a peer may be silent: what is pool-manager's default, for all that have a deadline.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);

/// What the client does to each server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Requests on connections that stay, `depth` at a time on each.
    Requests { mode: Mode, depth: usize },
    /// Connect, one echo, close, again.
    Churn,
    /// One echo on each connection, then silence: what does it cost to keep them?
    Idle,
}

/// One block of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) connections: usize,
    pub(crate) work: Work,
}

const fn echo(name: &'static str, connections: usize) -> Case {
    Case { name, connections, work: Work::Requests { mode: Mode::Echo, depth: 1 } }
}

const fn lines(name: &'static str, connections: usize) -> Case {
    Case { name, connections, work: Work::Requests { mode: Mode::Lines, depth: 16 } }
}

/// The long ones come last: if they take longer than was expected, nobody else has fewer rounds.
pub(crate) const CASES: [Case; 10] = [
    echo("echo-1", 1),
    echo("echo-64", 64),
    echo("echo-1000", 1_000),
    lines("lines-1", 1),
    lines("lines-64", 64),
    lines("lines-1000", 1_000),
    Case { name: "churn", connections: 64, work: Work::Churn },
    Case { name: "idle", connections: 15_000, work: Work::Idle },
    echo("echo-10000", 10_000),
    lines("lines-10000", 10_000),
];

/// How often and how long a case is measured, on each server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    /// What a round is expected to take with all that belongs to it.
    pub(crate) expected: Duration,
}

impl Case {
    /// One line that says what it is.
    pub(crate) fn title(&self) -> String {
        let (name, connections) = (self.name, self.number());
        match self.work {
            Work::Requests { depth: 1, .. } => format!("{name}: {connections}, {SIZE}-byte echo"),
            Work::Requests { depth, .. } => {
                format!("{name}: {connections}, {SIZE}-byte lines, {depth} at a time")
            }
            Work::Churn => format!("{name}: connect, one {SIZE}-byte echo, close; {connections}"),
            Work::Idle => format!("{name}: {connections}, silent after one echo"),
        }
    }

    /// What a server shall do, and how many requests at a time it gets on a connection.
    pub(crate) fn service(&self) -> (Service, usize) {
        let (mode, depth) = match self.work {
            Work::Requests { mode, depth } => (mode, depth),
            Work::Churn => (Mode::Echo, 1),
            Work::Idle => (Mode::Idle, 1),
        };
        // On a busy machine the first of many is silent for a while until the last is connected.
        let deadline = if self.connections < 10_000 { DEADLINE } else { DEADLINE * 20 };
        (Service { mode, deadline }, depth)
    }

    /// What it is, in few words.
    pub(crate) fn short_title(&self) -> String {
        let connections = self.number();
        match self.work {
            Work::Requests { mode, .. } => format!("{}, {connections}", mode.name()),
            Work::Churn => "churn".into(),
            Work::Idle => connections,
        }
    }

    pub(crate) fn number(&self) -> String {
        let plural = if self.connections == 1 { "" } else { "s" };
        format!("{} connection{plural}", whole(self.connections as f64))
    }

    /// Whether a run of under a minute leaves it out.
    pub(crate) fn is_long(&self) -> bool {
        self.connections >= 10_000 && self.work != Work::Idle
    }

    pub(crate) fn effort(&self, quick: bool) -> Effort {
        let (rounds, warm_up, measured, setup) = match (self.work, self.connections, quick) {
            (Work::Idle, _, true) => (1, 0, 0, 2_000),
            (Work::Idle, _, false) => (3, 0, 0, 2_000),
            (_, 10_000.., _) => (3, 400, 800, 1_200),
            (_, _, true) => (3, 50, 150, 50),
            (_, _, false) => (7, 100, 400, 50),
        };
        Effort {
            rounds,
            warm_up: Duration::from_millis(warm_up),
            measured: Duration::from_millis(measured),
            expected: Duration::from_millis(warm_up + measured + setup),
        }
    }
}

/// Descriptors that a process needs beside its connections.
const SPARE: usize = 100;

/// Leaves out what needs more than `max` descriptors in a process, and says so; silent connections
/// are fewer instead.
pub(crate) fn fit(cases: &mut Vec<Case>, max: usize) -> Vec<String> {
    let room = max.saturating_sub(SPARE);
    let mut notes = Vec::new();
    cases.retain_mut(|case| {
        if case.connections <= room {
            return true;
        }
        if case.work == Work::Idle && room > 0 {
            case.connections = if room >= 10_000 { 10_000 } else { room };
            notes.push(format!(
                "idle: {} connections: {max} descriptors are allowed",
                case.connections
            ));
            return true;
        }
        notes.push(format!("{} is left out: only {max} descriptors are allowed", case.name));
        false
    });
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(max: usize) -> (Vec<(&'static str, usize)>, usize) {
        let mut cases = CASES.to_vec();
        let notes = fit(&mut cases, max);
        (cases.iter().map(|case| (case.name, case.connections)).collect(), notes.len())
    }

    #[test]
    fn what_does_not_fit_is_left_out_or_less() {
        assert_eq!(fitted(20_000).1, 0);
        let (cases, notes) = fitted(12_000);
        assert!(cases.len() == CASES.len() && cases.contains(&("idle", 10_000)) && notes == 1);
        let (cases, notes) = fitted(1_024);
        assert!(!cases.iter().any(|(name, _)| name.ends_with("000")));
        assert!(cases.contains(&("idle", 924)) && notes == 5);
    }

    #[test]
    fn a_run_is_planned_to_take_less_than_it_may() {
        let planned = |quick: bool| -> Duration {
            let cases = CASES.iter().filter(|case| !(quick && case.is_long()));
            let efforts = cases.map(|case| case.effort(quick));
            efforts.map(|effort| effort.expected * effort.rounds as u32 * 5).sum()
        };
        assert!(planned(false) < Duration::from_secs(270), "{:?}", planned(false));
        assert!(planned(true) < Duration::from_secs(40), "{:?}", planned(true));
    }
}
