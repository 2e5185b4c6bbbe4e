//! Connections with a header, in the seeded network: it comes in pieces, breaks, is missing or is
//! none, and the handler knows of those alone whose header came.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use pool_manager::sim::{Faults, Rng, Sim, Stream};
use pool_manager::{
    CloseReason, Closed, Commands, Config, Conn, Framing, Handler, ListenOptions, Manager, Socket,
};

const BALANCED: &str = "192.0.2.7:4711";
const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
const BINARY: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x12\x67\x01\xbb";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const REQUEST: &[u8] = b"one\ntwo\nthree\n";

/// What the handler heard of one connection, by the number of the connection.
#[derive(Debug, Default)]
struct Heard {
    opened: u32,
    closed: u32,
    peer: Option<SocketAddr>,
    said: Vec<u8>,
}

#[derive(Clone, Default)]
struct Ear(Rc<RefCell<BTreeMap<usize, Heard>>>);

impl Handler for Ear {
    type Session = usize;

    fn opened(&mut self, conn: &mut Conn<'_>, number: &mut usize) -> io::Result<()> {
        if let Socket::Sim(stream) = conn.socket() {
            *number = stream.connection();
        }
        let mut all = self.0.borrow_mut();
        let heard = all.entry(*number).or_default();
        heard.opened += 1;
        heard.peer = conn.peer_addr();
        Ok(())
    }

    fn request(&mut self, _: &mut Conn<'_>, number: &mut usize, line: &[u8]) -> io::Result<()> {
        let mut all = self.0.borrow_mut();
        let heard = all.entry(*number).or_default();
        assert_eq!((heard.opened, heard.closed), (1, 0));
        heard.said.extend(line);
        heard.said.push(b'\n');
        Ok(())
    }

    fn closed(&mut self, _: &Closed, number: usize, _: &mut Commands) {
        self.0.borrow_mut().entry(number).or_default().closed += 1;
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Client(SocketAddr),
    Nobody,
    Nothing,
}

/// One who connects: what is left to say, and whether that begins with a header.
struct Peer {
    stream: Stream,
    number: usize,
    left: Vec<u8>,
    names: Names,
    calm: bool,
}

impl Peer {
    fn new(stream: Stream, rng: &mut Rng) -> Self {
        let balanced = Names::Client(BALANCED.parse().unwrap());
        let (header, names) = match rng.below(8) {
            0..3 => (LINE, balanced),
            3..6 => (BINARY, balanced),
            6 => (LOCAL, Names::Nobody),
            _ => (&b"PROXY TCP9 "[..], Names::Nothing),
        };
        let number = stream.connection();
        let left = [header, REQUEST].concat();
        Self { stream, number, left, names, calm: true }
    }

    /// Says some more; goes early, now and then.
    fn say(&mut self, rng: &mut Rng) {
        if rng.permille(5) {
            self.left.clear();
            self.calm = false;
        }
        let count = (1 + rng.below(40)).min(self.left.len());
        match self.stream.write(&self.left[..count]) {
            Ok(written) => drop(self.left.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.left.clear();
                self.calm = false;
            }
        }
        if self.left.is_empty() {
            let _ = self.stream.shutdown_write();
        }
    }
}

/// How many connections were served whole, and how many were unheard of where memory was used up.
fn play(seed: u64) -> (u64, u64) {
    let mut faults = Faults::swarm(seed);
    (faults.failed_starts, faults.failed_waits) = (0, 0);
    let (sim, ear, mut rng) = (Sim::with_faults(seed, faults), Ear::default(), Rng::new(seed));
    // Every seventh has buffers in which the longest header does not fit.
    let tight = seed % 7 == 0;
    let config = Config::new().framing(Framing::Delimited(b'\n'));
    let config = config.buffer_size(if tight { LINE.len() - 1 } else { 64 });
    // Every other seed has room for a few halves of what is said, and for no more.
    let memory = (seed % 2 * (1 + seed / 2 % 5) * 64) as usize;
    let config = config.clients_deadline(Duration::from_secs(1)).memory_limit(memory);
    let mut manager = Manager::with_backend(config, ear.clone(), sim.clone()).unwrap();
    manager.start().unwrap();
    let listener = sim.listener();
    manager.listen_with(listener.clone(), ListenOptions::new().proxy_protocol([])).unwrap();
    let mut peers: Vec<Peer> = (0..12).map(|_| Peer::new(listener.connect(), &mut rng)).collect();
    for _ in 0..400 {
        for peer in peers.iter_mut().filter(|peer| !peer.left.is_empty()) {
            if rng.permille(300) {
                peer.say(&mut rng);
            }
        }
        manager.turn(Some(Duration::from_millis(2))).unwrap();
        let stats = manager.stats();
        assert_eq!(stats.put, stats.live + stats.closed_total(), "seed {seed}: {stats}");
        let known = ear.0.borrow().values().filter(|heard| heard.opened > 0).count();
        assert_eq!(stats.proxied, known as u64, "seed {seed}: {stats}");
    }
    let ample = manager.stats().closed(CloseReason::MemoryLimit) == 0;
    let harmless = sim.counters().broken == 0 && sim.counters().jumped.is_zero() && ample && !tight;
    manager.stop().unwrap();
    assert_eq!(sim.violations(), [""; 0], "seed {seed}");
    let (all, mut served) = (ear.0.borrow(), 0);
    let unheard = 12 - all.values().filter(|heard| heard.opened > 0).count();
    for peer in &mut peers {
        peer.calm &= peer.left.is_empty();
        let Some(heard) = all.get(&peer.number) else {
            let stats = manager.stats();
            let lost = stats.admit_failures + stats.accept_errors + stats.fd_exhausted > 0;
            assert!(
                peer.names == Names::Nothing || !harmless || !peer.calm || lost,
                "seed {seed}: {stats}"
            );
            continue;
        };
        assert_eq!((heard.opened, heard.closed), (1, 1), "seed {seed}: {heard:?}");
        let names = heard.peer.map_or(Names::Nobody, Names::Client);
        assert_eq!(names, peer.names, "seed {seed}: {heard:?}");
        // The last line may have been cut short by a deadline or the stop.
        let said = heard.said.split_last().map_or(&[][..], |(_, said)| said);
        assert!(REQUEST.starts_with(said), "seed {seed}: {heard:?}");
        let whole = heard.said == REQUEST;
        assert!(whole || !harmless || !peer.calm, "seed {seed}: {heard:?}");
        served += u64::from(whole);
    }
    (served, if ample { 0 } else { unheard as u64 })
}

#[test]
fn the_handler_knows_of_those_alone_whose_header_came() {
    let all = (0..600).map(play);
    let (served, crowded_out) = all.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    assert!(served > 1_000, "{served} connections were served whole");
    assert!(crowded_out > 100, "{crowded_out} had no header where memory was used up");
}
