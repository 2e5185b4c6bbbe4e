//! A million deadlines, of which ten thousand pass at the same time. No turn handles more than one
//! batch, and no deadline is late.

use std::time::Duration;

use pool_manager::sim::Sim;
use pool_manager::{CloseReason, Config, Conn, Manager};

/// Maximum deadlines per turn, as stated in `docs/proof.md`.
const BATCH: usize = 256;

const CONNECTIONS: usize = 10_000;
const WAVES: u64 = 100;

#[test]
fn a_million_deadlines_expire_in_bounded_batches_on_time() {
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
        // Deadlines and waits are both rounded up to a millisecond.
        assert!(late < Duration::from_millis(2), "{late:?}");
        let all = wave * CONNECTIONS as u64;
        assert_eq!(manager.stats().closed(CloseReason::Expired), all);
        assert!(turns >= CONNECTIONS.div_ceil(BATCH) as u64, "{turns} turns");
    }
    assert_eq!(sim.violations(), [""; 0]);
}
