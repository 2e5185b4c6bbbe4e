//! Acts: what a step does to the pool between turns.

use std::time::Duration;

use pool_manager::sim::{Host, Listener, Rng, Stream};
use pool_manager::{CloseReason, ConnId, ConnectOptions, Error};

use super::peer::Peer;
use super::{World, draw, model};

impl World {
    pub(super) fn act(&mut self) {
        if !self.running {
            self.start();
        }
        match self.rng.below(300) {
            0..20 => self.put(),
            20..40 => self.connect(),
            40..55 => self.command(),
            55..57 => self.configure(),
            57 if self.running => self.stop(),
            58 if self.running => self.stop_by_handle(),
            59 if self.running && self.rng.permille(if self.crowded { 200 } else { 1 }) => {
                self.fill_the_queue();
            }
            60..64 if self.crowded => self.crowd(),
            65 if self.running => self.take_listeners(),
            64 => self.stage.sim.advance(Duration::from_micros(self.rng.below(50_000) as u64)),
            _ if !self.peers.is_empty() => {
                let index = self.rng.below(self.peers.len());
                self.peers[index].step(&mut self.rng, &self.stage);
                if self.peers[index].stream.is_none() || self.peers[index].over {
                    let peer = self.peers.swap_remove(index);
                    self.stage.model.borrow_mut().forget(peer.number, peer.over);
                }
            }
            _ => {}
        }
    }

    pub(super) fn start(&mut self) {
        // Another framing while bytes are held could be taken for the old one.
        let config = draw::config(&mut self.rng, self.crowded);
        self.manager.set_config(config.clone()).unwrap();
        self.stage.model.borrow_mut().restarted(&config);
        self.astray = None;
        if self.manager.start().is_err() {
            self.stage.mark("starting fails");
            return self.assert_nothing_is_left();
        }
        self.running = true;
        self.away = false;
        for listener in &self.listeners {
            self.manager.listen_on(listener.clone()).unwrap();
        }
        assert!(matches!(self.manager.start(), Err(Error::AlreadyRunning)));
    }

    pub(super) fn meet(&mut self, stream: Stream) {
        self.stage.model.borrow_mut().expected(stream.connection());
        let peer = Peer::new(stream, &mut self.rng);
        self.peers.push(peer);
    }

    pub(super) fn put(&mut self) {
        let (room, capacity) = (1 + self.rng.below(300), 1 + self.rng.below(600));
        let (mut peer, ours) = self.stage.sim.pair_with(room, capacity);
        self.stage.model.borrow_mut().expected(peer.connection());
        let by_handle = self.rng.permille(400);
        let outcome = if by_handle {
            self.manager.handle().put(ours)
        } else {
            self.manager.put(ours).map(|_| ())
        };
        let Err(refused) = outcome else {
            self.stage.model.borrow_mut().took();
            return self.meet(peer);
        };
        if matches!(refused.error(), Error::Busy { .. }) {
            let (taken, max) = (self.taken(), self.manager.config().max_workers as u64);
            // The refused one is still open.
            assert!(taken > max, "busy, with {} of {max} places taken", taken - 1);
        }
        match refused.error() {
            Error::Busy { .. } if by_handle => self.stage.mark("busy, by a handle"),
            Error::Busy { .. } => self.stage.mark("busy, by put"),
            Error::Unsuitable(_) => self.stage.mark("registering fails in put"),
            _ => {}
        }
        self.stage.refused(refused, &mut peer);
    }

    pub(super) fn connect(&mut self) {
        // From rng of its own, so that seeds that once failed stay what they were.
        let mut rng = Rng::new(self.seed ^ self.stage.model.borrow().knocked);
        let addr = draw::addr(&mut rng);
        let peer = self.listeners[self.rng.below(2)].connect_from(addr);
        self.stage.model.borrow_mut().knocks(peer.connection(), addr);
        self.meet(peer);
    }

    /// Asks for a connection, now and then.
    pub(super) fn call(&mut self) {
        let Some(mut rng) = self.calls.take() else { return };
        if rng.permille(300) {
            let (host, key, options) = self.stage.callee(&mut rng);
            if rng.permille(300) {
                let outcome = self.manager.handle().connect_with(host.addr(), options);
                self.stage.connect_requested(host, key, outcome);
            } else {
                self.call_at_once(host, key, options);
            }
        }
        self.calls = Some(rng);
    }

    fn call_at_once(&mut self, host: Host, key: u64, options: ConnectOptions) {
        let (taken, max) = (self.taken() - 1, self.manager.config().max_workers as u64);
        let outcome = self.manager.connect_with(host.addr(), options);
        let stage = &self.stage;
        match outcome {
            Ok(id) => {
                let mut model = stage.model.borrow_mut();
                model.took();
                model.called(key, id, &stage.sim);
                stage.callees.borrow_mut().push((key, host));
            }
            Err(Error::Connect { .. }) => {
                stage.mark("a connect cannot begin, by the manager");
                stage.model.borrow_mut().not_called(key);
                assert_eq!(self.taken(), taken, "what could not begin has a place");
            }
            Err(refused) => {
                let busy = matches!(refused, Error::Busy { .. });
                assert!(!busy || taken >= max, "busy, with {taken} of {max} places taken");
                stage.connect_requested(host, key, Err(refused));
            }
        }
    }

    /// Nobody accepts from now on; who waits, and who comes, is not lost.
    pub(super) fn take_listeners(&mut self) {
        let waiting = |world: &Self| world.listeners.each_ref().map(Listener::waiting);
        let before = waiting(self);
        let taken = self.manager.take_listeners();
        let stopping = self.stage.model.borrow().stopping;
        assert!(taken.len() == if self.away { 0 } else { 2 } || stopping, "{taken:?}");
        assert_eq!(waiting(self), before, "who waited at a listener that was taken");
        assert!(self.manager.take_listeners().is_empty(), "a listener is taken twice");
        self.stage.model.borrow_mut().marks.hit_if("a queue is handed on", before != [0, 0]);
        self.away |= !taken.is_empty();
    }

    /// Somebody accepts again.
    pub(super) fn give_listeners_back(&mut self) {
        if self.away {
            let mut outcomes = self.listeners.iter().map(|one| self.manager.listen_on(one.clone()));
            self.away = !outcomes.all(|outcome| outcome.is_ok());
            assert!(!self.away || self.stage.model.borrow().stopping, "they are refused");
        }
    }

    /// Many come at once.
    pub(super) fn crowd(&mut self) {
        // Those of the last crowd leave, all at once.
        for peer in self.peers.drain(..) {
            drop(peer.stream);
            self.stage.model.borrow_mut().forget(peer.number, peer.over);
        }
        let puts = self.rng.permille(500);
        for _ in 0..if puts { 600 } else { 300 } {
            if puts { self.put() } else { self.connect() }
        }
        if puts && self.rng.permille(600) {
            // So many deadlines have passed that one turn does not see to all.
            self.turn();
            self.stage.sim.advance(Duration::from_secs(1));
        }
    }

    pub(super) fn any_id(&mut self) -> Option<ConnId> {
        self.stage.model.borrow().any_id(&mut self.rng)
    }

    pub(super) fn command(&mut self) {
        let handle = self.manager.handle();
        let Some(id) = self.any_id().filter(|_| self.running) else { return };
        let mut model = self.stage.model.borrow_mut();
        match self.rng.below(10) {
            0..3 => {
                model.resume(id, self.stage.sim.now());
                handle.resume(id).unwrap();
            }
            3..5 => {
                model.pause(id);
                handle.pause(id).unwrap();
            }
            5 => {
                model.closing(id, CloseReason::Requested);
                handle.close(id).unwrap();
            }
            _ => {
                let first = self.rng.below(8) as u8;
                for next in 0..=self.rng.below(3) as u8 {
                    let value = model::SENDS[1] | ((first + next) % 8);
                    let bytes = model.send(id, value, 1 + self.rng.below(300));
                    handle.send(id, bytes).unwrap();
                }
            }
        }
    }

    pub(super) fn configure(&mut self) {
        let before = format!("{:?}", self.manager.config());
        if self.rng.permille(300) {
            let invalid = draw::invalid(&mut self.rng);
            let refused = if self.rng.permille(500) {
                self.manager.set_config(invalid).map(|_| ())
            } else {
                self.manager.handle().set_config(invalid)
            };
            assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
            assert_eq!(format!("{:?}", self.manager.config()), before, "a refused change");
            return self.stage.mark("an invalid configuration");
        }
        let config = draw::config(&mut self.rng, self.crowded);
        let config = self.stage.model.borrow_mut().asked_for(config);
        let live = self.manager.stats().live;
        if self.rng.permille(500) || !self.running {
            let lowered = config.max_workers > 0 && (config.max_workers as u64) < live;
            let mut model = self.stage.model.borrow_mut();
            model.marks.hit_if("max_workers below the live", lowered);
            let max = model.most_held();
            model.marks.hit_if("buffer_size below the held", config.buffer_size < max);
            drop(model);
            self.manager.set_config(config).unwrap();
        } else {
            self.manager.handle().set_config(config).unwrap();
        }
    }

    /// Puts more commands into the queue than it holds.
    pub(super) fn fill_the_queue(&mut self) {
        let Some(id) = self.any_id() else { return };
        let handle = self.manager.handle();
        self.stage.model.borrow_mut().resume(id, self.stage.sim.now());
        let full = (0..70_000).any(|_| matches!(handle.resume(id), Err(Error::QueueFull)));
        assert!(full, "a queue without an end");
        self.stage.mark("the handle's queue is full");
        let before = self.manager.stats().commands;
        for _ in 0..80 {
            self.stage.model.borrow_mut().keep_resuming(id);
            self.turn();
        }
        let done = self.manager.stats().commands - before;
        assert!(!self.running || done >= 65_000, "{done} commands were done");
    }

    pub(super) fn stop_by_handle(&mut self) {
        let (mut peer, ours) = self.stage.sim.pair();
        match self.manager.handle().put(ours) {
            Ok(()) => {
                self.stage.mark("a socket is queued at a stop");
                self.stage.model.borrow_mut().took();
                self.meet(peer);
            }
            Err(refused) => self.stage.refused(refused, &mut peer),
        }
        self.manager.handle().stop().unwrap();
        self.stage.model.borrow_mut().stopping = true;
    }

    /// Stops, and checks that it takes no longer than it may.
    pub(super) fn stop(&mut self) {
        let sim = &self.stage.sim;
        let elsewhere = || self.stage.model.borrow().slept + sim.counters().jumped;
        let (before, elsewhere_before) = (sim.now(), elsewhere());
        let max = self.manager.config().stop_deadline.unwrap_or_default();
        let before_it = self.manager.stats();
        let again = std::mem::replace(&mut self.stage.model.borrow_mut().stopping, true);
        if !again && self.reliable {
            let mut model = self.stage.model.borrow_mut();
            model.draining = sim.now() + max;
        }
        let lost_before = self.stage.model.borrow().lost_bytes();
        let outcome = self.manager.stop();
        let allowed = max + elsewhere().saturating_sub(elsewhere_before);
        let took = sim.now().saturating_sub(before);
        assert!(
            again || took <= allowed + Duration::from_millis(3),
            "a stop of {max:?} took {took:?}"
        );
        match outcome {
            Ok(report) => {
                let mut model = self.stage.model.borrow_mut();
                model.marks.hit_if("a stop that aborts", report.aborted > 0);
                model.marks.hit_if("a stop that drains", report.finished > 0);
                let all = report.idle + report.finished + report.aborted;
                let came = self.manager.stats().put - before_it.put;
                let live = before_it.live + came;
                assert!(again || all as u64 == live, "{report}, of {live}");
                let lost = model.lost_bytes();
                let lost = (lost.0 - lost_before.0, lost.1 - lost_before.1);
                let told = (report.dropped_bytes, report.unsent_bytes);
                assert!(again || told == lost, "{report:?}, but {lost:?}");
            }
            Err(Error::Wait(_)) => self.stage.waiting_fails(),
            Err(error) => panic!("{error}"),
        }
        self.stopped();
    }

    pub(super) fn meet_newcomers(&mut self) {
        for stream in self.stage.newcomers.take() {
            self.meet(stream);
        }
        for (key, host) in self.stage.callees.take() {
            match host.accept() {
                Some(stream) => self.meet(stream),
                None if self.stage.model.borrow().is_calling(key) => {
                    self.stage.callees.borrow_mut().push((key, host));
                }
                None => {}
            }
        }
    }
}
