//! Admission: eviction and the limit per peer.

use std::net::IpAddr;
use std::time::Duration;

use pool_manager::sim::{ConnSnapshot, Sim};
use pool_manager::{Closed, Overload};

use super::{ConnRecord, Model, max_workers};

/// Number of slots that the pool searches for an idle connection. If there are more slots, another
/// connection may have been idle for longer than the one that the pool finds.
const SLOTS: u32 = 256;

impl ConnRecord {
    /// Returns whether the connection is certainly between two requests and had no activity in this
    /// turn.
    fn is_idle(&self, snapshot: &ConnSnapshot) -> bool {
        let moving =
            snapshot.moved > self.seen_moved || self.called_in_turn || self.resume_turns > 0;
        let paused = self.paused || self.pause_uncertain || self.uncertain_turns > 0;
        let ending = self.closing
            || self.finished
            || self.read_closed
            || self.got_last_body
            || self.end.is_some()
            || snapshot.ended
            || snapshot.broken;
        let has_input =
            snapshot.unread > 0 || snapshot.pending || snapshot.received > self.delivered;
        let has_unsent = self.had_unsent || snapshot.sent < self.replied || self.sends_total > 0;
        !(self.connecting || moving || paused || ending || has_input || has_unsent)
    }
}

/// Returns whether two addresses belong to the same peer.
fn same_peer(one: IpAddr, other: IpAddr) -> bool {
    let v4 = |addr| match addr {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(addr) => addr.to_ipv4_mapped(),
    };
    match (one, other) {
        (IpAddr::V6(a), IpAddr::V6(b)) if v4(one).is_none() && v4(other).is_none() => {
            a.segments()[..4] == b.segments()[..4]
        }
        _ => v4(one).is_some() && v4(one) == v4(other),
    }
}

impl Model {
    /// Checks that a connection that has just opened is within `max_per_peer`.
    pub(super) fn check_per_peer(&mut self, number: usize) -> Result<(), String> {
        let limits = self.configs.iter().map(|config| config.max_per_peer.unwrap_or(0));
        let (least, max) = (limits.clone().min(), limits.max());
        let Some(record) = self.records.get_mut(&number) else { return Ok(()) };
        record.counts_for_peer = least > Some(0) && record.peer_addr.is_some();
        let Some(from) = record.peer_addr.filter(|_| record.counts_for_peer) else { return Ok(()) };
        let of_peer = self.records.values().filter(|other| {
            let live = other.counts_for_peer && other.end.is_none();
            live && other.peer_addr.is_some_and(|addr| same_peer(addr, from))
        });
        match of_peer.count() {
            count if Some(count) > max => Err(format!("connection {count} of {from}")),
            _ => Ok(()),
        }
    }

    /// Returns whether a peer may have had `max` connections at the same time after `since`.
    pub(crate) fn had_full_peer(&self, max: Option<usize>, since: Duration) -> bool {
        let live = |record: &&ConnRecord| {
            let left = record.end.as_ref().is_some_and(|&(_, when)| when < since);
            record.id.is_some() && !left
        };
        let addrs = || self.records.values().filter(live).filter_map(|record| record.peer_addr);
        let count = |from| addrs().filter(|&addr| same_peer(addr, from)).count();
        max.is_some_and(|max| addrs().any(|from| count(from) >= max))
    }

    /// Checks an eviction. No permit may be free, the evicted connection must be idle, and no other
    /// connection may have been idle for longer.
    pub(super) fn check_evicted(&self, end: &Closed, sim: &Sim) -> Result<(), String> {
        let full = self.configs.iter().any(|config| {
            // The evicted socket is closed by now. The socket that takes its permit is already
            // open.
            let taken = sim.counters().open as u64 + self.waiting_connects();
            let full = taken >= max_workers(config);
            full && matches!(config.overload, Overload::EvictIdle)
        });
        if !full {
            return Err("evicted although a permit was free".into());
        }
        let number = self.numbers.get(&end.id);
        let record = number.and_then(|number| self.records.get(number)).ok_or("unknown")?;
        let snapshot = sim.snapshot(end.id).ok_or("not registered")?;
        if snapshot.unread > 0 || snapshot.ended {
            return Err(format!("evicted with unread input, {snapshot:?}"));
        }
        if end.bytes_dropped + end.bytes_unsent > 0
            || record.paused_by_callback
            || record.read_closed
            || record.finished
            || record.paused_turns > 1
        {
            return Err("evicted although it was not idle".into());
        }
        let ticks = Duration::from_millis(2);
        let longer_idle = self.records.values().find(|other| {
            let snapshot = other.id.and_then(|id| sim.snapshot(id));
            let idle = snapshot.is_some_and(|snapshot| other.is_idle(&snapshot));
            idle && other.moved.1 + ticks < record.moved.0
        });
        match longer_idle {
            Some(longer_idle) if self.highest < SLOTS => Err(format!(
                "evicted although {:?} was idle longer, {record:?} {longer_idle:?}",
                longer_idle.id
            )),
            _ => Ok(()),
        }
    }
}
