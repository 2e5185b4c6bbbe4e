//! Tests a handler in the real loop, in a hostile but reproducible network. Copy this for your own
//! handler.
//!
//! The service keeps a counter for each connection: `add N` adds to it and replies with the sum.
//! The test plays the peers. They split their requests at any byte. Some peers leave before they
//! are answered. The seed determines the faults, and time is virtual, so a failed seed can be
//! replayed.
//!
//! ```text
//! cargo run --features sim --example seeded          # seeds 0 to 999
//! cargo run --features sim --example seeded -- 42    # one of them
//! ```

use std::io::{self, Read, Write};
use std::time::Duration;

use pool_manager::sim::{Faults, Rng, Sim};
use pool_manager::{Config, Conn, Framing, Handler, Manager};

/// The service: the handler that you would also give to `Manager::with_handler`.
struct Counter;

impl Handler for Counter {
    type Session = u64;

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<u64> {
        Ok(0)
    }

    fn request(&mut self, conn: &mut Conn<'_>, sum: &mut u64, line: &[u8]) -> io::Result<()> {
        let number = line.strip_prefix(b"add ").and_then(|text| std::str::from_utf8(text).ok());
        let Some(number) = number.and_then(|text| text.parse::<u64>().ok()) else {
            return conn.write_all(b"error\n");
        };
        *sum += number;
        writeln!(conn, "{sum}")
    }
}

/// Runs one seed: a peer adds numbers while other peers come and go. Returns the digest of the run.
fn run(seed: u64) -> Result<u64, Box<dyn std::error::Error>> {
    let mut rng = Rng::new(seed);
    // All faults of the seed, except those that can end a correct connection.
    let mut faults = Faults::swarm(seed);
    (faults.failed_reads, faults.failed_writes, faults.failed_registers) = (0, 0, 0);
    (faults.failed_waits, faults.failed_starts, faults.clock_jumps) = (0, 0, 0);
    let sim = Sim::with_faults(seed, faults);

    let config = Config::new().framing(Framing::Delimited(b'\n')).max_workers(8);
    let mut manager = Manager::with_backend(config, Counter, sim.clone())?;
    manager.start()?;
    let listener = sim.listener();
    manager.listen_on(listener.clone())?;

    // Small buffers at both ends cause short reads and writes.
    let (mut peer, ours) = sim.pair_with(1 + rng.below(8), 1 + rng.below(16));
    manager.put(ours)?;
    let numbers: Vec<u64> = (0..10).map(|_| rng.below(100) as u64).collect();
    let mut request: Vec<u8> =
        numbers.iter().flat_map(|number| format!("add {number}\n").into_bytes()).collect();
    let mut replies = String::new();

    while replies.lines().count() < numbers.len() || !replies.ends_with('\n') {
        // Write a piece of the request, as much of it as the connection takes.
        let piece = request.len().min(1 + rng.below(10));
        if let Ok(count) = peer.write(&request[..piece]) {
            request.drain(..count);
        }
        if rng.permille(100) {
            let mut other = listener.connect();
            other.write_all(b"add 1000\nadd 10")?;
            drop(other);
        }
        manager.turn(Some(Duration::from_millis(1)))?;
        let mut bytes = [0; 16];
        if let Ok(count @ 1..) = peer.read(&mut bytes) {
            replies.push_str(std::str::from_utf8(&bytes[..count])?);
        }
        assert!(manager.stats().turns < 10_000, "no progress: {}", manager.stats());
    }

    // All sums must be right, whatever the other peers did.
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
        assert_eq!(digest, run(seed)?, "seed {seed} differs between two runs");
    }
    println!("seeds {} to {}: all sums are right in both runs", seeds.start(), seeds.end());
    Ok(())
}
