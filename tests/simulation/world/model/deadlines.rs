//! Deadlines: the times from which they count, and the checks of a connection after a turn.

use std::time::Duration;

use pool_manager::sim::ConnSnapshot;
use pool_manager::{CloseReason, Closed, Config};

use super::super::oracle;
use super::{CALLBACKS, ConnRecord, READS, TurnRecord, VISITS};

/// Returns the time in milliseconds, rounded up.
pub(super) fn ticks(time: Duration) -> u128 {
    time.as_nanos().div_ceil(1_000_000)
}

pub(super) fn idle(record: &ConnRecord, config: &Config) -> Duration {
    if record.own_deadline.is_zero() { config.clients_deadline } else { record.own_deadline }
}

/// Returns whether neither the idle deadline nor the request deadline can have passed.
pub(super) fn is_early(
    record: &ConnRecord,
    configs: &[Config],
    snapshot: &ConnSnapshot,
    now: Duration,
    began: Duration,
) -> bool {
    let moved = earliest_move(record, snapshot, began);
    configs
        .iter()
        .all(|config| now < moved + idle(record, config) && is_in_time(record, config, now))
}

/// Returns whether the peer can neither send nor receive any more.
pub(super) fn has_gone(snapshot: &ConnSnapshot) -> bool {
    snapshot.broken || snapshot.ended && snapshot.finished
}

/// Returns whether `paused_deadline` cannot have passed.
pub(super) fn is_pause_early(
    record: &ConnRecord,
    configs: &[Config],
    snapshot: &ConnSnapshot,
    now: Duration,
    began: Duration,
) -> bool {
    let from = earliest_move(record, snapshot, began).max(record.pause_began.0);
    let early = |config: &Config| config.paused_deadline.is_none_or(|limit| now < from + limit);
    // A requested resume has moved the times of the model, but the pool may not have executed it.
    record.resume_turns == 0 && configs.iter().all(early)
}

/// Returns the earliest time that the pool may have recorded as the time of the last activity.
fn earliest_move(record: &ConnRecord, snapshot: &ConnSnapshot, began: Duration) -> Duration {
    // For activity in a turn, the pool may record the time at which the turn began. For activity in
    // a slow call outside a turn, it may record a time just before the end of the call.
    let tick = Duration::from_millis(1);
    let moved_since = snapshot.moved > record.seen_moved;
    if moved_since { snapshot.moved.min(began).saturating_sub(tick) } else { record.moved.0 }
}

/// Returns whether the connection has unread input and `request_deadline` cannot have passed.
pub(super) fn is_unread_in_time(
    record: &ConnRecord,
    configs: &[Config],
    snapshot: &ConnSnapshot,
    now: Duration,
) -> bool {
    let unread = snapshot.unread > 0 || snapshot.ended && !record.read_closed;
    unread && configs.iter().all(|config| is_in_time(record, config, now))
}

/// Returns whether `request_deadline` cannot have passed.
fn is_in_time(record: &ConnRecord, config: &Config, now: Duration) -> bool {
    let from = record.last_callback.1.max(record.quiet);
    config.request_deadline.is_none_or(|total| now < from + total)
}

impl ConnRecord {
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// Checks that the close reason is justified. If a callback has paused the connection, the
    /// connection must not end because of an end of file, a deadline or an overlong request, unless
    /// its peer has gone.
    pub(super) fn check_reason(&self, end: &Closed, snapshot: &ConnSnapshot) -> Result<(), String> {
        let reason = end.reason;
        let justified = match reason {
            CloseReason::Reset | CloseReason::Io => snapshot.broken,
            CloseReason::WriteLimit => {
                self.sends_total > 0 || self.allowed_reasons.contains(&reason)
            }
            CloseReason::Requested | CloseReason::Failed | CloseReason::Aborted => {
                self.allowed_reasons.contains(&reason)
            }
            CloseReason::Panicked => {
                self.allowed_reasons.contains(&reason) || self.sent.front() == Some(&6)
            }
            CloseReason::Invalid => self.sent.front() == Some(&5),
            CloseReason::Expired | CloseReason::Overlong => self.got_last_body,
            CloseReason::WriteStalled => end.bytes_unsent > 0 || self.sends_total > 0,
            CloseReason::MemoryLimit => self.got_last_body || self.delivery_may_be_suspended(),
            _ => true,
        };
        if !justified {
            return Err(format!("closed without a cause, {snapshot:?}"));
        }
        let natural =
            matches!(reason, CloseReason::Eof | CloseReason::Expired | CloseReason::Overlong);
        if natural && self.paused_by_callback && !has_gone(snapshot) {
            return Err("ended although a callback paused it to answer later".into());
        }
        Ok(())
    }

    /// Returns whether delivery may be suspended, because the connection is paused or closing or
    /// has unsent bytes.
    fn delivery_may_be_suspended(&self) -> bool {
        let suspended =
            self.paused || self.pause_uncertain || self.paused_turns > 0 || self.resume_turns > 0;
        suspended || self.closing || self.had_unsent || self.replied + self.sends_total > 0
    }

    /// Records a pause or a resume. Commands of callbacks and of handles may be executed in either
    /// order. `began` is the time at which the turn began.
    pub(super) fn set_paused(&mut self, pause: bool, began: Duration) {
        if self.uncertain_turns > 0 || !pause {
            self.pause_began.0 = Duration::ZERO;
        } else if !self.paused {
            self.pause_began.0 = began;
        }
        self.pause_uncertain = self.uncertain_turns > 0 && pause != self.paused;
        self.uncertain_turns = 2;
        self.paused_turns = 0;
        if self.paused && !pause {
            self.resume_turns = 2;
        }
        self.paused = pause;
    }

    /// Updates the record at the end of a turn in which the connection was still connecting.
    pub(super) fn end_turn_connecting(&mut self) {
        self.uncertain_turns = self.uncertain_turns.saturating_sub(1);
        self.resume_turns = self.resume_turns.saturating_sub(1);
    }

    /// Checks the invariants of this connection after a turn.
    pub(super) fn check(
        &mut self,
        turn: TurnRecord,
        config: &Config,
        (max_held, max_unsent): (usize, usize),
        snapshot: ConnSnapshot,
    ) -> Result<(), String> {
        let held = (snapshot.received - self.delivered) as usize;
        let blocked = snapshot.full || (self.sends_total == 0 && snapshot.sent < self.replied);
        let progress = (snapshot.received, snapshot.sent) != self.seen;
        let (read, callbacks) =
            (snapshot.received - self.seen.0, std::mem::take(&mut self.callbacks));
        if read > u64::from(VISITS * READS) * max_held as u64 || callbacks > VISITS * CALLBACKS {
            return Err(format!("{read} bytes read and {callbacks} callbacks in one turn"));
        }
        let flushed = std::mem::take(&mut self.flushed);
        let all_sent = self.was_full && snapshot.sent == self.replied && self.sends_total == 0;
        // If the last write of a visit sends the last byte, `flushed` is called in the next turn.
        let flushed_missing =
            all_sent && !flushed && !self.closing && !self.got_last_body && !snapshot.ended;
        if flushed_missing && turn.asleep {
            return Err("`flushed` was not called".into());
        }
        let must_wait = snapshot.full
            && snapshot.room == 0
            && !self.closing
            && !self.got_last_body
            && !snapshot.ended;
        if must_wait && turn.asleep && !self.blocked {
            return Err("`blocked` was not called".into());
        }
        self.was_full = snapshot.full || flushed_missing;
        self.progressed = progress;
        self.seen = (snapshot.received, snapshot.sent);
        let rate_limited = self.may_wait_for_rate(config.rate_limit, turn.began);
        self.update_times(turn, snapshot, held, blocked, progress);
        if std::mem::replace(&mut self.rate_limited, rate_limited) || rate_limited {
            // While requests wait for `rate_limit`, the deadlines are suspended.
            self.moved.1 = turn.ended;
            self.total_since = self.total_since.map(|_| turn.ended);
        }
        self.uncertain_turns = self.uncertain_turns.saturating_sub(1);
        let paused = self.paused || self.pause_uncertain;
        self.paused_turns =
            if self.paused && !self.pause_uncertain { self.paused_turns + 1 } else { 0 };
        if self.paused_turns < 2 {
            self.pause_began.1 = turn.ended;
        } else if !blocked && self.sends_total == 0 {
            self.check_pause(turn, config, snapshot, held)?;
        }
        let suspended = paused || self.got_last_body || self.closing || rate_limited;
        self.check_deadlines(
            turn,
            config,
            self.pause_uncertain || (paused || self.got_last_body) && !blocked,
        )?;
        if turn.asleep && !blocked && !suspended {
            let unread = snapshot.unread > 0 || snapshot.ended && !self.read_closed;
            if unread && !snapshot.pending {
                return Err("the loop sleeps, but no event will report the unread input".into());
            }
            let sending = self.sends_total > 0 && snapshot.pending;
            if !sending && oracle::complete(&config.framing, &self.sent.make_contiguous()[..held]) {
                return Err("the loop sleeps although a complete frame is held".into());
            }
        }
        let quiet = held == 0 && snapshot.sent == self.replied && self.sends_total == 0;
        let nothing_unread = snapshot.unread == 0 && !snapshot.ended && !snapshot.pending;
        let awaits_first_read = self.opened_in_stop.0 && snapshot.received == 0;
        let half_open = self.finished != self.read_closed;
        if turn.asleep && self.finished && quiet {
            if self.read_closed && !paused {
                return Err("both sides have ended, but it is still open".into());
            }
            if !snapshot.finished && !snapshot.broken {
                return Err("finished, but its write side is still open".into());
            }
        }
        if turn.stopping
            && !half_open
            && turn.asleep
            && quiet
            && nothing_unread
            && !suspended
            && !awaits_first_read
        {
            return Err("idle, but still open during a stop".into());
        }
        if turn.asleep && blocked && snapshot.room > 0 && !snapshot.pending {
            return Err("the loop sleeps although the peer has space for the unsent reply".into());
        }
        let ready = snapshot.unread > 0 && !snapshot.pending && !blocked && !suspended;
        self.unserved_turns = if ready && !progress { self.unserved_turns + 1 } else { 0 };
        if self.unserved_turns > 8 {
            return Err("ready, but not served".into());
        }
        if held > max_held {
            return Err(format!("{held} bytes held, more than allowed"));
        }
        let unsent = self.replied.saturating_sub(snapshot.sent);
        if unsent > max_unsent as u64 && self.sends_total == 0 {
            return Err(format!("{unsent} bytes unsent, more than allowed"));
        }
        Ok(())
    }

    /// Updates the earliest and the latest times from which the deadlines may count.
    pub(super) fn update_times(
        &mut self,
        turn: TurnRecord,
        snapshot: ConnSnapshot,
        held: usize,
        blocked: bool,
        progress: bool,
    ) {
        let (before, read) = turn.before;
        let recent =
            |time: Duration| if ticks(time) >= ticks(before) { time.max(read) } else { time };
        let clocks = [&mut self.moved.1, &mut self.pause_began.1];
        for clock in clocks.into_iter().chain(&mut self.total_since) {
            *clock = recent(*clock);
        }
        let in_turn = |time: Duration| time >= turn.began;
        // The pool counts in milliseconds, rounded up. If activity falls into the millisecond in
        // which a slow turn begins, the pool may record the end of the turn as the time of this
        // activity.
        let latest =
            |time: Duration| if ticks(time) >= ticks(turn.began) { turn.ended } else { time };
        // For activity in a turn, the earliest time that the pool may record is just before the end
        // of the turn.
        let tick = Duration::from_millis(1);
        let almost_ended = turn.ended.saturating_sub(tick).max(turn.began);
        let earliest = |time: Duration| if in_turn(time) { almost_ended } else { time };
        if std::mem::take(&mut self.called_in_turn) {
            self.last_callback.1 = earliest(self.last_callback.0);
            if held > 0 {
                // The remaining bytes arrived with the request. These bytes wait for the pool, not
                // for the peer, so the deadline counts from the callback.
                self.moved.0 = self.moved.0.max(self.last_callback.1);
            }
        }
        if snapshot.moved > self.seen_moved {
            self.moved.0 = earliest(snapshot.moved).max(self.moved.0);
            self.seen_moved = snapshot.moved;
        }
        self.moved.1 = latest(self.moved.1.max(snapshot.moved).max(self.last_callback.0));
        let resumed = self.resume_turns > 0;
        self.resume_turns = self.resume_turns.saturating_sub(1);
        if resumed {
            self.moved.1 = turn.ended;
        }
        if held == 0 && !blocked && self.sends_total == 0 {
            self.quiet = turn.ended;
        }
        if held == 0 && !blocked {
            self.total_since = None;
        } else if self.total_since.is_none()
            || self.had_unsent != blocked
            || resumed
            || progress && self.sends_total > 0
        {
            // The model does not know whether the bytes that commands sent had to wait.
            self.total_since = Some(turn.ended);
        }
        self.total_since = self.total_since.map(latest);
        self.had_unsent = blocked;
    }

    /// Checks that a pause ends at its deadline, or when the peer has gone and nothing is held.
    fn check_pause(
        &self,
        turn: TurnRecord,
        config: &Config,
        snapshot: ConnSnapshot,
        held: usize,
    ) -> Result<(), String> {
        let from = self.moved.1.max(self.pause_began.1) + Duration::from_millis(2);
        let over = |deadline| turn.began > from + deadline;
        if turn.punctual && config.paused_deadline.is_some_and(over) {
            return Err(format!("paused past its deadline, from {from:?}"));
        }
        let left = snapshot.unread > 0 || held > 0;
        if turn.asleep && has_gone(&snapshot) && !snapshot.pending && !left {
            return Err("paused, and its peer has gone, but it is still open".into());
        }
        Ok(())
    }

    pub(super) fn check_deadlines(
        &self,
        turn: TurnRecord,
        config: &Config,
        suspended: bool,
    ) -> Result<(), String> {
        if suspended || !turn.punctual {
            return Ok(());
        }
        let ticks = Duration::from_millis(2);
        let due = self.moved.1.saturating_add(idle(self, config)).saturating_add(ticks);
        if turn.began > due {
            return Err(format!("open past its idle deadline {due:?}"));
        }
        if let Some((since, total)) = self.total_since.zip(config.request_deadline) {
            let due = since.saturating_add(total).saturating_add(ticks);
            if turn.began > due {
                return Err(format!("open past its request deadline {due:?}"));
            }
        }
        Ok(())
    }
}
