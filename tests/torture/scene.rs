//! What the loop's thread and its peers' thread know of each other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pool_manager::{Socket, Stats};

/// What is played. Each is one program and its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Echo on a TCP listener.
    Tcp,
    /// Echo on a Unix socket, in place of a stale one.
    Unix,
    /// Replies that do not fit into the kernel's buffers.
    Blocked,
    /// One worker, and more who want it: they are told so, with their input unread.
    Busy,
    /// No listener: put, send, pause, resume and close, from this thread and from another.
    Handle,
    /// A stop with an idle peer and one in the middle of a request, and a second start.
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

/// A connection for the loop's own thread to put.
pub(crate) enum Errand {
    /// By [`pool_manager::Manager::put`].
    Put(Socket),
    /// By a handle, which then wakes a loop that does not sleep.
    PutByHandle(Socket),
}

/// What the loop tells after each turn.
#[derive(Default)]
pub(crate) struct News {
    pub(crate) addr: Option<SocketAddr>,
    pub(crate) stats: Stats,
    /// How often it was started.
    pub(crate) lives: u32,
    pub(crate) done: bool,
}

pub(crate) struct Scene {
    pub(crate) scenario: Scenario,
    pub(crate) path: PathBuf,
    /// How long a peer waits for anything.
    pub(crate) patience: Duration,
    /// How long it may be silent.
    pub(crate) deadline: Duration,
    news: Mutex<News>,
    changed: Condvar,
}

impl Scene {
    pub(crate) fn new(
        scenario: Scenario,
        path: PathBuf,
        patience: Duration,
        deadline: Duration,
    ) -> Self {
        let (news, changed) = (Mutex::default(), Condvar::new());
        Self { scenario, path, patience, deadline, news, changed }
    }

    pub(crate) fn tell<T>(&self, change: impl FnOnce(&mut News) -> T) -> T {
        let told = change(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        told
    }

    /// Waits until something holds, but not longer than this.
    pub(crate) fn wait(&self, max: Duration, mut holds: impl FnMut(&News) -> bool) {
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(news, max, |news| !holds(news)));
    }

    /// Where to connect; waits until there is such a place.
    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        self.wait(self.patience, |news| news.addr.is_some());
        self.tell(|news| news.addr)
    }

    /// Until when a peer that begins to wait now waits.
    pub(crate) fn patient_until(&self) -> Instant {
        Instant::now() + self.patience
    }
}
