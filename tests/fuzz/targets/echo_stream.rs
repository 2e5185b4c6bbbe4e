//! Runs the fuzz driver for byte streams, over sockets or in the simulated network.
#![no_main]

use arbtest::arbitrary::Unstructured;

#[path = "../../drivers/echo.rs"]
mod driver;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((world, bytes)) = bytes.split_first() else { return };
    let drive = if world % 2 == 0 { driver::drive } else { driver::drive_simulated };
    // Input that is too short ends the case early.
    let _ = drive(&mut Unstructured::new(bytes));
});
