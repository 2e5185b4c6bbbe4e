//! Clocks: from when deadlines count, and what must hold for a connection after a turn.

use std::time::Duration;

use pool_manager::sim::ConnSnapshot;
use pool_manager::{CloseReason, Closed, Config};

use super::super::oracle;
use super::{Account, CALLBACKS, READS, Turned, VISITS};

/// Milliseconds, rounded up.
pub(super) fn ticks(time: Duration) -> u128 {
    time.as_nanos().div_ceil(1_000_000)
}

pub(super) fn idle(account: &Account, config: &Config) -> Duration {
    if account.own.is_zero() { config.clients_deadline } else { account.own }
}

/// Whether neither deadline can have passed.
pub(super) fn early(
    account: &Account,
    configs: &[Config],
    look: &ConnSnapshot,
    now: Duration,
    began: Duration,
) -> bool {
    // What happens in a turn may count from its beginning, and what happens in a slow call of
    // another kind from just before its end.
    let tick = Duration::from_millis(1);
    let news = look.moved > account.seen_moved;
    let moved = if news { look.moved.min(began).saturating_sub(tick) } else { account.moved.0 };
    configs
        .iter()
        .all(|config| now < moved + idle(account, config) && is_in_time(account, config, now))
}

/// Whether it has said something that was not heard, and only silence can be held against it.
pub(super) fn unheard(
    account: &Account,
    configs: &[Config],
    look: &ConnSnapshot,
    now: Duration,
) -> bool {
    let spoke = look.unread > 0 || look.ended;
    spoke && configs.iter().all(|config| is_in_time(account, config, now))
}

/// Whether the total deadline cannot have passed.
fn is_in_time(account: &Account, config: &Config, now: Duration) -> bool {
    let total = config.request_deadline;
    total.is_zero() || now < account.called.1.max(account.quiet) + total
}

impl Account {
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// Nobody is closed without a reason, and natural ends come after the last body.
    pub(super) fn reasoned(&self, end: &Closed, look: &ConnSnapshot) -> Result<(), String> {
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
            CloseReason::MemoryLimit => self.over || self.is_held_up(),
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

    /// Perhaps nothing may be delivered to it: it owes a reply, is paused or closing.
    fn is_held_up(&self) -> bool {
        let still = self.paused || self.unsure || self.was_paused > 0 || self.resumed > 0;
        still || self.closing || self.owed || self.replied + self.sends_total > 0
    }

    /// It is to pause or to go on. What callbacks ask for and what handles do may be done in
    /// either order.
    pub(super) fn order(&mut self, pause: bool) {
        self.unsure = self.ordered > 0 && pause != self.paused;
        self.ordered = 2;
        self.was_paused = 0;
        if self.paused && !pause {
            self.resumed = 2;
        }
        self.paused = pause;
    }

    /// What is asked of one that is not there yet counts from when it is.
    pub(super) fn keep_connecting(&mut self) {
        self.ordered = self.ordered.saturating_sub(1);
        self.resumed = self.resumed.saturating_sub(1);
    }

    pub(super) fn check(
        &mut self,
        turn: Turned,
        config: &Config,
        (most_held, most_unsent): (usize, usize),
        look: ConnSnapshot,
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
        // When the last write allowed takes the last byte, the hook is told in the next turn.
        let untold = paid && !flushed && !self.closing && !self.over && !look.ended;
        if untold && turn.asleep {
            return Err("the hook was not told that a reply has gone out".into());
        }
        let waits = look.full && look.room == 0 && !self.closing && !self.over && !look.ended;
        if waits && turn.asleep && !self.blocked {
            return Err("the hook was not told that a reply has to wait".into());
        }
        self.was_full = look.full || untold;
        self.progressed = progress;
        self.seen = (look.received, look.sent);
        let slow = self.may_be_held(config.rate_limit, turn.began);
        self.keep_time(turn, look, held, blocked, progress);
        if std::mem::replace(&mut self.held_up, slow) || slow {
            // Its clocks may have stood still.
            self.moved.1 = turn.ended;
            self.since = self.since.map(|_| turn.ended);
        }
        self.ordered = self.ordered.saturating_sub(1);
        let paused = self.paused || self.unsure;
        self.was_paused = if self.paused && !self.unsure { self.was_paused + 1 } else { 0 };
        let still = paused || self.over || self.closing || slow;
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
        let awaited = self.late.0 && look.received == 0;
        if turn.stopping && turn.asleep && quiet && heard && !still && !awaited {
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
    pub(super) fn keep_time(
        &mut self,
        turn: Turned,
        look: ConnSnapshot,
        held: usize,
        blocked: bool,
        progress: bool,
    ) {
        let (before, read) = turn.before;
        let recent =
            |time: Duration| if ticks(time) >= ticks(before) { time.max(read) } else { time };
        for clock in std::iter::once(&mut self.moved.1).chain(&mut self.since) {
            *clock = recent(*clock);
        }
        let in_turn = |time: Duration| time >= turn.began;
        // The pool counts in milliseconds, rounded up: a slow turn that begins at the very one is
        // credited.
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

    pub(super) fn check_deadlines(
        &self,
        turn: Turned,
        config: &Config,
        still: bool,
    ) -> Result<(), String> {
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
