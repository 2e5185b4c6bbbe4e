//! What the programs that measure have in common.

pub mod client;
pub mod human;
pub mod plot;
