//! The store: keys, values and expiry times. An expired key is invisible to all commands. An
//! expired key is removed when a command accesses it. Expired keys that no command accesses are
//! removed gradually, when other keys get an expiry time.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

type Key = Box<[u8]>;

struct Entry {
    value: Vec<u8>,
    expires: Option<Instant>,
}

impl Entry {
    /// Returns false if the key has expired. Reads the clock only for keys with an expiry time.
    fn is_live(&self) -> bool {
        self.expires.is_none_or(|expires| expires > Instant::now())
    }
}

#[derive(Default)]
pub(crate) struct Store {
    entries: HashMap<Key, Entry>,
    /// Invariant: contains exactly the entries that have an expiry time.
    expiring: BTreeSet<(Instant, Key)>,
}

impl Store {
    pub(crate) fn get(&mut self, key: &[u8]) -> Option<&[u8]> {
        if self.entries.get(key).is_some_and(|entry| !entry.is_live()) {
            self.remove(key);
        }
        self.entries.get(key).map(|entry| &entry.value[..])
    }

    /// Sets the value of a key. The key does not expire if `expires` is `None`.
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

    /// Changes a value and keeps its expiry time. A new key does not expire.
    pub(crate) fn update(&mut self, key: &[u8], value: &[u8]) {
        match self.entries.get_mut(key) {
            Some(entry) => replace(&mut entry.value, value),
            None => self.set(key, value, None),
        }
    }

    /// Removes a key. Returns whether it existed.
    pub(crate) fn remove(&mut self, key: &[u8]) -> bool {
        let Some((key, entry)) = self.entries.remove_entry(key) else { return false };
        let live = entry.is_live();
        if let Some(expires) = entry.expires {
            self.expiring.remove(&(expires, key));
        }
        live
    }

    /// Sets the expiry time of an existing key. The key does not expire if `expires` is `None`.
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

    /// Returns the time to live of a key, or `None` if it does not exist or does not expire.
    pub(crate) fn time_left(&self, key: &[u8]) -> Option<Duration> {
        let expires = self.entries.get(key)?.expires?;
        Some(expires.saturating_duration_since(Instant::now()))
    }

    /// Returns the number of keys, including expired ones that have not been removed yet.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Removes up to two expired keys. This method is called once per key that gets an expiry time.
    /// Expired keys that no command accesses therefore do not accumulate.
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

/// Replaces a value. Reuses the memory of the old value, unless this memory is much too large.
fn replace(old: &mut Vec<u8>, new: &[u8]) {
    if (new.len()..=2 * new.len() + 64).contains(&old.capacity()) {
        old.clear();
        old.extend_from_slice(new);
    } else {
        *old = new.to_vec();
    }
}
