//! Places: who may be sent away to make one, and who may not have one.

use std::time::Duration;

use pool_manager::sim::{Look, Sim};
use pool_manager::{End, Overload};

use super::{Account, Model};

/// Slots that are looked at for an idle connection: among more, another may be idle longer.
const SLOTS: u32 = 256;

impl Account {
    /// It is between two requests, for sure, and nothing of it has moved in this turn.
    fn rests(&self, look: &Look) -> bool {
        let moving = look.moved > self.seen_moved || self.called_now || self.resumed > 0;
        let paused = self.paused || self.unsure || self.ordered > 0;
        let ending = self.closing || self.over || self.end.is_some() || look.ended || look.broken;
        let working = look.unread > 0 || look.pending || look.received > self.delivered;
        let owing = self.owed || look.sent < self.replied || self.sends_total > 0;
        !(moving || paused || ending || working || owing)
    }
}

impl Model {
    /// Who is evicted was idle, while there was no place, and nobody was idle longer.
    pub(super) fn evicted(&self, end: &End, sim: &Sim) -> Result<(), String> {
        let full = self.configs.iter().any(|config| {
            // Its own socket is closed by now, and the one that it makes a place for is not.
            let full = config.max_workers > 0 && sim.tally().open >= config.max_workers;
            full && matches!(config.overload, Overload::EvictIdle)
        });
        if !full {
            return Err("evicted, though there is no need".into());
        }
        let number = self.numbers.get(&end.id);
        let account = number.and_then(|number| self.accounts.get(number)).ok_or("unknown")?;
        let look = sim.look(end.id).ok_or("not registered")?;
        if look.unread > 0 || look.ended {
            return Err(format!("evicted, though it spoke, {look:?}"));
        }
        if end.bytes_dropped + end.bytes_unsent > 0 || account.held_back || account.was_paused > 1 {
            return Err("evicted, though it was not idle".into());
        }
        let ticks = Duration::from_millis(2);
        let longer = self.accounts.values().find(|other| {
            let look = other.id.and_then(|id| sim.look(id));
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
