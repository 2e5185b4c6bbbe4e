//! Single cases in the simulated network, each with an exact result.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

use pool_manager::sim::{Sim, Stream};
use pool_manager::{
    CloseReason, Closed, Commands, Config, Conn, Framing, Handler, ListenOptions, Manager, Overload,
};

type Ignore = fn(&mut Conn<'_>, &[u8]) -> io::Result<()>;

fn simulated(sim: &Sim, config: Config) -> Manager<Ignore, Sim> {
    let ignore: Ignore = |_, _| Ok(());
    Manager::with_backend(config, ignore, sim.clone()).unwrap()
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn a_late_start_calls_no_tick_early() {
    let sim = Sim::new(1);
    let mut manager = simulated(&sim, Config::new().tick(millis(50)));
    sim.advance(millis(1_000));
    manager.start().unwrap();
    manager.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(manager.stats().ticks, 0);
}

#[test]
fn next_timeout_reads_the_clock() {
    let sim = Sim::new(1);
    let mut manager = simulated(&sim, Config::new().tick(millis(100)));
    manager.start().unwrap();
    manager.turn(Some(Duration::ZERO)).unwrap();
    sim.advance(millis(60));
    assert!(manager.next_timeout().unwrap() <= millis(41));
}

#[test]
fn the_deadline_of_a_header_ends_with_the_header() {
    let sim = Sim::new(1);
    let config = Config::new()
        .framing(Framing::Delimited(b'\n'))
        .clients_deadline(millis(10_000))
        .request_deadline(millis(100));
    let mut manager = simulated(&sim, config);
    manager.start().unwrap();
    let listener = sim.listener();
    manager.listen_with(listener.clone(), ListenOptions::new().proxy_protocol([])).unwrap();
    let mut peer = listener.connect();
    peer.write_all(b"PROXY TCP4 192.0.2.7 ").unwrap();
    for _ in 0..3 {
        manager.turn(Some(Duration::ZERO)).unwrap();
    }
    peer.write_all(b"198.51.100.1 4711 443\r\n").unwrap();
    manager.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(manager.stats().proxied, 1);
    for _ in 0..4 {
        sim.advance(millis(100));
        manager.turn(Some(Duration::ZERO)).unwrap();
    }
    assert_eq!(manager.stats().live, 1, "nothing is held, so only the idle deadline runs");
}

#[test]
fn time_between_a_put_and_a_turn_is_not_credited() {
    let sim = Sim::new(1);
    let mut manager = simulated(&sim, Config::new().clients_deadline(millis(3_000)));
    manager.start().unwrap();
    let (_peer, ours) = sim.pair();
    manager.put(ours).unwrap();
    for _ in 0..2 {
        sim.advance(millis(1_600));
        manager.turn(Some(Duration::ZERO)).unwrap();
    }
    assert_eq!(manager.stats().live, 0, "3.2 s have passed since the put");
}

#[test]
fn a_connect_that_is_queued_when_a_stop_completes_is_in_the_report() {
    let sim = Sim::new(1);
    let mut manager = simulated(&sim, Config::new());
    manager.start().unwrap();
    manager.handle().connect("10.0.0.1:80".parse().unwrap()).unwrap();
    let report = manager.stop().unwrap();
    assert_eq!((report.idle, report.finished, report.aborted), (1, 0, 0));
}

/// Records the reasons of closes, and drops the end of a peer in the next tick.
#[derive(Default)]
struct Recorder {
    closed: Rc<RefCell<Vec<CloseReason>>>,
    peer: Rc<RefCell<Option<Stream>>>,
}

impl Handler for Recorder {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

    fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn tick(&mut self, _: &mut Commands) {
        self.peer.borrow_mut().take();
    }

    fn closed(&mut self, closed: &Closed, _: Option<()>, _: &mut Commands) {
        self.closed.borrow_mut().push(closed.reason);
    }
}

#[test]
fn a_connection_found_closed_by_an_eviction_makes_room() {
    let sim = Sim::new(1);
    let recorder = Recorder::default();
    let (closed, slot) = (recorder.closed.clone(), recorder.peer.clone());
    let config = Config::new().max_workers(1).overload(Overload::EvictIdle).tick(millis(50));
    let mut manager = Manager::with_backend(config, recorder, sim.clone()).unwrap();
    manager.start().unwrap();
    let listener = sim.listener();
    manager.listen_on(listener.clone()).unwrap();
    let (peer, ours) = sim.pair();
    manager.put(ours).unwrap();
    manager.turn(Some(Duration::ZERO)).unwrap();
    *slot.borrow_mut() = Some(peer);
    sim.advance(millis(60));
    let _client = listener.connect();
    manager.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(*closed.borrow(), [CloseReason::Eof]);
    assert_eq!((manager.stats().live, manager.stats().busy), (1, 0));
}
