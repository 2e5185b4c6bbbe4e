//! The [`Handler`] trait, and [`Conn`], which gives a callback access to its connection.
//!
//! A callback runs on the loop's thread. It has access to its own connection and to the command
//! queue, and to nothing else. It does not write to the socket itself. Its output is queued and
//! sent after the callback.

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

/// Handles connections and their requests.
///
/// Any `FnMut(&mut Conn, &[u8]) -> io::Result<()>` is a handler. Implement the trait to keep state
/// per connection or to use the other hooks.
///
/// All hooks run on the loop's thread. While a hook runs, no other connection is served. If a hook
/// returns an error, its connection is closed after the output is sent ([`CloseReason::Failed`]).
/// If a hook with a [`Conn`] panics, only this connection is closed ([`CloseReason::Panicked`]),
/// and the output of this call is dropped. A panic in [`wrap`](Handler::wrap) closes the
/// connection, as an error does. A panic in any other hook without a [`Conn`] closes no connection.
/// All panics are counted ([`Stats::panics`](crate::Stats::panics)). With `panic = "abort"` a panic
/// ends the process.
///
/// ```
/// use pool_manager::{Config, Conn, Framing, Handler, Manager};
/// use std::io::{self, Write};
///
/// struct Counter;
///
/// impl Handler for Counter {
///     type Session = u64;
///
///     fn request(
///         &mut self,
///         conn: &mut Conn<'_>,
///         count: &mut u64,
///         _line: &[u8],
///     ) -> io::Result<()> {
///         *count += 1;
///         writeln!(conn, "{count}")
///     }
/// }
///
/// let lines = Config::new().framing(Framing::Delimited(b'\n'));
/// let manager = Manager::with_handler(lines, Counter)?;
/// # Ok::<(), pool_manager::Error>(())
/// ```
pub trait Handler {
    /// State that the handler has for each connection. It is created with `default` when the
    /// connection begins.
    type Session: Default;

    /// Called for each accepted connection that will be served. Returns the socket to serve. The
    /// default returns the given socket unchanged.
    ///
    /// Use it to wrap the socket into a [`Transport`](crate::Transport), for example for TLS. The
    /// socket is non-blocking and must stay so. This hook is not called for sockets that are
    /// [put](crate::Manager::put), because the caller can wrap them first.
    ///
    /// # Errors
    /// An error closes the connection without any other callback, and is counted in
    /// [`Stats::admit_failures`](crate::Stats::admit_failures).
    fn wrap(&mut self, socket: Socket) -> io::Result<Socket> {
        Ok(socket)
    }

    /// Called when a connection opens: after it was put or accepted, or when an
    /// [outgoing](crate::Manager::connect) connection is established. Output that is written here
    /// is sent before any other output.
    ///
    /// # Errors
    /// An error closes the connection after its output is sent.
    fn opened(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) -> io::Result<()> {
        let _ = (conn, session);
        Ok(())
    }

    /// Called with each request. `body` is a complete request, as the framing defines it. At the
    /// end of the connection, `body` is the bytes held so far, even if they are not a complete
    /// request. [`Conn::cause`] distinguishes the two cases. `body` may be empty.
    ///
    /// # Errors
    /// An error closes the connection after its output is sent.
    fn request(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Self::Session,
        body: &[u8],
    ) -> io::Result<()>;

    /// Called when output has to wait because the socket does not take all of it.
    ///
    /// Use this hook to stop the source of the output, for example by [pausing](Commands::pause)
    /// the connection from which the data comes. Output that is written while the connection waits
    /// is queued, up to [`write_limit`](crate::Config::write_limit). When all output is sent,
    /// [`flushed`](Handler::flushed) is called. `blocked` is not called again before that. If the
    /// connection ends first, `closed` is called instead of `flushed`.
    ///
    /// # Errors
    /// An error closes the connection after its output is sent.
    fn blocked(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) -> io::Result<()> {
        let _ = (conn, session);
        Ok(())
    }

    /// Called when all output that had to wait has been sent. Not called for output that the socket
    /// took at once.
    ///
    /// # Errors
    /// An error closes the connection after its output is sent.
    fn flushed(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) -> io::Result<()> {
        let _ = (conn, session);
        Ok(())
    }

    /// Called at the interval [`tick`](crate::Config::tick), for work that belongs to no
    /// connection.
    ///
    /// A call is never early. A call is late if a turn is slow. Missed calls are skipped. Within a
    /// turn, this hook is called after the expired deadlines are handled.
    fn tick(&mut self, commands: &mut Commands) {
        let _ = commands;
    }

    /// Called exactly once when a connection ends. No other callback of this connection follows,
    /// except [`undelivered`](Handler::undelivered).
    ///
    /// This hook is also called if an [outgoing](crate::Manager::connect) connection fails or is
    /// closed before it is established. In this case `opened` was not called. [`Closed::id`] and
    /// [`Closed::key`] identify the connection.
    ///
    /// This hook is not called for a connection that got no worker. Examples are a refused
    /// connection, and a queued socket that cannot be registered
    /// ([`Handle::put`](crate::Handle::put)). It is not called either for a connection that ends
    /// before its PROXY header is complete.
    fn closed(&mut self, closed: &Closed, session: Self::Session, commands: &mut Commands) {
        let _ = (closed, session, commands);
    }

    /// Called with the bytes of a [`Handle::send`](crate::Handle::send) or [`Commands::send`] if
    /// the bytes cannot be queued for the connection. This is the case if the connection no longer
    /// exists, if it is closing, or if more than `write_limit` bytes would be unsent.
    ///
    /// None of these bytes were written to the socket. Each byte of a `send` is therefore either
    /// written to the socket, counted in [`Closed::bytes_unsent`], or passed to this hook. There is
    /// one exception: a command that this hook queues while the manager stops may be dropped.
    fn undelivered(&mut self, id: ConnId, bytes: Vec<u8>, commands: &mut Commands) {
        let _ = (id, bytes, commands);
    }

    /// Called after [`Handle::notify`](crate::Handle::notify), before the commands of the turn are
    /// executed. If `notify` is called several times before a turn, this hook is called once.
    ///
    /// A notification carries no data. Use a channel for the messages. The sender sends a message
    /// and then calls `notify`. This hook receives messages until the channel is empty.
    fn notified(&mut self, commands: &mut Commands) {
        let _ = commands;
    }

    /// Called once when a graceful stop begins. After this hook, all commands in `commands` are
    /// executed, even if there are more commands than a turn usually executes. Idle connections are
    /// closed after that. The hook can therefore send a last message to the clients.
    ///
    /// This hook is not called when the manager is dropped, or when waiting for readiness fails.
    fn stopping(&mut self, commands: &mut Commands) {
        let _ = commands;
    }

    /// Called once at the end of each turn, after the ready connections were served. Use it for
    /// work that is cheaper if it is done once for many requests, such as a broadcast.
    fn turn_ended(&mut self, commands: &mut Commands) {
        let _ = commands;
    }
}

impl<F> Handler for F
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    type Session = ();

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self(conn, body)
    }
}

/// Describes a connection that has ended.
///
/// ```
/// use pool_manager::Closed;
/// fn log(closed: &Closed) {
///     let Closed { id, reason, bytes_in, bytes_out, .. } = closed;
///     println!("{id} closed because {reason}: {bytes_in} in, {bytes_out} out");
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// Id of the connection. No later callback refers to this connection, except
    /// [`Handler::undelivered`].
    pub id: ConnId,
    /// Key of the connection, or `None` if it has no key. See [`Conn::key`].
    pub key: Option<u64>,
    /// Reason why the connection ended.
    pub reason: CloseReason,
    /// Duration of the connection, in whole milliseconds.
    pub age: Duration,
    /// Bytes read from the connection.
    pub bytes_in: u64,
    /// Bytes written to the socket.
    pub bytes_out: u64,
    /// Bytes that were read but not delivered to a callback.
    pub bytes_dropped: u64,
    /// Bytes of output that were not sent.
    pub bytes_unsent: u64,
}

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
        Tick(0).until(self.now)
    }

    /// Returns the time since the connection was put, accepted or started, in whole milliseconds,
    /// as of the beginning of this turn.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.state.opened.until(self.now)
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

    /// Pauses this connection after this callback, until a [`Handle`](crate::Handle) or
    /// [`Commands`] resumes it. While the connection is paused, nothing is read from it, and none
    /// of its requests are delivered. Output is still sent. The deadlines are suspended, except
    /// while output is unsent.
    ///
    /// The last body of a connection has the cause [`Cause::Eof`], [`Cause::Expired`],
    /// [`Cause::Overlong`] or [`Cause::MemoryLimit`]. If the callback for this body pauses the
    /// connection, the connection is not closed until it is resumed. The reply can therefore be
    /// sent later.
    pub fn pause(&mut self) {
        self.state.flags.insert(Flags::PAUSED);
    }

    /// Sets the idle deadline of this connection. The deadline replaces
    /// [`clients_deadline`](crate::Config::clients_deadline). It is counted from the last byte that
    /// was read or written. It is rounded up to a millisecond, and limited to 49 days. Zero
    /// restores the configured deadline.
    pub fn set_idle_deadline(&mut self, deadline: Duration) {
        self.state.set_idle_deadline(deadline);
    }

    /// Returns the command queue, for commands to other connections or to the manager.
    pub fn commands(&mut self) -> &mut Commands {
        self.commands
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
        self.state.end_now(CloseReason::WriteLimit);
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            "more than write_limit bytes would be unsent",
        ))
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
