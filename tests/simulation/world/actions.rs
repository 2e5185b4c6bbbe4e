//! Actions: the operations that a step performs on the pool between turns.

use std::time::Duration;

use pool_manager::sim::{Host, Listener, Rng, Stream};
use pool_manager::{CloseReason, ConnId, ConnectOptions, Error};

use super::model::max_workers;
use super::peer::Peer;
use super::{World, model, random};

impl World {
    pub(super) fn act(&mut self) {
        if !self.running {
            self.start();
        }
        match self.rng.below(300) {
            0..20 => self.put(),
            20..40 => self.connect_client(),
            40..55 => self.command(),
            55..57 => self.configure(),
            57 if self.running => self.stop(),
            58 if self.running => self.stop_by_handle(),
            59 if self.running && self.rng.permille(if self.crowd_seed { 200 } else { 1 }) => {
                self.fill_queue();
            }
            60..64 if self.crowd_seed => self.connect_many(),
            65 if self.running => self.take_listeners(),
            64 => self.harness.sim.advance(Duration::from_micros(self.rng.below(50_000) as u64)),
            _ if !self.peers.is_empty() => {
                let index = self.rng.below(self.peers.len());
                self.peers[index].step(&mut self.rng, &self.harness);
                if self.peers[index].stream.is_none() || self.peers[index].saw_end {
                    let peer = self.peers.swap_remove(index);
                    self.harness.model.borrow_mut().peer_left(peer.number, peer.saw_end);
                }
            }
            _ => {}
        }
    }

    pub(super) fn start(&mut self) {
        // The framing changes only here. If it changed while bytes are held, the model would not
        // know which framing applies to these bytes.
        let config = random::config(&mut self.rng, self.crowd_seed);
        self.manager.set_config(config.clone()).unwrap();
        self.harness.model.borrow_mut().restarted(&config);
        self.unaccounted = None;
        if self.manager.start().is_err() {
            self.harness.mark("start fails");
            return self.assert_nothing_is_left();
        }
        self.running = true;
        self.listeners_taken = false;
        for listener in &self.listeners {
            self.manager.listen_on(listener.clone()).unwrap();
        }
        assert!(matches!(self.manager.start(), Err(Error::AlreadyRunning)));
    }

    pub(super) fn add_peer(&mut self, stream: Stream) {
        self.harness.model.borrow_mut().expected(stream.connection());
        let peer = Peer::new(stream, &mut self.rng);
        self.peers.push(peer);
    }

    pub(super) fn put(&mut self) {
        let (room, capacity) = (1 + self.rng.below(300), 1 + self.rng.below(600));
        let (mut peer, ours) = self.harness.sim.pair_with(room, capacity);
        self.harness.model.borrow_mut().expected(peer.connection());
        let by_handle = self.rng.permille(400);
        let outcome = if by_handle {
            self.manager.handle().put(ours)
        } else {
            self.manager.put(ours).map(|_| ())
        };
        let Err(refused) = outcome else {
            self.harness.model.borrow_mut().socket_taken();
            return self.add_peer(peer);
        };
        if matches!(refused.error(), Error::Busy { .. }) {
            let (taken, max) = (self.permits_taken(), max_workers(self.manager.config()));
            // The refused socket is still open, so `taken` includes it.
            assert!(taken > max, "busy, with {} of {max} permits taken", taken - 1);
        }
        match refused.error() {
            Error::Busy { .. } if by_handle => {
                self.harness.mark("a handle's put is refused as busy");
            }
            Error::Busy { .. } => self.harness.mark("put is refused as busy"),
            Error::Unsuitable(_) => self.harness.mark("put fails to register the socket"),
            _ => {}
        }
        self.harness.refused(refused, &mut peer);
    }

    pub(super) fn connect_client(&mut self) {
        // This generator is separate, so that recorded failing seeds still take the same steps.
        let mut rng = Rng::new(self.seed ^ self.harness.model.borrow().listener_connects);
        let addr = random::addr(&mut rng);
        let peer = self.listeners[self.rng.below(2)].connect_from(addr);
        self.harness.model.borrow_mut().client_connects(peer.connection(), addr);
        self.add_peer(peer);
    }

    /// Requests a connect in some of the steps.
    pub(super) fn maybe_connect(&mut self) {
        let Some(mut rng) = self.connect_rng.take() else { return };
        if rng.permille(300) {
            let (host, key, options) = self.harness.random_connect(&mut rng);
            if rng.permille(300) {
                let outcome = self.manager.handle().connect_with(host.addr(), options);
                self.harness.connect_requested(host, key, outcome);
            } else {
                self.connect_now(host, key, options);
            }
        }
        self.connect_rng = Some(rng);
    }

    /// Notifies the loop, in some steps, once or several times.
    pub(super) fn maybe_notify(&mut self) {
        let Some(rng) = &mut self.notify_rng else { return };
        if rng.permille(300) {
            for _ in 0..=rng.below(3) {
                self.manager.handle().notify().expect("the manager is running");
            }
            self.harness.notified.set(true);
            self.harness.mark("the loop is notified");
        }
    }

    fn connect_now(&mut self, host: Host, key: u64, options: ConnectOptions) {
        let (taken, max) = (self.permits_taken() - 1, max_workers(self.manager.config()));
        let outcome = self.manager.connect_with(host.addr(), options);
        let harness = &self.harness;
        match outcome {
            Ok(id) => {
                let mut model = harness.model.borrow_mut();
                model.socket_taken();
                model.connect_begun(key, id, &harness.sim);
                harness.pending_hosts.borrow_mut().push((key, host));
            }
            Err(Error::Connect { .. }) => {
                harness.mark("a connect of the manager fails to begin");
                harness.model.borrow_mut().connect_refused(key);
                assert_eq!(
                    self.permits_taken(),
                    taken,
                    "a connect that failed to begin has a permit"
                );
            }
            Err(refused) => {
                let busy = matches!(refused, Error::Busy { .. });
                assert!(!busy || taken >= max, "busy, with {taken} of {max} permits taken");
                harness.connect_requested(host, key, Err(refused));
            }
        }
    }

    /// Takes the listeners from the manager. No connection in the queue of a listener is lost.
    /// Connections that arrive later are not lost either.
    pub(super) fn take_listeners(&mut self) {
        let waiting = |world: &Self| world.listeners.each_ref().map(Listener::waiting);
        let before = waiting(self);
        let taken = self.manager.take_listeners();
        let stopping = self.harness.model.borrow().stopping;
        assert!(taken.len() == if self.listeners_taken { 0 } else { 2 } || stopping, "{taken:?}");
        assert_eq!(waiting(self), before, "taking a listener changed its queue");
        assert!(self.manager.take_listeners().is_empty(), "a listener was taken twice");
        self.harness
            .model
            .borrow_mut()
            .marks
            .hit_if("taken listeners have waiting connections", before != [0, 0]);
        self.listeners_taken |= !taken.is_empty();
    }

    /// Gives the listeners back to the manager. The manager then accepts connections again.
    pub(super) fn return_listeners(&mut self) {
        if self.listeners_taken {
            let mut outcomes = self.listeners.iter().map(|one| self.manager.listen_on(one.clone()));
            self.listeners_taken = !outcomes.all(|outcome| outcome.is_ok());
            assert!(
                !self.listeners_taken || self.harness.model.borrow().stopping,
                "the manager refused its listeners"
            );
        }
    }

    /// Puts many sockets or connects many clients at once.
    pub(super) fn connect_many(&mut self) {
        // All current peers leave first.
        for peer in self.peers.drain(..) {
            drop(peer.stream);
            self.harness.model.borrow_mut().peer_left(peer.number, peer.saw_end);
        }
        let puts = self.rng.permille(500);
        for _ in 0..if puts { 600 } else { 300 } {
            if puts { self.put() } else { self.connect_client() }
        }
        if puts && self.rng.permille(600) {
            // When the next turn runs, more deadlines have passed than one turn handles.
            self.turn();
            self.harness.sim.advance(Duration::from_secs(1));
        }
    }

    pub(super) fn any_id(&mut self) -> Option<ConnId> {
        self.harness.model.borrow().any_id(&mut self.rng)
    }

    pub(super) fn command(&mut self) {
        let handle = self.manager.handle();
        let Some(id) = self.any_id().filter(|_| self.running) else { return };
        let mut model = self.harness.model.borrow_mut();
        match self.rng.below(10) {
            0..3 => {
                model.resume(id, self.harness.sim.now());
                handle.resume(id).unwrap();
            }
            3..5 => {
                model.pause(id, self.harness.sim.counters().waited);
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
            let invalid = random::invalid(&mut self.rng);
            let refused = if self.rng.permille(500) {
                self.manager.set_config(invalid).map(|_| ())
            } else {
                self.manager.handle().set_config(invalid)
            };
            assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
            assert_eq!(
                format!("{:?}", self.manager.config()),
                before,
                "a refused configuration was applied"
            );
            return self.harness.mark("an invalid configuration");
        }
        let config = random::config(&mut self.rng, self.crowd_seed);
        let config = self.harness.model.borrow_mut().config_requested(config);
        let live = self.manager.stats().live;
        if self.rng.permille(500) || !self.running {
            let lowered = max_workers(&config) < live;
            let mut model = self.harness.model.borrow_mut();
            model.marks.hit_if("max_workers below the live connections", lowered);
            let max = model.max_held();
            model.marks.hit_if("buffer_size below the held bytes", config.buffer_size < max);
            drop(model);
            self.manager.set_config(config).unwrap();
        } else {
            self.manager.handle().set_config(config).unwrap();
        }
    }

    /// Queues more commands than the queue can hold.
    pub(super) fn fill_queue(&mut self) {
        let Some(id) = self.any_id() else { return };
        let handle = self.manager.handle();
        self.harness.model.borrow_mut().resume(id, self.harness.sim.now());
        let full = (0..70_000).any(|_| matches!(handle.resume(id), Err(Error::QueueFull)));
        assert!(full, "the queue has no limit");
        self.harness.mark("the handle's queue is full");
        let before = self.manager.stats().commands;
        for _ in 0..80 {
            self.harness.model.borrow_mut().mark_resumed(id);
            self.turn();
        }
        let done = self.manager.stats().commands - before;
        assert!(!self.running || done >= 65_000, "only {done} commands were executed");
    }

    pub(super) fn stop_by_handle(&mut self) {
        let (mut peer, ours) = self.harness.sim.pair();
        match self.manager.handle().put(ours) {
            Ok(()) => {
                self.harness.mark("a socket is queued when a stop begins");
                self.harness.model.borrow_mut().socket_taken();
                self.add_peer(peer);
            }
            Err(refused) => self.harness.refused(refused, &mut peer),
        }
        self.manager.handle().stop().unwrap();
        self.harness.model.borrow_mut().stopping = true;
    }

    /// Stops the manager and checks that the stop ends in time.
    pub(super) fn stop(&mut self) {
        let sim = &self.harness.sim;
        let elsewhere = || self.harness.model.borrow().slept + sim.counters().jumped;
        let (before, elsewhere_before) = (sim.now(), elsewhere());
        let max = self.manager.config().stop_deadline.unwrap_or_default();
        let before_it = self.manager.stats();
        let again = std::mem::replace(&mut self.harness.model.borrow_mut().stopping, true);
        if !again && self.waits_succeed {
            let mut model = self.harness.model.borrow_mut();
            model.drain_until = sim.now() + max;
        }
        let lost_before = self.harness.model.borrow().dropped_and_unsent();
        let outcome = self.manager.stop();
        let allowed = max + elsewhere().saturating_sub(elsewhere_before);
        let took = sim.now().saturating_sub(before);
        assert!(
            again || took <= allowed + Duration::from_millis(3),
            "a stop with a deadline of {max:?} took {took:?}"
        );
        match outcome {
            Ok(report) => {
                assert_eq!(self.harness.stopping_calls.get(), 1, "calls of `stopping`");
                let mut model = self.harness.model.borrow_mut();
                model.marks.hit_if("a stop aborts connections", report.aborted > 0);
                model.marks.hit_if("a stop finishes connections", report.finished > 0);
                let all = report.idle + report.finished + report.aborted;
                let came = self.manager.stats().put - before_it.put;
                let live = before_it.live + came;
                assert!(again || all as u64 == live, "{report}, but {live} were live");
                let lost = model.dropped_and_unsent();
                let lost = (lost.0 - lost_before.0, lost.1 - lost_before.1);
                let reported = (report.dropped_bytes, report.unsent_bytes);
                assert!(again || reported == lost, "{report:?}, but {lost:?}");
            }
            Err(Error::Wait(_)) => self.harness.wait_failed(),
            Err(error) => panic!("{error}"),
        }
        self.check_stopped();
    }

    pub(super) fn add_new_peers(&mut self) {
        for stream in self.harness.new_streams.take() {
            self.add_peer(stream);
        }
        for (key, host) in self.harness.pending_hosts.take() {
            match host.accept() {
                Some(stream) => self.add_peer(stream),
                None if self.harness.model.borrow().is_connecting(key) => {
                    self.harness.pending_hosts.borrow_mut().push((key, host));
                }
                None => {}
            }
        }
    }
}
