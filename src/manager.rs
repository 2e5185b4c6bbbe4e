//! Manager: the life cycle, and the turn. Read [`Manager::turn`] first; behind it come its phases,
//! in the order in which they run.
//!
//! It owns everything and decides nothing by itself: who is served is the pool's affair, what is
//! done with a connection the worker's, and the world is behind the backend.

mod connecting;
mod connection;
mod control;
mod stopping;
mod waiting;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Backend, Os};
use crate::command::Commands;
use crate::config::Config;
use crate::error::Error;
use crate::handler::{Conn, Handler};
use crate::id::{ConnId, Token};
use crate::lingering::Lingering;
use crate::listener::{ACCEPTS, Accepted, Listeners};
use crate::mailbox::Mailbox;
use crate::peers::Peers;
use crate::pool::{Due, Pool};
use crate::report::{StopReport, Turn};
use crate::time::Tick;
use crate::worker::{Kit, Verdict};

use control::Alarms;
use stopping::Drain;

/// What one turn does at most, so that no phase keeps the others waiting. Connections have a
/// budget of their own per visit, listeners one per listener.
const COMMANDS: usize = 1024;
const TIMERS: usize = 256;

/// A connection pool on one thread: configuration, life cycle and the loop.
///
/// The calls come in this order:
///
/// 1. **Make** it: [`new`](Manager::new) with a closure, or
///    [`with_handler`](Manager::with_handler).
/// 2. **Start** it: [`start`](Manager::start), then [`listen`](Manager::listen),
///    [`listen_on`](Manager::listen_on), [`listen_unix`](Manager::listen_unix) or
///    [`put`](Manager::put) connections that come from elsewhere.
/// 3. **Turn** it: [`run`](Manager::run) until it is stopped, or call [`turn`](Manager::turn) from
///    a loop of your own; [`next_deadline`](Manager::next_deadline) and the descriptor
///    ([`AsFd`](std::os::fd::AsFd)) say when.
/// 4. **Control** it between turns, or from other threads through a [`handle`](Manager::handle):
///    [`set_config`](Manager::set_config), [`stats`](Manager::stats).
/// 5. **Stop** it: [`stop`](Manager::stop), after which it can be started again. Dropping it
///    closes everything at once.
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
    kit: Kit<H, B>,
    pool: Pool<H::Session>,
    listeners: Listeners<B::Listener>,
    lingering: Lingering,
    peers: Peers,
    mailbox: Arc<Mailbox>,
    /// Who was visited since the clock was read, in case it turns out to have taken long.
    visited: Vec<ConnId>,
    /// When spares that were not needed are freed, if there are any.
    reap_at: Tick,
    /// When the handler is called for its own sake; `NEVER` if it does not want to be.
    tick_at: Tick,
    /// What was warned of, so that it is not said too often.
    alarms: Alarms,
    phase: Phase,
}

/// Where a manager is in its life.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Stopped,
    Running,
    Stopping(Drain),
}

/// A closure as the handler: no state per connection, no hooks.
impl<F> Manager<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// A manager that runs `request` on each request.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid.
    pub fn new(config: Config, request: F) -> Result<Self, Error> {
        Self::with_handler(config, request)
    }
}

impl<H: Handler> Manager<H> {
    /// A manager with a handler that keeps a session per connection.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid.
    pub fn with_handler(config: Config, handler: H) -> Result<Self, Error> {
        Self::with_backend(config, handler, Os::new())
    }
}

impl<H: Handler, B: Backend> Manager<H, B> {
    /// A manager over another world than the operating system's.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid.
    pub fn with_backend(config: Config, handler: H, backend: B) -> Result<Self, Error> {
        let config = config.checked()?;
        let mailbox = Arc::new(Mailbox::default());
        let commands = Commands::new(mailbox.clone());
        Ok(Self {
            kit: Kit::new(config, handler, backend, commands),
            pool: Pool::new(),
            listeners: Listeners::new(),
            lingering: Lingering::new(),
            peers: Peers::default(),
            mailbox,
            visited: Vec::new(),
            reap_at: Tick(0),
            tick_at: Tick::NEVER,
            alarms: Alarms::default(),
            phase: Phase::Stopped,
        })
    }

    /// Opens the event loop and warms `min_workers`. From here on sockets can be put.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`]; [`Error::Start`] if descriptors have run out, in which case
    /// none stays open and a later start may succeed.
    pub fn start(&mut self) -> Result<(), Error> {
        if !matches!(self.phase, Phase::Stopped) {
            return Err(Error::AlreadyRunning);
        }
        let wake = self.kit.backend.start().map_err(Error::Start)?;
        self.phase = Phase::Running;
        self.read_clock();
        self.take_effect();
        self.plan_tick();
        self.plan_reaping();
        self.kit.commands.set_open(true);
        self.mailbox.open(wake);
        log::info!("started: {:?}", self.kit.config);
        Ok(())
    }

    /// Runs turns until a callback or a [`Handle`](crate::Handle) asks for a stop and it is done.
    ///
    /// # Errors
    /// As [`Manager::turn`].
    pub fn run(&mut self) -> Result<StopReport, Error> {
        loop {
            if let Some(report) = self.pass(None, |_, turn| turn.stopped)? {
                return Ok(report);
            }
        }
    }

    /// One pass of the loop. Waits until something is ready or due, but not longer than
    /// `timeout` (`None`: as long as it takes), and does a bounded amount of work.
    ///
    /// Called too early it does nothing and returns; called too late, what was due happens late,
    /// but peers that spoke in time are not punished: reads go before deadlines. A signal ends
    /// the wait early, and is no error.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Wait`] if readiness cannot be waited for, after which all
    /// connections are closed and the manager is stopped.
    #[inline(never)]
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<Turn, Error> {
        // Of one copy of the loop, what it calls is built in: so this one is not built into others.
        self.pass(timeout, |manager, turn| Turn { next: manager.next(), ..turn })
    }

    /// A turn, of which `tell` makes what its caller needs to know.
    #[inline(always)]
    fn pass<T>(
        &mut self,
        timeout: Option<Duration>,
        tell: impl FnOnce(&Self, Turn) -> T,
    ) -> Result<T, Error> {
        if matches!(self.phase, Phase::Stopped) {
            return Err(Error::NotRunning);
        }
        self.kit.stats.turns += 1;
        self.wait(timeout)?;
        self.read_clock();
        self.run_commands();
        let events = self.mark_ready();
        let served = self.serve_ready();
        let expired = self.expire_due();
        self.tick();
        let accepted = self.accept_new();
        self.reap_spares();
        self.kit.tell(H::turn_ended);
        let stopped = self.report();
        let told = tell(self, Turn { events, served, expired, accepted, stopped, next: None });
        if timeout == Some(Duration::ZERO) {
            // Who lets no turn wait does so elsewhere, and that is not what took us long.
            self.read_clock();
        }
        Ok(told)
    }

    /// 3. Commands of callbacks and handles, at most a batch.
    fn run_commands(&mut self) {
        if !self.kit.commands.has_work() {
            return;
        }
        self.kit.commands.collect(COMMANDS);
        for _ in 0..COMMANDS {
            let Some(command) = self.kit.commands.next() else { break };
            self.obey(command);
        }
    }

    /// 4. Events go to the ready lists. Those for who is gone are counted and dropped.
    fn mark_ready(&mut self) -> usize {
        let (pool, lingering, listeners) =
            (&mut self.pool, &mut self.lingering, &mut self.listeners);
        let (mut events, mut stale) = (0, 0);
        self.kit.backend.events(|event| {
            events += 1;
            let known = match Token::unpack(event.token) {
                Token::Worker(id) => pool.mark_ready(id, event),
                Token::Lingerer(key) => lingering.mark_ready(key, event),
                Token::Listener(index) => listeners.mark_ready(index),
                Token::Waker => true,
            };
            if !known {
                stale += 1;
            }
        });
        self.kit.stats.events += events as u64;
        self.kit.stats.stale_events += stale;
        events
    }

    /// 5. Serve those that were ready when the phase began, once each.
    fn serve_ready(&mut self) -> usize {
        let before = self.visited.len();
        self.pool.take_ready(&mut self.visited);
        let after = self.visited.len();
        let stopping = matches!(self.phase, Phase::Stopping(_));
        for at in before..after {
            let id = self.visited[at];
            let Some(worker) = self.pool.unlist(id) else { continue };
            let verdict = worker.serve(&mut self.kit);
            // Most are at rest now, and their deadlines are not sooner than before.
            let rests = verdict == Verdict::Wait && worker.vitals.state.is_empty();
            debug_assert!(!rests || worker.vitals.is_filed(self.kit.deadlines), "{id} is due");
            if !rests || stopping {
                self.settle(id, verdict);
            }
        }
        if self.lingering.len() > 0 {
            self.lingering.serve(&mut self.kit.backend, &mut self.kit.stats, self.kit.now);
        }
        after - before
    }

    /// 6. Deadlines, at most a batch, and after the reads.
    fn expire_due(&mut self) -> usize {
        let before = self.kit.stats.expired;
        for _ in 0..TIMERS {
            match self.pool.pop_due(self.kit.now, &self.kit.deadlines) {
                Some(Due::Expired(id)) => self.expire(id),
                Some(Due::Held(id)) => self.serve(id),
                Some(Due::Early) => {}
                None => break,
            }
        }
        (self.kit.stats.expired - before) as usize
    }

    /// 7. Accept, at most a batch a listener, and after those who are here were served.
    #[inline(always)]
    fn accept_new(&mut self) -> usize {
        if !self.listeners.any_ready() {
            return 0;
        }
        let before = self.kit.stats.accepted;
        for index in 0..self.listeners.len() {
            for _ in 0..ACCEPTS {
                let (places, overload) = (&self.mailbox.places, &self.kit.config.overload);
                let (backend, stats) = (&mut self.kit.backend, &mut self.kit.stats);
                match self.listeners.accept(index, backend, places, overload, stats, self.kit.now) {
                    Accepted::Connection { socket, addr, promised, proxied } => {
                        self.welcome(socket, addr, promised, proxied);
                    }
                    Accepted::Skip => {}
                    Accepted::Nothing => break,
                }
            }
            self.listeners.close_finished(index, &mut self.kit.backend);
        }
        (self.kit.stats.accepted - before) as usize
    }

    /// 8. Free warm buffers that were not needed.
    fn reap_spares(&mut self) {
        if self.kit.spares.can_reap() && self.reap_at <= self.kit.now.tick {
            self.kit.spares.reap();
            self.plan_reaping();
        }
    }

    /// From now on spares are reaped after an interval.
    fn plan_reaping(&mut self) {
        self.reap_at = self.kit.now.stamp.after(self.kit.config.reap_interval);
    }

    /// 9. Warn of what should not happen, and complete a stop; when the next turn is due, and what was
    ///    done, is for who called it.
    fn report(&mut self) -> Option<StopReport> {
        self.raise_alarms();
        match self.phase {
            Phase::Stopping(drain) => self.finish_if_drained(drain),
            Phase::Stopped | Phase::Running => None,
        }
    }
}

impl<H: Handler, B: Backend> Drop for Manager<H, B> {
    /// Closes everything once, and waits for nothing.
    fn drop(&mut self) {
        if !matches!(self.phase, Phase::Stopped) {
            self.abort_all();
        }
        self.mailbox.abandon();
    }
}

impl<H: Handler, B: Backend> fmt::Debug for Manager<H, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("phase", &self.phase)
            .field("live", &self.pool.live())
            .field("config", &self.kit.config)
            .finish_non_exhaustive()
    }
}
