//! The manager and its life cycle. The loop is in `manager/turn.rs`: read [`Manager::turn`] first.
//!
//! The manager owns all other parts and delegates to them. The pool knows which connections have
//! work. A worker decides what is done with its connection. The backend provides sockets, readiness
//! and time.

mod connect;
mod connections;
mod execute;
mod listen;
mod stop;
mod turn;
mod warnings;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::commands::Commands;
use crate::config::Config;
use crate::conn::Conn;
use crate::error::Error;
use crate::handle::Handle;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::lingering::Lingering;
use crate::listeners::Listeners;
use crate::peer_counts::PeerCounts;
use crate::pool::Pool;
use crate::report::StopReport;
use crate::shared::mailbox::{LifeCycle, Mailbox};
use crate::stats::Stats;
use crate::sys::{Backend, Os};
use crate::time::Tick;
use crate::worker::Context;

use stop::Drain;
use warnings::Warnings;

/// A connection pool on one thread: configuration, life cycle and the loop.
///
/// The calls come in this order:
///
/// 1. **Make** it: [`new`](Manager::new) with a closure, or
///    [`with_handler`](Manager::with_handler).
/// 2. **Start** it: [`start`](Manager::start), then [`listen`](Manager::listen),
///    [`listen_on`](Manager::listen_on) or [`listen_unix`](Manager::listen_unix). Connected sockets
///    from elsewhere are passed to [`put`](Manager::put).
/// 3. **Turn** it: [`run`](Manager::run) returns when the manager is stopped. Alternatively, call
///    [`turn`](Manager::turn) from your own loop when the descriptor ([`AsFd`](std::os::fd::AsFd))
///    is readable or [`next_timeout`](Manager::next_timeout) has passed.
/// 4. **Control** it: call [`set_config`](Manager::set_config) and [`stats`](Manager::stats)
///    between turns, or use a [`handle`](Manager::handle) from other threads.
/// 5. **Stop** it: [`stop`](Manager::stop). Afterwards the manager can be started again. Dropping
///    the manager closes everything at once.
///
/// ```
/// use pool_manager::{Config, Framing, Manager};
/// use std::io::{Read, Write};
/// use std::net::TcpStream;
/// use std::time::Duration;
///
/// let config = Config::new().framing(Framing::Drained);
/// let mut echo = Manager::new(config, |conn, body| conn.write_all(body))?;
/// echo.start()?;
/// let addr = echo.listen("127.0.0.1:0")?;
///
/// let mut client = TcpStream::connect(addr)?;
/// client.write_all(b"hello")?;
/// while echo.stats().bytes_out < 5 {
///     echo.turn(Some(Duration::from_secs(1)))?;
/// }
/// let mut reply = [0; 5];
/// client.read_exact(&mut reply)?;
/// assert_eq!(&reply, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Manager<H: Handler, B: Backend = Os> {
    cx: Context<H, B>,
    pool: Pool<H>,
    listeners: Listeners<B::Listener>,
    lingering: Lingering,
    peer_counts: PeerCounts,
    mailbox: Arc<Mailbox>,
    /// The stop in progress. It is `None` while a stop closes idle connections, and while the
    /// remaining connections are aborted: such connections do not linger.
    drain: Option<Drain>,
    /// The connections visited since the clock was last read. If the visits took long, the next
    /// reading of the clock moves the timestamps of these connections: see
    /// [`ConnState::credit`](crate::conn_state::ConnState::credit).
    visited: Vec<ConnId>,
    /// The tick at which unneeded warm buffers are freed next.
    reap_at: Tick,
    /// The tick at which [`Handler::tick`] is called next. `NEVER` if it is off.
    tick_at: Tick,
    warnings: Warnings,
}

/// A manager whose handler is a closure. It has no session and no hooks.
impl<F> Manager<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// Creates a manager that calls `request` with each request.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid; [`Error::Start`] if the event loop's
    /// descriptors cannot be opened.
    pub fn new(config: Config, request: F) -> Result<Self, Error> {
        Self::with_handler(config, request)
    }
}

impl<H: Handler> Manager<H> {
    /// Creates a manager with a handler that keeps a session per connection.
    ///
    /// # Errors
    /// As [`Manager::new`].
    pub fn with_handler(config: Config, handler: H) -> Result<Self, Error> {
        let config = config.checked()?;
        Self::with_backend(config, handler, Os::new().map_err(Error::Start)?)
    }
}

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Creates a manager with a backend other than the operating system.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid.
    pub fn with_backend(config: Config, handler: H, backend: B) -> Result<Self, Error> {
        let config = config.checked()?;
        let mailbox = Arc::new(Mailbox::default());
        let commands = Commands::new(mailbox.clone());
        Ok(Self {
            cx: Context::new(config, handler, backend, commands),
            pool: Pool::new(),
            listeners: Listeners::new(),
            lingering: Lingering::new(),
            peer_counts: PeerCounts::default(),
            mailbox,
            drain: None,
            visited: Vec::new(),
            reap_at: Tick(0),
            tick_at: Tick::NEVER,
            warnings: Warnings::default(),
        })
    }

    /// Starts the manager and allocates `min_workers` warm buffers. From now on, [`Manager::put`],
    /// [`Manager::connect`] and the listen methods can be called.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`]; [`Error::Start`] if the backend cannot start, or if a socket of
    /// [`Manager::stop_on`] cannot be registered.
    pub fn start(&mut self) -> Result<(), Error> {
        if !self.is_stopped() {
            return Err(Error::AlreadyRunning);
        }
        let wake = self.cx.backend.start().map_err(Error::Start)?;
        if let Err(error) = self.listeners.register_signals(&mut self.cx.backend) {
            self.cx.backend.stop();
            return Err(Error::Start(error));
        }
        self.read_clock();
        self.apply_to_pool();
        self.plan_tick();
        self.plan_reaping();
        self.mailbox.open(wake);
        log::info!("started: {:?}", self.cx.config);
        Ok(())
    }

    /// Runs turns until a stop is complete. A callback, a [`Handle`] or a signal
    /// ([`Manager::stop_on`]) requests the stop.
    ///
    /// # Errors
    /// As [`Manager::turn`].
    pub fn run(&mut self) -> Result<StopReport, Error> {
        loop {
            if let Some(report) = self.turn(None)?.stopped {
                return Ok(report);
            }
        }
    }

    /// Returns the time after which [`Manager::turn`] has something to do even if the descriptor
    /// does not become readable. The time is rounded up to a millisecond. It is zero if there is
    /// work now. Returns `None` if nothing is planned. Use this method in a loop of your own. This
    /// method reads the clock.
    #[must_use]
    pub fn next_timeout(&mut self) -> Option<Duration> {
        if self.is_stopped() {
            return None;
        }
        self.read_clock();
        let due = self.due();
        (due != Tick::NEVER).then(|| self.cx.now.floor.until(due))
    }

    /// Returns a handle, with which other threads control the manager.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.mailbox.clone())
    }

    /// Returns the handler.
    #[must_use]
    pub fn handler(&self) -> &H {
        &self.cx.handler
    }

    /// Returns the handler, to change it between turns.
    #[must_use]
    pub fn handler_mut(&mut self) -> &mut H {
        &mut self.cx.handler
    }

    /// Returns the configuration in effect.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.cx.config
    }

    /// Returns a snapshot of the counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        debug_assert_eq!(self.cx.buffers.kept(), self.pool.kept(), "bytes that workers keep");
        let mut stats = self.cx.stats;
        stats.bytes_held = self.cx.buffers.kept() as u64;
        stats.live = self.pool.live() as u64;
        stats.spare = self.cx.buffers.len() as u64;
        stats.busy = self.mailbox.permits.refused();
        stats.lingering = self.lingering.len() as u64;
        stats.buffers_allocated = self.cx.buffers.allocated();
        stats
    }

    fn is_stopped(&self) -> bool {
        matches!(self.mailbox.life_cycle(), LifeCycle::Stopped | LifeCycle::Dropped)
    }

    fn is_running(&self) -> bool {
        self.mailbox.life_cycle() == LifeCycle::Running
    }

    fn is_stopping(&self) -> bool {
        self.drain.is_some()
    }

    fn check_running(&self) -> Result<(), Error> {
        self.mailbox.check_running()
    }
}

#[cfg(not(mio_unsupported_force_poll_poll))]
impl<H: Handler> std::os::fd::AsFd for Manager<H> {
    /// Returns the descriptor of the event loop. It is readable when there are events for a turn.
    /// Another loop can wait until it is readable, for at most [`Manager::next_timeout`]. The
    /// descriptor stays the same for the manager's whole life. It is not readable while the manager
    /// is stopped.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.cx.backend.descriptor()
    }
}

impl<H: Handler, B: Backend> Drop for Manager<H, B> {
    /// Closes every connection at once, without flushing.
    fn drop(&mut self) {
        if !self.is_stopped() {
            self.abort_all();
        }
        self.mailbox.mark_dropped();
    }
}

impl<H: Handler, B: Backend> fmt::Debug for Manager<H, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("life_cycle", &self.mailbox.life_cycle())
            .field("live", &self.pool.live())
            .field("config", &self.cx.config)
            .finish_non_exhaustive()
    }
}
