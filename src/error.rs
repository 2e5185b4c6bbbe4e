//! The errors of this crate. The message of an error says what failed. [`PutError`] also contains
//! the refused socket.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use crate::config::ConfigError;
use crate::socket::Socket;

/// Returned when a call on a [`Manager`](crate::Manager), a [`Handle`](crate::Handle) or the
/// [`Commands`](crate::Commands) of a callback fails.
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
    /// `start` was called on a manager that is already started.
    AlreadyRunning,
    /// The manager is not started, or is stopping, or stopped.
    NotRunning,
    /// The manager was dropped.
    Dropped,
    /// The command queue is full: 65,536 commands wait for the next turn.
    QueueFull,
    /// All workers are taken.
    Busy {
        /// The configured [`max_workers`](crate::Config::max_workers).
        max_workers: usize,
    },
    /// The socket could not be made non-blocking or registered with the event loop. For example,
    /// its descriptor does not support polling, or the kernel has run out of memory.
    Unsuitable(io::Error),
    /// An outgoing connection could not be started.
    Connect {
        /// The address to connect to.
        addr: SocketAddr,
        /// The error of `socket(2)` or `connect(2)`.
        source: io::Error,
    },
    /// The configuration is invalid. None of its settings was applied.
    Config(ConfigError),
    /// The event loop's descriptors could not be opened.
    Start(io::Error),
    /// The listener could not be bound or registered.
    Listen {
        /// The address or path.
        addr: String,
        /// The error of the system call that failed.
        source: io::Error,
    },
    /// Waiting for readiness failed. All connections were closed and the manager is stopped.
    Wait(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyRunning => f.write_str("already running"),
            Self::NotRunning => f.write_str("not running: not started, stopping or stopped"),
            Self::Dropped => f.write_str("the manager was dropped"),
            Self::QueueFull => f.write_str("too many commands wait for the loop; try again later"),
            Self::Busy { max_workers } => write!(
                f,
                "pool is busy: all {max_workers} workers are taken; raise max_workers or shed load"
            ),
            Self::Unsuitable(source) => write!(f, "the socket can't be registered: {source}"),
            Self::Connect { addr, source } => write!(f, "can't connect to {addr}: {source}"),
            Self::Config(error) => error.fmt(f),
            Self::Start(source) => write!(f, "can't open the event loop: {source}"),
            Self::Listen { addr, source } if source.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "can't listen on {addr}: it is in use")
            }
            Self::Listen { addr, source } => write!(f, "can't listen on {addr}: {source}"),
            Self::Wait(source) => {
                write!(f, "can't wait for readiness, all connections are closed: {source}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::Unsuitable(source)
            | Self::Start(source)
            | Self::Listen { source, .. }
            | Self::Connect { source, .. }
            | Self::Wait(source) => Some(source),
            Self::AlreadyRunning
            | Self::NotRunning
            | Self::Dropped
            | Self::QueueFull
            | Self::Busy { .. } => None,
        }
    }
}

impl Error {
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Config(_) => io::ErrorKind::InvalidInput,
            Self::Unsuitable(source)
            | Self::Start(source)
            | Self::Listen { source, .. }
            | Self::Connect { source, .. }
            | Self::Wait(source) => source.kind(),
            Self::QueueFull | Self::Busy { .. } => io::ErrorKind::WouldBlock,
            Self::AlreadyRunning | Self::NotRunning | Self::Dropped => io::ErrorKind::Other,
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
        Self::new(error.kind(), error)
    }
}

/// Returned when a socket cannot be put into the pool ([`Manager::put`](crate::Manager::put)).
/// Contains the socket and the error. The socket is open, and nothing was read from it.
///
/// To send a reply to the peer, pass the socket to [`Handle::reject`](crate::Handle::reject).
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
/// manager.handle().reject(refused.into_socket(), ERROR_SERVER_BUSY.as_bytes())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PutError {
    /// The mutex is never locked. It makes the error `Sync` even if the socket is a boxed transport
    /// that is not `Sync`.
    socket: Mutex<Socket>,
    error: Error,
}

impl PutError {
    pub(crate) fn new(socket: Socket, error: Error) -> Self {
        Self { socket: Mutex::new(socket), error }
    }

    /// Returns the reason why the socket was not put into the pool.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// Returns whether all workers were taken.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self.error, Error::Busy { .. })
    }

    /// Returns the socket. It may be in non-blocking mode.
    #[must_use]
    pub fn into_socket(self) -> Socket {
        self.socket.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "can't put, {}", self.error)
    }
}

impl fmt::Debug for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl std::error::Error for PutError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<PutError> for io::Error {
    fn from(error: PutError) -> Self {
        Self::new(error.error.kind(), error)
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

    /// Returns the text of an error, whether the error has a source, and its kind after conversion
    /// to `io::Error`. Checks that the `io::Error` has the same text.
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
            (Error::Busy { max_workers: 3 }, "pool is busy: all 3", false, ErrorKind::WouldBlock),
            (Error::Unsuitable(denied()), "the socket", true, ErrorKind::PermissionDenied),
            (
                Error::Connect { addr: ([127, 0, 0, 1], 9).into(), source: denied() },
                "can't connect to 127.0.0.1:9: perm",
                true,
                ErrorKind::PermissionDenied,
            ),
            (Error::from(config), "min_workers", true, ErrorKind::InvalidInput),
            (Error::Start(denied()), "can't open", true, ErrorKind::PermissionDenied),
            (Error::Wait(denied()), "can't wait", true, ErrorKind::PermissionDenied),
            (
                Error::Listen { addr: "::1".into(), source: denied() },
                "can't listen on ::1: perm",
                true,
                ErrorKind::PermissionDenied,
            ),
            (
                Error::Listen { addr: "::1".into(), source: in_use.into() },
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
        let busy = Error::Busy { max_workers: 10 };
        for (error, said, has_source, of) in [
            (busy, "pool is busy: all 10 workers", false, ErrorKind::WouldBlock),
            (Error::QueueFull, "too many commands wait", false, ErrorKind::WouldBlock),
            (Error::NotRunning, "not running", false, ErrorKind::Other),
            (Error::Dropped, "the manager was dropped", false, ErrorKind::Other),
            (Error::Unsuitable(denied()), "perm", true, ErrorKind::PermissionDenied),
        ] {
            let socket = UnixStream::pair().unwrap().0.into();
            let shown = format!("PutError {{ error: {error:?}, .. }}");
            let error = PutError::new(socket, error);
            let all = error.to_string();
            assert!(all.starts_with("can't put, ") && all.contains(said), "{all}");
            assert_eq!((error.source().is_some(), format!("{error:?}")), (has_source, shown));
            let error = io::Error::from(error);
            assert_eq!((error.kind(), error.to_string()), (of, all));
        }
    }
}
