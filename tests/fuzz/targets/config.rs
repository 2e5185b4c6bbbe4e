//! Runs the fuzz driver for configurations.
#![no_main]

use arbtest::arbitrary::Unstructured;

#[path = "../../drivers/config.rs"]
mod driver;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Input that is too short ends the case early.
    let _ = driver::drive(&mut Unstructured::new(bytes));
});
