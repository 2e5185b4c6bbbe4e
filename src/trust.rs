//! Trust: how a listener takes what it accepts, and whom it believes who their clients are.
//!
//! Values alone: it knows neither listeners nor connections.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// How a listener takes what it accepts; for [`Manager::listen_with`](crate::Manager::listen_with).
///
/// ```
/// use pool_manager::{Config, ListenOptions, Manager};
/// let mut manager = Manager::new(Config::new(), |_, _| Ok(()))?;
/// manager.start()?;
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let balancers = ["127.0.0.0/8".parse()?, "fd00::/8".parse()?];
/// manager.listen_with(listener, ListenOptions::new().proxy_protocol(balancers))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenOptions {
    /// Whose headers are read; `None`: nobody's.
    trusted: Option<Vec<IpNet>>,
}

impl ListenOptions {
    /// The defaults: whoever connects is the client.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Connections from these networks begin with a header of the PROXY protocol, version 1 or 2,
    /// which says who the client is: [`Conn::peer_addr`](crate::Conn::peer_addr). So do all
    /// connections to a Unix socket, whose permissions say who is trusted. Connections from elsewhere
    /// have none, and are served as they are: what looks like a header is their request.
    ///
    /// The header is read before anything else: no hook but
    /// [`Handler::wrap`](crate::Handler::wrap) runs and no framing begins until it is there,
    /// in time for the deadlines. It is read through what `wrap` made of the socket: a transport
    /// for TLS behind a balancer that sends the header before the handshake has to read it itself. A
    /// connection that ends before is unknown to the handler, as health checks that only connect are;
    /// one with something else in its place is closed ([`CloseReason::BadHeader`](crate::CloseReason::BadHeader)). With `LOCAL` and
    /// `UNKNOWN` the address stays the socket's. A header may have 2048 bytes (107 in version 1),
    /// and must fit into [`buffer_size`](crate::Config::buffer_size); its checksum, if any, is
    /// not looked at.
    #[must_use]
    pub fn proxy_protocol(mut self, trusted: impl IntoIterator<Item = IpNet>) -> Self {
        self.trusted = Some(trusted.into_iter().collect());
        self
    }

    pub(crate) fn has_proxies(&self) -> bool {
        self.trusted.is_some()
    }

    /// Whether a connection from there begins with a header.
    pub(crate) fn trusts(&self, peer: Option<IpAddr>) -> bool {
        let Some(trusted) = &self.trusted else { return false };
        peer.is_none_or(|peer| trusted.iter().any(|network| network.contains(peer)))
    }
}

/// Addresses with the same first bits: `10.0.0.0/8`, `fd00::/8`, or one address alone.
///
/// ```
/// use pool_manager::IpNet;
/// let home: IpNet = "192.168.0.0/16".parse()?;
/// assert!(home.contains("192.168.7.9".parse()?) && !home.contains("192.169.0.1".parse()?));
/// assert!(home.contains("::ffff:192.168.7.9".parse()?), "however it is written");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpNet {
    first: IpAddr,
    bits: u8,
}

impl IpNet {
    /// Whether the address is one of this network.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.first, addr.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(addr)) => {
                let differ = u64::from(first.to_bits() ^ addr.to_bits());
                differ >> (32 - self.bits) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(addr)) => {
                let differ = first.to_bits() ^ addr.to_bits();
                differ.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl From<IpAddr> for IpNet {
    /// One address alone.
    fn from(addr: IpAddr) -> Self {
        let first = addr.to_canonical();
        Self { first, bits: if first.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for IpNet {
    type Err = ParseIpNetError;

    fn from_str(text: &str) -> Result<Self, ParseIpNetError> {
        let wrong = || ParseIpNetError(text.into());
        let (addr, bits) = match text.split_once('/') {
            Some((addr, bits)) => (addr, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
        let Some(bits) = bits else { return Ok(addr.into()) };
        let most = if addr.is_ipv4() { 32 } else { 128 };
        match (addr.to_canonical(), bits) {
            _ if bits > most => Err(wrong()),
            // It maps IPv4 addresses, which are looked for as such.
            (first @ IpAddr::V4(_), 96..) => Ok(Self { first, bits: bits - 96 }),
            _ => Ok(Self { first: addr, bits }),
        }
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

/// What was to be a [`IpNet`] and is none.
///
/// ```
/// let wrong = "10.0.0.0/33".parse::<pool_manager::IpNet>().unwrap_err();
/// assert_eq!(wrong.to_string(), "10.0.0.0/33 is no network: ADDRESS or ADDRESS/BITS");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseIpNetError(String);

impl fmt::Display for ParseIpNetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is no network: ADDRESS or ADDRESS/BITS", self.0)
    }
}

impl std::error::Error for ParseIpNetError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_what_shares_its_bits() {
        for (network, inside, outside) in [
            ("10.1.2.3/8", "10.255.0.0", "11.0.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.2"),
            ("10.1.2.3/31", "::ffff:10.1.2.2", "10.1.2.4"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::/0", "ffff::", "1.2.3.4"),
            ("::1", "::1", "::2"),
            ("::ffff:10.0.0.0/104", "10.9.9.9", "11.0.0.0"),
            ("::ffff:10.0.0.1/128", "::ffff:10.0.0.1", "10.0.0.2"),
        ] {
            let network: IpNet = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{network} {outside}");
        }
        for wrong in ["", "10.0.0.0/", "10.0.0.0/33", "::1/129", "10.0.0/8", "a", "1.2.3.4/-1"] {
            assert!(wrong.parse::<IpNet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_has_no_address_is_trusted_where_anybody_is() {
        assert!(!ListenOptions::new().trusts(None));
        assert!(ListenOptions::new().proxy_protocol([]).trusts(None));
        assert!(!ListenOptions::new().proxy_protocol([]).trusts("1.2.3.4".parse().ok()));
    }
}
