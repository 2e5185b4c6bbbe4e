//! Tests of the pool over real sockets, one module per topic. The test names state the behaviour.

#[path = "../support/mod.rs"]
mod support;

mod admission;
mod adversarial;
mod back_pressure;
mod connect;
mod control;
mod deadlines;
mod endings;
mod framing;
mod half_open;
mod handle;
mod hooks;
mod incomplete;
mod large;
mod ledger;
mod life_cycle;
mod limits;
mod listener;
mod pauses;
mod proxy_protocol;
mod random;
mod rate;
mod restarts;
mod scripted;
mod transport;
mod unix_paths;
mod unix_sockets;
