//! Timers: the wheel of the pool beside what else keeps deadlines. Three things that a loop with
//! 100,000 connections does: arm a deadline and cancel it, move one that traffic refreshed, and
//! see a million of them expire.
//!
//! Each is used as its own documentation would have it: deadlines that are moved are stored by
//! the pool and re-filed when their entry comes early, reset in `DelayQueue`, filed anew in the
//! others. `DelayQueue` runs on a current-thread runtime whose clock is paused, so that it neither
//! sleeps nor reads a clock.

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

mod ordered;
mod ours;
mod queue;
#[path = "../quick.rs"]
mod quick;

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
};
use pool_manager::sim::Rng;

/// Deadlines by index, in whole milliseconds.
trait Timers {
    fn new(count: usize) -> Self;
    /// Of an index that is not armed.
    fn arm(&mut self, index: usize, deadline: u64);
    /// Of an index that is armed.
    fn cancel(&mut self, index: usize);
    /// Of an index that is armed, to a later time.
    fn refresh(&mut self, index: usize, deadline: u64);
    /// Lets time come to `now`, and tells how many expired.
    fn expire(&mut self, now: u64) -> usize;
}

const ARMED: usize = 100_000;
const EXPIRING: usize = 1_000_000;

/// Operations measured at once.
const OPERATIONS: u64 = 1_000;

/// Deadlines are within a minute.
const SPAN: usize = 60_000;

/// Milliseconds from one look at what has expired to the next.
const LOOK: u64 = 10;

fn deadlines(count: usize) -> Vec<u64> {
    let mut rng = Rng::new(1);
    (0..count).map(|_| 1 + rng.below(SPAN) as u64).collect()
}

fn arm_all<T: Timers>(timers: &mut T, deadlines: &[u64]) {
    for (index, &deadline) in deadlines.iter().enumerate() {
        timers.arm(index, deadline);
    }
}

/// [`ARMED`] timers, all of them armed.
fn armed<T: Timers>() -> T {
    let mut timers = T::new(ARMED);
    arm_all(&mut timers, &deadlines(ARMED));
    timers
}

/// Which timers are touched, and to when they are moved.
fn touches() -> Vec<(usize, u64)> {
    let mut rng = Rng::new(2);
    (0..OPERATIONS).map(|_| (rng.below(ARMED), (SPAN + rng.below(SPAN)) as u64)).collect()
}

fn arm_and_cancel<T: Timers>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str) {
    let (mut timers, touches) = (armed::<T>(), touches());
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            for &(index, deadline) in &touches {
                timers.cancel(index);
                timers.arm(index, black_box(deadline));
            }
        });
    });
}

fn refresh<T: Timers>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str) {
    let (mut timers, touches) = (armed::<T>(), touches());
    let mut later = 0;
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            later += 1;
            for &(index, deadline) in &touches {
                timers.refresh(index, black_box(deadline + later));
            }
        });
    });
}

/// Arms a million and sees them expire: what is cheap to file may be dear to take out.
fn expire<T: Timers>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str) {
    group.bench_function(name, |bencher| {
        bencher.iter_batched_ref(
            || (T::new(EXPIRING), deadlines(EXPIRING)),
            |(timers, deadlines)| {
                arm_all(timers, deadlines);
                // As often as a loop with much to do would look; one more, for who rounds up.
                let looks = (0..=SPAN as u64 + LOOK).step_by(LOOK as usize);
                let all: usize = looks.map(|now| timers.expire(now)).sum();
                assert_eq!(all, EXPIRING, "all of them came");
            },
            BatchSize::PerIteration,
        );
    });
}

macro_rules! all {
    ($measure:ident, $group:expr) => {
        $measure::<ours::Pool>($group, "pool-manager");
        $measure::<queue::Queue>($group, "DelayQueue");
        $measure::<ordered::Heap>($group, "BinaryHeap");
        $measure::<ordered::Tree>($group, "BTreeSet");
    };
}

fn timers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("arm and cancel, 100,000 armed");
    group.throughput(Throughput::Elements(OPERATIONS));
    all!(arm_and_cancel, &mut group);
    group.finish();

    let mut group = criterion.benchmark_group("refresh, 100,000 armed");
    group.throughput(Throughput::Elements(OPERATIONS));
    all!(refresh, &mut group);
    group.finish();

    let mut group = criterion.benchmark_group("1,000,000 armed and expired");
    group.throughput(Throughput::Elements(EXPIRING as u64));
    all!(expire, &mut group);
    group.finish();
}

criterion_group! {
    name = all;
    config = quick::quick(10);
    targets = timers
}
criterion_main!(all);
