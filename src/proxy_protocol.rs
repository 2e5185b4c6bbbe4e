//! A parser for the PROXY protocol header, in which a proxy passes on the client's address.
//!
//! It supports versions 1 and 2 (haproxy.org/download/2.6/doc/proxy-protocol.txt). The input is a
//! slice of bytes. The output is an address. The parser does no I/O, and does not decide which
//! proxies are trusted.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Maximum length in bytes of a version 2 header, including everything after its addresses.
pub(crate) const LONGEST: usize = 2048;

/// Maximum length in bytes of a version 1 header, including its line end.
const LONGEST_LINE: usize = 107;

const LINE: &[u8] = b"PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Length in bytes of the fixed part of a version 2 header: the signature (12), the version and the
/// command (1), the family and the transport (1), and the length of the rest (2).
const FIXED: usize = 16;

/// The result of parsing the first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The beginning of a header.
    Partial,
    /// Not a header.
    Invalid,
    /// A header of `length` bytes. `peer` is `None` if the connection belongs to the proxy itself,
    /// or if the header contains no TCP address.
    Complete { length: usize, peer: Option<SocketAddr> },
}

/// Parses a header at the front of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    if agree(bytes, SIGNATURE) {
        binary(bytes)
    } else if agree(bytes, LINE) {
        line(bytes)
    } else {
        Parsed::Invalid
    }
}

/// Returns whether `bytes` begins with `start`. If `bytes` is shorter than `start`, returns whether
/// `start` begins with `bytes`.
fn agree(bytes: &[u8], start: &[u8]) -> bool {
    let both = bytes.len().min(start.len());
    bytes[..both] == start[..both]
}

/// Parses a version 1 header, which is a line of text.
fn line(bytes: &[u8]) -> Parsed {
    let max = bytes.len().min(LONGEST_LINE);
    let Some(end) = bytes[..max].windows(2).position(|pair| pair == b"\r\n") else {
        return if max < LONGEST_LINE { Parsed::Partial } else { Parsed::Invalid };
    };
    let text = bytes.get(LINE.len()..end).and_then(|text| core::str::from_utf8(text).ok());
    match text.map(source) {
        Some(Ok(peer)) => Parsed::Complete { length: end + 2, peer },
        _ => Parsed::Invalid,
    }
}

/// Parses the source address from `TCP4 SOURCE DESTINATION PORT PORT`, or from the same line with
/// `TCP6`. Returns `None` for `UNKNOWN`.
fn source(text: &str) -> Result<Option<SocketAddr>, ()> {
    let mut fields = text.split(' ');
    let parse: fn(&str) -> Option<IpAddr> = match fields.next() {
        Some("UNKNOWN") => return Ok(None),
        Some("TCP4") => |text| text.parse().ok().map(IpAddr::V4),
        Some("TCP6") => |text| text.parse().ok().map(IpAddr::V6),
        _ => return Err(()),
    };
    let mut next = || fields.next().ok_or(());
    let [source, destination] = [next()?, next()?].map(parse);
    let [source_port, destination_port] = [next()?, next()?].map(port);
    match (source, destination, source_port, destination_port, fields.next()) {
        (Some(ip), Some(_), Some(port), Some(_), None) => Ok(Some(SocketAddr::new(ip, port))),
        _ => Err(()),
    }
}

/// Parses a decimal number without sign or leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|digit| digit.is_ascii_digit());
    let short = text == "0" || !text.starts_with('0');
    text.parse().ok().filter(|_| plain && short)
}

/// Parses a version 2 header, which is binary.
fn binary(bytes: &[u8]) -> Parsed {
    let known = |at: usize, allowed: &[u8]| bytes.get(at).is_none_or(|byte| allowed.contains(byte));
    let (local, proxied) = (0x20, 0x21);
    if !known(12, &[local, proxied]) || !known(13, &[0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32]) {
        return Parsed::Invalid;
    }
    let &[command, family, high, low] = bytes.get(12..FIXED).unwrap_or_default() else {
        return Parsed::Partial;
    };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    let least = match family {
        _ if command == local => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => 0,
    };
    if length > LONGEST || length < FIXED + least {
        return Parsed::Invalid;
    }
    let Some(addresses) = bytes.get(FIXED..length) else { return Parsed::Partial };
    // Only TCP addresses are returned. A datagram address cannot belong to a stream, and the path
    // of a Unix socket is not a `SocketAddr`.
    let peer = match (command, family) {
        (0x21, 0x11) => address::<4, 8>(addresses, |ip| Ipv4Addr::from(ip).into()),
        (0x21, 0x21) => address::<16, 32>(addresses, |ip| Ipv6Addr::from(ip).into()),
        _ => None,
    };
    Parsed::Complete { length, peer }
}

/// Returns the source address. The IP address of the source is the first `N` bytes. The port of the
/// source is at offset `PORT`, after both IP addresses.
fn address<const N: usize, const PORT: usize>(
    bytes: &[u8],
    ip: impl FnOnce([u8; N]) -> IpAddr,
) -> Option<SocketAddr> {
    let port = bytes.get(PORT..)?.first_chunk().copied().map(u16::from_be_bytes)?;
    Some(SocketAddr::new(ip(*bytes.first_chunk()?), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ppp::{HeaderResult, v1, v2};

    /// Parses the header with the crate `ppp`.
    fn theirs(bytes: &[u8]) -> Parsed {
        let of = |ip: IpAddr, port| Some(SocketAddr::new(ip, port));
        match HeaderResult::parse(bytes) {
            HeaderResult::V1(Ok(header)) => Parsed::Complete {
                length: header.header.len(),
                peer: match header.addresses {
                    v1::Addresses::Tcp4(known) => {
                        of(known.source_address.into(), known.source_port)
                    }
                    v1::Addresses::Tcp6(known) => {
                        of(known.source_address.into(), known.source_port)
                    }
                    v1::Addresses::Unknown => None,
                },
            },
            HeaderResult::V2(Ok(header)) => Parsed::Complete {
                length: header.len(),
                peer: match header.addresses {
                    _ if header.command == v2::Command::Local => None,
                    _ if header.protocol != v2::Protocol::Stream => None,
                    v2::Addresses::IPv4(known) => {
                        of(known.source_address.into(), known.source_port)
                    }
                    v2::Addresses::IPv6(known) => {
                        of(known.source_address.into(), known.source_port)
                    }
                    _ => None,
                },
            },
            _ => Parsed::Invalid,
        }
    }

    type Choice<'a> = arbtest::arbitrary::Unstructured<'a>;
    type Arbitrary<T> = arbtest::arbitrary::Result<T>;

    /// Returns a valid header of either version.
    fn header(choice: &mut Choice<'_>) -> Arbitrary<Vec<u8>> {
        let ports = [choice.arbitrary::<u16>()?, choice.arbitrary()?];
        let (v4, v6): ([Ipv4Addr; 2], [Ipv6Addr; 2]) = (choice.arbitrary()?, choice.arbitrary()?);
        let addresses: v2::Addresses = if choice.arbitrary()? {
            v2::IPv4::new(v4[0], v4[1], ports[0], ports[1]).into()
        } else {
            v2::IPv6::new(v6[0], v6[1], ports[0], ports[1]).into()
        };
        if choice.arbitrary()? {
            let command = *choice.choose(&[v2::Command::Proxy, v2::Command::Local])?;
            let protocol = *choice.choose(&[v2::Protocol::Stream, v2::Protocol::Datagram])?;
            let builder =
                v2::Builder::with_addresses(v2::Version::Two | command, protocol, addresses);
            let extra: Vec<u8> = choice.arbitrary()?;
            let extra = &extra[..extra.len().min(400)];
            return Ok(builder
                .write_tlv(v2::Type::NoOp, extra)
                .and_then(v2::Builder::build)
                .unwrap());
        }
        Ok(match choice.int_in_range(0..=2)? {
            0 => format!("PROXY TCP4 {} {} {} {}\r\n", v4[0], v4[1], ports[0], ports[1]),
            1 => format!("PROXY TCP6 {} {} {} {}\r\n", v6[0], v6[1], ports[0], ports[1]),
            _ => "PROXY UNKNOWN whatever\r\n".to_owned(),
        }
        .into_bytes())
    }

    #[test]
    fn valid_headers_are_parsed_as_by_the_ppp_crate() {
        arbtest::arbtest(|choice| {
            let header = header(choice)?;
            let mut stream = header.clone();
            stream.extend(b"GET / HTTP/1.1\r\n\r\n");
            for end in 0..header.len() {
                assert_eq!(parse(&stream[..end]), Parsed::Partial, "{end} of {header:?}");
            }
            let whole = parse(&stream);
            assert!(matches!(whole, Parsed::Complete { length, .. } if length == header.len()));
            assert_eq!(whole, theirs(&header));
            Ok(())
        });
    }

    /// Corrupts a header. If it still parses, the crate `ppp` must return the same result. A header
    /// that `ppp` parses may be invalid for `parse`, because `ppp` is less strict in version 1 and
    /// has no maximum length in version 2.
    #[test]
    fn corrupted_headers_that_parse_also_parse_in_the_ppp_crate() {
        arbtest::arbtest(|choice| {
            let mut spoilt = header(choice)?;
            for _ in 0..choice.int_in_range(1..=3)? {
                let at = choice.choose_index(spoilt.len())?;
                spoilt[at] = choice.arbitrary()?;
            }
            if let taken @ Parsed::Complete { length, .. } = parse(&spoilt) {
                // If a header has no address, `parse` ignores the rest of it.
                let nameless: [&[u8]; 2] = [b"PROXY UNKNOWN ", b"\r\n\r\n\0\r\nQUIT\n\x20"];
                let names = !nameless.iter().any(|start| spoilt.starts_with(start));
                let none = Parsed::Complete { length, peer: None };
                let known = if names { theirs(&spoilt[..length]) } else { none };
                assert_eq!(taken, known, "{}", spoilt.escape_ascii());
            }
            Ok(())
        });
    }

    #[test]
    fn bytes_that_cannot_become_a_header_are_invalid_at_once() {
        let invalid: [&[u8]; 18] = [
            b"G",
            b"PROXZ",
            b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            b"PROXY TCP4 1.2.3.4 ::1 1 2\r\n",
            b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY \r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x11",
            b"\r\n\r\n\0\r\nQUIT\n\x22",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x13",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x23",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd7",
        ];
        for bytes in invalid {
            assert_eq!(parse(bytes), Parsed::Invalid, "{}", bytes.escape_ascii());
        }
        let v2 = |length: usize| [SIGNATURE, b"\x20\0", &(length as u16).to_be_bytes()].concat();
        assert_eq!(parse(&v2(LONGEST - FIXED)), Parsed::Partial);
        assert_eq!(parse(&v2(LONGEST - FIXED + 1)), Parsed::Invalid);
    }

    #[test]
    fn a_local_header_needs_no_addresses_in_any_family() {
        for family in [0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32] {
            let header = [SIGNATURE, &[0x20, family, 0, 3], b"abc"].concat();
            assert_eq!(parse(&header), Parsed::Complete { length: FIXED + 3, peer: None });
        }
    }

    #[test]
    fn a_version_1_header_may_be_107_bytes_long() {
        let line =
            |filling: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(filling)).into_bytes();
        let length = LONGEST_LINE;
        assert_eq!(parse(&line(length - 16)), Parsed::Complete { length, peer: None });
        assert_eq!(parse(&line(length - 15)), Parsed::Invalid);
        assert_eq!(parse(&line(200)[..length - 1]), Parsed::Partial);
        assert_eq!(parse(&line(200)[..length]), Parsed::Invalid);
    }
}
