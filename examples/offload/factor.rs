//! Factor: work that takes its time, by trial division. Pure.

use std::fmt::Write;

/// How many divisions go by before it asks whether it still has to.
const PATIENCE: u64 = 1 << 16;

/// A number and its prime factors, as `factor` of the GNU coreutils writes them; `None` if it was
/// given up. Takes as many divisions as the root of the number.
pub(crate) fn factor(number: u64, given_up: &dyn Fn() -> bool) -> Option<String> {
    let mut text = format!("{number}:");
    let mut rest = number;
    let mut divisor = 2;
    let mut tried = 0;
    while rest > 1 {
        if divisor > rest / divisor {
            divisor = rest;
        }
        while rest % divisor == 0 && rest > 1 {
            rest /= divisor;
            // Writing to a string cannot fail.
            let _ = write!(text, " {divisor}");
        }
        divisor += if divisor == 2 { 1 } else { 2 };
        tried += 1;
        if tried % PATIENCE == 0 && given_up() {
            return None;
        }
    }
    Some(text)
}
