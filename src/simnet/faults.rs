//! Faults: what goes wrong in a simulated network, and how often.

use crate::simnet::rng::Rng;

/// How often things go wrong, in thousandths of the occasions.
///
/// ```
/// use pool_manager::sim::Faults;
/// assert_eq!(Faults::none().short_reads, 0);
/// assert_ne!(Faults::swarm(1), Faults::swarm(2));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// Reads give less than there is.
    pub short_reads: u16,
    /// Writes take less than there is room for.
    pub short_writes: u16,
    /// Reads, writes and waits are interrupted by a signal.
    pub interrupts: u16,
    /// Events are reported of sockets that are not ready.
    pub spurious_events: u16,
    /// Events are reported of sockets that are gone.
    pub stale_events: u16,
    /// A wait hands out only some of the events; the others keep.
    pub truncated_waits: u16,
    /// A read fails, and the connection with it.
    pub failed_reads: u16,
    /// A write fails, and the connection with it.
    pub failed_writes: u16,
    /// A connection cannot begin.
    pub failed_connects: u16,
    /// Registering fails.
    pub failed_registers: u16,
    /// Waiting fails for another reason than a signal.
    pub failed_waits: u16,
    /// Starting fails.
    pub failed_starts: u16,
    /// Accepting fails for the connection.
    pub aborted_accepts: u16,
    /// Accepting fails for want of descriptors in the whole system.
    pub starved_accepts: u16,
    /// How many connections the process has descriptors for: accepting and connecting fail for
    /// those beyond; 0 for any number.
    pub descriptors: usize,
    /// A reset destroys what was not yet read.
    pub destructive_resets: u16,
    /// The clock jumps ahead by up to two hours: the process was suspended.
    pub clock_jumps: u16,
    /// Read and write readiness are reported apart, as kqueue does, rather than merged as epoll
    /// does: all of the time or never.
    pub split_events: bool,
}

impl Faults {
    /// Nothing goes wrong.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// A random subset of the faults with very different weights (Groce et al., "Swarm
    /// testing", ISSTA 2012): what never happens together with everything else is found, too.
    #[must_use]
    pub fn swarm(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5157_4152_4d21);
        let mut weight = |max: usize| match rng.below(4) {
            0 | 1 => 0,
            2 => 1 + rng.below(max / 8 + 1) as u16,
            _ => rng.below(max + 1) as u16,
        };
        Self {
            short_reads: weight(900),
            short_writes: weight(900),
            interrupts: weight(300),
            spurious_events: weight(500),
            stale_events: weight(500),
            truncated_waits: weight(800),
            failed_reads: weight(60),
            failed_writes: weight(60),
            failed_registers: weight(200),
            failed_waits: weight(5),
            failed_starts: weight(500),
            aborted_accepts: weight(300),
            starved_accepts: weight(300),
            descriptors: usize::from(weight(8)),
            destructive_resets: weight(1000),
            clock_jumps: weight(20),
            split_events: weight(1) > 0,
            failed_connects: weight(300),
        }
    }
}
