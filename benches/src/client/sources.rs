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

/// Addresses in turns, each with a port at random: four million sources, in another order each time.
#[derive(Debug)]
pub(super) struct Sources {
    next: u64,
}

impl Sources {
    pub(super) fn new() -> Self {
        Self { next: RandomState::new().hash_one(()) }
    }

    /// A source for a connection to this address; `None` if the system shall choose. Other systems
    /// than Linux have only one loopback address.
    pub(super) fn next(&mut self, to: SocketAddr) -> Option<SocketAddr> {
        let loopback = to.is_ipv4() && to.ip().is_loopback() && cfg!(target_os = "linux");
        self.next = self.next.wrapping_add(1);
        let (address, port) = (1 + self.next % ADDRESSES, FIRST_PORT + mix(self.next) % PORTS);
        let source = (Ipv4Addr::new(127, 0, 0, address as u8), port as u16);
        loopback.then(|| source.into())
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
        let drawn: HashSet<_> = (0..10_000).filter_map(|_| sources.next(to)).collect();
        assert!(!cfg!(target_os = "linux") || drawn.len() > 9_900, "{}", drawn.len());
        for source in drawn {
            assert!(source.ip().is_loopback() && (16_384..32_768).contains(&source.port()));
        }
    }

    #[test]
    fn only_loopback_is_chosen_for() {
        let elsewhere = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80));
        assert_eq!(Sources::new().next(elsewhere), None);
    }
}
