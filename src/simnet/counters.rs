//! The public view of the simulated network: snapshots of connections, and counters.

use std::time::Duration;

/// The state of one of the pool's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnSnapshot {
    /// The number of the connection. It is the same at both ends.
    pub connection: usize,
    /// The pool started the connection, and it is not established yet.
    pub connecting: bool,
    /// Bytes that the peer has sent and the pool has not read.
    pub unread: usize,
    /// An end of file or a reset follows the unread bytes.
    pub ended: bool,
    /// The pool has closed its write side, or the connection was reset.
    pub finished: bool,
    /// Bytes that the pool has read.
    pub received: u64,
    /// Bytes that the pool has written.
    pub sent: u64,
    /// Bytes that the pool could write now. `usize::MAX` if the peer's end is closed.
    pub room: usize,
    /// The last write found too little space, and the peer has read nothing since.
    pub full: bool,
    /// The connection has an event that no wait has reported yet.
    pub pending: bool,
    /// The connection was reset, or a failed call broke it.
    pub broken: bool,
    /// The time of the pool's last activity on this connection. Activity means that the pool read
    /// or wrote a byte, found no space to write, or registered the connection.
    pub moved: Duration,
}

/// Counters of a simulated network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Number of connection ends that the pool holds open. Connections that wait at a listener are
    /// not counted.
    pub open: usize,
    /// Registered sockets.
    pub registered: usize,
    /// Connections that the pool accepted.
    pub accepted: u64,
    /// Reads that returned fewer bytes than possible because of
    /// [`Faults::short_reads`](super::Faults).
    pub short_reads: u64,
    /// Writes of the pool that took fewer bytes than offered.
    pub short_writes: u64,
    /// Calls that failed and broke a connection.
    pub broken: u64,
    /// Calls of accept that failed because no descriptors were left.
    pub starved_accepts: u64,
    /// Connections that were reset because their listener closed before they were accepted.
    pub turned_away: u64,
    /// Waits that returned only a part of the events.
    pub truncated_waits: u64,
    /// Waits that were interrupted by a signal.
    pub interrupted_waits: u64,
    /// The time at which the last wait ended.
    pub waited: Duration,
    /// The time at which the last wait began. If the clock jumps in a wait with a zero timeout,
    /// this is the time after the jump.
    pub asked: Duration,
    /// Sum of all jumps of the clock.
    pub jumped: Duration,
    /// The longest jump of the clock.
    pub longest_jump: Duration,
}
