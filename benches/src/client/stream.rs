//! Stream: a non-blocking TCP or Unix socket, and how it is made.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::Target;

/// How many loopback addresses connections come from. Who closes first keeps the pair of addresses
/// for a minute (`TIME_WAIT`), and one address has only about 28,000 ports: a churning client with
/// one address runs out of them within seconds.
const SOURCES: usize = 250;

#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Begins to connect; what comes of it shows when the stream is used. `turn` picks the loopback
    /// address it comes from.
    ///
    /// # Errors
    /// `WouldBlock` when a Unix listener's backlog is full: try again later.
    pub(super) fn connect(target: &Target, turn: usize) -> io::Result<Self> {
        match target {
            Target::Tcp(addr) => tcp(*addr, turn).map(Self::Tcp),
            Target::Unix(path) => UnixStream::connect(path).map(Self::Unix),
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        match self {
            Self::Tcp(stream) => stream.register(registry, token, both),
            Self::Unix(stream) => stream.register(registry, token, both),
        }
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => stream.read(into),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

fn tcp(addr: SocketAddr, turn: usize) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source(addr, turn) {
        // Without SO_REUSEADDR the system avoids ports that still rest.
        socket.bind(&source.into())?;
    }
    match socket.connect(&addr.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

/// One of many loopback addresses; other systems than Linux have only one.
fn source(addr: SocketAddr, turn: usize) -> Option<SocketAddr> {
    let loopback = addr.is_ipv4() && addr.ip().is_loopback() && cfg!(target_os = "linux");
    let last = 1 + (turn % SOURCES) as u8;
    loopback.then(|| SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)))
}
