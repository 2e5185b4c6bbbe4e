//! Events: the actions of peers, callbacks and commands, and the checks of each.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use pool_manager::sim::Sim;
use pool_manager::{Cause, CloseReason, Closed, Config, ConnId, ERROR_SERVER_BUSY, Framing};

use super::super::marks::Marks;
use super::super::oracle;
use super::deadlines::{has_gone, idle, is_early, is_pause_early, is_unread_in_time};
use super::{ConnRecord, LINGERING, Model, SENDS, longest_request};

/// One call of `request`, or of `incomplete` if `complete` is false.
pub(crate) struct Delivery<'a> {
    pub(crate) complete: bool,
    pub(crate) cause: Cause,
    /// The bytes read and written so far, as the callback sees them.
    pub(crate) bytes: (u64, u64),
    pub(crate) body: &'a [u8],
}

impl Delivery<'_> {
    /// Returns the number of `held` bytes that this call used.
    fn taken(
        &self,
        framing: &Framing,
        held: &[u8],
        sizes: &BTreeSet<usize>,
    ) -> Result<usize, String> {
        if self.cause == Cause::Unanswered {
            // Held bytes are dropped.
            if self.body.is_empty() { Ok(0) } else { Err("bytes at the end of a pause".into()) }
        } else if self.complete {
            oracle::taken(framing, self.cause, held, self.body, sizes)
        } else {
            oracle::check_incomplete(framing, self.cause, held, self.body).map(|()| held.len())
        }
    }

    fn mark(&self, record: &ConnRecord, marks: &mut Marks) {
        let (cause, incomplete) = (self.cause, !self.complete);
        let expired = cause == Cause::Expired;
        marks.hit_if("a request longer than max_request", cause == Cause::Overlong);
        marks.hit_if("memory_limit is reached", cause == Cause::MemoryLimit);
        marks.hit_if("a finished connection gets a request", record.finished && self.complete);
        marks.hit_if("a half request at the end of file", incomplete && cause == Cause::Eof);
        marks.hit_if(
            "a connection expires after it was served",
            incomplete && expired && self.body.is_empty() && self.bytes.0 > 0,
        );
        marks.hit_if("a half-open connection expires", record.read_closed && expired);
        marks.hit_if(
            "bytes are held when a pause ends at its deadline",
            cause == Cause::Unanswered && self.bytes.0 > record.delivered,
        );
    }
}

impl Model {
    pub(crate) fn opened(&mut self, id: ConnId, number: usize, key: Option<u64>, sim: &Sim) {
        let (now, began) = (sim.now(), sim.counters().waited);
        self.note(&|| format!("{id} opened for connection {number}"), number, 1);
        self.note_connects(sim, None);
        self.opened += u64::from(key.is_none());
        self.peak = self.peak.max(self.live());
        let opened_in_stop = (self.stopping, self.stopping && self.drain_until > Duration::ZERO);
        if opened_in_stop.1 && key.is_none() {
            self.marks.hit("a connection is accepted during a stop");
        }
        let record = self.records.entry(number).or_default();
        record.opened_in_stop = opened_in_stop;
        let not_wrapped = record.from_listener && !record.wrapped;
        let connecting = record.connecting;
        let twice = record.id.replace(id).is_some_and(|known| known != id || !connecting);
        record.moved = (began, now);
        record.seen_moved = now;
        record.last_callback = (now, began);
        record.opened = (began, now);
        let known = self.numbers.insert(id, number);
        if twice || known.is_some_and(|known| known != number || !connecting) {
            self.fail(format!("{id}: opened twice"));
        }
        if let Err(wrong) = self.check_per_peer(number) {
            self.fail(format!("{id}: {wrong}"));
        }
        if not_wrapped {
            self.fail(format!("{id}: accepted, but `wrap` was not called"));
        }
        if let Some(key) = key {
            self.connect_opened(key, id, sim);
        }
        let index = id.as_u64() as u32;
        self.highest = self.highest.max(index);
        self.turn_ids.push(index);
        if self.turn_ids.iter().filter(|&&known| known == index).count() > 1 {
            self.marks.hit("an index is reused within a turn");
        }
    }

    /// Checks a call of `request` or `incomplete`. All bytes that the peer sent must arrive, once
    /// and in order.
    pub(crate) fn delivered(
        &mut self,
        id: ConnId,
        number: usize,
        delivery: &Delivery<'_>,
        sim: &Sim,
    ) {
        let Delivery { complete, cause, bytes: (bytes_in, bytes_out), body } = *delivery;
        let (now, began) = (sim.now(), sim.counters().waited);
        self.note(&|| format!("{id} {cause:?}: {body:?}"), number, 2 | (body.len() as u64) << 8);
        let counts = if complete { &mut self.requests } else { &mut self.incomplete };
        *counts.entry(cause).or_default() += 1;
        let Some(snapshot) = sim.snapshot(id) else {
            return self.fail(format!("{id}: served but not registered"));
        };
        let Some(record) = self.records.get_mut(&number).filter(|known| known.id == Some(id))
        else {
            return self.fail(format!("{id}: a callback for the socket of another connection"));
        };
        let mut wrong = Vec::new();
        if record.connecting {
            wrong.push("a callback before it is open".to_owned());
        }
        let unanswered = cause == Cause::Unanswered;
        let over = record.got_last_body
            || record.got_rest && !record.read_closed
            || record.read_closed && cause != Cause::Expired;
        if record.end.is_some() || over && !unanswered {
            wrong.push("a callback after the last one".to_owned());
        }
        if record.paused && record.paused_turns > 1 && !unanswered {
            wrong.push("a callback while paused".to_owned());
        }
        let may_be_paused = record.paused || record.pause_uncertain || record.resume_turns > 0;
        if unanswered && (complete || !may_be_paused) {
            wrong.push("the end of a pause, but it was not paused".to_owned());
        }
        if (bytes_in, bytes_out) != (snapshot.received, snapshot.sent) {
            wrong.push(format!("{bytes_in} bytes in and {bytes_out} out, but {snapshot:?}"));
        }
        let count = (snapshot.received - record.delivered) as usize;
        let held = &record.sent.make_contiguous()[..count];
        let least = self.configs.iter().map(longest_request).min().unwrap_or(0);
        let fits = count < least && !oracle::announces(&self.configs[0].framing, held, least);
        if cause == Cause::Overlong && fits {
            wrong.push(format!("overlong, but only {count} of {least} bytes"));
        }
        let framing = &self.configs[0].framing;
        let stream = oracle::is_stream(framing);
        match delivery.taken(framing, held, &self.sizes) {
            Ok(taken) => {
                if taken > self.longest {
                    wrong.push(format!("{taken} bytes, but max_request is {}", self.longest));
                }
                record.sent.drain(..taken);
                record.delivered += taken as u64;
            }
            Err(error) => wrong.push(format!("{cause:?}: {error} of {held:?}")),
        }
        let unlimited = |config: &Config| config.memory_limit.is_none();
        let small = |config: &Config| body.len() < config.buffer_size && unlimited(config);
        if cause == Cause::Full && self.configs.iter().all(small) {
            wrong.push("a full buffer that is smaller than buffer_size".to_owned());
        }
        // A stop reads the clock without a wait.
        let latest = if self.stopping { now } else { began };
        if matches!(cause, Cause::Expired | Cause::MemoryLimit) || !complete {
            // The last callback does not wait for the rate limit.
        } else if let Err(too_early) = record.check_rate(&self.configs, began, latest) {
            wrong.push(too_early);
        }
        let early = is_early(record, &self.configs, &snapshot, now, began);
        let late = self
            .configs
            .iter()
            .all(|config| record.moved.1 + idle(record, config) + Duration::from_millis(2) < began);
        let silent = snapshot.received == 0 && !record.outgoing && !record.read_closed;
        if cause == Cause::Expired && count == 0 && stream && silent != complete {
            wrong.push(format!("an empty last callback, and the peer was silent: {silent}"));
        }
        match cause {
            Cause::Unanswered if is_pause_early(record, &self.configs, &snapshot, now, began) => {
                wrong.push(format!("a pause ended early, {record:?}"));
            }
            Cause::Expired if early => wrong.push(format!("expired early, {record:?}")),
            Cause::Expired if is_unread_in_time(record, &self.configs, &snapshot, now) => {
                wrong.push(format!("expired with unread input, {snapshot:?}"));
            }
            Cause::Eof if late => self.marks.hit("a deadline and the end of file in one turn"),
            Cause::Full if late => self.marks.hit("a deadline and a full buffer in one turn"),
            _ => {}
        }
        if cause == Cause::MemoryLimit && self.configs.iter().all(unlimited) {
            wrong.push("MemoryLimit without a memory_limit".to_owned());
        }
        delivery.mark(record, &mut self.marks);
        record.got_last_body = matches!(
            cause,
            Cause::Expired | Cause::Overlong | Cause::MemoryLimit | Cause::Unanswered
        );
        record.got_rest = cause == Cause::Eof;
        record.last_callback = (now, began);
        record.callbacks += 1;
        record.called_in_turn = true;
        record.total_since = None;
        record.unserved_turns = 0;
        for wrong in wrong {
            self.fail(format!("{id}: {wrong}"));
        }
    }

    /// Checks a call of `read_closed`.
    pub(crate) fn read_closed(&mut self, id: ConnId, sim: &Sim) {
        self.note(&|| format!("{id}: read_closed"), 0, 8);
        let Some(snapshot) = sim.snapshot(id) else {
            return self.fail(format!("{id}: `read_closed` called, but not registered"));
        };
        let now = (sim.now(), sim.counters().waited);
        let Some(record) = self.record(id) else {
            return self.fail(format!("{id}: `read_closed` called, but never opened"));
        };
        record.last_callback = now;
        record.called_in_turn = true;
        let again = std::mem::replace(&mut record.read_closed, true);
        let over = again || record.connecting || record.end.is_some() || record.got_last_body;
        let early = !record.sent.is_empty() || !snapshot.ended || snapshot.unread > 0;
        let paused = record.paused && record.paused_turns > 1;
        self.marks.hit_if("a paused connection ends because its peer has gone", paused);
        let paused = paused && !has_gone(&snapshot);
        if over || early || paused {
            self.fail(format!("{id}: `read_closed` called too often, early or while paused"));
        }
    }

    /// Records a call of `finish` by a callback of the connection.
    pub(crate) fn finish(&mut self, id: ConnId) {
        if let Some(record) = self.record(id) {
            record.finished = true;
        }
    }

    /// Records bytes that the pool has accepted as a reply.
    pub(crate) fn replied(&mut self, id: ConnId, bytes: &[u8]) {
        let finished = self.record(id).is_some_and(|record| record.finished);
        self.marks.hit_if("a reply is discarded after finish", finished);
        if let Some(record) = self.record(id) {
            if finished {
                record.discarded += bytes.len() as u64;
                return;
            }
            record.replies.extend(bytes);
            record.replied += bytes.len() as u64;
        }
    }

    /// Removes the reply of a callback that panicked.
    pub(crate) fn reply_discarded(&mut self, id: ConnId, count: usize) {
        if let Some(record) = self.record(id).filter(|record| !record.finished) {
            record.replies.truncate(record.replies.len() - count);
            record.replied -= count as u64;
        }
    }

    /// Records that a callback slept. For activity just before the sleep, the pool may record the
    /// end of the sleep as the time of this activity.
    pub(crate) fn slept(&mut self, from: Duration, time: Duration) {
        self.slept += time;
        let extend =
            |clock: &mut Duration| *clock += if *clock == from { time } else { Duration::ZERO };
        for record in self.records.values_mut() {
            extend(&mut record.moved.1);
            record.total_since.as_mut().map(extend);
        }
    }

    /// Records that the connection reads nothing more and may be closed for `reason`.
    pub(crate) fn closing(&mut self, id: ConnId, reason: CloseReason) {
        if let Some(record) = self.record(id) {
            record.closing = true;
            record.allowed_reasons.push(reason);
        }
    }

    /// Checks that a reply was accepted or refused as `write_limit` demands.
    pub(crate) fn wrote(&mut self, id: ConnId, count: usize, taken: bool) {
        if taken && self.record(id).is_some_and(|record| record.finished) {
            return;
        }
        let fits = |config: &Config| count <= config.write_limit;
        if !taken && self.configs.iter().all(fits) {
            self.fail(format!("{id}: {count} bytes are no more than write_limit"));
        }
        if taken && !self.configs.iter().any(fits) {
            self.fail(format!("{id}: {count} bytes are more than write_limit"));
        }
        if !taken {
            self.closing(id, CloseReason::WriteLimit);
        }
    }

    /// Records a call of `blocked`: part of a reply is unsent.
    pub(crate) fn blocked(&mut self, id: ConnId) {
        let Some(record) = self.record(id) else { return };
        let again = std::mem::replace(&mut record.blocked, true);
        if again || record.connecting || record.end.is_some() {
            self.fail(format!("{id}: `blocked` called twice, or while it is not open"));
        }
    }

    /// Records a call of `flushed`: all of the reply was sent.
    pub(crate) fn flushed(&mut self, id: ConnId) {
        let Some(record) = self.record(id) else { return };
        record.flushed = true;
        let was_blocked = std::mem::take(&mut record.blocked);
        if !was_blocked {
            self.fail(format!("{id}: `flushed` called without `blocked`"));
        }
    }

    /// Records that a callback paused its own connection.
    pub(crate) fn pause_by_callback(&mut self, id: ConnId, began: Duration) {
        self.pause(id, began);
        if let Some(record) = self.record(id) {
            record.paused_by_callback = !record.pause_uncertain;
        }
    }

    pub(crate) fn pause(&mut self, id: ConnId, began: Duration) {
        self.note(&|| format!("{id}: pause requested"), 0, 4);
        if let Some(record) = self.record(id) {
            record.set_paused(true, began);
        }
    }

    /// Records the end of a pause whose deadline has passed. A queued command may pause the
    /// connection again.
    pub(crate) fn pause_expired(&mut self, id: ConnId) {
        self.marks.hit("a pause ends at its deadline");
        if let Some(record) = self.record(id) {
            record.paused = false;
            record.pause_uncertain = true;
            record.paused_by_callback = false;
        }
    }

    pub(crate) fn resume(&mut self, id: ConnId, now: Duration) {
        self.note(&|| format!("{id}: resume requested"), 0, 5);
        if let Some(record) = self.record(id) {
            record.paused_by_callback = false;
            // Deadlines that were certainly suspended start again now or later. If commands have
            // sent bytes, the model does not know whether these bytes still wait.
            let has_unsent = record.had_unsent || record.sends_total > 0;
            if record.paused_turns > 1 && !has_unsent && !record.pause_uncertain {
                record.moved.0 = record.moved.0.max(now);
                record.quiet = record.quiet.max(now);
            }
            record.set_paused(false, now);
        }
    }

    /// Records a client that connects to a listener.
    pub(crate) fn client_connects(&mut self, number: usize, from: IpAddr) {
        self.listener_connects += 1;
        let record = self.records.entry(number).or_default();
        record.from_listener = true;
        record.peer_addr = Some(from);
    }

    /// Records a call of `wrap`, and whether the handler keeps the connection.
    pub(crate) fn wrap_called(&mut self, number: usize, kept: bool) {
        let record = self.records.entry(number).or_default();
        let again = std::mem::replace(&mut record.wrapped, true);
        if again || !record.from_listener {
            self.fail(format!(
                "`wrap` was called twice for connection {number}, or it came through no listener"
            ));
        } else if !kept {
            // The connection is closed without a reply.
            record.from_listener = false;
        }
    }

    /// Records bytes that a command sends. The pool decides later whether these bytes exceed
    /// `write_limit`.
    pub(crate) fn send(&mut self, id: ConnId, value: u8, count: usize) -> Vec<u8> {
        if let Some(record) = self.record(id) {
            record.sends[usize::from(value >= SENDS[1])].push_back((value, count, 0));
            record.sends_total += count as u64;
        }
        self.sends[0] += count as u64;
        vec![value; count]
    }

    /// Records bytes that were returned through `undelivered`. The peer receives none of these
    /// bytes.
    pub(crate) fn undelivered(&mut self, id: ConnId, bytes: &[u8]) {
        self.note(&|| format!("{id}: {} bytes are returned", bytes.len()), 0, 6);
        self.sends[1] += bytes.len() as u64;
        let Some(record) = self.record(id) else { return };
        let first = bytes.first().copied().unwrap_or_default();
        let sends = &mut record.sends[usize::from(first >= SENDS[1])];
        let whole = |&(value, count, got): &(u8, usize, usize)| {
            got == 0 && count == bytes.len() && bytes.iter().all(|&byte| byte == value)
        };
        // The pool returns only sends that come after those that it has written to the socket. If
        // two sends are equal, the pool therefore returned the later one.
        match sends.iter().rposition(whole) {
            Some(index) => drop(sends.remove(index)),
            None => self.fail(format!("{id}: returned, but not sent: {bytes:?}")),
        }
    }

    /// Records a call of `turn_ended`.
    pub(crate) fn record_turn_end(&mut self) {
        self.turn_ended += 1;
        if self.depth > 0 {
            self.fail("`turn_ended` was called within a callback");
        }
    }

    /// Checks bytes that a peer received. Replies must be complete and in order. Sends must be in
    /// order, but whole sends may be missing.
    pub(crate) fn got(&mut self, number: usize, bytes: &[u8]) {
        let Some(record) = self.records.get_mut(&number) else { return };
        if record.id.is_none() {
            // The connection was never opened. It may receive only the text of a refusal, or a part
            // of it.
            record.got += bytes.len() as u64;
            let refusal_bytes = [b"no", ERROR_SERVER_BUSY.as_bytes()].concat();
            return if !bytes.iter().all(|byte| refusal_bytes.contains(byte)) {
                self.fail(format!("a refused connection received {bytes:?}"));
            };
        }
        record.got += bytes.len() as u64;
        let mut wrong = false;
        for &byte in bytes {
            if byte < SENDS[0] {
                wrong |= record.replies.pop_front() != Some(byte);
                continue;
            }
            let sends = &mut record.sends[usize::from(byte >= SENDS[1])];
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
            let id = record.id;
            self.fail(format!("{id:?}: the peer received bytes that were not sent"));
        }
    }

    /// Checks that a refused connection received a reply.
    pub(crate) fn check_refused_reply(&mut self, number: usize) {
        let Some(record) = self.records.get(&number) else { return };
        if record.from_listener && record.id.is_none() && record.got == 0 {
            self.fail(format!("connection {number} was refused without a reply"));
        }
    }

    /// Checks a peer that saw an end of file or a reset. It must have received all bytes that the
    /// pool guarantees to deliver.
    pub(crate) fn peer_saw_end(
        &mut self,
        number: usize,
        reset: bool,
        now: Duration,
        lossless: bool,
    ) {
        let Some(record) = self.records.get(&number) else { return };
        let Some((end, when)) = &record.end else {
            if record.finished && !reset && !record.replies.is_empty() {
                let id = record.id;
                self.fail(format!("{id:?}: finished, and the peer missed a part of the reply"));
            }
            return;
        };
        let missed = end.bytes_out.saturating_sub(record.got);
        let guaranteed = if reset {
            let lingers = matches!(
                end.reason,
                CloseReason::Eof
                    | CloseReason::Expired
                    | CloseReason::Requested
                    | CloseReason::Failed
                    | CloseReason::Overlong
                    | CloseReason::Evicted
            );
            let recent = *when < record.moved.0 + LINGERING && now < *when + LINGERING;
            let lingers = lingers || end.reason == CloseReason::MemoryLimit && record.got_last_body;
            lingers && recent && lossless
        } else {
            true
        };
        if missed > 0 && guaranteed {
            let id = end.id;
            self.fail(format!("{id}: the peer missed {missed} bytes, reset: {reset}, {end:?}"));
        }
    }

    /// Checks the session of a connection that ends, and that an error is reported if and only if
    /// an error ended the connection.
    pub(crate) fn check_session(&mut self, end: &Closed, session: Option<ConnId>) {
        let expected = self.record(end.id).filter(|record| record.has_session).map(|_| end.id);
        if session != expected {
            self.fail(format!("{}: closed with session {session:?}", end.id));
        }
        self.marks.hit_if("opened fails", session.is_none() && end.key.is_none());
        let failed = matches!(
            end.reason,
            CloseReason::Reset | CloseReason::Io | CloseReason::Unreachable | CloseReason::Failed
        );
        if end.error.is_some() != failed {
            self.fail(format!("{}: {} with the error {:?}", end.id, end.reason, end.error));
        }
    }

    /// Checks the end of a connection. The connection must end once, for a valid reason, and with
    /// correct totals.
    pub(crate) fn closed(&mut self, end: &Closed, sim: &Sim) {
        let (now, began) = (sim.now(), sim.counters().waited);
        self.note_connects(sim, end.key.filter(|_| sim.snapshot(end.id).is_none()));
        if end.key.is_some_and(|key| self.connect_closed(end, key, sim)) {
            return;
        }
        *self.closed.entry(end.reason).or_default() += 1;
        let values = [end.bytes_in, end.bytes_out, end.bytes_dropped, end.bytes_unsent];
        for (total, value) in self.totals.iter_mut().zip(values) {
            *total += value;
        }
        let number = self.numbers.get(&end.id).copied();
        self.note(&|| format!("{end:?}"), number.unwrap_or(0), 3 | values[3] << 8);
        let (id, snapshot) = (end.id, sim.snapshot(end.id));
        let evicted =
            if end.reason == CloseReason::Evicted { self.check_evicted(end, sim) } else { Ok(()) };
        let record = number.and_then(|number| self.records.get_mut(&number));
        let (Some(record), Some(snapshot)) = (record, snapshot) else {
            return self.fail(format!("{id}: closed, but never opened"));
        };
        let mut wrong = Vec::new();
        if record.end.replace((end.clone(), now)).is_some() {
            wrong.push("closed twice".to_owned());
        }
        if (end.bytes_in, end.bytes_out) != (snapshot.received, snapshot.sent) {
            wrong.push(format!("its totals differ from those of the network, {snapshot:?}"));
        }
        if end.bytes_in != record.delivered + end.bytes_dropped {
            wrong.push("read bytes were neither delivered nor dropped".to_owned());
        }
        let replied = record.replied + record.discarded;
        let (least, max) = (replied, replied + record.sends_total);
        self.sends[2] += (end.bytes_out + end.bytes_unsent).saturating_sub(least);
        if !(least..=max).contains(&(end.bytes_out + end.bytes_unsent)) {
            wrong.push(format!("expected {least} to {max} bytes sent and unsent"));
        }
        let timed = matches!(end.reason, CloseReason::Expired | CloseReason::WriteStalled);
        if timed && !record.got_last_body && is_early(record, &self.configs, &snapshot, now, began)
        {
            wrong.push(format!("closed before its deadline, {snapshot:?}"));
        }
        if end.reason == CloseReason::Expired
            && !record.got_last_body
            && is_unread_in_time(record, &self.configs, &snapshot, now)
        {
            wrong.push(format!("expired with unread input, {snapshot:?}"));
        }
        let rest = !record.sent.is_empty() || end.bytes_dropped > 0;
        if end.reason == CloseReason::Eof && (rest || !record.read_closed) {
            wrong.push("Eof before everything was delivered and `read_closed` called".to_owned());
        }
        if end.reason == CloseReason::Stopped
            && end.bytes_unsent > record.discarded
            && now < self.drain_until
        {
            wrong.push("unsent bytes were dropped before the stop deadline".to_owned());
        }
        if let Err(wrong_reason) = record.check_reason(end, &snapshot) {
            wrong.push(wrong_reason);
        }
        if let Err(not_evictable) = evicted {
            wrong.push(not_evictable);
        }
        let tick = Duration::from_millis(1);
        let (least, max) =
            (began.saturating_sub(record.opened.1), now.saturating_sub(record.opened.0));
        if end.age + tick < least || end.age > max + tick {
            wrong.push(format!("its age is not between {least:?} and {max:?}"));
        }
        let busy = snapshot.unread > 0 || record.finished != record.read_closed;
        if end.reason == CloseReason::Stopped && busy && now < self.drain_until {
            wrong.push(format!("closed as idle, with unread input or half-open, {snapshot:?}"));
        }
        if end.reason == CloseReason::Stopped
            && record.opened_in_stop.1
            && end.bytes_in == 0
            && now < self.drain_until
        {
            wrong.push("accepted in a stop, but closed before a request arrived".to_owned());
        }
        let idle = self.configs.iter().map(|config| idle(record, config)).min();
        let moving = now < record.moved.0 + idle.unwrap_or_default();
        match end.reason {
            CloseReason::Expired if moving => {
                self.marks.hit("request_deadline closes a connection");
            }
            CloseReason::Reset if end.bytes_dropped > 0 => {
                self.marks.hit("a reset while bytes are held");
            }
            CloseReason::WriteLimit => self.marks.hit("write_limit is exceeded"),
            CloseReason::WriteStalled => self.marks.hit("the peer does not read its reply"),
            CloseReason::Invalid => self.marks.hit("the framing finds invalid bytes"),
            CloseReason::Evicted => self.marks.hit("an idle connection is evicted"),
            CloseReason::Io => self.marks.hit("an I/O error other than a reset"),
            _ => {}
        }
        for wrong in wrong {
            self.fail(format!("{id}: {wrong}: {end:?}"));
        }
    }
}
