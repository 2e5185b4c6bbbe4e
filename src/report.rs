//! Reports: what a turn did, and what a stop came to. Plain values.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;

/// What one [`Manager::turn`](crate::Manager::turn) did.
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
    /// Readiness events taken.
    pub events: usize,
    /// Entries of the ready list served; of those whose connection was gone by then, too.
    pub served: usize,
    /// Deadlines that passed.
    pub expired: usize,
    /// Connections accepted, also those that were then refused as busy.
    pub accepted: usize,
    /// Set by the turn that completed a stop; the manager is now stopped.
    pub stopped: Option<StopReport>,
}

/// What a graceful stop came to. Reports of several managers add up.
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
    /// Connections that were idle, or connecting, and closed at once.
    pub idle: usize,
    /// Connections that ended by themselves: finished what they were at, were closed by the peer
    /// or ran into a deadline. Those that were accepted in the stop are among them.
    pub finished: usize,
    /// Connections that were cut off at the drain deadline.
    pub aborted: usize,
    /// Bytes of reply that were never sent.
    pub unsent_bytes: u64,
    /// Bytes read that no callback saw.
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
