//! Permits. Each connection needs one permit. `max_workers` limits the number of permits.
//!
//! A permit is taken in one atomic step, before a connection is queued or gets a worker. Every
//! thread therefore learns at once whether all workers are taken. No permit is issued beyond the
//! maximum.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[derive(Debug)]
pub(crate) struct Permits {
    taken: AtomicUsize,
    /// The maximum. `usize::MAX` means no maximum.
    max: AtomicUsize,
    /// Number of connections that any thread refused because all permits were taken.
    refused: AtomicU64,
}

impl Default for Permits {
    fn default() -> Self {
        Self {
            taken: AtomicUsize::new(0),
            max: AtomicUsize::new(usize::MAX),
            refused: AtomicU64::new(0),
        }
    }
}

impl Permits {
    /// Takes a permit and returns true, or returns false if all are taken.
    pub(crate) fn try_acquire(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < max).then_some(taken + 1)
            })
            .is_ok()
    }

    /// Takes a permit and returns true. If all are taken, counts a refusal and returns false.
    pub(crate) fn try_acquire_or_count(&self) -> bool {
        let taken = self.try_acquire();
        if !taken {
            self.count_refused();
        }
        taken
    }

    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Releases a permit.
    pub(crate) fn release(&self) {
        let taken = self.taken.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(taken > 0, "released a permit that was not taken");
    }

    pub(crate) fn any_free(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < self.max()
    }

    pub(crate) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Sets the maximum. If the maximum is lowered, connections keep the permits that they have.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn two_threads_never_acquire_more_than_the_maximum() {
        for _ in 0..200 {
            let permits = Permits::default();
            permits.set_max(5);
            let takers = || (0..4).filter(|_| permits.try_acquire()).count();
            let taken = thread::scope(|scope| {
                let other = scope.spawn(takers);
                takers() + other.join().unwrap()
            });
            assert_eq!(taken, 5);
            assert!(!permits.any_free());
        }
    }

    #[test]
    fn lowering_the_maximum_revokes_no_permit() {
        let permits = Permits::default();
        assert!((0..3).all(|_| permits.try_acquire()), "there is no maximum yet");
        permits.set_max(2);
        assert!(!permits.try_acquire());
        permits.release();
        assert!(!permits.try_acquire(), "the count is still at the maximum");
        permits.release();
        assert!(permits.try_acquire());
    }
}
