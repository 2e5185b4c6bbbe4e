//! Model: what ought to be true, told by peers and callbacks. It shares no code with the pool.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use pool_manager::sim::{Look, Sim};
use pool_manager::{Cause, CloseReason, Config, ConnId, End, Stats};

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
    /// The hook said that a reply has gone out.
    flushed: bool,
    was_full: bool,
    /// Bytes moved in the last turn.
    progressed: bool,
    /// It came by a listener.
    knocked: bool,
    /// Turns in which it had work and was not served.
    waited: u32,
    seen: (u64, u64),
    pub(crate) end: Option<(End, Duration)>,
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
    /// The largest `write_limit` there ever was.
    most_unsent: usize,
    pub(crate) depth: usize,
    pub(crate) panics: u64,
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
    /// When the last wait before a stop ended.
    pub(crate) stopped_at: Option<Duration>,
    pub(crate) wild: bool,
    pub(crate) trace: bool,
    pub(crate) digest: u64,
    opened: u64,
    closed: BTreeMap<String, (CloseReason, u64)>,
    requests: BTreeMap<String, (Cause, u64)>,
    totals: [u64; 4],
    turn_ids: Vec<u32>,
}

impl Model {
    pub(crate) fn new(config: &Config, trace: bool) -> Self {
        Self {
            accounts: BTreeMap::new(),
            numbers: BTreeMap::new(),
            complaints: Vec::new(),
            marks: Marks::default(),
            sizes: BTreeSet::from([config.buffer_size]),
            most_unsent: config.write_limit,
            configs: vec![config.clone()],
            depth: 0,
            panics: 0,
            busy: 0,
            taken: 0,
            peak: 0,
            stopping_for: 0,
            stop_by: Duration::ZERO,
            longest_drain: Duration::ZERO,
            slept: Duration::ZERO,
            stopping: false,
            draining: Duration::ZERO,
            stopped_at: None,
            wild: true,
            trace,
            digest: 0,
            opened: 0,
            closed: BTreeMap::new(),
            requests: BTreeMap::new(),
            totals: [0; 4],
            turn_ids: Vec::new(),
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

    /// A configuration is asked for; its framing stays the one that is in effect.
    pub(crate) fn asked_for(&mut self, config: Config) -> Config {
        let config = config.framing(self.configs[0].framing.clone());
        self.configs.push(config.clone());
        self.sizes.insert(config.buffer_size);
        self.most_unsent = self.most_unsent.max(config.write_limit);
        config
    }

    /// It starts anew, with this configuration.
    pub(crate) fn restarted(&mut self, config: &Config) {
        self.configs = vec![config.clone()];
        self.asked_for(config.clone());
    }

    pub(crate) fn opened(&mut self, id: ConnId, number: usize, sim: &Sim) {
        let (now, began) = (sim.now(), sim.tally().waited);
        self.note(&|| format!("{id} opened for connection {number}"), number, 1);
        self.opened += 1;
        let closed: u64 = self.closed.values().map(|seen| seen.1).sum();
        self.peak = self.peak.max(self.opened - closed);
        let account = self.accounts.entry(number).or_default();
        let twice = account.id.replace(id).is_some();
        account.moved = (began, now);
        account.seen_moved = now;
        account.called = (now, began);
        account.opened = (began, now);
        if twice || self.numbers.insert(id, number).is_some() {
            self.complain(format!("{id}: opened twice"));
        }
        let index = id.as_u64() as u32;
        self.turn_ids.push(index);
        if self.turn_ids.iter().filter(|&&known| known == index).count() > 1 {
            self.marks.hit("an index is used again within a turn");
        }
    }

    /// How many connections there have been.
    pub(crate) fn placed(&self) -> u64 {
        self.opened
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
        let drains = self.configs.iter().filter_map(|config| config.drain_deadline);
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
        self.stopped_at = None;
    }

    /// How many bytes were dropped and left unsent.
    pub(crate) fn lost_bytes(&self) -> (u64, u64) {
        (self.totals[2], self.totals[3])
    }

    /// A body is delivered: checks that it is what the peer sent, all of it, once and in order.
    pub(crate) fn request(
        &mut self,
        id: ConnId,
        number: usize,
        cause: Cause,
        (bytes_in, bytes_out): (u64, u64),
        body: &[u8],
        sim: &Sim,
    ) {
        let (now, began) = (sim.now(), sim.tally().waited);
        self.note(&|| format!("{id} {cause:?}: {body:?}"), number, 2 | (body.len() as u64) << 8);
        self.requests.entry(format!("{cause:?}")).or_insert((cause, 0)).1 += 1;
        let Some(look) = sim.look(id) else {
            return self.complain(format!("{id}: served though not registered"));
        };
        let Some(account) = self.accounts.get_mut(&number).filter(|known| known.id == Some(id))
        else {
            return self.complain(format!("{id}: a callback of somebody else's socket"));
        };
        let mut wrong = Vec::new();
        if account.end.is_some() || account.over {
            wrong.push("a callback after the last".to_owned());
        }
        if account.paused && account.was_paused > 1 {
            wrong.push("a callback while paused".to_owned());
        }
        if (bytes_in, bytes_out) != (look.received, look.sent) {
            wrong.push(format!("{bytes_in} bytes in and {bytes_out} out, but {look:?}"));
        }
        let count = (look.received - account.delivered) as usize;
        let held = &account.sent.make_contiguous()[..count];
        let framings = self.configs.iter().map(|config| &config.framing);
        let taken: Vec<_> = framings
            .map(|framing| oracle::taken(framing, cause, held, body, &self.sizes))
            .collect();
        match taken.iter().find_map(|taken| taken.as_ref().ok()) {
            Some(&taken) => {
                account.sent.drain(..taken);
                account.delivered += taken as u64;
            }
            None => wrong.push(format!("{cause:?}: {taken:?} of {held:?}")),
        }
        if cause == Cause::Full && self.configs.iter().all(|config| body.len() < config.buffer_size)
        {
            wrong.push("a buffer that has not grown".to_owned());
        }
        let early = early(account, &self.configs, &look, now, began);
        let late = self.configs.iter().all(|config| {
            account.moved.1 + idle(account, config) + Duration::from_millis(2) < began
        });
        if cause == Cause::Expired && count == 0 && look.received > 0 {
            wrong.push("called with nothing, though it was served".to_owned());
        }
        match cause {
            Cause::Expired if early => wrong.push(format!("expired early, {account:?}")),
            Cause::Expired if unheard(account, &self.configs, &look, now) => {
                wrong.push(format!("expired though it spoke, {look:?}"));
            }
            Cause::Eof if late => self.marks.hit("a deadline and the end of file in one turn"),
            Cause::Full if late => self.marks.hit("a deadline and a full buffer in one turn"),
            _ => {}
        }
        account.over = matches!(cause, Cause::Eof | Cause::Expired | Cause::Overlong);
        account.called = (now, began);
        account.calls += 1;
        account.called_now = true;
        account.since = None;
        account.waited = 0;
        for wrong in wrong {
            self.complain(format!("{id}: {wrong}"));
        }
    }

    /// Bytes that the pool has taken for a peer.
    pub(crate) fn replied(&mut self, id: ConnId, bytes: &[u8]) {
        if let Some(account) = self.account(id) {
            account.replies.extend(bytes);
            account.replied += bytes.len() as u64;
        }
    }

    /// What a panicking callback wrote is taken back.
    pub(crate) fn taken_back(&mut self, id: ConnId, count: usize) {
        if let Some(account) = self.account(id) {
            account.replies.truncate(account.replies.len() - count);
            account.replied -= count as u64;
        }
    }

    /// A callback takes its time. What happened just before may count from its end.
    pub(crate) fn slept(&mut self, from: Duration, time: Duration) {
        self.slept += time;
        let extend =
            |clock: &mut Duration| *clock += if *clock == from { time } else { Duration::ZERO };
        for account in self.accounts.values_mut() {
            extend(&mut account.moved.1);
            account.since.as_mut().map(extend);
        }
    }

    /// It will read nothing more, and may be closed for this reason.
    pub(crate) fn closing(&mut self, id: ConnId, reason: CloseReason) {
        if let Some(account) = self.account(id) {
            account.closing = true;
            account.causes.push(reason);
        }
    }

    /// A reply was taken, or not.
    pub(crate) fn wrote(&mut self, id: ConnId, count: usize, taken: bool) {
        let fits = |config: &Config| count <= config.write_limit;
        if !taken && self.configs.iter().all(fits) {
            self.complain(format!("{id}: {count} bytes are no more than write_limit"));
        }
        if taken && !self.configs.iter().any(fits) {
            self.complain(format!("{id}: {count} bytes are more than write_limit"));
        }
        if !taken {
            self.closing(id, CloseReason::WriteLimit);
        }
    }

    /// The hook tells that a reply which had to wait has gone out.
    pub(crate) fn flushed(&mut self, id: ConnId) {
        let Some(account) = self.account(id) else { return };
        account.flushed = true;
        let had_to =
            account.owed || account.progressed || account.calls > 0 || account.sends_total > 0;
        if !had_to {
            self.complain(format!("{id}: flushed, though nothing had to wait"));
        }
    }

    /// A callback pauses its own connection.
    pub(crate) fn hold_back(&mut self, id: ConnId) {
        self.pause(id);
        if let Some(account) = self.account(id) {
            account.held_back = !account.unsure;
        }
    }

    pub(crate) fn pause(&mut self, id: ConnId) {
        self.note(&|| format!("{id} is to pause"), 0, 4);
        if let Some(account) = self.account(id) {
            account.order(true);
        }
    }

    pub(crate) fn resume(&mut self, id: ConnId, now: Duration) {
        self.note(&|| format!("{id} is to go on"), 0, 5);
        if let Some(account) = self.account(id) {
            account.held_back = false;
            // Clocks that stood still for sure start anew, not before now. Whether what was sent
            // from outside still waits is not known here.
            let owes = account.owed || account.sends_total > 0;
            if account.was_paused > 1 && !owes && !account.unsure {
                account.moved.0 = account.moved.0.max(now);
                account.quiet = account.quiet.max(now);
            }
            account.order(false);
        }
    }

    /// The most connections that a configuration in effect since the last turn allows.
    pub(crate) fn most_allowed(&self) -> u64 {
        let most = |config: &Config| match config.max_workers {
            0 => u64::MAX,
            most => most as u64,
        };
        self.configs.iter().map(most).max().unwrap_or(u64::MAX)
    }

    /// It is resumed again and again, whatever else is asked for.
    pub(crate) fn keep_resuming(&mut self, id: ConnId) {
        if let Some(account) = self.account(id) {
            account.unsure = true;
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
        self.accounts.values().all(|account| account.id.is_none() || account.end.is_some())
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

    /// A connection comes by a listener.
    pub(crate) fn knocks(&mut self, number: usize) {
        self.accounts.entry(number).or_default().knocked = true;
    }

    /// Something is sent from outside; whether it fits, the pool knows later.
    pub(crate) fn send(&mut self, id: ConnId, value: u8, count: usize) -> Vec<u8> {
        if let Some(account) = self.account(id) {
            account.sends[usize::from(value >= SENDS[1])].push_back((value, count, 0));
            account.sends_total += count as u64;
        }
        vec![value; count]
    }

    /// What a peer got: replies whole and in order, sends as well, some perhaps left out.
    pub(crate) fn got(&mut self, number: usize, bytes: &[u8]) {
        let Some(account) = self.accounts.get_mut(&number) else { return };
        if account.id.is_none() {
            // Nobody's: what refused ones are told, if it is all there.
            account.got += bytes.len() as u64;
            return if !bytes.iter().all(|byte| b"no".contains(byte)) {
                self.complain(format!("a refused one was told {bytes:?}"));
            };
        }
        account.got += bytes.len() as u64;
        let mut wrong = false;
        for &byte in bytes {
            if byte < SENDS[0] {
                wrong |= account.replies.pop_front() != Some(byte);
                continue;
            }
            let sends = &mut account.sends[usize::from(byte >= SENDS[1])];
            while let Some((value, count, got)) = sends.front_mut() {
                if *value == byte && *got < *count {
                    *got += 1;
                    break;
                }
                wrong |= *got > 0 && *got < *count;
                sends.pop_front();
            }
            wrong |= sends.is_empty();
        }
        if wrong {
            let id = account.id;
            self.complain(format!("{id:?}: the peer got what was not replied"));
        }
    }

    /// Who is refused is told so.
    pub(crate) fn sent_away(&mut self, number: usize) {
        let Some(account) = self.accounts.get(&number) else { return };
        if account.knocked && account.id.is_none() && account.got == 0 {
            self.complain(format!("connection {number} was refused without a word"));
        }
    }

    /// A peer that saw the end of file, or a reset, may have missed nothing that was promised.
    pub(crate) fn ended_for_peer(
        &mut self,
        number: usize,
        reset: bool,
        now: Duration,
        lossless: bool,
    ) {
        let Some(account) = self.accounts.get(&number) else { return };
        let Some((end, when)) = account.end else { return };
        let missed = end.bytes_out.saturating_sub(account.got);
        let promised = if reset {
            let polite = matches!(
                end.reason,
                CloseReason::Eof
                    | CloseReason::Expired
                    | CloseReason::Requested
                    | CloseReason::Failed
                    | CloseReason::Overlong
            );
            let recent = when < account.moved.0 + LINGERING && now < when + LINGERING;
            polite && recent && lossless
        } else {
            true
        };
        if missed > 0 && promised {
            let id = end.id;
            self.complain(format!("{id}: the peer missed {missed} bytes, reset: {reset}, {end:?}"));
        }
    }

    /// A connection has ended: once, and with totals that add up.
    pub(crate) fn closed(&mut self, end: &End, sim: &Sim) {
        let (now, began) = (sim.now(), sim.tally().waited);
        self.closed.entry(format!("{:?}", end.reason)).or_insert((end.reason, 0)).1 += 1;
        let values = [end.bytes_in, end.bytes_out, end.bytes_dropped, end.bytes_unsent];
        for (total, value) in self.totals.iter_mut().zip(values) {
            *total += value;
        }
        let number = self.numbers.get(&end.id).copied();
        self.note(&|| format!("{end:?}"), number.unwrap_or(0), 3 | values[3] << 8);
        let (id, look) = (end.id, sim.look(end.id));
        let account = number.and_then(|number| self.accounts.get_mut(&number));
        let (Some(account), Some(look)) = (account, look) else {
            return self.complain(format!("{id}: closed, but never opened"));
        };
        let mut wrong = Vec::new();
        if account.end.replace((*end, now)).is_some() {
            wrong.push("closed twice".to_owned());
        }
        if (end.bytes_in, end.bytes_out) != (look.received, look.sent) {
            wrong.push(format!("its totals are not the network's, {look:?}"));
        }
        if end.bytes_in != account.delivered + end.bytes_dropped {
            wrong.push("bytes are unaccounted for".to_owned());
        }
        let (least, most) = (account.replied, account.replied + account.sends_total);
        if !(least..=most).contains(&(end.bytes_out + end.bytes_unsent)) {
            wrong.push(format!("{least} to {most} bytes of reply are unaccounted for"));
        }
        let timed = matches!(end.reason, CloseReason::Expired | CloseReason::WriteStalled);
        if timed && !account.over && early(account, &self.configs, &look, now, began) {
            wrong.push(format!("closed before its deadline, {look:?}"));
        }
        if end.reason == CloseReason::Expired
            && !account.over
            && unheard(account, &self.configs, &look, now)
        {
            wrong.push(format!("expired though it spoke, {look:?}"));
        }
        if end.reason == CloseReason::Eof && (!account.sent.is_empty() || end.bytes_dropped > 0) {
            wrong.push("an end of file before all was delivered".to_owned());
        }
        if end.reason == CloseReason::Stopped && end.bytes_unsent > 0 && now < self.draining {
            wrong.push("cut off though there was time".to_owned());
        }
        if let Err(without) = account.reasoned(end, &look) {
            wrong.push(without);
        }
        let tick = Duration::from_millis(1);
        let (least, most) =
            (began.saturating_sub(account.opened.1), now.saturating_sub(account.opened.0));
        if end.age + tick < least || end.age > most + tick {
            wrong.push(format!("it was there for {least:?} to {most:?}"));
        }
        if end.reason == CloseReason::Stopped
            && self.stopped_at == Some(began)
            && account.seen.1 == look.sent
            && look.unread > 0
            && now < self.draining
        {
            wrong.push(format!("closed as idle, though it spoke, {look:?}"));
        }
        let idle = self.configs.iter().map(|config| idle(account, config)).min();
        let moving = now < account.moved.0 + idle.unwrap_or_default();
        match end.reason {
            CloseReason::Expired if moving => self.marks.hit("the total deadline"),
            CloseReason::Reset if end.bytes_dropped > 0 => {
                self.marks.hit("a reset with bytes held");
            }
            CloseReason::WriteLimit => self.marks.hit("write_limit"),
            CloseReason::WriteStalled => self.marks.hit("a reply that nobody took"),
            CloseReason::Invalid => self.marks.hit("invalid bytes"),
            CloseReason::Io(_) => self.marks.hit("another error of a socket"),
            _ => {}
        }
        for wrong in wrong {
            self.complain(format!("{id}: {wrong}: {end:?}"));
        }
    }

    /// What must hold for every connection after a turn.
    pub(crate) fn after_turn(&mut self, mut turn: Turned, config: &Config, sim: &Sim) {
        self.turn_ids.clear();
        let mut complaints = Vec::new();
        turn.stopping = self.stopping_for > 0;
        if turn.stopping && turn.began > self.stop_by {
            complaints.push(format!("a stop takes longer than until {:?}: {turn:?}", self.stop_by));
        }
        let held = self.sizes.last().copied().unwrap_or(0);
        let most = (held, self.most_unsent * 3 / 2);
        for account in self.accounts.values_mut() {
            let Some(id) = account.id.filter(|_| account.end.is_none()) else { continue };
            let Some(look) = sim.look(id) else {
                complaints.push(format!("{id}: neither closed nor registered"));
                continue;
            };
            if let Err(wrong) = account.check(turn, config, most, look) {
                complaints.push(format!("{id}: {wrong}: {look:?} {account:?} {turn:?}"));
            }
        }
        self.complaints.extend(complaints);
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

    /// The pool's counters are the model's.
    pub(crate) fn compare(&mut self, stats: &Stats, live: u64) {
        let mut wrong = Vec::new();
        let mut must = |what: &str, told: u64, known: u64| {
            if told != known {
                wrong.push(format!("{what}: {told} counted, {known} seen"));
            }
        };
        must("put", stats.put, self.opened);
        must("peak", stats.peak, self.peak);
        must("panics", stats.panics, self.panics + oracle::PANICS.get());
        must("live", live, self.opened - self.closed.values().map(|seen| seen.1).sum::<u64>());
        let mut io = 0;
        for (reason, count) in self.closed.values() {
            match reason {
                CloseReason::Io(_) => io += count,
                reason => must(&format!("{reason:?}"), stats.closed(*reason), *count),
            }
        }
        must("Io", stats.closed(CloseReason::Io(std::io::ErrorKind::Other)), io);
        for (cause, count) in self.requests.values() {
            must(&format!("{cause:?}"), stats.requests(*cause), *count);
        }
        if live == 0 {
            let told = [stats.bytes_in, stats.bytes_out, stats.bytes_dropped, stats.bytes_unsent];
            for (told, known) in told.into_iter().zip(self.totals) {
                must("bytes", told, known);
            }
        }
        let timed = [CloseReason::Expired, CloseReason::WriteStalled];
        let timed: u64 = timed.iter().map(|&reason| stats.closed(reason)).sum();
        if stats.timers < timed {
            wrong.push(format!("{} deadlines counted, {timed} seen", stats.timers));
        }
        self.complaints.extend(wrong);
    }
}

/// Milliseconds, rounded up.
fn ticks(time: Duration) -> u128 {
    time.as_nanos().div_ceil(1_000_000)
}

fn idle(account: &Account, config: &Config) -> Duration {
    if account.own.is_zero() { config.clients_deadline } else { account.own }
}

/// Whether neither deadline can have passed.
fn early(
    account: &Account,
    configs: &[Config],
    look: &Look,
    now: Duration,
    began: Duration,
) -> bool {
    // What happens in a turn may count from its beginning, and what happens in a slow call of
    // another kind from just before its end.
    let tick = Duration::from_millis(1);
    let news = look.moved > account.seen_moved;
    let moved = if news { look.moved.min(began).saturating_sub(tick) } else { account.moved.0 };
    configs.iter().all(|config| {
        let total = config.request_deadline;
        let in_time = total.is_zero() || now < account.called.1.max(account.quiet) + total;
        now < moved + idle(account, config) && in_time
    })
}

/// Whether it has said something that was not heard, and only silence can be held against it.
fn unheard(account: &Account, configs: &[Config], look: &Look, now: Duration) -> bool {
    let total = |config: &Config| {
        config.request_deadline.is_zero() || now < account.called.1 + config.request_deadline
    };
    (look.unread > 0 || look.ended) && configs.iter().all(total)
}

impl Account {
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// Nobody is closed without a reason, and natural ends come after the last body.
    fn reasoned(&self, end: &End, look: &Look) -> Result<(), String> {
        let reason = end.reason;
        let justified = match reason {
            CloseReason::Reset | CloseReason::Io(_) => look.broken,
            CloseReason::WriteLimit => self.sends_total > 0 || self.causes.contains(&reason),
            CloseReason::Requested | CloseReason::Failed | CloseReason::Aborted => {
                self.causes.contains(&reason)
            }
            CloseReason::Panicked => self.causes.contains(&reason) || self.sent.front() == Some(&6),
            CloseReason::Invalid => self.sent.front() == Some(&5),
            CloseReason::Expired => self.over || end.bytes_in > 0 && end.bytes_dropped == 0,
            CloseReason::WriteStalled => end.bytes_unsent > 0 || self.sends_total > 0,
            _ => true,
        };
        if !justified {
            return Err(format!("closed without a reason, {look:?}"));
        }
        let natural =
            matches!(reason, CloseReason::Eof | CloseReason::Expired | CloseReason::Overlong);
        if natural && self.held_back {
            return Err("ended though its callback is to answer later".into());
        }
        Ok(())
    }

    /// It is to pause or to go on. What callbacks ask for and what handles do may be done in
    /// either order.
    fn order(&mut self, pause: bool) {
        self.unsure = self.ordered > 0 && pause != self.paused;
        self.ordered = 2;
        self.was_paused = 0;
        if self.paused && !pause {
            self.resumed = 2;
        }
        self.paused = pause;
    }

    fn check(
        &mut self,
        turn: Turned,
        config: &Config,
        (most_held, most_unsent): (usize, usize),
        look: Look,
    ) -> Result<(), String> {
        let held = (look.received - self.delivered) as usize;
        let blocked = look.full || (self.sends_total == 0 && look.sent < self.replied);
        let progress = (look.received, look.sent) != self.seen;
        let (read, calls) = (look.received - self.seen.0, std::mem::take(&mut self.calls));
        if read > u64::from(VISITS * READS) * most_held as u64 || calls > VISITS * CALLBACKS {
            return Err(format!("{read} bytes read and {calls} callbacks in one turn"));
        }
        let flushed = std::mem::take(&mut self.flushed);
        let paid = self.was_full && look.sent == self.replied && self.sends_total == 0;
        if paid && !flushed && !self.closing && !self.over && !look.ended {
            return Err("the hook was not told that a reply has gone out".into());
        }
        self.was_full = look.full;
        self.progressed = progress;
        self.seen = (look.received, look.sent);
        self.keep_time(turn, look, held, blocked, progress);
        self.ordered = self.ordered.saturating_sub(1);
        let paused = self.paused || self.unsure;
        self.was_paused = if self.paused && !self.unsure { self.was_paused + 1 } else { 0 };
        let still = paused || self.over || self.closing;
        self.check_deadlines(turn, config, self.unsure || (paused || self.over) && !blocked)?;
        if turn.asleep && !blocked && !still {
            if (look.unread > 0 || look.ended) && !look.pending {
                return Err("asleep over input that no event will report".into());
            }
            let sending = self.sends_total > 0 && look.pending;
            if !sending && oracle::complete(&config.framing, &self.sent.make_contiguous()[..held]) {
                return Err("asleep over a complete frame".into());
            }
        }
        let quiet = held == 0 && look.sent == self.replied && self.sends_total == 0;
        let heard = look.unread == 0 && !look.ended && !look.pending;
        if turn.stopping && turn.asleep && quiet && heard && !still {
            return Err("idle, and still there during a stop".into());
        }
        if turn.asleep && blocked && look.room > 0 && !look.pending {
            return Err("asleep over a reply, though there is room".into());
        }
        let hungry = look.unread > 0 && !look.pending && !blocked && !still;
        self.waited = if hungry && !progress { self.waited + 1 } else { 0 };
        if self.waited > 8 {
            return Err("ready, and not served".into());
        }
        if held > most_held {
            return Err(format!("{held} bytes held"));
        }
        let unsent = self.replied.saturating_sub(look.sent);
        if unsent > most_unsent as u64 && self.sends_total == 0 {
            return Err(format!("{unsent} bytes unsent"));
        }
        Ok(())
    }

    /// Notes from when the deadlines count, at the earliest and at the latest.
    fn keep_time(&mut self, turn: Turned, look: Look, held: usize, blocked: bool, progress: bool) {
        let in_turn = |time: Duration| time >= turn.began;
        // The pool counts in milliseconds, rounded up: a slow turn that begins at the very one is credited.
        let latest =
            |time: Duration| if ticks(time) >= ticks(turn.began) { turn.ended } else { time };
        // What happens in a turn counts from just before its end.
        let tick = Duration::from_millis(1);
        let almost_ended = turn.ended.saturating_sub(tick).max(turn.began);
        let earliest = |time: Duration| if in_turn(time) { almost_ended } else { time };
        if std::mem::take(&mut self.called_now) {
            self.called.1 = earliest(self.called.0);
            if held > 0 {
                // What is left came with the request, and waits for the pool.
                self.moved.0 = self.moved.0.max(self.called.1);
            }
        }
        if look.moved > self.seen_moved {
            self.moved.0 = earliest(look.moved).max(self.moved.0);
            self.seen_moved = look.moved;
        }
        self.moved.1 = latest(self.moved.1.max(look.moved).max(self.called.0));
        let resumed = self.resumed > 0;
        self.resumed = self.resumed.saturating_sub(1);
        if resumed {
            self.moved.1 = turn.ended;
        }
        if held == 0 && !blocked && self.sends_total == 0 {
            self.quiet = turn.ended;
        }
        if held == 0 && !blocked {
            self.since = None;
        } else if self.since.is_none()
            || self.owed != blocked
            || resumed
            || progress && self.sends_total > 0
        {
            // Whether what was sent from outside had to wait is not known here.
            self.since = Some(turn.ended);
        }
        self.since = self.since.map(latest);
        self.owed = blocked;
    }

    fn check_deadlines(&self, turn: Turned, config: &Config, still: bool) -> Result<(), String> {
        if still || !turn.punctual {
            return Ok(());
        }
        let ticks = Duration::from_millis(2);
        let due = self.moved.1.saturating_add(idle(self, config)).saturating_add(ticks);
        if turn.began > due {
            return Err(format!("there past its idle deadline {due:?}"));
        }
        if let Some(since) = self.since.filter(|_| !config.request_deadline.is_zero()) {
            let due = since.saturating_add(config.request_deadline).saturating_add(ticks);
            if turn.began > due {
                return Err(format!("there past its total deadline {due:?}"));
            }
        }
        Ok(())
    }
}
