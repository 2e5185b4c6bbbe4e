//! The state that the thread of the loop and the thread of the peers share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pool_manager::{Socket, Stats};

/// A scenario: one program and its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Echo on a TCP listener.
    Tcp,
    /// Echo on a Unix socket. A stale socket is at its path before the program listens.
    Unix,
    /// Replies that do not fit into the kernel's buffers.
    Blocked,
    /// One worker and several peers. One peer holds the worker. The others are refused, and their
    /// input is not read.
    Busy,
    /// No listener. The thread of the loop and another thread put connections. The other thread
    /// also requests sends, pauses, resumes and closes.
    Handle,
    /// A stop while one peer is idle and another is in the middle of a request. Then a second
    /// start.
    Restart,
}

impl Scenario {
    pub(crate) const ALL: [Self; 6] =
        [Self::Tcp, Self::Unix, Self::Blocked, Self::Busy, Self::Handle, Self::Restart];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Blocked => "blocked",
            Self::Busy => "busy",
            Self::Handle => "handle",
            Self::Restart => "restart",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scenario| scenario.name() == name)
    }
}

/// A request to the thread of the loop to put a connection.
pub(crate) enum PutRequest {
    /// Calls [`pool_manager::Manager::put`].
    Put(Socket),
    /// Puts the socket by a handle. The loop is not waiting when the handle wakes it.
    PutByHandle(Socket),
}

/// The state of the loop, updated after each turn.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) addr: Option<SocketAddr>,
    pub(crate) stats: Stats,
    /// The number of starts.
    pub(crate) starts: u32,
    pub(crate) done: bool,
}

pub(crate) struct Shared {
    pub(crate) scenario: Scenario,
    pub(crate) path: PathBuf,
    /// Time limit for any single wait of a peer.
    pub(crate) timeout: Duration,
    /// `clients_deadline` of the program.
    pub(crate) deadline: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn new(
        scenario: Scenario,
        path: PathBuf,
        timeout: Duration,
        deadline: Duration,
    ) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { scenario, path, timeout, deadline, state, changed }
    }

    /// Calls `change` with the state locked, and wakes all waiting threads.
    pub(crate) fn with_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        result
    }

    /// Waits until `holds` returns true, but not longer than `max`.
    pub(crate) fn wait(&self, max: Duration, mut holds: impl FnMut(&State) -> bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(state, max, |state| !holds(state)));
    }

    /// Returns the address of the listener. Waits until it is known.
    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        self.wait(self.timeout, |state| state.addr.is_some());
        self.with_state(|state| state.addr)
    }

    /// Returns the instant at which a wait that begins now times out.
    pub(crate) fn time_limit(&self) -> Instant {
        Instant::now() + self.timeout
    }
}
