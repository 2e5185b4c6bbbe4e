//! Trial division, as an example of work that takes long. Pure.

use std::fmt::Write;

/// Number of divisions between two checks for cancellation.
const CHECK_INTERVAL: u64 = 1 << 16;

/// Returns a number and its prime factors in the format of `factor` of the GNU coreutils, or `None`
/// if `is_cancelled` has returned true. The number of divisors that are tried is at most about the
/// square root of the number.
pub(crate) fn factor(number: u64, is_cancelled: &dyn Fn() -> bool) -> Option<String> {
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
        if tried % CHECK_INTERVAL == 0 && is_cancelled() {
            return None;
        }
    }
    Some(text)
}
