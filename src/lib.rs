#![doc = "stub"]
#[cfg(not(unix))]
compile_error!("pool-manager needs epoll or kqueue: it runs on Unix systems only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!(
    "pool-manager packs an index and a generation into a 64-bit token: it needs a 64-bit system"
);

pub mod backend;
mod buffer;
mod command;
mod config;
mod error;
mod framing;
mod handle;
mod handler;
mod id;
mod lingering;
mod links;
mod listener;
mod mailbox;
mod manager;
mod output;
mod places;
mod pool;
mod report;
mod socket;
mod spares;
mod stats;
mod time;
mod unix;
mod vitals;
mod wheel;
mod worker;

pub use command::Desk;
pub use config::{Config, ConfigError, ERROR_SERVER_BUSY, Overload};
pub use error::{Error, PutError, PutErrorKind};
pub use framing::{Find, Frame, Framing, Prefix};
pub use handle::Handle;
pub use handler::{Conn, End, Handler};
pub use id::ConnId;
pub use manager::Manager;
pub use report::{StopReport, Turn};
pub use socket::{Socket, Transport};
pub use stats::Stats;
pub use vitals::{Cause, CloseReason};
