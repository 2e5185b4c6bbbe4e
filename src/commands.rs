//! The command queue of callbacks.
//!
//! A callback has access to its own connection and to this queue, but not to the pool. Its commands
//! are executed at the next turn boundary, together with the commands of handles on other threads.
//! A callback therefore never runs inside another callback.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::command::Command;
use crate::config::Config;
use crate::connect_options::{ConnectOptions, ConnectRequest};
use crate::error::{Error, PutError};
use crate::id::ConnId;
use crate::shared::mailbox::{COMMANDS_MAX, Mailbox};
use crate::socket::Socket;
use crate::time::Tick;

/// Queues commands of a callback, for other connections or for the manager.
///
/// It has the methods of a [`Handle`](crate::Handle) except `stats`, `reject` and `notify`. The
/// methods take no lock. Commands are executed in order, beginning with the next turn. A command
/// for a connection that no longer exists is ignored and counted
/// ([`Stats::stale_commands`](crate::Stats::stale_commands)). If the command is a `send`, the bytes
/// to send are passed to [`Handler::undelivered`](crate::Handler::undelivered).
///
/// ```
/// use pool_manager::{Config, ConnId, Framing, Manager};
/// // Each line is sent to the connection that sent the previous line.
/// let mut last: Option<ConnId> = None;
/// let lines = Config::new().framing(Framing::Delimited(b'\n'));
/// let manager = Manager::new(lines, move |conn, body| {
///     if let Some(other) = last.replace(conn.id()) {
///         conn.commands().send(other, body)?;
///     }
///     Ok(())
/// });
/// ```
#[derive(Debug)]
pub struct Commands {
    waiting: Waiting,
    mailbox: Arc<Mailbox>,
    now: Tick,
}

/// A queue whose `Debug` shows only its length.
struct Waiting(VecDeque<Command>);

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} commands", self.0.len())
    }
}

impl Commands {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { waiting: Waiting(VecDeque::new()), mailbox, now: Tick(0) }
    }

    /// Puts a socket into the pool, as [`Manager::put`](crate::Manager::put) does, at the next turn
    /// boundary. A worker is reserved at once, so that [`Error::Busy`] is returned immediately.
    ///
    /// If the socket cannot be registered later, it is closed and counted
    /// ([`Stats::admit_failures`](crate::Stats::admit_failures)). If a stop begins before the
    /// command is executed, the socket is closed. In both cases
    /// [`Handler::closed`](crate::Handler::closed) is not called.
    ///
    /// # Errors
    /// [`PutError`], which contains the socket.
    pub fn put(&mut self, socket: impl Into<Socket>) -> Result<(), PutError> {
        let socket = socket.into();
        match self.take_permit() {
            Ok(()) => {
                self.waiting.0.push_back(Command::Put(socket));
                Ok(())
            }
            Err(error) => Err(PutError::new(socket, error)),
        }
    }

    /// Starts an outgoing connection at the next turn boundary, as
    /// [`Manager::connect`](crate::Manager::connect) does. A worker is reserved at once, so that
    /// [`Error::Busy`] is returned immediately. If the connection fails later,
    /// [`Handler::closed`](crate::Handler::closed) is called.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::NotRunning`], [`Error::QueueFull`].
    pub fn connect(&mut self, addr: SocketAddr) -> Result<(), Error> {
        self.connect_with(addr, ConnectOptions::default())
    }

    /// Starts an outgoing connection as [`Commands::connect`] does. `options` can set a key and a
    /// deadline.
    ///
    /// # Errors
    /// As [`Commands::connect`].
    pub fn connect_with(&mut self, addr: SocketAddr, options: ConnectOptions) -> Result<(), Error> {
        self.take_permit()?;
        self.waiting.0.push_back(Command::Connect(Box::new(ConnectRequest::new(addr, options))));
        Ok(())
    }

    /// Takes a permit for a connection that the caller will queue. Fails if the manager is not
    /// running, if the queue is full, or if all permits are taken.
    fn take_permit(&self) -> Result<(), Error> {
        self.mailbox.check_running()?;
        if self.waiting.0.len() >= COMMANDS_MAX {
            return Err(Error::QueueFull);
        }
        self.mailbox.take_permit()
    }

    /// Sends bytes to a connection, after the bytes that are queued for it already. If more than
    /// `write_limit` bytes would be unsent, the connection is closed. Bytes that cannot be queued
    /// for the connection are passed to [`Handler::undelivered`](crate::Handler::undelivered).
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn send(&mut self, id: ConnId, bytes: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.push(Command::Send(id, bytes.into()))
    }

    /// Closes a connection after its output is sent.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn close(&mut self, id: ConnId) -> Result<(), Error> {
        self.push(Command::Close(id))
    }

    /// Closes a connection at once, without sending its output. See
    /// [`Conn::abort`](crate::Conn::abort).
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn abort(&mut self, id: ConnId) -> Result<(), Error> {
        self.push(Command::Abort(id))
    }

    /// Closes the write side of a connection, once its output is sent. See
    /// [`Conn::finish`](crate::Conn::finish).
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn finish(&mut self, id: ConnId) -> Result<(), Error> {
        self.push(Command::Finish(id))
    }

    /// Pauses a connection: nothing is read from it, and none of its requests are delivered. Output
    /// is still sent. The pause ends as described at [`Conn::pause`](crate::Conn::pause).
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn pause(&mut self, id: ConnId) -> Result<(), Error> {
        self.push(Command::Pause(id))
    }

    /// Resumes a paused connection. Suspended deadlines are counted from the time at which the
    /// connection resumes.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn resume(&mut self, id: ConnId) -> Result<(), Error> {
        self.push(Command::Resume(id))
    }

    /// Changes the configuration at the next turn boundary. An invalid configuration changes
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid; [`Error::QueueFull`].
    pub fn set_config(&mut self, config: Config) -> Result<(), Error> {
        self.push(Command::SetConfig(Box::new(config.checked()?)))
    }

    /// Begins a graceful stop, as [`Manager::stop`](crate::Manager::stop) does.
    /// [`Manager::run`](crate::Manager::run) returns the report.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn stop(&mut self) -> Result<(), Error> {
        self.push(Command::Stop)
    }

    /// Returns the number of commands in this queue. The queue contains the commands of callbacks,
    /// and the commands of handles that this turn has collected but not yet executed. The maximum
    /// length of the queue is 65,536. A turn executes at most 1,024 commands.
    ///
    /// A broadcast may need many commands. The callback should then queue only a part of them, and
    /// queue the next part when this number is small again.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.waiting.0.len()
    }

    /// Returns the time of this turn, in whole milliseconds since the manager was created. It is
    /// the same in all callbacks of a turn. In the simulator, it is the simulated time. The call
    /// does not read the clock.
    #[must_use]
    pub fn now(&self) -> Duration {
        Tick(0).until(self.now)
    }

    pub(crate) fn set_now(&mut self, now: Tick) {
        self.now = now;
    }

    fn push(&mut self, command: Command) -> Result<(), Error> {
        if self.waiting.0.len() >= COMMANDS_MAX {
            return Err(Error::QueueFull);
        }
        self.waiting.0.push_back(command);
        Ok(())
    }

    #[inline]
    pub(crate) fn has_work(&self) -> bool {
        !self.waiting.0.is_empty() || self.mailbox.is_pending()
    }

    /// Moves commands of handles from the mailbox to the back of this queue, until this queue holds
    /// `batch` commands. The other commands stay in the mailbox. The queue of the mailbox has its
    /// own maximum length. Returns whether a handle has called `notify` since the last collection.
    pub(crate) fn collect(&mut self, batch: usize) -> bool {
        let room = batch.saturating_sub(self.waiting.0.len());
        self.mailbox.is_pending() && self.mailbox.take(&mut self.waiting.0, room)
    }

    pub(crate) fn next(&mut self) -> Option<Command> {
        self.waiting.0.pop_front()
    }
}
