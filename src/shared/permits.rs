//! Places: how many connections there may be at a time, and how many there are.
//!
//! A place is taken before the socket goes anywhere, in one atomic step, so that the answer
//! "busy" is immediate on every thread and the count never passes the maximum. It knows nothing
//! of what takes the place.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Permits {
    taken: AtomicUsize,
    /// 0 for no maximum.
    max: AtomicUsize,
    /// How many connections were refused for want of a place, on any thread.
    refused: AtomicU64,
}

impl Permits {
    /// Takes a place, if one is free.
    pub(crate) fn try_acquire(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (max == 0 || taken < max).then_some(taken + 1)
            })
            .is_ok()
    }

    /// Takes a place if one is free, and counts a refusal if none is.
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

    /// Gives a place back.
    pub(crate) fn release(&self) {
        let taken = self.taken.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(taken > 0, "released a place that was not taken");
    }

    pub(crate) fn any_free(&self) -> bool {
        let max = self.max();
        max == 0 || self.taken.load(Ordering::Relaxed) < max
    }

    pub(crate) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Sets the maximum; those beyond a lower one keep their places.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn two_threads_never_take_more_than_there_are() {
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
    fn a_lowered_maximum_takes_nobody_s_place() {
        let permits = Permits::default();
        assert!((0..3).all(|_| permits.try_acquire()), "no maximum yet");
        permits.set_max(2);
        assert!(!permits.try_acquire());
        permits.release();
        assert!(!permits.try_acquire(), "still at the maximum");
        permits.release();
        assert!(permits.try_acquire());
    }
}
