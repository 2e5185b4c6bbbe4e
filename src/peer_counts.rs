//! Peers: how many connections each address has that a listener accepted.
//!
//! An IPv6 address counts by its first 64 bits, which one subscriber has to choose from at will
//! (RFC 4291, 2.5.4); one that maps an IPv4 address counts as that. The counts are as many as there
//! are addresses connected. It knows neither sockets nor what is done with who comes too often.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Who is counted together. IPv4 addresses stand where no IPv6 one does: in `ffff:ffff::/32`,
/// which is multicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerKey(u64);

impl PeerKey {
    /// Who is not counted.
    pub(crate) const UNKNOWN: Self = Self(u64::MAX);

    pub(crate) fn of(addr: IpAddr) -> Self {
        match addr.to_canonical() {
            IpAddr::V4(addr) => Self(0xffff_ffff << 32 | u64::from(addr.to_bits())),
            IpAddr::V6(addr) => Self((addr.to_bits() >> 64) as u64),
        }
    }
}

/// Invariant: the count of each peer is how often it stands in `slots`, and is not 0.
#[derive(Debug, Default)]
pub(crate) struct PeerCounts {
    /// A tree: no choice of addresses makes it slow, and it shrinks.
    counts: BTreeMap<PeerKey, usize>,
    /// Who is behind each worker, by index; as far as there was one to count.
    slots: Vec<PeerKey>,
}

impl PeerCounts {
    /// Whether one more connection of this peer is no more than `max`.
    pub(crate) fn admits(&self, peer: PeerKey, max: usize) -> bool {
        peer == PeerKey::UNKNOWN || self.counts.get(&peer).is_none_or(|&count| count < max)
    }

    /// Counts a connection whose worker has this index.
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

    /// The worker with this index has ended. Nothing, if it was not counted.
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
    fn a_subscriber_s_addresses_are_one_peer_and_others_are_not() {
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"), "the next /64");
        assert_eq!(peer("10.0.0.1"), peer("::ffff:10.0.0.1"), "on a socket for both");
        let addrs = ["10.0.0.1", "10.0.0.2", "::1", "::10.0.0.1", "0.0.0.0", "fe80::1"];
        let peers: std::collections::BTreeSet<PeerKey> = addrs.into_iter().map(peer).collect();
        // `::1` and `::10.0.0.1` are of the same /64.
        assert_eq!(peers.len(), addrs.len() - 1);
        assert!(!peers.contains(&PeerKey::UNKNOWN));
    }

    #[test]
    fn counts_are_of_who_is_there_and_take_no_room_afterwards() {
        let (mut peers, one, other) = (PeerCounts::default(), peer("10.0.0.1"), peer("10.0.0.2"));
        peers.add(3, one);
        peers.add(0, other);
        peers.add(1, one);
        peers.add(2, PeerKey::UNKNOWN);
        assert!(!peers.admits(one, 2) && peers.admits(one, 3) && peers.admits(other, 2));
        assert!(peers.admits(PeerKey::UNKNOWN, 0), "not counted, not refused");
        peers.remove(3);
        peers.remove(3);
        assert!(peers.admits(one, 2) && !peers.admits(one, 1), "once is once");
        for index in 0..9 {
            peers.remove(index);
        }
        assert!(peers.counts.is_empty() && peers.slots.len() == 4);
    }
}
