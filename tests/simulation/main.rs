//! Tests of the real loop in the simulated network. The peers, the callbacks and the faults are
//! random, and a seed determines them. The invariants are checked after every turn.

mod canaries;
mod cases;
mod proxied;
mod rates;
mod strings;
mod world;

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pool_manager::sim::{Rng, Sim, Stream};
use pool_manager::{CloseReason, Config, Conn, Framing, Handler, Manager, Overload};

const STEPS: usize = 300;

/// Maximum difference between a deadline and the time at which it fires. Times are rounded up to
/// milliseconds twice.
const TOLERANCE: Duration = Duration::from_millis(2);

/// Returns the number in an environment variable, or `default`.
fn env_number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn random_runs_keep_every_invariant() {
    let (seed, count) = (env_number("SIM_SEED", 0), env_number("SIM_COUNT", 200));
    let mut marks = world::Marks::default();
    for seed in seed..seed + count {
        match world::run(seed, 0..STEPS, false) {
            Ok(outcome) => marks.add(&outcome.marks),
            Err(world::Violation { step, what }) => panic!(
                "{what}\nreplay: cargo run --release --features sim --example simulate -- \
                 --seeds {seed}..{} --steps {}",
                seed + 1,
                step + 1
            ),
        }
    }
    let counts: Vec<_> = marks.counts().collect();
    assert_eq!(marks.missed(count, STEPS as u64), [""; 0], "{counts:?}");
}

/// Seeds that once showed a bug of the loop, of the network or of the model. Each line is `seed
/// steps # description`.
#[test]
fn seeds_that_failed_before_pass() {
    for line in include_str!("failed_seeds.txt").lines() {
        let numbers = line.split('#').next().unwrap_or_default();
        let numbers: Vec<u64> =
            numbers.split_whitespace().map(|text| text.parse().unwrap()).collect();
        let [seed, steps] = numbers[..] else { continue };
        let outcome = world::run(seed, 0..steps as usize, false);
        assert!(outcome.is_ok(), "{line}: {:?}", outcome.err());
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let [one, other] = [(); 2].map(|()| world::run(seed, 0..100, false).unwrap());
        assert_eq!(one.turns, other.turns, "seed {seed}");
        assert_eq!(one.digest, other.digest, "seed {seed}");
    }
}

#[test]
fn the_code_that_each_canary_replaces_is_in_the_source() {
    for canary in canaries::ALL {
        let source =
            std::fs::read_to_string(format!("src/{}", canary.file)).expect("a source file");
        assert_eq!(source.matches(canary.was).count(), 1, "{}", canary.name);
        assert!(canary.becomes.contains("PLANTED"), "{}", canary.name);
    }
}

/// Runs all strings of at most `length` operations. Returns the number of strings.
fn run_all_strings(length: usize) -> u64 {
    let first: Vec<u8> = (0..strings::SYMBOLS).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let worker = || {
            let mut count = 0;
            while let Some(&first) = first.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut string = vec![first];
                loop {
                    run_in_sim(&string);
                    count += 1;
                    if !next_string(&mut string, length) {
                        break;
                    }
                }
            }
            count
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().expect("no string fails")).sum()
    })
}

/// Advances to the next string with the same first symbol, in depth-first order. Returns false
/// after the last one.
fn next_string(string: &mut Vec<u8>, length: usize) -> bool {
    if string.len() < length {
        string.push(0);
        return true;
    }
    while string.len() > 1 {
        let last = string.len() - 1;
        string[last] += 1;
        if string[last] < strings::SYMBOLS {
            return true;
        }
        string.pop();
    }
    false
}

fn run_in_sim(string: &[u8]) {
    struct PrintOnPanic<'a>(&'a [u8]);
    impl Drop for PrintOnPanic<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("the string of operations was {:?}", self.0);
            }
        }
    }
    let _print_on_panic = PrintOnPanic(string);
    strings::run(&Sim::new(1), Framing::Delimited(b'\n'), string);
}

#[test]
fn every_short_string_of_operations_settles() {
    let length = env_number("SIM_LENGTH", 3) as usize;
    let count = run_all_strings(length);
    let symbols = u64::from(strings::SYMBOLS);
    assert_eq!(count, (1..=length as u32).map(|length| symbols.pow(length)).sum());
    println!("{count} strings of up to {length} of {symbols} operations");
}

#[test]
fn the_simulated_and_the_real_network_behave_alike() {
    let (seed, count) = (env_number("SIM_SEED", 0), env_number("SIM_STRINGS", 200));
    // Loopback usually delivers data at once. If the results differ, another process may have
    // caused a delay. The string then runs again with a longer wait.
    let [fast, slow] = [0, 5].map(|millis| strings::Loopback::new(Duration::from_millis(millis)));
    for seed in seed..seed + count {
        let mut rng = Rng::new(seed);
        let length = 1 + rng.below(12);
        let string: Vec<u8> =
            (0..length).map(|_| rng.below(strings::EXPIRE.into()) as u8).collect();
        let framing = match seed % 3 {
            0 => Framing::Delimited(b'\n'),
            1 => Framing::Drained,
            _ => Framing::Filled,
        };
        let simulated = strings::observe(&Sim::new(seed), framing.clone(), &string);
        if simulated != strings::observe(&fast, framing.clone(), &string) {
            let real = strings::observe(&slow, framing.clone(), &string);
            assert_eq!(
                simulated, real,
                "simulated and real results, {framing:?}: {string:?}, seed {seed}"
            );
        }
    }
}

/// Returns a manager with one connection, after one turn. The peer wrote `request` before that
/// turn.
fn manager_with_request<H: Handler>(
    sim: &Sim,
    config: Config,
    handler: H,
    request: &[u8],
) -> (Manager<H, Sim>, Stream) {
    let mut manager = Manager::with_backend(config, handler, sim.clone()).unwrap();
    manager.start().unwrap();
    let (mut peer, ours) = sim.pair();
    manager.put(ours).unwrap();
    peer.write_all(request).unwrap();
    manager.turn(Some(Duration::ZERO)).unwrap();
    (manager, peer)
}

/// A handler with slow callbacks.
struct Slow {
    sim: Sim,
    opened_delay: Duration,
    request_delay: Duration,
}

impl Handler for Slow {
    type Session = ();

    fn opened(&mut self, _conn: &mut Conn<'_>) -> io::Result<()> {
        self.sim.advance(self.opened_delay);
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self.sim.advance(self.request_delay);
        conn.write_all(body)
    }
}

/// Returns a manager that has echoed one byte, in a callback that took `slow`.
fn answered_once(
    deadline: Duration,
    slow: Duration,
) -> (Sim, Manager<impl Handler<Session = ()>, Sim>, Stream) {
    let sim = Sim::new(1);
    let handler = Slow { sim: sim.clone(), opened_delay: Duration::ZERO, request_delay: slow };
    let config = Config::new().framing(Framing::Drained).clients_deadline(deadline);
    let (manager, peer) = manager_with_request(&sim, config, handler, b"?");
    assert_eq!(manager.stats().bytes_out, 1);
    (sim, manager, peer)
}

fn assert_punctual(closed: Duration, due: Duration) {
    assert!(
        due <= closed + TOLERANCE && closed <= due + TOLERANCE,
        "closed at {closed:?}, due at {due:?}"
    );
}

#[test]
fn deadlines_are_punctual_in_a_loop_that_waits_elsewhere() {
    let deadline = Duration::from_millis(30);
    let (sim, mut manager, _peer) = answered_once(deadline, Duration::ZERO);
    let answered = sim.now();
    while manager.stats().live > 0 {
        sim.advance(manager.next_timeout().expect("a deadline"));
        manager.turn(Some(Duration::ZERO)).unwrap();
    }
    assert_punctual(sim.now(), answered + deadline);
}

#[test]
fn a_put_after_a_slow_turn_does_not_shorten_the_deadline() {
    let (deadline, slow) = (Duration::from_millis(200), Duration::from_millis(400));
    let (sim, mut manager, _peer) = answered_once(deadline, slow);
    let answered = sim.now();
    let (_other, ours) = sim.pair();
    manager.put(ours).unwrap();
    while manager.stats().closed_total() == 0 {
        manager.turn(None).unwrap();
    }
    assert_punctual(sim.now(), answered + deadline);
}

#[test]
fn a_turn_after_a_slow_turn_does_not_shorten_the_deadline() {
    let (deadline, slow) = (Duration::from_millis(200), Duration::from_millis(150));
    let (sim, mut manager, _peer) = answered_once(deadline, slow);
    let answered = sim.now();
    manager.turn(Some(Duration::ZERO)).unwrap();
    while manager.stats().closed_total() == 0 {
        manager.turn(None).unwrap();
    }
    assert_punctual(sim.now(), answered + deadline);
}

#[test]
fn a_slow_opened_outside_a_turn_does_not_shorten_the_deadline() {
    let (deadline, slow) = (Duration::from_millis(200), Duration::from_millis(400));
    let sim = Sim::new(1);
    let handler = Slow { sim: sim.clone(), opened_delay: slow, request_delay: Duration::ZERO };
    let config = Config::new().clients_deadline(deadline);
    let mut manager = Manager::with_backend(config, handler, sim.clone()).unwrap();
    manager.start().unwrap();
    let (_peer, ours) = sim.pair();
    manager.put(ours).unwrap();
    let due = sim.now() + deadline;
    while manager.stats().live > 0 {
        manager.turn(None).unwrap();
    }
    assert_punctual(sim.now(), due);
}

#[test]
fn a_slow_callback_in_a_stop_does_not_shorten_the_write_deadline() {
    let (deadline, slow) = (Duration::from_millis(200), Duration::from_millis(400));
    let sim = Sim::new(1);
    let handler = Slow { sim: sim.clone(), opened_delay: Duration::ZERO, request_delay: slow };
    let config = Config::new()
        .framing(Framing::Drained)
        .clients_deadline(deadline)
        .stop_deadline(Duration::from_secs(10));
    let mut manager = Manager::with_backend(config, handler, sim.clone()).unwrap();
    manager.start().unwrap();
    let (mut peer, ours) = sim.pair_with(1, 100);
    manager.put(ours).unwrap();
    peer.write_all(b"more than there is room for in reply").unwrap();
    let began = sim.now();
    manager.stop().unwrap();
    assert_eq!(manager.stats().closed(CloseReason::WriteStalled), 1);
    assert_punctual(sim.now(), began + slow + deadline);
}

#[test]
fn a_hundred_thousand_restarts_leak_nothing() {
    let sim = Sim::new(1);
    let config = Config::new().framing(Framing::Drained).max_workers(2);
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let mut manager = Manager::with_backend(config, echo, sim.clone()).unwrap();
    let listener = sim.listener();
    for cycle in 0..100_000 {
        manager.start().unwrap();
        manager.listen_on(listener.clone()).unwrap();
        let (mut peer, ours) = sim.pair();
        manager.put(ours).unwrap();
        peer.write_all(b"?").unwrap();
        let client = listener.connect();
        if cycle % 2 == 0 {
            manager.turn(Some(Duration::ZERO)).unwrap();
        }
        drop(peer);
        // This socket is still queued when the manager stops.
        let (_queued, ours) = sim.pair();
        let _ = manager.handle().put(ours);
        drop(client);
        manager.stop().unwrap();
        let (stats, counters) = (manager.stats(), sim.counters());
        assert_eq!((stats.live, stats.lingering, counters.open, counters.registered), (0, 0, 0, 0));
        assert_eq!(manager.next_timeout(), None);
    }
    let stats = manager.stats();
    assert_eq!(stats.put, stats.closed_total());
    assert!(stats.put >= 100_000 && sim.violations().is_empty());
}

#[test]
fn a_connection_lingers_for_at_most_five_seconds() {
    let sim = Sim::new(1);
    let config = Config::new().framing(Framing::Drained);
    let reply_and_close = |conn: &mut Conn<'_>, _: &[u8]| {
        conn.close();
        conn.write_all(b"bye")
    };
    let (mut manager, _peer) = manager_with_request(&sim, config, reply_and_close, b"?");
    let began = sim.now();
    assert_eq!(manager.stats().lingering, 1);
    while manager.stats().lingering > 0 {
        manager.turn(None).unwrap();
    }
    assert_eq!(sim.now(), began + Duration::from_secs(5));
}

#[test]
fn the_stop_deadline_counts_from_the_call_of_stop() {
    let sim = Sim::new(1);
    let stop_deadline = Duration::from_millis(100);
    let config = Config::new()
        .clients_deadline(Duration::from_secs(600))
        .request_deadline(None)
        .stop_deadline(stop_deadline);
    let ignore = |_: &mut Conn<'_>, _: &[u8]| Ok(());
    let (mut manager, _peer) = manager_with_request(&sim, config, ignore, b"half a requ");
    sim.advance(Duration::from_secs(60));
    let called_at = sim.now();
    assert_eq!(manager.stop().unwrap().aborted, 1);
    assert_eq!(sim.now(), called_at + stop_deadline);
}

/// An echo handler. If a peer is stored when a connection is opened, this peer writes a byte.
struct WritesWhileOpened(Rc<RefCell<Option<Stream>>>);

impl Handler for WritesWhileOpened {
    type Session = ();

    fn opened(&mut self, _conn: &mut Conn<'_>) -> io::Result<()> {
        self.0.borrow_mut().as_mut().map_or(Ok(()), |peer| peer.write_all(b"!"))
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        conn.write_all(body)
    }
}

/// A connection has unread input, but no wait has reported the event for this input yet. The last
/// read before the eviction finds the input.
#[test]
fn a_connection_with_unread_input_is_served_instead_of_evicted() {
    let sim = Sim::new(1);
    let config =
        Config::new().framing(Framing::Drained).max_workers(2).overload(Overload::EvictIdle);
    let peer_slot = Rc::default();
    let handler = WritesWhileOpened(Rc::clone(&peer_slot));
    let mut manager = Manager::with_backend(config, handler, sim.clone()).unwrap();
    manager.start().unwrap();
    let listener = sim.listener();
    manager.listen_on(listener.clone()).unwrap();
    let (peer, ours) = sim.pair();
    manager.put(ours).unwrap();
    manager.turn(Some(Duration::ZERO)).unwrap();
    peer_slot.replace(Some(peer));
    sim.advance(Duration::from_millis(50));
    let _new_peers = [(); 2].map(|()| listener.connect());
    manager.turn(Some(Duration::ZERO)).unwrap();
    let stats = manager.stats();
    // The first new connection takes the free permit. The second one finds no free permit.
    assert_eq!((stats.closed_total(), stats.busy, stats.live), (0, 1, 2), "{stats}");
    assert_eq!((stats.requests_total(), stats.bytes_out), (1, 1), "{stats}");
}

#[test]
fn a_stop_accepts_at_most_4096_connections_of_each_listener() {
    let sim = Sim::new(1);
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let config = Config::new().framing(Framing::Drained);
    let mut manager = Manager::with_backend(config, echo, sim.clone()).unwrap();
    manager.start().unwrap();
    let listeners = [sim.listener(), sim.listener()];
    let peers = [4_196, 4_000].map(|peers| {
        let listener = &listeners[usize::from(peers < 4_096)];
        manager.listen_on(listener.clone()).unwrap();
        let connect = |_| {
            let mut peer = listener.connect();
            peer.write_all(b"?").unwrap();
            peer
        };
        (0..peers).map(connect).collect::<Vec<_>>()
    });
    let report = manager.stop().unwrap();
    assert_eq!((report.finished, report.aborted), (4_096 + 4_000, 0), "{report}");
    assert_eq!(sim.counters().turned_away, 100);
    let read = |mut peer: Stream| io::Read::read(&mut peer, &mut [0]).ok();
    let answered = peers.into_iter().flatten().filter_map(read);
    assert_eq!(answered.sum::<usize>(), 4_096 + 4_000);
}
