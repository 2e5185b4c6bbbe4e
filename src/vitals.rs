//! The vital signs of one connection: who it is, what it did, and what is decided about it.
//!
//! Both the worker that serves a connection and the callback's view of it need these; the room
//! lies below both. `Cause` and `CloseReason` are the two words it has for its users.

mod pace;
mod reason;
mod state;

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::Config;
use crate::id::ConnId;
use crate::time::{Now, Span, Tick};
pub(crate) use pace::Pace;
pub use reason::CloseReason;
pub(crate) use state::State;

/// Why the callback runs now.
///
/// ```
/// use pool_manager::{Cause, Config, Manager};
/// use std::io::Write;
/// // The Go package's own program: silence until the deadline is an error.
/// let manager = Manager::new(Config::new(), |conn, body| match conn.cause() {
///     Cause::Expired if body.is_empty() => conn.write_all(b"ERROR"),
///     _ => conn.write_all(b"OK"),
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The socket has no more to read ([`Framing::Drained`](crate::Framing::Drained)).
    Drained,
    /// The framing says that this is a complete frame.
    Framed,
    /// `buffer_size` bytes are held.
    Full,
    /// The peer will send no more; this is what it left. The connection closes after the reply.
    Eof,
    /// A deadline passed; this is what was there, nothing if the peer never sent a byte (or not
    /// all of a length prefix: [`Conn::bytes_in`](crate::Conn::bytes_in) tells). The connection
    /// closes after the reply.
    Expired,
    /// The frame is longer than `max_request`, or than the framing's limit; this is as much as was
    /// there. The connection closes after the reply.
    Overlong,
    /// Keeping what is there of the request would take more than `memory_limit` leaves; this is
    /// all that is there. The connection closes after the reply; the peer may try again later.
    MemoryLimit,
    /// In [`Handler::opened`](crate::Handler::opened): the connection is new.
    Opened,
    /// In [`Handler::blocked`](crate::Handler::blocked): a reply has to wait for the peer.
    Blocked,
    /// In [`Handler::flushed`](crate::Handler::flushed): a reply that had to wait has gone out.
    Flushed,
}

impl Cause {
    /// The causes a request can have.
    pub(crate) const REQUESTS: [Self; 7] = [
        Self::Drained,
        Self::Framed,
        Self::Full,
        Self::Eof,
        Self::Expired,
        Self::Overlong,
        Self::MemoryLimit,
    ];

    /// Why the connection closes after a callback of this cause, if it does.
    pub(crate) fn ends(self) -> Option<CloseReason> {
        match self {
            Self::Eof => Some(CloseReason::Eof),
            Self::Expired => Some(CloseReason::Expired),
            Self::Overlong => Some(CloseReason::Overlong),
            Self::MemoryLimit => Some(CloseReason::MemoryLimit),
            _ => None,
        }
    }
}

/// The configured deadlines in milliseconds, rounded up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deadlines {
    idle: u64,
    /// As long as there is time if it is off.
    total: u64,
    /// How soon requests may follow each other.
    pub(crate) pace: Pace,
}

impl From<&Config> for Deadlines {
    fn from(config: &Config) -> Self {
        let millis = |deadline| Tick(0).after(deadline).0;
        let total = config.request_deadline;
        let total = if total.is_zero() { u64::MAX } else { millis(total) };
        let pace = Pace::from(config.rate_limit);
        Self { idle: millis(config.clients_deadline), total, pace }
    }
}

/// What only some connections have, so that the others need no room for it.
#[derive(Debug, Default)]
struct Beside {
    /// Who the client is, if a header said so.
    peer: Option<SocketAddr>,
    /// When the next request would come if they came evenly: see [`Pace`].
    evenly: u64,
    /// It began here, with this key.
    outgoing: bool,
    key: Option<u64>,
}

/// Invariant: `filed` is not later than [`Vitals::due`].
#[derive(Debug)]
pub(crate) struct Vitals {
    pub(crate) id: ConnId,
    pub(crate) opened: Tick,
    /// When a byte last moved, in either direction.
    pub(crate) moved: Tick,
    /// When the first byte of the request that is being collected came, or when the reply that
    /// is being flushed first had to wait; `NEVER` if there is neither.
    pub(crate) since: Tick,
    /// What the wheel has it armed to; `NEVER` if it is not armed.
    pub(crate) filed: Tick,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// This connection's own idle deadline, in milliseconds; 0 for the configured one.
    pub(crate) patience: u32,
    /// Why it closes; in step with its state.
    ending: Option<CloseReason>,
    /// What is out of the ordinary about it.
    pub(crate) state: State,
    /// It is on the ready list.
    pub(crate) listed: bool,
    /// The kernel said that there is something to read, and no read has come to its end since.
    pub(crate) readable: bool,
    /// The kernel will not say again: read to the end of file or `WouldBlock`, whatever a short
    /// read suggests.
    pub(crate) insistent: bool,
    /// The peer will send no more.
    pub(crate) eof: bool,
    /// It was read a last time, because the manager stops.
    pub(crate) farewell: bool,
    /// It was accepted in a stop.
    pub(crate) newcomer: bool,
    beside: Option<Box<Beside>>,
}

impl Vitals {
    pub(crate) fn new(id: ConnId, now: Now) -> Self {
        Self {
            id,
            opened: now.tick,
            moved: now.stamp,
            since: Tick::NEVER,
            filed: Tick::NEVER,
            bytes_in: 0,
            bytes_out: 0,
            patience: 0,
            ending: None,
            state: State::default(),
            listed: false,
            readable: false,
            insistent: false,
            eof: false,
            farewell: false,
            newcomer: false,
            beside: None,
        }
    }

    /// Whether nothing is delivered for now.
    pub(crate) fn stands_still(&self) -> bool {
        self.state.any(State::PAUSED | State::THROTTLED)
    }

    /// When this connection's time is up: the idle or the total deadline, whichever is sooner.
    /// The clocks of one that is paused or held back stand still, unless it owes a reply.
    pub(crate) fn deadline(&self, deadlines: Deadlines) -> Tick {
        if self.stands_still() && !self.state.any(State::BLOCKED) {
            return Tick::NEVER;
        }
        self.running_deadline(deadlines)
    }

    fn running_deadline(&self, deadlines: Deadlines) -> Tick {
        let idle = if self.patience == 0 { deadlines.idle } else { u64::from(self.patience) };
        let idle = self.moved.0.saturating_add(idle);
        Tick(idle.min(self.since.0.saturating_add(deadlines.total)))
    }

    /// When there is something to do for it though nothing comes: its deadline, or the time of the
    /// request that is held.
    pub(crate) fn due(&self, deadlines: Deadlines) -> Tick {
        if self.stands_still() {
            self.held_due(deadlines)
        } else {
            self.running_deadline(deadlines)
        }
    }

    #[cold]
    fn held_due(&self, deadlines: Deadlines) -> Tick {
        if self.state.any(State::PAUSED | State::BLOCKED) {
            return self.deadline(deadlines);
        }
        deadlines.pace.due(self.evenly())
    }

    /// Whether the wheel will hand it out in time.
    pub(crate) fn is_filed(&self, deadlines: Deadlines) -> bool {
        self.filed <= self.due(deadlines)
    }

    /// Who the client is, if a header said so.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.beside.as_ref()?.peer
    }

    pub(crate) fn set_peer(&mut self, peer: Option<SocketAddr>) {
        if peer.is_some() {
            self.beside.get_or_insert_default().peer = peer;
        }
    }

    /// From now on it is connecting, for so long at most: nothing can be written until it is there.
    pub(crate) fn connect(&mut self, key: Option<u64>, deadline: Duration) {
        let beside = self.beside.get_or_insert_default();
        beside.outgoing = true;
        beside.key = key;
        self.state.enter(State::UNKNOWN);
        self.state.enter(State::BLOCKED);
        self.set_patience(deadline);
    }

    /// Whether it began here, and is not there yet.
    pub(crate) fn is_connecting(&self) -> bool {
        self.state.any(State::UNKNOWN) && self.beside.as_ref().is_some_and(|beside| beside.outgoing)
    }

    /// It is there, and its deadlines are those of any other.
    pub(crate) fn connected(&mut self, now: Now) {
        self.state.leave(State::UNKNOWN);
        self.state.leave(State::BLOCKED);
        self.set_patience(Duration::ZERO);
        self.moved = now.stamp;
    }

    /// What it was asked for with, if it began here.
    pub(crate) fn key(&self) -> Option<u64> {
        self.beside.as_ref()?.key
    }

    fn evenly(&self) -> u64 {
        self.beside.as_ref().map_or(0, |beside| beside.evenly)
    }

    fn is_due(&self, deadlines: Deadlines, now: Now) -> bool {
        deadlines.pace.due(self.evenly()) <= now.tick
    }

    /// Whether a request may be delivered now, which it then has to be; else it is held.
    pub(crate) fn keeps_pace(&mut self, deadlines: Deadlines, now: Now) -> bool {
        let due = self.is_due(deadlines, now);
        self.state.set(State::THROTTLED, !due);
        if due {
            let beside = self.beside.get_or_insert_default();
            beside.evenly = deadlines.pace.after(beside.evenly, now.tick);
        }
        due
    }

    /// The limit may be another from now on: what the old one allowed is no debt under it.
    pub(crate) fn change_pace(&mut self, pace: Pace, now: Now) {
        if let Some(beside) = &mut self.beside {
            beside.evenly = pace.forgiving(beside.evenly, now.tick);
        }
    }

    /// Whether a request that is held may go on. Its peer has waited for us: clocks begin anew.
    #[cold]
    pub(crate) fn catch_up(&mut self, deadlines: Deadlines, now: Now) -> bool {
        let due = self.is_due(deadlines, now);
        self.state.set(State::THROTTLED, !due);
        if due {
            self.moved = now.stamp;
            self.since = now.stamp;
        }
        due
    }

    /// Ends the connection for this reason, unless it is ending for another. A natural end, which
    /// a pause may hold back, gives way.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        if self.ending.is_none_or(CloseReason::is_natural) {
            self.end_now(reason);
        }
    }

    /// Ends the connection for this reason, whatever it is ending for.
    pub(crate) fn end_now(&mut self, reason: CloseReason) {
        self.ending = Some(reason);
        self.state.enter(State::ENDING);
    }

    /// Why it closes once what is owed is flushed, if it does.
    pub(crate) fn ending(&self) -> Option<CloseReason> {
        self.ending
    }

    /// Counts what happened in a turn from just before its end rather than from its beginning:
    /// who was served last in a slow turn has not been silent since it began.
    pub(crate) fn credit(&mut self, turn: Span) {
        for clock in [&mut self.moved, &mut self.since] {
            if *clock == turn.began {
                *clock = turn.last();
            }
        }
    }

    /// Ends a pause: clocks that stood still go on from `stamp`.
    pub(crate) fn resume(&mut self, stamp: Tick) {
        self.state.enter(State::SOONER);
        if self.state.leave(State::PAUSED) && !self.state.any(State::BLOCKED) {
            self.moved = stamp;
            self.since = if self.since == Tick::NEVER { Tick::NEVER } else { stamp };
        }
    }

    /// Sets this connection's own idle deadline, rounded up to a millisecond; zero goes back to
    /// the configured one.
    pub(crate) fn set_patience(&mut self, deadline: Duration) {
        let millis = deadline.as_nanos().div_ceil(1_000_000);
        self.patience = u32::try_from(millis).unwrap_or(u32::MAX);
        self.state.enter(State::SOONER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn vitals() -> Vitals {
        Vitals::new(ConnId::new(0, 1), Now::new((100, false)))
    }

    #[test]
    fn the_sooner_of_the_two_deadlines_counts() {
        let config = Config::new()
            .clients_deadline(Duration::from_millis(50))
            .request_deadline(Duration::from_millis(80));
        let mut vitals = vitals();
        assert_eq!(vitals.deadline(Deadlines::from(&config)), Tick(150));
        vitals.since = Tick(110);
        vitals.moved = Tick(130);
        assert_eq!(vitals.deadline(Deadlines::from(&config)), Tick(180));
        vitals.moved = Tick(170);
        assert_eq!(
            vitals.deadline(Deadlines::from(&config)),
            Tick(190),
            "traffic does not move the total deadline"
        );
        assert_eq!(
            vitals.deadline(Deadlines::from(&config.request_deadline(Duration::ZERO))),
            Tick(220)
        );
    }

    #[test]
    fn a_paused_connection_waits_unless_it_owes_a_reply() {
        let config = Config::new();
        let mut vitals = vitals();
        vitals.state.enter(State::PAUSED);
        assert_eq!(vitals.deadline(Deadlines::from(&config)), Tick::NEVER);
        vitals.state.enter(State::BLOCKED);
        assert_eq!(vitals.deadline(Deadlines::from(&config)), Tick(3_100));
    }

    #[test]
    fn what_happened_in_a_turn_counts_from_its_end() {
        let mut vitals = vitals();
        vitals.credit(Span { began: Tick(90), ended: Tick(500) });
        assert_eq!(vitals.moved, Tick(100), "another turn");
        vitals.credit(Span { began: Tick(100), ended: Tick(500) });
        assert_eq!((vitals.moved, vitals.since), (Tick(499), Tick::NEVER));
        vitals.credit(Span { began: Tick(500), ended: Tick(900) });
        assert_eq!(vitals.moved, Tick(499), "it was not served in the next slow turn");
    }

    #[test]
    fn resuming_restarts_both_clocks_and_only_after_a_pause() {
        let (config, mut vitals) = (Config::new(), vitals());
        vitals.resume(Tick(9_000));
        assert_eq!(vitals.deadline(Deadlines::from(&config)), Tick(3_100), "it was not paused");
        vitals.since = Tick(100);
        vitals.state.enter(State::PAUSED);
        vitals.resume(Tick(50_000));
        assert_eq!(vitals.deadline(Deadlines::from(&config)), Tick(53_000));
        assert_eq!(vitals.since, Tick(50_000));
    }

    #[test]
    fn a_deadline_of_its_own_replaces_the_configured_one() {
        let (config, mut vitals) = (Config::new(), vitals());
        vitals.set_patience(Duration::from_micros(1_500));
        assert_eq!(vitals.deadline(Deadlines::from(&config)), Tick(102), "rounded up");
        vitals.set_patience(Duration::MAX);
        assert_eq!(vitals.deadline(Deadlines::from(&config)), Tick(100 + u64::from(u32::MAX)));
        vitals.set_patience(Duration::ZERO);
        assert_eq!(vitals.deadline(Deadlines::from(&config)), Tick(3_100));
    }

    #[test]
    fn every_class_of_reason_is_distinct_and_so_are_its_words() {
        let reasons = [
            CloseReason::Eof,
            CloseReason::Expired,
            CloseReason::WriteStalled,
            CloseReason::WriteLimit,
            CloseReason::Overlong,
            CloseReason::MemoryLimit,
            CloseReason::Invalid,
            CloseReason::Requested,
            CloseReason::Aborted,
            CloseReason::Failed,
            CloseReason::Panicked,
            CloseReason::Reset,
            CloseReason::Io(io::ErrorKind::Other),
            CloseReason::Stopped,
            CloseReason::Evicted,
            CloseReason::BadHeader,
            CloseReason::Unreachable(io::ErrorKind::Other),
        ];
        let mut classes: Vec<usize> = reasons.iter().map(|reason| reason.class()).collect();
        let mut words: Vec<String> = reasons.iter().map(CloseReason::to_string).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), reasons.len(), "each says something else: {words:?}");
        classes.sort_unstable();
        classes.dedup();
        assert_eq!(classes.len(), CloseReason::CLASSES);
        assert_eq!(classes.last(), Some(&(CloseReason::CLASSES - 1)));
    }
}
