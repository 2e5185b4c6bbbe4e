//! Settings with which all micro-benchmarks together take some minutes.

use std::time::Duration;

use criterion::Criterion;

/// Returns a configuration with short times and `samples` samples.
pub(crate) fn quick(samples: usize) -> Criterion {
    Criterion::default()
        .sample_size(samples)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}
