//! Commands of callbacks: asked for while the loop is busy, done at the turn boundary.
//!
//! Nothing re-enters: a callback sees its own connection and this commands, never the pool. What it
//! asks for waits here, next to what handles on other threads asked for. The commands knows what is
//! asked, not how it is done.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::command::Command;
use crate::config::Config;
use crate::connect_options::{ConnectOptions, ConnectRequest};
use crate::error::{Error, PutError};
use crate::id::ConnId;
use crate::shared::mailbox::{COMMANDS_MAX, Mailbox};
use crate::socket::Socket;

/// Where a callback leaves what it wants done to other connections or to the manager.
///
/// The same calls as on a [`Handle`](crate::Handle) but `stats`, without its locks. They are carried
/// out in order, after the connections that are being served now. A command for a connection that
/// no longer exists is counted and does nothing.
///
/// ```
/// use pool_manager::{Config, ConnId, Framing, Manager};
/// // Every line goes to the connection that spoke before.
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
}

/// A queue whose `Debug` shows its length alone.
struct Waiting(VecDeque<Command>);

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} commands", self.0.len())
    }
}

impl Commands {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { waiting: Waiting(VecDeque::new()), mailbox }
    }

    /// Puts a socket. The answer "busy" is immediate; the place is taken, and the connection is
    /// served from the next turn on.
    ///
    /// # Errors
    /// [`PutError`], with the socket inside.
    pub fn put(&mut self, socket: impl Into<Socket>) -> Result<(), PutError> {
        let socket = socket.into();
        match self.take_place() {
            Ok(()) => {
                self.waiting.0.push_back(Command::Put(socket));
                Ok(())
            }
            Err(error) => Err(PutError::new(socket, error)),
        }
    }

    /// Begins a connection, as [`Manager::connect`](crate::Manager::connect) does. The answer "busy"
    /// is immediate; the place is taken, and the connection begins at the turn boundary. If that
    /// fails, [`Handler::closed`](crate::Handler::closed) is told.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::NotRunning`], [`Error::QueueFull`].
    pub fn connect(&mut self, addr: SocketAddr) -> Result<(), Error> {
        self.connect_with(addr, ConnectOptions::default())
    }

    /// As [`Commands::connect`], with a key to know it by, or a deadline of its own.
    ///
    /// # Errors
    /// As [`Commands::connect`].
    pub fn connect_with(&mut self, addr: SocketAddr, options: ConnectOptions) -> Result<(), Error> {
        self.take_place()?;
        self.waiting.0.push_back(Command::Connect(Box::new(ConnectRequest::new(addr, options))));
        Ok(())
    }

    /// A place for what is to be queued, if there is room for it in the queue.
    fn take_place(&self) -> Result<(), Error> {
        self.mailbox.check_running()?;
        if self.waiting.0.len() >= COMMANDS_MAX {
            return Err(Error::QueueFull);
        }
        self.mailbox.take_permit()
    }

    /// Sends bytes to a connection, behind what it has been sent already.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn send(&mut self, id: ConnId, bytes: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.push(Command::Send(id, bytes.into()))
    }

    /// Closes a connection after flushing what it has been sent.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn close(&mut self, id: ConnId) -> Result<(), Error> {
        self.push(Command::Close(id))
    }

    /// Stops reading from and delivering for a connection; its deadlines stand still unless it
    /// owes a reply.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn pause(&mut self, id: ConnId) -> Result<(), Error> {
        self.push(Command::Pause(id))
    }

    /// Takes up again what [`Commands::pause`] stopped; its idle deadline starts anew.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn resume(&mut self, id: ConnId) -> Result<(), Error> {
        self.push(Command::Resume(id))
    }

    /// Changes the configuration; an invalid one changes nothing.
    ///
    /// # Errors
    /// [`Error::Config`] at once if it is invalid; [`Error::QueueFull`].
    pub fn set_config(&mut self, config: Config) -> Result<(), Error> {
        self.push(Command::SetConfig(Box::new(config.checked()?)))
    }

    /// Asks for a graceful stop, as [`Manager::stop`](crate::Manager::stop) does; the report is
    /// what `run` returns.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn stop(&mut self) -> Result<(), Error> {
        self.push(Command::Stop)
    }

    /// How many commands wait to be carried out: those of callbacks, and of handles those that are
    /// next. At most 65,536; a turn carries out 1,024. Who has much to ask for, such as a
    /// broadcast, asks for it while few wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.waiting.0.len()
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

    /// Gathers what handles asked for behind what callbacks did, up to `batch` in all: the rest
    /// stays in the mailbox, where its limit holds.
    pub(crate) fn collect(&mut self, batch: usize) {
        let room = batch.saturating_sub(self.waiting.0.len());
        if room > 0 && self.mailbox.is_pending() {
            self.mailbox.take(&mut self.waiting.0, room);
        }
    }

    pub(crate) fn next(&mut self) -> Option<Command> {
        self.waiting.0.pop_front()
    }
}
