//! Shared: the modules that other threads touch. The loop owns everything else.

pub(crate) mod mailbox;
pub(crate) mod permits;
