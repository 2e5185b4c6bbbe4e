//! Runs the fuzz driver for the wheel, and includes the private modules that it needs.
#![no_main]
#![allow(dead_code)]

use arbtest::arbitrary::Unstructured;

#[path = "../../drivers/wheel.rs"]
mod driver;
#[path = "../../../src/ds/index_list.rs"]
mod index_list;
#[path = "../../../src/time.rs"]
mod time;
#[path = "../../../src/ds/wheel.rs"]
mod wheel;

mod ds {
    pub(crate) use crate::{index_list, wheel};
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Input that is too short ends the case early.
    let _ = driver::drive(&mut Unstructured::new(bytes));
});
