//! Trust: how a listener takes what it accepts, and whom it believes who their clients are.
//!
//! Values alone: it knows neither listeners nor connections.

use std::net::IpAddr;

use crate::ip_net::IpNet;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_address_is_trusted_where_anybody_is() {
        assert!(!ListenOptions::new().trusts(None));
        assert!(ListenOptions::new().proxy_protocol([]).trusts(None));
        assert!(!ListenOptions::new().proxy_protocol([]).trusts("1.2.3.4".parse().ok()));
    }
}
