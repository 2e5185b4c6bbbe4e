//! The wheel, with the private rooms that it needs; see the driver.
#![no_main]
#![allow(dead_code)]

use arbtest::arbitrary::Unstructured;

#[path = "../../drivers/wheel.rs"]
mod driver;
#[path = "../../../src/links.rs"]
mod links;
#[path = "../../../src/time.rs"]
mod time;
#[path = "../../../src/wheel.rs"]
mod wheel;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Input that is too short ends the case early.
    let _ = driver::drive(&mut Unstructured::new(bytes));
});
