//! Cases: the measured loads, and the planned time of each.

use std::time::Duration;

use crate::named::Named;
use crate::servers::{Mode, Service};
use crate::table::whole;

/// Bytes per request, including its newline.
pub(crate) const SIZE: usize = 64;

/// The read deadline of all servers that have one. It is the default of pool-manager.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);

/// The load on each server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Requests on connections that stay open. Each connection sends `depth` requests at a time.
    Requests { mode: Mode, depth: usize },
    /// Connect, one echo, close, in a loop.
    Churn,
    /// One echo on each connection, then silence. Measures the memory of idle connections.
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

/// The long cases come last. If they take longer than expected, only they have fewer rounds. By
/// then, all rounds of the other cases have been measured.
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

/// The number and the length of the rounds of a case, for each server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    /// The expected time of a round, including the setup.
    pub(crate) expected: Duration,
}

impl Case {
    /// Returns a description in one line for the table.
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

    /// Returns the settings of the server, and the number of requests in flight per connection.
    pub(crate) fn service(&self) -> (Service, usize) {
        let (mode, depth) = match self.work {
            Work::Requests { mode, depth } => (mode, depth),
            Work::Churn => (Mode::Echo, 1),
            Work::Idle => (Mode::Idle, 1),
        };
        // On a busy machine, it takes long to open many connections. The first ones are silent
        // until the last one is open, and the deadline must not close them.
        let deadline = if self.connections < 10_000 { DEADLINE } else { DEADLINE * 20 };
        (Service { mode, deadline }, depth)
    }

    /// Returns a short description, for the plots.
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

    /// Returns true if a quick run skips the case.
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

/// Descriptors that a process needs besides its connections.
const SPARE: usize = 100;

/// Removes cases that need more than `max` descriptors per process. The idle case is not removed,
/// but has fewer connections. Returns a note for each change.
pub(crate) fn fit(cases: &mut Vec<Case>, max: usize) -> Vec<String> {
    let max_connections = max.saturating_sub(SPARE);
    let mut notes = Vec::new();
    cases.retain_mut(|case| {
        if case.connections <= max_connections {
            return true;
        }
        if case.work == Work::Idle && max_connections > 0 {
            case.connections = if max_connections >= 10_000 { 10_000 } else { max_connections };
            notes.push(format!(
                "idle is reduced to {} connections: only {max} descriptors are allowed",
                case.connections
            ));
            return true;
        }
        notes.push(format!("{} is skipped: only {max} descriptors are allowed", case.name));
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
    fn cases_that_need_too_many_descriptors_are_removed_or_reduced() {
        assert_eq!(fitted(20_000).1, 0);
        let (cases, notes) = fitted(12_000);
        assert!(cases.len() == CASES.len() && cases.contains(&("idle", 10_000)) && notes == 1);
        let (cases, notes) = fitted(1_024);
        assert!(!cases.iter().any(|(name, _)| name.ends_with("000")));
        assert!(cases.contains(&("idle", 924)) && notes == 5);
    }

    #[test]
    fn the_planned_time_of_a_run_is_below_its_limit() {
        let planned = |quick: bool| -> Duration {
            let cases = CASES.iter().filter(|case| !(quick && case.is_long()));
            let efforts = cases.map(|case| case.effort(quick));
            efforts.map(|effort| effort.expected * effort.rounds as u32 * 5).sum()
        };
        assert!(planned(false) < Duration::from_secs(270), "{:?}", planned(false));
        assert!(planned(true) < Duration::from_secs(40), "{:?}", planned(true));
    }
}
