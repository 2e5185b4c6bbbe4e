//! Coverage marks: situations that a long run must reach. A run that misses a mark proves less than
//! it seems to prove.

use std::collections::BTreeMap;

/// A run with at least this number of seeds, and with this number of steps per seed, must hit every
/// mark.
const DUE: (u64, u64) = (1_000, 200);

/// All marks.
pub(crate) const ALL: &[&str] = &[
    "a stale event",
    "an index is reused within a turn",
    "put is refused as busy",
    "a handle's put is refused as busy",
    "an accepted connection is refused as busy",
    "max_per_peer refuses a connection",
    "rate_limit delays a request",
    "an idle connection is evicted",
    "a short write",
    "a short read",
    "write_limit is exceeded",
    "the peer does not read its reply",
    "a connection lingers",
    "a deadline and the end of file in one turn",
    "a deadline and a full buffer in one turn",
    "a full batch of timers",
    "a full batch of accepts",
    "a full batch of commands",
    "more events than one wait returns",
    "a signal interrupts a wait while timers are due",
    "put fails to register the socket",
    "start fails",
    "the wait of the backend fails",
    "put in a callback",
    "stop in a callback",
    "set_config in a callback",
    "close in a callback",
    "send in a callback",
    "a panic in a callback",
    "a panic in opened",
    "a panic in flushed",
    "a panic in incomplete",
    "a pause ends at its deadline",
    "bytes are held when a pause ends at its deadline",
    "a paused connection ends because its peer has gone",
    "a panic in read_closed",
    "a panic in blocked",
    "a panic in closed",
    "a panic in tick",
    "a panic in undelivered",
    "a panic in turn_ended",
    "a command in turn_ended",
    "a panic in a callback while stopping",
    "max_workers below the live connections",
    "buffer_size below the held bytes",
    "the clock jumps by more than an hour",
    "the handle's queue is full",
    "a socket is queued when a stop begins",
    "a reset while bytes are held",
    "a reply after the peer's end of file",
    "accept succeeds after descriptors ran out",
    "request_deadline closes a connection",
    "an invalid configuration",
    "the framing finds invalid bytes",
    "an I/O error other than a reset",
    "taken listeners have waiting connections",
    "a stop finishes connections",
    "a stop aborts connections",
    "a connection is accepted during a stop",
    "a panic in wrap",
    "a request outgrows its buffer",
    "a request longer than max_request",
    "memory_limit is reached",
    "a connect succeeds",
    "a connect is refused",
    "a connect is never answered",
    "a connect fails to begin",
    "a connect of the manager fails to begin",
    "connect is refused as busy",
    "connect in a callback",
    "bytes are sent while connecting",
    "a connection is closed while connecting",
    "a stop begins while connecting",
    "stopped before it connects",
    "the loop is notified",
    "a command is queued when a stop begins",
    "opened fails",
    "a half request at the end of file",
    "a connection expires after it was served",
    "a half-open connection expires",
    "a connection stays open after read_closed",
    "a finished connection gets a request",
    "a reply is discarded after finish",
];

/// Number of hits of each mark.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks(BTreeMap<&'static str, u64>);

impl Marks {
    pub(crate) fn hit(&mut self, mark: &'static str) {
        debug_assert!(ALL.contains(&mark), "{mark} is not in the list");
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

    /// Returns each mark with its number of hits.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ALL.iter().copied().map(|mark| (mark, self.0.get(mark).copied().unwrap_or(0)))
    }

    /// Returns the marks that a run of this size should have hit and has not.
    pub(crate) fn missed(&self, seeds: u64, steps: u64) -> Vec<&'static str> {
        if seeds < DUE.0 || steps < DUE.1 {
            return Vec::new();
        }
        ALL.iter().copied().filter(|mark| !self.0.contains_key(mark)).collect()
    }
}
