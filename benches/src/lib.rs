//! Code that the benchmark programs share.

pub mod client;
pub mod human;
pub mod plot;
