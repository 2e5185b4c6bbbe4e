//! What stands around the rooms under test: loom's locks and atomics, a bell instead of a waker,
//! and small values in the place of large ones.

use loom::sync::{Condvar, Mutex};

/// What the rooms import from `std::sync`. An `Arc` may be the real one: nothing here depends on
/// when it is dropped.
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

        /// The patience never ends: who would have to rely on it is a deadlock here.
        pub(crate) fn wait_timeout_while<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            _patience: Duration,
            mut condition: impl FnMut(&mut T) -> bool,
        ) -> LockResult<(MutexGuard<'a, T>, ())> {
            while condition(&mut guard) {
                guard = self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            Ok((guard, ()))
        }
    }
}

/// The backend's wait and its waker: an edge-triggered eventfd. A ring that nobody waits for
/// ends the next wait; several are one.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.ring.notify_one();
    }

    /// A wait without a timeout.
    pub(crate) fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.ring.wait(rung).unwrap();
        }
        *rung = false;
    }

    /// A wait with a timeout of zero.
    pub(crate) fn glance(&self) {
        *self.rung.lock().unwrap() = false;
    }
}

pub(crate) mod socket {
    /// It only has to be somewhere.
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
