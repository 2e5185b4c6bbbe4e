//! Counts the accepted connections of each peer address.
//!
//! An IPv6 address is counted by its first 64 bits, because a subscriber can choose the other bits
//! freely (RFC 4291, 2.5.4). An IPv4-mapped address counts as the IPv4 address. A peer without
//! counted connections uses no entry.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// A peer: an IPv4 address, or the first 64 bits of an IPv6 address. IPv4 addresses use the keys of
/// the network `ffff:ffff::/32`. No IPv6 peer has these keys, because the network is multicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerKey(u64);

impl PeerKey {
    /// A peer that is not counted.
    pub(crate) const UNKNOWN: Self = Self(u64::MAX);

    pub(crate) fn of(addr: IpAddr) -> Self {
        match addr.to_canonical() {
            IpAddr::V4(addr) => Self(0xffff_ffff << 32 | u64::from(addr.to_bits())),
            IpAddr::V6(addr) => Self((addr.to_bits() >> 64) as u64),
        }
    }
}

/// Invariant: the count of a peer is the number of entries in `slots` that name this peer. No count
/// is 0.
#[derive(Debug, Default)]
pub(crate) struct PeerCounts {
    /// The number of connections of each peer. Unlike a hash table, a tree cannot be made slow by
    /// the peers' choice of addresses. A tree also frees memory when entries are removed.
    counts: BTreeMap<PeerKey, usize>,
    /// The peer of each worker, by the index of the worker. The vector is long enough for the
    /// highest index of all connections counted so far.
    slots: Vec<PeerKey>,
}

impl PeerCounts {
    /// Returns whether the peer has fewer than `max` connections. A peer that is not counted is
    /// always admitted.
    pub(crate) fn admits(&self, peer: PeerKey, max: usize) -> bool {
        peer == PeerKey::UNKNOWN || self.counts.get(&peer).is_none_or(|&count| count < max)
    }

    /// Counts a connection. `index` is the index of its worker.
    pub(crate) fn add(&mut self, index: usize, peer: PeerKey) {
        if peer == PeerKey::UNKNOWN {
            return;
        }
        if index >= self.slots.len() {
            self.slots.resize(index + 1, PeerKey::UNKNOWN);
        }
        self.slots[index] = peer;
        *self.counts.entry(peer).or_default() += 1;
    }

    /// Removes the connection of the worker with this index from the count of its peer. Does
    /// nothing if the connection was not counted.
    pub(crate) fn remove(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let peer = std::mem::replace(slot, PeerKey::UNKNOWN);
        let Some(count) = self.counts.get_mut(&peer) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(addr: &str) -> PeerKey {
        PeerKey::of(addr.parse().unwrap())
    }

    #[test]
    fn addresses_of_one_ipv6_subscriber_are_one_peer() {
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"), "the next /64");
        assert_eq!(
            peer("10.0.0.1"),
            peer("::ffff:10.0.0.1"),
            "a dual-stack socket reports the mapped address"
        );
        let addrs = ["10.0.0.1", "10.0.0.2", "::1", "::10.0.0.1", "0.0.0.0", "fe80::1"];
        let peers: std::collections::BTreeSet<PeerKey> = addrs.into_iter().map(peer).collect();
        // `::1` and `::10.0.0.1` are in the same /64.
        assert_eq!(peers.len(), addrs.len() - 1);
        assert!(!peers.contains(&PeerKey::UNKNOWN));
    }

    #[test]
    fn counts_of_ended_connections_are_removed() {
        let (mut peers, one, other) = (PeerCounts::default(), peer("10.0.0.1"), peer("10.0.0.2"));
        peers.add(3, one);
        peers.add(0, other);
        peers.add(1, one);
        peers.add(2, PeerKey::UNKNOWN);
        assert!(!peers.admits(one, 2) && peers.admits(one, 3) && peers.admits(other, 2));
        assert!(peers.admits(PeerKey::UNKNOWN, 0), "an unknown peer is never refused");
        peers.remove(3);
        peers.remove(3);
        assert!(peers.admits(one, 2) && !peers.admits(one, 1), "the second removal has no effect");
        for index in 0..9 {
            peers.remove(index);
        }
        assert!(peers.counts.is_empty() && peers.slots.len() == 4);
    }
}
