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

use crate::backend::{Backend, Event};
use crate::id::Token;
use crate::links::{Links, List};
use crate::socket::Socket;
use crate::stats::Stats;
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
            return socket.discard();
        }
        if self.sockets.len() == MOST {
            if let Some(oldest) = self.oldest.front() {
                self.drop(backend, oldest);
            }
        }
        let key = self.sockets.vacant_key();
        if backend.register(&socket, Token::Lingerer(key).pack()).is_err() {
            return socket.discard();
        }
        // Registering reports what is there to read, so it need not be listed.
        let until = now.stamp.after(TIME);
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
            if self.sockets[key].until > now.tick {
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
        socket.discard();
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
    use crate::backend::Os;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    /// What discarding comes to, with how many bytes left to discard and how many reads.
    fn rest(socket: &mut Socket, bytes_left: usize) -> (Rest, usize, u64) {
        let (mut left, mut stats) = (bytes_left, Stats::default());
        let rest = discard(&mut Os::new(), socket, &mut left, &mut stats);
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

    #[test]
    fn a_peer_that_floods_is_read_sixteen_times_a_turn() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        while peer.write(&[7; 4096]).is_ok() {}
        let (rest, left, reads) = rest(&mut Socket::from(ours), BYTES);
        assert_eq!((rest, BYTES - left, reads), (Rest::Again, 16 * (8 << 10), 16));
    }
}
