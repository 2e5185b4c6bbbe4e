//! The fuzz drivers, for a bounded time each. `tests/fuzz` runs the same ones under cargo-fuzz; those
//! of the private rooms, the framing and the wheel, are run by the tests of these rooms.
//!
//! A failure prints its seed; `ARBTEST_SEED=0x… cargo test --test fuzzing NAME` plays it again.
//! What either of them found has a test with a name.

#[path = "drivers/config.rs"]
mod config;
#[path = "drivers/echo.rs"]
mod echo;
#[cfg(feature = "sim")]
#[path = "drivers/operations.rs"]
mod operations;

use arbtest::arbitrary::{Result, Unstructured};

/// Runs `driver` on random input for this long.
fn fuzz(millis: u64, driver: fn(&mut Unstructured<'_>) -> Result<()>) {
    arbtest::arbtest(driver).size_max(8 << 10).budget_ms(millis);
}

#[test]
fn a_stream_comes_back_framed_alike_wherever_it_is_cut() {
    fuzz(2_500, echo::drive);
}

#[cfg(feature = "sim")]
#[test]
fn a_stream_does_so_in_a_simulated_network_that_loses_time_and_order() {
    fuzz(2_500, echo::drive_simulated);
}

#[test]
fn any_configuration_is_refused_as_a_whole_or_runs() {
    fuzz(1_500, config::drive);
}

#[cfg(feature = "sim")]
#[test]
fn any_string_of_operations_ends_well() {
    fuzz(2_500, operations::drive);
}
