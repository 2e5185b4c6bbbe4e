//! The pool's behaviour over real sockets, topic by topic. Test names read as its specification.

#[path = "../support/mod.rs"]
mod support;

mod back_pressure;
mod connect;
mod deadlines;
mod endings;
mod framing;
mod handle;
mod hooks;
mod hostile;
mod large;
mod ledger;
mod life_cycle;
mod limits;
mod listener;
mod newcomers;
mod proxied;
mod random;
mod rate;
mod scripted;
mod transport;
mod uds;
mod unix_paths;
