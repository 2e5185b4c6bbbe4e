//! A connection pool on one thread: bounded workers, framing, deadlines and back-pressure on one
//! epoll or kqueue loop, for services that own one core.
//!
//! [`Manager::put`] gives a socket to a *worker*, a slot in a slab; or a listener does. The worker
//! reads as the socket becomes readable. When a request is complete, as [`Framing`] says, your
//! callback runs inline and may write a reply. `min_workers` keeps buffers warm, `max_workers`
//! caps the connections, deadlines end those that stall, and what a hostile network does to the
//! rest is contained: every queue, buffer and batch has a limit.
//!
//! ```no_run
//! use pool_manager::{Config, Framing, Manager};
//! use std::io::Write;
//!
//! let config = Config::new().framing(Framing::Drained);
//! let mut echo = Manager::new(config, |conn, body| conn.write_all(body))?;
//! echo.start()?;
//! echo.listen("127.0.0.1:6263")?;
//! echo.run()?;
//! # Ok::<(), pool_manager::Error>(())
//! ```
//!
//! # A body is a chunk of a stream
//! TCP has no messages. Unless a framing makes some, a body is whatever has arrived: `hello` may
//! come as `hel` and `lo`. The default framing, [`Framing::Filled`], waits for a full buffer, the
//! end of file or the deadline; where the peer sends a request and waits for the reply, say
//! [`Framing::Drained`], or better, give the stream frames: [`Framing::Delimited`],
//! [`Framing::LengthPrefixed`], [`Framing::custom`].
//!
//! # What is promised
//! - One thread, no locks on the path, and nothing re-enters: a callback sees its own
//!   [`Conn`]ection and a [`Commands`] for what it wants done to others.
//! - Every connection that was put ends with exactly one [`Handler::closed`], after which no
//!   callback names it, but that of what was sent to it too late ([`Handler::undelivered`]). A
//!   [`ConnId`] is never reused.
//! - A reply that was accepted goes out in order, each byte once, or is counted as unsent. A last
//!   reply survives input that nobody will read.
//! - A deadline never fires early. Reads go before deadlines: a peer that spoke in time is heard.
//! - A warm request costs no allocation, one read, one write and its share of one wait. Unix
//!   sockets, boxed transports and systems other than Linux need a second read, which finds nothing.
//! - Errors and panics of a callback end its connection and nothing else.
//!
//! What this is worth against peers that mean harm, with each limit and the test that shows it, is
//! in `docs/threat-model.md`.
//!
//! # What is not
//! UDP, `async`, HTTP, DNS, Windows, more than one thread inside a manager. For more cores run
//! one manager on each, with `SO_REUSEPORT`. Safe Rust's standard library cannot set
//! `SO_LINGER`, look at the descriptor limit or choose a backlog: hand over a socket that
//! `socket2` has configured. With `panic = "abort"` a panic ends the process.
//!
//! # What is logged
//! Through `log`: the life cycle at `info`; at `warn` what an operator must act on, at most once a
//! second of a kind; at `error` an end that nobody asked for. Single connections are the business
//! of `debug` and of [`Config::debug`], their bytes of nobody. A logger that waits, for a full
//! pipe behind stderr, makes the loop wait; at the default level nothing that peers do every day
//! gets so far.
//!
//! # The rooms
//! In reading order, each beginning with what it is and what it does not know:
//!
//! | room | what it is |
//! |---|---|
//! | `manager` | the life cycle, and the turn: start here |
//! | `worker` | one connection: flush, frame, read, call back, flush |
//! | `pool` | the slab of workers, the ready list, the wheel |
//! | `framing`, `buffer`, `output` | bytes in, frames out, replies |
//! | `wheel`, `links`, `time` | deadlines |
//! | `state`, `handler`, `command` | what a callback sees, and what it can ask for |
//! | `proxy`, `trust`, `peers` | whom a balancer passes on, who is believed, how many of each |
//! | `outgoing` | what is asked for with a connection that begins here |
//! | `listener`, `unix`, `lingering` | how connections begin and how they end |
//! | `handle`, `mailbox`, `permits` | where other threads meet the loop |
//! | [`backend`] | where sockets, readiness and time come from |
//! | `network`, `rng` | a simulated world (feature `sim`) |
//! | `panics` | where a panic of user code ends |
//! | `buffers`, `stats`, `report`, `config`, `error`, `socket`, `id` | the values they pass around |

#[cfg(not(unix))]
compile_error!("pool-manager needs epoll or kqueue: it runs on Unix systems only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("pool-manager packs an index and a generation into one token: it needs 64 bits");

mod buffers;
mod command;
mod commands;
mod config;
mod conn_state;
mod connect_options;
mod ds;
mod error;
mod framing;
mod handle;
mod handler;
mod id;
mod ip_net;
mod lingering;
mod listen_options;
mod listeners;
mod manager;
mod panics;
mod peer_counts;
mod pool;
mod proxy_protocol;
mod report;
mod shared;
#[cfg(feature = "sim")]
mod simnet;
mod socket;
mod stats;
pub mod sys;
mod time;
mod worker;

pub use commands::Commands;
pub use config::{Config, ConfigError, ERROR_SERVER_BUSY, Overload, RateLimit};
pub use conn_state::{Cause, CloseReason};
pub use connect_options::ConnectOptions;
pub use error::{Error, PutError};
pub use framing::{Frame, FrameFn, Framing, Prefix};
pub use handle::Handle;
pub use handler::{Closed, Conn, Handler};
pub use id::ConnId;
pub use ip_net::{IpNet, ParseIpNetError};
pub use listen_options::ListenOptions;
pub use manager::Manager;
pub use report::{StopReport, Turn};
pub use socket::{Socket, Transport};
pub use stats::Stats;
pub use sys::ListenSocket;
#[cfg(feature = "sim")]
pub use sys::sim;

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/cookbook.md")]
pub mod cookbook {}

/// The README's code blocks are tests, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
