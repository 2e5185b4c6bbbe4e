//! Data structures: pure values, without I/O, clock or threads.

pub(crate) mod buffer;
pub(crate) mod index_list;
pub(crate) mod output;
pub(crate) mod wheel;
