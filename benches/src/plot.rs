//! Plots as SVG text. The text is small and contains no scripts or fonts. The plots are readable on
//! light and on dark pages. This module does no I/O.

mod bars;
mod latency;
mod svg;

pub use self::bars::{Bars, Group, bars};
pub use self::latency::{Series, latency};
