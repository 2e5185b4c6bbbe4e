//! Networks of IP addresses in CIDR notation.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A network of IP addresses: all addresses with the same first bits, such as `10.0.0.0/8` or
/// `fd00::/8`. A single address is a network, too.
///
/// An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) is treated as the IPv4 address that it contains.
///
/// ```
/// use pool_manager::IpNet;
/// let home: IpNet = "192.168.0.0/16".parse()?;
/// assert!(home.contains("192.168.7.9".parse()?) && !home.contains("192.169.0.1".parse()?));
/// assert!(home.contains("::ffff:192.168.7.9".parse()?), "an IPv4-mapped address");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpNet {
    first: IpAddr,
    bits: u8,
}

impl IpNet {
    /// Returns whether the address belongs to this network.
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
    /// Returns the network that contains only this address.
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
        let max = if addr.is_ipv4() { 32 } else { 128 };
        match (addr.to_canonical(), bits) {
            _ if bits > max => Err(wrong()),
            // The network contains only IPv4-mapped addresses, which `contains` compares as IPv4.
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

/// Returned when a string is not a valid [`IpNet`].
///
/// ```
/// let wrong = "10.0.0.0/33".parse::<pool_manager::IpNet>().unwrap_err();
/// assert_eq!(wrong.to_string(), "10.0.0.0/33 is not a network: use ADDRESS or ADDRESS/BITS");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseIpNetError(String);

impl fmt::Display for ParseIpNetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not a network: use ADDRESS or ADDRESS/BITS", self.0)
    }
}

impl std::error::Error for ParseIpNetError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_the_addresses_that_share_its_bits() {
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
}
