//! Socket: what can be put into the pool.
//!
//! TCP and Unix streams are dispatched statically; anything else that has a descriptor, such as
//! a TLS session, comes boxed behind [`Transport`]. This room knows neither readiness nor the
//! loop; `backend` does.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::panics::{catch, drop_catching};
#[cfg(feature = "sim")]
use crate::simnet::Stream;

/// A stream of bytes over a descriptor, other than plain TCP or Unix: TLS, a pty, a test double.
///
/// The loop registers the descriptor for edge-triggered readiness and treats any readiness of it
/// alike: it calls `flush`, then `read` until [`WouldBlock`](io::ErrorKind::WouldBlock), then
/// `write` and `flush`. So:
///
/// - `read`, `write` and `flush` must not block. The descriptor is made non-blocking by
///   [`Manager::put`](crate::Manager::put).
/// - `read` returns `WouldBlock` only when the descriptor did, and 0 only at end of stream.
/// - `flush` returns `WouldBlock` while bytes taken by `write` (or made by a handshake) are still
///   to go out; it is called again when the descriptor is ready.
///
/// A transport that panics or miscounts ends its own connection, as one whose socket failed.
///
/// ```
/// use pool_manager::{Socket, Transport};
/// use std::io::{self, Read, Write};
/// use std::os::fd::{AsFd, BorrowedFd};
/// use std::os::unix::net::UnixStream;
///
/// struct Shout(UnixStream);
///
/// impl Read for Shout {
///     fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
///         let count = self.0.read(into)?;
///         into[..count].make_ascii_uppercase();
///         Ok(count)
///     }
/// }
/// impl Write for Shout {
///     fn write(&mut self, bytes: &[u8]) -> io::Result<usize> { self.0.write(bytes) }
///     fn flush(&mut self) -> io::Result<()> { self.0.flush() }
/// }
/// impl AsFd for Shout {
///     fn as_fd(&self) -> BorrowedFd<'_> { self.0.as_fd() }
/// }
/// impl Transport for Shout {}
///
/// let (_peer, ours) = UnixStream::pair()?;
/// let socket = Socket::boxed(Shout(ours));
/// # Ok::<(), io::Error>(())
/// ```
pub trait Transport: Read + Write + AsFd + Send {
    /// Says to the peer that nothing more will be written; may be called twice. Called when the
    /// connection ends with everything sent, and not when it is cut off: so a peer that hears no
    /// goodbye knows that something is missing. The default shuts down the descriptor's sending
    /// side.
    ///
    /// # Errors
    /// What `shutdown(2)` says; the loop then closes without lingering.
    fn shutdown_write(&mut self) -> io::Result<()> {
        as_stream(self.as_fd())?.shutdown(Shutdown::Write)
    }

    /// The peer's address, if it has one. The default knows none.
    fn peer_addr(&self) -> Option<SocketAddr> {
        None
    }
}

/// A connected stream socket, as [`Manager::put`](crate::Manager::put) takes it.
///
/// ```
/// use pool_manager::Socket;
/// let (_peer, ours) = std::os::unix::net::UnixStream::pair()?;
/// let socket = Socket::from(ours);
/// assert_eq!(socket.peer_addr(), None);
/// # Ok::<(), std::io::Error>(())
/// ```
#[non_exhaustive]
pub enum Socket {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A Unix domain stream.
    Unix(UnixStream),
    /// Anything else with a descriptor.
    Boxed(Box<dyn Transport>),
    /// A simulated connection.
    #[cfg(feature = "sim")]
    Sim(Stream),
}

impl Socket {
    /// The peer's address: of TCP from `getpeername(2)`, one system call; of a Unix socket
    /// `None`. `None` also once the peer has reset the connection.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Unix(_) => None,
            Self::Boxed(transport) => transport.peer_addr(),
            #[cfg(feature = "sim")]
            Self::Sim(_) => None,
        }
    }

    /// Anything else with a descriptor.
    pub fn boxed(transport: impl Transport + 'static) -> Self {
        Self::Boxed(Box::new(transport))
    }

    /// The descriptor, to look at its options; a simulated connection has none.
    #[must_use]
    #[cfg_attr(not(feature = "sim"), allow(clippy::unnecessary_wraps))]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(stream) => Some(stream.as_fd()),
            Self::Unix(stream) => Some(stream.as_fd()),
            Self::Boxed(transport) => Some(transport.as_fd()),
            #[cfg(feature = "sim")]
            Self::Sim(_) => None,
        }
    }

    pub(crate) fn is_boxed(&self) -> bool {
        matches!(self, Self::Boxed(_))
    }

    /// Closes it. A transport may panic when it is dropped.
    pub(crate) fn close(self) {
        drop_catching(self);
    }

    /// `O_NONBLOCK` is a property of the open file, so setting it on a duplicate sets it on a
    /// boxed transport's descriptor too.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(true),
            Self::Unix(stream) => stream.set_nonblocking(true),
            Self::Boxed(transport) => as_stream(transport.as_fd())?.set_nonblocking(true),
            #[cfg(feature = "sim")]
            Self::Sim(_) => Ok(()),
        }
    }

    pub(crate) fn shutdown_write(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Boxed(transport) => {
                let done = catch(|| transport.shutdown_write().map(|()| 0));
                checked(done, 0).map(|_| ())
            }
            #[cfg(feature = "sim")]
            Self::Sim(stream) => stream.shutdown_write(),
        }
    }
}

/// A duplicate of any descriptor dressed as a stream, for the operations that std offers only
/// there and that act on the open file rather than on the descriptor.
pub(crate) fn as_stream(fd: BorrowedFd<'_>) -> io::Result<TcpStream> {
    Ok(TcpStream::from(fd.try_clone_to_owned()?))
}

/// What a transport answered, if it kept to its contract: a panic in it, or a count beyond what
/// it was given, is an error of this connection alone.
fn checked(answer: Option<io::Result<usize>>, max: usize) -> io::Result<usize> {
    match answer {
        Some(Ok(count)) if count > max => Err(io::Error::other("the transport miscounted")),
        Some(answer) => answer,
        None => Err(io::Error::other("the transport panicked")),
    }
}

impl Read for Socket {
    #[inline(always)]
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => stream.read(into),
            Self::Boxed(transport) => {
                let room = into.len();
                checked(catch(|| transport.read(into)), room)
            }
            #[cfg(feature = "sim")]
            Self::Sim(stream) => stream.read(into),
        }
    }
}

impl Write for Socket {
    #[inline(always)]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
            Self::Boxed(transport) => checked(catch(|| transport.write(bytes)), bytes.len()),
            #[cfg(feature = "sim")]
            Self::Sim(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Boxed(transport) => {
                let flushed = catch(|| transport.flush().map(|()| 0));
                checked(flushed, 0).map(|_| ())
            }
            _ => Ok(()),
        }
    }
}

/// Signals that one call may be interrupted by before it counts as failed.
const SIGNALS: u32 = 16;

/// Calls again while signals interrupt.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..SIGNALS {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
    call()
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

#[cfg(feature = "sim")]
impl From<Stream> for Socket {
    fn from(stream: Stream) -> Self {
        Self::Sim(stream)
    }
}

impl From<Box<dyn Transport>> for Socket {
    fn from(transport: Box<dyn Transport>) -> Self {
        Self::Boxed(transport)
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Tcp(_) => "Tcp",
            Self::Unix(_) => "Unix",
            Self::Boxed(_) => "Boxed",
            #[cfg(feature = "sim")]
            Self::Sim(_) => "Sim",
        };
        match self.fd() {
            Some(fd) => write!(f, "{kind}(fd {})", fd.as_raw_fd()),
            None => f.write_str(kind),
        }
    }
}
