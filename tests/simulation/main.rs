//! The real loop in a seeded network: random peers, random callbacks, random faults, and after
//! every turn what must always hold.

mod canaries;
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

/// How late a deadline may be: it is rounded up twice.
const TICKS: Duration = Duration::from_millis(2);

/// A number from the environment, or what it is otherwise.
fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn whatever_happens_everything_holds() {
    let (seed, count) = (number("SIM_SEED", 0), number("SIM_COUNT", 200));
    let mut marks = world::Marks::default();
    for seed in seed..seed + count {
        match world::run(seed, 0..STEPS, false) {
            Ok(outcome) => marks.add(&outcome.marks),
            Err(world::Violation { step, what }) => panic!(
                "{what}\ncargo run --release --features sim --example simulate -- --seeds {seed}..{} \
                 --steps {} # replays it",
                seed + 1,
                step + 1
            ),
        }
    }
    let counts: Vec<_> = marks.counts().collect();
    assert_eq!(marks.missed(count, STEPS as u64), [""; 0], "{counts:?}");
}

/// Seeds that once showed a bug, of the loop, of the network or of the model: `seed steps # what`.
#[test]
fn seeds_that_once_failed_hold() {
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
fn canaries_have_their_place_in_the_source() {
    for canary in canaries::ALL {
        let source = std::fs::read_to_string(format!("src/{}", canary.file)).expect("a source");
        assert_eq!(source.matches(canary.was).count(), 1, "{}", canary.name);
        assert!(canary.becomes.contains("PLANTED"), "{}", canary.name);
    }
}

/// All strings of operations of up to this length.
fn exhaust(length: usize) -> u64 {
    let first: Vec<u8> = (0..strings::SYMBOLS).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let worker = || {
            let mut played = 0;
            while let Some(&first) = first.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut string = vec![first];
                loop {
                    play_in_sim(&string);
                    played += 1;
                    if !advance(&mut string, length) {
                        break;
                    }
                }
            }
            played
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().expect("it holds")).sum()
    })
}

/// The next string with the same first symbol, shorter ones first in depth; false after the last.
fn advance(string: &mut Vec<u8>, length: usize) -> bool {
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

fn play_in_sim(string: &[u8]) {
    struct Told<'a>(&'a [u8]);
    impl Drop for Told<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("the string of operations was {:?}", self.0);
            }
        }
    }
    let _told = Told(string);
    strings::play(&Sim::new(1), Framing::Delimited(b'\n'), string);
}

#[test]
fn every_short_string_of_operations_ends_well() {
    let length = number("SIM_LENGTH", 3) as usize;
    let played = exhaust(length);
    let symbols = u64::from(strings::SYMBOLS);
    assert_eq!(played, (1..=length as u32).map(|length| symbols.pow(length)).sum());
    println!("{played} strings of up to {length} of {symbols} operations");
}

#[test]
fn the_simulated_network_and_the_real_one_show_the_same() {
    let (seed, count) = (number("SIM_SEED", 0), number("SIM_STRINGS", 200));
    // The loopback delivers at once; when it is not, somebody else has the core.
    let [prompt, patient] =
        [0, 5].map(|millis| strings::Loopback::new(Duration::from_millis(millis)));
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
        let simulated = strings::watch(&Sim::new(seed), framing.clone(), &string);
        if simulated != strings::watch(&prompt, framing.clone(), &string) {
            let real = strings::watch(&patient, framing.clone(), &string);
            assert_eq!(simulated, real, "simulated and real, {framing:?}: {string:?}, seed {seed}");
        }
    }
}

/// A manager in `sim` with one connection, whose peer has said something.
fn spoken_to<H: Handler>(
    sim: &Sim,
    config: Config,
    handler: H,
    says: &[u8],
) -> (Manager<H, Sim>, Stream) {
    let mut manager = Manager::with_backend(config, handler, sim.clone()).unwrap();
    manager.start().unwrap();
    let (mut peer, ours) = sim.pair();
    manager.put(ours).unwrap();
    peer.write_all(says).unwrap();
    manager.turn(Some(Duration::ZERO)).unwrap();
    (manager, peer)
}

/// A handler that takes its time to greet and to answer.
struct Slow {
    sim: Sim,
    greets: Duration,
    answers: Duration,
}

impl Handler for Slow {
    type Session = ();

    fn opened(&mut self, _conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.sim.advance(self.greets);
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self.sim.advance(self.answers);
        conn.write_all(body)
    }
}

/// One that answers each body with it, after `slow`; and its world.
fn answering(
    deadline: Duration,
    slow: Duration,
) -> (Sim, Manager<impl Handler<Session = ()>, Sim>, Stream) {
    let sim = Sim::new(1);
    let handler = Slow { sim: sim.clone(), greets: Duration::ZERO, answers: slow };
    let config = Config::new().framing(Framing::Drained).clients_deadline(deadline);
    let (manager, peer) = spoken_to(&sim, config, handler, b"?");
    assert_eq!(manager.stats().bytes_out, 1);
    (sim, manager, peer)
}

fn assert_punctual(closed: Duration, due: Duration) {
    assert!(due <= closed + TICKS && closed <= due + TICKS, "closed at {closed:?}, due at {due:?}");
}

#[test]
fn in_a_loop_of_ones_own_a_deadline_is_as_punctual() {
    let deadline = Duration::from_millis(30);
    let (sim, mut manager, _peer) = answering(deadline, Duration::ZERO);
    let answered = sim.now();
    while manager.stats().live > 0 {
        sim.advance(manager.next_timeout().expect("a deadline"));
        manager.turn(Some(Duration::ZERO)).unwrap();
    }
    assert_punctual(sim.now(), answered + deadline);
}

#[test]
fn who_is_answered_in_a_slow_turn_has_its_time_whatever_comes_between() {
    let (deadline, slow) = (Duration::from_millis(200), Duration::from_millis(400));
    let (sim, mut manager, _peer) = answering(deadline, slow);
    let answered = sim.now();
    let (_other, ours) = sim.pair();
    manager.put(ours).unwrap();
    while manager.stats().closed_total() == 0 {
        manager.turn(None).unwrap();
    }
    assert_punctual(sim.now(), answered + deadline);
}

#[test]
fn who_is_answered_in_a_slow_turn_has_its_time_though_others_follow() {
    let (deadline, slow) = (Duration::from_millis(200), Duration::from_millis(150));
    let (sim, mut manager, _peer) = answering(deadline, slow);
    let answered = sim.now();
    manager.turn(Some(Duration::ZERO)).unwrap();
    while manager.stats().closed_total() == 0 {
        manager.turn(None).unwrap();
    }
    assert_punctual(sim.now(), answered + deadline);
}

#[test]
fn who_is_greeted_slowly_outside_a_turn_has_its_time() {
    let (deadline, slow) = (Duration::from_millis(200), Duration::from_millis(400));
    let sim = Sim::new(1);
    let handler = Slow { sim: sim.clone(), greets: slow, answers: Duration::ZERO };
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
fn who_is_answered_slowly_by_a_stop_has_its_time_to_take_the_reply() {
    let (deadline, slow) = (Duration::from_millis(200), Duration::from_millis(400));
    let sim = Sim::new(1);
    let handler = Slow { sim: sim.clone(), greets: Duration::ZERO, answers: slow };
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
fn a_hundred_thousand_restarts_leave_nothing() {
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
        let guest = listener.connect();
        if cycle % 2 == 0 {
            manager.turn(Some(Duration::ZERO)).unwrap();
        }
        drop(peer);
        // One that is still in the queue when it stops.
        let (_queued, ours) = sim.pair();
        let _ = manager.handle().put(ours);
        drop(guest);
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
fn nobody_lingers_for_more_than_five_seconds() {
    let sim = Sim::new(1);
    let config = Config::new().framing(Framing::Drained);
    let last_word = |conn: &mut Conn<'_>, _: &[u8]| {
        conn.close();
        conn.write_all(b"bye")
    };
    let (mut manager, _peer) = spoken_to(&sim, config, last_word, b"?");
    let began = sim.now();
    assert_eq!(manager.stats().lingering, 1);
    while manager.stats().lingering > 0 {
        manager.turn(None).unwrap();
    }
    assert_eq!(sim.now(), began + Duration::from_secs(5));
}

#[test]
fn a_stop_is_timed_from_when_it_is_asked_for() {
    let sim = Sim::new(1);
    let drain = Duration::from_millis(100);
    let config = Config::new()
        .clients_deadline(Duration::from_secs(600))
        .request_deadline(Duration::ZERO)
        .stop_deadline(drain);
    let nothing = |_: &mut Conn<'_>, _: &[u8]| Ok(());
    let (mut manager, _peer) = spoken_to(&sim, config, nothing, b"half a requ");
    sim.advance(Duration::from_secs(60));
    let asked = sim.now();
    assert_eq!(manager.stop().unwrap().aborted, 1);
    assert_eq!(sim.now(), asked + drain);
}

/// Greets whoever comes; while it does, somebody else says something.
struct Distracted(Rc<RefCell<Option<Stream>>>);

impl Handler for Distracted {
    type Session = ();

    fn opened(&mut self, _conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.0.borrow_mut().as_mut().map_or(Ok(()), |peer| peer.write_all(b"!"))
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        conn.write_all(body)
    }
}

/// Its event has not come yet: a last read finds what it said.
#[test]
fn who_has_just_spoken_is_not_evicted_but_served() {
    let sim = Sim::new(1);
    let config =
        Config::new().framing(Framing::Drained).max_workers(2).overload(Overload::EvictIdle);
    let speaker = Rc::default();
    let handler = Distracted(Rc::clone(&speaker));
    let mut manager = Manager::with_backend(config, handler, sim.clone()).unwrap();
    manager.start().unwrap();
    let listener = sim.listener();
    manager.listen_on(listener.clone()).unwrap();
    let (peer, ours) = sim.pair();
    manager.put(ours).unwrap();
    manager.turn(Some(Duration::ZERO)).unwrap();
    speaker.replace(Some(peer));
    sim.advance(Duration::from_millis(50));
    let _newcomers = [(); 2].map(|()| listener.connect());
    manager.turn(Some(Duration::ZERO)).unwrap();
    let stats = manager.stats();
    // The first newcomer has the free place; there is none for the second.
    assert_eq!((stats.closed_total(), stats.busy, stats.live), (0, 1, 2), "{stats}");
    assert_eq!((stats.requests_total(), stats.bytes_out), (1, 1), "{stats}");
}

#[test]
fn a_stop_accepts_as_many_as_a_queue_holds_and_not_for_ever() {
    let sim = Sim::new(1);
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let config = Config::new().framing(Framing::Drained);
    let mut manager = Manager::with_backend(config, echo, sim.clone()).unwrap();
    manager.start().unwrap();
    let listeners = [sim.listener(), sim.listener()];
    let peers = [4_196, 4_000].map(|peers| {
        let listener = &listeners[usize::from(peers < 4_096)];
        manager.listen_on(listener.clone()).unwrap();
        let asking = |_| {
            let mut peer = listener.connect();
            peer.write_all(b"?").unwrap();
            peer
        };
        (0..peers).map(asking).collect::<Vec<_>>()
    });
    let report = manager.stop().unwrap();
    assert_eq!((report.finished, report.aborted), (4_096 + 4_000, 0), "{report}");
    assert_eq!(sim.counters().turned_away, 100);
    let read = |mut peer: Stream| io::Read::read(&mut peer, &mut [0]).ok();
    let answered = peers.into_iter().flatten().filter_map(read);
    assert_eq!(answered.sum::<usize>(), 4_096 + 4_000);
}
