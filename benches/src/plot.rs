//! Plots as SVG text: small, without scripts or embedded fonts, readable on light and on dark
//! pages. Pure.

mod bars;
mod latency;
mod svg;

pub use self::bars::{Bars, Group, bars};
pub use self::latency::{Series, latency};
