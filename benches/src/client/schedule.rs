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

    /// When the next request of an open loop is due; `None` if there is no more to wait for.
    pub(super) fn next_due(&self) -> Option<Nanos> {
        match &self.kind {
            Kind::Open(open) => self.due(open.next),
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
