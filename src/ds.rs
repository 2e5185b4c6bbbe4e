//! Data structures that use no I/O, no clock and no threads.

pub(crate) mod buffer;
pub(crate) mod index_list;
pub(crate) mod output;
pub(crate) mod wheel;
