//! The pool's behaviour over real sockets, topic by topic. Test names read as its specification.

#[path = "../support/mod.rs"]
mod support;

mod framing;
