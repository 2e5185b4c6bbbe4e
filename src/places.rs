//! Places: how many connections there may be at a time, and how many there are.
//!
//! A place is taken before the socket goes anywhere, in one atomic step, so that the answer
//! "busy" is immediate on every thread and the count never passes the maximum. It knows nothing
//! of what takes the place.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Places {
    taken: AtomicUsize,
    /// 0 for no maximum.
    most: AtomicUsize,
    /// How many connections were refused for want of a place, on any thread.
    refused: AtomicU64,
}

impl Places {
    /// Takes a place, if one is free.
    pub(crate) fn take(&self) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (most == 0 || taken < most).then_some(taken + 1)
            })
            .is_ok()
    }

    /// Takes a place if one is free, and counts a refusal if none is.
    pub(crate) fn take_or_count(&self) -> bool {
        let taken = self.take();
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
        let most = self.most();
        most == 0 || self.taken.load(Ordering::Relaxed) < most
    }

    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// Sets the maximum; those beyond a lower one keep their places.
    pub(crate) fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn two_threads_never_take_more_than_there_are() {
        for _ in 0..200 {
            let places = Places::default();
            places.set_most(5);
            let takers = || (0..4).filter(|_| places.take()).count();
            let taken = thread::scope(|scope| {
                let other = scope.spawn(takers);
                takers() + other.join().unwrap()
            });
            assert_eq!(taken, 5);
            assert!(!places.any_free());
        }
    }

    #[test]
    fn a_lowered_maximum_takes_nobody_s_place() {
        let places = Places::default();
        assert!((0..3).all(|_| places.take()), "no maximum yet");
        places.set_most(2);
        assert!(!places.take());
        places.release();
        assert!(!places.take(), "still at the maximum");
        places.release();
        assert!(places.take());
    }
}
