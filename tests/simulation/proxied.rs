//! Connections with a PROXY protocol header in the simulated network. The header may arrive in
//! pieces, be cut short or be invalid. The handler must see only connections with a complete
//! header.

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

const CLIENT: &str = "192.0.2.7:4711";
const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
const BINARY: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x12\x67\x01\xbb";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const REQUEST: &[u8] = b"one\ntwo\nthree\n";

/// The callbacks of the handler for one connection.
#[derive(Debug, Default)]
struct ConnLog {
    opened: u32,
    closed: u32,
    peer: Option<SocketAddr>,
    received: Vec<u8>,
}

#[derive(Clone, Default)]
struct Recorder(Rc<RefCell<BTreeMap<usize, ConnLog>>>);

impl Handler for Recorder {
    type Session = usize;

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<usize> {
        let Socket::Sim(stream) = conn.socket() else { panic!("not a simulated socket") };
        let number = stream.connection();
        let mut all = self.0.borrow_mut();
        let log = all.entry(number).or_default();
        log.opened += 1;
        log.peer = conn.peer_addr();
        Ok(number)
    }

    fn request(&mut self, _: &mut Conn<'_>, number: &mut usize, line: &[u8]) -> io::Result<()> {
        let mut all = self.0.borrow_mut();
        let log = all.entry(*number).or_default();
        assert_eq!((log.opened, log.closed), (1, 0));
        log.received.extend(line);
        log.received.push(b'\n');
        Ok(())
    }

    fn closed(&mut self, _: &Closed, number: Option<usize>, _: &mut Commands) {
        let number = number.expect("`opened` does not fail");
        self.0.borrow_mut().entry(number).or_default().closed += 1;
    }
}

/// The content of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    Client(SocketAddr),
    Local,
    Invalid,
}

/// A peer that connects. `unsent` has the bytes that it has not written yet. They begin with a
/// header.
struct Peer {
    stream: Stream,
    number: usize,
    unsent: Vec<u8>,
    header: Header,
    undisturbed: bool,
}

impl Peer {
    fn new(stream: Stream, rng: &mut Rng) -> Self {
        let client = Header::Client(CLIENT.parse().unwrap());
        let (bytes, header) = match rng.below(8) {
            0..3 => (LINE, client),
            3..6 => (BINARY, client),
            6 => (LOCAL, Header::Local),
            _ => (&b"PROXY TCP9 "[..], Header::Invalid),
        };
        let number = stream.connection();
        let unsent = [bytes, REQUEST].concat();
        Self { stream, number, unsent, header, undisturbed: true }
    }

    /// Writes some more bytes. Sometimes discards the rest and ends early instead.
    fn write_some(&mut self, rng: &mut Rng) {
        if rng.permille(5) {
            self.unsent.clear();
            self.undisturbed = false;
        }
        let count = (1 + rng.below(40)).min(self.unsent.len());
        match self.stream.write(&self.unsent[..count]) {
            Ok(written) => drop(self.unsent.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.unsent.clear();
                self.undisturbed = false;
            }
        }
        if self.unsent.is_empty() {
            let _ = self.stream.shutdown_write();
        }
    }
}

/// Returns two numbers. The first is the number of connections that were served completely. The
/// second is 0 if the run did not reach the memory limit. If it did, the second is the number of
/// connections without a complete header.
fn run(seed: u64) -> (u64, u64) {
    let mut faults = Faults::swarm(seed);
    (faults.failed_starts, faults.failed_waits) = (0, 0);
    let (sim, recorder, mut rng) =
        (Sim::with_faults(seed, faults), Recorder::default(), Rng::new(seed));
    // In every seventh seed the longest header does not fit into a buffer.
    let small_buffers = seed % 7 == 0;
    let config = Config::new().framing(Framing::Delimited(b'\n'));
    let config = config.buffer_size(if small_buffers { LINE.len() - 1 } else { 64 });
    // In every other seed the memory limit is the size of one to five buffers.
    let memory = (seed % 2 == 1).then_some((1 + seed / 2 % 5) as usize * 64);
    let config = config.clients_deadline(Duration::from_secs(1)).memory_limit(memory);
    let mut manager = Manager::with_backend(config, recorder.clone(), sim.clone()).unwrap();
    manager.start().unwrap();
    let listener = sim.listener();
    manager.listen_with(listener.clone(), ListenOptions::new().proxy_protocol([])).unwrap();
    let mut peers: Vec<Peer> = (0..12).map(|_| Peer::new(listener.connect(), &mut rng)).collect();
    for _ in 0..400 {
        for peer in peers.iter_mut().filter(|peer| !peer.unsent.is_empty()) {
            if rng.permille(300) {
                peer.write_some(&mut rng);
            }
        }
        manager.turn(Some(Duration::from_millis(2))).unwrap();
        let stats = manager.stats();
        assert_eq!(stats.put, stats.live + stats.closed_total(), "seed {seed}: {stats}");
        let known = recorder.0.borrow().values().filter(|log| log.opened > 0).count();
        assert_eq!(stats.proxied, known as u64, "seed {seed}: {stats}");
    }
    let memory_sufficed = manager.stats().closed(CloseReason::MemoryLimit) == 0;
    let harmless = sim.counters().broken == 0
        && sim.counters().jumped.is_zero()
        && memory_sufficed
        && !small_buffers;
    manager.stop().unwrap();
    assert_eq!(sim.violations(), [""; 0], "seed {seed}");
    let (all, mut served) = (recorder.0.borrow(), 0);
    let without_header = 12 - all.values().filter(|log| log.opened > 0).count();
    for peer in &mut peers {
        peer.undisturbed &= peer.unsent.is_empty();
        let Some(log) = all.get(&peer.number) else {
            let stats = manager.stats();
            let lost = stats.admit_failures + stats.accept_errors + stats.fd_exhausted > 0;
            assert!(
                peer.header == Header::Invalid || !harmless || !peer.undisturbed || lost,
                "seed {seed}: {stats}"
            );
            continue;
        };
        assert_eq!((log.opened, log.closed), (1, 1), "seed {seed}: {log:?}");
        let header = log.peer.map_or(Header::Local, Header::Client);
        assert_eq!(header, peer.header, "seed {seed}: {log:?}");
        // A deadline or the stop may have cut off the last line.
        let received = log.received.split_last().map_or(&[][..], |(_, received)| received);
        assert!(REQUEST.starts_with(received), "seed {seed}: {log:?}");
        let whole = log.received == REQUEST;
        assert!(whole || !harmless || !peer.undisturbed, "seed {seed}: {log:?}");
        served += u64::from(whole);
    }
    (served, if memory_sufficed { 0 } else { without_header as u64 })
}

#[test]
fn the_handler_sees_only_connections_with_a_complete_header() {
    let all = (0..600).map(run);
    let (served, out_of_memory) = all.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    assert!(served > 1_000, "only {served} connections were served completely");
    assert!(out_of_memory > 100, "only {out_of_memory} had no header at the memory limit");
}
