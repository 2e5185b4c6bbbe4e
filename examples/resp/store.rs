//! The store: keys, values and when they expire. An expired key is gone for everybody who asks;
//! its memory is freed then, or little by little when other keys are made to expire.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

type Key = Box<[u8]>;

struct Entry {
    value: Vec<u8>,
    expires: Option<Instant>,
}

impl Entry {
    /// The clock is read for keys that can expire, and for no others.
    fn is_live(&self) -> bool {
        self.expires.is_none_or(|expires| expires > Instant::now())
    }
}

#[derive(Default)]
pub(crate) struct Store {
    entries: HashMap<Key, Entry>,
    /// Invariant: one for each entry that expires.
    expiring: BTreeSet<(Instant, Key)>,
}

impl Store {
    pub(crate) fn get(&mut self, key: &[u8]) -> Option<&[u8]> {
        if self.entries.get(key).is_some_and(|entry| !entry.is_live()) {
            self.remove(key);
        }
        self.entries.get(key).map(|entry| &entry.value[..])
    }

    /// Sets a value that expires at that time, or never.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8], expires: Option<Instant>) {
        match self.entries.get_mut(key) {
            Some(entry) if entry.expires.is_none() && expires.is_none() => {
                replace(&mut entry.value, value);
            }
            _ => {
                self.remove(key);
                self.entries.insert(key.into(), Entry { value: value.into(), expires: None });
                self.expire(key, expires);
            }
        }
    }

    /// Changes a value and leaves its expiry as it is; a new one does not expire.
    pub(crate) fn update(&mut self, key: &[u8], value: &[u8]) {
        match self.entries.get_mut(key) {
            Some(entry) => replace(&mut entry.value, value),
            None => self.set(key, value, None),
        }
    }

    /// Removes a key, and says whether it was there.
    pub(crate) fn remove(&mut self, key: &[u8]) -> bool {
        let Some((key, entry)) = self.entries.remove_entry(key) else { return false };
        let live = entry.is_live();
        if let Some(expires) = entry.expires {
            self.expiring.remove(&(expires, key));
        }
        live
    }

    /// From now on a key that is there expires at that time, or never.
    pub(crate) fn expire(&mut self, key: &[u8], expires: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let before = std::mem::replace(&mut entry.expires, expires);
        if let Some(before) = before {
            self.expiring.remove(&(before, key.into()));
        }
        if let Some(expires) = expires {
            self.expiring.insert((expires, key.into()));
            self.sweep(Instant::now());
        }
    }

    /// How long a key is there; `None` if it never expires.
    pub(crate) fn time_left(&self, key: &[u8]) -> Option<Duration> {
        let expires = self.entries.get(key)?.expires?;
        Some(expires.saturating_duration_since(Instant::now()))
    }

    /// How many keys there are, of which some may have expired.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Two go for each that comes, so that those that nobody asks for do not gather.
    fn sweep(&mut self, now: Instant) {
        for _ in 0..2 {
            let Some((expires, key)) = self.expiring.pop_first() else { return };
            if expires > now {
                self.expiring.insert((expires, key));
                return;
            }
            self.entries.remove(&key);
        }
    }
}

/// Puts a value where another was, in the same memory if that is not much too large.
fn replace(old: &mut Vec<u8>, new: &[u8]) {
    if (new.len()..=2 * new.len() + 64).contains(&old.capacity()) {
        old.clear();
        old.extend_from_slice(new);
    } else {
        *old = new.to_vec();
    }
}
