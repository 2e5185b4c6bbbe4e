//! Places: who may be sent away to make one, and who may not have one.

use std::net::IpAddr;
use std::time::Duration;

use pool_manager::sim::{ConnSnapshot, Sim};
use pool_manager::{Closed, Overload};

use super::{Account, Model};

/// Slots that are looked at for an idle connection: among more, another may be idle longer.
const SLOTS: u32 = 256;

impl Account {
    /// It is between two requests, for sure, and nothing of it has moved in this turn.
    fn rests(&self, look: &ConnSnapshot) -> bool {
        let moving = look.moved > self.seen_moved || self.called_now || self.resumed > 0;
        let paused = self.paused || self.unsure || self.ordered > 0;
        let ending = self.closing || self.over || self.end.is_some() || look.ended || look.broken;
        let working = look.unread > 0 || look.pending || look.received > self.delivered;
        let owing = self.owed || look.sent < self.replied || self.sends_total > 0;
        !(self.connecting || moving || paused || ending || working || owing)
    }
}

/// Whether two addresses are of one peer.
fn same(one: IpAddr, other: IpAddr) -> bool {
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
    /// One that has just opened is not one too many of its peer's.
    pub(super) fn counts(&mut self, number: usize) -> Result<(), String> {
        let limits = self.configs.iter().map(|config| config.max_per_peer);
        let (least, max) = (limits.clone().min(), limits.max());
        let Some(account) = self.accounts.get_mut(&number) else { return Ok(()) };
        account.counted = least > Some(0) && account.from.is_some();
        let Some(from) = account.from.filter(|_| account.counted) else { return Ok(()) };
        let live = self.accounts.values().filter(|other| {
            let there = other.counted && other.end.is_none();
            there && other.from.is_some_and(|addr| same(addr, from))
        });
        match live.count() {
            count if Some(count) > max => Err(format!("the {count}th of {from}")),
            _ => Ok(()),
        }
    }

    /// Whether, since then, there was a peer with as many connections as it may have.
    pub(crate) fn is_crowded(&self, max: usize, since: Duration) -> bool {
        let there = |account: &&Account| {
            let left = account.end.is_some_and(|(_, when)| when < since);
            account.id.is_some() && !left
        };
        let addrs = || self.accounts.values().filter(there).filter_map(|account| account.from);
        let count = |from| addrs().filter(|&addr| same(addr, from)).count();
        max > 0 && addrs().any(|from| count(from) >= max)
    }

    /// Who is evicted was idle, while there was no place, and nobody was idle longer.
    pub(super) fn evicted(&self, end: &Closed, sim: &Sim) -> Result<(), String> {
        let full = self.configs.iter().any(|config| {
            // Its own socket is closed by now, and the one that it makes a place for is not.
            let taken = sim.counters().open + self.waiting_calls() as usize;
            let full = config.max_workers > 0 && taken >= config.max_workers;
            full && matches!(config.overload, Overload::EvictIdle)
        });
        if !full {
            return Err("evicted, though there is no need".into());
        }
        let number = self.numbers.get(&end.id);
        let account = number.and_then(|number| self.accounts.get(number)).ok_or("unknown")?;
        let look = sim.snapshot(end.id).ok_or("not registered")?;
        if look.unread > 0 || look.ended {
            return Err(format!("evicted, though it spoke, {look:?}"));
        }
        if end.bytes_dropped + end.bytes_unsent > 0 || account.held_back || account.was_paused > 1 {
            return Err("evicted, though it was not idle".into());
        }
        let ticks = Duration::from_millis(2);
        let longer = self.accounts.values().find(|other| {
            let look = other.id.and_then(|id| sim.snapshot(id));
            let rests = look.is_some_and(|look| other.rests(&look));
            rests && other.moved.1 + ticks < account.moved.0
        });
        match longer {
            Some(longer) if self.highest < SLOTS => Err(format!(
                "evicted, though {:?} was idle longer, {account:?} {longer:?}",
                longer.id
            )),
            _ => Ok(()),
        }
    }
}
