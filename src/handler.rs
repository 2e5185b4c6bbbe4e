//! Handler: the user's side of the loop, and Conn: a callback's view of its connection.
//!
//! A callback runs inline, on the loop's thread, with borrows of exactly one connection; it can
//! reach nothing else but the commands. This room knows no I/O: what a callback writes is queued.

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

/// What is done with connections and their requests. Any
/// `FnMut(&mut Conn, &[u8]) -> io::Result<()>` is one; implement it for a state per connection
/// or for the other hooks.
///
/// All hooks run inline on the loop's thread: while one runs, nobody else is served. An error
/// closes that connection after flushing ([`CloseReason::Failed`]). A panic closes that connection
/// and nothing else ([`CloseReason::Panicked`]), unless the program is built with
/// `panic = "abort"`; what the panicking callback wrote is not sent.
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
///     fn request(&mut self, conn: &mut Conn<'_>, count: &mut u64, _line: &[u8]) -> io::Result<()> {
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
    /// What is kept per connection, next to the worker that serves it.
    type Session: Default;

    /// A listener has accepted a connection that will be served: what is returned is. The default
    /// leaves it as it is; this is where it is wrapped into a [`Transport`](crate::Transport), for
    /// TLS. It is non-blocking, and has to remain so. Not called for what is put, which can be
    /// wrapped before.
    ///
    /// # Errors
    /// The connection is closed, no other hook hears of it, and
    /// [`Stats::admit_failures`](crate::Stats::admit_failures) counts it.
    fn wrap(&mut self, socket: Socket) -> io::Result<Socket> {
        Ok(socket)
    }

    /// A connection is new: it was put or accepted, or one that was
    /// [asked for](crate::Manager::connect) is there now. What is written here goes out first.
    ///
    /// # Errors
    /// The connection is closed after flushing.
    fn opened(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) -> io::Result<()> {
        let _ = (conn, session);
        Ok(())
    }

    /// A request is there: `body` is what the framing made of the stream, and
    /// [`Conn::cause`] says why it is delivered now.
    ///
    /// # Errors
    /// The connection is closed after flushing.
    fn request(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Self::Session,
        body: &[u8],
    ) -> io::Result<()>;

    /// A reply, or what was sent, has to wait for the peer: its socket takes no more. This is where to
    /// stop what would make more wait, such as [reading](Commands::pause) from where it comes; what
    /// comes meanwhile is queued up to [`write_limit`](crate::Config::write_limit). Called once until
    /// [`flushed`](Handler::flushed) tells that all has gone out, or the connection is closed.
    ///
    /// # Errors
    /// The connection is closed after flushing.
    fn blocked(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) -> io::Result<()> {
        let _ = (conn, session);
        Ok(())
    }

    /// A reply that had to wait for the peer has gone out entirely: the peer keeps up again. Not
    /// called for what went out at once, whether it was written in a request or in this hook.
    ///
    /// # Errors
    /// The connection is closed after flushing.
    fn flushed(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) -> io::Result<()> {
        let _ = (conn, session);
        Ok(())
    }

    /// Time for what no connection asks for: called every [`tick`](crate::Config::tick), not
    /// early, after the deadlines of the turn it is due in. What was missed, by a slow turn for one, is
    /// not made up for. A panic is counted, and ends nothing.
    fn tick(&mut self, commands: &mut Commands) {
        let _ = commands;
    }

    /// A connection has ended: exactly once for each, and the last that is heard of it but
    /// [`undelivered`](Handler::undelivered). Of one that was
    /// [asked for](crate::Manager::connect) it is told though `opened` never ran, if it could not
    /// be reached or was closed before: by its id, or by [`Closed::key`].
    fn closed(&mut self, closed: &Closed, session: Self::Session, commands: &mut Commands) {
        let _ = (closed, session, commands);
    }

    /// What a [`Handle`](crate::Handle) or a [`Commands`] sent comes back, because its connection is
    /// gone or closing, or would have had more than `write_limit` unsent. None of it was written;
    /// so bytes that were sent are written, or counted in [`Closed::bytes_unsent`], or come here. To
    /// tell whoever sent them is the handler's affair. What this hook itself leaves on the commands
    /// while the manager stops may be dropped.
    fn undelivered(&mut self, id: ConnId, bytes: Vec<u8>, commands: &mut Commands) {
        let _ = (id, bytes, commands);
    }

    /// A turn has served everybody: once at the end of each. For what is better done once for
    /// many requests than once for each, such as a broadcast.
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

/// How a connection ended.
///
/// ```
/// use pool_manager::Closed;
/// fn log(closed: &Closed) {
///     println!("{} closed because {}: {} in, {} out", closed.id, closed.reason, closed.bytes_in, closed.bytes_out);
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// The connection; no callback names it after this.
    pub id: ConnId,
    /// What it was asked for with, if it began here: see [`Conn::key`].
    pub key: Option<u64>,
    /// Why it ended.
    pub reason: CloseReason,
    /// How long it lasted, in whole milliseconds.
    pub age: Duration,
    /// Bytes read from it.
    pub bytes_in: u64,
    /// Bytes written to it.
    pub bytes_out: u64,
    /// Bytes read that no callback saw.
    pub bytes_dropped: u64,
    /// Bytes of reply that were never sent.
    pub bytes_unsent: u64,
}

/// A callback's view of its connection.
///
/// Writing to it ([`io::Write`]) queues bytes and never blocks; all that the callbacks of one
/// visit wrote goes out after them, in one system call if the socket has room and it is not much
/// more than 64 KiB. A write that would leave more than
/// [`write_limit`](crate::Config::write_limit) unsent fails, queues nothing and closes the
/// connection.
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
    /// The connection's identity, for commands and for maps.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.state.id
    }

    /// What the connection was asked for with
    /// ([`ConnectOptions::key`](crate::ConnectOptions::key)); `None` if it had no key, was accepted or
    /// put.
    #[must_use]
    pub fn key(&self) -> Option<u64> {
        self.state.key()
    }

    /// The peer's address: of a connection that a balancer passes on, the one its header says
    /// ([`ListenOptions::proxy_protocol`](crate::ListenOptions::proxy_protocol)). Otherwise it asks
    /// the kernel each time (`getpeername(2)`, one system call), so keep it in the session if every
    /// request needs it. `None` for Unix sockets, and after a reset: having none is no sign of trust.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.state.peer().or_else(|| self.socket.peer_addr())
    }

    /// The socket, to look at: its options, its peer's credentials. What is read from or written
    /// to it here is missing from the stream that the pool sees.
    ///
    /// Who is at the other end of a Unix socket, by process and user, the kernel tells through
    /// its descriptor. The standard library's `UnixStream::peer_cred` is not stable; the crate
    /// `rustix` has it: `rustix::net::sockopt::socket_peercred(conn.socket().fd()?)` on Linux.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        self.socket
    }

    /// Why this callback runs now.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// Bytes read from this connection so far.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.state.bytes_in
    }

    /// Bytes written to this connection so far; not those that wait to be sent.
    #[must_use]
    pub fn bytes_out(&self) -> u64 {
        self.state.bytes_out
    }

    /// How long ago it was put, in whole milliseconds, as of the beginning of this turn.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.state.opened.until(self.now)
    }

    /// Closes the connection after this callback: what was written is flushed, what is held is
    /// not delivered.
    pub fn close(&mut self) {
        self.state.end(CloseReason::Requested);
    }

    /// Closes the connection after this callback, without flushing or lingering. If input is
    /// unread the peer sees a reset, else an end of file.
    pub fn abort(&mut self) {
        self.state.end_now(CloseReason::Aborted);
    }

    /// Stops reading from and delivering for this connection after this callback, until it is
    /// resumed by a [`Handle`](crate::Handle) or a [`Commands`]. Its deadlines stand still
    /// meanwhile, unless it owes a reply. After a last body ([`Cause::Eof`], [`Cause::Expired`],
    /// [`Cause::Overlong`], [`Cause::MemoryLimit`]) the connection is kept until then, so that the answer may come later.
    pub fn pause(&mut self) {
        self.state.flags.insert(Flags::PAUSED);
    }

    /// Sets this connection's own idle deadline, in place of
    /// [`clients_deadline`](crate::Config::clients_deadline), counted from the last byte that
    /// moved. Rounded up to a millisecond, at most 49 days; zero goes back to the configured one.
    pub fn set_idle_deadline(&mut self, deadline: Duration) {
        self.state.set_idle_deadline(deadline);
    }

    /// Where to leave what should be done to other connections, or to the manager.
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
        Err(io::Error::new(io::ErrorKind::StorageFull, "more reply than write_limit is unsent"))
    }

    /// Does nothing: everything goes out at the end of the turn.
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
