//! Model: the expected state of the pool, built from the actions of peers and callbacks. It shares
//! no code with the pool.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

use pool_manager::sim::Sim;
use pool_manager::{Cause, CloseReason, Closed, Config, ConnId, Stats};

mod admission;
mod connects;
mod deadlines;
mod events;
mod rate;

pub(crate) use events::Delivery;

use super::marks::Marks;
use super::oracle;

/// Three maximum numbers: visits to one connection in a turn, reads in a visit, and callbacks in a
/// visit.
const VISITS: u32 = 3;
const READS: u32 = 16;
const CALLBACKS: u32 = 256;

/// Maximum time for which a closed connection lingers.
const LINGERING: Duration = Duration::from_secs(5);

/// Two byte values. The first is the smallest value in sends of callbacks, and the second is the
/// smallest value in sends of handles. Bytes with values below both belong to replies.
pub(crate) const SENDS: [u8; 2] = [0xf0, 0xf8];

/// Returns the length of the longest request that the configuration allows.
pub(crate) fn longest_request(config: &Config) -> usize {
    config.max_request.unwrap_or(config.buffer_size)
}

/// Returns the number of connections that the configuration allows.
pub(crate) fn max_workers(config: &Config) -> u64 {
    config.max_workers.map_or(u64::MAX, |max| max as u64)
}

/// Returns the number of bytes that the configuration allows for requests.
fn memory_limit(config: &Config) -> u64 {
    config.memory_limit.map_or(u64::MAX, |limit| limit as u64)
}

/// The model of one connection.
#[derive(Debug, Default)]
pub(crate) struct ConnRecord {
    pub(crate) id: Option<ConnId>,
    /// Bytes that the peer sent and that were not delivered yet.
    pub(crate) sent: VecDeque<u8>,
    /// Number of bytes delivered, delimiters and prefixes included.
    delivered: u64,
    /// Bytes that callbacks wrote and that the peer has not received.
    replies: VecDeque<u8>,
    pub(crate) replied: u64,
    /// The sends of callbacks and the sends of handles, each in order. All bytes of one send have
    /// the same value. An entry holds this value, the number of bytes in the send, and how many of
    /// these bytes the peer has received.
    sends: [VecDeque<(u8, usize, usize)>; 2],
    pub(crate) sends_total: u64,
    got: u64,
    paused: bool,
    /// The model does not know the order of two commands, so the connection may or may not be
    /// paused.
    pause_uncertain: bool,
    /// Number of turns in which a pause after a resume, or a resume after a pause, still sets
    /// `pause_uncertain`.
    uncertain_turns: u8,
    /// The idle deadline of this connection, or zero.
    pub(crate) own_deadline: Duration,
    /// Earliest and latest time that the pool may have recorded as the time of the last activity.
    moved: (Duration, Duration),
    /// Time of the last activity in the simulated network, as of the last turn.
    seen_moved: Duration,
    /// Time of the last callback, and the earliest time that the pool may have recorded for it.
    last_callback: (Duration, Duration),
    called_in_turn: bool,
    /// Latest time from which `request_deadline` may count. This time is set while the connection
    /// holds part of a request or has unsent bytes.
    total_since: Option<Duration>,
    had_unsent: bool,
    /// Number of turns in which a requested resume may still take effect.
    resume_turns: u8,
    /// Earliest and latest time at which the pause may have begun.
    pause_began: (Duration, Duration),
    /// Number of turns in a row that ended while the connection was paused.
    paused_turns: u32,
    /// A close was requested, so nothing more is read.
    pub(crate) closing: bool,
    /// Close reasons that actions of callbacks and commands allow.
    allowed_reasons: Vec<CloseReason>,
    /// A callback of this connection paused it, and no resume has been requested since.
    paused_by_callback: bool,
    /// Earliest and latest time that the pool may have recorded as the time at which the connection
    /// was opened.
    opened: (Duration, Duration),
    /// End of the last turn after which the connection held no part of a request and had no unsent
    /// bytes.
    quiet: Duration,
    /// Number of callbacks in this turn.
    callbacks: u32,
    /// `blocked` was called, and `flushed` has not been called since.
    blocked: bool,
    /// `flushed` was called in this turn.
    flushed: bool,
    was_full: bool,
    /// Bytes were read or written in the last turn.
    progressed: bool,
    /// The connection came through a listener.
    from_listener: bool,
    /// Times at which the last requests were delivered.
    requests: VecDeque<Duration>,
    /// `rate_limit` may have delayed a request when the last turn ended.
    rate_limited: bool,
    /// The address of the client, and whether the connection counts towards `max_per_peer`.
    peer_addr: Option<IpAddr>,
    counts_for_peer: bool,
    /// `Handler::wrap` was called for the connection.
    wrapped: bool,
    /// The pool has begun the connect, and the connection is not established yet.
    connecting: bool,
    /// Whether the connection was opened after a stop was requested, and whether it was certainly
    /// opened inside `Manager::stop`.
    opened_in_stop: (bool, bool),
    /// Number of turns in a row in which the connection was ready and was not served.
    unserved_turns: u32,
    seen: (u64, u64),
    pub(crate) end: Option<(Closed, Duration)>,
    /// The last request or incomplete request of a connection that then closes was delivered.
    got_last_body: bool,
    /// The connection began here.
    outgoing: bool,
    /// `opened` returned a session.
    pub(crate) has_session: bool,
    /// The rest of a stream was delivered at the end of file.
    got_rest: bool,
    /// `read_closed` was called.
    pub(crate) read_closed: bool,
    /// A callback of the connection called `finish`.
    pub(crate) finished: bool,
    /// Number of bytes written after `finish`.
    discarded: u64,
    /// The peer has shut down its write side.
    pub(crate) write_closed: bool,
    /// The peer has left.
    peer_gone: bool,
}

/// The times and the state of one turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TurnRecord {
    /// When the wait of the turn ended.
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    /// When the wait of the previous turn ended, and when the wait of this turn began. The pool may
    /// record the second time as the time of activity in the previous turn.
    pub(crate) before: (Duration, Duration),
    /// The loop has no work left.
    pub(crate) asleep: bool,
    /// All due timers were handled.
    pub(crate) punctual: bool,
    /// A stop is in progress.
    pub(crate) stopping: bool,
}

pub(crate) struct Model {
    /// The connections, by their numbers.
    pub(crate) records: BTreeMap<usize, ConnRecord>,
    pub(crate) numbers: BTreeMap<ConnId, usize>,
    pub(crate) failures: Vec<String>,
    pub(crate) marks: Marks,
    /// Configurations that may be in effect: the last one that is known to be in effect, and all
    /// configurations requested since then.
    pub(crate) configs: Vec<Config>,
    /// All buffer sizes so far.
    sizes: BTreeSet<usize>,
    /// The longest request that any configuration so far allows.
    longest: usize,
    /// Maximum number of bytes that may be held after this turn. It is the larger of two numbers:
    /// the number of bytes held before the turn, and the largest limit that may have been in
    /// effect.
    memory: u64,
    /// The largest `write_limit` so far.
    max_unsent: usize,
    pub(crate) depth: usize,
    pub(crate) panics: u64,
    /// Number of calls of `Handler::tick`, and the time of the last one.
    ticks: (u64, Duration),
    pub(crate) busy: u64,
    /// Number of sockets and connects that the pool has accepted.
    pub(crate) taken_sockets: u64,
    peak: u64,
    /// Number of turns that have ended since a stop began. `stop_limit` is the latest time at which
    /// the stop must have ended.
    stop_turns: u32,
    stop_limit: Duration,
    /// The largest `stop_deadline` with which the stop may have begun.
    longest_stop_deadline: Duration,
    /// Total duration of slow callbacks.
    pub(crate) slept: Duration,
    pub(crate) stopping: bool,
    /// Time until which a stop waits for replies to be sent.
    pub(crate) drain_until: Duration,
    pub(crate) actions_enabled: bool,
    pub(crate) trace: bool,
    pub(crate) digest: u64,
    /// Number of clients that connected to a listener.
    pub(crate) listener_connects: u64,
    opened: u64,
    closed: HashMap<CloseReason, u64>,
    requests: HashMap<Cause, u64>,
    /// Calls of `incomplete`, by cause.
    incomplete: HashMap<Cause, u64>,
    totals: [u64; 4],
    /// Three numbers of bytes: sent by commands, returned, and taken by connections.
    sends: [u64; 3],
    /// Number of calls of `turn_ended`, and number of turns whose wait failed.
    turn_ended: u64,
    pub(crate) failed_turns: u64,
    turn_ids: Vec<u32>,
    /// The highest index of a worker so far.
    highest: u32,
    /// Connects by their keys. `connect_counts` says how many have begun and how many have
    /// succeeded.
    connects: BTreeMap<u64, connects::ConnectRecord>,
    next_key: u64,
    connect_counts: (u64, u64),
}

impl Model {
    pub(crate) fn new(config: &Config, trace: bool) -> Self {
        Self {
            records: BTreeMap::new(),
            numbers: BTreeMap::new(),
            failures: Vec::new(),
            marks: Marks::default(),
            sizes: BTreeSet::from([config.buffer_size]),
            longest: longest_request(config),
            memory: 0,
            max_unsent: config.write_limit,
            configs: vec![config.clone()],
            depth: 0,
            panics: 0,
            ticks: (0, Duration::ZERO),
            busy: 0,
            taken_sockets: 0,
            peak: 0,
            stop_turns: 0,
            stop_limit: Duration::ZERO,
            longest_stop_deadline: Duration::ZERO,
            slept: Duration::ZERO,
            stopping: false,
            drain_until: Duration::ZERO,
            actions_enabled: true,
            trace,
            digest: 0,
            listener_connects: 0,
            opened: 0,
            closed: HashMap::new(),
            requests: HashMap::new(),
            incomplete: HashMap::new(),
            totals: [0; 4],
            sends: [0; 3],
            turn_ended: 0,
            failed_turns: 0,
            turn_ids: Vec::new(),
            highest: 0,
            connects: BTreeMap::new(),
            next_key: 0,
            connect_counts: (0, 0),
        }
    }

    pub(crate) fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(what.into());
    }

    /// Prints an event if the run is traced, and adds it to the digest.
    pub(crate) fn note(&mut self, what: &dyn Fn() -> String, number: usize, word: u64) {
        if self.trace {
            println!("    {}", what());
        }
        let words = [number as u64, word];
        for word in words {
            self.digest = (self.digest.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }

    pub(crate) fn record(&mut self, id: ConnId) -> Option<&mut ConnRecord> {
        self.records.get_mut(self.numbers.get(&id)?)
    }

    /// Replaces the framing and the rate limit of a requested configuration by those in effect.
    /// Records the configuration and returns it.
    pub(crate) fn config_requested(&mut self, config: Config) -> Config {
        let (framing, rate) = (self.configs[0].framing.clone(), self.configs[0].rate_limit);
        let config = config.framing(framing).rate_limit(rate);
        self.configs.push(config.clone());
        self.sizes.insert(config.buffer_size);
        self.longest = self.longest.max(longest_request(&config));
        self.max_unsent = self.max_unsent.max(config.write_limit);
        config
    }

    /// Records a start with this configuration.
    pub(crate) fn restarted(&mut self, config: &Config) {
        self.configs = vec![config.clone()];
        self.config_requested(config.clone());
    }

    /// Checks a call of `Handler::tick` in the turn whose wait ended at `now`.
    pub(crate) fn ticked(&mut self, now: Duration) {
        match self.configs.iter().filter_map(|config| config.tick).min() {
            Some(least) if self.ticks.0 == 0 || now >= self.ticks.1 + least => {}
            least => self.fail(format!(
                "a tick at {now:?}, with an interval of {least:?}: {:?}",
                self.ticks
            )),
        }
        self.ticks = (self.ticks.0 + 1, now);
    }

    /// Returns the number of connections so far.
    pub(crate) fn opened_total(&self) -> u64 {
        self.opened
    }

    /// Returns the number of open connections.
    fn live(&self) -> u64 {
        self.opened - self.closed.values().sum::<u64>()
    }

    /// Records that the pool took a socket. It may not do so during a stop.
    pub(crate) fn socket_taken(&mut self) {
        self.taken_sockets += 1;
        if self.stop_turns > 0 {
            self.fail("a socket was taken during a stop");
        }
    }

    /// Records the end of a turn. `requested` says whether a stop was requested before the turn,
    /// and `done` whether the turn executed all commands.
    pub(crate) fn track_stop(&mut self, requested: bool, done: bool, now: Duration) {
        let deadlines = self.configs.iter().filter_map(|config| config.stop_deadline);
        let deadline = deadlines.max().unwrap_or_default();
        // Commands that callbacks queue during the command phase are executed in the same phase.
        self.longest_stop_deadline =
            if self.stopping { self.longest_stop_deadline.max(deadline) } else { Duration::ZERO };
        self.stop_turns = if requested && done { self.stop_turns + 1 } else { 0 };
        if self.stop_turns == 1 {
            self.stop_limit = now + self.longest_stop_deadline + Duration::from_millis(2);
        }
    }

    /// Records the end of a stop.
    pub(crate) fn stop_ended(&mut self) {
        self.stopping = false;
        self.stop_turns = 0;
        self.drain_until = Duration::ZERO;
    }

    /// Checks the sends once no command is left. Each byte was either taken by a connection or
    /// returned.
    pub(crate) fn check_sends(&mut self) {
        let [sent, back, taken] = self.sends;
        if sent != back + taken {
            self.fail(format!(
                "{sent} bytes sent, but {back} were returned and {taken} were taken"
            ));
        }
    }

    /// Returns the number of dropped bytes and of unsent bytes.
    pub(crate) fn dropped_and_unsent(&self) -> (u64, u64) {
        (self.totals[2], self.totals[3])
    }

    /// Returns the largest `max_workers` that may have been in effect since the last turn.
    pub(crate) fn max_allowed(&self) -> u64 {
        self.configs.iter().map(max_workers).max().unwrap_or(u64::MAX)
    }

    /// Records that queued commands may resume the connection. The model does not know in which
    /// order these and other commands are executed.
    pub(crate) fn mark_resumed(&mut self, id: ConnId) {
        if let Some(record) = self.record(id) {
            record.pause_uncertain = true;
            record.paused_by_callback = false;
            record.resume_turns = 2;
        }
    }

    /// Returns the largest number of bytes that a connection is known to hold.
    pub(crate) fn max_held(&self) -> usize {
        let held = |record: &ConnRecord| record.seen.0.saturating_sub(record.delivered) as usize;
        let live = self.records.values().filter(|record| record.end.is_none());
        live.map(held).max().unwrap_or(0)
    }

    pub(crate) fn all_ended(&self) -> bool {
        let ended = |record: &ConnRecord| record.id.is_none() || record.end.is_some();
        self.records.values().all(ended) && self.all_connects_ended()
    }

    /// Returns whether this connection has received a request, and whether its peer has received
    /// the whole reply.
    pub(crate) fn is_answered(&self, number: usize) -> bool {
        let record = self.records.get(&number);
        record.is_some_and(|record| record.delivered > 0 && record.replies.is_empty())
    }

    /// Records that a connection will be opened.
    pub(crate) fn expected(&mut self, number: usize) {
        self.records.entry(number).or_default();
    }

    /// Checks the invariants of every connection after a turn.
    pub(crate) fn after_turn(&mut self, mut turn: TurnRecord, config: &Config, sim: &Sim) {
        self.turn_ids.clear();
        let mut failures = Vec::new();
        turn.stopping = self.stop_turns > 0;
        if turn.stopping && turn.began > self.stop_limit {
            failures.push(format!("a stop did not end by {:?}: {turn:?}", self.stop_limit));
        }
        let max = (self.longest, self.max_unsent * 3 / 2);
        for record in self.records.values_mut() {
            let Some(id) = record.id.filter(|_| record.end.is_none()) else { continue };
            let Some(snapshot) = sim.snapshot(id) else {
                failures.push(format!("{id}: it is neither closed nor registered"));
                continue;
            };
            if record.connecting {
                record.end_turn_connecting();
                continue;
            }
            if let Err(wrong) = record.check(turn, config, max, snapshot) {
                failures.push(format!("{id}: {wrong}: {snapshot:?} {record:?} {turn:?}"));
            }
        }
        self.failures.extend(failures);
        self.check_connects(turn, sim);
        let numbers = &mut self.numbers;
        self.records.retain(|_, record| {
            let kept = !record.peer_gone || record.end.is_none();
            if let Some(id) = record.id.filter(|_| !kept) {
                numbers.remove(&id);
            }
            kept
        });
    }

    /// Records that the peer has left. The record is removed once the connection is closed. If the
    /// connection was never opened, but the peer saw its end, then the connection was refused. In
    /// that case the record is removed at once.
    pub(crate) fn peer_left(&mut self, number: usize, saw_the_end: bool) {
        let Some(record) = self.records.get_mut(&number) else { return };
        record.peer_gone = true;
        if saw_the_end && record.id.is_none() {
            self.records.remove(&number);
        }
    }

    /// Sets how many bytes may be held after the turn that just ended.
    pub(crate) fn allow_memory(&mut self, kept_before: u64) {
        self.memory = self.configs.iter().map(memory_limit).fold(kept_before, u64::max);
    }

    /// Checks the number of bytes that are kept for requests. It must be at least the number of
    /// held bytes. It must not exceed the longest request, multiplied by the number of connections
    /// that hold bytes. It must also be within the limit.
    pub(crate) fn check_memory(&mut self, kept: u64) {
        let live = self.records.values().filter(|record| record.end.is_none());
        let held = live.map(|record| record.seen.0.saturating_sub(record.delivered));
        let (holders, held) =
            held.fold((0, 0), |(count, sum), held| (count + u64::from(held > 0), sum + held));
        if !(held..=holders * self.longest as u64).contains(&kept) {
            self.fail(format!("{kept} bytes are kept for {held} bytes of {holders} connections"));
        }
        if kept > self.memory {
            self.fail(format!("{kept} bytes are kept, but the limit is {}", self.memory));
        }
        self.marks.hit_if("a request outgrows its buffer", kept > 0 && self.outgrown());
    }

    /// Returns whether a connection holds more bytes than any initial buffer has.
    fn outgrown(&self) -> bool {
        self.max_held() > self.sizes.last().copied().unwrap_or(0)
    }

    /// Checks that the counters of the pool equal those of the model.
    pub(crate) fn compare(&mut self, stats: &Stats, live: u64) {
        let mut wrong = Vec::new();
        let mut must = |what: &dyn Debug, counted: u64, seen: u64| {
            if counted != seen {
                wrong.push(format!("{what:?}: {counted} counted, {seen} seen"));
            }
        };
        must(&"turns", stats.turns, self.turn_ended + self.failed_turns);
        must(&"put", stats.put, self.opened);
        must(&"peak", stats.peak, self.peak);
        must(&"panics", stats.panics, self.panics + oracle::PANICS.get());
        must(&"live", live, self.live());
        must(&"ticks", stats.ticks, self.ticks.0);
        must(&"connects", stats.connects, self.connect_counts.0);
        must(&"connected", stats.connected, self.connect_counts.1);
        for (reason, count) in &self.closed {
            must(reason, stats.closed(*reason), *count);
        }
        for (cause, count) in &self.requests {
            must(cause, stats.requests(*cause), *count);
        }
        for (cause, count) in &self.incomplete {
            must(cause, stats.incomplete(*cause), *count);
        }
        if live == 0 {
            let counted =
                [stats.bytes_in, stats.bytes_out, stats.bytes_dropped, stats.bytes_unsent];
            for (counted, seen) in counted.into_iter().zip(self.totals) {
                must(&"bytes", counted, seen);
            }
        }
        let timed = [CloseReason::Expired, CloseReason::WriteStalled];
        let timed: u64 = timed.iter().map(|&reason| stats.closed(reason)).sum();
        if stats.expired < timed {
            wrong.push(format!("{} deadlines counted, {timed} seen", stats.expired));
        }
        self.failures.extend(wrong);
    }
}
