//! Checks: invariants after every turn and after a stop.

use std::time::Duration;

use pool_manager::sim::Listener;
use pool_manager::{Config, Error, Overload, Stats, Turn};

use super::marks::Marks;
use super::model::{TurnRecord, max_workers};
use super::{IDLE_TURNS, World};

impl World {
    /// Checks the invariants that hold after every stop. The cause of the stop does not matter.
    pub(super) fn check_stopped(&mut self) {
        self.running = false;
        self.harness.notified.set(false);
        self.harness.stopping_calls.set(0);
        self.harness.lossless.set(false);
        self.add_new_peers();
        self.assert_nothing_is_left();
        let (turned_away, now) = (self.harness.sim.counters().turned_away, self.harness.sim.now());
        let before = std::mem::replace(&mut self.turned_away, turned_away);
        let in_time = now < self.harness.model.borrow().drain_until;
        assert!(
            !in_time || turned_away == before,
            "a stop reset queued connections before its deadline"
        );
        let (mut peer, ours) = self.harness.sim.pair();
        let refused = self.manager.put(ours).expect_err("a stopped pool took a socket");
        assert!(matches!(refused.error(), Error::NotRunning), "{refused}");
        self.harness.refused(refused, &mut peer);
        let mut model = self.harness.model.borrow_mut();
        model.stop_ended();
        model.configs = vec![self.manager.config().clone()];
        let stats = self.manager.stats();
        // A stop runs its own turns, and accepts waiting connections in them.
        self.refused_per_peer = stats.refused_per_peer;
        model.compare(&stats, 0);
        model.check_sends();
        assert_eq!(model.failures, [""; 0]);
        // Connections may have been refused during the stop.
        self.refused = stats.busy - model.busy;
        self.idle_turns = 0;
        self.starved = (self.harness.sim.counters().starved_accepts, None);
    }

    pub(super) fn assert_nothing_is_left(&mut self) {
        let (stats, counters) = (self.manager.stats(), self.harness.sim.counters());
        assert_eq!((stats.live, stats.lingering, stats.spare), (0, 0, 0), "{stats}");
        assert_eq!(stats.bytes_held, 0, "bytes are still held");
        assert_eq!((counters.open, counters.registered), (0, 0), "{counters:?}");
        assert_eq!(self.manager.next_timeout(), None);
        assert!(
            self.harness.model.borrow().all_ended(),
            "`closed` was not called for a connection"
        );
        assert_eq!(self.harness.sim.violations(), [""; 0]);
    }

    /// Returns the number of taken permits. Connections, queued sockets and connects that have not
    /// begun each hold one.
    pub(super) fn permits_taken(&self) -> u64 {
        let waiting = self.harness.model.borrow().waiting_connects();
        self.harness.sim.counters().open as u64 - self.manager.stats().lingering + waiting
    }

    /// Checks the invariants that hold after every turn.
    pub(super) fn check(&mut self, turn: Turn, max: u64) {
        let (stats, counters) = (self.manager.stats(), self.harness.sim.counters());
        self.trace(|| format!("  {turn:?}, live {}, digest {:016x}", stats.live, self.digest()));
        assert_eq!(self.harness.sim.violations(), [""; 0]);
        let next = self.manager.next_timeout();
        let config: &Config = self.manager.config();
        let asleep = next != Some(Duration::ZERO);
        // If a deadline has passed, the last read may still close the connection for another
        // reason.
        let closed = stats.closed_total() - self.activity[6];
        let turn_ended = TurnRecord {
            began: counters.waited,
            ended: self.harness.sim.now(),
            before: (std::mem::replace(&mut self.last_wait_ended, counters.waited), counters.asked),
            asleep,
            stopping: false,
            punctual: asleep || stats.live + turn.expired as u64 + closed < 20,
        };
        {
            let mut model = self.harness.model.borrow_mut();
            let crowded = std::mem::replace(&mut self.refused_per_peer, stats.refused_per_peer)
                < stats.refused_per_peer;
            let may_be = !crowded || model.had_full_peer(config.max_per_peer, counters.waited);
            assert!(
                may_be,
                "{} refused, but no peer had max_per_peer connections",
                stats.refused_per_peer
            );
            model.marks.hit_if("max_per_peer refuses a connection", crowded);
            if turn.stopped.is_none() {
                model.after_turn(turn_ended, config, &self.harness.sim);
            }
            model.compare(&stats, stats.live);
            if turn.stopped.is_none() {
                model.check_memory(stats.bytes_held);
            }
            self.record_marks(&mut model.marks, turn);
            assert_eq!(model.failures, [""; 0]);
        }
        let notified = self.harness.notified.get() && turn.stopped.is_none();
        assert!(!notified, "a turn passed without a call of `notified`");
        assert!(turn.expired <= 256 && turn.accepted <= 128, "{turn:?}");
        let open = stats.live + stats.lingering;
        assert_eq!(counters.registered as u64, open, "registered, {stats}");
        assert_eq!(
            (counters.accepted, counters.starved_accepts),
            (stats.accepted, stats.fd_exhausted)
        );
        assert!(stats.lingering <= 256, "{stats}");
        self.check_refusals(&stats);
        assert!(
            self.permits_taken() <= max,
            "{} permits taken, of at most {max}",
            self.permits_taken()
        );
        self.check_next_timeout(turn, next, &stats);
        if stats.lingering >= 250 {
            self.harness.lossless.set(false);
        }
        self.check_no_spin(asleep, turn);
    }

    /// Checks that each socket that was accepted or put is accounted for. Each of these sockets
    /// must be a connection, be queued, have failed, or have been refused.
    pub(super) fn check_refusals(&mut self, stats: &Stats) {
        let model = self.harness.model.borrow();
        let refused = stats.busy - model.busy;
        let went = model.opened_total()
            + stats.admit_failures
            + stats.refused_per_peer
            + (self.permits_taken() - stats.live)
            + refused;
        let unaccounted = (stats.accepted + model.taken_sockets).wrapping_sub(went);
        if model.stopping {
            // A stop drops sockets that arrive too late.
            self.unaccounted = None;
        } else {
            let before = self.unaccounted.replace(unaccounted);
            assert!(
                before.is_none_or(|before| before == unaccounted),
                "connections are not accounted for, {stats}"
            );
        }
        let patient = self.must_pause && matches!(self.manager.config().overload, Overload::Pause);
        let patient = patient && refused > self.refused;
        self.refused = refused;
        assert!(!patient, "a listener refused a connection instead of waiting");
    }

    /// Checks that the loop wakes in time for all work that no event announces.
    pub(super) fn check_next_timeout(&self, turn: Turn, next: Option<Duration>, stats: &Stats) {
        let (config, next) = (self.manager.config(), next.unwrap_or(Duration::MAX));
        let asleep = !next.is_zero();
        if turn.stopped.is_some() {
            return;
        }
        assert!(
            !asleep || self.permits_taken() == stats.live,
            "asleep although a socket is queued"
        );
        let five_seconds = Duration::from_millis(5_002);
        assert!(
            stats.lingering == 0 || next <= five_seconds,
            "a connection lingers, but the next timeout is {next:?}"
        );
        let spare = stats.spare > config.min_workers as u64;
        let soon = config.reap_interval + Duration::from_millis(2);
        assert!(
            !spare || next <= soon,
            "{} spare buffers, but the next timeout is {next:?}",
            stats.spare
        );
        let ticks = |tick: Duration| next <= tick + Duration::from_millis(2);
        assert!(config.tick.is_none_or(ticks), "a tick is due before the next timeout, {next:?}");
        let full = self.permits_taken() >= max_workers(config);
        let patient = full && matches!(config.overload, Overload::Pause);
        let left = |listener: &Listener| listener.waiting() > 0 && !listener.is_pending();
        if self.listeners.iter().any(left) && !patient && !self.listeners_taken {
            assert!(
                next <= Duration::from_millis(62),
                "connections wait, but the next timeout is {next:?}"
            );
        }
    }

    /// Checks that a loop without work sleeps. Also checks that a loop that has run out of
    /// descriptors pauses before it accepts again.
    pub(super) fn check_no_spin(&mut self, asleep: bool, turn: Turn) {
        let (stats, counters) = (self.manager.stats(), self.harness.sim.counters());
        let activity = [
            stats.bytes_in,
            stats.bytes_out,
            stats.requests_total(),
            stats.commands,
            stats.events,
            stats.accepted + stats.accept_errors + stats.fd_exhausted,
            stats.closed_total(),
            stats.lingering,
        ];
        let ticked = std::mem::replace(&mut self.ticks, stats.ticks) != stats.ticks;
        let idle = !asleep && !ticked && turn.expired == 0 && activity == self.activity;
        self.activity = activity;
        self.idle_turns = if idle { self.idle_turns + 1 } else { 0 };
        assert!(self.idle_turns < IDLE_TURNS, "the loop spins");
        let (count, last) = self.starved;
        if counters.starved_accepts > count {
            let pause = last.map_or(Duration::MAX, |last| counters.waited.saturating_sub(last));
            assert!(
                pause >= Duration::from_millis(50),
                "out of descriptors, and accepted again after {pause:?}"
            );
            assert!(counters.starved_accepts == count + 1, "{counters:?}");
            self.starved = (counters.starved_accepts, Some(counters.waited));
        }
    }

    pub(super) fn record_marks(&self, marks: &mut Marks, turn: Turn) {
        let (stats, counters) = (self.manager.stats(), self.harness.sim.counters());
        marks.hit_if("rate_limit delays a request", stats.throttled > 0);
        marks.hit_if("a stale event", stats.stale_events > 0);
        marks.hit_if("an accepted connection is refused as busy", self.refused > 0);
        marks.hit_if("a short write", counters.short_writes > 0);
        marks.hit_if("a short read", counters.short_reads > 0);
        marks.hit_if("a connection lingers", stats.lingering > 0);
        marks.hit_if("a full batch of timers", turn.expired == 256);
        marks.hit_if("a full batch of accepts", turn.accepted >= 64);
        marks.hit_if("a full batch of commands", stats.commands >= 1024);
        marks.hit_if("more events than one wait returns", counters.truncated_waits > 0);
        marks.hit_if(
            "the clock jumps by more than an hour",
            counters.longest_jump > Duration::from_secs(3_600),
        );
        let recovered = self.starved.1.is_some() && turn.accepted > 0;
        marks.hit_if("accept succeeds after descriptors ran out", recovered);
    }
}
