//! A world: the real loop in a seeded network, among random peers, callbacks, commands and
//! faults; and after every turn what must always hold.
//!
//! What a step does depends on the seed, the number of the step and what there is by then, so
//! that steps can be left out to find the few that matter.

mod draw;
mod marks;
mod model;
mod oracle;
mod peer;
mod player;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use pool_manager::sim::{Dice, Faults, Listener, Sim, Stream};
use pool_manager::{
    CloseReason, Config, ConnId, Error, Framing, Manager, Overload, PutError, PutErrorKind, Socket,
    Stats, Turn,
};

pub(crate) use marks::Marks;
use model::{Model, Turned};
use peer::Peer;
use player::Player;

/// What planned panics are about.
pub(crate) const PLANNED: &str = "as planned";

/// Turns without anything happening that may follow each other while work is said to be left.
const IDLE_TURNS: u32 = 64;

/// What everybody in a world shares.
pub(crate) struct Stage {
    sim: Sim,
    model: RefCell<Model>,
    /// Peers of sockets that callbacks put.
    newcomers: RefCell<Vec<Stream>>,
    /// Nothing has happened that may destroy a last reply.
    lossless: Cell<bool>,
}

type Shared = Rc<Stage>;

impl Stage {
    fn mark(&self, mark: &'static str) {
        self.model.borrow_mut().marks.hit(mark);
    }

    fn sleep(&self, time: Duration) {
        self.model.borrow_mut().slept(self.sim.now(), time);
        self.sim.advance(time);
    }

    /// A panic is about to come.
    fn count(&self, mark: &'static str) {
        let mut model = self.model.borrow_mut();
        model.panics += 1;
        model.marks.hit(mark);
    }

    fn count_panic(&self, mark: &'static str) {
        self.count(mark);
        std::panic::panic_any(PLANNED);
    }

    /// A socket that is not taken comes back as it was.
    fn refused(&self, refused: PutError, peer: &mut Stream) {
        let kind = format!("{:?}", refused.kind());
        if matches!(refused.kind(), PutErrorKind::Busy { .. }) {
            self.model.borrow_mut().busy += 1;
        }
        self.model.borrow_mut().accounts.remove(&peer.connection());
        let Socket::Sim(mut ours) = refused.into_inner() else { return };
        let mut byte = [0];
        let said = std::io::Write::write(&mut ours, b"!");
        let heard = std::io::Read::read(peer, &mut byte);
        let calm = said.is_ok();
        if calm && heard.ok() != Some(1) {
            self.model.borrow_mut().complain(format!("{kind}: a socket that does not work"));
        }
    }
}

/// What a run came to.
pub(crate) struct Outcome {
    pub(crate) digest: u64,
    pub(crate) marks: Marks,
    /// What the digest was after each turn.
    pub(crate) turns: Vec<u64>,
}

/// What must not happen, and has.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) step: usize,
    pub(crate) what: String,
}

thread_local! {
    static STEP: Cell<usize> = const { Cell::new(0) };
    /// Whether panics are part of a run.
    static PLAYING: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics in a run are kept rather than printed: planned ones are part of the play.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match info.payload().downcast_ref::<&str>() {
            Some(&PLANNED) => {}
            _ if PLAYING.get() => PANIC.set(info.to_string()),
            _ => usual(info),
        }));
    });
}

/// Runs the steps of a seed that are given, and then lets everything settle.
pub(crate) fn run(
    seed: u64,
    steps: impl Iterator<Item = usize>,
    trace: bool,
) -> Result<Outcome, Violation> {
    keep_panics();
    STEP.set(0);
    oracle::PANICS.set(0);
    PLAYING.set(true);
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, trace);
        for step in steps {
            STEP.set(step);
            world.step(step);
        }
        world.settle();
        world.end()
    }));
    PLAYING.set(false);
    played.map_err(|_| Violation { step: STEP.get(), what: PANIC.with_borrow(String::clone) })
}

struct World {
    seed: u64,
    stage: Shared,
    manager: Manager<Player, Sim>,
    peers: Vec<Peer>,
    dice: Dice,
    listeners: [Listener; 2],
    running: bool,
    /// Waiting never fails.
    reliable: bool,
    crowded: bool,
    /// What had happened by the last turn, and in how many turns it has not changed.
    happened: [u64; 8],
    idle_turns: u32,
    /// How often there was no descriptor for an accept, and when the last time was.
    starved: (u64, Option<Duration>),
    /// What is not accounted for of those who came, and how many were refused by a listener.
    astray: Option<u64>,
    refused: u64,
    /// Listeners have to wait for a place, whatever configuration is in effect.
    patient: bool,
    turns: Vec<u64>,
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut dice = Dice::new(seed);
        let faults = Faults::swarm(seed);
        let sim = Sim::with_faults(seed, faults);
        let crowded = dice.permille(30);
        let config = draw::config(&mut dice, crowded);
        let lossless = faults.failed_registers == 0
            && faults.failed_reads == 0
            && faults.failed_waits == 0
            && faults.clock_jumps == 0;
        let stage = Rc::new(Stage {
            sim: sim.clone(),
            model: RefCell::new(Model::new(&config, trace)),
            newcomers: RefCell::new(Vec::new()),
            lossless: Cell::new(lossless),
        });
        if trace {
            println!("{config:?}\n{faults:?}");
        }
        let player = Player { world: stage.clone(), dice: Dice::new(seed ^ 1) };
        let manager = Manager::with_backend(config, player, sim.clone()).unwrap();
        Self {
            seed,
            listeners: [sim.listener(), sim.listener()],
            stage,
            manager,
            peers: Vec::new(),
            dice,
            running: false,
            reliable: faults.failed_waits == 0,
            crowded,
            happened: [0; 8],
            idle_turns: 0,
            starved: (0, None),
            astray: None,
            refused: 0,
            patient: false,
            turns: Vec::new(),
        }
    }

    fn digest(&self) -> u64 {
        self.stage.sim.digest() ^ self.stage.model.borrow().digest
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.stage.model.borrow().trace {
            println!("{}", what());
        }
    }

    /// One step: a few acts, and a turn.
    fn step(&mut self, step: usize) {
        self.dice = Dice::new(self.seed ^ (step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.trace(|| format!("step {step}, at {:?}", self.stage.sim.now()));
        for _ in 0..self.dice.below(4) {
            self.act();
        }
        self.turn();
    }

    fn act(&mut self) {
        if !self.running {
            self.start();
        }
        match self.dice.below(300) {
            0..20 => self.put(),
            20..40 => self.connect(),
            40..55 => self.command(),
            55..57 => self.configure(),
            57 if self.running => self.stop(),
            58 if self.running => self.stop_by_handle(),
            59 if self.running && self.dice.permille(if self.crowded { 200 } else { 1 }) => {
                self.fill_the_queue();
            }
            60..64 if self.crowded => self.crowd(),
            64 => self.stage.sim.advance(Duration::from_micros(self.dice.below(50_000) as u64)),
            _ if !self.peers.is_empty() => {
                let index = self.dice.below(self.peers.len());
                self.peers[index].step(&mut self.dice, &self.stage);
                if self.peers[index].stream.is_none() || self.peers[index].over {
                    let peer = self.peers.swap_remove(index);
                    self.stage.model.borrow_mut().forget(peer.number, peer.over);
                }
            }
            _ => {}
        }
    }

    fn start(&mut self) {
        // Another framing while bytes are held could be taken for the old one.
        let config = draw::config(&mut self.dice, self.crowded);
        self.manager.set_config(config.clone()).unwrap();
        self.stage.model.borrow_mut().restarted(&config);
        self.astray = None;
        if self.manager.start().is_err() {
            self.stage.mark("starting fails");
            return self.assert_nothing_is_left();
        }
        self.running = true;
        for listener in &self.listeners {
            self.manager.listen_on(listener.clone()).unwrap();
        }
        assert!(matches!(self.manager.start(), Err(Error::AlreadyRunning)));
    }

    fn meet(&mut self, stream: Stream) {
        self.stage.model.borrow_mut().expected(stream.connection());
        let peer = Peer::new(stream, &mut self.dice);
        self.peers.push(peer);
    }

    fn put(&mut self) {
        let (room, capacity) = (1 + self.dice.below(300), 1 + self.dice.below(600));
        let (mut peer, ours) = self.stage.sim.pair_with(room, capacity);
        self.stage.model.borrow_mut().expected(peer.connection());
        let by_handle = self.dice.permille(400);
        let outcome = if by_handle {
            self.manager.handle().put(ours)
        } else {
            self.manager.put(ours).map(|_| ())
        };
        let Err(refused) = outcome else {
            self.stage.model.borrow_mut().took();
            return self.meet(peer);
        };
        if matches!(refused.kind(), PutErrorKind::Busy { .. }) {
            let (taken, most) = (self.taken(), self.manager.config().max_workers as u64);
            // The refused one is still open.
            assert!(taken > most, "busy, with {} of {most} places taken", taken - 1);
        }
        match refused.kind() {
            PutErrorKind::Busy { .. } if by_handle => self.stage.mark("busy, by a handle"),
            PutErrorKind::Busy { .. } => self.stage.mark("busy, by put"),
            PutErrorKind::Unsuitable(_) => self.stage.mark("registering fails in put"),
            _ => {}
        }
        self.stage.refused(refused, &mut peer);
    }

    fn connect(&mut self) {
        let peer = self.listeners[self.dice.below(2)].connect();
        self.stage.model.borrow_mut().knocks(peer.connection());
        self.meet(peer);
    }

    /// Many come at once.
    fn crowd(&mut self) {
        // Those of the last crowd leave, all at once.
        for peer in self.peers.drain(..) {
            drop(peer.stream);
            self.stage.model.borrow_mut().forget(peer.number, peer.over);
        }
        let puts = self.dice.permille(500);
        for _ in 0..if puts { 600 } else { 300 } {
            if puts { self.put() } else { self.connect() }
        }
        if puts && self.dice.permille(600) {
            // So many deadlines have passed that one turn does not see to all.
            self.turn();
            self.stage.sim.advance(Duration::from_secs(1));
        }
    }

    fn any_id(&mut self) -> Option<ConnId> {
        self.stage.model.borrow().any_id(&mut self.dice)
    }

    fn command(&mut self) {
        let handle = self.manager.handle();
        let Some(id) = self.any_id().filter(|_| self.running) else { return };
        let mut model = self.stage.model.borrow_mut();
        match self.dice.below(10) {
            0..3 => {
                model.resume(id, self.stage.sim.now());
                handle.resume(id).unwrap();
            }
            3..5 => {
                model.pause(id);
                handle.pause(id).unwrap();
            }
            5 => {
                model.closing(id, CloseReason::Requested);
                handle.close(id).unwrap();
            }
            _ => {
                let first = self.dice.below(8) as u8;
                for next in 0..=self.dice.below(3) as u8 {
                    let value = model::SENDS[1] | ((first + next) % 8);
                    let bytes = model.send(id, value, 1 + self.dice.below(300));
                    handle.send(id, bytes).unwrap();
                }
            }
        }
    }

    fn configure(&mut self) {
        let before = format!("{:?}", self.manager.config());
        if self.dice.permille(300) {
            let invalid = draw::invalid(&mut self.dice);
            let refused = if self.dice.permille(500) {
                self.manager.set_config(invalid).map(|_| ())
            } else {
                self.manager.handle().set_config(invalid)
            };
            assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
            assert_eq!(format!("{:?}", self.manager.config()), before, "a refused change");
            return self.stage.mark("an invalid configuration");
        }
        let config = draw::config(&mut self.dice, self.crowded);
        let config = self.stage.model.borrow_mut().asked_for(config);
        let live = self.manager.stats().live;
        if self.dice.permille(500) || !self.running {
            let lowered = config.max_workers > 0 && (config.max_workers as u64) < live;
            let mut model = self.stage.model.borrow_mut();
            model.marks.hit_if("max_workers below the live", lowered);
            let most = model.most_held();
            model.marks.hit_if("buffer_size below the held", config.buffer_size < most);
            drop(model);
            self.manager.set_config(config).unwrap();
        } else {
            self.manager.handle().set_config(config).unwrap();
        }
    }

    /// Puts more commands into the queue than it holds.
    fn fill_the_queue(&mut self) {
        let Some(id) = self.any_id() else { return };
        let handle = self.manager.handle();
        self.stage.model.borrow_mut().resume(id, self.stage.sim.now());
        let full = (0..70_000).any(|_| matches!(handle.resume(id), Err(Error::QueueFull)));
        assert!(full, "a queue without an end");
        self.stage.mark("the handle's queue is full");
        let before = self.manager.stats().commands;
        for _ in 0..80 {
            self.stage.model.borrow_mut().keep_resuming(id);
            self.turn();
        }
        let done = self.manager.stats().commands - before;
        assert!(!self.running || done >= 65_000, "{done} commands were done");
    }

    fn stop_by_handle(&mut self) {
        let (mut peer, ours) = self.stage.sim.pair();
        match self.manager.handle().put(ours) {
            Ok(()) => {
                self.stage.mark("a socket is queued at a stop");
                self.stage.model.borrow_mut().took();
                self.meet(peer);
            }
            Err(refused) => self.stage.refused(refused, &mut peer),
        }
        self.manager.handle().stop().unwrap();
        self.stage.model.borrow_mut().stopping = true;
    }

    /// Stops, and checks that it takes no longer than it may.
    fn stop(&mut self) {
        let sim = &self.stage.sim;
        let elsewhere = || self.stage.model.borrow().slept + sim.tally().jumped;
        let (before, elsewhere_before) = (sim.now(), elsewhere());
        let most = self.manager.config().drain_deadline.unwrap_or_default();
        let live = self.manager.stats().live;
        let again = std::mem::replace(&mut self.stage.model.borrow_mut().stopping, true);
        if !again && self.reliable {
            let mut model = self.stage.model.borrow_mut();
            model.draining = sim.now() + most;
            model.stopped_at = Some(sim.tally().waited).filter(|_| !most.is_zero());
        }
        let lost_before = self.stage.model.borrow().lost_bytes();
        let outcome = self.manager.stop();
        let allowed = most + elsewhere().saturating_sub(elsewhere_before);
        let took = sim.now().saturating_sub(before);
        assert!(
            again || took <= allowed + Duration::from_millis(3),
            "a stop of {most:?} took {took:?}"
        );
        match outcome {
            Ok(report) => {
                let mut model = self.stage.model.borrow_mut();
                model.marks.hit_if("a stop that aborts", report.aborted > 0);
                model.marks.hit_if("a stop that drains", report.finished > 0);
                let all = report.idle + report.finished + report.aborted;
                assert!(again || all as u64 == live, "{report}, of {live}");
                let lost = model.lost_bytes();
                let lost = (lost.0 - lost_before.0, lost.1 - lost_before.1);
                let told = (report.dropped_bytes, report.unsent_bytes);
                assert!(again || told == lost, "{report:?}, but {lost:?}");
            }
            Err(Error::Wait(_)) => self.stage.mark("waiting fails"),
            Err(error) => panic!("{error}"),
        }
        self.stopped();
    }

    /// What must hold once it is stopped, however it came to be.
    fn stopped(&mut self) {
        self.running = false;
        self.stage.lossless.set(false);
        self.meet_newcomers();
        self.assert_nothing_is_left();
        let (mut peer, ours) = self.stage.sim.pair();
        let refused = self.manager.put(ours).expect_err("put into a stopped pool");
        assert!(matches!(refused.kind(), PutErrorKind::NotRunning), "{refused}");
        self.stage.refused(refused, &mut peer);
        let mut model = self.stage.model.borrow_mut();
        model.has_stopped();
        model.configs = vec![self.manager.config().clone()];
        let stats = self.manager.stats();
        model.compare(&stats, 0);
        assert_eq!(model.complaints, [""; 0]);
        self.idle_turns = 0;
        self.starved = (self.stage.sim.tally().starved_accepts, None);
    }

    fn assert_nothing_is_left(&mut self) {
        let (stats, tally) = (self.manager.stats(), self.stage.sim.tally());
        assert_eq!((stats.live, stats.lingering, stats.spare), (0, 0, 0), "{stats}");
        assert_eq!((tally.open, tally.registered), (0, 0), "{tally:?}");
        assert_eq!(self.manager.next_deadline(), None);
        assert!(self.stage.model.borrow().all_ended(), "somebody was not told of the end");
        assert_eq!(self.stage.sim.violations(), [""; 0]);
    }

    fn meet_newcomers(&mut self) {
        for stream in self.stage.newcomers.take() {
            self.meet(stream);
        }
    }

    fn turn(&mut self) {
        if !self.running {
            assert!(matches!(self.manager.turn(None), Err(Error::NotRunning)));
            return;
        }
        let timeout = match self.dice.below(20) {
            0 => None,
            1 => Some(Duration::from_secs(10)),
            _ => Some(Duration::from_micros(self.dice.below(40_000) as u64)),
        };
        let (before, signals) = (self.taken(), self.stage.sim.tally().interrupted_waits);
        let (configs, stopping) = {
            let model = self.stage.model.borrow();
            let pauses = |config: &Config| matches!(config.overload, Overload::Pause);
            self.patient = model.configs.iter().all(pauses);
            (model.configs.len(), model.stopping)
        };
        let commands = self.manager.stats().commands;
        let outcome = self.manager.turn(timeout);
        let commands = self.manager.stats().commands - commands;
        assert!(commands <= 1024, "more commands than a batch");
        match outcome {
            Ok(turn) => {
                let signal = self.stage.sim.tally().interrupted_waits > signals;
                let mut model = self.stage.model.borrow_mut();
                let most = before.max(model.most_allowed());
                model.stops(stopping, commands < 1024, self.stage.sim.now());
                model.marks.hit_if("a signal while timers are due", signal && turn.expired > 0);
                // What was asked for before this turn is done; what was asked for in it is not.
                model.configs.drain(..configs);
                model.configs.insert(0, self.manager.config().clone());
                drop(model);
                self.meet_newcomers();
                self.check(turn, most);
                if turn.stopped.is_some() {
                    self.stopped();
                }
            }
            Err(Error::Wait(_)) => {
                self.stage.mark("waiting fails");
                self.stopped();
            }
            Err(error) => panic!("{error}"),
        }
        self.turns.push(self.digest());
    }

    /// Places that are taken: by connections, and by sockets that wait to become some.
    fn taken(&self) -> u64 {
        self.stage.sim.tally().open as u64 - self.manager.stats().lingering
    }

    /// What must hold after every turn.
    fn check(&mut self, turn: Turn, most: u64) {
        let (stats, tally) = (self.manager.stats(), self.stage.sim.tally());
        self.trace(|| format!("  {turn:?}, live {}, digest {:016x}", stats.live, self.digest()));
        assert_eq!(self.stage.sim.violations(), [""; 0]);
        let config: &Config = self.manager.config();
        let asleep = turn.next != Some(Duration::ZERO);
        let turned = Turned {
            began: tally.waited,
            ended: self.stage.sim.now(),
            asleep,
            stopping: false,
            punctual: asleep || stats.live + (turn.expired as u64) < 20,
        };
        {
            let mut model = self.stage.model.borrow_mut();
            if turn.stopped.is_none() {
                model.after_turn(turned, config, &self.stage.sim);
            }
            model.compare(&stats, stats.live);
            self.marks(&mut model.marks, turn);
            assert_eq!(model.complaints, [""; 0]);
        }
        assert!(turn.expired <= 256 && turn.accepted <= 128, "{turn:?}");
        let open = stats.live + stats.lingering;
        assert_eq!(tally.registered as u64, open, "registered, {stats}");
        assert_eq!((tally.accepted, tally.starved_accepts), (stats.accepted, stats.starved));
        assert!(stats.lingering <= 256, "{stats}");
        self.check_refusals(&stats);
        assert!(self.taken() <= most, "{} connections, of at most {most}", self.taken());
        self.check_plans(turn, &stats);
        if stats.lingering >= 250 {
            self.stage.lossless.set(false);
        }
        self.check_effort(asleep, turn);
    }

    /// Who was accepted or taken has become a connection, waits to, was lost, or was refused.
    fn check_refusals(&mut self, stats: &Stats) {
        let model = self.stage.model.borrow();
        let refused = stats.busy - model.busy;
        let went = model.placed() + stats.lost + (self.taken() - stats.live) + refused;
        let astray = (stats.accepted + model.taken).wrapping_sub(went);
        if model.stopping {
            // Who comes too late is given up.
            self.astray = None;
        } else {
            let before = self.astray.replace(astray);
            assert!(
                before.is_none_or(|before| before == astray),
                "connections went astray, {stats}"
            );
        }
        let patient = self.patient && matches!(self.manager.config().overload, Overload::Pause);
        let patient = patient && refused > self.refused;
        self.refused = refused;
        assert!(!patient, "refused by a listener that is to wait");
    }

    /// Whatever waits for time to pass, or for nobody else, is in the loop's plans.
    fn check_plans(&self, turn: Turn, stats: &Stats) {
        let (config, next) = (self.manager.config(), turn.next.unwrap_or(Duration::MAX));
        let asleep = !next.is_zero();
        if turn.stopped.is_some() {
            return;
        }
        assert!(!asleep || self.taken() == stats.live, "asleep over a socket that was put");
        let five_seconds = Duration::from_millis(5_002);
        assert!(stats.lingering == 0 || next <= five_seconds, "lingering, for {next:?}");
        let spare = stats.spare > config.min_workers as u64;
        let soon = config.reap_interval + Duration::from_millis(2);
        assert!(!spare || next <= soon, "{} spare buffers, for {next:?}", stats.spare);
        let full = config.max_workers > 0 && self.taken() >= config.max_workers as u64;
        let patient = full && matches!(config.overload, Overload::Pause);
        let left = |listener: &Listener| listener.waiting() > 0 && !listener.is_pending();
        if self.listeners.iter().any(left) && !patient {
            assert!(next <= Duration::from_millis(62), "somebody waits, for {next:?}");
        }
    }

    /// A loop that has nothing to do sleeps, and one that is starved does not insist.
    fn check_effort(&mut self, asleep: bool, turn: Turn) {
        let (stats, tally) = (self.manager.stats(), self.stage.sim.tally());
        let happened = [
            stats.bytes_in,
            stats.bytes_out,
            stats.requests_total(),
            stats.commands,
            stats.events,
            stats.accepted + stats.accept_errors + stats.starved,
            stats.closed_total(),
            stats.lingering,
        ];
        let idle = !asleep && turn.expired == 0 && happened == self.happened;
        self.happened = happened;
        self.idle_turns = if idle { self.idle_turns + 1 } else { 0 };
        assert!(self.idle_turns < IDLE_TURNS, "it spins");
        let (count, last) = self.starved;
        if tally.starved_accepts > count {
            let pause = last.map_or(Duration::MAX, |last| tally.waited.saturating_sub(last));
            assert!(pause >= Duration::from_millis(50), "starved, and again in {pause:?}");
            assert!(tally.starved_accepts == count + 1, "{tally:?}");
            self.starved = (tally.starved_accepts, Some(tally.waited));
        }
    }

    fn marks(&self, marks: &mut Marks, turn: Turn) {
        let (stats, tally) = (self.manager.stats(), self.stage.sim.tally());
        let busy_elsewhere = self.stage.sim.tally().accepted;
        marks.hit_if("a stale event", stats.stale_events > 0);
        marks.hit_if("busy, by a listener", busy_elsewhere > 0 && stats.busy > 0);
        marks.hit_if("a short write", tally.short_writes > 0);
        marks.hit_if("a short read", tally.short_reads > 0);
        marks.hit_if("a lingering close", stats.lingering > 0);
        marks.hit_if("a whole batch of timers", turn.expired == 256);
        marks.hit_if("a whole batch of accepts", turn.accepted >= 64);
        marks.hit_if("a whole batch of commands", stats.commands >= 1024);
        marks.hit_if("more events than a wait returns", tally.truncated_waits > 0);
        marks.hit_if("the clock jumps an hour", tally.longest_jump > Duration::from_secs(3_600));
        let recovered = self.starved.1.is_some() && turn.accepted > 0;
        marks.hit_if("no descriptors, and then accepted", recovered);
    }

    /// Faults stop, peers read what there is and leave: everything must settle.
    fn settle(&mut self) {
        self.trace(|| "settling".to_owned());
        self.stage.sim.set_faults(Faults::none());
        self.stage.model.borrow_mut().wild = false;
        if !self.running {
            self.start();
        }
        let ids: Vec<ConnId> = self.stage.model.borrow().numbers.keys().copied().collect();
        for id in ids {
            self.stage.model.borrow_mut().resume(id, self.stage.sim.now());
            self.manager.handle().resume(id).unwrap();
        }
        self.until_all_left();
        if !self.running {
            self.start();
            self.until_all_left();
        }
        self.assert_serves();
        self.until_all_left();
        self.assert_reaps();
        let report = self.manager.stop().unwrap();
        assert_eq!(report.aborted, 0, "nothing was left to abort");
        self.stopped();
    }

    fn until_all_left(&mut self) {
        for _ in 0..5_000 {
            for peer in &mut self.peers {
                peer.hear_all(&self.stage);
                peer.finish(&self.stage);
            }
            self.turn();
            let stats = self.manager.stats();
            if stats.live == 0
                && stats.lingering == 0
                && self.listeners.iter().all(|listener| listener.waiting() == 0)
            {
                return;
            }
        }
        panic!("it does not settle: {}", self.manager.stats());
    }

    /// From any state new connections are served, as many as there may be.
    fn assert_serves(&mut self) {
        let request = match self.manager.config().framing {
            Framing::Filled => vec![b'a'; self.manager.config().buffer_size],
            Framing::LengthPrefixed { .. } => b"\0\x03abc".to_vec(),
            Framing::Custom(_) => b"d".to_vec(),
            _ => b"abc\n".to_vec(),
        };
        let most = self.manager.config().max_workers.clamp(1, 8);
        for _ in 0..most {
            let (mut peer, ours) = self.stage.sim.pair();
            let number = peer.connection();
            std::io::Write::write_all(&mut peer, &request).unwrap();
            let mut model = self.stage.model.borrow_mut();
            model.expected(number);
            model.took();
            model.accounts.get_mut(&number).unwrap().sent.extend(&request);
            drop(model);
            self.manager.put(ours).expect("a place for everyone");
            self.meet(peer);
        }
        for _ in 0..3 {
            self.turn();
        }
        let newest = self.peers.len() - most;
        for peer in &mut self.peers[newest..] {
            peer.hear_all(&self.stage);
            assert!(self.stage.model.borrow().is_answered(peer.number), "not answered");
        }
    }

    /// What is spare and not to be kept is freed.
    fn assert_reaps(&mut self) {
        for _ in 0..8 {
            self.stage.sim.advance(self.manager.config().reap_interval);
            self.manager.turn(Some(Duration::ZERO)).unwrap();
        }
        let (spare, keep) = (self.manager.stats().spare, self.manager.config().min_workers);
        assert_eq!(spare, keep as u64, "spare buffers");
        assert_eq!(self.manager.next_deadline(), None, "it does not sleep");
    }

    /// Dropped in the middle of things, it closes everything as well.
    fn end(mut self) -> Outcome {
        self.start();
        let (peer, ours) = self.stage.sim.pair();
        self.stage.model.borrow_mut().expected(peer.connection());
        self.manager.put(ours).expect("a place");
        self.connect();
        self.turn();
        let digest = self.digest();
        let Self { manager, stage, turns, .. } = self;
        let handle = manager.handle();
        drop(manager);
        let tally = stage.sim.tally();
        assert_eq!((tally.open, tally.registered), (0, 0), "dropped, {tally:?}");
        assert!(matches!(handle.stop(), Err(Error::Dropped)));
        let model = stage.model.borrow();
        assert!(model.all_ended(), "somebody was not told of the end");
        Outcome { digest, marks: model.marks.clone(), turns }
    }
}
