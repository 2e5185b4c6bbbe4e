//! Backend: where sockets, readiness and time come from.
//!
//! Every impure act of the loop is a method here, so that the same loop runs over the operating
//! system ([`Os`]) and over anything else that keeps the same promises. It knows no workers.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

pub use crate::shared::mailbox::Wake;
use crate::socket::Socket;
use crate::time::millis;

/// What the loop needs from the world.
///
/// Readiness is edge-triggered: it is reported when it arises and, once reported, not again
/// until it has gone and come back. A socket is registered once, for reading, writing and
/// priority alike, and reports what it is ready for at that moment.
///
/// Implemented by [`Os`] and by the simulated network; the trait may gain methods in any release.
pub trait Backend {
    /// A listening socket.
    type Listener;

    /// Opens what waiting needs, and returns what interrupts a wait from other threads.
    ///
    /// # Errors
    /// Out of descriptors; nothing stays open then.
    fn start(&mut self) -> io::Result<Wake>;

    /// Closes what [`Backend::start`] opened.
    fn stop(&mut self);

    /// The time since an arbitrary fixed moment; never goes back.
    fn now(&mut self) -> Duration;

    /// The whole milliseconds of [`Backend::now`], and whether a part of one more has passed. Asked
    /// twice a turn: a world may know a shorter way.
    fn millis(&mut self) -> (u64, bool) {
        millis(self.now())
    }

    /// Waits until something is ready, `timeout` has passed (rounded up; `None`: for ever) or a
    /// wake came, and keeps the events for [`Backend::events`]. Says whether there are any, a
    /// wake being one.
    ///
    /// # Errors
    /// `Interrupted` by a signal, or what makes waiting impossible.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool>;

    /// Hands out the events of the last wait.
    fn events(&mut self, each: impl FnMut(Event));

    /// Begins to report the readiness of `socket` under `token`.
    ///
    /// # Errors
    /// It cannot be waited for, or the kernel has no room for it.
    fn register(&mut self, socket: &Socket, token: u64) -> io::Result<()>;

    /// Reports nothing more of `socket`, even if its open file lives on elsewhere.
    fn deregister(&mut self, socket: &Socket);

    /// Begins to listen: readiness under `token` means that there is something to accept.
    ///
    /// # Errors
    /// As [`Backend::register`].
    fn listen(&mut self, bound: ListenSocket, token: u64) -> io::Result<Self::Listener>;

    /// Stops listening and closes.
    fn close_listener(&mut self, listener: Self::Listener);

    /// Reports nothing more of `listener`, and gives it back with who waits in its queue. The
    /// default closes it, for worlds whose listeners cannot be handed on.
    fn release_listener(&mut self, listener: Self::Listener) -> Option<ListenSocket> {
        self.close_listener(listener);
        None
    }

    /// Takes one connection from a listener's queue, non-blocking, with its peer's IP address if it
    /// has one.
    ///
    /// # Errors
    /// `WouldBlock` if the queue is empty, or what `accept(2)` says.
    fn accept(&mut self, listener: &mut Self::Listener) -> io::Result<(Socket, Option<IpAddr>)>;

    /// Begins a connection, non-blocking, and does not wait for it: an event says that it is there
    /// or has failed. The default is for worlds that have no such.
    ///
    /// # Errors
    /// What `socket(2)` says, and `connect(2)` at once.
    fn connect(&mut self, addr: SocketAddr) -> io::Result<Socket> {
        Err(io::Error::new(io::ErrorKind::Unsupported, format!("nobody can be reached at {addr}")))
    }

    /// Whether a connection that was begun is there; not yet, if it has not failed.
    ///
    /// # Errors
    /// Why it has failed.
    fn is_connected(&mut self, socket: &Socket) -> io::Result<bool> {
        let _ = socket;
        Ok(true)
    }

    /// Reads what there is, at most `into`.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing, or what `read(2)` says.
    fn read(&mut self, socket: &mut Socket, into: &mut [u8]) -> io::Result<usize> {
        socket.read(into)
    }

    /// Writes as much of `bytes` as there is room for.
    ///
    /// # Errors
    /// `WouldBlock` if there is none, or what `write(2)` says.
    fn write(&mut self, socket: &mut Socket, bytes: &[u8]) -> io::Result<usize> {
        socket.write(bytes)
    }

    /// Sends on what a transport has gathered; nothing for plain sockets.
    ///
    /// # Errors
    /// `WouldBlock` if it has to be called again, or what the transport says.
    fn flush(&mut self, socket: &mut Socket) -> io::Result<()> {
        socket.flush()
    }

    /// Says to the peer that nothing more will be written.
    ///
    /// # Errors
    /// What `shutdown(2)` says.
    fn shutdown_write(&mut self, socket: &mut Socket) -> io::Result<()> {
        socket.shutdown_write()
    }

    /// Whether a read that got less than it had room for has certainly taken all there was, so
    /// that the next byte raises a new edge.
    fn short_read_is_drained(&self, socket: &Socket) -> bool;
}

/// A listening socket that no loop waits for: what [`Manager::listen_on`](crate::Manager::listen_on)
/// takes and [`Manager::take_listeners`](crate::Manager::take_listeners) gives back.
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
    /// The TCP address it is bound to.
    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            _ => None,
        }
    }

    /// The descriptor, to hand it on or to look at its options; a simulated listener has none.
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

/// One edge of readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What was registered.
    pub token: u64,
    /// There may be something to read or to accept.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
    /// A side is closed, or there is an error: reads must go on to the end to see it.
    pub closed: bool,
    /// There is urgent data, at which a read stops short.
    pub priority: bool,
}

impl Event {
    /// Whether a read may find something: bytes, an end or an error. Asked of each event, so
    /// without branches.
    pub(crate) fn invites_read(self) -> bool {
        self.readable | self.closed | self.priority
    }
}
