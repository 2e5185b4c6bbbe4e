//! Control: configuration, commands, stats, and when to call again. The manager between turns.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use super::{Manager, Phase};
use crate::backend::{Backend, ListenSocket};
use crate::config::Config;
use crate::error::Error;
use crate::handle::Handle;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::mailbox::Command;
use crate::stats::Stats;
use crate::time::{Now, Tick};
use crate::trust::ListenOptions;
use crate::unix::{self, Claim};
use crate::vitals::{CloseReason, State};
use crate::worker::Worker;

/// At most one warning of a kind in this time.
const ALARM_INTERVAL: Duration = Duration::from_secs(1);

/// Tells of a growing counter, but not too often: what peers can cause must not fill a log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Alarm {
    seen: u64,
    not_before: Option<Tick>,
}

impl Alarm {
    /// By how much `count` has grown, if that is worth telling now.
    fn news(&mut self, count: u64, now: Now) -> Option<u64> {
        let grown = count - self.seen;
        if grown == 0 || self.not_before.is_some_and(|tick| tick > now.tick) {
            return None;
        }
        *self = Self { seen: count, not_before: Some(now.stamp.after(ALARM_INTERVAL)) };
        Some(grown)
    }
}

/// What a manager warns of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Alarms {
    slow: Alarm,
    panics: Alarm,
    lost: Alarm,
    crowded: Alarm,
}

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Listens on a TCP address and returns the one bound, with the port the system chose for
    /// port 0. The address can be used again right after a stop. The backlog is the standard
    /// library's (128 on most systems); [`Manager::listen_on`] takes a listener with any.
    ///
    /// `TCP_NODELAY` is set, and inherited by what is accepted.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Listen`] if none of the addresses can be bound.
    pub fn listen(&mut self, addr: impl ToSocketAddrs) -> Result<SocketAddr, Error> {
        self.check_running()?;
        let failed = |name: String| move |error| Error::Listen(name, error);
        let addrs: Vec<SocketAddr> =
            addr.to_socket_addrs().map_err(failed("an unknown address".into()))?.collect();
        let names: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
        let name = if names.is_empty() { "no address".into() } else { names.join(" or ") };
        let listener = TcpListener::bind(&addrs[..]).map_err(failed(name.clone()))?;
        let bound = listener.local_addr().map_err(failed(name))?;
        let options = ListenOptions::default();
        self.listen_to(listener.into(), None, options, &bound.to_string())?;
        Ok(bound)
    }

    /// Listens on a TCP or Unix listener that was bound elsewhere, by `socket2` with a backlog
    /// or options of your own, or by a parent process.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Listen`] if it cannot be waited for.
    pub fn listen_on(&mut self, listener: impl Into<ListenSocket>) -> Result<(), Error> {
        self.listen_with(listener, ListenOptions::default())
    }

    /// As [`Manager::listen_on`], with options: connections that a balancer passes on, for one.
    ///
    /// # Errors
    /// As [`Manager::listen_on`].
    pub fn listen_with(
        &mut self,
        listener: impl Into<ListenSocket>,
        options: ListenOptions,
    ) -> Result<(), Error> {
        self.check_running()?;
        let bound = listener.into();
        let name = bound.addr().map_or_else(|| "a Unix socket".into(), |addr| addr.to_string());
        self.listen_to(bound, None, options, &name)
    }

    /// Listens on a Unix domain socket at `path`, with mode 0600 from the first moment on. A
    /// stale socket there is replaced, a live one is not. The path is removed at stop.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Listen`] if the path is in use, is no socket, is too
    /// long for a socket's address (107 bytes on Linux), or cannot be written.
    pub fn listen_unix(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.check_running()?;
        let path = path.as_ref();
        let name = path.display().to_string();
        let (listener, claim) =
            unix::bind(path).map_err(|error| Error::Listen(name.clone(), error))?;
        self.listen_to(listener.into(), Some(claim), ListenOptions::default(), &name)
    }

    /// Gives the listeners back, without closing them, and accepts no more: those who connect wait
    /// in the kernel's backlog until somebody else does. Connections are served as before. So a
    /// successor, another manager or another process, can go on with them, and nobody is refused
    /// in between; [`Manager::listen_on`] takes one back if there is none.
    ///
    /// They are non-blocking, and closed when another program is executed unless that is changed
    /// (`FD_CLOEXEC`; the example `restart` shows how, and what to do with who is still here). A
    /// Unix socket's path is no longer removed at stop. Empty if the manager is not running, or
    /// stopping, which closes them.
    ///
    /// ```
    /// use pool_manager::{Config, Manager};
    /// use std::io::Write;
    /// let [mut old, mut new] = [(); 2].map(|()| {
    ///     Manager::new(Config::new(), |conn, _| conn.write_all(b"OK")).expect("a configuration")
    /// });
    /// old.start()?;
    /// new.start()?;
    /// old.listen("127.0.0.1:0")?;
    /// for listener in old.take_listeners() {
    ///     new.listen_on(listener)?;
    /// }
    /// old.stop()?;
    /// # Ok::<(), pool_manager::Error>(())
    /// ```
    #[must_use = "listeners that are dropped are closed, and who waits at them is reset"]
    pub fn take_listeners(&mut self) -> Vec<ListenSocket> {
        if !matches!(self.phase, Phase::Running) {
            return Vec::new();
        }
        let taken = self.listeners.take(&mut self.kit.backend);
        if !taken.is_empty() {
            log::info!("no longer listening: {} listeners are handed on", taken.len());
        }
        taken
    }

    fn listen_to(
        &mut self,
        bound: ListenSocket,
        claim: Option<Claim>,
        options: ListenOptions,
        name: &str,
    ) -> Result<(), Error> {
        self.listeners
            .listen(&mut self.kit.backend, bound, claim, options)
            .map_err(|error| Error::Listen(name.into(), error))?;
        log::info!("listening on {name}");
        Ok(())
    }

    pub(super) fn check_running(&self) -> Result<(), Error> {
        match self.phase {
            Phase::Running => Ok(()),
            Phase::Stopped | Phase::Stopping(_) => Err(Error::NotRunning),
        }
    }

    /// A remote control for other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.mailbox.clone())
    }

    /// The configuration in effect: zeros are replaced by the defaults they stand for.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.kit.config
    }

    /// Changes the configuration, as a whole or not at all, and returns the one now in effect.
    ///
    /// Nobody is cut off: lowering `max_workers` makes `put` say busy until there are fewer; a
    /// smaller `buffer_size` holds for a connection once it has let go of what it holds, a larger
    /// one at once if `memory_limit` allows; what is held beyond a lowered `max_request` or
    /// `memory_limit` stays until it is let go of. Held bytes are framed anew. The idle deadline is
    /// counted from when bytes last moved, the total one from the request's first byte; either may
    /// have passed already. Who used a burst under another `rate_limit` has used one under this.
    /// Takes time in proportion to the number of connections.
    ///
    /// # Errors
    /// [`Error::Config`]; the configuration is as before.
    pub fn set_config(&mut self, config: Config) -> Result<&Config, Error> {
        self.apply(config.checked()?);
        Ok(&self.kit.config)
    }

    fn apply(&mut self, config: Config) {
        let Config { tick, reap_interval, .. } = self.kit.config;
        self.kit.configure(config);
        if matches!(self.phase, Phase::Stopped) {
            return;
        }
        self.take_effect();
        // What is planned already is not put off by being asked for again.
        if self.kit.config.tick != tick {
            self.plan_tick();
        }
        if self.kit.config.reap_interval != reap_interval {
            self.plan_reaping();
        }
        for id in self.pool.ids() {
            let Some(worker) = self.pool.get_mut(id) else { continue };
            worker.vitals.change_pace(self.kit.deadlines.pace, self.kit.now);
            worker.input.set_scanned(0);
            if !worker.input.is_empty() {
                self.kit.spares.enlarge(&mut worker.input);
                self.pool.list(id);
            }
            self.pool.file(id, self.kit.deadlines);
        }
        log::info!("configured: {:?}", self.kit.config);
    }

    /// Has everything but the connections follow the configuration.
    pub(super) fn take_effect(&mut self) {
        self.mailbox.places.set_most(self.kit.config.max_workers);
        self.kit.configure_spares();
        self.pool.reserve(self.kit.config.min_workers);
        self.visited.reserve(self.kit.config.min_workers);
    }

    /// A snapshot of the counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        debug_assert_eq!(self.kit.spares.kept(), self.pool.kept(), "bytes that workers keep");
        let mut stats = self.kit.stats;
        stats.bytes_held = self.kit.spares.kept() as u64;
        stats.live = self.pool.live() as u64;
        stats.spare = self.kit.spares.len() as u64;
        stats.busy = self.mailbox.places.refused();
        stats.lingering = self.lingering.len() as u64;
        stats.buffers_allocated = self.kit.spares.allocated();
        stats
    }

    /// How long from now until [`Manager::turn`] has something to do even if the descriptor does
    /// not become readable: zero if it has now, `None` if nothing is planned. For a loop of your
    /// own; reads the clock.
    #[must_use]
    pub fn next_deadline(&mut self) -> Option<Duration> {
        if matches!(self.phase, Phase::Stopped) {
            return None;
        }
        self.read_clock();
        self.next()
    }

    /// Carries out one command.
    #[inline(never)]
    pub(super) fn obey(&mut self, command: Command) {
        self.kit.stats.commands += 1;
        match command {
            Command::Put(socket) if matches!(self.phase, Phase::Running) => {
                let outcome = self.adopt(socket);
                self.lose(outcome);
            }
            Command::Put(socket) => self.give_up(socket),
            Command::Connect(call) => self.obey_call(*call),
            Command::Linger(socket) => self.linger(socket),
            Command::SetConfig(config) => self.apply(*config),
            Command::PublishStats(question) => self.mailbox.publish(question, &self.stats()),
            Command::Stop => self.begin_stop(),
            Command::Send(id, bytes) => self.send(id, bytes),
            Command::Close(id) => {
                self.change(id, |worker| worker.vitals.end(CloseReason::Requested));
            }
            Command::Pause(id) => {
                self.change(id, |worker| worker.vitals.state.set(State::PAUSED, true));
            }
            Command::Resume(id) => {
                let stamp = self.kit.now.stamp;
                self.change(id, |worker| worker.vitals.resume(stamp));
            }
        }
    }

    /// Queues bytes behind what a connection has been sent. Behind a close they have no place, and
    /// come back as those for nobody do.
    fn send(&mut self, id: ConnId, bytes: Vec<u8>) {
        let limit = self.kit.config.write_limit;
        let (mut closing, mut taken) = (false, false);
        let known = self.change(id, |worker| {
            closing = worker.vitals.ending().is_some_and(|reason| !reason.is_natural());
            taken = !closing && worker.gather(&bytes, limit);
        });
        if !taken {
            self.give_back(id, bytes);
        }
        if known && !closing && !taken {
            self.close(id, CloseReason::WriteLimit);
        }
    }

    /// Tells the handler of bytes that found no connection.
    #[inline(never)]
    pub(super) fn give_back(&mut self, id: ConnId, bytes: Vec<u8>) {
        self.kit.tell(|handler, commands| handler.undelivered(id, bytes, commands));
    }

    /// Changes a worker and has it served. A stale id is counted; false then.
    fn change(&mut self, id: ConnId, change: impl FnOnce(&mut Worker<H::Session>)) -> bool {
        let Some(worker) = self.pool.get_mut(id) else {
            self.kit.stats.stale_commands += 1;
            return false;
        };
        change(worker);
        self.pool.list(id);
        true
    }

    /// Tells an operator what should not happen.
    pub(super) fn raise_alarms(&mut self) {
        let (alarms, stats, now) = (&mut self.alarms, &self.kit.stats, self.kit.now);
        if let Some(slow) = alarms.slow.news(stats.slow_callbacks, now) {
            let longest = stats.longest_callback;
            log::warn!(
                "{slow} slow callbacks held up everybody; the longest ever took {longest:?}"
            );
        }
        if let Some(panics) = alarms.panics.news(stats.panics, now) {
            log::warn!("{panics} callbacks panicked; their connections were closed");
        }
        if let Some(lost) = alarms.lost.news(stats.admit_failures, now) {
            log::warn!("{lost} connections could not be registered or wrapped and were closed");
        }
        if let Some(crowded) = alarms.crowded.news(stats.closed(CloseReason::MemoryLimit), now) {
            log::warn!("{crowded} connections were closed because memory_limit is used up");
        }
    }
}

#[cfg(not(mio_unsupported_force_poll_poll))]
impl<H: Handler> std::os::fd::AsFd for Manager<H> {
    /// The descriptor of the event loop: readable when a turn has something to do, so that
    /// another loop can wait for it, along with [`Manager::next_deadline`].
    ///
    /// # Panics
    /// If the manager is not running: there is no such descriptor then.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.kit.backend.descriptor().expect("as_fd: the manager is not running")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_tells_of_growth_alone_and_at_most_once_a_second() {
        let at = |millis| Now::new((millis, false));
        let mut alarm = Alarm::default();
        assert_eq!(alarm.news(0, at(5)), None);
        assert_eq!(alarm.news(3, at(10)), Some(3));
        assert_eq!(alarm.news(3, at(5_000)), None, "nothing new");
        assert_eq!(alarm.news(4, at(6_000)), Some(1));
        assert_eq!(alarm.news(9, at(6_999)), None, "too soon");
        assert_eq!(alarm.news(9, at(7_000)), Some(5));
    }
}
