//! A million deadlines, ten thousand of them at the same moment: no turn does more than its
//! batch, and none comes late for it.

use std::time::Duration;

use pool_manager::sim::Sim;
use pool_manager::{CloseReason, Config, Conn, Manager};

/// The most deadlines of one turn, as `docs/proof.md` has it.
const BATCH: usize = 256;

const CONNECTIONS: usize = 10_000;
const WAVES: u64 = 100;

#[test]
fn a_million_expiries_without_a_turn_above_its_batch() {
    let sim = Sim::new(1);
    let config = Config::new().clients_deadline(Duration::from_secs(3));
    let silent = |_: &mut Conn<'_>, _: &[u8]| Ok(());
    let mut manager = Manager::with_backend(config, silent, sim.clone()).expect("a manager");
    manager.start().expect("start");
    for wave in 1..=WAVES {
        let mut peers = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let (peer, ours) = sim.pair();
            manager.put(ours).expect("put");
            peers.push(peer);
        }
        let (due, mut turns) = (sim.now() + Duration::from_secs(3), 0);
        while manager.stats().live > 0 {
            let turn = manager.turn(None).expect("turn");
            assert!(turn.expired <= BATCH, "{turn:?}");
            turns += u64::from(turn.expired > 0);
        }
        let late = sim.now().saturating_sub(due);
        // A deadline is rounded up to a millisecond, and so is a wait.
        assert!(late < Duration::from_millis(2), "{late:?}");
        let all = wave * CONNECTIONS as u64;
        assert_eq!(manager.stats().closed(CloseReason::Expired), all);
        assert!(turns >= CONNECTIONS.div_ceil(BATCH) as u64, "{turns} turns");
    }
    assert_eq!(sim.violations(), [""; 0]);
}
