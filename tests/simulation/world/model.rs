//! Model: what ought to be true, told by peers and callbacks. It shares no code with the pool.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

use pool_manager::sim::Sim;
use pool_manager::{Cause, CloseReason, Closed, Config, ConnId, Stats};

mod calls;
mod clocks;
mod places;
mod rate;
mod told;

use super::marks::Marks;
use super::oracle;

/// Visits of one connection that a turn can have, and what each may do at most.
const VISITS: u32 = 3;
const READS: u32 = 16;
const CALLBACKS: u32 = 256;

/// How long a polite goodbye is waited for.
const LINGERING: Duration = Duration::from_secs(5);

/// Bytes from here on are of what desks sent, and of what handles sent; the others are of replies.
pub(crate) const SENDS: [u8; 2] = [0xf0, 0xf8];

/// How long a request may be.
pub(crate) fn longest(config: &Config) -> usize {
    config.max_request.max(config.buffer_size)
}

/// How many bytes may be kept.
fn memory(config: &Config) -> u64 {
    if config.memory_limit == 0 { u64::MAX } else { config.memory_limit as u64 }
}

/// What is known of one connection.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) id: Option<ConnId>,
    /// What the peer sent and no callback saw.
    pub(crate) sent: VecDeque<u8>,
    /// Bytes that bodies were made of.
    delivered: u64,
    /// What callbacks wrote and the peer has not seen.
    replies: VecDeque<u8>,
    pub(crate) replied: u64,
    /// What desks and what handles sent, in the order of each: the value of the bytes, how many
    /// there are, and how many the peer has seen.
    sends: [VecDeque<(u8, usize, usize)>; 2],
    pub(crate) sends_total: u64,
    got: u64,
    paused: bool,
    /// Whether it is paused depends on what was done first.
    unsure: bool,
    /// Turns in which it may become so.
    ordered: u8,
    /// This connection's own idle deadline.
    pub(crate) own: Duration,
    /// When it moved last, at the earliest and at the latest that the pool may think.
    moved: (Duration, Duration),
    /// When the network says that it moved last, as of the last turn.
    seen_moved: Duration,
    /// When its last callback ran, and when the turn of it began.
    called: (Duration, Duration),
    called_now: bool,
    /// When it began to collect a request or to owe a reply, at the latest.
    since: Option<Duration>,
    owed: bool,
    /// Turns in which it may be resumed.
    resumed: u8,
    /// How many turns ended while it was paused.
    was_paused: u32,
    /// It was asked to close: nothing more is read.
    pub(crate) closing: bool,
    /// Why it may be closed: what callbacks did, and what it was asked.
    causes: Vec<CloseReason>,
    /// Its own callback paused it, and nobody has asked that it go on.
    held_back: bool,
    /// When it was opened, at the earliest and at the latest that the pool may think.
    opened: (Duration, Duration),
    /// It neither collected a request nor owed a reply when this turn ended.
    quiet: Duration,
    /// Callbacks in this turn.
    calls: u32,
    /// The hook said that a reply has to wait, and none that it has gone out.
    blocked: bool,
    /// The hook said that a reply has gone out.
    flushed: bool,
    was_full: bool,
    /// Bytes moved in the last turn.
    progressed: bool,
    /// It came by a listener.
    knocked: bool,
    /// When its last requests were delivered.
    requests: VecDeque<Duration>,
    /// One may have had to wait for its rate when the last turn ended.
    held_up: bool,
    /// From there, and it counts for how many may.
    from: Option<IpAddr>,
    counted: bool,
    /// The handler was shown it when it was accepted.
    shown: bool,
    /// It was begun by the pool, and is not there yet.
    connecting: bool,
    /// It was opened in a stop, or once one was asked for; and surely in one.
    late: (bool, bool),
    /// Turns in which it had work and was not served.
    waited: u32,
    seen: (u64, u64),
    pub(crate) end: Option<(Closed, Duration)>,
    /// It got its last body.
    over: bool,
    /// The peer has said that it will send no more.
    pub(crate) shut: bool,
    /// The peer has gone.
    gone: bool,
}

/// What a turn was like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turned {
    /// When its wait was over.
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    /// When the wait of the turn before was over, and when the clock was first read after it: as
    /// late as that may count what happened in it.
    pub(crate) before: (Duration, Duration),
    /// Nothing is left to do.
    pub(crate) asleep: bool,
    /// All due timers were looked at.
    pub(crate) punctual: bool,
    /// A stop has begun.
    pub(crate) stopping: bool,
}

pub(crate) struct Model {
    /// By the number of the connection.
    pub(crate) accounts: BTreeMap<usize, Account>,
    pub(crate) numbers: BTreeMap<ConnId, usize>,
    pub(crate) complaints: Vec<String>,
    pub(crate) marks: Marks,
    /// Configurations that may be in effect: the last one known, and those asked for since.
    pub(crate) configs: Vec<Config>,
    /// All buffer sizes there ever were.
    sizes: BTreeSet<usize>,
    /// The largest `max_request` there ever was.
    longest: usize,
    /// How many bytes may be kept after this turn: as many as before, or as the limits allow that
    /// may have been in effect.
    memory: u64,
    /// The largest `write_limit` there ever was.
    most_unsent: usize,
    pub(crate) depth: usize,
    pub(crate) panics: u64,
    /// How often the handler was called for its own sake, and when it was last.
    ticks: (u64, Duration),
    pub(crate) busy: u64,
    /// Sockets that were put, or taken to be.
    pub(crate) taken: u64,
    peak: u64,
    /// Turns that have ended since a stop began, and until when it may take.
    stopping_for: u32,
    stop_by: Duration,
    /// The longest of the drain deadlines that a stop may have begun with.
    longest_drain: Duration,
    /// Time that slow callbacks took.
    pub(crate) slept: Duration,
    pub(crate) stopping: bool,
    /// Until when a stop waits for replies to go out.
    pub(crate) draining: Duration,
    pub(crate) wild: bool,
    pub(crate) trace: bool,
    pub(crate) digest: u64,
    /// How many have come by a listener.
    pub(crate) knocked: u64,
    opened: u64,
    closed: HashMap<CloseReason, u64>,
    requests: HashMap<Cause, u64>,
    totals: [u64; 4],
    /// Bytes that were sent by desks and handles; that came back; and that connections took.
    sends: [u64; 3],
    /// Turns that the handler was told of, and turns that could not be waited for.
    turn_ended: u64,
    pub(crate) failed_turns: u64,
    turn_ids: Vec<u32>,
    /// The highest index that a worker had.
    highest: u32,
    /// Connections that were asked for, by their keys; how many began, and came about.
    calls: BTreeMap<u64, calls::Call>,
    next_key: u64,
    connects: (u64, u64),
}

impl Model {
    pub(crate) fn new(config: &Config, trace: bool) -> Self {
        Self {
            accounts: BTreeMap::new(),
            numbers: BTreeMap::new(),
            complaints: Vec::new(),
            marks: Marks::default(),
            sizes: BTreeSet::from([config.buffer_size]),
            longest: longest(config),
            memory: 0,
            most_unsent: config.write_limit,
            configs: vec![config.clone()],
            depth: 0,
            panics: 0,
            ticks: (0, Duration::ZERO),
            busy: 0,
            taken: 0,
            peak: 0,
            stopping_for: 0,
            stop_by: Duration::ZERO,
            longest_drain: Duration::ZERO,
            slept: Duration::ZERO,
            stopping: false,
            draining: Duration::ZERO,
            wild: true,
            trace,
            digest: 0,
            knocked: 0,
            opened: 0,
            closed: HashMap::new(),
            requests: HashMap::new(),
            totals: [0; 4],
            sends: [0; 3],
            turn_ended: 0,
            failed_turns: 0,
            turn_ids: Vec::new(),
            highest: 0,
            calls: BTreeMap::new(),
            next_key: 0,
            connects: (0, 0),
        }
    }

    pub(crate) fn complain(&mut self, what: impl Into<String>) {
        self.complaints.push(what.into());
    }

    /// Tells of what happened, and folds it into the digest.
    pub(crate) fn note(&mut self, what: &dyn Fn() -> String, number: usize, word: u64) {
        if self.trace {
            println!("    {}", what());
        }
        let words = [number as u64, word];
        for word in words {
            self.digest = (self.digest.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }

    pub(crate) fn account(&mut self, id: ConnId) -> Option<&mut Account> {
        self.accounts.get_mut(self.numbers.get(&id)?)
    }

    /// A configuration is asked for; its framing and rate stay those that are in effect.
    pub(crate) fn asked_for(&mut self, config: Config) -> Config {
        let (framing, rate) = (self.configs[0].framing.clone(), self.configs[0].rate_limit);
        let config = config.framing(framing).rate_limit(rate);
        self.configs.push(config.clone());
        self.sizes.insert(config.buffer_size);
        self.longest = self.longest.max(longest(&config));
        self.most_unsent = self.most_unsent.max(config.write_limit);
        config
    }

    /// It starts anew, with this configuration.
    pub(crate) fn restarted(&mut self, config: &Config) {
        self.configs = vec![config.clone()];
        self.asked_for(config.clone());
    }

    /// The handler is called for its own sake, in the turn whose wait was over then.
    pub(crate) fn ticked(&mut self, now: Duration) {
        let intervals = self.configs.iter().map(|config| config.tick);
        match intervals.filter(|interval| !interval.is_zero()).min() {
            Some(least) if self.ticks.0 == 0 || now >= self.ticks.1 + least => {}
            least => self.complain(format!("a tick at {now:?}, of {least:?}: {:?}", self.ticks)),
        }
        self.ticks = (self.ticks.0 + 1, now);
    }

    /// How many connections there have been.
    pub(crate) fn placed(&self) -> u64 {
        self.opened
    }

    /// How many there are.
    fn live(&self) -> u64 {
        self.opened - self.closed.values().sum::<u64>()
    }

    /// A socket was taken, which none may be once a stop has begun.
    pub(crate) fn took(&mut self) {
        self.taken += 1;
        if self.stopping_for > 0 {
            self.complain("a socket is taken during a stop");
        }
    }

    /// A turn has ended, before which a stop was asked for or not, and in which all that was asked
    /// for was done or not.
    pub(crate) fn stops(&mut self, asked_for: bool, done: bool, now: Duration) {
        let drains = self.configs.iter().filter_map(|config| config.stop_deadline);
        let drain = drains.max().unwrap_or_default();
        // What a callback asks for while commands are done is done with them.
        self.longest_drain =
            if self.stopping { self.longest_drain.max(drain) } else { Duration::ZERO };
        self.stopping_for = if asked_for && done { self.stopping_for + 1 } else { 0 };
        if self.stopping_for == 1 {
            self.stop_by = now + self.longest_drain + Duration::from_millis(2);
        }
    }

    /// It has stopped.
    pub(crate) fn has_stopped(&mut self) {
        self.stopping = false;
        self.stopping_for = 0;
        self.draining = Duration::ZERO;
    }

    /// No command is left: what was sent was taken by a connection, or came back.
    pub(crate) fn check_sends(&mut self) {
        let [sent, back, taken] = self.sends;
        if sent != back + taken {
            self.complain(format!(
                "{sent} bytes sent, but {back} came back and {taken} were taken"
            ));
        }
    }

    /// How many bytes were dropped and left unsent.
    pub(crate) fn lost_bytes(&self) -> (u64, u64) {
        (self.totals[2], self.totals[3])
    }

    /// The most connections that a configuration in effect since the last turn allows.
    pub(crate) fn most_allowed(&self) -> u64 {
        let max = |config: &Config| match config.max_workers {
            0 => u64::MAX,
            max => max as u64,
        };
        self.configs.iter().map(max).max().unwrap_or(u64::MAX)
    }

    /// It is resumed again and again, whatever else is asked for.
    pub(crate) fn keep_resuming(&mut self, id: ConnId) {
        if let Some(account) = self.account(id) {
            account.unsure = true;
            account.held_back = false;
            account.resumed = 2;
        }
    }

    /// The most bytes that a connection holds, as far as they were seen.
    pub(crate) fn most_held(&self) -> usize {
        let held = |account: &Account| account.seen.0.saturating_sub(account.delivered) as usize;
        let live = self.accounts.values().filter(|account| account.end.is_none());
        live.map(held).max().unwrap_or(0)
    }

    pub(crate) fn all_ended(&self) -> bool {
        let ended = |account: &Account| account.id.is_none() || account.end.is_some();
        self.accounts.values().all(ended) && self.all_calls_ended()
    }

    /// Whether its peer was served and got all of the reply.
    pub(crate) fn is_answered(&self, number: usize) -> bool {
        let account = self.accounts.get(&number);
        account.is_some_and(|account| account.delivered > 0 && account.replies.is_empty())
    }

    /// A connection will be opened.
    pub(crate) fn expected(&mut self, number: usize) {
        self.accounts.entry(number).or_default();
    }

    /// What must hold for every connection after a turn.
    pub(crate) fn after_turn(&mut self, mut turn: Turned, config: &Config, sim: &Sim) {
        self.turn_ids.clear();
        let mut complaints = Vec::new();
        turn.stopping = self.stopping_for > 0;
        if turn.stopping && turn.began > self.stop_by {
            complaints.push(format!("a stop takes longer than until {:?}: {turn:?}", self.stop_by));
        }
        let max = (self.longest, self.most_unsent * 3 / 2);
        for account in self.accounts.values_mut() {
            let Some(id) = account.id.filter(|_| account.end.is_none()) else { continue };
            let Some(look) = sim.snapshot(id) else {
                complaints.push(format!("{id}: neither closed nor registered"));
                continue;
            };
            if account.connecting {
                account.keep_connecting();
                continue;
            }
            if let Err(wrong) = account.check(turn, config, max, look) {
                complaints.push(format!("{id}: {wrong}: {look:?} {account:?} {turn:?}"));
            }
        }
        self.complaints.extend(complaints);
        self.check_calls(turn, sim);
        let numbers = &mut self.numbers;
        self.accounts.retain(|_, account| {
            let kept = !account.gone || account.end.is_none();
            if let Some(id) = account.id.filter(|_| !kept) {
                numbers.remove(&id);
            }
            kept
        });
    }

    /// Its peer has gone: it is forgotten once it is closed, or at once if it was refused, which a
    /// peer that saw the end knows.
    pub(crate) fn forget(&mut self, number: usize, saw_the_end: bool) {
        let Some(account) = self.accounts.get_mut(&number) else { return };
        account.gone = true;
        if saw_the_end && account.id.is_none() {
            self.accounts.remove(&number);
        }
    }

    /// A turn has ended before which so many bytes were kept.
    pub(crate) fn allow_memory(&mut self, kept_before: u64) {
        self.memory = self.configs.iter().map(memory).fold(kept_before, u64::max);
    }

    /// Bytes that are kept for requests are within their limits: as many as are held at least, in
    /// buffers no larger than they may be, and in all no more than there may be.
    pub(crate) fn check_memory(&mut self, kept: u64) {
        let live = self.accounts.values().filter(|account| account.end.is_none());
        let held = live.map(|account| account.seen.0.saturating_sub(account.delivered));
        let (holders, held) =
            held.fold((0, 0), |(count, sum), held| (count + u64::from(held > 0), sum + held));
        if !(held..=holders * self.longest as u64).contains(&kept) {
            self.complain(format!("{kept} bytes are kept for {held} of {holders}"));
        }
        if kept > self.memory {
            self.complain(format!("{kept} bytes are kept, of at most {}", self.memory));
        }
        self.marks.hit_if("a request outgrows its buffer", kept > 0 && self.outgrown());
    }

    /// Whether a connection holds more than any buffer had at first.
    fn outgrown(&self) -> bool {
        self.most_held() > self.sizes.last().copied().unwrap_or(0)
    }

    /// The pool's counters are the model's.
    pub(crate) fn compare(&mut self, stats: &Stats, live: u64) {
        let mut wrong = Vec::new();
        let mut must = |what: &dyn Debug, told: u64, known: u64| {
            if told != known {
                wrong.push(format!("{what:?}: {told} counted, {known} seen"));
            }
        };
        must(&"turns", stats.turns, self.turn_ended + self.failed_turns);
        must(&"put", stats.put, self.opened);
        must(&"peak", stats.peak, self.peak);
        must(&"panics", stats.panics, self.panics + oracle::PANICS.get());
        must(&"live", live, self.live());
        must(&"ticks", stats.ticks, self.ticks.0);
        must(&"connects", stats.connects, self.connects.0);
        must(&"connected", stats.connected, self.connects.1);
        let (mut io, mut unreachable) = (0, 0);
        for (reason, count) in &self.closed {
            match reason {
                CloseReason::Io(_) => io += count,
                CloseReason::Unreachable(_) => unreachable += count,
                reason => must(reason, stats.closed(*reason), *count),
            }
        }
        must(&"Io", stats.closed(CloseReason::Io(std::io::ErrorKind::Other)), io);
        let kind = std::io::ErrorKind::Other;
        must(&"Unreachable", stats.closed(CloseReason::Unreachable(kind)), unreachable);
        for (cause, count) in &self.requests {
            must(cause, stats.requests(*cause), *count);
        }
        if live == 0 {
            let told = [stats.bytes_in, stats.bytes_out, stats.bytes_dropped, stats.bytes_unsent];
            for (told, known) in told.into_iter().zip(self.totals) {
                must(&"bytes", told, known);
            }
        }
        let timed = [CloseReason::Expired, CloseReason::WriteStalled];
        let timed: u64 = timed.iter().map(|&reason| stats.closed(reason)).sum();
        if stats.expired < timed {
            wrong.push(format!("{} deadlines counted, {timed} seen", stats.expired));
        }
        self.complaints.extend(wrong);
    }
}
