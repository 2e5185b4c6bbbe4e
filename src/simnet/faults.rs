//! The faults of a simulated network, and their probabilities.

use crate::simnet::rng::Rng;

/// The frequency of each fault, per thousand occasions.
///
/// ```
/// use pool_manager::sim::Faults;
/// assert_eq!(Faults::none().short_reads, 0);
/// assert_ne!(Faults::swarm(1), Faults::swarm(2));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// A read returns fewer bytes than possible.
    pub short_reads: u16,
    /// A write takes fewer bytes than possible.
    pub short_writes: u16,
    /// A read, write, accept or wait is interrupted by a signal.
    pub interrupts: u16,
    /// An event is reported for a socket that is not ready.
    pub spurious_events: u16,
    /// An event is reported for a socket that no longer exists.
    pub stale_events: u16,
    /// A wait returns only a part of the events. Later waits return the others.
    pub truncated_waits: u16,
    /// A read fails and breaks the connection.
    pub failed_reads: u16,
    /// A write fails and breaks the connection.
    pub failed_writes: u16,
    /// An outgoing connection cannot be started.
    pub failed_connects: u16,
    /// Registering a socket fails.
    pub failed_registers: u16,
    /// A wait fails for a reason other than a signal.
    pub failed_waits: u16,
    /// Starting the backend fails.
    pub failed_starts: u16,
    /// Accepting fails for one connection.
    pub aborted_accepts: u16,
    /// Accepting fails because the system has no descriptors left.
    pub starved_accepts: u16,
    /// Maximum number of open connections, as if each used one of the process's descriptors. When
    /// this number is reached, accepting and connecting fail. 0 means no limit.
    pub descriptors: usize,
    /// A reset destroys the bytes that were not read yet.
    pub destructive_resets: u16,
    /// The clock jumps ahead by up to two hours, as if the process had been suspended.
    pub clock_jumps: u16,
    /// Read and write readiness are reported in separate events, as kqueue does. If false, they are
    /// reported in one event, as epoll does. This is not a frequency, because it applies always or
    /// never.
    pub split_events: bool,
}

impl Faults {
    /// Creates a configuration without faults.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Returns a random subset of the faults. Their probabilities differ widely (Groce et al.,
    /// "Swarm testing", ISSTA 2012). Such a subset finds bugs that are hidden when all faults
    /// happen together.
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
