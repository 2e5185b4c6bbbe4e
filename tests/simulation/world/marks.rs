//! Marks: what must happen sometimes, or the simulation proves less than it seems to.

use std::collections::BTreeMap;

/// In a run of so many seeds, of so many steps each, all are due.
const DUE: (u64, u64) = (1_000, 200);

/// Everything that a run over many seeds must have met.
pub(crate) const ALL: &[&str] = &[
    "a stale event",
    "an index is used again within a turn",
    "busy, by put",
    "busy, by a handle",
    "busy, by a listener",
    "one too many of a peer",
    "a request waits for its rate",
    "an idle one makes a place for another",
    "a short write",
    "a short read",
    "write_limit",
    "a reply that nobody took",
    "a lingering close",
    "a deadline and the end of file in one turn",
    "a deadline and a full buffer in one turn",
    "a whole batch of timers",
    "a whole batch of accepts",
    "a whole batch of commands",
    "more events than a wait returns",
    "a signal while timers are due",
    "registering fails in put",
    "starting fails",
    "waiting fails",
    "put in a callback",
    "stop in a callback",
    "set_config in a callback",
    "close in a callback",
    "send in a callback",
    "a panic in a callback",
    "a panic in opened",
    "a panic in flushed",
    "a panic in blocked",
    "a panic in closed",
    "a panic in tick",
    "a panic in undelivered",
    "a panic in turn_ended",
    "a command at the end of a turn",
    "a panic in a callback while stopping",
    "max_workers below the live",
    "buffer_size below the held",
    "the clock jumps an hour",
    "the handle's queue is full",
    "a socket is queued at a stop",
    "a reset with bytes held",
    "a reply after the peer's end of file",
    "no descriptors, and then accepted",
    "the total deadline",
    "an invalid configuration",
    "invalid bytes",
    "another error of a socket",
    "a queue is handed on",
    "a stop that drains",
    "a stop that aborts",
    "accepted in a stop",
    "a panic in accepted",
    "a request outgrows its buffer",
    "a request longer than max_request",
    "memory_limit",
    "a connect comes about",
    "a connect is refused",
    "a connect is never answered",
    "a connect cannot begin",
    "a connect cannot begin, by the manager",
    "busy, by connect",
    "connect in a callback",
    "sent to while connecting",
    "closed while connecting",
    "stopped while connecting",
    "stopped before it connects",
];

/// How often each was met.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks(BTreeMap<&'static str, u64>);

impl Marks {
    pub(crate) fn hit(&mut self, mark: &'static str) {
        debug_assert!(ALL.contains(&mark), "{mark} is not on the list");
        *self.0.entry(mark).or_default() += 1;
    }

    pub(crate) fn hit_if(&mut self, mark: &'static str, met: bool) {
        if met {
            self.hit(mark);
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mark, count) in &other.0 {
            *self.0.entry(mark).or_default() += count;
        }
    }

    /// What was met, and how often.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ALL.iter().copied().map(|mark| (mark, self.0.get(mark).copied().unwrap_or(0)))
    }

    /// What a run of so many seeds and steps should have met and has not.
    pub(crate) fn missed(&self, seeds: u64, steps: u64) -> Vec<&'static str> {
        if seeds < DUE.0 || steps < DUE.1 {
            return Vec::new();
        }
        ALL.iter().copied().filter(|mark| !self.0.contains_key(mark)).collect()
    }
}
