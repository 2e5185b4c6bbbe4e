//! Runs each fuzz driver for a bounded time. `tests/fuzz` runs the same drivers under cargo-fuzz.
//! The drivers of private modules, `framing` and `wheel`, run in the unit tests of these modules.
//!
//! A failure prints its seed. `ARBTEST_SEED=0x… cargo test --test fuzzing NAME` replays it. For
//! each bug that fuzzing has found, there is a separate test.

#[path = "drivers/config.rs"]
mod config;
#[path = "drivers/echo.rs"]
mod echo;
#[cfg(feature = "sim")]
#[path = "drivers/operations.rs"]
mod operations;

use arbtest::arbitrary::{Result, Unstructured};

/// Runs `driver` on random input for this number of milliseconds.
fn fuzz(millis: u64, driver: fn(&mut Unstructured<'_>) -> Result<()>) {
    arbtest::arbtest(driver).size_max(8 << 10).budget_ms(millis);
}

#[test]
fn a_stream_is_framed_alike_wherever_it_is_cut() {
    fuzz(2_500, echo::drive);
}

#[cfg(feature = "sim")]
#[test]
fn a_stream_is_framed_alike_in_a_simulated_network_with_faults() {
    fuzz(2_500, echo::drive_simulated);
}

#[test]
fn any_configuration_is_refused_as_a_whole_or_runs() {
    fuzz(1_500, config::drive);
}

#[cfg(feature = "sim")]
#[test]
fn any_string_of_operations_settles() {
    fuzz(2_500, operations::drive);
}
