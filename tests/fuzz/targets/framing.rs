//! Runs the fuzz driver for the framing, and includes the private modules that it needs.
#![no_main]
#![allow(dead_code)]

use arbtest::arbitrary::Unstructured;

#[path = "../../../src/ds/buffer.rs"]
mod buffer;
#[path = "../../drivers/framing.rs"]
mod driver;
#[path = "../../../src/framing.rs"]
mod framing;
#[path = "../../../src/panics.rs"]
mod panics;

mod ds {
    pub(crate) use crate::buffer;
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Input that is too short ends the case early.
    let _ = driver::drive(&mut Unstructured::new(bytes));
});
