//! `tokio_util::time::DelayQueue` on a runtime with a paused clock.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, advance, pause};
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

use crate::Timers;

pub(crate) struct Queue {
    runtime: Runtime,
    delays: DelayQueue<usize>,
    keys: Vec<Option<Key>>,
    start: Instant,
    now: u64,
}

impl Queue {
    fn at(&self, deadline: u64) -> Instant {
        self.start + Duration::from_millis(deadline)
    }
}

impl Timers for Queue {
    fn new(count: usize) -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let (delays, start) = runtime.block_on(async {
            pause();
            (DelayQueue::with_capacity(count), Instant::now())
        });
        Self { runtime, delays, keys: vec![None; count], start, now: 0 }
    }

    fn arm(&mut self, index: usize, deadline: u64) {
        let at = self.at(deadline);
        let _entered = self.runtime.enter();
        self.keys[index] = Some(self.delays.insert_at(index, at));
    }

    fn cancel(&mut self, index: usize) {
        let key = self.keys[index].take().expect("the index is armed");
        self.delays.remove(&key);
    }

    fn refresh(&mut self, index: usize, deadline: u64) {
        let at = self.at(deadline);
        let key = self.keys[index].expect("the index is armed");
        self.delays.reset_at(&key, at);
    }

    fn expire(&mut self, now: u64) -> usize {
        let elapsed = Duration::from_millis(now - self.now);
        self.now = now;
        let (delays, keys) = (&mut self.delays, &mut self.keys);
        self.runtime.block_on(unconstrained(async {
            advance(elapsed).await;
            let mut context = Context::from_waker(Waker::noop());
            let mut expired = 0;
            while let Poll::Ready(Some(entry)) = delays.poll_expired(&mut context) {
                keys[entry.into_inner()] = None;
                expired += 1;
            }
            expired
        }))
    }
}
