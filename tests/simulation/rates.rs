//! A rate limit changes repeatedly while requests wait. After each change, no more requests are
//! delivered than the new limit allows, and no request waits longer than the limit requires.

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use pool_manager::sim::{Rng, Sim};
use pool_manager::{Config, Conn, Framing, Manager, RateLimit};

/// Number of requests that wait at any time. One turn does not deliver them all.
const WAITING: usize = 1_000;
/// Maximum time by which a request may be early or late, because of the resolution of the clock and
/// the duration of a turn.
const TOLERANCE: Duration = Duration::from_millis(3);

fn limit(rng: &mut Rng) -> Option<RateLimit> {
    let rate = [1, 5, 60, 700, 3_000][rng.below(5)];
    let limit = RateLimit::per_second(rate).burst(1 + rng.below(50) as u32);
    rng.permille(900).then_some(limit)
}

fn config(limit: Option<RateLimit>) -> Config {
    let config = Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(Duration::MAX);
    config.rate_limit(limit)
}

fn run(seed: u64) -> u64 {
    let (sim, mut rng) = (Sim::new(seed), Rng::new(seed));
    let served = Rc::new(Cell::new(0));
    let count = served.clone();
    let serve = move |_: &mut Conn<'_>, _: &[u8]| {
        count.set(count.get() + 1);
        Ok(())
    };
    let mut current = limit(&mut rng);
    let mut manager = Manager::with_backend(config(current), serve, sim.clone()).unwrap();
    manager.start().unwrap();
    let (mut peer, ours) = sim.pair();
    manager.put(ours).unwrap();
    // The time of the last change, the number of requests served before it, the time of the last
    // request, and the number of requests written.
    let (mut since, mut before, mut last, mut sent) = (sim.now(), 0, sim.now(), 0);
    for _ in 0..600 {
        let more = served.get() + WAITING - sent;
        peer.write_all(&b"x\n".repeat(more)).unwrap();
        sent += more;
        if rng.permille(40) {
            current = limit(&mut rng);
            manager.set_config(config(current)).unwrap();
            (since, before, last) = (sim.now(), served.get(), sim.now());
        }
        let (began, timeout) = (served.get(), 1 + rng.below(40));
        manager.turn(Some(Duration::from_millis(timeout as u64))).unwrap();
        let now = sim.now();
        if served.get() > began {
            last = now;
        }
        let interval =
            current.map_or(Duration::ZERO, |limit| Duration::from_secs(1) / limit.per_second);
        assert!(
            now <= last + interval + TOLERANCE,
            "seed {seed}: {current:?}: no request since {last:?}, now {now:?}"
        );
        if let Some(limit) = current {
            let time = (now + TOLERANCE).saturating_sub(since).as_micros() as usize;
            let max = limit.per_second as usize * time / 1_000_000 + limit.burst as usize + 1;
            let requests = served.get() - before;
            assert!(
                requests <= max,
                "seed {seed}: {limit:?}: {requests} requests since {since:?}, now {now:?}"
            );
        }
    }
    manager.stats().throttled
}

#[test]
fn requests_follow_a_changed_rate_limit_at_once() {
    let throttled: u64 = (0..300).map(run).sum();
    assert!(throttled > 10_000, "only {throttled} requests were delayed");
}
