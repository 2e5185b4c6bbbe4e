//! The operating system as a backend, through mio. No other module uses mio.
//!
//! It uses one epoll or kqueue instance, one waker, and the monotonic clock. Sockets are registered
//! by their descriptors. Data is transferred by plain `read` and `write` calls.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Waker};

use super::oneshot::{Direction, Oneshot};
use super::{Backend, Event, ListenSocket, Wake};
use crate::id::Token;
use crate::socket::{Socket, as_stream};
use crate::time::millis;

/// Maximum number of events that one wait returns.
const EVENTS: usize = 1024;

/// True if mio uses poll(2), so that a reported event disarms its direction.
const REARM: bool = cfg!(mio_unsupported_force_poll_poll);

/// The operating system as a [`Backend`].
pub struct Os {
    poll: Poll,
    waker: Arc<Waker>,
    /// Set before each wake. Cleared by a stop.
    woken: Arc<AtomicBool>,
    events: Events,
    epoch: Instant,
    millisecond: Millisecond,
    /// Used only if [`REARM`] is true.
    oneshot: Oneshot,
}

impl Os {
    /// Opens an epoll or kqueue instance and a waker. They stay open until this value is dropped.
    ///
    /// # Errors
    /// The process has no descriptors left, or the kernel is out of memory.
    pub fn new() -> io::Result<Self> {
        let epoch = clock();
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), mio_token(Token::Waker.pack()))?);
        Ok(Self {
            poll,
            waker,
            woken: Arc::new(AtomicBool::new(false)),
            events: Events::with_capacity(EVENTS),
            epoch,
            millisecond: Millisecond::of(epoch, epoch),
            oneshot: Oneshot::default(),
        })
    }

    /// Returns the descriptor that becomes readable when there are events for a turn.
    #[cfg(not(mio_unsupported_force_poll_poll))]
    pub(crate) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }

    fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// On systems where mio uses poll(2), arms a direction again if a call has returned
    /// `WouldBlock`.
    fn rearm<T>(&mut self, socket: &Socket, direction: Direction, outcome: &io::Result<T>) {
        let blocked = matches!(outcome, Err(error) if error.kind() == ErrorKind::WouldBlock);
        if !REARM || !blocked {
            return;
        }
        let Ok(fd) = raw(socket) else { return };
        let Some(armed) = self.oneshot.blocked(fd, direction) else { return };
        let wanted = match (armed.reading, armed.writing) {
            (true, true) => readable() | Interest::WRITABLE,
            (true, false) => readable(),
            (false, _) => Interest::WRITABLE,
        };
        // This call fails for a socket that has hung up. Such a socket reports no more events in
        // any case.
        let _ = SourceFd(&fd).reregister(self.registry(), mio_token(armed.token), wanted);
    }
}

impl Backend for Os {
    type Listener = Listener;

    fn start(&mut self) -> io::Result<Wake> {
        let (waker, woken) = (self.waker.clone(), self.woken.clone());
        Ok(Arc::new(move || {
            woken.store(true, Ordering::Relaxed);
            waker.wake()
        }))
    }

    /// If there may be a wake that no wait has reported, takes it. The wake would otherwise make
    /// the descriptor readable, and would end the first wait after the next start. No other event
    /// is possible, because no socket is registered.
    fn stop(&mut self) {
        if self.woken.swap(false, Ordering::Relaxed) {
            let _ = self.poll.poll(&mut Events::with_capacity(1), Some(Duration::ZERO));
        }
        self.events.clear();
    }

    fn now(&mut self) -> Duration {
        clock().saturating_duration_since(self.epoch)
    }

    /// Most readings are in the same millisecond as the reading before. These readings need no
    /// conversion.
    #[inline]
    fn millis(&mut self) -> (u64, bool) {
        let now = clock();
        if now >= self.millisecond.ends {
            self.millisecond = Millisecond::of(now, self.epoch);
        }
        // `true` is returned even at the exact start of a millisecond. A deadline may then be a
        // millisecond late, but never early.
        (self.millisecond.number, true)
    }

    #[inline]
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let outcome = self.poll.poll(&mut self.events, timeout);
        if outcome.is_err() {
            self.events.clear();
        }
        outcome.map(|()| !self.events.is_empty())
    }

    #[inline]
    fn events(&mut self, mut each: impl FnMut(Event)) {
        for event in &self.events {
            let hung_up = event.is_error() || event.is_write_closed();
            let event = Event {
                token: event.token().0 as u64,
                readable: event.is_readable(),
                writable: event.is_writable(),
                closed: hung_up || event.is_read_closed(),
                hung_up,
                priority: event.is_priority(),
            };
            if REARM {
                self.oneshot.reported(event.token, event.invites_read(), event.writable);
            }
            each(event);
        }
    }

    fn register(&mut self, socket: &Socket, token: u64) -> io::Result<()> {
        let fd = raw(socket)?;
        let everything = readable() | Interest::WRITABLE;
        SourceFd(&fd).register(self.registry(), mio_token(token), everything)?;
        if REARM {
            self.oneshot.insert(fd, token);
        }
        Ok(())
    }

    fn deregister(&mut self, socket: &Socket) {
        let Ok(fd) = raw(socket) else { return };
        if REARM {
            self.oneshot.remove(fd);
        }
        // This call fails if the kernel has already removed the socket.
        let _ = SourceFd(&fd).deregister(self.registry());
    }

    fn listen(&mut self, bound: ListenSocket, token: u64) -> io::Result<Listener> {
        let mut listener = Listener::new(bound)?;
        listener.source().register(self.registry(), mio_token(token), Interest::READABLE)?;
        Ok(listener)
    }

    fn close_listener(&mut self, listener: Listener) {
        drop(self.release_listener(listener));
    }

    fn release_listener(&mut self, mut listener: Listener) -> Option<ListenSocket> {
        let _ = listener.source().deregister(self.registry());
        Some(match listener.0 {
            Kind::Tcp(listener) => ListenSocket::Tcp(listener.into()),
            Kind::Unix(listener) => ListenSocket::Unix(listener.into()),
        })
    }

    /// mio's `accept` makes the connection non-blocking and close-on-exec in the same system call.
    fn accept(&mut self, listener: &mut Listener) -> io::Result<(Socket, Option<IpAddr>)> {
        Ok(match &listener.0 {
            Kind::Tcp(listener) => {
                let (stream, addr) = listener.accept()?;
                (TcpStream::from(OwnedFd::from(stream)).into(), Some(addr.ip()))
            }
            Kind::Unix(listener) => {
                (UnixStream::from(OwnedFd::from(listener.accept()?.0)).into(), None)
            }
        })
    }

    /// mio's `connect` creates the socket as non-blocking and close-on-exec.
    fn connect(&mut self, addr: SocketAddr) -> io::Result<Socket> {
        let stream = TcpStream::from(OwnedFd::from(mio::net::TcpStream::connect(addr)?));
        stream.set_nodelay(true)?;
        Ok(stream.into())
    }

    /// A failed connection has a socket error. An established connection has a peer address. A
    /// connection with neither of them is still in progress. The connect deadline limits the time
    /// for which this may last.
    fn is_connected(&mut self, socket: &Socket) -> io::Result<bool> {
        let Socket::Tcp(stream) = socket else { return Ok(true) };
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(stream.peer_addr().is_ok()),
        }
    }

    #[inline(always)]
    fn read(&mut self, socket: &mut Socket, into: &mut [u8]) -> io::Result<usize> {
        let outcome = socket.read(into);
        self.rearm(socket, Direction::Reading, &outcome);
        outcome
    }

    #[inline(always)]
    fn write(&mut self, socket: &mut Socket, bytes: &[u8]) -> io::Result<usize> {
        let outcome = socket.write(bytes);
        self.rearm(socket, Direction::Writing, &outcome);
        outcome
    }

    fn flush(&mut self, socket: &mut Socket) -> io::Result<()> {
        let outcome = socket.flush();
        self.rearm(socket, Direction::Writing, &outcome);
        outcome
    }

    /// Returns true only for TCP sockets on Linux. In all other cases, a short read may have
    /// another reason. A read of a Unix socket stops at passed descriptors. A transport may hold
    /// bytes in its own buffers. On systems other than Linux, a read stops at urgent data, and no
    /// event reports that data.
    #[inline]
    fn short_read_is_drained(&self, socket: &Socket) -> bool {
        let linux = cfg!(any(target_os = "linux", target_os = "android"));
        linux && !REARM && matches!(socket, Socket::Tcp(_))
    }
}

#[inline]
fn clock() -> Instant {
    Instant::now()
}

/// A whole millisecond since the epoch, and the moment at which it ends.
#[derive(Debug)]
struct Millisecond {
    number: u64,
    ends: Instant,
}

impl Millisecond {
    #[cold]
    #[inline(never)]
    fn of(now: Instant, epoch: Instant) -> Self {
        let (number, _) = millis(now.saturating_duration_since(epoch));
        Self { number, ends: epoch + Duration::from_millis(number + 1) }
    }
}

/// A listening socket of the operating system.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Takes over a listener, and makes it non-blocking. A TCP listener gets the option
    /// `TCP_NODELAY`, and accepted connections inherit this option. A reply is usually sent with
    /// one write. Without the option, the kernel might delay a reply to wait for more data.
    fn new(bound: ListenSocket) -> io::Result<Self> {
        Ok(Self(match bound {
            ListenSocket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                as_stream(listener.as_fd())?.set_nodelay(true)?;
                Kind::Tcp(TcpListener::from_std(listener))
            }
            ListenSocket::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Kind::Unix(UnixListener::from_std(listener))
            }
            #[cfg(feature = "sim")]
            ListenSocket::Sim(_) => return Err(ErrorKind::Unsupported.into()),
        }))
    }

    fn source(&mut self) -> &mut dyn Source {
        match &mut self.0 {
            Kind::Tcp(listener) => listener,
            Kind::Unix(listener) => listener,
        }
    }
}

impl fmt::Debug for Os {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Os").field("poll", &self.poll).finish_non_exhaustive()
    }
}

/// Returns the interest in readable events, and in priority events where the platform supports
/// them. Without priority events, no edge would report the bytes after urgent data.
fn readable() -> Interest {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return Interest::READABLE | Interest::PRIORITY;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    Interest::READABLE
}

fn raw(socket: &Socket) -> io::Result<RawFd> {
    socket.fd().map(|fd| fd.as_raw_fd()).ok_or_else(|| ErrorKind::Unsupported.into())
}

/// Converts a token without loss. `lib.rs` does not compile on targets where a pointer has fewer
/// than 64 bits.
fn mio_token(token: u64) -> mio::Token {
    mio::Token(token as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn millis_agrees_with_now() {
        let mut os = Os::new().unwrap();
        let (mut partial, mut last) = (0, 0);
        while last < 20 {
            let before = millis(os.now()).0;
            let (number, more) = os.millis();
            last = millis(os.now()).0;
            assert!((before..=last).contains(&number), "{number} of {before} to {last}");
            partial += u64::from(more);
        }
        assert!(partial > 0, "a part of one more millisecond was never reported");
    }
}
