//! Errors: what failed, and what to do about it. A refused socket comes back inside.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::ConfigError;
use crate::mailbox::{Command, Mailbox, Refusal};
use crate::socket::{Socket, uninterrupted};

/// Why a call on a [`Manager`](crate::Manager) or a [`Handle`](crate::Handle) failed.
///
/// ```
/// use pool_manager::{Config, Error, Manager};
/// let mut manager = Manager::new(Config::new(), |_conn, _body| Ok(()))?;
/// assert!(matches!(manager.stop(), Err(Error::NotRunning)));
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// `start` of a manager that was started and not stopped.
    AlreadyRunning,
    /// The manager is not started, or stopping, or stopped.
    NotRunning,
    /// The manager was dropped.
    Dropped,
    /// Too many commands wait for the next turn.
    QueueFull,
    /// All workers are taken: as many as this.
    Busy(usize),
    /// A connection to this address could not begin.
    Connect(SocketAddr, io::Error),
    /// The configuration is invalid; nothing of it was applied.
    Config(ConfigError),
    /// The event loop's descriptors could not be opened.
    Start(io::Error),
    /// This address or path could not be listened on.
    Listen(String, io::Error),
    /// Waiting for readiness failed, which leaves the loop blind: all connections were closed
    /// and the manager is stopped.
    Wait(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyRunning => f.write_str("already running"),
            Self::NotRunning => f.write_str("not running: not started, stopping or stopped"),
            Self::Dropped => f.write_str("the manager was dropped"),
            Self::QueueFull => f.write_str("too many commands wait for the loop; try again later"),
            Self::Busy(most) => write!(
                f,
                "can't connect, pool is busy: all {most} workers are taken; raise max_workers"
            ),
            Self::Connect(addr, error) => write!(f, "can't connect to {addr}: {error}"),
            Self::Config(error) => error.fmt(f),
            Self::Start(error) => write!(f, "can't start the event loop: {error}"),
            Self::Listen(name, error) if error.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "can't listen on {name}: it is in use")
            }
            Self::Listen(name, error) => write!(f, "can't listen on {name}: {error}"),
            Self::Wait(error) => write!(f, "can't wait for readiness, all is closed: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::Start(error)
            | Self::Listen(_, error)
            | Self::Connect(_, error)
            | Self::Wait(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Config(_) => io::ErrorKind::InvalidInput,
            Error::Start(error)
            | Error::Listen(_, error)
            | Error::Connect(_, error)
            | Error::Wait(error) => error.kind(),
            Error::QueueFull | Error::Busy(_) => io::ErrorKind::WouldBlock,
            Error::AlreadyRunning | Error::NotRunning | Error::Dropped => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl Error {
    pub(crate) fn refused(refusal: Refusal, mailbox: &Mailbox) -> Self {
        match refusal {
            Refusal::NotRunning => Self::NotRunning,
            Refusal::Dropped => Self::Dropped,
            Refusal::QueueFull => Self::QueueFull,
            Refusal::Busy => Self::Busy(mailbox.places.most()),
        }
    }
}

/// Why a socket was not put. It is given back, open and with nothing read from it.
///
/// ```
/// use pool_manager::{Config, Manager, ERROR_SERVER_BUSY};
/// use std::os::unix::net::UnixStream;
///
/// let mut manager = Manager::new(Config::new().max_workers(1), |_conn, _body| Ok(()))?;
/// manager.start()?;
/// let ((_peer, first), (_other, second)) = (UnixStream::pair()?, UnixStream::pair()?);
/// manager.put(first)?;
/// let refused = manager.put(second).unwrap_err();
/// assert!(refused.is_busy());
/// assert!(refused.to_string().starts_with("can't put, pool is busy"));
/// refused.reply(ERROR_SERVER_BUSY.as_bytes())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PutError {
    /// Never locked: it makes the error `Sync`, which a boxed transport need not be.
    socket: Mutex<Socket>,
    kind: PutErrorKind,
    mailbox: Arc<Mailbox>,
}

/// The kinds of [`PutError`].
#[derive(Debug)]
#[non_exhaustive]
pub enum PutErrorKind {
    /// All workers are taken: as many as this.
    Busy(usize),
    /// The manager is not started, or is stopping, or stopped.
    NotRunning,
    /// The manager was dropped.
    Dropped,
    /// Too many commands wait for the next turn.
    QueueFull,
    /// The socket could not be made non-blocking or registered: it is not one that can be waited
    /// for, or the kernel has no more room for it.
    Unsuitable(io::Error),
}

impl PutError {
    pub(crate) fn new(socket: Socket, kind: PutErrorKind, mailbox: Arc<Mailbox>) -> Self {
        Self { socket: Mutex::new(socket), kind, mailbox }
    }

    pub(crate) fn refused(socket: Socket, refusal: Refusal, mailbox: Arc<Mailbox>) -> Self {
        let kind = match refusal {
            Refusal::NotRunning => PutErrorKind::NotRunning,
            Refusal::Dropped => PutErrorKind::Dropped,
            Refusal::QueueFull => PutErrorKind::QueueFull,
            Refusal::Busy => PutErrorKind::Busy(mailbox.places.most()),
        };
        Self::new(socket, kind, mailbox)
    }

    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> &PutErrorKind {
        &self.kind
    }

    /// Whether all workers were taken.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self.kind, PutErrorKind::Busy(_))
    }

    /// The socket, open and with nothing read from it. It may be in non-blocking mode.
    #[must_use]
    pub fn into_inner(self) -> Socket {
        self.socket.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says a last word to the peer and closes. Never blocks.
    ///
    /// Closing a socket with unread input makes TCP reset it, which destroys a reply on its way;
    /// so a running manager is left to read and discard for a moment. If none is running, what
    /// is there already is discarded and the rest is left to luck.
    ///
    /// # Errors
    /// Not all of `bytes` could be written at once; the socket is closed all the same.
    pub fn reply(self, bytes: &[u8]) -> io::Result<()> {
        let mailbox = self.mailbox.clone();
        let mut socket = self.into_inner();
        socket.set_nonblocking()?;
        let count = uninterrupted(|| socket.write(bytes))?;
        socket.flush()?;
        if count < bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        socket.shutdown_write()?;
        discard(&mut socket);
        // If no loop is there to take it, the socket is dropped here, which is all that is left.
        let _ = mailbox.post(Command::Linger(socket));
        Ok(())
    }
}

/// Reads what is there already, within reason.
fn discard(socket: &mut Socket) {
    let mut waste = [0; 4096];
    for _ in 0..64 {
        match socket.read(&mut waste) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
        }
    }
}

impl fmt::Display for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            PutErrorKind::Busy(most) => write!(
                f,
                "can't put, pool is busy: all {most} workers are taken; \
                 raise max_workers or shed load"
            ),
            PutErrorKind::NotRunning => {
                f.write_str("can't put, not running: not started, stopping or stopped")
            }
            PutErrorKind::Dropped => f.write_str("can't put, the manager was dropped"),
            PutErrorKind::QueueFull => {
                f.write_str("can't put, too many commands wait for the loop; try again later")
            }
            PutErrorKind::Unsuitable(error) => write!(f, "can't put this socket: {error}"),
        }
    }
}

impl fmt::Debug for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutError").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl std::error::Error for PutError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            PutErrorKind::Unsuitable(error) => Some(error),
            _ => None,
        }
    }
}

impl From<PutError> for io::Error {
    fn from(error: PutError) -> Self {
        let kind = match error.kind {
            PutErrorKind::Busy(_) | PutErrorKind::QueueFull => io::ErrorKind::WouldBlock,
            PutErrorKind::Unsuitable(ref error) => error.kind(),
            PutErrorKind::NotRunning | PutErrorKind::Dropped => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::error::Error as _;
    use std::io::ErrorKind;
    use std::os::unix::net::UnixStream;

    fn denied() -> io::Error {
        ErrorKind::PermissionDenied.into()
    }

    /// What it says, what it stems from, and its kind as an `io::Error` that says the same.
    fn told(error: Error) -> (String, bool, ErrorKind) {
        let (said, has_source) = (error.to_string(), error.source().is_some());
        let error = io::Error::from(error);
        assert_eq!(error.to_string(), said);
        (said, has_source, error.kind())
    }

    #[test]
    fn an_error_says_what_failed_and_becomes_one_of_its_kind() {
        let config = Config::new().min_workers(7).max_workers(3).checked().unwrap_err();
        let in_use = ErrorKind::AddrInUse;
        for (error, said, has_source, kind) in [
            (Error::AlreadyRunning, "already running", false, ErrorKind::Other),
            (Error::NotRunning, "not running", false, ErrorKind::Other),
            (Error::Dropped, "the manager was dropped", false, ErrorKind::Other),
            (Error::QueueFull, "too many commands wait", false, ErrorKind::WouldBlock),
            (Error::Busy(3), "can't connect, pool is busy: all 3", false, ErrorKind::WouldBlock),
            (
                Error::Connect(([127, 0, 0, 1], 9).into(), denied()),
                "can't connect to 127.0.0.1:9: perm",
                true,
                ErrorKind::PermissionDenied,
            ),
            (Error::from(config), "min_workers", true, ErrorKind::InvalidInput),
            (Error::Start(denied()), "can't start", true, ErrorKind::PermissionDenied),
            (Error::Wait(denied()), "can't wait", true, ErrorKind::PermissionDenied),
            (
                Error::Listen("::1".into(), denied()),
                "can't listen on ::1: perm",
                true,
                ErrorKind::PermissionDenied,
            ),
            (
                Error::Listen("::1".into(), in_use.into()),
                "can't listen on ::1: it is in use",
                true,
                in_use,
            ),
        ] {
            let (all, source, of) = told(error);
            assert!(all.starts_with(said), "{all}");
            assert_eq!((source, of), (has_source, kind), "{all}");
        }
    }

    #[test]
    fn a_put_that_failed_says_why_and_becomes_an_error_of_its_kind() {
        for (kind, said, has_source, of) in [
            (PutErrorKind::Busy(10), "pool is busy: all 10 workers", false, ErrorKind::WouldBlock),
            (PutErrorKind::QueueFull, "too many commands wait", false, ErrorKind::WouldBlock),
            (PutErrorKind::NotRunning, "not running", false, ErrorKind::Other),
            (PutErrorKind::Dropped, "the manager was dropped", false, ErrorKind::Other),
            (PutErrorKind::Unsuitable(denied()), "perm", true, ErrorKind::PermissionDenied),
        ] {
            let socket = UnixStream::pair().unwrap().0.into();
            let shown = format!("PutError {{ kind: {kind:?}, .. }}");
            let error = PutError::new(socket, kind, Arc::default());
            let all = error.to_string();
            assert!(all.starts_with("can't put") && all.contains(said), "{all}");
            assert_eq!((error.source().is_some(), format!("{error:?}")), (has_source, shown));
            let error = io::Error::from(error);
            assert_eq!((error.kind(), error.to_string()), (of, all));
        }
    }
}
