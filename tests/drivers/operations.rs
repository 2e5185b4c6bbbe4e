//! Fuzz driver: runs strings of up to 200 operations in the simulated network. Every connection
//! must end exactly once, and the loop must not sleep while it has work.

use arbtest::arbitrary::{Result, Unstructured};
use pool_manager::Framing;
use pool_manager::sim::Sim;

// This driver does not use the parts of the module that need real sockets.
#[allow(dead_code)]
#[path = "../simulation/strings.rs"]
mod strings;

pub(crate) fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let framing = match u.int_in_range(0..=2)? {
        0 => Framing::Delimited(b'\n'),
        1 => Framing::Drained,
        _ => Framing::Filled,
    };
    let mut string = Vec::new();
    while !u.is_empty() && string.len() < 200 {
        string.push(u.int_in_range(0..=strings::SYMBOLS - 1)?);
    }
    strings::run(&Sim::new(1), framing, &string);
    Ok(())
}
