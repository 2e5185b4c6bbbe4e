//! Lingering: closed connections that are read a moment longer, so that their last reply arrives.
//!
//! TCP answers input that comes to a closed socket, or is unread when it closes, with a reset,
//! and a reset destroys what the peer has not read yet. So the sending side is shut down and
//! what still comes is discarded, bounded in bytes, in time and in how many may linger
//! (as nginx does; RFC 9112, 9.6). A lingering socket has given its worker back; this room knows
//! nothing of workers.

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

/// How long it is read at most.
pub(crate) const TIME: Duration = Duration::from_secs(5);
/// As many as the largest buffer holds.
const BYTES: usize = 16 << 20;
/// Each costs a descriptor: the oldest goes when one more would linger.
const MOST: usize = 256;
/// Reads of one socket a turn.
const READS: u32 = 16;

#[derive(Debug)]
struct Lingerer {
    socket: Socket,
    until: Tick,
    bytes_left: usize,
    listed: bool,
}

#[derive(Debug)]
pub(crate) struct Lingering {
    sockets: Slab<Lingerer>,
    /// Those with more to read, whether or not the kernel says so again.
    ready: VecDeque<usize>,
    /// All of them, the one that has lingered longest in front.
    links: Links,
    oldest: List,
}

/// What reading and discarding came to.
#[derive(Debug, PartialEq, Eq)]
enum Rest {
    /// The peer has closed, or the connection is broken.
    Over,
    /// Nothing more for now.
    Wait,
    /// There is more.
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

    /// Whether some have more to read now.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the one that has lingered longest has to go; `NEVER` if none lingers.
    pub(crate) fn next_due(&self) -> Tick {
        self.oldest.front().map_or(Tick::NEVER, |key| self.sockets[key].until)
    }

    /// Says goodbye on a socket that is not registered, and keeps it until the peer has, too.
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
        if self.sockets.len() == MOST {
            if let Some(oldest) = self.oldest.front() {
                self.drop(backend, oldest);
            }
        }
        let key = self.sockets.vacant_key();
        if backend.register(&socket, Token::Lingerer(key).pack()).is_err() {
            return socket.close();
        }
        // Registering reports what is there to read, so it need not be listed.
        let until = now.ceil.after(TIME);
        self.sockets.insert(Lingerer { socket, until, bytes_left, listed: false });
        self.links.push_back(&mut self.oldest, key);
    }

    /// Notes an edge of readiness. False if it is for one that is gone.
    pub(crate) fn mark_ready(&mut self, key: usize, event: Event) -> bool {
        let Some(lingerer) = self.sockets.get_mut(key) else { return false };
        let readable = event.readable || event.closed || lingerer.socket.is_boxed();
        if readable && !std::mem::replace(&mut lingerer.listed, true) {
            self.ready.push_back(key);
        }
        true
    }

    /// Reads and discards, and closes those whose peer has closed or whose time is up.
    #[inline(never)]
    pub(crate) fn serve<B: Backend>(&mut self, backend: &mut B, stats: &mut Stats, now: Now) {
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else { break };
            let Some(lingerer) = self.sockets.get_mut(key) else { continue };
            lingerer.listed = false;
            let Lingerer { socket, bytes_left, .. } = lingerer;
            match discard(backend, socket, bytes_left, stats) {
                Rest::Over => self.drop(backend, key),
                Rest::Wait => {}
                Rest::Again => {
                    lingerer.listed = true;
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

    /// Closes all of them.
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
    // What a transport could not send yet, such as its own goodbye.
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

    /// What discarding comes to, with how many bytes left to discard and how many reads.
    fn rest(socket: &mut Socket, bytes_left: usize) -> (Rest, usize, u64) {
        let (mut left, mut stats) = (bytes_left, Stats::default());
        let rest = discard(&mut Os::new().unwrap(), socket, &mut left, &mut stats);
        (rest, left, stats.reads)
    }

    #[test]
    fn it_discards_as_many_bytes_as_it_may_and_not_one_more() {
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

    /// A peer that sends without end, or reads from which fail.
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
        Event { token: 0, readable: true, writable: false, closed: false, priority: false }
    }

    #[test]
    fn a_peer_that_floods_is_read_a_share_a_turn_and_16_mib_in_all() {
        let (mut os, mut lingering, mut stats) =
            (Os::new().unwrap(), Lingering::new(), Stats::default());
        let (_peer, ours) = UnixStream::pair().unwrap();
        lingering.add(&mut os, Socket::boxed(Flood(ours, None)), &mut stats, now(0));
        assert_eq!((lingering.len(), stats.reads), (1, 16));
        assert!(!lingering.has_work(), "its first event is to come");
        assert!(lingering.mark_ready(0, readable()) && lingering.mark_ready(0, readable()));
        for turn in 1..=127 {
            assert!(lingering.has_work(), "though no further event came by turn {turn}");
            lingering.serve(&mut os, &mut stats, now(0));
            assert_eq!(stats.reads, 16 * (turn + 1));
        }
        assert_eq!((lingering.len(), lingering.has_work()), (0, false));
        assert!(!lingering.mark_ready(0, readable()), "it is gone");
    }

    #[test]
    fn an_interrupted_read_is_made_again_and_a_failed_one_is_the_last() {
        for (kind, expected) in [
            (ErrorKind::Interrupted, (Rest::Again, 9, 16)),
            (ErrorKind::ConnectionReset, (Rest::Over, 9, 1)),
        ] {
            let ours = UnixStream::pair().unwrap().0;
            assert_eq!(rest(&mut Socket::boxed(Flood(ours, Some(kind))), 9), expected);
        }
    }

    #[test]
    fn an_end_is_something_to_read_and_so_is_any_readiness_of_a_transport() {
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
    fn nobody_lingers_whose_peer_is_gone_or_cannot_be_told() {
        let (mut os, mut lingering, mut stats) =
            (Os::new().unwrap(), Lingering::new(), Stats::default());
        let (peer, ours) = UnixStream::pair().unwrap();
        drop(peer);
        lingering.add(&mut os, Socket::from(ours), &mut stats, now(0));
        assert_eq!((lingering.len(), stats.reads), (0, 1));
        let unconnected = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let unconnected = TcpStream::from(unconnected.unwrap());
        lingering.add(&mut os, Socket::from(unconnected), &mut stats, now(0));
        assert_eq!((lingering.len(), stats.reads), (0, 1), "nothing is read after no goodbye");
    }

    #[test]
    fn who_has_to_go_with_more_to_read_is_not_read_again() {
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
    fn each_goes_when_its_time_is_up_and_not_before() {
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
