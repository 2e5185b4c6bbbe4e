//! The results of a turn and of a stop. They are plain values.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;

/// The result of one [`Manager::turn`](crate::Manager::turn).
///
/// ```
/// use pool_manager::{Config, Manager};
/// use std::time::Duration;
///
/// let mut manager = Manager::new(Config::new(), |_conn, _body| Ok(()))?;
/// manager.start()?;
/// let turn = manager.turn(Some(Duration::ZERO))?;
/// assert_eq!((turn.events, turn.served), (0, 0));
/// # Ok::<(), pool_manager::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Turn {
    /// Readiness events that the turn handled.
    pub events: usize,
    /// Entries of the ready list that the turn served, including entries of connections that had
    /// already ended.
    pub served: usize,
    /// Deadlines that passed.
    pub expired: usize,
    /// Connections accepted, including those that were then refused as busy.
    pub accepted: usize,
    /// Set if this turn completed a stop. The manager is now stopped.
    pub stopped: Option<StopReport>,
}

/// The result of a graceful stop. The reports of several managers can be added.
///
/// ```
/// use pool_manager::{Config, Manager};
/// let mut manager = Manager::new(Config::new(), |_conn, _body| Ok(()))?;
/// manager.start()?;
/// assert_eq!(manager.stop()?.to_string(), "0 idle, 0 finished, 0 aborted, 0 bytes unsent");
/// # Ok::<(), pool_manager::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopReport {
    /// Connections that were idle or still connecting, and were closed at once.
    pub idle: usize,
    /// Connections that ended by themselves: they finished their requests, were closed by the peer,
    /// or reached a deadline. Connections that were accepted during the stop are included.
    pub finished: usize,
    /// Connections that were aborted at the stop deadline.
    pub aborted: usize,
    /// Bytes of replies that were not sent.
    pub unsent_bytes: u64,
    /// Bytes that were read but not delivered to a callback.
    pub dropped_bytes: u64,
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} idle, {} finished, {} aborted, {} bytes unsent",
            self.idle, self.finished, self.aborted, self.unsent_bytes
        )
    }
}

impl Add for StopReport {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            idle: self.idle + other.idle,
            finished: self.finished + other.finished,
            aborted: self.aborted + other.aborted,
            unsent_bytes: self.unsent_bytes + other.unsent_bytes,
            dropped_bytes: self.dropped_bytes + other.dropped_bytes,
        }
    }
}

impl Sum for StopReport {
    fn sum<I: Iterator<Item = Self>>(reports: I) -> Self {
        reports.fold(Self::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_add_up() {
        let one =
            StopReport { idle: 1, finished: 2, aborted: 3, unsent_bytes: 4, dropped_bytes: 5 };
        let sum: StopReport = [one, StopReport::default(), one].into_iter().sum();
        let twice =
            StopReport { idle: 2, finished: 4, aborted: 6, unsent_bytes: 8, dropped_bytes: 10 };
        assert_eq!(sum, twice);
    }
}
