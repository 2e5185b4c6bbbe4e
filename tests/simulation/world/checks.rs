//! Checks: what must hold after a turn, and once it is stopped.

use std::time::Duration;

use pool_manager::sim::Listener;
use pool_manager::{Config, Error, Overload, Stats, Turn};

use super::marks::Marks;
use super::model::Turned;
use super::{IDLE_TURNS, World};

impl World {
    /// What must hold once it is stopped, however it came to be.
    pub(super) fn stopped(&mut self) {
        self.running = false;
        self.stage.lossless.set(false);
        self.meet_newcomers();
        self.assert_nothing_is_left();
        let (turned_away, now) = (self.stage.sim.counters().turned_away, self.stage.sim.now());
        let before = std::mem::replace(&mut self.turned_away, turned_away);
        let in_time = now < self.stage.model.borrow().draining;
        assert!(!in_time || turned_away == before, "reset in the queue, though there was time");
        let (mut peer, ours) = self.stage.sim.pair();
        let refused = self.manager.put(ours).expect_err("put into a stopped pool");
        assert!(matches!(refused.error(), Error::NotRunning), "{refused}");
        self.stage.refused(refused, &mut peer);
        let mut model = self.stage.model.borrow_mut();
        model.has_stopped();
        model.configs = vec![self.manager.config().clone()];
        let stats = self.manager.stats();
        // A stop accepts who waits, in turns of its own.
        self.crowds = stats.refused_per_peer;
        model.compare(&stats, 0);
        model.check_sends();
        assert_eq!(model.complaints, [""; 0]);
        // Some may have been refused in the stop.
        self.refused = stats.busy - model.busy;
        self.idle_turns = 0;
        self.starved = (self.stage.sim.counters().starved_accepts, None);
    }

    pub(super) fn assert_nothing_is_left(&mut self) {
        let (stats, counters) = (self.manager.stats(), self.stage.sim.counters());
        assert_eq!((stats.live, stats.lingering, stats.spare), (0, 0, 0), "{stats}");
        assert_eq!(stats.bytes_held, 0, "bytes that are kept for nobody");
        assert_eq!((counters.open, counters.registered), (0, 0), "{counters:?}");
        assert_eq!(self.manager.next_timeout(), None);
        assert!(self.stage.model.borrow().all_ended(), "somebody was not told of the end");
        assert_eq!(self.stage.sim.violations(), [""; 0]);
    }

    /// Places that are taken: by connections, by sockets that wait to become some, and by those that
    /// are to begin.
    pub(super) fn taken(&self) -> u64 {
        let waiting = self.stage.model.borrow().waiting_calls();
        self.stage.sim.counters().open as u64 - self.manager.stats().lingering + waiting
    }

    /// What must hold after every turn.
    pub(super) fn check(&mut self, turn: Turn, max: u64) {
        let (stats, counters) = (self.manager.stats(), self.stage.sim.counters());
        self.trace(|| format!("  {turn:?}, live {}, digest {:016x}", stats.live, self.digest()));
        assert_eq!(self.stage.sim.violations(), [""; 0]);
        let next = self.manager.next_timeout();
        let config: &Config = self.manager.config();
        let asleep = next != Some(Duration::ZERO);
        // A last read may end one whose time is up for another reason.
        let closed = stats.closed_total() - self.happened[6];
        let turn_ended = Turned {
            began: counters.waited,
            ended: self.stage.sim.now(),
            before: (std::mem::replace(&mut self.began, counters.waited), counters.asked),
            asleep,
            stopping: false,
            punctual: asleep || stats.live + turn.expired as u64 + closed < 20,
        };
        {
            let mut model = self.stage.model.borrow_mut();
            let crowded = std::mem::replace(&mut self.crowds, stats.refused_per_peer)
                < stats.refused_per_peer;
            let may_be = !crowded || model.is_crowded(config.max_per_peer, counters.waited);
            assert!(may_be, "{} refused as too many of a peer", stats.refused_per_peer);
            model.marks.hit_if("one too many of a peer", crowded);
            if turn.stopped.is_none() {
                model.after_turn(turn_ended, config, &self.stage.sim);
            }
            model.compare(&stats, stats.live);
            if turn.stopped.is_none() {
                model.check_memory(stats.bytes_held);
            }
            self.marks(&mut model.marks, turn);
            assert_eq!(model.complaints, [""; 0]);
        }
        assert!(turn.expired <= 256 && turn.accepted <= 128, "{turn:?}");
        let open = stats.live + stats.lingering;
        assert_eq!(counters.registered as u64, open, "registered, {stats}");
        assert_eq!(
            (counters.accepted, counters.starved_accepts),
            (stats.accepted, stats.fd_exhausted)
        );
        assert!(stats.lingering <= 256, "{stats}");
        self.check_refusals(&stats);
        assert!(self.taken() <= max, "{} connections, of at most {max}", self.taken());
        self.check_plans(turn, next, &stats);
        if stats.lingering >= 250 {
            self.stage.lossless.set(false);
        }
        self.check_effort(asleep, turn);
    }

    /// Who was accepted or taken has become a connection, waits to, was lost, or was refused.
    pub(super) fn check_refusals(&mut self, stats: &Stats) {
        let model = self.stage.model.borrow();
        let refused = stats.busy - model.busy;
        let went = model.placed()
            + stats.admit_failures
            + stats.refused_per_peer
            + (self.taken() - stats.live)
            + refused;
        let astray = (stats.accepted + model.taken).wrapping_sub(went);
        if model.stopping {
            // Who comes too late is given up.
            self.astray = None;
        } else {
            let before = self.astray.replace(astray);
            assert!(
                before.is_none_or(|before| before == astray),
                "connections went astray, {stats}"
            );
        }
        let patient = self.patient && matches!(self.manager.config().overload, Overload::Pause);
        let patient = patient && refused > self.refused;
        self.refused = refused;
        assert!(!patient, "refused by a listener that is to wait");
    }

    /// Whatever waits for time to pass, or for nobody else, is in the loop's plans.
    pub(super) fn check_plans(&self, turn: Turn, next: Option<Duration>, stats: &Stats) {
        let (config, next) = (self.manager.config(), next.unwrap_or(Duration::MAX));
        let asleep = !next.is_zero();
        if turn.stopped.is_some() {
            return;
        }
        assert!(!asleep || self.taken() == stats.live, "asleep over a socket that was put");
        let five_seconds = Duration::from_millis(5_002);
        assert!(stats.lingering == 0 || next <= five_seconds, "lingering, for {next:?}");
        let spare = stats.spare > config.min_workers as u64;
        let soon = config.reap_interval + Duration::from_millis(2);
        assert!(!spare || next <= soon, "{} spare buffers, for {next:?}", stats.spare);
        let tick = config.tick + Duration::from_millis(2);
        assert!(config.tick.is_zero() || next <= tick, "no tick for {next:?}");
        let full = config.max_workers > 0 && self.taken() >= config.max_workers as u64;
        let patient = full && matches!(config.overload, Overload::Pause);
        let left = |listener: &Listener| listener.waiting() > 0 && !listener.is_pending();
        if self.listeners.iter().any(left) && !patient && !self.away {
            assert!(next <= Duration::from_millis(62), "somebody waits, for {next:?}");
        }
    }

    /// A loop that has nothing to do sleeps, and one that is starved does not insist.
    pub(super) fn check_effort(&mut self, asleep: bool, turn: Turn) {
        let (stats, counters) = (self.manager.stats(), self.stage.sim.counters());
        let happened = [
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
        let idle = !asleep && !ticked && turn.expired == 0 && happened == self.happened;
        self.happened = happened;
        self.idle_turns = if idle { self.idle_turns + 1 } else { 0 };
        assert!(self.idle_turns < IDLE_TURNS, "it spins");
        let (count, last) = self.starved;
        if counters.starved_accepts > count {
            let pause = last.map_or(Duration::MAX, |last| counters.waited.saturating_sub(last));
            assert!(pause >= Duration::from_millis(50), "starved, and again in {pause:?}");
            assert!(counters.starved_accepts == count + 1, "{counters:?}");
            self.starved = (counters.starved_accepts, Some(counters.waited));
        }
    }

    pub(super) fn marks(&self, marks: &mut Marks, turn: Turn) {
        let (stats, counters) = (self.manager.stats(), self.stage.sim.counters());
        marks.hit_if("a request waits for its rate", stats.throttled > 0);
        marks.hit_if("a stale event", stats.stale_events > 0);
        marks.hit_if("busy, by a listener", self.refused > 0);
        marks.hit_if("a short write", counters.short_writes > 0);
        marks.hit_if("a short read", counters.short_reads > 0);
        marks.hit_if("a lingering close", stats.lingering > 0);
        marks.hit_if("a whole batch of timers", turn.expired == 256);
        marks.hit_if("a whole batch of accepts", turn.accepted >= 64);
        marks.hit_if("a whole batch of commands", stats.commands >= 1024);
        marks.hit_if("more events than a wait returns", counters.truncated_waits > 0);
        marks.hit_if("the clock jumps an hour", counters.longest_jump > Duration::from_secs(3_600));
        let recovered = self.starved.1.is_some() && turn.accepted > 0;
        marks.hit_if("no descriptors, and then accepted", recovered);
    }
}
