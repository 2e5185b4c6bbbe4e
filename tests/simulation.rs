//! The real loop in a seeded network: random peers, random callbacks, random faults, and after
//! every turn what must always hold.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::time::Duration;

use pool_manager::sim::{Dice, Faults, Listener, Sim, Stream};
use pool_manager::{
    Cause, CloseReason, Config, Conn, ConnId, Desk, End, Frame, Framing, Handler, Manager,
    Overload, Prefix, Socket,
};

const STEPS: usize = 300;

/// How late a deadline may be: it is rounded up twice.
const TICKS: Duration = Duration::from_millis(2);

/// What the handler saw and did, per connection.
#[derive(Debug, Default)]
struct Life {
    /// The stream as far as bodies, put back into their frames, show it.
    delivered: Vec<u8>,
    /// What was written and not taken back.
    replied: Vec<u8>,
    paused: bool,
    /// When its last callback began: frames that are held are no silence.
    called: Duration,
    /// The longest deadline of its own that it was given.
    patience: Duration,
    closed: Option<CloseReason>,
    end: Option<End>,
}

#[derive(Debug, Default)]
struct Model {
    lives: HashMap<ConnId, Life>,
    /// By the number of their connection.
    ids: HashMap<usize, ConnId>,
    complaints: Vec<String>,
    depth: usize,
}

type Shared = Rc<RefCell<Model>>;

struct Player {
    model: Shared,
    sim: Sim,
    dice: Dice,
    framing: Framing,
    /// There is no total deadline.
    only_idle: bool,
    /// Whether callbacks misbehave.
    wild: Rc<RefCell<bool>>,
}

impl Player {
    /// The bytes that a body was made of.
    fn framed(&self, cause: Cause, body: &[u8]) -> Vec<u8> {
        match (&self.framing, cause) {
            (Framing::Delimited(byte), Cause::Framed) => [body, &[*byte]].concat(),
            (Framing::LengthPrefixed { .. }, Cause::Framed) => {
                [&(body.len() as u16).to_be_bytes(), body].concat()
            }
            _ => body.to_vec(),
        }
    }
}

impl Handler for Player {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        if let Socket::Sim(stream) = conn.socket() {
            self.model.borrow_mut().ids.insert(stream.connection(), conn.id());
        }
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        let framed = self.framed(conn.cause(), body);
        let id = conn.id();
        {
            let mut model = self.model.borrow_mut();
            model.depth += 1;
            let unread = self.sim.look(id).map_or(0, |look| look.unread);
            if conn.cause() == Cause::Expired && self.only_idle && unread > 0 {
                let complaint = format!("{id}: expired although it spoke ({unread} bytes)");
                model.complaints.push(complaint);
            }
            if model.depth > 1 {
                model.complaints.push("a callback within a callback".into());
            }
            let life = model.lives.entry(id).or_default();
            life.called = self.sim.now();
            if life.closed.is_some() {
                let complaint = format!("{id}: a callback after it was closed");
                model.complaints.push(complaint);
                return Ok(());
            }
            // What is left of a frame comes without its prefix, and comes last.
            let prefixed = matches!(self.framing, Framing::LengthPrefixed { .. });
            if !prefixed || conn.cause() == Cause::Framed {
                life.delivered.extend(framed);
            }
        }
        let outcome = self.play(conn, body);
        self.model.borrow_mut().depth -= 1;
        match outcome {
            Some(outcome) => outcome,
            None => std::panic::panic_any("as planned"),
        }
    }

    fn closed(&mut self, end: &End, (): (), _desk: &mut Desk) {
        let mut model = self.model.borrow_mut();
        let life = model.lives.entry(end.id).or_default();
        let twice = life.closed.replace(end.reason).is_some();
        life.end = Some(*end);
        if twice {
            model.complaints.push(format!("{} closed twice", end.id));
        }
    }
}

impl Player {
    /// Replies, and perhaps does something else; `None` asks for a panic.
    fn play(&mut self, conn: &mut Conn<'_>, body: &[u8]) -> Option<io::Result<()>> {
        let id = conn.id();
        let reply = if self.dice.permille(100) { body.repeat(8) } else { body.to_vec() };
        let written = conn.write_all(&reply);
        let mut model = self.model.borrow_mut();
        let others: Vec<ConnId> = model.lives.keys().copied().collect();
        let life = model.lives.entry(id).or_default();
        if written.is_ok() {
            life.replied.extend_from_slice(&reply);
        }
        if !*self.wild.borrow() {
            return Some(written);
        }
        match self.dice.below(60) {
            0 => conn.close(),
            1 => conn.abort(),
            2 => {
                conn.pause();
                life.paused = true;
            }
            3 => {
                if written.is_ok() {
                    life.replied.truncate(life.replied.len() - reply.len());
                }
                return None;
            }
            4 => return Some(Err(io::ErrorKind::Other.into())),
            5 => self.sim.advance(Duration::from_millis(self.dice.below(300) as u64)),
            6 => {
                let mut others = others;
                others.sort_unstable();
                let other = others[self.dice.below(others.len())];
                let _ = conn.desk().close(other);
            }
            7 => {
                let own = Duration::from_millis(self.dice.below(400) as u64);
                life.patience = life.patience.max(own);
                conn.set_deadline(own);
            }
            8 => {
                let (peer, ours) = self.sim.pair();
                if conn.desk().put(ours).is_ok() {
                    drop(peer);
                }
            }
            _ => {}
        }
        Some(written)
    }
}

/// A peer, and what it sent and got.
struct Peer {
    stream: Option<Stream>,
    connection: usize,
    sent: Vec<u8>,
    got: Vec<u8>,
    shut: bool,
}

fn framings(dice: &mut Dice) -> Framing {
    match dice.below(5) {
        0 => Framing::Filled,
        1 => Framing::Drained,
        2 => Framing::Delimited(b'\n'),
        3 => Framing::LengthPrefixed { prefix: Prefix::U16Be, limit: 0 },
        _ => Framing::custom(|held| match held[0] % 4 {
            n if held.len() > usize::from(n) => Frame::Complete(usize::from(n) + 1),
            _ => Frame::Partial,
        }),
    }
}

fn config(dice: &mut Dice) -> Config {
    let millis = |millis: usize| Duration::from_millis(millis as u64);
    let max = dice.below(6);
    Config::new()
        .framing(framings(dice))
        .buffer_size(8 + dice.below(200))
        .max_workers(max)
        .min_workers(dice.below(max + 1))
        .clients_deadline(millis(1 + dice.below(500)))
        .request_deadline(millis(dice.below(2) * dice.below(900)))
        .write_limit(300 + dice.below(5_000))
        .drain_deadline(millis(dice.below(300)))
        .overload(if dice.permille(500) { Overload::Pause } else { Overload::Reject(b"no".into()) })
}

/// One step of a peer: most write, all read now and then, few leave.
fn step(peer: &mut Peer, dice: &mut Dice) {
    let Some(stream) = &mut peer.stream else { return };
    match dice.below(24) {
        0..9 if !peer.shut => {
            let mut bytes: Vec<u8> =
                (0..=dice.below(120)).map(|_| b"\n\0abcdefg\x02\x01"[dice.below(11)]).collect();
            if dice.permille(500) {
                bytes.push(b'\n');
            }
            if let Ok(count) = stream.write(&bytes) {
                peer.sent.extend_from_slice(&bytes[..count]);
            }
        }
        9..20 => {
            let mut bytes = vec![0; 1 + dice.below(400)];
            if let Ok(count) = stream.read(&mut bytes) {
                peer.got.extend_from_slice(&bytes[..count]);
            }
        }
        20 => {
            peer.shut = true;
            let _ = stream.shutdown_write();
        }
        21 if dice.permille(300) => {
            if let Some(stream) = peer.stream.take() {
                stream.reset();
            }
        }
        22 if dice.permille(300) => peer.stream = None,
        _ => {}
    }
}

struct World {
    sim: Sim,
    manager: Manager<Player, Sim>,
    model: Shared,
    peers: Vec<Peer>,
    dice: Dice,
    wild: Rc<RefCell<bool>>,
    most: usize,
    listener: Listener,
    patience: Duration,
    /// When each turn was called, and when it returned.
    turns: Vec<(Duration, Duration)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let sim = Sim::with_faults(seed, Faults::swarm(seed));
        let (model, wild) = (Shared::default(), Rc::new(RefCell::new(true)));
        let config = config(&mut dice);
        let player = Player {
            model: model.clone(),
            sim: sim.clone(),
            dice: Dice::new(seed ^ 1),
            framing: config.framing.clone(),
            only_idle: config.request_deadline.is_zero(),
            wild: wild.clone(),
        };
        let most = config.max_workers;
        let mut manager = Manager::with_backend(config, player, sim.clone()).unwrap();
        manager.start().unwrap();
        let (listener, patience) = (sim.listener(), manager.config().clients_deadline);
        manager.listen_on(listener.clone()).unwrap();
        Self {
            sim,
            manager,
            model,
            peers: Vec::new(),
            dice,
            wild,
            most,
            listener,
            patience,
            turns: Vec::new(),
        }
    }

    fn put(&mut self) {
        let small = 1 + self.dice.below(300);
        let (peer, ours) = self.sim.pair_with(small, 1 + self.dice.below(600));
        if self.manager.put(ours).is_ok() {
            self.meet(peer);
        }
    }

    fn meet(&mut self, stream: Stream) {
        let connection = stream.connection();
        let (sent, got) = (Vec::new(), Vec::new());
        self.peers.push(Peer { stream: Some(stream), connection, sent, got, shut: false });
    }

    /// The ids of those who were put or accepted.
    fn ids(&self) -> Vec<ConnId> {
        let model = self.model.borrow();
        self.peers.iter().filter_map(|peer| model.ids.get(&peer.connection)).copied().collect()
    }

    fn act(&mut self) {
        match self.dice.below(12) {
            0 => self.put(),
            1 => {
                let peer = self.listener.connect();
                self.meet(peer);
            }
            2 => {
                let handle = self.manager.handle();
                let ids = self.ids();
                if !ids.is_empty() {
                    let id = ids[self.dice.below(ids.len())];
                    match self.dice.below(4) {
                        0 => self.resume(id),
                        1 => {
                            handle.pause(id).unwrap();
                            self.model.borrow_mut().lives.entry(id).or_default().paused = true;
                        }
                        2 if self.dice.permille(200) => handle.close(id).unwrap(),
                        _ => {}
                    }
                }
            }
            _ if !self.peers.is_empty() => {
                let index = self.dice.below(self.peers.len());
                step(&mut self.peers[index], &mut self.dice);
            }
            _ => {}
        }
    }

    fn resume(&mut self, id: ConnId) {
        self.manager.handle().resume(id).unwrap();
        let mut model = self.model.borrow_mut();
        let life = model.lives.entry(id).or_default();
        life.paused = false;
        // Its deadline counts anew, from a moment that only the loop knows.
        life.patience = Duration::MAX;
    }

    fn turn(&mut self) {
        let timeout = Duration::from_millis(self.dice.below(40) as u64);
        let before = self.sim.now();
        let turn = self.manager.turn(Some(timeout)).unwrap();
        self.turns.push((before, self.sim.now()));
        let asleep = turn.next != Some(Duration::ZERO);
        self.check(asleep, before);
    }

    /// What must hold after every turn.
    fn check(&self, asleep: bool, before: Duration) {
        assert_eq!(self.sim.violations(), [""; 0]);
        let model = self.model.borrow();
        assert_eq!(model.complaints, [""; 0]);
        let stats = self.manager.stats();
        assert_eq!(
            stats.put,
            stats.live + stats.closed_total(),
            "every connection is accounted for"
        );
        assert!(self.most == 0 || stats.live <= self.most as u64, "more than max_workers");
        let silent = self.sim.silent_inputs();
        for peer in &self.peers {
            let Some(&id) = model.ids.get(&peer.connection) else { continue };
            let fallback = Life::default();
            let life = model.lives.get(&id).unwrap_or(&fallback);
            assert!(peer.sent.starts_with(&life.delivered), "{id}: not what the peer sent");
            assert!(life.replied.starts_with(&peer.got), "{id}: not what was replied");
            if let Some(end) = life.end {
                assert_eq!(end.bytes_out + end.bytes_unsent, life.replied.len() as u64, "{id}");
                let limit = self.manager.config().write_limit as u64 * 3 / 2;
                assert!(end.bytes_unsent <= limit, "{id}: {} bytes unsent", end.bytes_unsent);
            }
            let lost = asleep && !life.paused && silent.contains(&id.as_u64());
            assert!(!lost, "{id}: asleep over input that no event will report");
            if let Some(look) = self.sim.look(id).filter(|look| !life.paused && !look.full) {
                // What happens in a turn counts from its end, which may be the next one's begin.
                let moved = look.moved.max(life.called);
                let after = self.turns.partition_point(|turn| turn.0 <= moved);
                let end = self.turns[after.min(self.turns.len() - 1)].1;
                let moved = moved.max(end);
                let patience = self.patience.max(life.patience);
                let due = moved.saturating_add(patience).saturating_add(TICKS);
                let (look, config) = (look, self.manager.config());
                assert!(
                    before <= due,
                    "{id}: still there at {before:?}, due at {due:?}: {look:?} {life:?} {config:?}"
                );
            }
        }
    }

    /// Faults stop, peers read what there is and leave: everything must settle.
    fn settle(&mut self) {
        self.sim.set_faults(Faults::none());
        *self.wild.borrow_mut() = false;
        for id in self.ids() {
            self.resume(id);
        }
        self.until_all_left();
        // From any state new connections are served, as many as there may be.
        for _ in 0..self.most.max(1) {
            let (peer, ours) = self.sim.pair();
            self.manager.put(ours).expect("a place for everyone");
            self.meet(peer);
        }
        self.until_all_left();
        let report = self.manager.stop().unwrap();
        assert_eq!(report.aborted, 0, "nothing was left to abort");
        let stats = self.manager.stats();
        assert_eq!((stats.live, stats.lingering, stats.spare), (0, 0, 0));
        assert_eq!(self.sim.violations(), [""; 0]);
    }

    fn until_all_left(&mut self) {
        for _ in 0..2_000 {
            for peer in &mut self.peers {
                let Some(stream) = &mut peer.stream else { continue };
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    peer.got.extend_from_slice(&bytes[..count]);
                }
                let _ = stream.shutdown_write();
            }
            self.turn();
            if self.manager.stats().live == 0 && self.listener.waiting() == 0 {
                return;
            }
        }
        panic!("it does not settle: {}", self.manager.stats());
    }
}

fn run(seed: u64, steps: usize) -> u64 {
    let mut world = World::new(seed);
    for _ in 0..steps {
        for _ in 0..world.dice.below(4) {
            world.act();
        }
        world.turn();
    }
    world.settle();
    world.sim.digest()
}

/// Panics that are part of the play are not worth a word.
fn quiet() {
    std::panic::set_hook(Box::new(|info| {
        if info.payload().downcast_ref::<&str>() != Some(&"as planned") {
            eprintln!("{info}");
        }
    }));
}

fn seeds() -> std::ops::Range<u64> {
    let from = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let count = std::env::var("SIM_COUNT").ok().and_then(|seed| seed.parse().ok()).unwrap_or(200);
    from..from + count
}

#[test]
fn whatever_happens_everything_holds() {
    quiet();
    for seed in seeds() {
        let outcome = std::panic::catch_unwind(|| run(seed, STEPS));
        assert!(outcome.is_ok(), "seed {seed}: SIM_SEED={seed} SIM_COUNT=1 replays it");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    quiet();
    for seed in 0..20 {
        assert_eq!(run(seed, 100), run(seed, 100), "seed {seed}");
    }
}

/// A manager in `sim` with one connection, whose peer has said something.
fn spoken_to<F>(sim: &Sim, config: Config, answer: F, says: &[u8]) -> (Manager<F, Sim>, Stream)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let mut manager = Manager::with_backend(config, answer, sim.clone()).unwrap();
    manager.start().unwrap();
    let (mut peer, ours) = sim.pair();
    manager.put(ours).unwrap();
    peer.write_all(says).unwrap();
    manager.turn(Some(Duration::ZERO)).unwrap();
    (manager, peer)
}

/// One that answers each body with it, after `slow`; and its world.
fn answering(
    deadline: Duration,
    slow: Duration,
) -> (Sim, Manager<impl Handler<Session = ()>, Sim>, Stream) {
    let sim = Sim::new(1);
    let clock = sim.clone();
    let answer = move |conn: &mut Conn<'_>, body: &[u8]| {
        clock.advance(slow);
        conn.write_all(body)
    };
    let config = Config::new().framing(Framing::Drained).clients_deadline(deadline);
    let (manager, peer) = spoken_to(&sim, config, answer, b"?");
    assert_eq!(manager.stats().bytes_out, 1);
    (sim, manager, peer)
}

#[test]
fn in_a_loop_of_ones_own_a_deadline_is_as_punctual() {
    let deadline = Duration::from_millis(30);
    let (sim, mut manager, _peer) = answering(deadline, Duration::ZERO);
    let answered = sim.now();
    while manager.stats().live > 0 {
        sim.advance(manager.next_deadline().expect("a deadline"));
        manager.turn(Some(Duration::ZERO)).unwrap();
    }
    assert_eq!(sim.now(), answered + deadline);
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
    let (closed, due) = (sim.now(), answered + deadline);
    assert!(due <= closed + TICKS && closed <= due + TICKS, "closed at {closed:?}, due at {due:?}");
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
        .drain_deadline(drain);
    let nothing = |_: &mut Conn<'_>, _: &[u8]| Ok(());
    let (mut manager, _peer) = spoken_to(&sim, config, nothing, b"half a requ");
    sim.advance(Duration::from_secs(60));
    let asked = sim.now();
    assert_eq!(manager.stop().unwrap().aborted, 1);
    assert_eq!(sim.now(), asked + drain);
}
