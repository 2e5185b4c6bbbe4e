//! Sources: where connections over loopback come from. Knows no sockets.
//!
//! Who closes first keeps its pair of addresses for a minute (`TIME_WAIT`). Left to the system, a
//! churning client runs out of ports within seconds, and if it binds to other loopback addresses
//! without naming a port, then everybody else on the machine does, too: a port that somebody was
//! given by `bind` is given to nobody else by `connect`. So ports are named, below those that the
//! system gives away on its own.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr};

use super::content::mix;

/// How many loopback addresses are used.
const ADDRESSES: u64 = 250;

/// By default the system gives away 32768 and above on its own.
const FIRST_PORT: u64 = 16_384;
const PORTS: u64 = 16_384;

/// How many ports are tried: those that rest are few among all.
const ATTEMPTS: u64 = 16;

/// Addresses in turns, each with ports at random: four million sources, in another order each time.
#[derive(Debug)]
pub(super) struct Sources {
    turn: u64,
}

impl Sources {
    pub(super) fn new() -> Self {
        Self { turn: RandomState::new().hash_one(()) }
    }

    /// Where a connection to this address may come from, in the order in which to try; nothing if
    /// the system shall choose. Other systems than Linux have only one loopback address.
    pub(super) fn next(&mut self, to: SocketAddr) -> impl Iterator<Item = SocketAddr> + use<> {
        self.turn = self.turn.wrapping_add(1);
        let turn = self.turn;
        let address = Ipv4Addr::new(127, 0, 0, (1 + turn % ADDRESSES) as u8);
        let loopback = to.is_ipv4() && to.ip().is_loopback() && cfg!(target_os = "linux");
        let attempts = if loopback { ATTEMPTS } else { 0 };
        (0..attempts).map(move |attempt| {
            let port = FIRST_PORT + mix(turn ^ (attempt << 32)) % PORTS;
            SocketAddr::from((address, port as u16))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn sources_differ_and_are_not_what_the_system_gives_away() {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let mut sources = Sources::new();
        let drawn: HashSet<_> = (0..10_000).flat_map(|_| sources.next(to)).collect();
        assert!(!cfg!(target_os = "linux") || drawn.len() > 150_000, "{}", drawn.len());
        for source in drawn {
            assert!(source.ip().is_loopback() && (16_384..32_768).contains(&source.port()));
        }
    }

    #[test]
    fn only_loopback_is_chosen_for() {
        let elsewhere = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80));
        assert_eq!(Sources::new().next(elsewhere).count(), 0);
    }
}
