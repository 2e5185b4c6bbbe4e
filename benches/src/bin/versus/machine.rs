//! The machine: its description, its load by other processes, and its limit of descriptors.

use std::fs;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::cores::Cores;

/// Raises the limit of descriptors to the hard limit. Returns the limit of this process and of the
/// processes that it starts.
pub(crate) fn descriptors() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let soft = limit.current;
    limit.current = limit.maximum;
    // `None` means that there is no limit.
    let max = match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        Err(_) => soft,
    };
    max.map_or(usize::MAX, |max| max as usize)
}

/// The past activity of the cores in use, in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    all: u64,
    busy: u64,
    /// Ticks used by this process and by its children that have ended.
    own: u64,
}

impl Usage {
    /// Reads the activity of `cores`, or of all cores if `cores` is `None`. Returns `None` if
    /// `/proc` cannot be read.
    pub(crate) fn now(cores: Option<Cores>) -> Option<Self> {
        let names = match cores {
            Some(Cores { server, client }) => vec![format!("cpu{server}"), format!("cpu{client}")],
            None => vec!["cpu".into()],
        };
        let (all, busy) = ticks(&fs::read_to_string("/proc/stat").ok()?, &names);
        let own = own_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?;
        Some(Self { all, busy, own })
    }

    /// Returns the fraction of the cores' time that other processes have used since `then`.
    pub(crate) fn of_others_since(&self, then: Self) -> f64 {
        let own = self.own.saturating_sub(then.own);
        let others = (self.busy.saturating_sub(then.busy)).saturating_sub(own);
        others as f64 / self.all.saturating_sub(then.all).max(1) as f64
    }
}

/// Returns all ticks and the busy ticks of the named cores; see `proc_stat(5)`.
fn ticks(stat: &str, names: &[String]) -> (u64, u64) {
    let (mut all, mut idle) = (0, 0);
    for line in stat.lines() {
        let mut fields = line.split_whitespace();
        if fields.next().is_some_and(|name| names.iter().any(|wanted| wanted == name)) {
            // The later fields are guest time, which these eight fields already include.
            let ticks: Vec<u64> = fields.take(8).map_while(|ticks| ticks.parse().ok()).collect();
            all += ticks.iter().sum::<u64>();
            idle += ticks.iter().skip(3).take(2).sum::<u64>();
        }
    }
    (all, all - idle)
}

/// Returns the user and system time of a process and of its children that have ended; see
/// `proc_pid_stat(5)`.
fn own_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split_whitespace().skip(11).take(4).map(|ticks| ticks.parse::<u64>().ok()).sum()
}

/// Describes the processor, the cores and the kernel.
pub(crate) fn describe() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_others_is_neither_idle_nor_our_own() {
        let names = ["cpu0".into(), "cpu1".into()];
        let before =
            "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 10 0 10 50 5 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n";
        let after =
            "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 40 1 20 90 9 2 3 4 7 7\ncpu1 0 0 0 31 0 0 0 0 0 0\n";
        let usage = |stat, own| {
            let (all, busy) = ticks(stat, &names);
            Usage { all, busy, own }
        };
        // 125 ticks passed. 75 were idle, 25 were used by this process.
        let used = usage(after, 35).of_others_since(usage(before, 10));
        assert!((used - 25.0 / 125.0).abs() < 1e-9, "{used}");
    }

    #[test]
    fn the_time_of_a_process_is_found_for_any_process_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 99 99 99 99 1 2 3 4 20 0 1 0 5 6 7";
        assert_eq!(own_ticks(stat), Some(10));
        assert!(Usage::now(None).is_some_and(|usage| usage.all > 0));
    }
}
