//! Stream: a non-blocking TCP or Unix socket.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::Target;
use super::sources::Sources;

#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Begins to connect. If the connection fails later, the next read or write returns the error.
    ///
    /// # Errors
    /// Returns `WouldBlock` if the backlog of a Unix listener is full, and `AddrInUse` if all ports
    /// that were tried are in `TIME_WAIT`. In both cases the caller may retry later.
    pub(super) fn connect(target: &Target, sources: &mut Sources) -> io::Result<Self> {
        match target {
            Target::Tcp(addr) => tcp(*addr, sources).map(Self::Tcp),
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

fn tcp(addr: SocketAddr, sources: &mut Sources) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    bind(&socket, addr, sources)?;
    match socket.connect(&addr.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

fn bind(socket: &Socket, addr: SocketAddr, sources: &mut Sources) -> io::Result<()> {
    let mut bound = Ok(());
    for source in sources.next(addr) {
        // Without SO_REUSEADDR, `bind` refuses a source that is in TIME_WAIT.
        bound = socket.bind(&source.into());
        match &bound {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            _ => break,
        }
    }
    bound
}
