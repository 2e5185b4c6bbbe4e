//! Timers: compares the wheel of the pool with other timer structures. Measures three operations
//! of a loop with 100,000 connections: arm and cancel a deadline, refresh a deadline after traffic,
//! and expire a million deadlines.
//!
//! Each structure is used in its recommended way. To refresh a deadline, the pool stores the new
//! deadline and re-arms the entry when the old one expires. `DelayQueue` resets the entry. The
//! other structures remove the entry and insert a new one. `DelayQueue` runs on a current-thread
//! runtime with a paused clock, so that it neither sleeps nor reads a clock.

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
    /// Arms an index that is not armed.
    fn arm(&mut self, index: usize, deadline: u64);
    /// Cancels an index that is armed.
    fn cancel(&mut self, index: usize);
    /// Moves an index that is armed to a later deadline.
    fn refresh(&mut self, index: usize, deadline: u64);
    /// Advances the time to `now`. Returns the number of expired deadlines.
    fn expire(&mut self, now: u64) -> usize;
}

const ARMED: usize = 100_000;
const EXPIRING: usize = 1_000_000;

/// Operations per iteration.
const OPERATIONS: u64 = 1_000;

/// Maximum deadline in milliseconds: a minute.
const SPAN: usize = 60_000;

/// Milliseconds between two calls of [`Timers::expire`].
const INTERVAL: u64 = 10;

fn deadlines(count: usize) -> Vec<u64> {
    let mut rng = Rng::new(1);
    (0..count).map(|_| 1 + rng.below(SPAN) as u64).collect()
}

fn arm_all<T: Timers>(timers: &mut T, deadlines: &[u64]) {
    for (index, &deadline) in deadlines.iter().enumerate() {
        timers.arm(index, deadline);
    }
}

/// Returns [`ARMED`] timers, all of them armed.
fn armed<T: Timers>() -> T {
    let mut timers = T::new(ARMED);
    arm_all(&mut timers, &deadlines(ARMED));
    timers
}

/// Returns the timers of an iteration and their new deadlines.
fn operations() -> Vec<(usize, u64)> {
    let mut rng = Rng::new(2);
    (0..OPERATIONS).map(|_| (rng.below(ARMED), (SPAN + rng.below(SPAN)) as u64)).collect()
}

fn arm_and_cancel<T: Timers>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str) {
    let (mut timers, operations) = (armed::<T>(), operations());
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            for &(index, deadline) in &operations {
                timers.cancel(index);
                timers.arm(index, black_box(deadline));
            }
        });
    });
}

fn refresh<T: Timers>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str) {
    let (mut timers, operations) = (armed::<T>(), operations());
    let mut later = 0;
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            later += 1;
            for &(index, deadline) in &operations {
                timers.refresh(index, black_box(deadline + later));
            }
        });
    });
}

/// Arms and expires a million deadlines. Both are measured together, because a structure with cheap
/// insertion may have expensive removal.
fn expire<T: Timers>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str) {
    group.bench_function(name, |bencher| {
        bencher.iter_batched_ref(
            || (T::new(EXPIRING), deadlines(EXPIRING)),
            |(timers, deadlines)| {
                arm_all(timers, deadlines);
                // Polls as often as a busy loop, and once more for structures that round up.
                let times = (0..=SPAN as u64 + INTERVAL).step_by(INTERVAL as usize);
                let all: usize = times.map(|now| timers.expire(now)).sum();
                assert_eq!(all, EXPIRING, "all deadlines expire");
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
