//! Counters: what can be seen of a simulated network from outside.

use std::time::Duration;

/// What the network knows of one of the pool's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnSnapshot {
    /// The number that its two ends share.
    pub connection: usize,
    /// Whether it was begun by the pool and has not come about.
    pub calling: bool,
    /// Bytes that the peer has sent and the pool has not read.
    pub unread: usize,
    /// Whether an end of file, or a reset, comes after them.
    pub ended: bool,
    /// Bytes that the pool has read.
    pub received: u64,
    /// Bytes that the pool has written.
    pub sent: u64,
    /// Bytes that it could write now.
    pub room: usize,
    /// Whether its last write found no more room, and none has come since.
    pub full: bool,
    /// Whether an event is to come.
    pub pending: bool,
    /// Whether it was reset, or a call on it has failed.
    pub broken: bool,
    /// When the pool last read or wrote a byte or found no room to, or the connection was
    /// registered.
    pub moved: Duration,
}

/// What there is in a simulated network, and what went wrong in it so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Ends of the pool's that are open; those that wait at a listener are not.
    pub open: usize,
    /// Sockets that are registered.
    pub registered: usize,
    /// Connections that the pool accepted.
    pub accepted: u64,
    /// Reads that got less than there was, by [`Faults::short_reads`](super::Faults).
    pub short_reads: u64,
    /// Writes of the pool's that took less than was offered.
    pub short_writes: u64,
    /// Calls that broke a connection.
    pub broken: u64,
    /// Calls of accept that found no descriptor.
    pub starved_accepts: u64,
    /// Connections that were reset because their listener closed while they waited.
    pub turned_away: u64,
    /// Waits that kept events back.
    pub truncated_waits: u64,
    /// Waits that a signal ended.
    pub interrupted_waits: u64,
    /// When the last wait ended.
    pub waited: Duration,
    /// When it began, if it was to take time; else when it ended.
    pub asked: Duration,
    /// How much time the clock jumped over.
    pub jumped: Duration,
    /// The longest jump.
    pub longest_jump: Duration,
}
