//! The handle: controls a manager from other threads.
//!
//! No method waits for the loop, except `stats`.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::command::Command;
use crate::config::Config;
use crate::connect_options::{ConnectOptions, ConnectRequest};
use crate::error::{Error, PutError};
use crate::id::ConnId;
use crate::shared::mailbox::Mailbox;
use crate::socket::{Socket, uninterrupted};
use crate::stats::Stats;

/// Controls a [`Manager`](crate::Manager) from other threads.
/// [`Manager::handle`](crate::Manager::handle) returns a handle. A handle is cheap to clone. It
/// stays valid when the manager is stopped and started again.
///
/// The loop executes commands at turn boundaries, in the order in which they were queued. At most
/// 65,536 commands can be queued. A command for a connection that no longer exists is ignored and
/// counted ([`Stats::stale_commands`]). If the command is a `send`, the bytes to send are passed to
/// [`Handler::undelivered`](crate::Handler::undelivered). The methods take a lock, and most of them
/// allocate memory. They must therefore not be called from a signal handler.
///
/// ```
/// use pool_manager::{Config, Framing, Manager};
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// let mut manager = Manager::new(Config::new().framing(Framing::Drained), |conn, body| {
///     conn.write_all(body)
/// })?;
/// manager.start()?;
/// let handle = manager.handle();
/// type Reply = Result<String, Box<dyn std::error::Error + Send + Sync>>;
/// let client = std::thread::spawn(move || -> Reply {
///     let (mut peer, ours) = UnixStream::pair()?;
///     handle.put(ours)?;
///     peer.write_all(b"hello")?;
///     let mut reply = [0; 5];
///     peer.read_exact(&mut reply)?;
///     handle.stop()?;
///     Ok(String::from_utf8(reply.to_vec())?)
/// });
/// manager.run()?;
/// assert_eq!(client.join().unwrap().unwrap(), "hello");
/// # Ok::<(), pool_manager::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    mailbox: Arc<Mailbox>,
}

impl Handle {
    /// Maximum time that [`Handle::stats`] waits for a turn.
    const STATS_TIMEOUT: Duration = Duration::from_secs(1);

    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }

    /// Puts a socket into the pool, as [`Manager::put`](crate::Manager::put) does, at the next turn
    /// boundary. A worker is reserved in one atomic step before the socket is queued, so that
    /// [`Error::Busy`] is returned immediately.
    ///
    /// If the socket cannot be registered later, it is closed and counted
    /// ([`Stats::admit_failures`]). If a stop begins before the command is executed, the socket is
    /// closed. In both cases [`Handler::closed`](crate::Handler::closed) is not called.
    ///
    /// # Errors
    /// [`PutError`], which contains the socket.
    pub fn put(&self, socket: impl Into<Socket>) -> Result<(), PutError> {
        self.mailbox.post_put(socket.into()).map_err(|(socket, error)| PutError::new(socket, error))
    }

    /// Writes `bytes` to a socket that is not in the pool, and closes the socket. Never blocks.
    ///
    /// TCP resets a connection that is closed with unread input, and the reset can destroy a reply
    /// that the peer has not read yet. A running manager therefore reads and discards input for up
    /// to 5 s before it closes the socket. If the manager is not running, the socket is closed at
    /// once. Before that, at most 256 KiB of input that has already arrived is discarded.
    ///
    /// # Errors
    /// `WriteZero` if the socket did not take all of `bytes` at once, or the error of the system
    /// call that failed. The socket is closed in either case.
    pub fn reject(&self, socket: Socket, bytes: &[u8]) -> io::Result<()> {
        let mut socket = socket;
        socket.set_nonblocking()?;
        let count = uninterrupted(|| socket.write(bytes))?;
        socket.flush()?;
        if count < bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        socket.shutdown_write()?;
        discard_input(&mut socket);
        // If the command cannot be queued, the socket is dropped, which closes it.
        let _ = self.mailbox.post(Command::Linger(socket));
        Ok(())
    }

    /// Starts an outgoing connection at the next turn boundary, as
    /// [`Manager::connect`](crate::Manager::connect) does. A worker is reserved at once, so that
    /// [`Error::Busy`] is returned immediately. If the connection fails later,
    /// [`Handler::closed`](crate::Handler::closed) is called.
    ///
    /// # Errors
    /// [`Error::Busy`], and the errors of [`Handle::send`].
    pub fn connect(&self, addr: SocketAddr) -> Result<(), Error> {
        self.connect_with(addr, ConnectOptions::default())
    }

    /// Starts an outgoing connection as [`Handle::connect`] does. `options` can set a key and a
    /// deadline.
    ///
    /// # Errors
    /// As [`Handle::connect`].
    pub fn connect_with(&self, addr: SocketAddr, options: ConnectOptions) -> Result<(), Error> {
        let request = ConnectRequest::new(addr, options);
        self.mailbox.post_connect(request)
    }

    /// Sends bytes to a connection, after the bytes that are queued for it already. If more than
    /// `write_limit` bytes would be unsent, the connection is closed. Bytes that cannot be queued
    /// for the connection are passed to [`Handler::undelivered`](crate::Handler::undelivered) on
    /// the loop's thread.
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::Dropped`], [`Error::QueueFull`].
    pub fn send(&self, id: ConnId, bytes: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.post(Command::Send(id, bytes.into()))
    }

    /// Closes a connection after its output is sent.
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub fn close(&self, id: ConnId) -> Result<(), Error> {
        self.post(Command::Close(id))
    }

    /// Closes a connection at once, without sending its output. See
    /// [`Conn::abort`](crate::Conn::abort).
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub fn abort(&self, id: ConnId) -> Result<(), Error> {
        self.post(Command::Abort(id))
    }

    /// Closes the write side of a connection, once its output is sent. See
    /// [`Conn::finish`](crate::Conn::finish).
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub fn finish(&self, id: ConnId) -> Result<(), Error> {
        self.post(Command::Finish(id))
    }

    /// Pauses a connection: nothing is read from it, and none of its requests are delivered. Output
    /// is still sent. The pause ends as described at [`Conn::pause`](crate::Conn::pause).
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub fn pause(&self, id: ConnId) -> Result<(), Error> {
        self.post(Command::Pause(id))
    }

    /// Resumes a paused connection. Suspended deadlines are counted from the time at which the
    /// connection resumes.
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub fn resume(&self, id: ConnId) -> Result<(), Error> {
        self.post(Command::Resume(id))
    }

    /// Changes the configuration at the next turn boundary.
    /// [`Manager::config`](crate::Manager::config) returns the configuration in effect.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid, and the errors of [`Handle::send`].
    pub fn set_config(&self, config: Config) -> Result<(), Error> {
        self.post(Command::SetConfig(Box::new(config.checked()?)))
    }

    /// Wakes the loop, so that it calls [`Handler::notified`](crate::Handler::notified) in its next
    /// turn. If `notify` is called several times before this turn, the hook is called once. The
    /// method allocates no memory. It succeeds even if the command queue is full.
    ///
    /// ```
    /// use pool_manager::{Commands, Config, Conn, Handler, Manager};
    /// use std::io;
    /// use std::sync::mpsc;
    ///
    /// struct Totals {
    ///     numbers: mpsc::Receiver<u64>,
    ///     total: u64,
    /// }
    ///
    /// impl Handler for Totals {
    ///     type Session = ();
    ///
    ///     fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
    ///         Ok(())
    ///     }
    ///
    ///     fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> io::Result<()> {
    ///         Ok(())
    ///     }
    ///
    ///     fn notified(&mut self, _: &mut Commands) {
    ///         self.total += self.numbers.try_iter().sum::<u64>();
    ///     }
    /// }
    ///
    /// let (sender, numbers) = mpsc::channel();
    /// let mut manager = Manager::with_handler(Config::new(), Totals { numbers, total: 0 })?;
    /// manager.start()?;
    /// let handle = manager.handle();
    /// std::thread::spawn(move || {
    ///     for number in [1, 2, 3] {
    ///         sender.send(number).unwrap();
    ///         handle.notify().unwrap();
    ///     }
    /// });
    /// while manager.handler().total < 6 {
    ///     manager.turn(None)?;
    /// }
    /// # Ok::<(), pool_manager::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::Dropped`].
    pub fn notify(&self) -> Result<(), Error> {
        self.mailbox.notify()
    }

    /// Begins a graceful stop. [`Manager::run`](crate::Manager::run) returns the report.
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub fn stop(&self) -> Result<(), Error> {
        self.post(Command::Stop)
    }

    /// Returns a snapshot of the counters as of the next turn. Waits at most one second for this
    /// turn. Returns the previous snapshot if no turn comes in time, if the manager is not running,
    /// or if the command queue is full.
    ///
    /// Do not call it on the loop's thread, because no turn can run while the call waits. On the
    /// loop's thread, use [`Manager::stats`](crate::Manager::stats).
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.mailbox.stats(Self::STATS_TIMEOUT)
    }

    fn post(&self, command: Command) -> Result<(), Error> {
        self.mailbox.post(command)
    }
}

/// Discards input that has already arrived, with at most 64 reads.
fn discard_input(socket: &mut Socket) {
    let mut discarded = [0; 4096];
    for _ in 0..64 {
        match socket.read(&mut discarded) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
        }
    }
}
