//! The counters of a manager. The loop increments them on its own thread.
//!
//! They use no atomics and no clock. A snapshot is a copy.

mod prometheus;

use std::fmt;
use std::iter::Sum;
use std::ops::Add;
use std::time::Duration;

use crate::conn_state::{Cause, CloseReason};

/// The number of causes of [`Handler::request`](crate::Handler::request) and
/// [`Handler::incomplete`](crate::Handler::incomplete).
const CAUSES: usize = Cause::Unanswered as usize + 1;

/// A snapshot of a manager's counters. The counters start at zero when the manager is created. A
/// stop or a restart does not reset the counters.
///
/// `Display` writes one human-readable line. [`Stats::prometheus`] writes the text format of
/// Prometheus. Snapshots of several managers can be added.
///
/// ```
/// use pool_manager::{CloseReason, Stats};
/// let shards = [Stats::default(), Stats::default()];
/// let all: Stats = shards.into_iter().sum();
/// assert_eq!(all.closed(CloseReason::Eof), 0);
/// assert!(all.to_string().starts_with("0 live, 0 spare, 0 peak"));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Current number of connections.
    pub live: u64,
    /// Current number of warm, empty buffers.
    pub spare: u64,
    /// Current number of closed connections whose sockets are still read, so that the last reply
    /// arrives at the peer.
    pub lingering: u64,
    /// Maximum number of connections at a time.
    pub peak: u64,
    /// Connections that listeners accepted, including those that were then refused as busy.
    pub accepted: u64,
    /// Connections that began with a PROXY protocol header.
    pub proxied: u64,
    /// Outgoing connections ([`Manager::connect`](crate::Manager::connect)).
    pub connects: u64,
    /// Outgoing connections that were established. The others are still connecting, or have
    /// [ended](Stats::closed), for example with [`CloseReason::Unreachable`].
    pub connected: u64,
    /// Connections that got a worker, whether they were put, accepted or outgoing.
    pub put: u64,
    /// Connections refused because all workers were taken.
    pub busy: u64,
    /// Connections refused because their peer already had
    /// [`max_per_peer`](crate::Config::max_per_peer) connections.
    pub refused_per_peer: u64,
    /// Bytes read from connections.
    pub bytes_in: u64,
    /// Bytes written to connections.
    pub bytes_out: u64,
    /// Current capacity in bytes of the buffers that connections keep for incomplete requests.
    /// [`Config::memory_limit`](crate::Config::memory_limit) limits it.
    pub bytes_held: u64,
    /// Bytes that were read but not delivered to a callback before their connection ended.
    pub bytes_dropped: u64,
    /// Bytes of replies that were not sent before their connection ended.
    pub bytes_unsent: u64,
    /// Waits for readiness (`epoll_wait`, `kevent`).
    pub waits: u64,
    /// Nanoseconds spent polling before a wait ([`Config::spin`](crate::Config::spin)).
    pub spun_ns: u64,
    /// Reads from connections, including lingering ones.
    pub reads: u64,
    /// Writes to connections, including replies to refused ones.
    pub writes: u64,
    /// Calls of `accept`, successful or not.
    pub accepts: u64,
    /// Calls of `accept` that failed because of one connection. After such a call, the next
    /// connection was tried.
    pub accept_errors: u64,
    /// Number of times that accepting paused because descriptors or kernel memory had run out.
    pub fd_exhausted: u64,
    /// Turns of the loop.
    pub turns: u64,
    /// Readiness events.
    pub events: u64,
    /// Events for connections that no longer exist. Such events are dropped.
    pub stale_events: u64,
    /// Commands from callbacks and handles.
    pub commands: u64,
    /// Commands for connections that no longer exist. The bytes of a `send` are passed to
    /// [`Handler::undelivered`](crate::Handler::undelivered). The other commands have no effect.
    pub stale_commands: u64,
    /// Requests that were delayed by their connection's [`rate_limit`](crate::Config::rate_limit).
    pub throttled: u64,
    /// Deadlines that passed.
    pub expired: u64,
    /// Calls of [`Handler::tick`](crate::Handler::tick).
    pub ticks: u64,
    /// Input buffers that were allocated.
    pub buffers_allocated: u64,
    /// Duration of the longest callback that was measured. Callbacks are measured only if
    /// [`Config::slow_callback`](crate::Config::slow_callback) is set.
    pub longest_callback: Duration,
    /// Callbacks that took longer than [`Config::slow_callback`](crate::Config::slow_callback).
    pub slow_callbacks: u64,
    /// Panics of callbacks, in any hook.
    pub panics: u64,
    /// Connections that were closed at once because they could not be registered, or because
    /// [`wrap`](crate::Handler::wrap) failed.
    pub admit_failures: u64,
    requests: [u64; CAUSES],
    incomplete: [u64; CAUSES],
    closed: [u64; CloseReason::CLASSES],
}

impl Stats {
    /// Returns the number of requests delivered with this cause. Returns 0 for a cause that is not
    /// the cause of a request, such as [`Cause::Opened`].
    #[must_use]
    pub fn requests(&self, cause: Cause) -> u64 {
        self.requests.get(cause as usize).copied().unwrap_or(0)
    }

    /// Returns the number of requests delivered, for all causes together.
    #[must_use]
    pub fn requests_total(&self) -> u64 {
        self.requests.iter().sum()
    }

    /// Returns the number of calls of [`Handler::incomplete`](crate::Handler::incomplete) with this
    /// cause.
    #[must_use]
    pub fn incomplete(&self, cause: Cause) -> u64 {
        self.incomplete.get(cause as usize).copied().unwrap_or(0)
    }

    /// Returns the number of connections that ended for this reason.
    #[must_use]
    #[inline]
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason.class()]
    }

    /// Returns the number of connections that ended.
    #[must_use]
    pub fn closed_total(&self) -> u64 {
        self.closed.iter().sum()
    }

    #[inline]
    pub(crate) fn count_request(&mut self, cause: Cause) {
        if let Some(count) = self.requests.get_mut(cause as usize) {
            *count += 1;
        }
    }

    pub(crate) fn count_incomplete(&mut self, cause: Cause) {
        if let Some(count) = self.incomplete.get_mut(cause as usize) {
            *count += 1;
        }
    }

    #[inline]
    pub(crate) fn count_callback(&mut self, took: Duration, limit: Duration) {
        self.longest_callback = self.longest_callback.max(took);
        self.slow_callbacks += u64::from(took > limit);
    }

    pub(crate) fn count_closed(&mut self, reason: CloseReason) {
        self.closed[reason.class()] += 1;
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} live, {} spare, {} peak; {} accepted, {} connected, {} put, {} busy, {} closed; \
             {} requests, {} bytes in, {} bytes out; \
             {} turns, {} waits, {} reads, {} writes, {} accepts; {} stale events, {} expired",
            self.live,
            self.spare,
            self.peak,
            self.accepted,
            self.connected,
            self.put,
            self.busy,
            self.closed_total(),
            self.requests_total(),
            self.bytes_in,
            self.bytes_out,
            self.turns,
            self.waits,
            self.reads,
            self.writes,
            self.accepts,
            self.stale_events,
            self.expired,
        )
    }
}

/// Adds two snapshots. `longest_callback` is the maximum of the two. `peak` is the sum of the two,
/// which is an upper bound of the real peak.
impl Add for Stats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            live: self.live + other.live,
            spare: self.spare + other.spare,
            lingering: self.lingering + other.lingering,
            peak: self.peak + other.peak,
            accepted: self.accepted + other.accepted,
            proxied: self.proxied + other.proxied,
            connects: self.connects + other.connects,
            connected: self.connected + other.connected,
            put: self.put + other.put,
            busy: self.busy + other.busy,
            refused_per_peer: self.refused_per_peer + other.refused_per_peer,
            bytes_in: self.bytes_in + other.bytes_in,
            bytes_out: self.bytes_out + other.bytes_out,
            bytes_held: self.bytes_held + other.bytes_held,
            bytes_dropped: self.bytes_dropped + other.bytes_dropped,
            bytes_unsent: self.bytes_unsent + other.bytes_unsent,
            waits: self.waits + other.waits,
            spun_ns: self.spun_ns + other.spun_ns,
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            accepts: self.accepts + other.accepts,
            accept_errors: self.accept_errors + other.accept_errors,
            fd_exhausted: self.fd_exhausted + other.fd_exhausted,
            turns: self.turns + other.turns,
            events: self.events + other.events,
            stale_events: self.stale_events + other.stale_events,
            commands: self.commands + other.commands,
            stale_commands: self.stale_commands + other.stale_commands,
            throttled: self.throttled + other.throttled,
            expired: self.expired + other.expired,
            ticks: self.ticks + other.ticks,
            buffers_allocated: self.buffers_allocated + other.buffers_allocated,
            longest_callback: self.longest_callback.max(other.longest_callback),
            slow_callbacks: self.slow_callbacks + other.slow_callbacks,
            panics: self.panics + other.panics,
            admit_failures: self.admit_failures + other.admit_failures,
            requests: add_each(self.requests, other.requests),
            incomplete: add_each(self.incomplete, other.incomplete),
            closed: add_each(self.closed, other.closed),
        }
    }
}

impl Sum for Stats {
    fn sum<I: Iterator<Item = Self>>(snapshots: I) -> Self {
        snapshots.fold(Self::default(), Add::add)
    }
}

fn add_each<const N: usize>(mut to: [u64; N], from: [u64; N]) -> [u64; N] {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_cause_has_its_own_counter() {
        let mut stats = Stats::default();
        for (count, cause) in Cause::REQUESTS.into_iter().enumerate() {
            assert_eq!(stats.requests(cause), 0);
            (0..=count).for_each(|_| stats.count_request(cause));
        }
        for (count, cause) in Cause::REQUESTS.into_iter().enumerate() {
            assert_eq!(stats.requests(cause), count as u64 + 1);
        }
        assert_eq!(stats.requests_total(), 21);
        stats.count_request(Cause::Opened);
        assert_eq!(stats.requests_total(), 21, "not a request");
    }

    #[test]
    fn each_cause_of_an_incomplete_request_has_its_own_counter() {
        let mut stats = Stats::default();
        for (count, cause) in Cause::INCOMPLETE.into_iter().enumerate() {
            (0..=count).for_each(|_| stats.count_incomplete(cause));
        }
        for (count, cause) in Cause::INCOMPLETE.into_iter().enumerate() {
            assert_eq!(stats.incomplete(cause), count as u64 + 1);
        }
        assert_eq!(stats.requests_total(), 0, "not a request");
    }

    #[test]
    fn snapshots_add_up() {
        let mut one =
            Stats { live: 2, longest_callback: Duration::from_millis(5), ..Stats::default() };
        one.count_closed(CloseReason::Eof);
        one.count_request(Cause::Full);
        let other = Stats { live: 3, longest_callback: Duration::from_millis(4), ..one };
        let sum: Stats = [one, other].into_iter().sum();
        assert_eq!(sum.live, 5);
        assert_eq!(sum.closed(CloseReason::Eof), 2);
        assert_eq!(sum.requests(Cause::Full), 2);
        assert_eq!(sum.longest_callback, Duration::from_millis(5));
    }

    #[test]
    fn display_is_one_line() {
        assert_eq!(Stats::default().to_string().lines().count(), 1);
    }
}
