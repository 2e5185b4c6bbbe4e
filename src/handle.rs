//! Handle: the remote control of a manager, for other threads.
//!
//! Every call queues a command and returns; none waits for the loop, but `stats`. It knows the
//! mailbox, not the manager behind it.

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

/// Controls a [`Manager`](crate::Manager) from other threads; from
/// [`Manager::handle`](crate::Manager::handle). Cheap to clone; outlives a stop and a restart.
///
/// Commands are carried out in the order they were queued, each at a turn boundary; at most
/// 65,536 wait at a time. A command for a connection that no longer exists is counted
/// ([`Stats::stale_commands`]) and does nothing. Queueing takes a lock and allocates, so no call
/// may be made from a signal handler.
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
/// let client = std::thread::spawn(move || -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
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
    /// How long [`Handle::stats`] waits for a turn.
    const STATS_PATIENCE: Duration = Duration::from_secs(1);

    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }

    /// Puts a socket. The answer "busy" is immediate: a place is taken, in one atomic step,
    /// before the socket is queued. A socket that then proves unsuitable is closed and logged.
    ///
    /// # Errors
    /// [`PutError`], with the socket inside.
    pub fn put(&self, socket: impl Into<Socket>) -> Result<(), PutError> {
        self.mailbox.post_put(socket.into()).map_err(|(socket, error)| PutError::new(socket, error))
    }

    /// Writes `bytes` to a socket that was not put and closes it. Never blocks.
    ///
    /// TCP resets a connection that is closed with unread input, which can destroy a reply on its
    /// way. A running manager therefore reads and discards input for up to 5 s before it closes the
    /// socket. If none is running, at most 256 KiB that have already arrived are discarded, and the
    /// socket is closed at once.
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
        // If the manager is not running, the socket is dropped here, which closes it.
        let _ = self.mailbox.post(Command::Linger(socket));
        Ok(())
    }

    /// Begins a connection, as [`Manager::connect`](crate::Manager::connect) does, at the next turn
    /// boundary. The answer "busy" is immediate: a place is taken before it is queued. If it fails,
    /// [`Handler::closed`](crate::Handler::closed) is told.
    ///
    /// # Errors
    /// [`Error::Busy`]; else as [`Handle::send`].
    pub fn connect(&self, addr: SocketAddr) -> Result<(), Error> {
        self.connect_with(addr, ConnectOptions::default())
    }

    /// As [`Handle::connect`], with a key to know it by, or a deadline of its own.
    ///
    /// # Errors
    /// As [`Handle::connect`].
    pub fn connect_with(&self, addr: SocketAddr, options: ConnectOptions) -> Result<(), Error> {
        let call = ConnectRequest::new(addr, options);
        self.mailbox.post_connect(call)
    }

    /// Sends bytes to a connection, behind what it has been sent already. If more than
    /// `write_limit` would be unsent, the connection is closed. What cannot be sent any more comes
    /// back, on the loop's thread: [`Handler::undelivered`](crate::Handler::undelivered).
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::Dropped`], [`Error::QueueFull`].
    pub fn send(&self, id: ConnId, bytes: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.post(Command::Send(id, bytes.into()))
    }

    /// Closes a connection after flushing what it has been sent.
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub fn close(&self, id: ConnId) -> Result<(), Error> {
        self.post(Command::Close(id))
    }

    /// Stops reading from and delivering for a connection; its deadlines stand still unless it
    /// owes a reply.
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub fn pause(&self, id: ConnId) -> Result<(), Error> {
        self.post(Command::Pause(id))
    }

    /// Takes up again what [`Handle::pause`] stopped; the idle deadline starts anew.
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub fn resume(&self, id: ConnId) -> Result<(), Error> {
        self.post(Command::Resume(id))
    }

    /// Changes the configuration at the next turn boundary. What is then in effect,
    /// [`Manager::config`](crate::Manager::config) tells.
    ///
    /// # Errors
    /// [`Error::Config`] at once if it is invalid; else as [`Handle::send`].
    pub fn set_config(&self, config: Config) -> Result<(), Error> {
        self.post(Command::SetConfig(Box::new(config.checked()?)))
    }

    /// Asks for a graceful stop; the report is what [`Manager::run`](crate::Manager::run) returns.
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub fn stop(&self) -> Result<(), Error> {
        self.post(Command::Stop)
    }

    /// A snapshot of the counters as of the next turn. Waits for it, at most a second; if no turn
    /// comes by then, or the manager is not running, it is the last one taken.
    ///
    /// On the loop's own thread, in a callback or outside, there is no turn to wait for: ask
    /// [`Manager::stats`](crate::Manager::stats) there.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.mailbox.stats(Self::STATS_PATIENCE)
    }

    fn post(&self, command: Command) -> Result<(), Error> {
        self.mailbox.post(command)
    }
}

/// Discards what has already arrived, at most 64 reads of it.
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
