//! Connects: connections that the pool opens, from the request until they succeed or fail.

use std::io::{Error, ErrorKind};
use std::time::Duration;

use pool_manager::sim::{Answer, Host, Sim};
use pool_manager::{CloseReason, Closed, Config, ConnId, ConnectOptions};

use super::deadlines::ticks;
use super::{ConnRecord, Model, TurnRecord};

/// The model of one connect.
#[derive(Debug)]
pub(crate) struct ConnectRecord {
    pub(crate) host: Host,
    answer: Answer,
    /// `own_deadline` is the deadline in the options of the connect, or zero if the configured
    /// deadline applies. `deadline` has the smallest and the largest deadline that may be in
    /// effect.
    own_deadline: Duration,
    deadline: (Duration, Duration),
    /// The time of the request. `begun` is the latest time at which the connect may have begun, or
    /// None if it has not begun.
    requested_at: Duration,
    begun: Option<Duration>,
    /// Earliest time from which the age of the connection counts.
    since: Duration,
    /// Latest time from which the deadline of the connect counts.
    latest: Duration,
    /// The id of the connection. None if a handle or a callback requested the connect.
    id: Option<ConnId>,
    opened: bool,
    ended: bool,
}

impl ConnectRecord {
    /// Returns whether the connect has neither succeeded nor ended.
    fn is_pending(&self) -> bool {
        !self.opened && !self.ended
    }

    fn allow(&mut self, configs: &[Config]) {
        let configured = configs.iter().map(|config| config.connect_deadline);
        for deadline in configured.filter(|_| self.own_deadline.is_zero()) {
            self.deadline.0 = self.deadline.0.min(deadline);
            self.deadline.1 = self.deadline.1.max(deadline);
        }
    }

    /// Returns the delay after which the host answers. None if it does not answer.
    fn after(&self) -> Option<Duration> {
        match self.answer {
            Answer::Accept(after) | Answer::Refuse(after) | Answer::Fail(after) => Some(after),
            _ => None,
        }
    }

    /// Checks that there was a cause to end the connect before it succeeded.
    fn check_reason(
        &self,
        end: &Closed,
        sim: &Sim,
        record: Option<&ConnRecord>,
    ) -> Result<(), String> {
        let (now, waited) = (sim.now(), sim.counters().waited);
        let answered_at = self.requested_at + self.after().unwrap_or(Duration::MAX / 2);
        let allowed = |record: &ConnRecord, reason| record.allowed_reasons.contains(&reason);
        let kind = end.error.as_ref().map(Error::kind);
        let justified = match end.reason {
            CloseReason::Unreachable if kind == Some(ErrorKind::TimedOut) => {
                let begun = self.begun.map_or(now, |begun| begun.max(self.latest));
                let answered = self.after().is_some_and(|after| begun + after <= waited);
                let tick = Duration::from_millis(1);
                now + tick >= self.requested_at + self.deadline.0 && !answered
            }
            CloseReason::Unreachable if kind == Some(ErrorKind::ConnectionRefused) => {
                matches!(self.answer, Answer::Refuse(_)) && now >= answered_at
            }
            CloseReason::Unreachable if kind == Some(ErrorKind::HostUnreachable) => {
                matches!(self.answer, Answer::Fail(_)) && now >= answered_at
            }
            // The connect could not begin.
            CloseReason::Unreachable => self.id.is_none() && sim.snapshot(end.id).is_none(),
            CloseReason::WriteLimit => record.is_some_and(|record| record.sends_total > 0),
            CloseReason::Requested => record.is_some_and(|record| allowed(record, end.reason)),
            CloseReason::Stopped => true,
            _ => false,
        };
        if justified { Ok(()) } else { Err(format!("no cause to end it: {self:?} {record:?}")) }
    }
}

impl Model {
    pub(crate) fn next_key(&self) -> u64 {
        self.next_key
    }

    /// Records a connect request. Returns its key and options.
    pub(crate) fn request_connect(
        &mut self,
        host: &Host,
        answer: Answer,
        own_deadline: Duration,
        now: Duration,
    ) -> (u64, ConnectOptions) {
        let key = self.next_key;
        self.next_key += 1;
        let deadline = if own_deadline.is_zero() {
            (Duration::MAX, Duration::ZERO)
        } else {
            (own_deadline, own_deadline)
        };
        let mut connect = ConnectRecord {
            host: host.clone(),
            answer,
            own_deadline,
            deadline,
            requested_at: now,
            begun: None,
            since: now,
            latest: now,
            id: None,
            opened: false,
            ended: false,
        };
        connect.allow(&self.configs);
        self.connects.insert(key, connect);
        self.note(&|| format!("connect {key}: {answer:?}, within {own_deadline:?}"), 0, 7);
        (
            key,
            ConnectOptions::new()
                .deadline((!own_deadline.is_zero()).then_some(own_deadline))
                .key(key),
        )
    }

    /// Removes a connect that was refused at once. No callback may follow.
    pub(crate) fn connect_refused(&mut self, key: u64) {
        self.connects.remove(&key);
    }

    /// Records that the manager began a connect. From now on the model knows its id.
    pub(crate) fn connect_begun(&mut self, key: u64, id: ConnId, sim: &Sim) {
        self.note_connects(sim, None);
        let snapshot = sim.snapshot(id);
        let Some(connect) = self.connects.get_mut(&key) else { return };
        connect.id = Some(id);
        connect.since = connect.requested_at;
        let began = connect.begun.is_some();
        let Some(snapshot) = snapshot.filter(|snapshot| snapshot.connecting && began) else {
            return self.fail(format!("{id}: connecting, but no host was contacted"));
        };
        let record = self.records.entry(snapshot.connection).or_default();
        record.connecting = true;
        if record.id.replace(id).is_some() || self.numbers.insert(id, snapshot.connection).is_some()
        {
            self.fail(format!("{id}: the id of another connection"));
        }
    }

    /// Records the connects that have begun since the last call. The model counts each of them as a
    /// connection that was put. A connect that failed to begin is left out, because
    /// `connect_closed` counts it.
    pub(super) fn note_connects(&mut self, sim: &Sim, failed_at_once: Option<u64>) {
        let (now, waited) = (sim.now(), sim.counters().waited);
        let mut begun = 0;
        for (key, connect) in &mut self.connects {
            let begins = !connect.ended
                && connect.host.connect_attempts() > 0
                && failed_at_once != Some(*key);
            if connect.begun.is_none() && begins {
                connect.begun = Some(now);
                connect.latest = now;
                // All operations of a turn use the same time.
                connect.since = connect.requested_at.min(waited);
                begun += 1;
            }
            if connect.begun.is_none() || connect.begun == Some(now) {
                connect.allow(&self.configs);
            }
        }
        self.opened += begun;
        self.connect_counts.0 += begun;
        self.peak = self.peak.max(self.live());
    }

    /// Returns whether the connect may still succeed.
    pub(crate) fn is_connecting(&self, key: u64) -> bool {
        self.connects.get(&key).is_some_and(ConnectRecord::is_pending)
    }

    /// Returns the number of connects that have not begun. Each of them holds a permit.
    pub(crate) fn waiting_connects(&self) -> u64 {
        let waits =
            |connect: &&ConnectRecord| connect.is_pending() && connect.host.connect_attempts() == 0;
        self.connects.values().filter(waits).count() as u64
    }

    /// Records that `opened` was called for an established connection.
    pub(super) fn connect_opened(&mut self, key: u64, id: ConnId, sim: &Sim) {
        let now = sim.now();
        let Some(connect) = self.connects.get_mut(&key) else {
            return self
                .fail(format!("{id}: opened with the key {key}, which was never requested"));
        };
        let again = std::mem::replace(&mut connect.opened, true) || connect.ended;
        let there =
            matches!(connect.answer, Answer::Accept(after) if now >= connect.requested_at + after);
        let other = connect.id.is_some_and(|known| known != id);
        let times = (connect.since, connect.begun.unwrap_or(now));
        if again || !there || other {
            let wrong =
                format!("{id}: opened twice, or not established, or with another id: {connect:?}");
            self.fail(wrong);
        }
        self.connect_counts.1 += 1;
        self.marks.hit("a connect succeeds");
        if let Some(record) = self.record(id) {
            record.connecting = false;
            record.outgoing = true;
            record.opened = times;
            record.opened_in_stop = (false, false);
            let sent = record.sends_total > 0;
            self.marks.hit_if("bytes are sent while connecting", sent);
        }
    }

    /// Records the end of a connection with a key. Returns false if the connection had been opened.
    /// The caller then checks the end as it checks the end of any other connection.
    pub(super) fn connect_closed(&mut self, end: &Closed, key: u64, sim: &Sim) -> bool {
        let Some(connect) = self.connects.get_mut(&key) else {
            self.fail(format!("{end:?}: it was never requested"));
            return true;
        };
        let again = std::mem::replace(&mut connect.ended, true);
        if again || connect.id.is_some_and(|id| id != end.id) {
            let wrong = format!("{end:?}: ended twice, or with another id: {connect:?}");
            self.fail(wrong);
        }
        let connect = &self.connects[&key];
        if connect.opened {
            return false;
        }
        let no_bytes = (end.bytes_in, end.bytes_out, end.bytes_dropped) == (0, 0, 0);
        let number = self.numbers.get(&end.id).copied();
        let record = number.and_then(|number| self.records.get(&number));
        let checked = connect.check_reason(end, sim, record);
        let sent = record.map_or(0, |record| record.sends_total);
        let failed_at_once = sim.snapshot(end.id).is_none();
        if failed_at_once && connect.id.is_some() {
            self.fail(format!("{end:?}: it was never registered"));
        }
        if !no_bytes || end.bytes_unsent > sent {
            self.fail(format!("{end:?}: bytes moved before it was open, of {sent} sent"));
        }
        if let Err(wrong) = checked {
            self.fail(format!("{end:?}: {wrong}"));
        }
        if failed_at_once {
            // The connect never began.
            self.opened += 1;
            self.connect_counts.0 += 1;
        }
        *self.closed.entry(end.reason).or_default() += 1;
        self.totals[3] += end.bytes_unsent;
        self.sends[2] += end.bytes_unsent;
        if let Some(record) = number.and_then(|number| self.records.get_mut(&number)) {
            record.connecting = false;
            record.end = Some((end.clone(), sim.now()));
        }
        self.mark_end(end, !failed_at_once);
        true
    }

    fn mark_end(&mut self, end: &Closed, began: bool) {
        let stopped = end.reason == CloseReason::Stopped;
        self.marks.hit_if("a connect fails to begin", !began && !stopped);
        let kind = end.error.as_ref().map(Error::kind);
        match end.reason {
            CloseReason::Unreachable if kind == Some(ErrorKind::TimedOut) => {
                self.marks.hit("a connect is never answered");
            }
            CloseReason::Unreachable if kind == Some(ErrorKind::ConnectionRefused) => {
                self.marks.hit("a connect is refused");
            }
            CloseReason::Requested => self.marks.hit("a connection is closed while connecting"),
            CloseReason::Stopped if began => self.marks.hit("a stop begins while connecting"),
            CloseReason::Stopped => self.marks.hit("stopped before it connects"),
            _ => {}
        }
    }

    /// Checks the connects that are still pending after a turn.
    pub(super) fn check_connects(&mut self, turn: TurnRecord, sim: &Sim) {
        self.note_connects(sim, None);
        let two = Duration::from_millis(2);
        let mut failures = Vec::new();
        for connect in self.connects.values_mut().filter(|connect| connect.is_pending()) {
            let Some(begun) = connect.begun else { continue };
            // If the connect began in a slow turn, the deadline counts from the next time that the
            // clock is read.
            for (began, ended) in [turn.before, (turn.began, turn.ended)] {
                if ticks(begun) >= ticks(began) {
                    connect.latest = connect.latest.max(ended);
                }
            }
            let due = connect.latest.saturating_add(connect.deadline.1 + two);
            if turn.punctual && turn.began > due {
                failures.push(format!("past its connect deadline: {connect:?} {turn:?}"));
            }
            let there =
                connect.id.and_then(|id| sim.snapshot(id)).filter(|snapshot| !snapshot.connecting);
            if turn.asleep && there.is_some_and(|snapshot| !snapshot.pending) {
                failures
                    .push(format!("asleep although the connection is established: {connect:?}"));
            }
            if turn.stopping {
                failures.push(format!("still connecting during a stop: {connect:?}"));
            }
        }
        self.failures.extend(failures);
        self.connects.retain(|_, connect| !connect.ended);
    }

    /// Returns whether all connects have ended.
    pub(super) fn all_connects_ended(&self) -> bool {
        self.connects.values().all(|connect| connect.ended)
    }
}
