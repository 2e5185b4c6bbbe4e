//! Strings of operations of any length in the simulated network: whatever two peers, a handle and
//! time do, everybody is told of one end, nothing is slept over, and all settles.

use arbtest::arbitrary::{Result, Unstructured};
use pool_manager::Framing;
use pool_manager::sim::Sim;

// Its other half, real sockets, is for the comparison with them.
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
    strings::play(&Sim::new(1), framing, &string);
    Ok(())
}
