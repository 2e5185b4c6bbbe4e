//! Lingering sockets. After a connection has closed, its socket is still read for a while, so that
//! the last reply arrives at the peer.
//!
//! TCP sends a reset if a socket is closed with unread input, or if input arrives after the close.
//! The reset may destroy data that the peer has not read yet. A socket therefore lingers before it
//! is closed: its sending side is shut down, and its input is read and discarded. nginx does the
//! same (RFC 9112, section 9.6). There are three limits: the number of bytes discarded per socket,
//! the time that a socket lingers, and the number of lingering sockets. A lingering socket has no
//! worker any more.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::Duration;

use slab::Slab;

use crate::ds::index_list::{Links, List};
use crate::id::Token;
use crate::socket::Socket;
use crate::stats::Stats;
use crate::sys::{Backend, Event};
use crate::time::{Now, Tick};

/// Maximum time that a socket lingers.
pub(crate) const TIME: Duration = Duration::from_secs(5);
/// Maximum number of bytes that are discarded per socket. It equals the maximum of `buffer_size`.
const BYTES: usize = 16 << 20;
/// Maximum number of lingering sockets. The number is limited because each lingering socket uses a
/// descriptor. If one more socket is added, the socket that has lingered longest is closed.
const MAX_LINGERING: usize = 256;
/// Maximum number of reads per socket and turn.
const READS: u32 = 16;

#[derive(Debug)]
struct Lingerer {
    socket: Socket,
    until: Tick,
    bytes_left: usize,
    queued: bool,
}

#[derive(Debug)]
pub(crate) struct Lingering {
    sockets: Slab<Lingerer>,
    /// The sockets that may have more to read. The kernel may report no further event for them.
    ready: VecDeque<usize>,
    /// The links of `oldest`, the list of all sockets. The socket that has lingered longest is at
    /// the front of the list.
    links: Links,
    oldest: List,
}

/// The result of reading and discarding.
#[derive(Debug, PartialEq, Eq)]
enum Rest {
    /// The peer has closed, the connection is broken, or the byte limit is reached.
    Over,
    /// There is nothing more to read for now.
    Wait,
    /// There may be more to read.
    Again,
}

impl Lingering {
    pub(crate) fn new() -> Self {
        Self {
            sockets: Slab::new(),
            ready: VecDeque::new(),
            links: Links::default(),
            oldest: List::EMPTY,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Returns whether a socket may have more to read.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Returns the tick at which the socket that has lingered longest must be closed, or `NEVER` if
    /// no socket lingers.
    pub(crate) fn next_due(&self) -> Tick {
        self.oldest.front().map_or(Tick::NEVER, |key| self.sockets[key].until)
    }

    /// Shuts down the sending side of an unregistered socket. The socket then lingers until the
    /// peer closes the connection or a limit is reached.
    pub(crate) fn add<B: Backend>(
        &mut self,
        backend: &mut B,
        mut socket: Socket,
        stats: &mut Stats,
        now: Now,
    ) {
        let mut bytes_left = BYTES;
        let over = backend.shutdown_write(&mut socket).is_err()
            || discard(backend, &mut socket, &mut bytes_left, stats) == Rest::Over;
        if over {
            return socket.close();
        }
        if self.sockets.len() == MAX_LINGERING {
            if let Some(oldest) = self.oldest.front() {
                self.drop(backend, oldest);
            }
        }
        let key = self.sockets.vacant_key();
        if backend.register(&socket, Token::Lingerer(key).pack()).is_err() {
            return socket.close();
        }
        // Registering reports input that has already arrived, so the socket is not added to `ready`
        // here.
        let until = now.ceil.after(TIME);
        self.sockets.insert(Lingerer { socket, until, bytes_left, queued: false });
        self.links.push_back(&mut self.oldest, key);
    }

    /// Notes a readiness edge. Returns false if the socket no longer exists.
    pub(crate) fn mark_ready(&mut self, key: usize, event: Event) -> bool {
        let Some(lingerer) = self.sockets.get_mut(key) else { return false };
        let readable = event.readable || event.closed || lingerer.socket.is_boxed();
        if readable && !std::mem::replace(&mut lingerer.queued, true) {
            self.ready.push_back(key);
        }
        true
    }

    /// Reads and discards input. Closes each socket whose peer has closed the connection. Also
    /// closes each socket that has reached the byte limit or the time limit.
    #[inline(never)]
    pub(crate) fn serve<B: Backend>(&mut self, backend: &mut B, stats: &mut Stats, now: Now) {
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else { break };
            let Some(lingerer) = self.sockets.get_mut(key) else { continue };
            lingerer.queued = false;
            let Lingerer { socket, bytes_left, .. } = lingerer;
            match discard(backend, socket, bytes_left, stats) {
                Rest::Over => self.drop(backend, key),
                Rest::Wait => {}
                Rest::Again => {
                    lingerer.queued = true;
                    self.ready.push_back(key);
                }
            }
        }
        while let Some(key) = self.oldest.front() {
            if self.sockets[key].until > now.floor {
                break;
            }
            self.drop(backend, key);
        }
    }

    /// Closes all sockets.
    pub(crate) fn clear<B: Backend>(&mut self, backend: &mut B) {
        while let Some(key) = self.oldest.front() {
            self.drop(backend, key);
        }
        self.ready.clear();
    }

    fn drop<B: Backend>(&mut self, backend: &mut B, key: usize) {
        self.links.remove(&mut self.oldest, key);
        let Lingerer { socket, .. } = self.sockets.remove(key);
        backend.deregister(&socket);
        socket.close();
    }
}

fn discard<B: Backend>(
    backend: &mut B,
    socket: &mut Socket,
    bytes_left: &mut usize,
    stats: &mut Stats,
) -> Rest {
    let mut waste = [0; 8 << 10];
    // Send what a transport could not send before, such as the end of its session.
    let _ = backend.flush(socket);
    for _ in 0..READS {
        stats.reads += 1;
        match backend.read(socket, &mut waste) {
            Ok(0) => return Rest::Over,
            Ok(count) if count >= *bytes_left => return Rest::Over,
            Ok(count) => *bytes_left -= count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Rest::Wait,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Rest::Over,
        }
    }
    Rest::Again
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::Transport;
    use crate::sys::Os;
    use std::io::{self, Read, Write};
    use std::net::TcpStream;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;

    /// Returns the result of discarding, the bytes that may still be discarded, and the number of
    /// reads.
    fn rest(socket: &mut Socket, bytes_left: usize) -> (Rest, usize, u64) {
        let (mut left, mut stats) = (bytes_left, Stats::default());
        let rest = discard(&mut Os::new().unwrap(), socket, &mut left, &mut stats);
        (rest, left, stats.reads)
    }

    #[test]
    fn discarding_stops_at_the_byte_limit() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut ours = Socket::from(ours);
        assert_eq!(rest(&mut ours, 1), (Rest::Wait, 1, 1));
        peer.write_all(b"12345").unwrap();
        assert_eq!(rest(&mut ours, 6), (Rest::Wait, 1, 2));
        peer.write_all(b"12345").unwrap();
        assert_eq!(rest(&mut ours, 5), (Rest::Over, 5, 1));
        peer.write_all(b"12345").unwrap();
        drop(peer);
        assert_eq!(rest(&mut ours, 6), (Rest::Over, 1, 2));
    }

    /// A transport whose reads always return input, or always fail.
    struct Flood(UnixStream, Option<ErrorKind>);

    impl Read for Flood {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.1.map_or(Ok(into.len()), |kind| Err(kind.into()))
        }
    }

    impl Write for Flood {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Flood {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Transport for Flood {}

    fn now(millis: u64) -> Now {
        Now::new((millis, false))
    }

    fn readable() -> Event {
        Event {
            token: 0,
            readable: true,
            writable: false,
            closed: false,
            hung_up: false,
            priority: false,
        }
    }

    #[test]
    fn a_flooding_peer_is_read_16_times_a_turn_and_16_mib_in_all() {
        let (mut os, mut lingering, mut stats) =
            (Os::new().unwrap(), Lingering::new(), Stats::default());
        let (_peer, ours) = UnixStream::pair().unwrap();
        lingering.add(&mut os, Socket::boxed(Flood(ours, None)), &mut stats, now(0));
        assert_eq!((lingering.len(), stats.reads), (1, 16));
        assert!(!lingering.has_work(), "its first event has not arrived");
        assert!(lingering.mark_ready(0, readable()) && lingering.mark_ready(0, readable()));
        for turn in 1..=127 {
            assert!(lingering.has_work(), "reading must go on in turn {turn} without an event");
            lingering.serve(&mut os, &mut stats, now(0));
            assert_eq!(stats.reads, 16 * (turn + 1));
        }
        assert_eq!((lingering.len(), lingering.has_work()), (0, false));
        assert!(!lingering.mark_ready(0, readable()), "the socket no longer exists");
    }

    #[test]
    fn an_interrupted_read_is_repeated_and_a_failed_one_is_the_last() {
        for (kind, expected) in [
            (ErrorKind::Interrupted, (Rest::Again, 9, 16)),
            (ErrorKind::ConnectionReset, (Rest::Over, 9, 1)),
        ] {
            let ours = UnixStream::pair().unwrap().0;
            assert_eq!(rest(&mut Socket::boxed(Flood(ours, Some(kind))), 9), expected);
        }
    }

    #[test]
    fn a_closed_event_and_any_event_of_a_transport_cause_a_read() {
        let (mut os, mut lingering, mut stats) =
            (Os::new().unwrap(), Lingering::new(), Stats::default());
        let ends = [(); 2].map(|()| UnixStream::pair().unwrap());
        let [(_peer, plain), (_other, boxed)] = ends;
        plain.set_nonblocking(true).unwrap();
        for socket in [Socket::from(plain), Socket::boxed(Flood(boxed, None))] {
            lingering.add(&mut os, socket, &mut stats, now(0));
        }
        let writable = Event { readable: false, writable: true, ..readable() };
        lingering.mark_ready(0, writable);
        assert!(!lingering.has_work());
        for (key, event) in [(0, Event { closed: true, ..writable }), (1, writable)] {
            lingering.mark_ready(key, event);
            assert_eq!(lingering.ready.pop_front(), Some(key));
        }
    }

    #[test]
    fn a_socket_whose_peer_is_gone_does_not_linger() {
        let (mut os, mut lingering, mut stats) =
            (Os::new().unwrap(), Lingering::new(), Stats::default());
        let (peer, ours) = UnixStream::pair().unwrap();
        drop(peer);
        lingering.add(&mut os, Socket::from(ours), &mut stats, now(0));
        assert_eq!((lingering.len(), stats.reads), (0, 1));
        let unconnected = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let unconnected = TcpStream::from(unconnected.unwrap());
        lingering.add(&mut os, Socket::from(unconnected), &mut stats, now(0));
        assert_eq!((lingering.len(), stats.reads), (0, 1), "nothing is read if the shutdown fails");
    }

    #[test]
    fn an_expired_socket_is_not_read_again() {
        let (mut os, mut lingering, mut stats) =
            (Os::new().unwrap(), Lingering::new(), Stats::default());
        let (_peer, ours) = UnixStream::pair().unwrap();
        lingering.add(&mut os, Socket::boxed(Flood(ours, None)), &mut stats, now(0));
        lingering.mark_ready(0, readable());
        for _ in 0..2 {
            lingering.serve(&mut os, &mut stats, now(5_000));
            assert_eq!((lingering.len(), stats.reads), (0, 32));
        }
        assert!(!lingering.has_work());
    }

    #[test]
    fn each_socket_closes_at_its_deadline_and_not_before() {
        let (mut os, mut lingering, mut stats) =
            (Os::new().unwrap(), Lingering::new(), Stats::default());
        let peers = [0, 10].map(|at| {
            let (peer, ours) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            lingering.add(&mut os, Socket::from(ours), &mut stats, now(at));
            peer
        });
        for (at, left, next) in
            [(4_999, 2, Tick(5_000)), (5_000, 1, Tick(5_010)), (5_010, 0, Tick::NEVER)]
        {
            lingering.serve(&mut os, &mut stats, now(at));
            assert_eq!((lingering.len(), lingering.next_due()), (left, next), "at {at} ms");
        }
        drop(peers);
    }
}
