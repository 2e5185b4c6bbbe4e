//! Warnings for an operator, derived from counters and limited in rate.

use std::time::Duration;

use super::Manager;
use crate::conn_state::CloseReason;
use crate::handler::Handler;
use crate::sys::Backend;
use crate::time::{Now, Tick};

/// The shortest time between two warnings of the same kind.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

/// Reports the growth of a counter at a limited rate, so that peers cannot fill a log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ThrottledWarning {
    seen: u64,
    not_before: Option<Tick>,
}

impl ThrottledWarning {
    /// Returns the growth of `count` since the last report. Returns `None` if it has not grown, or
    /// if the last report was too recent.
    fn due(&mut self, count: u64, now: Now) -> Option<u64> {
        let grown = count - self.seen;
        if grown == 0 || self.not_before.is_some_and(|tick| tick > now.floor) {
            return None;
        }
        *self = Self { seen: count, not_before: Some(now.ceil.after(WARNING_INTERVAL)) };
        Some(grown)
    }
}

/// The counters that a manager warns about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Warnings {
    slow: ThrottledWarning,
    panics: ThrottledWarning,
    admit_failures: ThrottledWarning,
    memory_limit: ThrottledWarning,
}

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Logs the warnings on which an operator should act.
    pub(super) fn log_warnings(&mut self) {
        let (warnings, stats, now) = (&mut self.warnings, &self.cx.stats, self.cx.now);
        if let Some(slow) = warnings.slow.due(stats.slow_callbacks, now) {
            let longest = stats.longest_callback;
            log::warn!(
                "{slow} slow callbacks delayed all connections; the longest ever took {longest:?}"
            );
        }
        if let Some(panics) = warnings.panics.due(stats.panics, now) {
            log::warn!("{panics} callbacks panicked; their connections were closed");
        }
        if let Some(failed) = warnings.admit_failures.due(stats.admit_failures, now) {
            log::warn!("{failed} connections could not be registered or wrapped and were closed");
        }
        let closed = stats.closed(CloseReason::MemoryLimit);
        if let Some(closed) = warnings.memory_limit.due(closed, now) {
            log::warn!("{closed} connections were closed because memory_limit is used up");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_reports_growth_at_most_once_a_second() {
        let at = |millis| Now::new((millis, false));
        let mut warning = ThrottledWarning::default();
        assert_eq!(warning.due(0, at(5)), None);
        assert_eq!(warning.due(3, at(10)), Some(3));
        assert_eq!(warning.due(3, at(5_000)), None, "nothing new");
        assert_eq!(warning.due(4, at(6_000)), Some(1));
        assert_eq!(warning.due(9, at(6_999)), None, "too soon");
        assert_eq!(warning.due(9, at(7_000)), Some(5));
    }
}
