//! Sockets that can be put into the pool.
//!
//! TCP and Unix streams are dispatched statically. Any other stream with a descriptor, such as a
//! TLS session, is boxed behind [`Transport`]. Readiness is handled in `sys`.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::panics::{catch, drop_catching};
#[cfg(feature = "sim")]
use crate::simnet::Stream;

/// A byte stream that has a descriptor but is not a plain TCP or Unix stream, such as a TLS session
/// or a pty.
///
/// The loop registers the descriptor for edge-triggered readiness. After each readable or writable
/// event, the loop calls `flush`, then `read` until [`WouldBlock`](io::ErrorKind::WouldBlock), then
/// `write` and `flush`. A transport must follow these rules:
///
/// - `read`, `write` and `flush` must not block. [`Manager::put`](crate::Manager::put) makes the
///   descriptor non-blocking.
/// - `read` returns `WouldBlock` only if the descriptor returned `WouldBlock`. `read` returns 0
///   only at the end of the stream.
/// - `flush` returns `WouldBlock` while bytes from `write` or from a handshake are still unsent.
///   `flush` is called again when the descriptor is ready.
///
/// If a method panics, or returns a count larger than the slice that it was given, only this
/// connection is closed, as after a socket error.
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
    /// Tells the peer that nothing more will be written. The default shuts down the sending side of
    /// the descriptor.
    ///
    /// It is called when all output was sent, and the connection ends or was
    /// [finished](crate::Conn::finish). After a call of `finish`, reads continue. The method is not
    /// called when the connection is aborted. A peer that sees the end of the stream without this
    /// signal therefore knows that data may be missing. The method may be called twice.
    ///
    /// # Errors
    /// The error of `shutdown(2)`. The loop then closes the connection at once. If a finished
    /// connection is not at its end yet, `WouldBlock` makes the loop call the method again later.
    fn shutdown_write(&mut self) -> io::Result<()> {
        as_stream(self.as_fd())?.shutdown(Shutdown::Write)
    }

    /// Returns the peer's address, if it has one. The default returns `None`.
    fn peer_addr(&self) -> Option<SocketAddr> {
        None
    }
}

/// A connected stream socket, for [`Manager::put`](crate::Manager::put).
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
    /// A TCP stream.
    Tcp(TcpStream),
    /// A Unix domain stream.
    Unix(UnixStream),
    /// Any other stream with a descriptor.
    Boxed(Box<dyn Transport>),
    /// A simulated stream.
    #[cfg(feature = "sim")]
    Sim(Stream),
}

impl Socket {
    /// Returns the peer's address. For TCP, the address is read from the kernel with one system
    /// call (`getpeername(2)`). Returns `None` for a Unix socket, and after the peer has reset the
    /// connection.
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

    /// Boxes a transport into a socket.
    pub fn boxed(transport: impl Transport + 'static) -> Self {
        Self::Boxed(Box::new(transport))
    }

    /// Returns the descriptor, for example to read socket options. A simulated stream has none.
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

    /// Closes the socket. If dropping a transport panics, the panic is caught.
    pub(crate) fn close(self) {
        drop_catching(self);
    }

    /// Makes the socket non-blocking. For a transport, `O_NONBLOCK` is set on a duplicate of the
    /// descriptor. This affects the original too, because the flag belongs to the open file
    /// description.
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

/// Duplicates a descriptor of any type and returns the duplicate as a `TcpStream`. It is used for
/// operations that the standard library offers only on streams. These operations act on the open
/// file description, so they affect the original descriptor too.
pub(crate) fn as_stream(fd: BorrowedFd<'_>) -> io::Result<TcpStream> {
    Ok(TcpStream::from(fd.try_clone_to_owned()?))
}

/// Returns the result of a transport's method. A panic, or a count above `max`, becomes an error of
/// this connection.
fn checked(answer: Option<io::Result<usize>>, max: usize) -> io::Result<usize> {
    match answer {
        Some(Ok(count)) if count > max => Err(io::Error::other("the transport's count is wrong")),
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

/// Maximum number of times that a call is repeated because a signal interrupted it.
const SIGNALS: u32 = 16;

/// Calls `call`. If a signal interrupts the call, it is repeated, at most [`SIGNALS`] times.
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
