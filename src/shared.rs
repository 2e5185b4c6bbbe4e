//! Data that the loop shares with other threads. All other data belongs to the loop.

pub(crate) mod mailbox;
pub(crate) mod permits;
