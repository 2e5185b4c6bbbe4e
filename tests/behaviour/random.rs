//! Random traffic, pauses, half-closes and configurations, over sockets of every kind and with tiny
//! kernel buffers. In each case, the manager must echo exactly the stream that was sent.
//!
//! A case that fails prints its seed. `POOL_MANAGER_SEED=<seed> cargo test --test behaviour
//! random::` runs that case alone.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use pool_manager::{CloseReason, Config, Conn, ConnId, Frame, Framing, Socket};

use crate::support::plain::Plain;
use crate::support::rng::Rng;
use crate::support::{Rig, echo, pair, shrink_buffers, unix_pair};

const SEED: &str = "POOL_MANAGER_SEED";
const CASES: u64 = 30;
const STEPS: usize = 200;

/// Prints the command that repeats a case if the case panics.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat: {SEED}={} cargo test --test behaviour random::", self.0);
        }
    }
}

/// The client's end of a connection, with the bytes that it has sent and the bytes that were
/// echoed.
struct Peer {
    socket: TcpStream,
    id: ConnId,
    sent: Vec<u8>,
    got: Vec<u8>,
    closed: bool,
    ended: bool,
}

impl Peer {
    fn new<F>(rig: &mut Rig<F>, rng: &mut Rng, big: bool) -> Self
    where
        F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
    {
        let (kind, tiny) = (rng.below(3), rng.below(2) == 0);
        let (socket, ours) = if kind == 0 {
            let (client, ours) = pair();
            if tiny && !big {
                shrink_buffers(&client, &ours);
            }
            (client, Socket::from(ours))
        } else {
            let (client, ours) = unix_pair();
            if tiny {
                socket2::SockRef::from(&ours).set_send_buffer_size(1).unwrap();
            }
            let boxed = kind == 1;
            (client, if boxed { Socket::Boxed(Box::new(Plain(ours))) } else { ours.into() })
        };
        socket.set_nonblocking(true).unwrap();
        let id = rig.manager.put(ours).unwrap();
        Self { socket, id, sent: Vec::new(), got: Vec::new(), closed: false, ended: false }
    }

    fn write(&mut self, count: usize, seed: u64) {
        if self.closed {
            return;
        }
        let from = self.sent.len();
        let bytes: Vec<u8> = (from..from + count).map(|at| at as u8 ^ seed as u8).collect();
        if let Ok(count) = self.socket.write(&bytes) {
            self.sent.extend_from_slice(&bytes[..count]);
        }
    }

    /// Reads at most `max` bytes. Returns false if nothing has arrived.
    fn read(&mut self, max: usize) -> bool {
        let mut chunk = vec![0; max];
        match self.socket.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.got.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{}: {error}", self.id),
        }
        true
    }

    fn close_side(&mut self) {
        if !self.closed {
            self.socket.shutdown(Shutdown::Write).unwrap();
            self.closed = true;
        }
    }
}

fn framing(rng: &mut Rng) -> Framing {
    match rng.below(3) {
        0 => Framing::Drained,
        1 => Framing::Filled,
        _ => Framing::custom(|held| {
            let wanted = 1 + usize::from(held[0]) % 5;
            Frame::Complete(wanted.min(held.len()))
        }),
    }
}

fn case(seed: u64) {
    let _replay = Replay(seed);
    let mut rng = Rng::new(seed);
    let long = Duration::from_secs(600);
    let base = Config::new().clients_deadline(long).request_deadline(None);
    let size = [1, 7, 64, 5120][rng.below(4)];
    let big = size >= 64 && rng.below(3) == 0;
    let config = base.clone().write_limit(16 << 20).buffer_size(size).framing(framing(&mut rng));
    let mut rig = echo(config.clone());
    let handle = rig.manager.handle();
    let count = 1 + rng.below(4);
    let mut peers: Vec<Peer> = (0..count).map(|_| Peer::new(&mut rig, &mut rng, big)).collect();
    for _ in 0..STEPS {
        let peer = &mut peers[rng.below(count)];
        match rng.below(12) {
            0..=2 => peer.write(1 + rng.below(if big { 60_000 } else { 300 }), seed),
            3..=4 => {
                peer.read(1 + rng.below(70_000));
            }
            5 => handle.pause(peer.id).unwrap(),
            6 => handle.resume(peer.id).unwrap(),
            7 if rng.below(8) == 0 => peer.close_side(),
            8 if rng.below(4) == 0 => {
                let size = if big { 300 } else { [1, 3, 64, 300, 5120][rng.below(5)] };
                let config = config.clone().buffer_size(size).framing(framing(&mut rng));
                rig.manager.set_config(config).unwrap();
            }
            _ => {
                rig.turn();
            }
        }
    }
    // Without traffic the loop must not spin, even with held, unsent or paused data.
    rig.quiet();
    let turns = rig.turns_in(Duration::from_millis(3));
    assert!(turns < 5, "{turns} turns without traffic");
    for peer in &mut peers {
        handle.resume(peer.id).unwrap();
        peer.close_side();
    }
    rig.until(|_| {
        let mut any_read = true;
        while any_read {
            any_read = false;
            for peer in peers.iter_mut().filter(|peer| !peer.ended) {
                any_read |= peer.read(70_000);
            }
        }
        peers.iter().all(|peer| peer.ended)
    });
    for peer in &peers {
        assert!(peer.got == peer.sent, "{} of {} bytes", peer.got.len(), peer.sent.len());
    }
    rig.until(|rig| rig.manager.stats().live == 0);
    assert_eq!(rig.record.closed(), vec![CloseReason::Eof; count]);
    assert_eq!(rig.record.open_lives(), 0);
    let (stats, sent) = (rig.manager.stats(), peers.iter().map(|peer| peer.sent.len() as u64));
    assert_eq!((stats.bytes_dropped, stats.bytes_unsent), (0, 0));
    assert_eq!((stats.bytes_in, stats.bytes_in), (stats.bytes_out, sent.sum()));
}

#[test]
fn every_byte_is_echoed_under_random_traffic_and_nothing_spins() {
    if let Ok(seed) = std::env::var(SEED) {
        return case(seed.parse().expect("a number"));
    }
    (1..=CASES).for_each(case);
}
