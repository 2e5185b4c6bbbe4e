//! A rate limit that is changed again and again while requests wait: from each change on no more
//! come than the new one allows, and they come as soon as it does.

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use pool_manager::sim::{Rng, Sim};
use pool_manager::{Config, Conn, Framing, Manager, RateLimit};

/// Lines that wait at any time: more than one turn delivers.
const WAITING: usize = 1_000;
/// By how much requests may be early or late: what time is counted in, and a turn.
const TICKS: Duration = Duration::from_millis(3);

fn limit(rng: &mut Rng) -> Option<RateLimit> {
    let rate = [1, 5, 60, 700, 3_000][rng.below(5)];
    let limit = RateLimit::per_second(rate).burst(1 + rng.below(50) as u32);
    rng.permille(900).then_some(limit)
}

fn config(limit: Option<RateLimit>) -> Config {
    let config = Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(Duration::MAX);
    config.rate_limit(limit)
}

fn play(seed: u64) -> u64 {
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
    // When the limit was changed, after how many requests, and when the last one was served.
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
        let (began, patience) = (served.get(), 1 + rng.below(40));
        manager.turn(Some(Duration::from_millis(patience as u64))).unwrap();
        let now = sim.now();
        if served.get() > began {
            last = now;
        }
        let gap = current.map_or(Duration::ZERO, |limit| Duration::from_secs(1) / limit.per_second);
        assert!(
            now <= last + gap + TICKS,
            "seed {seed}: {current:?}: none since {last:?}, {now:?}"
        );
        if let Some(limit) = current {
            let time = (now + TICKS).saturating_sub(since).as_micros() as usize;
            let max = limit.per_second as usize * time / 1_000_000 + limit.burst as usize + 1;
            let came = served.get() - before;
            assert!(came <= max, "seed {seed}: {limit:?}: {came} since {since:?}, {now:?}");
        }
    }
    manager.stats().throttled
}

#[test]
fn a_limit_that_changes_is_kept_from_then_on_and_holds_nobody_up() {
    let throttled: u64 = (0..300).map(play).sum();
    assert!(throttled > 10_000, "{throttled}");
}
