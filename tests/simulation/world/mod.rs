//! World: one seeded run of the real loop in the simulated network, with random peers, callbacks,
//! commands and faults. The invariants are checked after every turn.
//!
//! The actions of a step depend on the seed, the number of the step and the current state. Steps
//! can therefore be left out to shrink a failing run.

mod actions;
mod checks;
mod handler;
mod marks;
mod model;
mod oracle;
mod peer;
mod random;
mod settle;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use pool_manager::sim::{Faults, Host, Listener, Rng, Sim, Stream};
use pool_manager::{Config, ConnectOptions, Error, Manager, Overload, PutError, Socket};

use handler::RandomHandler;
pub(crate) use marks::Marks;
use model::Model;
use peer::Peer;

/// The payload of panics that the handler raises on purpose.
pub(crate) const PLANNED: &str = "as planned";

/// Maximum number of turns in a row in which nothing happens although the loop reports work.
const IDLE_TURNS: u32 = 64;

/// State shared by the world, its peers and its handler.
pub(crate) struct Harness {
    sim: Sim,
    model: RefCell<Model>,
    /// The peers' ends of the connections whose sockets callbacks have put.
    new_streams: RefCell<Vec<Stream>>,
    /// Hosts that have not accepted a connection yet. With each host, the key of the connect
    /// request is stored.
    pending_hosts: RefCell<Vec<(u64, Host)>>,
    /// False once something has happened that may destroy a last reply.
    lossless: Cell<bool>,
    /// A handle has notified the loop, and `notified` has not been called since then.
    notified: Cell<bool>,
    /// Number of calls of `stopping` since the last start.
    stopping_calls: Cell<u32>,
}

type Shared = Rc<Harness>;

impl Harness {
    fn mark(&self, mark: &'static str) {
        self.model.borrow_mut().marks.hit(mark);
    }

    fn sleep(&self, time: Duration) {
        self.model.borrow_mut().slept(self.sim.now(), time);
        self.sim.advance(time);
    }

    fn wait_failed(&self) {
        self.mark("the wait of the backend fails");
        self.model.borrow_mut().failed_turns += 1;
    }

    /// Counts a panic that the handler is about to raise.
    fn count_panic(&self, mark: &'static str) {
        let mut model = self.model.borrow_mut();
        model.panics += 1;
        model.marks.hit(mark);
    }

    fn panic_now(&self, mark: &'static str) {
        self.count_panic(mark);
        std::panic::panic_any(PLANNED);
    }

    /// Creates a host with a random answer. Records the connect request in the model.
    fn random_connect(&self, rng: &mut Rng) -> (Host, u64, ConnectOptions) {
        let (answer, own) = random::answer(rng);
        let mut model = self.model.borrow_mut();
        let host = self.sim.host(random::host_addr(model.next_key()));
        host.set_answer(answer);
        let (key, options) = model.request_connect(&host, answer, own, self.sim.now());
        (host, key, options)
    }

    /// Records the outcome of a connect request. If the request is accepted, the loop begins the
    /// connect later.
    fn connect_requested(&self, host: Host, key: u64, outcome: Result<(), Error>) {
        let mut model = self.model.borrow_mut();
        match outcome {
            Ok(()) => {
                model.socket_taken();
                self.pending_hosts.borrow_mut().push((key, host));
            }
            Err(refused) => {
                let busy = matches!(refused, Error::Busy { .. });
                model.busy += u64::from(busy);
                model.marks.hit_if("connect is refused as busy", busy);
                model.connect_refused(key);
            }
        }
    }

    /// Checks that a refused socket is returned and still works.
    fn refused(&self, refused: PutError, peer: &mut Stream) {
        let kind = format!("{:?}", refused.error());
        if matches!(refused.error(), Error::Busy { .. }) {
            self.model.borrow_mut().busy += 1;
        }
        self.model.borrow_mut().records.remove(&peer.connection());
        let Socket::Sim(mut ours) = refused.into_socket() else { return };
        let mut byte = [0];
        let written = std::io::Write::write(&mut ours, b"!");
        let read = std::io::Read::read(peer, &mut byte);
        if written.is_ok() && read.ok() != Some(1) {
            self.model.borrow_mut().fail(format!("{kind}: the returned socket does not work"));
        }
    }
}

/// The result of a run.
pub(crate) struct Outcome {
    pub(crate) digest: u64,
    pub(crate) marks: Marks,
    /// The digest after each turn.
    pub(crate) turns: Vec<u64>,
}

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) step: usize,
    pub(crate) what: String,
}

thread_local! {
    static STEP: Cell<usize> = const { Cell::new(0) };
    /// True while this thread executes a run.
    static IN_RUN: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Installs a panic hook that stores the panics of a run instead of printing them. It ignores
/// planned panics.
fn capture_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match info.payload().downcast_ref::<&str>() {
            Some(&PLANNED) => {}
            _ if IN_RUN.get() => PANIC.set(info.to_string()),
            _ => usual(info),
        }));
    });
}

/// Runs the given steps of a seed. Then stops all faults and checks that all connections end.
pub(crate) fn run(
    seed: u64,
    steps: impl Iterator<Item = usize>,
    trace: bool,
) -> Result<Outcome, Violation> {
    capture_panics();
    STEP.set(0);
    oracle::PANICS.set(0);
    IN_RUN.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, trace);
        for step in steps {
            STEP.set(step);
            world.step(step);
        }
        world.settle();
        world.drop_running()
    }));
    IN_RUN.set(false);
    outcome.map_err(|_| Violation { step: STEP.get(), what: PANIC.with_borrow(String::clone) })
}

struct World {
    seed: u64,
    harness: Shared,
    manager: Manager<RandomHandler, Sim>,
    peers: Vec<Peer>,
    rng: Rng,
    /// Generator for connects. Only some seeds have one.
    connect_rng: Option<Rng>,
    /// Generator for notifications. Only some seeds have one.
    notify_rng: Option<Rng>,
    listeners: [Listener; 2],
    /// The listeners were taken from the manager and have not been given back.
    listeners_taken: bool,
    running: bool,
    /// No fault of this seed makes a wait fail.
    waits_succeed: bool,
    crowd_seed: bool,
    /// The counters of activity after the last turn, and the number of turns since they changed.
    activity: [u64; 8],
    idle_turns: u32,
    /// Number of ticks after the last turn.
    ticks: u64,
    /// Number of accepts without a free descriptor, and the time of the last one.
    starved: (u64, Option<Duration>),
    /// Number of connections that are not accounted for. `refused` is the number of connections
    /// that the listeners refused.
    unaccounted: Option<u64>,
    refused: u64,
    /// Number of connections that `max_per_peer` refused.
    refused_per_peer: u64,
    /// Number of connections that were reset by a stop while they waited in the queue of a
    /// listener.
    turned_away: u64,
    /// When the wait of the last turn ended.
    last_wait_ended: Duration,
    /// Every configuration that may be in effect makes the listeners wait for a permit.
    must_pause: bool,
    turns: Vec<u64>,
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let faults = Faults::swarm(seed);
        let sim = Sim::with_faults(seed, faults);
        let crowd_seed = rng.permille(30);
        let config = random::config(&mut rng, crowd_seed);
        let lossless = faults.failed_registers == 0
            && faults.failed_reads == 0
            && faults.failed_waits == 0
            && faults.clock_jumps == 0;
        let harness = Rc::new(Harness {
            sim: sim.clone(),
            model: RefCell::new(Model::new(&config, trace)),
            new_streams: RefCell::new(Vec::new()),
            pending_hosts: RefCell::new(Vec::new()),
            lossless: Cell::new(lossless),
            notified: Cell::new(false),
            stopping_calls: Cell::new(0),
        });
        if trace {
            println!("{config:?}\n{faults:?}");
        }
        let mut hook_rng = Rng::new(seed ^ 2);
        let hook_rng = hook_rng.permille(200).then_some(hook_rng);
        let mut connect_rng = Rng::new(seed ^ 4);
        let connect_rng = connect_rng.permille(250).then_some(connect_rng);
        let mut notify_rng = Rng::new(seed ^ 6);
        let notify_rng = notify_rng.permille(250).then_some(notify_rng);
        let mut finish_rng = Rng::new(seed ^ 8);
        let finish_rng = finish_rng.permille(300).then_some(finish_rng);
        let handler_connect_rng = connect_rng.is_some().then(|| Rng::new(seed ^ 5));
        let handler = RandomHandler {
            harness: harness.clone(),
            rng: Rng::new(seed ^ 1),
            hook_rng,
            connect_rng: handler_connect_rng,
            finish_rng,
        };
        let manager = Manager::with_backend(config, handler, sim.clone()).unwrap();
        Self {
            seed,
            listeners: [sim.listener(), sim.listener()],
            listeners_taken: false,
            harness,
            manager,
            peers: Vec::new(),
            rng,
            connect_rng,
            notify_rng,
            running: false,
            waits_succeed: faults.failed_waits == 0,
            crowd_seed,
            activity: [0; 8],
            idle_turns: 0,
            ticks: 0,
            starved: (0, None),
            unaccounted: None,
            turned_away: 0,
            last_wait_ended: Duration::ZERO,
            refused: 0,
            refused_per_peer: 0,
            must_pause: false,
            turns: Vec::new(),
        }
    }

    fn digest(&self) -> u64 {
        self.harness.sim.digest() ^ self.harness.model.borrow().digest
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.harness.model.borrow().trace {
            println!("{}", what());
        }
    }

    /// Runs one step: up to three actions, then a turn.
    fn step(&mut self, step: usize) {
        self.rng = Rng::new(self.seed ^ (step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.trace(|| format!("step {step}, at {:?}", self.harness.sim.now()));
        for _ in 0..self.rng.below(4) {
            self.act();
        }
        if self.running {
            self.maybe_connect();
        }
        if self.running {
            self.maybe_notify();
        }
        if self.running && self.rng.permille(300) {
            self.return_listeners();
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
        let (before, signals) =
            (self.permits_taken(), self.harness.sim.counters().interrupted_waits);
        let (configs, stopping) = {
            let model = self.harness.model.borrow();
            let pauses = |config: &Config| matches!(config.overload, Overload::Pause);
            self.must_pause = model.configs.iter().all(pauses);
            (model.configs.len(), model.stopping)
        };
        let kept = self.manager.stats().bytes_held;
        let commands = self.manager.stats().commands;
        let stops = self.harness.stopping_calls.get();
        let outcome = self.manager.turn(timeout);
        let commands = self.manager.stats().commands - commands;
        // A stop begins by executing all commands that callbacks have queued.
        let stop_began = self.harness.stopping_calls.get() > stops;
        assert!(commands <= 1024 || stop_began, "more than one batch of commands");
        match outcome {
            Ok(turn) => {
                let signal = self.harness.sim.counters().interrupted_waits > signals;
                let mut model = self.harness.model.borrow_mut();
                let max = before.max(model.max_allowed());
                model.allow_memory(kept);
                model.track_stop(stopping, commands < 1024, self.harness.sim.now());
                model.marks.hit_if(
                    "a signal interrupts a wait while timers are due",
                    signal && turn.expired > 0,
                );
                // The turn has applied the configurations that were requested before the turn. It
                // has applied none that were requested later.
                model.configs.drain(..configs);
                model.configs.insert(0, self.manager.config().clone());
                drop(model);
                self.add_new_peers();
                self.check(turn, max);
                if turn.stopped.is_some() {
                    assert_eq!(self.harness.stopping_calls.get(), 1, "calls of `stopping`");
                    self.check_stopped();
                }
            }
            Err(Error::Wait(_)) => {
                self.harness.wait_failed();
                self.check_stopped();
            }
            Err(error) => panic!("{error}"),
        }
        self.turns.push(self.digest());
    }
}
