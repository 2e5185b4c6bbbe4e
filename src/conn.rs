//! [`Conn`], which gives a callback access to its connection.
//!
//! A callback does not write to the socket itself. Its output is queued and sent after the
//! callback.

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use crate::commands::Commands;
use crate::conn_state::{Cause, CloseReason, ConnState, Flags};
use crate::ds::output::Output;
use crate::id::ConnId;
use crate::socket::Socket;
use crate::time::Tick;

/// Gives a callback access to its connection.
///
/// Writing to it ([`io::Write`]) queues the bytes and never blocks. The bytes are sent after the
/// callback. If several requests arrive together, their replies are sent with one system call, up
/// to about 64 KiB. If a write would leave more than [`write_limit`](crate::Config::write_limit)
/// bytes unsent, it fails and queues nothing. The connection is then closed.
///
/// ```
/// use pool_manager::{Config, Manager};
/// use std::io::Write;
/// let manager = Manager::new(Config::new(), |conn, body| {
///     writeln!(conn, "{} sent {} bytes", conn.id(), body.len())?;
///     conn.close();
///     Ok(())
/// });
/// ```
pub struct Conn<'a> {
    pub(crate) state: &'a mut ConnState,
    pub(crate) socket: &'a Socket,
    pub(crate) output: &'a mut Output,
    pub(crate) commands: &'a mut Commands,
    pub(crate) write_limit: usize,
    /// The time of this turn, rounded up.
    pub(crate) now: Tick,
    pub(crate) cause: Cause,
}

impl Conn<'_> {
    /// Returns the connection's id, for commands and maps.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.state.id
    }

    /// Returns the key of an outgoing connection
    /// ([`ConnectOptions::key`](crate::ConnectOptions::key)). Returns `None` if the connection has
    /// no key. A connection that was put or accepted never has one.
    #[must_use]
    pub fn key(&self) -> Option<u64> {
        self.state.key()
    }

    /// Returns the peer's address.
    ///
    /// If the connection began with a PROXY header, this is the client's address from the header
    /// ([`ListenOptions::proxy_protocol`](crate::ListenOptions::proxy_protocol)). Otherwise each
    /// call reads the address from the kernel with one system call (`getpeername(2)`). Store the
    /// address in the session if every request needs it. Returns `None` for Unix sockets and after
    /// a reset. Do not treat a missing address as trusted.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.state.peer().or_else(|| self.socket.peer_addr())
    }

    /// Returns the socket, for example to read its options or the peer's credentials. Do not read
    /// from the socket or write to it, because the pool does not see these bytes.
    ///
    /// For a Unix socket, the descriptor gives access to the process id and the user id of the
    /// peer. `UnixStream::peer_cred` of the standard library is not stable. On Linux, the crate
    /// `rustix` can read the ids: `rustix::net::sockopt::socket_peercred(conn.socket().fd()?)`.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        self.socket
    }

    /// Returns the cause of this callback.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// Returns the number of bytes read from this connection so far.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.state.bytes_in
    }

    /// Returns the number of bytes written to the socket so far. Unsent bytes are not counted.
    #[must_use]
    pub fn bytes_out(&self) -> u64 {
        self.state.bytes_out
    }

    /// Returns the time of this turn, as [`Commands::now`] does.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.commands.now()
    }

    /// Returns the time since the connection was put, accepted or started, in whole milliseconds,
    /// as of the beginning of this turn.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.now().saturating_sub(Tick(0).until(self.state.opened))
    }

    /// Closes the connection after this callback, once its output is sent. Held input is not
    /// delivered.
    pub fn close(&mut self) {
        self.state.end(CloseReason::Requested);
    }

    /// Closes the connection after this callback, without sending its output and without lingering.
    /// The peer sees a reset if input is unread. If not, it sees an end of file.
    pub fn abort(&mut self) {
        self.state.end_now(CloseReason::Aborted);
    }

    /// Closes the write side of the connection, once the output that was written before this call
    /// is sent. The peer then sees an end of file. Requests are still delivered. What is written
    /// from now on is discarded and counted in
    /// [`Closed::bytes_unsent`](crate::Closed::bytes_unsent), and the write returns `Ok`. Bytes of
    /// a [`send`](Commands::send) are passed to
    /// [`Handler::undelivered`](crate::Handler::undelivered).
    ///
    /// The connection closes when the peer has closed its side too ([`CloseReason::Eof`]). If the
    /// peer does not, the connection closes at its deadline.
    pub fn finish(&mut self) {
        self.state.flags.insert(Flags::FINISHED);
        self.write_limit = 0;
    }

    /// Pauses this connection after this callback, until a [`Handle`](crate::Handle) or
    /// [`Commands`] resumes it. While the connection is paused, nothing is read from it, and none
    /// of its requests are delivered. Output is still sent. The idle deadline and the total
    /// deadline are suspended, except while output is unsent.
    ///
    /// The connection closes if it is still paused when
    /// [`paused_deadline`](crate::Config::paused_deadline) passes. It also closes if the peer has
    /// gone: see [`Config::paused_deadline`](crate::Config::paused_deadline). After
    /// [`close`](Conn::close) and [`abort`](Conn::abort) this call has no effect.
    ///
    /// If a callback with the cause [`Cause::Eof`], [`Cause::Expired`], [`Cause::Overlong`] or
    /// [`Cause::MemoryLimit`] pauses the connection, the connection is not closed until it is
    /// resumed. The reply can therefore be sent later.
    pub fn pause(&mut self) {
        self.state.pause(self.now);
    }

    /// Sets the idle deadline of this connection. The deadline replaces
    /// [`clients_deadline`](crate::Config::clients_deadline). It is counted from the last byte that
    /// was read or written. It is rounded up to a millisecond, at least one, and limited to 49
    /// days. `None` restores the configured deadline.
    pub fn set_idle_deadline(&mut self, deadline: impl Into<Option<Duration>>) {
        self.state.set_idle_deadline(deadline.into());
    }

    /// Returns the command queue, for commands to other connections or to the manager.
    pub fn commands(&mut self) -> &mut Commands {
        self.commands
    }
}

impl Conn<'_> {
    /// Discards output of a finished connection. On any other connection, the output exceeds
    /// `write_limit`, so the connection is closed.
    #[cold]
    #[inline(never)]
    fn refuse_output(&mut self, count: usize) -> io::Result<()> {
        if self.state.flags.intersects(Flags::FINISHED) {
            self.state.discard(count);
            return Ok(());
        }
        self.state.end_now(CloseReason::WriteLimit);
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            "more than write_limit bytes would be unsent",
        ))
    }
}

impl Write for Conn<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.output.push(bytes, self.write_limit) {
            return Ok(());
        }
        self.refuse_output(bytes.len())
    }

    /// Does nothing. The output is sent after the callback.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Conn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("id", &self.state.id)
            .field("cause", &self.cause)
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
