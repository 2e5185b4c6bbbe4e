//! Your own handler in the real loop, in a network that is hostile and happens twice: copy this.
//!
//! The service under test keeps a counter for each connection; `add N` adds to it and tells the
//! sum. Peers are played by hand: they cut their requests anywhere, and some go before they are
//! answered. Faults are drawn from the seed, time is virtual, and a seed that fails can be run
//! again as often as it takes to understand it.
//!
//! ```text
//! cargo run --features sim --example seeded          # seeds 0 to 999
//! cargo run --features sim --example seeded -- 42    # one of them
//! ```

use std::io::{self, Read, Write};
use std::time::Duration;

use pool_manager::sim::{Faults, Rng, Sim};
use pool_manager::{Config, Conn, Framing, Handler, Manager};

/// The service: what you would also give to `Manager::with_handler`.
struct Counter;

impl Handler for Counter {
    type Session = u64;

    fn request(&mut self, conn: &mut Conn<'_>, sum: &mut u64, line: &[u8]) -> io::Result<()> {
        let number = line.strip_prefix(b"add ").and_then(|text| std::str::from_utf8(text).ok());
        let Some(number) = number.and_then(|text| text.parse::<u64>().ok()) else {
            return conn.write_all(b"error\n");
        };
        *sum += number;
        writeln!(conn, "{sum}")
    }
}

/// One run: a peer adds some numbers while others come and go. Returns the run's digest.
fn run(seed: u64) -> Result<u64, Box<dyn std::error::Error>> {
    let mut rng = Rng::new(seed);
    // What goes wrong: all that a seed draws, but nothing that ends an honest connection.
    let mut faults = Faults::swarm(seed);
    (faults.failed_reads, faults.failed_writes, faults.failed_registers) = (0, 0, 0);
    (faults.failed_waits, faults.failed_starts, faults.clock_jumps) = (0, 0, 0);
    let sim = Sim::with_faults(seed, faults);

    let config = Config::new().framing(Framing::Delimited(b'\n')).max_workers(8);
    let mut manager = Manager::with_backend(config, Counter, sim.clone())?;
    manager.start()?;
    let listener = sim.listener();
    manager.listen_on(listener.clone())?;

    // Small buffers at both ends, so that reads and writes come short.
    let (mut peer, ours) = sim.pair_with(1 + rng.below(8), 1 + rng.below(16));
    manager.put(ours)?;
    let numbers: Vec<u64> = (0..10).map(|_| rng.below(100) as u64).collect();
    let mut request: Vec<u8> =
        numbers.iter().flat_map(|number| format!("add {number}\n").into_bytes()).collect();
    let mut replies = String::new();

    while replies.lines().count() < numbers.len() || !replies.ends_with('\n') {
        // A piece of the request, as much of it as there is room for.
        let piece = request.len().min(1 + rng.below(10));
        if let Ok(count) = peer.write(&request[..piece]) {
            request.drain(..count);
        }
        if rng.permille(100) {
            let mut visitor = listener.connect();
            visitor.write_all(b"add 1000\nadd 10")?;
            drop(visitor);
        }
        manager.turn(Some(Duration::from_millis(1)))?;
        let mut bytes = [0; 16];
        if let Ok(count @ 1..) = peer.read(&mut bytes) {
            replies.push_str(std::str::from_utf8(&bytes[..count])?);
        }
        assert!(manager.stats().turns < 10_000, "it gets nowhere: {}", manager.stats());
    }

    // Every sum is right, whatever happened to the others.
    let mut sum = 0;
    let sums = numbers.iter().map(|number| {
        sum += number;
        format!("{sum}\n")
    });
    assert_eq!(replies, sums.collect::<String>());
    drop(peer);
    manager.stop()?;
    assert_eq!(sim.violations(), [""; 0]);
    Ok(sim.digest())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seeds = match std::env::args().nth(1) {
        Some(seed) => seed.parse()?..=seed.parse()?,
        None => 0..=999,
    };
    for seed in seeds.clone() {
        let digest = run(seed).map_err(|error| format!("seed {seed}: {error}"))?;
        assert_eq!(digest, run(seed)?, "seed {seed} does not do the same twice");
    }
    println!("seeds {} to {}: every sum was right, twice", seeds.start(), seeds.end());
    Ok(())
}
