//! Ends: faults stop, everything settles, and nothing is left.

use std::time::Duration;

use pool_manager::sim::Faults;
use pool_manager::{ConnId, Error, Framing};

use super::{Outcome, World};

impl World {
    /// Faults stop, peers read what there is and leave: everything must settle.
    pub(super) fn settle(&mut self) {
        self.trace(|| "settling".to_owned());
        self.stage.sim.set_faults(Faults::none());
        self.stage.model.borrow_mut().wild = false;
        if !self.running {
            self.start();
        }
        self.give_listeners_back();
        self.hurry();
        let ids: Vec<ConnId> = self.stage.model.borrow().numbers.keys().copied().collect();
        for id in ids {
            self.stage.model.borrow_mut().resume(id, self.stage.sim.now());
            self.manager.handle().resume(id).unwrap();
        }
        self.until_all_left();
        if !self.running {
            self.start();
            self.hurry();
            self.until_all_left();
        }
        self.assert_serves();
        self.until_all_left();
        self.assert_reaps();
        let report = self.manager.stop().unwrap();
        assert_eq!(report.aborted, 0, "nothing was left to abort");
        self.stopped();
    }

    /// Nobody waits for a rate any more.
    fn hurry(&mut self) {
        let config = self.manager.config().clone().rate_limit(None);
        self.stage.model.borrow_mut().configs.push(config.clone());
        self.manager.handle().set_config(config).unwrap();
    }

    pub(super) fn until_all_left(&mut self) {
        for _ in 0..5_000 {
            for peer in &mut self.peers {
                peer.hear_all(&self.stage);
                peer.finish(&self.stage);
            }
            self.turn();
            let stats = self.manager.stats();
            if stats.live == 0
                && stats.lingering == 0
                && (!self.running || self.listeners.iter().all(|listener| listener.waiting() == 0))
            {
                return;
            }
        }
        panic!("it does not settle: {}", self.manager.stats());
    }

    /// From any state new connections are served, as many as there may be.
    pub(super) fn assert_serves(&mut self) {
        let request = match self.manager.config().framing {
            Framing::Filled => vec![b'a'; self.manager.config().buffer_size],
            Framing::LengthPrefixed { .. } => b"\0\x03abc".to_vec(),
            Framing::Custom(_) => b"d".to_vec(),
            _ => b"abc\n".to_vec(),
        };
        let max = self.manager.config().max_workers.clamp(1, 8);
        for _ in 0..max {
            let (mut peer, ours) = self.stage.sim.pair();
            let number = peer.connection();
            std::io::Write::write_all(&mut peer, &request).unwrap();
            let mut model = self.stage.model.borrow_mut();
            model.expected(number);
            model.took();
            model.accounts.get_mut(&number).unwrap().sent.extend(&request);
            drop(model);
            self.manager.put(ours).expect("a place for everyone");
            self.meet(peer);
        }
        for _ in 0..3 {
            self.turn();
        }
        let newest = self.peers.len() - max;
        for peer in &mut self.peers[newest..] {
            peer.hear_all(&self.stage);
            assert!(self.stage.model.borrow().is_answered(peer.number), "not answered");
        }
    }

    /// What is spare and not to be kept is freed.
    pub(super) fn assert_reaps(&mut self) {
        for _ in 0..8 {
            self.stage.sim.advance(self.manager.config().reap_interval);
            self.manager.turn(Some(Duration::ZERO)).unwrap();
        }
        let (spare, keep) = (self.manager.stats().spare, self.manager.config().min_workers);
        assert_eq!(spare, keep as u64, "spare buffers");
        let ticks = !self.manager.config().tick.is_zero();
        assert_eq!(self.manager.next_timeout().is_some(), ticks, "it does not sleep");
    }

    /// Dropped in the middle of things, it closes everything as well.
    pub(super) fn end(mut self) -> Outcome {
        self.start();
        let (peer, ours) = self.stage.sim.pair();
        self.stage.model.borrow_mut().expected(peer.connection());
        self.manager.put(ours).expect("a place");
        self.connect();
        self.call();
        self.turn();
        let digest = self.digest();
        let Self { manager, stage, turns, .. } = self;
        let handle = manager.handle();
        drop(manager);
        let counters = stage.sim.counters();
        assert_eq!((counters.open, counters.registered), (0, 0), "dropped, {counters:?}");
        assert!(matches!(handle.stop(), Err(Error::Dropped)));
        let model = stage.model.borrow();
        assert!(model.all_ended(), "somebody was not told of the end");
        Outcome { digest, marks: model.marks.clone(), turns }
    }
}
