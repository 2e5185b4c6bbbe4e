//! Calls: connections that the pool begins, from when it is asked until they are there or are not.

use std::io::ErrorKind;
use std::time::Duration;

use pool_manager::sim::{Answer, Host, Sim};
use pool_manager::{CloseReason, Closed, Config, ConnId, ConnectOptions};

use super::clocks::ticks;
use super::{Account, Model, Turned};

/// What is known of a connection that was asked for.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) host: Host,
    answer: Answer,
    /// Its own deadline, or the least and the most that a configuration gave it.
    own: Duration,
    deadline: (Duration, Duration),
    /// When it was asked for, and when it had begun at the latest.
    asked: Duration,
    begun: Option<Duration>,
    /// From when its age counts, at the earliest.
    since: Duration,
    /// From when its deadline counts, at the latest.
    latest: Duration,
    /// Its id, if the manager itself was asked.
    id: Option<ConnId>,
    opened: bool,
    ended: bool,
}

impl Call {
    /// Neither there nor ended.
    fn is_pending(&self) -> bool {
        !self.opened && !self.ended
    }

    fn allow(&mut self, configs: &[Config]) {
        let configured = configs.iter().map(|config| config.connect_deadline);
        for deadline in configured.filter(|_| self.own.is_zero()) {
            self.deadline.0 = self.deadline.0.min(deadline);
            self.deadline.1 = self.deadline.1.max(deadline);
        }
    }

    /// After what time it is answered, if it is.
    fn after(&self) -> Option<Duration> {
        match self.answer {
            Answer::Accept(after) | Answer::Refuse(after) | Answer::Fail(after) => Some(after),
            _ => None,
        }
    }

    /// Whether there was a reason to end it before it was there.
    fn reasoned(&self, end: &Closed, sim: &Sim, account: Option<&Account>) -> Result<(), String> {
        let (now, waited) = (sim.now(), sim.counters().waited);
        let came = self.asked + self.after().unwrap_or(Duration::MAX / 2);
        let heard = |accepts: &Account, reason| accepts.causes.contains(&reason);
        let justified = match end.reason {
            CloseReason::Unreachable(ErrorKind::TimedOut) => {
                let begun = self.begun.map_or(now, |begun| begun.max(self.latest));
                let answered = self.after().is_some_and(|after| begun + after <= waited);
                let tick = Duration::from_millis(1);
                now + tick >= self.asked + self.deadline.0 && !answered
            }
            CloseReason::Unreachable(ErrorKind::ConnectionRefused) => {
                matches!(self.answer, Answer::Refuse(_)) && now >= came
            }
            CloseReason::Unreachable(ErrorKind::HostUnreachable) => {
                matches!(self.answer, Answer::Fail(_)) && now >= came
            }
            // It could not begin.
            CloseReason::Unreachable(_) => self.id.is_none() && sim.snapshot(end.id).is_none(),
            CloseReason::WriteLimit => account.is_some_and(|account| account.sends_total > 0),
            CloseReason::Requested => account.is_some_and(|account| heard(account, end.reason)),
            CloseReason::Stopped => true,
            _ => false,
        };
        if justified { Ok(()) } else { Err(format!("no reason to end it: {self:?} {account:?}")) }
    }
}

impl Model {
    pub(crate) fn next_key(&self) -> u64 {
        self.next_key
    }

    /// A connection is asked for; what it is asked for with.
    pub(crate) fn calls(
        &mut self,
        host: &Host,
        answer: Answer,
        own: Duration,
        now: Duration,
    ) -> (u64, ConnectOptions) {
        let key = self.next_key;
        self.next_key += 1;
        let deadline = if own.is_zero() { (Duration::MAX, Duration::ZERO) } else { (own, own) };
        let mut call = Call {
            host: host.clone(),
            answer,
            own,
            deadline,
            asked: now,
            begun: None,
            since: now,
            latest: now,
            id: None,
            opened: false,
            ended: false,
        };
        call.allow(&self.configs);
        self.calls.insert(key, call);
        self.note(&|| format!("connect {key}: {answer:?}, within {own:?}"), 0, 7);
        (key, ConnectOptions::new().deadline(own).key(key))
    }

    /// It was refused at once, and nothing more is heard of it.
    pub(crate) fn not_called(&mut self, key: u64) {
        self.calls.remove(&key);
    }

    /// The manager itself began it: from now on its id names it.
    pub(crate) fn called(&mut self, key: u64, id: ConnId, sim: &Sim) {
        self.note_calls(sim, None);
        let look = sim.snapshot(id);
        let Some(call) = self.calls.get_mut(&key) else { return };
        call.id = Some(id);
        call.since = call.asked;
        let began = call.begun.is_some();
        let Some(look) = look.filter(|look| look.calling && began) else {
            return self.complain(format!("{id}: connecting, but nobody was called"));
        };
        let account = self.accounts.entry(look.connection).or_default();
        account.connecting = true;
        if account.id.replace(id).is_some() || self.numbers.insert(id, look.connection).is_some() {
            self.complain(format!("{id}: an id that was another's"));
        }
    }

    /// Who has been called since is connecting, and counts as put; but one that was called in vain,
    /// which is told at once.
    pub(super) fn note_calls(&mut self, sim: &Sim, in_vain: Option<u64>) {
        let (now, waited) = (sim.now(), sim.counters().waited);
        let mut begun = 0;
        for (key, call) in &mut self.calls {
            let called = !call.ended && call.host.connect_attempts() > 0 && in_vain != Some(*key);
            if call.begun.is_none() && called {
                call.begun = Some(now);
                call.latest = now;
                // A turn has one time for all that it does.
                call.since = call.asked.min(waited);
                begun += 1;
            }
            if call.begun.is_none() || call.begun == Some(now) {
                call.allow(&self.configs);
            }
        }
        self.opened += begun;
        self.connects.0 += begun;
        self.peak = self.peak.max(self.live());
    }

    /// Whether it may come about yet.
    pub(crate) fn is_calling(&self, key: u64) -> bool {
        self.calls.get(&key).is_some_and(Call::is_pending)
    }

    /// How many wait to begin, each with a place.
    pub(crate) fn waiting_calls(&self) -> u64 {
        let waits = |call: &&Call| call.is_pending() && call.host.connect_attempts() == 0;
        self.calls.values().filter(waits).count() as u64
    }

    /// The handler is told that it is there.
    pub(super) fn call_opened(&mut self, key: u64, id: ConnId, sim: &Sim) {
        let now = sim.now();
        let Some(call) = self.calls.get_mut(&key) else {
            return self.complain(format!("{id}: opened for {key}, which nobody asked for"));
        };
        let again = std::mem::replace(&mut call.opened, true) || call.ended;
        let there = matches!(call.answer, Answer::Accept(after) if now >= call.asked + after);
        let other = call.id.is_some_and(|known| known != id);
        let times = (call.since, call.begun.unwrap_or(now));
        if again || !there || other {
            let wrong = format!("{id}: opened again, or not there, or another: {call:?}");
            self.complain(wrong);
        }
        self.connects.1 += 1;
        self.marks.hit("a connect comes about");
        if let Some(account) = self.account(id) {
            account.connecting = false;
            account.opened = times;
            account.late = (false, false);
            let sent = account.sends_total > 0;
            self.marks.hit_if("sent to while connecting", sent);
        }
    }

    /// One has ended; false if it had been opened, and is like any other.
    pub(super) fn call_closed(&mut self, end: &Closed, key: u64, sim: &Sim) -> bool {
        let Some(call) = self.calls.get_mut(&key) else {
            self.complain(format!("{end:?}: nobody asked for it"));
            return true;
        };
        let again = std::mem::replace(&mut call.ended, true);
        if again || call.id.is_some_and(|id| id != end.id) {
            let wrong = format!("{end:?}: ended twice, or another: {call:?}");
            self.complain(wrong);
        }
        let call = &self.calls[&key];
        if call.opened {
            return false;
        }
        let looks = (end.bytes_in, end.bytes_out, end.bytes_dropped) == (0, 0, 0);
        let number = self.numbers.get(&end.id).copied();
        let account = number.and_then(|number| self.accounts.get(&number));
        let reasoned = call.reasoned(end, sim, account);
        let sent = account.map_or(0, |account| account.sends_total);
        let in_vain = sim.snapshot(end.id).is_none();
        if in_vain && call.id.is_some() {
            self.complain(format!("{end:?}: it was never registered"));
        }
        if !looks || end.bytes_unsent > sent {
            self.complain(format!("{end:?}: bytes moved before it was there, of {sent} sent"));
        }
        if let Err(wrong) = reasoned {
            self.complain(format!("{end:?}: {wrong}"));
        }
        if in_vain {
            // It never began.
            self.opened += 1;
            self.connects.0 += 1;
        }
        *self.closed.entry(end.reason).or_default() += 1;
        self.totals[3] += end.bytes_unsent;
        self.sends[2] += end.bytes_unsent;
        if let Some(account) = number.and_then(|number| self.accounts.get_mut(&number)) {
            account.connecting = false;
            account.end = Some((*end, sim.now()));
        }
        self.mark_end(end, !in_vain);
        true
    }

    fn mark_end(&mut self, end: &Closed, began: bool) {
        let stopped = end.reason == CloseReason::Stopped;
        self.marks.hit_if("a connect cannot begin", !began && !stopped);
        match end.reason {
            CloseReason::Unreachable(ErrorKind::TimedOut) => {
                self.marks.hit("a connect is never answered");
            }
            CloseReason::Unreachable(ErrorKind::ConnectionRefused) => {
                self.marks.hit("a connect is refused");
            }
            CloseReason::Requested => self.marks.hit("closed while connecting"),
            CloseReason::Stopped if began => self.marks.hit("stopped while connecting"),
            CloseReason::Stopped => self.marks.hit("stopped before it connects"),
            _ => {}
        }
    }

    /// What must hold after a turn for those that are neither there nor ended.
    pub(super) fn check_calls(&mut self, turn: Turned, sim: &Sim) {
        self.note_calls(sim, None);
        let two = Duration::from_millis(2);
        let mut complaints = Vec::new();
        for call in self.calls.values_mut().filter(|call| call.is_pending()) {
            let Some(begun) = call.begun else { continue };
            // What was slow in the turn it began in is not its own time, up to when the clock is
            // read again.
            for (began, ended) in [turn.before, (turn.began, turn.ended)] {
                if ticks(begun) >= ticks(began) {
                    call.latest = call.latest.max(ended);
                }
            }
            let due = call.latest.saturating_add(call.deadline.1 + two);
            if turn.punctual && turn.began > due {
                complaints.push(format!("past its connect deadline: {call:?} {turn:?}"));
            }
            let there = call.id.and_then(|id| sim.snapshot(id)).filter(|look| !look.calling);
            if turn.asleep && there.is_some_and(|look| !look.pending) {
                complaints.push(format!("asleep over one that is there: {call:?}"));
            }
            if turn.stopping {
                complaints.push(format!("connecting during a stop: {call:?}"));
            }
        }
        self.complaints.extend(complaints);
        self.calls.retain(|_, call| !call.ended);
    }

    /// Whether each that was asked for is there or has ended.
    pub(super) fn all_calls_ended(&self) -> bool {
        self.calls.values().all(|call| call.ended)
    }
}
