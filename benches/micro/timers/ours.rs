//! The wheel of the pool. It is used as in the pool: the deadline in the wheel may be earlier than
//! the true deadline.

use crate::Timers;
use crate::ds::wheel::Wheel;
use crate::time::Tick;

/// Maximum entries that the pool takes from the wheel per turn.
const BATCH: usize = 256;

pub(crate) struct Pool {
    wheel: Wheel,
    /// The true deadlines, which the workers store in the pool.
    deadlines: Vec<u64>,
}

impl Timers for Pool {
    fn new(count: usize) -> Self {
        let mut wheel = Wheel::new(Tick(0));
        wheel.reserve(count);
        Self { wheel, deadlines: vec![0; count] }
    }

    fn arm(&mut self, index: usize, deadline: u64) {
        self.deadlines[index] = deadline;
        self.wheel.arm(index, Tick(deadline));
    }

    fn cancel(&mut self, index: usize) {
        self.wheel.cancel(index);
    }

    fn refresh(&mut self, index: usize, deadline: u64) {
        self.deadlines[index] = deadline;
    }

    fn expire(&mut self, now: u64) -> usize {
        let mut expired = 0;
        while self.wheel.next().is_some_and(|next| next.0 <= now) {
            for _ in 0..BATCH {
                let Some((index, at)) = self.wheel.pop(Tick(now)) else { break };
                let deadline = self.deadlines[index];
                if deadline > at.0 {
                    self.wheel.arm(index, Tick(deadline));
                } else {
                    expired += 1;
                }
            }
        }
        expired
    }
}
