//! The servers: five ways to echo, each as small as its authors would write it.
//!
//! Each runs in a process of its own and knows nothing of what measures it. What they have in
//! common is here: the listener, the deadline, the size of a read.

mod bare_mio;
mod blocking_threads;
mod pool_manager;
mod raw_epoll;
mod tokio_tasks;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use socket2::{Domain, Protocol, Socket, Type};

use crate::named::Named;

/// A burst of connections waits here rather than being refused.
const BACKLOG: i32 = 4096;

/// Bytes one read may bring, and the longest line: what is pool-manager's default, for all.
const BUFFER: usize = 5120;

/// Whose loop it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    PoolManager,
    Epoll,
    Mio,
    Tokio,
    Threads,
}

impl Named for Kind {
    const ALL: &[Self] = &[Self::PoolManager, Self::Epoll, Self::Mio, Self::Tokio, Self::Threads];

    fn name(self) -> &'static str {
        match self {
            Self::PoolManager => "pool-manager",
            Self::Epoll => "epoll",
            Self::Mio => "mio",
            Self::Tokio => "tokio",
            Self::Threads => "threads",
        }
    }
}

/// What it does with what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Sends back whatever arrived.
    Echo,
    /// Sends back each line. The floors, epoll and mio, echo bytes here as well.
    Lines,
    /// Echoes, and holds as little as it can for who is silent.
    Idle,
}

impl Named for Mode {
    const ALL: &[Self] = &[Self::Echo, Self::Lines, Self::Idle];

    fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Lines => "lines",
            Self::Idle => "idle",
        }
    }
}

/// What a server shall do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    pub(crate) mode: Mode,
    /// How long a peer may be silent; the floors wait for ever.
    pub(crate) deadline: Duration,
}

/// Prints the port it listens on, and serves until killed or until whoever started it is gone.
pub(crate) fn serve(kind: Kind, service: Service) -> io::Result<()> {
    // Not a thread that waits for the end of stdin: a second thread makes each call of libc dearer.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let listener = listen()?;
    // If they were gone before the signal was asked for, this is a broken pipe and ends it as well.
    writeln!(io::stdout(), "{}", listener.local_addr()?.port())?;
    match kind {
        Kind::PoolManager => pool_manager::serve(listener, service),
        Kind::Epoll => raw_epoll::serve(&listener),
        Kind::Mio => bare_mio::serve(listener),
        Kind::Tokio => tokio_tasks::serve(listener, service),
        Kind::Threads => blocking_threads::serve(&listener, service),
    }
}

/// A listener like everybody else's. What it accepts inherits `TCP_NODELAY`, which saves each server
/// a call a connection.
fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
