//! The backend: the source of sockets, readiness and time.
//!
//! Everything that the loop needs from outside is a method of this trait. The same loop therefore
//! runs on the operating system ([`Os`](super::Os)) and on the simulated network.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

pub use crate::shared::mailbox::Wake;
use crate::socket::Socket;
use crate::time::millis;

/// The operations that the loop needs from outside.
///
/// Readiness is edge-triggered. It is reported when a socket becomes ready. It is not reported
/// again until the socket has stopped being ready and has become ready once more. A socket is
/// registered once, for reading, writing and priority together. If it is ready when it is
/// registered, this readiness is reported too.
///
/// The trait is implemented by [`Os`](super::Os) and by the simulated network. It may gain methods
/// in any release.
pub trait Backend {
    /// A listening socket.
    type Listener;

    /// Called when a manager starts. Returns a function that interrupts a wait from another thread.
    ///
    /// # Errors
    /// The error of the failed call. Nothing stays open.
    fn start(&mut self) -> io::Result<Wake>;

    /// Called when a manager has stopped, or could not be started. No socket is registered any
    /// more. Discards interrupts and events that were not handed out.
    fn stop(&mut self);

    /// Returns the time since an arbitrary fixed moment. It never goes back.
    fn now(&mut self) -> Duration;

    /// Returns the whole milliseconds of [`Backend::now`], and whether a part of the next
    /// millisecond has passed. This method is called once or twice per turn, so a backend may
    /// override it with a cheaper implementation.
    fn millis(&mut self) -> (u64, bool) {
        millis(self.now())
    }

    /// Waits until something is ready, `timeout` has passed, or another thread interrupts the wait.
    /// The timeout is rounded up; `None` means no timeout. The events are stored for
    /// [`Backend::events`]. Returns whether there are events. An interrupt by another thread counts
    /// as an event.
    ///
    /// # Errors
    /// `Interrupted` if a signal arrived, or the error that makes waiting impossible.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool>;

    /// Passes the events of the last wait to `each`.
    fn events(&mut self, each: impl FnMut(Event));

    /// Reports the readiness of `socket` under `token` from now on.
    ///
    /// # Errors
    /// The socket does not support waiting, or the kernel is out of memory.
    fn register(&mut self, socket: &Socket, token: u64) -> io::Result<()>;

    /// Stops reporting readiness of `socket`, even if other descriptors refer to the same open
    /// file.
    fn deregister(&mut self, socket: &Socket);

    /// Starts to report readiness of a listening socket under `token`. Readiness means that a
    /// connection can be accepted.
    ///
    /// # Errors
    /// As [`Backend::register`].
    fn listen(&mut self, bound: ListenSocket, token: u64) -> io::Result<Self::Listener>;

    /// Stops listening, and closes the listener.
    fn close_listener(&mut self, listener: Self::Listener);

    /// Stops reporting readiness of `listener`, and returns it with its backlog. The default
    /// implementation is for backends that cannot return a listener. It closes the listener and
    /// returns `None`.
    fn release_listener(&mut self, listener: Self::Listener) -> Option<ListenSocket> {
        self.close_listener(listener);
        None
    }

    /// Accepts one connection. Returns its socket, in non-blocking mode, and the IP address of the
    /// peer. The address is `None` if the peer has no IP address.
    ///
    /// # Errors
    /// `WouldBlock` if the backlog is empty, or the error of `accept(2)`.
    fn accept(&mut self, listener: &mut Self::Listener) -> io::Result<(Socket, Option<IpAddr>)>;

    /// Starts a non-blocking connection and does not wait for it. An event is reported when the
    /// connection is established or has failed. The default implementation is for backends without
    /// outgoing connections. It returns an error.
    ///
    /// # Errors
    /// The error of `socket(2)`, or of `connect(2)` if it fails at once.
    fn connect(&mut self, addr: SocketAddr) -> io::Result<Socket> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this backend can't connect to {addr}"),
        ))
    }

    /// Returns whether an outgoing connection is established. Returns false while it is in
    /// progress.
    ///
    /// # Errors
    /// The error with which the connection failed.
    fn is_connected(&mut self, socket: &Socket) -> io::Result<bool> {
        let _ = socket;
        Ok(true)
    }

    /// Reads bytes into `into`. Returns the number of bytes that were read.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing to read, or the error of `read(2)`.
    fn read(&mut self, socket: &mut Socket, into: &mut [u8]) -> io::Result<usize> {
        socket.read(into)
    }

    /// Writes as many of `bytes` as the socket takes. Returns the number of bytes that were
    /// written.
    ///
    /// # Errors
    /// `WouldBlock` if the socket is full, or the error of `write(2)`.
    fn write(&mut self, socket: &mut Socket, bytes: &[u8]) -> io::Result<usize> {
        socket.write(bytes)
    }

    /// Sends the bytes that a transport has buffered. Does nothing for plain sockets.
    ///
    /// # Errors
    /// `WouldBlock` if this method has to be called again, or the error of the transport.
    fn flush(&mut self, socket: &mut Socket) -> io::Result<()> {
        socket.flush()
    }

    /// Shuts down the sending side of the socket. The peer then reads an end of file.
    ///
    /// # Errors
    /// The error of `shutdown(2)`.
    fn shutdown_write(&mut self, socket: &mut Socket) -> io::Result<()> {
        socket.shutdown_write()
    }

    /// Returns whether a short read always means that the socket is drained, so that the next byte
    /// causes a new edge. A short read is a read that returned fewer bytes than the buffer had
    /// space for.
    fn short_read_is_drained(&self, socket: &Socket) -> bool;
}

/// A listening socket that is not registered with any manager.
/// [`Manager::listen_on`](crate::Manager::listen_on) takes it, and
/// [`Manager::take_listeners`](crate::Manager::take_listeners) returns it.
///
/// ```
/// use pool_manager::ListenSocket;
/// use std::os::fd::AsRawFd;
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let number = listener.as_raw_fd();
/// let bound = ListenSocket::from(listener);
/// assert_eq!(bound.fd().map(|fd| fd.as_raw_fd()), Some(number));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum ListenSocket {
    /// A TCP listener.
    Tcp(TcpListener),
    /// A Unix domain listener.
    Unix(UnixListener),
    /// A simulated listener.
    #[cfg(feature = "sim")]
    Sim(super::sim::Listener),
}

impl ListenSocket {
    /// Returns the TCP address that the listener is bound to.
    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            _ => None,
        }
    }

    /// Returns the descriptor, for example to pass it on or to read options. Returns `None` for a
    /// simulated listener.
    #[must_use]
    #[cfg_attr(not(feature = "sim"), allow(clippy::unnecessary_wraps))]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(listener) => Some(listener.as_fd()),
            Self::Unix(listener) => Some(listener.as_fd()),
            #[cfg(feature = "sim")]
            Self::Sim(_) => None,
        }
    }
}

impl From<TcpListener> for ListenSocket {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for ListenSocket {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// A readiness edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The token of the socket, as given to `register` or `listen`.
    pub token: u64,
    /// There may be bytes to read, or a connection to accept.
    pub readable: bool,
    /// There may be space to write.
    pub writable: bool,
    /// One side is closed, or there is an error. Reads must continue until they return the end of
    /// file or the error.
    pub closed: bool,
    /// The peer can neither send nor receive any more: both sides are closed, or there is an error.
    /// `closed` is set too.
    pub hung_up: bool,
    /// There is urgent data. It ends a read early, even if more bytes have arrived.
    pub priority: bool,
}

impl Event {
    /// Returns whether a read may return bytes, an end of file or an error. This function has no
    /// branches because it is called for every event.
    pub(crate) fn invites_read(self) -> bool {
        self.readable | self.closed | self.priority
    }
}
