//! The state of one connection: its identity, counters, timestamps, flags and stage.
//!
//! The worker changes this state, and callbacks see it through [`Conn`](crate::Conn). This module
//! does no I/O.

mod cause;
mod close_reason;
mod flags;
mod gcra;
mod stage;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::Config;
use crate::id::ConnId;
use crate::time::{Now, Span, Tick};
pub use cause::Cause;
pub use close_reason::CloseReason;
pub(crate) use flags::Flags;
pub(crate) use gcra::Gcra;
pub(crate) use stage::Stage;

/// The configured deadlines in milliseconds, rounded up, and the configured rate limit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deadlines {
    idle: u64,
    /// The total deadline. `u64::MAX` if it is off.
    total: u64,
    /// The deadline of a paused connection. `u64::MAX` if it is off.
    paused: u64,
    /// The limit on the rate of requests of each connection.
    pub(crate) rate: Gcra,
}

impl From<&Config> for Deadlines {
    fn from(config: &Config) -> Self {
        let millis = |deadline| Tick(0).after(deadline).0;
        let total = config.request_deadline.map_or(u64::MAX, millis);
        let paused = config.paused_deadline.map_or(u64::MAX, millis);
        let rate = Gcra::from(config.rate_limit);
        Self { idle: millis(config.clients_deadline), total, paused, rate }
    }
}

/// State that few connections need. It is boxed, so that it adds only the size of a pointer to all
/// other connections.
#[derive(Debug, Default)]
struct ConnExtra {
    /// The client's address, if a PROXY header named one.
    peer: Option<SocketAddr>,
    /// The theoretical arrival time of the next request: see [`Gcra`].
    tat: u64,
    /// The connection began here, with a call of `connect`.
    outgoing: bool,
    /// The key of an outgoing connection.
    key: Option<u64>,
    /// Bytes of output that were discarded because the connection was finished.
    discarded: u64,
    /// The error that ends the connection.
    error: Option<io::Error>,
}

/// Invariants: `CLOSING` is set iff there is a close reason. `NOT_OPEN` is set iff the stage is not
/// `Open`. Between visits, `armed_at` is not later than [`ConnState::due`], unless `TIMER_STALE` is
/// set.
#[derive(Debug)]
pub(crate) struct ConnState {
    pub(crate) id: ConnId,
    pub(crate) opened: Tick,
    /// The time at which a byte was last received or sent.
    pub(crate) last_activity: Tick,
    /// The time from which the total deadline counts. It is set when a visit ends and bytes of a
    /// new request are held, and when the connection becomes blocked. A later time replaces it when
    /// a pause, a delay by the rate limit or a blocked state ends, and after a slow turn. `NEVER`
    /// if no request is held and no output is unsent.
    pub(crate) total_from: Tick,
    /// The tick for which the timer of the connection is armed. `NEVER` if it is not armed.
    pub(crate) armed_at: Tick,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// The idle deadline of this connection in milliseconds. 0 means the configured one.
    pub(crate) idle_ms: u32,
    close_reason: Option<CloseReason>,
    stage: Stage,
    pub(crate) flags: Flags,
    extra: Option<Box<ConnExtra>>,
}

impl ConnState {
    /// Creates the state of an open connection.
    pub(crate) fn new(id: ConnId, now: Now) -> Self {
        Self {
            id,
            opened: now.floor,
            last_activity: now.ceil,
            total_from: Tick::NEVER,
            armed_at: Tick::NEVER,
            bytes_in: 0,
            bytes_out: 0,
            idle_ms: 0,
            close_reason: None,
            stage: Stage::Open,
            flags: Flags::default(),
            extra: None,
        }
    }

    /// Returns whether the connection is paused or throttled. If so, none of its requests are
    /// delivered.
    pub(crate) fn is_suspended(&self) -> bool {
        self.flags.intersects(Flags::PAUSED | Flags::THROTTLED)
    }

    /// Returns the idle or the total deadline, whichever is sooner. These two deadlines do not run
    /// while the connection is suspended and not blocked. A paused connection has another deadline
    /// then. A connection that is only throttled has none, so this is `NEVER`.
    pub(crate) fn deadline(&self, deadlines: Deadlines) -> Tick {
        if !self.is_suspended() || self.flags.intersects(Flags::BLOCKED) {
            self.running_deadline(deadlines)
        } else if self.flags.intersects(Flags::PAUSED) {
            Tick(self.last_activity.0.saturating_add(deadlines.paused))
        } else {
            Tick::NEVER
        }
    }

    fn running_deadline(&self, deadlines: Deadlines) -> Tick {
        let idle = if self.idle_ms == 0 { deadlines.idle } else { u64::from(self.idle_ms) };
        let idle = self.last_activity.0.saturating_add(idle);
        Tick(idle.min(self.total_from.0.saturating_add(deadlines.total)))
    }

    /// Returns the tick at which the connection needs a visit even if no event arrives. For a
    /// connection that is throttled, and neither paused nor blocked, this is the tick at which the
    /// rate limit allows the held request. For every other connection it is the deadline.
    pub(crate) fn due(&self, deadlines: Deadlines) -> Tick {
        if self.is_suspended() {
            self.suspended_due(deadlines)
        } else {
            self.running_deadline(deadlines)
        }
    }

    #[cold]
    fn suspended_due(&self, deadlines: Deadlines) -> Tick {
        if self.flags.intersects(Flags::PAUSED | Flags::BLOCKED) {
            return self.deadline(deadlines);
        }
        deadlines.rate.due(self.tat())
    }

    /// Returns whether the timer is armed for [`ConnState::due`] or an earlier tick.
    pub(crate) fn is_armed(&self, deadlines: Deadlines) -> bool {
        self.armed_at <= self.due(deadlines)
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    pub(crate) fn set_stage(&mut self, stage: Stage) {
        self.stage = stage;
        self.flags.set(Flags::NOT_OPEN, stage != Stage::Open);
    }

    /// Returns the client's address, if a PROXY header named one.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.extra.as_ref()?.peer
    }

    pub(crate) fn set_peer(&mut self, peer: Option<SocketAddr>) {
        if peer.is_some() {
            self.extra.get_or_insert_default().peer = peer;
        }
    }

    /// Marks the connection as outgoing and not yet established. It has to be established before
    /// `deadline` passes. Until it is established, it counts as blocked, because nothing can be
    /// written.
    pub(crate) fn set_connecting(&mut self, key: Option<u64>, deadline: Duration) {
        let extra = self.extra.get_or_insert_default();
        extra.outgoing = true;
        extra.key = key;
        self.set_stage(Stage::Connecting);
        self.flags.insert(Flags::BLOCKED);
        self.set_idle_deadline(Some(deadline));
    }

    /// Marks an outgoing connection as established and open.
    pub(crate) fn set_connected(&mut self, now: Now) {
        self.set_stage(Stage::Open);
        self.flags.remove(Flags::BLOCKED);
        self.set_idle_deadline(None);
        self.last_activity = now.ceil;
    }

    /// Stores the error of a socket call that failed, and returns the reason for the close.
    #[cold]
    #[inline(never)]
    pub(crate) fn fail(&mut self, error: io::Error) -> CloseReason {
        let reason = CloseReason::of(&error);
        self.set_error(error);
        reason
    }

    /// Stores the error that ends the connection.
    #[cold]
    pub(crate) fn set_error(&mut self, error: io::Error) {
        self.extra.get_or_insert_default().error = Some(error);
    }

    /// Returns the stored error, if `reason` is a [failure](CloseReason::is_failure).
    pub(crate) fn take_error(&mut self, reason: CloseReason) -> Option<io::Error> {
        let error = self.extra.as_mut()?.error.take();
        error.filter(|_| reason.is_failure())
    }

    /// Returns whether the connection began here, with a call of `connect`.
    pub(crate) fn is_outgoing(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.outgoing)
    }

    /// Counts output that was discarded because the connection was finished.
    pub(crate) fn discard(&mut self, count: usize) {
        self.extra.get_or_insert_default().discarded += count as u64;
    }

    /// Returns the number of bytes of output that were discarded.
    pub(crate) fn discarded(&self) -> u64 {
        self.extra.as_ref().map_or(0, |extra| extra.discarded)
    }

    /// Returns the key of an outgoing connection.
    pub(crate) fn key(&self) -> Option<u64> {
        self.extra.as_ref()?.key
    }

    fn tat(&self) -> u64 {
        self.extra.as_ref().map_or(0, |extra| extra.tat)
    }

    fn is_due(&self, deadlines: Deadlines, now: Now) -> bool {
        deadlines.rate.due(self.tat()) <= now.floor
    }

    /// Returns whether the rate limit allows the next request. If so, the request is counted. If
    /// not, the connection becomes throttled.
    pub(crate) fn conforms(&mut self, deadlines: Deadlines, now: Now) -> bool {
        let due = self.is_due(deadlines, now);
        self.flags.set(Flags::THROTTLED, !due);
        if due {
            let extra = self.extra.get_or_insert_default();
            extra.tat = deadlines.rate.after(extra.tat, now.floor);
        }
        due
    }

    /// Applies a new rate limit. Requests that were delivered under the old limit count against the
    /// new limit. However many there were, they use up at most one full burst of the new limit.
    pub(crate) fn change_rate(&mut self, rate: Gcra, now: Now) {
        if let Some(extra) = &mut self.extra {
            extra.tat = rate.clamp(extra.tat, now.floor);
        }
    }

    /// Returns whether the held request may be delivered now. If so, the connection is no longer
    /// throttled. Both deadlines then count from now, because the peer did not cause the delay.
    #[cold]
    pub(crate) fn try_unthrottle(&mut self, deadlines: Deadlines, now: Now) -> bool {
        let due = self.is_due(deadlines, now);
        self.flags.set(Flags::THROTTLED, !due);
        if due {
            self.last_activity = now.ceil;
            self.total_from = now.ceil;
        }
        due
    }

    /// Marks the connection as closing for `reason`. An earlier reason is replaced only if it is
    /// [natural](CloseReason::is_natural). A pause delays a natural close, so another reason may
    /// follow.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        if self.close_reason.is_none_or(CloseReason::is_natural) {
            self.end_now(reason);
        }
    }

    /// Marks the connection as closing for `reason`. Any earlier reason is replaced.
    pub(crate) fn end_now(&mut self, reason: CloseReason) {
        self.close_reason = Some(reason);
        self.flags.insert(Flags::CLOSING);
    }

    /// Returns the close reason, or `None` if the connection is not closing.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.close_reason
    }

    /// Replaces `last_activity` and `total_from` if they equal the beginning of a long turn. The
    /// new value is the tick just before the end of that turn. The connection may have been served
    /// late in the turn. The time until it was served must not count against its deadlines.
    pub(crate) fn credit(&mut self, turn: Span) {
        for clock in [&mut self.last_activity, &mut self.total_from] {
            if *clock == turn.began {
                *clock = turn.last();
            }
        }
    }

    /// Begins a pause, unless the connection is closing. If the connection is not blocked, the
    /// deadline of the pause counts from `now`. If it is blocked, this deadline counts from the end
    /// of the blocked state.
    pub(crate) fn pause(&mut self, now: Tick) {
        let closing = self.flags.intersects(Flags::CLOSING);
        if !closing && self.flags.insert(Flags::PAUSED) && !self.flags.intersects(Flags::BLOCKED) {
            self.last_activity = now;
        }
    }

    /// Ends a pause. If the deadlines were suspended, both of them count from `now`.
    pub(crate) fn resume(&mut self, now: Tick) {
        self.flags.insert(Flags::TIMER_STALE);
        if self.flags.remove(Flags::PAUSED) && !self.flags.intersects(Flags::BLOCKED) {
            self.last_activity = now;
            self.total_from = if self.total_from == Tick::NEVER { Tick::NEVER } else { now };
        }
    }

    /// Sets the idle deadline of this connection, rounded up to a millisecond. `None` restores the
    /// configured idle deadline.
    pub(crate) fn set_idle_deadline(&mut self, deadline: Option<Duration>) {
        let millis = |deadline: Duration| deadline.as_nanos().div_ceil(1_000_000).max(1);
        let millis = deadline.map_or(0, millis);
        self.idle_ms = u32::try_from(millis).unwrap_or(u32::MAX);
        self.flags.insert(Flags::TIMER_STALE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ConnState {
        ConnState::new(ConnId::new(0, 1), Now::new((100, false)))
    }

    #[test]
    fn the_sooner_of_the_two_deadlines_counts() {
        let config = Config::new()
            .clients_deadline(Duration::from_millis(50))
            .request_deadline(Duration::from_millis(80));
        let mut state = state();
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(150));
        state.total_from = Tick(110);
        state.last_activity = Tick(130);
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(180));
        state.last_activity = Tick(170);
        assert_eq!(
            state.deadline(Deadlines::from(&config)),
            Tick(190),
            "traffic does not move the total deadline"
        );
        assert_eq!(state.deadline(Deadlines::from(&config.request_deadline(None))), Tick(220));
    }

    #[test]
    fn a_paused_connection_has_its_own_deadline_unless_output_waits() {
        let config = Config::new();
        let unlimited = Deadlines::from(&config.clone().paused_deadline(None));
        let mut state = state();
        state.pause(Tick(1_000));
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(31_000));
        assert_eq!(state.deadline(unlimited), Tick::NEVER);
        state.pause(Tick(2_000));
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(31_000), "it was paused before");
        state.flags.insert(Flags::BLOCKED);
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(4_000));
        assert_eq!(state.deadline(unlimited), Tick(4_000));
    }

    #[test]
    fn the_deadline_of_a_pause_counts_from_the_last_byte_sent() {
        let (config, mut state) = (Config::new(), state());
        state.flags.insert(Flags::BLOCKED);
        state.pause(Tick(1_000));
        assert_eq!(state.last_activity, Tick(100), "the output does not get more time");
        state.last_activity = Tick(2_000);
        state.flags.remove(Flags::BLOCKED);
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(32_000));
    }

    #[test]
    fn activity_in_a_long_turn_counts_from_its_end() {
        let mut state = state();
        state.credit(Span { began: Tick(90), ended: Tick(500) });
        assert_eq!(state.last_activity, Tick(100), "it is from another turn");
        state.credit(Span { began: Tick(100), ended: Tick(500) });
        assert_eq!((state.last_activity, state.total_from), (Tick(499), Tick::NEVER));
        state.credit(Span { began: Tick(500), ended: Tick(900) });
        assert_eq!(state.last_activity, Tick(499), "it was not served in the next slow turn");
    }

    #[test]
    fn resuming_restarts_both_clocks_and_only_after_a_pause() {
        let (config, mut state) = (Config::new(), state());
        state.resume(Tick(9_000));
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(3_100), "it was not paused");
        state.total_from = Tick(100);
        state.flags.insert(Flags::PAUSED);
        state.resume(Tick(50_000));
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(53_000));
        assert_eq!(state.total_from, Tick(50_000));
    }

    #[test]
    fn a_deadline_of_its_own_replaces_the_configured_one() {
        let (config, mut state) = (Config::new(), state());
        state.set_idle_deadline(Some(Duration::from_micros(1_500)));
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(102), "rounded up");
        state.set_idle_deadline(Some(Duration::MAX));
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(100 + u64::from(u32::MAX)));
        state.set_idle_deadline(Some(Duration::ZERO));
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(101), "at least a millisecond");
        state.set_idle_deadline(None);
        assert_eq!(state.deadline(Deadlines::from(&config)), Tick(3_100));
    }
}
