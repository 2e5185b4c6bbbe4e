//! Told: what peers and callbacks tell the model, and what must be true of it.

use std::net::IpAddr;
use std::time::Duration;

use pool_manager::sim::Sim;
use pool_manager::{Cause, CloseReason, Closed, Config, ConnId, ERROR_SERVER_BUSY};

use super::super::oracle;
use super::clocks::{early, idle, unheard};
use super::{LINGERING, Model, SENDS, longest};

impl Model {
    pub(crate) fn opened(&mut self, id: ConnId, number: usize, key: Option<u64>, sim: &Sim) {
        let (now, began) = (sim.now(), sim.counters().waited);
        self.note(&|| format!("{id} opened for connection {number}"), number, 1);
        self.note_calls(sim, None);
        self.opened += u64::from(key.is_none());
        self.peak = self.peak.max(self.live());
        let late = (self.stopping, self.stopping && self.draining > Duration::ZERO);
        if late.1 && key.is_none() {
            self.marks.hit("accepted in a stop");
        }
        let account = self.accounts.entry(number).or_default();
        account.late = late;
        let unseen = account.knocked && !account.shown;
        let connecting = account.connecting;
        let twice = account.id.replace(id).is_some_and(|known| known != id || !connecting);
        account.moved = (began, now);
        account.seen_moved = now;
        account.called = (now, began);
        account.opened = (began, now);
        let known = self.numbers.insert(id, number);
        if twice || known.is_some_and(|known| known != number || !connecting) {
            self.complain(format!("{id}: opened twice"));
        }
        if let Err(wrong) = self.counts(number) {
            self.complain(format!("{id}: {wrong}"));
        }
        if unseen {
            self.complain(format!("{id}: accepted, and nobody was asked to wrap it"));
        }
        if let Some(key) = key {
            self.call_opened(key, id, sim);
        }
        let index = id.as_u64() as u32;
        self.highest = self.highest.max(index);
        self.turn_ids.push(index);
        if self.turn_ids.iter().filter(|&&known| known == index).count() > 1 {
            self.marks.hit("an index is used again within a turn");
        }
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
        let (now, began) = (sim.now(), sim.counters().waited);
        self.note(&|| format!("{id} {cause:?}: {body:?}"), number, 2 | (body.len() as u64) << 8);
        *self.requests.entry(cause).or_default() += 1;
        let Some(look) = sim.snapshot(id) else {
            return self.complain(format!("{id}: served though not registered"));
        };
        let Some(account) = self.accounts.get_mut(&number).filter(|known| known.id == Some(id))
        else {
            return self.complain(format!("{id}: a callback of somebody else's socket"));
        };
        let mut wrong = Vec::new();
        if account.connecting {
            wrong.push("a callback before it is there".to_owned());
        }
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
        let least = self.configs.iter().map(longest).min().unwrap_or(0);
        let fits = count < least && !oracle::announces(&self.configs[0].framing, held, least);
        if cause == Cause::Overlong && fits {
            wrong.push(format!("too long, at {count} bytes of {least}"));
        }
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
        let small = |config: &Config| body.len() < config.buffer_size && config.memory_limit == 0;
        if cause == Cause::Full && self.configs.iter().all(small) {
            wrong.push("a buffer that has not grown".to_owned());
        }
        if matches!(cause, Cause::Expired | Cause::MemoryLimit) {
            // It waits for no rate, and is the last.
        } else if let Err(early) = account.delivers(&self.configs, began) {
            wrong.push(early);
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
        let unlimited = self.configs.iter().all(|config| config.memory_limit == 0);
        if cause == Cause::MemoryLimit && unlimited {
            wrong.push("out of memory that has no limit".to_owned());
        }
        self.marks.hit_if("a request longer than max_request", cause == Cause::Overlong);
        self.marks.hit_if("memory_limit", cause == Cause::MemoryLimit);
        account.over =
            matches!(cause, Cause::Eof | Cause::Expired | Cause::Overlong | Cause::MemoryLimit);
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

    /// The hook tells that a reply has to wait.
    pub(crate) fn blocked(&mut self, id: ConnId) {
        let Some(account) = self.account(id) else { return };
        let again = std::mem::replace(&mut account.blocked, true);
        if again || account.connecting || account.end.is_some() {
            self.complain(format!("{id}: blocked again, or not there"));
        }
    }

    /// The hook tells that a reply which had to wait has gone out.
    pub(crate) fn flushed(&mut self, id: ConnId) {
        let Some(account) = self.account(id) else { return };
        account.flushed = true;
        let had_to = std::mem::take(&mut account.blocked);
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

    /// A connection comes by a listener.
    pub(crate) fn knocks(&mut self, number: usize, from: IpAddr) {
        self.knocked += 1;
        let account = self.accounts.entry(number).or_default();
        account.knocked = true;
        account.from = Some(from);
    }

    /// The handler is shown what was accepted, and either keeps it or not.
    pub(crate) fn accepted(&mut self, number: usize, kept: bool) {
        let account = self.accounts.entry(number).or_default();
        let again = std::mem::replace(&mut account.shown, true);
        if again || !account.knocked {
            self.complain(format!(
                "connection {number} was shown though it did not come, or twice"
            ));
        } else if !kept {
            // It is closed without a word.
            account.knocked = false;
        }
    }

    /// Something is sent from outside; whether it fits, the pool knows later.
    pub(crate) fn send(&mut self, id: ConnId, value: u8, count: usize) -> Vec<u8> {
        if let Some(account) = self.account(id) {
            account.sends[usize::from(value >= SENDS[1])].push_back((value, count, 0));
            account.sends_total += count as u64;
        }
        self.sends[0] += count as u64;
        vec![value; count]
    }

    /// What was sent comes back, all of it: its peer will see none of it.
    pub(crate) fn undelivered(&mut self, id: ConnId, bytes: &[u8]) {
        self.note(&|| format!("{id}: {} bytes come back", bytes.len()), 0, 6);
        self.sends[1] += bytes.len() as u64;
        let Some(account) = self.account(id) else { return };
        let first = bytes.first().copied().unwrap_or_default();
        let sends = &mut account.sends[usize::from(first >= SENDS[1])];
        let whole = |&(value, count, got): &(u8, usize, usize)| {
            got == 0 && count == bytes.len() && bytes.iter().all(|&byte| byte == value)
        };
        // What comes back was sent after what was written; of two alike it is the later.
        match sends.iter().rposition(whole) {
            Some(index) => drop(sends.remove(index)),
            None => self.complain(format!("{id}: came back but was not sent: {bytes:?}")),
        }
    }

    /// The handler is told of the end of a turn.
    pub(crate) fn told_turned(&mut self) {
        self.turn_ended += 1;
        if self.depth > 0 {
            self.complain("the end of a turn within a callback");
        }
    }

    /// What a peer got: replies whole and in order, sends as well, some perhaps left out.
    pub(crate) fn got(&mut self, number: usize, bytes: &[u8]) {
        let Some(account) = self.accounts.get_mut(&number) else { return };
        if account.id.is_none() {
            // Nobody's: what refused ones are told, if it is all there.
            account.got += bytes.len() as u64;
            let last_words = [b"no", ERROR_SERVER_BUSY.as_bytes()].concat();
            return if !bytes.iter().all(|byte| last_words.contains(byte)) {
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
                    | CloseReason::Evicted
            );
            let recent = when < account.moved.0 + LINGERING && now < when + LINGERING;
            let polite = polite || end.reason == CloseReason::MemoryLimit && account.over;
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
    pub(crate) fn closed(&mut self, end: &Closed, sim: &Sim) {
        let (now, began) = (sim.now(), sim.counters().waited);
        self.note_calls(sim, end.key.filter(|_| sim.snapshot(end.id).is_none()));
        if end.key.is_some_and(|key| self.call_closed(end, key, sim)) {
            return;
        }
        *self.closed.entry(end.reason).or_default() += 1;
        let values = [end.bytes_in, end.bytes_out, end.bytes_dropped, end.bytes_unsent];
        for (total, value) in self.totals.iter_mut().zip(values) {
            *total += value;
        }
        let number = self.numbers.get(&end.id).copied();
        self.note(&|| format!("{end:?}"), number.unwrap_or(0), 3 | values[3] << 8);
        let (id, look) = (end.id, sim.snapshot(end.id));
        let evicted =
            if end.reason == CloseReason::Evicted { self.evicted(end, sim) } else { Ok(()) };
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
        let (least, max) = (account.replied, account.replied + account.sends_total);
        self.sends[2] += (end.bytes_out + end.bytes_unsent).saturating_sub(least);
        if !(least..=max).contains(&(end.bytes_out + end.bytes_unsent)) {
            wrong.push(format!("{least} to {max} bytes of reply are unaccounted for"));
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
        if let Err(not_so) = evicted {
            wrong.push(not_so);
        }
        let tick = Duration::from_millis(1);
        let (least, max) =
            (began.saturating_sub(account.opened.1), now.saturating_sub(account.opened.0));
        if end.age + tick < least || end.age > max + tick {
            wrong.push(format!("it was there for {least:?} to {max:?}"));
        }
        if end.reason == CloseReason::Stopped && look.unread > 0 && now < self.draining {
            wrong.push(format!("closed as idle, though it spoke, {look:?}"));
        }
        if end.reason == CloseReason::Stopped
            && account.late.1
            && end.bytes_in == 0
            && now < self.draining
        {
            wrong.push("accepted in a stop, and closed unheard".to_owned());
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
            CloseReason::Evicted => self.marks.hit("an idle one makes a place for another"),
            CloseReason::Io(_) => self.marks.hit("another error of a socket"),
            _ => {}
        }
        for wrong in wrong {
            self.complain(format!("{id}: {wrong}: {end:?}"));
        }
    }
}
