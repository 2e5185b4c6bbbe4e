//! Schedule: when requests are due. Pure; knows no sockets and reads no clock.

use std::ops::Range;
use std::time::Duration;

use super::{Length, Load, Pace};

/// Nanoseconds since the client was made.
pub(super) type Nanos = u64;

#[derive(Debug)]
pub(super) struct Schedule {
    kind: Kind,
    depth: usize,
    /// Requests that are due earlier only warm up.
    pub(super) measured_from: Nanos,
    pub(super) until: Nanos,
}

#[derive(Debug)]
enum Kind {
    /// How many more may be sent once the warm-up is over.
    Closed(u64),
    Open(Open),
}

/// Request `k` is due at `start + k * gap` and belongs to connection `k` modulo all of them. So
/// what waits to be sent is a range of numbers, and no reply has a say in when it was due.
#[derive(Debug)]
struct Open {
    start: Nanos,
    gap: f64,
    connections: u64,
    total: u64,
    /// The first request whose time had not come when somebody last asked.
    next: u64,
    stopped: bool,
}

impl Schedule {
    pub(super) fn new(load: &Load, start: Nanos) -> Self {
        let depth = load.at_once();
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

    /// How many requests a connection that waits for `in_flight` replies may be given now.
    pub(super) fn room(&self, in_flight: usize) -> usize {
        match &self.kind {
            Kind::Closed(_) if in_flight > 0 => 0,
            Kind::Closed(_) | Kind::Open(_) => self.depth - in_flight,
        }
    }

    /// When the next request of a connection that was given `given` so far is due, if it is.
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

    /// The requests of an open loop whose time came since this was last asked. Asked again after
    /// the end of the run, it ends the sending.
    pub(super) fn arrivals(&mut self, now: Nanos) -> Range<u64> {
        let Kind::Open(open) = &mut self.kind else { return 0..0 };
        open.stopped |= open.next == open.total && now >= self.until;
        let from = open.next;
        open.next = open.due_before(now.saturating_add(1)).clamp(from, open.total);
        from..open.next
    }

    /// When a request of an open loop is due.
    pub(super) fn due(&self, k: u64) -> Option<Nanos> {
        match &self.kind {
            Kind::Open(open) if k < open.total => Some(open.due(k)),
            _ => None,
        }
    }

    /// The first request of an open loop whose time has not come.
    pub(super) fn next(&self) -> Option<u64> {
        match &self.kind {
            Kind::Open(open) => Some(open.next).filter(|next| *next < open.total),
            Kind::Closed(_) => None,
        }
    }

    /// Which of its own requests a connection that was given `given` was not given.
    pub(super) fn left(&self, connection: usize, given: u64) -> Range<u64> {
        let Kind::Open(open) = &self.kind else { return given..given };
        let left = open.total.saturating_sub(open.number(connection, given));
        given..given + left.div_ceil(open.connections)
    }

    /// How long a request, of which a connection was given so many before, waited until the end.
    pub(super) fn waited(&self, connection: usize, given: u64) -> Nanos {
        let Kind::Open(open) = &self.kind else { return 0 };
        self.until.saturating_sub(open.due(open.number(connection, given)))
    }
}

#[expect(clippy::cast_sign_loss, reason = "neither times nor the gap are negative")]
impl Open {
    /// The number of a connection's request.
    fn number(&self, connection: usize, given: u64) -> u64 {
        connection as u64 + given * self.connections
    }

    fn due(&self, k: u64) -> Nanos {
        // A double counts nanoseconds exactly for a hundred days.
        self.start.saturating_add((k as f64 * self.gap) as Nanos)
    }

    /// How many requests are due before `time`.
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
    fn an_open_loop_is_on_schedule_whatever_the_replies_do() {
        let load = load(Pace::Open(1_000.0), Length::Requests(10));
        let mut schedule = Schedule::new(&load, 5 * MILLI);
        assert_eq!(schedule.take(1, 0, 6 * MILLI - 1), None);
        // Request 1 is the first of connection 1, request 4 the second, 7 the third.
        let late = 60 * MILLI;
        assert_eq!(schedule.take(1, 0, late), Some(6 * MILLI));
        assert_eq!(schedule.take(1, 1, late), Some(9 * MILLI));
        assert_eq!(schedule.take(1, 2, late), Some(12 * MILLI));
        assert_eq!(schedule.take(1, 3, late), None, "there are ten in all");
        assert_eq!(schedule.take(0, 3, late), Some(14 * MILLI));
    }

    #[test]
    fn each_request_of_an_open_loop_arrives_once() {
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
    fn what_an_open_loop_could_not_send_in_time_is_left_and_waited_till_the_end() {
        let load = load(Pace::Open(1_000.0), Length::Time(Duration::from_millis(10)));
        let mut schedule = Schedule::new(&load, 0);
        schedule.arrivals(10 * MILLI);
        assert_eq!(schedule.take(0, 1, 10 * MILLI), Some(3 * MILLI), "once more at the end");
        schedule.arrivals(10 * MILLI);
        assert_eq!(schedule.take(0, 2, 10 * MILLI), None, "but then it is over");
        // Connection 0 has requests 0, 3, 6 and 9.
        assert_eq!(schedule.left(0, 2), 2..4);
        assert_eq!((schedule.waited(0, 2), schedule.waited(0, 3)), (4 * MILLI, MILLI));
        assert!(schedule.left(0, 4).is_empty() && schedule.left(2, 3).is_empty());
    }

    #[test]
    fn a_warm_up_comes_before_what_is_measured() {
        let warm =
            |pace| Load { warmup: Duration::from_millis(10), ..load(pace, Length::Requests(2)) };
        let mut open = Schedule::new(&warm(Pace::Open(1_000.0)), 0);
        assert_eq!((open.measured_from, open.arrivals(99 * MILLI)), (10 * MILLI, 0..12));
        let mut closed = Schedule::new(&warm(Pace::Closed), 0);
        let due: Vec<_> = (0..6).map(|i| closed.take(0, i, (7 + i) * MILLI)).collect();
        let sent = [7, 8, 9, 10, 11].map(|time| Some(time * MILLI));
        assert_eq!((&due[..5], due[5]), (&sent[..], None), "two of the five are measured");
    }

    #[test]
    fn a_closed_loop_sends_a_batch_when_the_last_one_is_answered() {
        let load = load(Pace::Closed, Length::Time(Duration::from_millis(10)));
        let mut schedule = Schedule::new(&load, 0);
        assert_eq!([0, 1, 2].map(|in_flight| schedule.room(in_flight)), [2, 0, 0]);
        assert_eq!(schedule.take(0, 0, 10 * MILLI - 1), Some(10 * MILLI - 1));
        assert_eq!(schedule.take(0, 1, 10 * MILLI), None);
        let open = Schedule::new(&Load { pace: Pace::Open(1.0), ..load }, 0);
        assert_eq!([0, 1, 2].map(|in_flight| open.room(in_flight)), [2, 1, 0]);
    }

    #[test]
    fn what_is_due_before_a_time_is_counted_exactly_at_any_rate() {
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
