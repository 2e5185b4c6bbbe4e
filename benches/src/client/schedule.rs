//! Schedule: computes when requests are due. This module uses no sockets and reads no clock.

use std::ops::Range;
use std::time::Duration;

use super::{Length, Load, Pace};

/// Nanoseconds since the client was created.
pub(super) type Nanos = u64;

#[derive(Debug)]
pub(super) struct Schedule {
    kind: Kind,
    depth: usize,
    /// Requests that are due before this time belong to the warm-up.
    pub(super) measured_from: Nanos,
    /// The end of the run, or `Nanos::MAX` if the run ends after a number of requests.
    pub(super) until: Nanos,
}

#[derive(Debug)]
enum Kind {
    /// The number of measured requests that may still be sent.
    Closed(u64),
    Open(Open),
}

/// Request `k` is due at `start + k * gap` and belongs to connection `k % connections`. The
/// requests that wait to be sent are therefore a range of numbers, and replies do not affect due
/// times.
#[derive(Debug)]
struct Open {
    start: Nanos,
    gap: f64,
    connections: u64,
    total: u64,
    /// The first request that was not due at the last call of [`Schedule::arrivals`].
    next: u64,
    /// Set once no further request may be sent.
    stopped: bool,
}

impl Schedule {
    pub(super) fn new(load: &Load, start: Nanos) -> Self {
        let depth = load.max_in_flight();
        let begin = start.saturating_add(nanos(load.warmup));
        let (until, requests) = match load.length {
            Length::Time(time) => (begin.saturating_add(nanos(time)), u64::MAX),
            Length::Requests(requests) => (Nanos::MAX, requests),
        };
        let Pace::Open(rate) = load.pace else {
            return Self { kind: Kind::Closed(requests), depth, measured_from: begin, until };
        };
        let connections = load.connections.max(1) as u64;
        let mut open =
            Open { start, gap: 1e9 / rate, connections, total: 0, next: 0, stopped: false };
        let warm = open.due_before(begin);
        open.total = match load.length {
            Length::Time(_) => open.due_before(until),
            Length::Requests(requests) => warm.saturating_add(requests),
        };
        let measured_from = open.due(warm);
        Self { kind: Kind::Open(open), depth, measured_from, until }
    }

    /// Returns the number of requests that a connection may take while `in_flight` requests are in
    /// flight.
    pub(super) fn free_slots(&self, in_flight: usize) -> usize {
        match &self.kind {
            Kind::Closed(_) if in_flight > 0 => 0,
            Kind::Closed(_) | Kind::Open(_) => self.depth - in_flight,
        }
    }

    /// Takes the next request of a connection that has taken `given` requests so far. Returns its
    /// due time, or `None` if no request is due.
    pub(super) fn take(&mut self, connection: usize, given: u64, now: Nanos) -> Option<Nanos> {
        match &mut self.kind {
            Kind::Closed(_) if now >= self.until => None,
            Kind::Closed(_) if now < self.measured_from => Some(now),
            Kind::Closed(left) => {
                *left = left.checked_sub(1)?;
                Some(now)
            }
            Kind::Open(open) if open.stopped => None,
            Kind::Open(open) => {
                let k = open.number(connection, given);
                let due = open.due(k);
                (k < open.total && due <= now).then_some(due)
            }
        }
    }

    /// Returns the numbers of the open-loop requests that became due since the last call. If
    /// earlier calls have returned all requests and the run has ended, this call also stops the
    /// sending: [`Schedule::take`] returns `None` from then on.
    pub(super) fn arrivals(&mut self, now: Nanos) -> Range<u64> {
        let Kind::Open(open) = &mut self.kind else { return 0..0 };
        open.stopped |= open.next == open.total && now >= self.until;
        let from = open.next;
        open.next = open.due_before(now.saturating_add(1)).clamp(from, open.total);
        from..open.next
    }

    /// Returns the due time of open-loop request `k`.
    pub(super) fn due(&self, k: u64) -> Option<Nanos> {
        match &self.kind {
            Kind::Open(open) if k < open.total => Some(open.due(k)),
            _ => None,
        }
    }

    /// Returns the first open-loop request that was not due at the last call of
    /// [`Schedule::arrivals`].
    pub(super) fn next(&self) -> Option<u64> {
        match &self.kind {
            Kind::Open(open) => Some(open.next).filter(|next| *next < open.total),
            Kind::Closed(_) => None,
        }
    }

    /// Returns the requests that a connection has not taken, numbered per connection. `given` is
    /// the number of requests that the connection has taken.
    pub(super) fn left(&self, connection: usize, given: u64) -> Range<u64> {
        let Kind::Open(open) = &self.kind else { return given..given };
        let left = open.total.saturating_sub(open.number(connection, given));
        given..given + left.div_ceil(open.connections)
    }

    /// Returns how long request number `given` of a connection waited until the end of the run.
    pub(super) fn waited(&self, connection: usize, given: u64) -> Nanos {
        let Kind::Open(open) = &self.kind else { return 0 };
        self.until.saturating_sub(open.due(open.number(connection, given)))
    }
}

#[expect(clippy::cast_sign_loss, reason = "neither times nor the gap are negative")]
impl Open {
    /// Returns the number in the schedule of request number `given` of a connection.
    fn number(&self, connection: usize, given: u64) -> u64 {
        connection as u64 + given * self.connections
    }

    fn due(&self, k: u64) -> Nanos {
        // An `f64` represents whole nanoseconds exactly up to 104 days.
        self.start.saturating_add((k as f64 * self.gap) as Nanos)
    }

    /// Returns the number of requests that are due before `time`.
    fn due_before(&self, time: Nanos) -> u64 {
        let mut k = (time.saturating_sub(self.start) as f64 / self.gap) as u64;
        while k > 0 && self.due(k - 1) >= time {
            k -= 1;
        }
        while self.due(k) < time {
            k += 1;
        }
        k
    }
}

pub(super) fn nanos(time: Duration) -> Nanos {
    Nanos::try_from(time.as_nanos()).unwrap_or(Nanos::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Target;

    const MILLI: Nanos = 1_000_000;

    fn load(pace: Pace, length: Length) -> Load {
        let load = Load::new(Target::Unix("nowhere".into()));
        Load { connections: 3, depth: 2, pace, length, ..load }
    }

    #[test]
    fn due_times_of_an_open_loop_do_not_depend_on_replies() {
        let load = load(Pace::Open(1_000.0), Length::Requests(10));
        let mut schedule = Schedule::new(&load, 5 * MILLI);
        assert_eq!(schedule.take(1, 0, 6 * MILLI - 1), None);
        // Requests 1, 4 and 7 are the first three requests of connection 1.
        let late = 60 * MILLI;
        assert_eq!(schedule.take(1, 0, late), Some(6 * MILLI));
        assert_eq!(schedule.take(1, 1, late), Some(9 * MILLI));
        assert_eq!(schedule.take(1, 2, late), Some(12 * MILLI));
        assert_eq!(schedule.take(1, 3, late), None, "the schedule has ten requests");
        assert_eq!(schedule.take(0, 3, late), Some(14 * MILLI));
    }

    #[test]
    fn each_request_of_an_open_loop_becomes_due_once() {
        let load = load(Pace::Open(1_000.0), Length::Time(Duration::from_millis(10)));
        let mut schedule = Schedule::new(&load, 0);
        assert_eq!(schedule.arrivals(0), 0..1);
        assert_eq!(schedule.arrivals(0), 1..1);
        assert_eq!(schedule.next(), Some(1));
        assert_eq!(schedule.arrivals(MILLI - 1), 1..1);
        assert_eq!(schedule.arrivals(3 * MILLI), 1..4);
        assert_eq!(schedule.arrivals(99 * MILLI), 4..10);
        assert_eq!((schedule.next(), schedule.arrivals(100 * MILLI)), (None, 10..10));
    }

    #[test]
    fn unsent_requests_of_an_open_loop_wait_until_the_end() {
        let load = load(Pace::Open(1_000.0), Length::Time(Duration::from_millis(10)));
        let mut schedule = Schedule::new(&load, 0);
        schedule.arrivals(10 * MILLI);
        assert_eq!(schedule.take(0, 1, 10 * MILLI), Some(3 * MILLI), "a request is due at the end");
        schedule.arrivals(10 * MILLI);
        assert_eq!(schedule.take(0, 2, 10 * MILLI), None, "the sending has stopped");
        // Connection 0 has requests 0, 3, 6 and 9.
        assert_eq!(schedule.left(0, 2), 2..4);
        assert_eq!((schedule.waited(0, 2), schedule.waited(0, 3)), (4 * MILLI, MILLI));
        assert!(schedule.left(0, 4).is_empty() && schedule.left(2, 3).is_empty());
    }

    #[test]
    fn the_warm_up_precedes_the_measurement() {
        let warm =
            |pace| Load { warmup: Duration::from_millis(10), ..load(pace, Length::Requests(2)) };
        let mut open = Schedule::new(&warm(Pace::Open(1_000.0)), 0);
        assert_eq!((open.measured_from, open.arrivals(99 * MILLI)), (10 * MILLI, 0..12));
        let mut closed = Schedule::new(&warm(Pace::Closed), 0);
        let due: Vec<_> = (0..6).map(|i| closed.take(0, i, (7 + i) * MILLI)).collect();
        let sent = [7, 8, 9, 10, 11].map(|time| Some(time * MILLI));
        assert_eq!((&due[..5], due[5]), (&sent[..], None), "two of the five requests are measured");
    }

    #[test]
    fn a_closed_loop_sends_a_batch_when_the_previous_is_answered() {
        let load = load(Pace::Closed, Length::Time(Duration::from_millis(10)));
        let mut schedule = Schedule::new(&load, 0);
        assert_eq!([0, 1, 2].map(|in_flight| schedule.free_slots(in_flight)), [2, 0, 0]);
        assert_eq!(schedule.take(0, 0, 10 * MILLI - 1), Some(10 * MILLI - 1));
        assert_eq!(schedule.take(0, 1, 10 * MILLI), None);
        let open = Schedule::new(&Load { pace: Pace::Open(1.0), ..load }, 0);
        assert_eq!([0, 1, 2].map(|in_flight| open.free_slots(in_flight)), [2, 1, 0]);
    }

    #[test]
    fn requests_due_before_a_time_are_counted_exactly() {
        for rate in [0.001, 3.0, 999.9, 1e6, 1e8] {
            let open = Open {
                start: 7,
                gap: 1e9 / rate,
                connections: 1,
                total: 0,
                next: 0,
                stopped: false,
            };
            for k in [0, 1, 2, 1_000, 123_457] {
                let due = open.due(k);
                assert!(open.due_before(due) <= k && open.due_before(due + 1) > k, "{rate} {k}");
            }
        }
    }
}
