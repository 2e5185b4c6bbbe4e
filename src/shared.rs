//! The modules whose data other threads use. All other data belongs to the loop.

pub(crate) mod mailbox;
pub(crate) mod permits;
