//! The servers: five ways to echo, each in the usual style of its library.
//!
//! Each server runs in a separate process and does not know how it is measured. This module holds
//! their common parts: the listener, the deadline, the size of a read.

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

/// The backlog of the listener. It is large enough that a burst of connections waits and is not
/// refused.
const BACKLOG: i32 = 4096;

/// Maximum bytes per read and per line. It is the default of pool-manager, and all servers use it.
const BUFFER: usize = 5120;

/// The implementation of a server.
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

/// The behaviour of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Echoes the received bytes.
    Echo,
    /// Echoes each line. The lower bounds, epoll and mio, echo bytes in this mode as well.
    Lines,
    /// Echoes bytes, with as little memory as possible for idle connections.
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

/// The settings of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    pub(crate) mode: Mode,
    /// Maximum time without a byte from the peer. The lower bounds, epoll and mio, ignore it.
    pub(crate) deadline: Duration,
}

/// Prints the port of the listener, and serves until this process is killed or its parent ends.
pub(crate) fn serve(kind: Kind, service: Service) -> io::Result<()> {
    // A thread that waits for the end of stdin would also work, but a second thread makes each call
    // of libc more expensive.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let listener = listen()?;
    // If the parent ended before the signal was set, this write fails with a broken pipe.
    writeln!(io::stdout(), "{}", listener.local_addr()?.port())?;
    match kind {
        Kind::PoolManager => pool_manager::serve(listener, service),
        Kind::Epoll => raw_epoll::serve(&listener),
        Kind::Mio => bare_mio::serve(listener),
        Kind::Tokio => tokio_tasks::serve(listener, service),
        Kind::Threads => blocking_threads::serve(&listener, service),
    }
}

/// Opens the listener that all servers use. Accepted sockets inherit `TCP_NODELAY`, which saves one
/// system call per connection.
fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
