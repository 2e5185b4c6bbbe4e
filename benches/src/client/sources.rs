//! Sources: source addresses for connections over loopback. This module uses no sockets.
//!
//! The side that closes first keeps its pair of addresses for a minute (`TIME_WAIT`). If the system
//! chooses the source, a client that opens and closes connections runs out of ports within seconds.
//! If the client binds to other loopback addresses and lets the system choose the port, all other
//! processes run out of ports as well, because `connect` does not use a port that the system has
//! chosen in `bind`. The client therefore binds to explicit ports, below the ephemeral ports of the
//! system.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr};

use super::content::mix;

/// The number of loopback addresses in use.
const ADDRESSES: u64 = 250;

/// The ephemeral ports of Linux begin at 32768 by default.
const FIRST_PORT: u64 = 16_384;
const PORTS: u64 = 16_384;

/// Maximum ports tried per connection. Only a small part of the ports is in `TIME_WAIT`.
const ATTEMPTS: u64 = 16;

/// Loopback addresses in rotation, each with pseudo-random ports. There are four million sources.
/// Each client uses them in a different order.
#[derive(Debug)]
pub(super) struct Sources {
    turn: u64,
}

impl Sources {
    pub(super) fn new() -> Self {
        Self { turn: RandomState::new().hash_one(()) }
    }

    /// Returns source addresses for a connection to `to`, in the order in which to try them.
    /// Returns no address if the system should choose the source. This is the case if `to` is not
    /// an IPv4 loopback address, and on systems other than Linux, because they have only one
    /// loopback address.
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
    fn sources_differ_and_are_below_the_ephemeral_ports() {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let mut sources = Sources::new();
        let drawn: HashSet<_> = (0..10_000).flat_map(|_| sources.next(to)).collect();
        assert!(!cfg!(target_os = "linux") || drawn.len() > 150_000, "{}", drawn.len());
        for source in drawn {
            assert!(source.ip().is_loopback() && (16_384..32_768).contains(&source.port()));
        }
    }

    #[test]
    fn sources_are_chosen_for_loopback_only() {
        let elsewhere = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80));
        assert_eq!(Sources::new().next(elsewhere).count(), 0);
    }
}
