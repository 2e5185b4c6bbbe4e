//! The [`Handler`] trait, and [`Closed`], which describes a connection that has ended.
//!
//! A callback runs on the loop's thread. It has access to its own connection and to the command
//! queue, and to nothing else.

use std::io;
use std::time::Duration;

use crate::commands::Commands;
use crate::conn::Conn;
#[cfg(doc)]
use crate::conn_state::Cause;
use crate::conn_state::CloseReason;
use crate::id::ConnId;
use crate::socket::Socket;

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
///     fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<u64> {
///         Ok(0)
///     }
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
    /// State that the handler has for each connection. [`opened`](Handler::opened) creates it.
    type Session;

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
    /// [outgoing](crate::Manager::connect) connection is established. Returns the session of the
    /// connection. Output that is written here is sent before any other output.
    ///
    /// # Errors
    /// An error closes the connection after its output is sent. The connection has no session then.
    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<Self::Session>;

    /// Called with each request. `body` is a complete request, as the framing defines it. It may be
    /// empty.
    ///
    /// [`Framing::Filled`](crate::Framing::Filled) and
    /// [`Framing::Drained`](crate::Framing::Drained) have no message boundaries. Under these two
    /// framings, all held bytes are a last request at the end of file, at a deadline, and when
    /// `memory_limit` is reached. If the peer has never sent a byte when a deadline passes, the
    /// last request is empty.
    ///
    /// # Errors
    /// An error closes the connection after its output is sent.
    fn request(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Self::Session,
        body: &[u8],
    ) -> io::Result<()>;

    /// Called when the connection is about to end before a request is complete. `held` is the part
    /// of the request that has arrived, including a length prefix. It may be empty. What this hook
    /// writes is sent before the connection closes.
    ///
    /// [`Conn::cause`] says why the connection ends:
    ///
    /// | Cause | `held` | Then |
    /// |---|---|---|
    /// | [`Cause::Eof`] | not empty | [`read_closed`](Handler::read_closed) is called |
    /// | [`Cause::Expired`] | may be empty | the connection closes |
    /// | [`Cause::Overlong`] | not empty | the connection closes |
    /// | [`Cause::MemoryLimit`] | not empty | the connection closes |
    /// | [`Cause::Unanswered`] | empty | the connection closes |
    ///
    /// With [`Cause::MemoryLimit`], `held` may begin with complete requests that had to wait for
    /// the next turn or for the rate limit.
    ///
    /// Under [`Framing::Filled`](crate::Framing::Filled) and
    /// [`Framing::Drained`](crate::Framing::Drained), held bytes are passed to `request` instead.
    /// Under these framings this hook is only called with [`Cause::Unanswered`], and with
    /// [`Cause::Expired`] and without bytes: when a connection that was served before has fallen silent, when an
    /// [outgoing](crate::Manager::connect) connection has never received a byte, and after
    /// `read_closed`.
    ///
    /// # Errors
    /// An error closes the connection after its output is sent.
    fn incomplete(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Self::Session,
        held: &[u8],
    ) -> io::Result<()> {
        let _ = (conn, session, held);
        Ok(())
    }

    /// Called once when the peer has closed its side of the connection, after everything that the
    /// peer sent was delivered. Also called if the peer never sent a byte.
    ///
    /// The default calls [`Conn::finish`], so that the connection closes when its output is sent.
    /// If your implementation does not do so, the connection stays open for output. It then closes
    /// when it is [finished](Conn::finish) or [closed](Conn::close), or when its idle deadline
    /// passes.
    ///
    /// # Errors
    /// An error closes the connection after its output is sent.
    fn read_closed(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) -> io::Result<()> {
        let _ = session;
        conn.finish();
        Ok(())
    }

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
    /// `session` is what [`opened`](Handler::opened) returned. It is `None` if `opened` has failed.
    /// It is also `None` if an [outgoing](crate::Manager::connect) connection failed or was closed
    /// before it was established, because `opened` was not called then. [`Closed::id`] and
    /// [`Closed::key`] identify the connection. A handler that counts its connections should count
    /// only the calls with `Some`.
    ///
    /// This hook is not called for a connection that got no worker. Examples are a refused
    /// connection, and a queued socket that cannot be registered
    /// ([`Handle::put`](crate::Handle::put)). It is not called either for a connection that ends
    /// before its PROXY header is complete.
    fn closed(&mut self, closed: &Closed, session: Option<Self::Session>, commands: &mut Commands) {
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

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

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
#[derive(Debug)]
#[non_exhaustive]
pub struct Closed {
    /// Id of the connection. No later callback refers to this connection, except
    /// [`Handler::undelivered`].
    pub id: ConnId,
    /// Key of the connection, or `None` if it has no key. See [`Conn::key`].
    pub key: Option<u64>,
    /// Reason why the connection ended.
    pub reason: CloseReason,
    /// The error that ended the connection. It is set if the reason is [`CloseReason::Reset`],
    /// [`CloseReason::Io`] or [`CloseReason::Unreachable`]. If the reason is
    /// [`CloseReason::Failed`], it is the error that the callback returned.
    pub error: Option<io::Error>,
    /// Duration of the connection, in whole milliseconds.
    pub age: Duration,
    /// Bytes read from the connection.
    pub bytes_in: u64,
    /// Bytes written to the socket.
    pub bytes_out: u64,
    /// Bytes that were read but not delivered to a callback.
    pub bytes_dropped: u64,
    /// Bytes of output that were not sent, including the bytes that were discarded after
    /// [`Conn::finish`].
    pub bytes_unsent: u64,
}

impl Clone for Closed {
    /// Copies all fields. The copy of `error` has the same kind, text and OS error code, but not
    /// the same source.
    fn clone(&self) -> Self {
        let error = self.error.as_ref().map(|error| match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        });
        Self { error, ..*self }
    }
}
