//! The end of a run: all faults stop, all connections must end, and nothing may be left.

use std::time::Duration;

use pool_manager::sim::Faults;
use pool_manager::{ConnId, Error, Framing};

use super::{Outcome, World};

impl World {
    /// Stops all faults. The peers read all bytes that have arrived and shut down their write
    /// sides. Every connection must end.
    pub(super) fn settle(&mut self) {
        self.trace(|| "settling".to_owned());
        self.harness.sim.set_faults(Faults::none());
        self.harness.model.borrow_mut().actions_enabled = false;
        if !self.running {
            self.start();
        }
        self.return_listeners();
        self.lift_rate_limit();
        let ids: Vec<ConnId> = self.harness.model.borrow().numbers.keys().copied().collect();
        for id in ids {
            self.harness.model.borrow_mut().resume(id, self.harness.sim.now());
            self.manager.handle().resume(id).unwrap();
        }
        self.turn_until_empty();
        if !self.running {
            self.start();
            self.lift_rate_limit();
            self.turn_until_empty();
        }
        self.assert_serves();
        self.turn_until_empty();
        self.assert_reaps();
        let report = self.manager.stop().unwrap();
        assert_eq!(report.aborted, 0, "nothing was left to abort");
        self.check_stopped();
    }

    /// Removes the rate limit, so that no request waits for it.
    fn lift_rate_limit(&mut self) {
        let config = self.manager.config().clone().rate_limit(None);
        self.harness.model.borrow_mut().configs.push(config.clone());
        self.manager.handle().set_config(config).unwrap();
    }

    pub(super) fn turn_until_empty(&mut self) {
        for _ in 0..5_000 {
            for peer in &mut self.peers {
                peer.read_all(&self.harness);
                peer.shutdown_write(&self.harness);
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
        panic!("connections do not end: {}", self.manager.stats());
    }

    /// Checks that new connections are served. It opens as many as `max_workers` allows, but at
    /// most eight.
    pub(super) fn assert_serves(&mut self) {
        let request = match self.manager.config().framing {
            Framing::Filled => vec![b'a'; self.manager.config().buffer_size],
            Framing::LengthPrefixed { .. } => b"\0\x03abc".to_vec(),
            Framing::Custom(_) => b"d".to_vec(),
            _ => b"abc\n".to_vec(),
        };
        let max = self.manager.config().max_workers.map_or(1, |max| max.min(8));
        for _ in 0..max {
            let (mut peer, ours) = self.harness.sim.pair();
            let number = peer.connection();
            std::io::Write::write_all(&mut peer, &request).unwrap();
            let mut model = self.harness.model.borrow_mut();
            model.expected(number);
            model.socket_taken();
            model.records.get_mut(&number).unwrap().sent.extend(&request);
            drop(model);
            self.manager.put(ours).expect("a free permit");
            self.add_peer(peer);
        }
        for _ in 0..3 {
            self.turn();
        }
        let newest = self.peers.len() - max;
        for peer in &mut self.peers[newest..] {
            peer.read_all(&self.harness);
            assert!(self.harness.model.borrow().is_answered(peer.number), "the peer has no reply");
        }
    }

    /// Checks that spare buffers above `min_workers` are freed.
    pub(super) fn assert_reaps(&mut self) {
        for _ in 0..8 {
            self.harness.sim.advance(self.manager.config().reap_interval);
            self.manager.turn(Some(Duration::ZERO)).unwrap();
        }
        let (spare, keep) = (self.manager.stats().spare, self.manager.config().min_workers);
        assert_eq!(spare, keep as u64, "spare buffers");
        let ticks = self.manager.config().tick.is_some();
        assert_eq!(self.manager.next_timeout().is_some(), ticks, "the loop does not sleep");
    }

    /// Drops the manager while connections are open. Checks that the manager closes all of these
    /// connections.
    pub(super) fn drop_running(mut self) -> Outcome {
        self.start();
        let (peer, ours) = self.harness.sim.pair();
        self.harness.model.borrow_mut().expected(peer.connection());
        self.manager.put(ours).expect("a free permit");
        self.connect_client();
        self.maybe_connect();
        self.turn();
        let digest = self.digest();
        let Self { manager, harness, turns, .. } = self;
        let handle = manager.handle();
        drop(manager);
        let counters = harness.sim.counters();
        assert_eq!((counters.open, counters.registered), (0, 0), "dropped, {counters:?}");
        assert!(matches!(handle.stop(), Err(Error::Dropped)));
        let model = harness.model.borrow();
        assert!(model.all_ended(), "`closed` was not called for a connection");
        Outcome { digest, marks: model.marks.clone(), turns }
    }
}
