//! Replacements for the modules that the tested modules import: loom's locks and atomics, a waker,
//! and minimal versions of other types.

use loom::sync::{Condvar, Mutex};

/// Replaces `std::sync`. `Arc` is the one of the standard library, since no test depends on when an
/// `Arc` is dropped.
pub(crate) mod sync {
    pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};
    pub(crate) use std::sync::{Arc, PoisonError};

    use std::sync::LockResult;
    use std::time::Duration;

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        /// Ignores the timeout. If a thread needs the timeout to continue, loom reports a deadlock.
        pub(crate) fn wait_timeout_while<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            _timeout: Duration,
            mut condition: impl FnMut(&mut T) -> bool,
        ) -> LockResult<(MutexGuard<'a, T>, ())> {
            while condition(&mut guard) {
                guard = self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            Ok((guard, ()))
        }
    }
}

/// Replaces the wait of the backend and the waker. It behaves like an edge-triggered eventfd: a
/// wake while no thread waits ends the next wait, and several wakes count as one.
#[derive(Debug, Default)]
pub(crate) struct Waker {
    woken: Mutex<bool>,
    condvar: Condvar,
}

impl Waker {
    pub(crate) fn wake(&self) {
        *self.woken.lock().unwrap() = true;
        self.condvar.notify_one();
    }

    /// Waits without a timeout.
    pub(crate) fn wait(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.condvar.wait(woken).unwrap();
        }
        *woken = false;
    }

    /// Waits with a timeout of zero.
    pub(crate) fn poll(&self) {
        *self.woken.lock().unwrap() = false;
    }
}

pub(crate) mod socket {
    /// A socket that is only a number.
    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Socket(pub(crate) u32);
}

pub(crate) mod id {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ConnId(pub(crate) u32);
}

pub(crate) mod connect_options {
    use std::net::SocketAddr;

    #[derive(Clone, Copy, Debug, Default)]
    pub struct ConnectOptions(());

    #[derive(Clone, Copy, Debug)]
    pub struct ConnectRequest;

    impl ConnectRequest {
        pub(crate) fn new(_addr: SocketAddr, _options: ConnectOptions) -> Self {
            Self
        }
    }
}

pub(crate) mod stats {
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Stats {
        pub(crate) turns: usize,
    }
}

pub(crate) mod config {
    use super::error::Error;

    #[derive(Debug)]
    pub struct Config;

    impl Config {
        pub(crate) fn checked(self) -> Result<Self, Error> {
            Ok(self)
        }
    }
}

pub(crate) mod error {
    use super::socket::Socket;

    #[derive(Debug, PartialEq, Eq)]
    pub enum Error {
        NotRunning,
        Dropped,
        QueueFull,
        Busy { max_workers: usize },
    }

    #[derive(Debug)]
    pub struct PutError(#[allow(dead_code)] Socket);

    impl PutError {
        pub(crate) fn new(socket: Socket, _error: Error) -> Self {
            Self(socket)
        }
    }
}

pub(crate) mod time {
    use std::time::Duration;

    #[derive(Clone, Copy, Debug)]
    pub struct Tick(pub(crate) u64);

    impl Tick {
        pub(crate) fn until(self, later: Self) -> Duration {
            Duration::from_millis(later.0 - self.0)
        }
    }
}
