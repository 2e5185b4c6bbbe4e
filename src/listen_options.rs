//! Options of a listener: which connections begin with a PROXY protocol header.

use std::net::IpAddr;

use crate::ip_net::IpNet;

/// Options of a listener, for [`Manager::listen_with`](crate::Manager::listen_with).
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
    /// The networks whose connections begin with a PROXY header. `None` means that no connection
    /// begins with a header.
    trusted: Option<Vec<IpNet>>,
}

impl ListenOptions {
    /// Creates the default options: no connection begins with a PROXY header.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Expects a PROXY protocol header, version 1 or 2, on connections from the `trusted` networks.
    ///
    /// The header contains the client's address, which [`Conn::peer_addr`](crate::Conn::peer_addr)
    /// then returns. On a Unix socket, a header is expected on every connection, because the
    /// permissions of the path decide which processes may connect. On connections from other
    /// networks, no header is expected. Bytes that look like a header are then part of a request.
    ///
    /// The header is read first. Until it is complete, no hook except
    /// [`Handler::wrap`](crate::Handler::wrap) is called, and no request is delivered. The
    /// deadlines also apply while the header is read. The header is read through the socket that
    /// `wrap` returned. If a balancer sends the header before the TLS handshake, the TLS transport
    /// therefore has to read the header itself.
    ///
    /// A connection that ends before its header is complete is not reported to the handler, so
    /// health checks that only connect cause no callbacks. A connection that begins with other
    /// bytes is closed with [`CloseReason::BadHeader`](crate::CloseReason::BadHeader), and is not
    /// reported to the handler either.
    ///
    /// If the header contains no TCP address (`LOCAL`, `UNKNOWN`), the address of the socket is
    /// used. A header may be at most 2048 bytes long (107 in version 1) and must fit in
    /// [`buffer_size`](crate::Config::buffer_size). A checksum in the header is not verified.
    #[must_use]
    pub fn proxy_protocol(mut self, trusted: impl IntoIterator<Item = IpNet>) -> Self {
        self.trusted = Some(trusted.into_iter().collect());
        self
    }

    pub(crate) fn has_proxies(&self) -> bool {
        self.trusted.is_some()
    }

    /// Returns whether a connection from this address begins with a header.
    pub(crate) fn trusts(&self, peer: Option<IpAddr>) -> bool {
        let Some(trusted) = &self.trusted else { return false };
        peer.is_none_or(|peer| trusted.iter().any(|network| network.contains(peer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_without_an_address_are_trusted_if_headers_are_expected() {
        assert!(!ListenOptions::new().trusts(None));
        assert!(ListenOptions::new().proxy_protocol([]).trusts(None));
        assert!(!ListenOptions::new().proxy_protocol([]).trusts("1.2.3.4".parse().ok()));
    }
}
