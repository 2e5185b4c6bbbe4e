//! Warnings for an operator, derived from counters and limited in rate.

use std::time::Duration;

use super::Manager;
use crate::conn_state::CloseReason;
use crate::handler::Handler;
use crate::sys::Backend;
use crate::time::{Now, Tick};

/// At most one warning of a kind in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

/// Tells of a growing counter, but not too often: what peers can cause must not fill a log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ThrottledWarning {
    seen: u64,
    not_before: Option<Tick>,
}

impl ThrottledWarning {
    /// By how much `count` has grown, if that is worth telling now.
    fn due(&mut self, count: u64, now: Now) -> Option<u64> {
        let grown = count - self.seen;
        if grown == 0 || self.not_before.is_some_and(|tick| tick > now.floor) {
            return None;
        }
        *self = Self { seen: count, not_before: Some(now.ceil.after(WARNING_INTERVAL)) };
        Some(grown)
    }
}

/// What a manager warns of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Warnings {
    slow: ThrottledWarning,
    panics: ThrottledWarning,
    lost: ThrottledWarning,
    crowded: ThrottledWarning,
}

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Tells an operator what should not happen.
    pub(super) fn log_warnings(&mut self) {
        let (warnings, stats, now) = (&mut self.warnings, &self.cx.stats, self.cx.now);
        if let Some(slow) = warnings.slow.due(stats.slow_callbacks, now) {
            let longest = stats.longest_callback;
            log::warn!(
                "{slow} slow callbacks held up everybody; the longest ever took {longest:?}"
            );
        }
        if let Some(panics) = warnings.panics.due(stats.panics, now) {
            log::warn!("{panics} callbacks panicked; their connections were closed");
        }
        if let Some(lost) = warnings.lost.due(stats.admit_failures, now) {
            log::warn!("{lost} connections could not be registered or wrapped and were closed");
        }
        if let Some(crowded) = warnings.crowded.due(stats.closed(CloseReason::MemoryLimit), now) {
            log::warn!("{crowded} connections were closed because memory_limit is used up");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_tells_of_growth_alone_and_at_most_once_a_second() {
        let at = |millis| Now::new((millis, false));
        let mut alarm = ThrottledWarning::default();
        assert_eq!(alarm.due(0, at(5)), None);
        assert_eq!(alarm.due(3, at(10)), Some(3));
        assert_eq!(alarm.due(3, at(5_000)), None, "nothing new");
        assert_eq!(alarm.due(4, at(6_000)), Some(1));
        assert_eq!(alarm.due(9, at(6_999)), None, "too soon");
        assert_eq!(alarm.due(9, at(7_000)), Some(5));
    }
}
