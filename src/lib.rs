//! A connection pool on one thread: bounded workers, framing, deadlines and back-pressure on one
//! epoll or kqueue loop, for services that run on one core.
//!
//! [`Manager::put`], or a listener, gives a socket to a *worker*, a slot in a slab. The worker
//! reads when the socket becomes readable. [`Framing`] defines when a request is complete. Your
//! callback then runs inline. It can write a reply.
//!
//! `min_workers` is the number of input buffers that stay allocated. Deadlines close connections
//! that stall. Every queue, buffer and batch has a limit, so that no single connection can exhaust
//! the resources of the process. Three limits are off by default: `max_workers`, `memory_limit` and
//! `max_per_peer`. Set these three limits if peers may be hostile. The first two apply to all
//! connections together.
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
//! TCP has no messages. If the framing does not define message boundaries, a body is the bytes that
//! have arrived so far: `hello` may arrive as `hel` and `lo`. The default framing,
//! [`Framing::Filled`], waits for a full buffer, the end of file or the deadline. If the peer sends
//! a request and waits for the reply, use [`Framing::Drained`] or, better, a framing with message
//! boundaries: [`Framing::Delimited`], [`Framing::LengthPrefixed`] or [`Framing::custom`].
//!
//! # Guarantees
//! - The loop runs on one thread and takes no lock on the fast path. Callbacks are not re-entrant.
//!   A callback has access to its own connection ([`Conn`]). For everything else, the callback
//!   queues [`Commands`].
//! - [`Handler::closed`] is called exactly once for each connection that gets a worker, unless the
//!   connection ends before its PROXY header is complete. After this call, only
//!   [`Handler::undelivered`] may be called with the id of the connection. A [`ConnId`] is never
//!   reused.
//! - [`Handle::put`] and [`Commands::put`] queue a command for a socket. The socket gets no worker
//!   if it cannot be registered, or if a stop begins before the command is executed. In both cases
//!   the socket is closed without a callback.
//! - Reply bytes are sent in order. Each byte is either sent once or counted as unsent. The output
//!   of a callback that panics is dropped and not counted.
//! - Unread input does not destroy the last reply. A connection that closes after a reply lingers:
//!   its input is read and discarded, for at most 5 s and 16 MiB. At most 256 sockets linger at a
//!   time.
//! - A deadline never fires early. Before a connection expires, it is read once more, so a peer
//!   that sent in time is served.
//! - In steady state, a request costs one read, one write and no allocation. One wait for readiness
//!   serves all requests of a turn. Unix sockets, boxed transports and systems other than Linux
//!   need a second read, which returns `WouldBlock`.
//! - An error or a panic of a callback ends only its connection.
//!
//! `docs/threat-model.md` names each limit against hostile peers and the test that shows it.
//!
//! # Not in scope
//! UDP, `async`, HTTP, DNS, Windows, more than one thread inside a manager. To use more cores, run
//! one manager per core, with `SO_REUSEPORT`. The standard library has no safe way to set
//! `SO_LINGER` or to choose a backlog. To set them, pass a socket that `socket2` has configured.
//! The standard library has no safe way to read the descriptor limit either. With `panic = "abort"`
//! a panic ends the process.
//!
//! # Logging
//! The crate logs through `log`. The life cycle is logged at `info`. Problems that an operator must
//! act on are logged at `warn`. Warnings that peers can cause are logged at most once a second per
//! kind. A failure that ends the loop is logged at `error`. Per-connection events are logged at
//! `debug` if [`Config::debug`] is set. Received bytes are never logged.
//!
//! A logger that blocks, for example because stderr is a full pipe, blocks the loop. If
//! [`Config::debug`] is off, nothing that peers do in normal operation is logged.
//!
//! # Source
//! `docs/ARCHITECTURE.md` lists the modules and describes the path of the data through them. Start
//! with `src/manager/turn.rs`.

#[cfg(not(unix))]
compile_error!("pool-manager needs epoll or kqueue: it runs on Unix systems only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("pool-manager packs an index and a generation into one token: it needs 64 bits");

mod buffers;
mod command;
mod commands;
mod config;
mod conn;
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
pub use conn::Conn;
pub use conn_state::{Cause, CloseReason};
pub use connect_options::ConnectOptions;
pub use error::{Error, PutError};
pub use framing::{Frame, FrameFn, Framing, Prefix};
pub use handle::Handle;
pub use handler::{Closed, Handler};
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

/// Runs the code blocks of the README as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
