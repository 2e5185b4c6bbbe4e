//! A world: the real loop in a seeded network, among random peers, callbacks, commands and
//! faults; and after every turn what must always hold.
//!
//! What a step does depends on the seed, the number of the step and what there is by then, so
//! that steps can be left out to find the few that matter.

mod acts;
mod checks;
mod draw;
mod ends;
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

use pool_manager::sim::{Faults, Host, Listener, Rng, Sim, Stream};
use pool_manager::{Config, ConnectOptions, Error, Manager, Overload, PutError, Socket};

pub(crate) use marks::Marks;
use model::Model;
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
    /// Who was called, with which key, and has not been met.
    callees: RefCell<Vec<(u64, Host)>>,
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

    fn waiting_fails(&self) {
        self.mark("waiting fails");
        self.model.borrow_mut().failed_turns += 1;
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

    /// Somebody to be called, and with what.
    fn callee(&self, rng: &mut Rng) -> (Host, u64, ConnectOptions) {
        let (answer, own) = draw::answer(rng);
        let mut model = self.model.borrow_mut();
        let host = self.sim.host(draw::callee(model.next_key()));
        host.set_answer(answer);
        let (key, options) = model.calls(&host, answer, own, self.sim.now());
        (host, key, options)
    }

    /// What came of asking for a connection that begins at the turn boundary.
    fn connect_requested(&self, host: Host, key: u64, outcome: Result<(), Error>) {
        let mut model = self.model.borrow_mut();
        match outcome {
            Ok(()) => {
                model.took();
                self.callees.borrow_mut().push((key, host));
            }
            Err(refused) => {
                let busy = matches!(refused, Error::Busy { .. });
                model.busy += u64::from(busy);
                model.marks.hit_if("busy, by connect", busy);
                model.not_called(key);
            }
        }
    }

    /// A socket that is not taken comes back as it was.
    fn refused(&self, refused: PutError, peer: &mut Stream) {
        let kind = format!("{:?}", refused.error());
        if matches!(refused.error(), Error::Busy { .. }) {
            self.model.borrow_mut().busy += 1;
        }
        self.model.borrow_mut().accounts.remove(&peer.connection());
        let Socket::Sim(mut ours) = refused.into_socket() else { return };
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
    rng: Rng,
    /// For connections that are asked for, in seeds that have some.
    calls: Option<Rng>,
    listeners: [Listener; 2],
    /// They were taken from the manager and not given back.
    away: bool,
    running: bool,
    /// Waiting never fails.
    reliable: bool,
    crowded: bool,
    /// What had happened by the last turn, and in how many turns it has not changed.
    happened: [u64; 8],
    idle_turns: u32,
    /// How many ticks there had been by the last turn.
    ticks: u64,
    /// How often there was no descriptor for an accept, and when the last time was.
    starved: (u64, Option<Duration>),
    /// What is not accounted for of those who came, and how many were refused by a listener.
    astray: Option<u64>,
    refused: u64,
    /// How many were refused as one too many of their peer's.
    crowds: u64,
    /// How many were reset in a queue by the end of the last stop.
    turned_away: u64,
    /// When the wait of the last turn was over.
    began: Duration,
    /// Listeners have to wait for a place, whatever configuration is in effect.
    patient: bool,
    turns: Vec<u64>,
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let faults = Faults::swarm(seed);
        let sim = Sim::with_faults(seed, faults);
        let crowded = rng.permille(30);
        let config = draw::config(&mut rng, crowded);
        let lossless = faults.failed_registers == 0
            && faults.failed_reads == 0
            && faults.failed_waits == 0
            && faults.clock_jumps == 0;
        let stage = Rc::new(Stage {
            sim: sim.clone(),
            model: RefCell::new(Model::new(&config, trace)),
            newcomers: RefCell::new(Vec::new()),
            callees: RefCell::new(Vec::new()),
            lossless: Cell::new(lossless),
        });
        if trace {
            println!("{config:?}\n{faults:?}");
        }
        let mut other = Rng::new(seed ^ 2);
        let other = other.permille(200).then_some(other);
        let mut calls = Rng::new(seed ^ 4);
        let calls = calls.permille(250).then_some(calls);
        let player_s = calls.is_some().then(|| Rng::new(seed ^ 5));
        let player =
            Player { world: stage.clone(), rng: Rng::new(seed ^ 1), other, calls: player_s };
        let manager = Manager::with_backend(config, player, sim.clone()).unwrap();
        Self {
            seed,
            listeners: [sim.listener(), sim.listener()],
            away: false,
            stage,
            manager,
            peers: Vec::new(),
            rng,
            calls,
            running: false,
            reliable: faults.failed_waits == 0,
            crowded,
            happened: [0; 8],
            idle_turns: 0,
            ticks: 0,
            starved: (0, None),
            astray: None,
            turned_away: 0,
            began: Duration::ZERO,
            refused: 0,
            crowds: 0,
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
        self.rng = Rng::new(self.seed ^ (step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.trace(|| format!("step {step}, at {:?}", self.stage.sim.now()));
        for _ in 0..self.rng.below(4) {
            self.act();
        }
        if self.running {
            self.call();
        }
        if self.running && self.rng.permille(300) {
            self.give_listeners_back();
        }
        self.turn();
    }

    fn turn(&mut self) {
        if !self.running {
            assert!(matches!(self.manager.turn(None), Err(Error::NotRunning)));
            return;
        }
        let timeout = match self.rng.below(20) {
            0 => None,
            1 => Some(Duration::from_secs(10)),
            _ => Some(Duration::from_micros(self.rng.below(40_000) as u64)),
        };
        let (before, signals) = (self.taken(), self.stage.sim.counters().interrupted_waits);
        let (configs, stopping) = {
            let model = self.stage.model.borrow();
            let pauses = |config: &Config| matches!(config.overload, Overload::Pause);
            self.patient = model.configs.iter().all(pauses);
            (model.configs.len(), model.stopping)
        };
        let kept = self.manager.stats().bytes_held;
        let commands = self.manager.stats().commands;
        let outcome = self.manager.turn(timeout);
        let commands = self.manager.stats().commands - commands;
        assert!(commands <= 1024, "more commands than a batch");
        match outcome {
            Ok(turn) => {
                let signal = self.stage.sim.counters().interrupted_waits > signals;
                let mut model = self.stage.model.borrow_mut();
                let max = before.max(model.most_allowed());
                model.allow_memory(kept);
                model.stops(stopping, commands < 1024, self.stage.sim.now());
                model.marks.hit_if("a signal while timers are due", signal && turn.expired > 0);
                // What was asked for before this turn is done; what was asked for in it is not.
                model.configs.drain(..configs);
                model.configs.insert(0, self.manager.config().clone());
                drop(model);
                self.meet_newcomers();
                self.check(turn, max);
                if turn.stopped.is_some() {
                    self.stopped();
                }
            }
            Err(Error::Wait(_)) => {
                self.stage.waiting_fails();
                self.stopped();
            }
            Err(error) => panic!("{error}"),
        }
        self.turns.push(self.digest());
    }
}
