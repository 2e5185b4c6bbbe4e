//! The turn: one pass of the loop, and its nine phases in the order in which they run.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::Manager;
use crate::error::Error;
use crate::handler::Handler;
use crate::id::Token;
use crate::listeners::{ACCEPTS, Accepted};
use crate::pool::Due;
use crate::report::{StopReport, Turn};
use crate::sys::Backend;
use crate::time::{Now, Span, Tick};
use crate::worker::Verdict;

/// Maximum number of commands that phase 3 of a turn executes. The limits per turn prevent one
/// phase from delaying the others. Each connection also has a budget per visit, and each listener
/// has a limit per turn.
const COMMANDS_PER_TURN: usize = 1024;
/// Maximum number of timers that one turn processes.
const TIMERS_PER_TURN: usize = 256;

/// Maximum duration of one wait. Every supported system accepts a timeout of this length.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Runs one turn of the loop. Waits until something is ready or due, but at most for `timeout`
    /// (`None` means no limit). Then does a bounded amount of work.
    ///
    /// If nothing is ready or due after the wait, the turn returns without doing any work. If your
    /// own loop calls this method late, connections expire late too. Peers that sent in time are
    /// still served, because a turn reads before it expires connections. A signal ends the wait
    /// early and is not an error.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Wait`] if waiting fails. After [`Error::Wait`], all
    /// connections are closed and the manager is stopped.
    #[inline(never)]
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<Turn, Error> {
        if self.is_stopped() {
            return Err(Error::NotRunning);
        }
        self.cx.stats.turns += 1;
        self.wait(timeout)?;
        self.read_clock();
        self.run_commands();
        let events = self.mark_ready();
        let served = self.serve_ready();
        let expired = self.expire_due();
        self.tick();
        let accepted = self.accept_new();
        self.reap_buffers();
        self.cx.run_hook(H::turn_ended);
        let stopped = self.report();
        if timeout == Some(Duration::ZERO) {
            // With a zero timeout the caller waits in its own loop. Read the clock again so that
            // this wait does not count as a slow turn.
            self.read_clock();
        }
        Ok(Turn { events, served, expired, accepted, stopped })
    }

    /// 1. Wait for readiness, for at most `timeout`. If work is left, check for readiness without
    ///    waiting.
    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        let timeout = self.wait_timeout(timeout);
        let outcome = if self.cx.config.spin.is_zero() || timeout == Some(Duration::ZERO) {
            self.poll(timeout)
        } else {
            self.spin(timeout)
        };
        match outcome {
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                log::error!("can't wait for readiness, closing all connections: {error}");
                self.read_clock();
                self.abort_all();
                Err(Error::Wait(error))
            }
            _ => Ok(()),
        }
    }

    /// 2. Read the clock. All later phases of the turn use this time. If the visits since the last
    ///    reading took long, the timestamps of the visited connections are moved: see
    ///    [`ConnState::credit`](crate::conn_state::ConnState::credit). The clock is also read
    ///    before a wait that ends at a deadline: see [`Manager::wait_timeout`].
    pub(super) fn read_clock(&mut self) {
        let began = self.cx.now.ceil;
        self.cx.now = Now::new(self.cx.backend.millis());
        self.cx.commands.set_now(self.cx.now.floor);
        let span = Span { began, ended: self.cx.now.ceil };
        if span.is_long() {
            for &id in &self.visited {
                if let Some(worker) = self.pool.get_mut(id) {
                    worker.state.credit(span);
                }
            }
        }
        self.visited.clear();
    }

    /// 3. Execute commands from callbacks and handles, at most [`COMMANDS_PER_TURN`].
    fn run_commands(&mut self) {
        if !self.cx.commands.has_work() {
            return;
        }
        if self.cx.commands.collect(COMMANDS_PER_TURN) {
            self.cx.run_hook(H::notified);
        }
        for _ in 0..COMMANDS_PER_TURN {
            let Some(command) = self.cx.commands.next() else { break };
            self.execute(command);
        }
    }

    /// 4. Mark each connection, lingering socket and listener as ready if it has an event. Events
    ///    for sockets that no longer exist are counted and ignored.
    fn mark_ready(&mut self) -> usize {
        let (pool, lingering, listeners) =
            (&mut self.pool, &mut self.lingering, &mut self.listeners);
        let (mut events, mut stale) = (0, 0);
        self.cx.backend.events(|event| {
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
        self.cx.stats.events += events as u64;
        self.cx.stats.stale_events += stale;
        events
    }

    /// 5. Serve each connection that is on the ready list when the phase begins. Each is served
    ///    once. Then serve the lingering sockets.
    fn serve_ready(&mut self) -> usize {
        let before = self.visited.len();
        self.pool.take_ready(&mut self.visited);
        let after = self.visited.len();
        let stopping = self.is_stopping();
        for at in before..after {
            let id = self.visited[at];
            let Some(worker) = self.pool.dequeue(id) else { continue };
            let verdict = worker.serve(&mut self.cx);
            // After the visit, most connections have nothing to do until an event arrives. Their
            // deadlines are not sooner than before, so their timers need no change.
            let at_rest = verdict == Verdict::Wait && worker.state.flags.is_empty();
            debug_assert!(!at_rest || worker.state.is_armed(self.cx.deadlines), "{id} is due");
            if !at_rest || stopping {
                self.apply_verdict(id, verdict);
            }
        }
        if self.lingering.len() > 0 {
            self.lingering.serve(&mut self.cx.backend, &mut self.cx.stats, self.cx.now);
        }
        after - before
    }

    /// 6. Process at most [`TIMERS_PER_TURN`] timers that have fired. A connection expires if its
    ///    deadline has passed. A delayed request is delivered if the rate limit allows it now. This
    ///    phase runs after the reads, so that data that arrived in time is served first.
    fn expire_due(&mut self) -> usize {
        let before = self.cx.stats.expired;
        for _ in 0..TIMERS_PER_TURN {
            match self.pool.pop_due(self.cx.now, &self.cx.deadlines) {
                Some(Due::Expired(id)) => self.expire(id),
                Some(Due::Held(id)) => self.serve(id),
                Some(Due::Early) => {}
                None => break,
            }
        }
        (self.cx.stats.expired - before) as usize
    }

    /// The end of phase 6: call [`Handler::tick`] if its interval has passed.
    fn tick(&mut self) {
        if self.tick_at > self.cx.now.floor {
            return;
        }
        self.plan_tick();
        self.cx.stats.ticks += 1;
        self.cx.run_hook(H::tick);
    }

    /// 7. Read the sockets of [`Manager::stop_on`]. Then accept new connections, at most
    ///    [`ACCEPTS`] per listener. This phase runs after the existing connections were served.
    pub(super) fn accept_new(&mut self) -> usize {
        if !self.listeners.any_ready() {
            return 0;
        }
        let before = self.cx.stats.accepted;
        if self.listeners.any_signal() {
            self.on_signal();
        }
        for index in 0..self.listeners.len() {
            for _ in 0..ACCEPTS {
                let (permits, overload) = (&self.mailbox.permits, &self.cx.config.overload);
                let (backend, stats) = (&mut self.cx.backend, &mut self.cx.stats);
                match self.listeners.accept(index, backend, permits, overload, stats, self.cx.now) {
                    Accepted::Connection { socket, addr, has_permit, proxied } => {
                        self.on_accepted(socket, addr, has_permit, proxied);
                    }
                    Accepted::Skip => {}
                    Accepted::Nothing => break,
                }
            }
            self.listeners.close_finished(index, &mut self.cx.backend);
        }
        (self.cx.stats.accepted - before) as usize
    }

    /// 8. Free warm buffers that were not needed.
    fn reap_buffers(&mut self) {
        if self.cx.buffers.can_reap() && self.reap_at <= self.cx.now.floor {
            self.cx.buffers.reap();
            self.plan_reaping();
        }
    }

    /// 9. Log warnings. Complete a stop if nothing is left to wait for, or if its deadline has
    ///    passed.
    fn report(&mut self) -> Option<StopReport> {
        self.log_warnings();
        self.drain.and_then(|drain| self.finish_if_drained(drain))
    }

    /// Returns the duration of the wait. If the wait may last until something is due, reads the
    /// clock again first. The time that was spent in callbacks or between turns is then subtracted
    /// from the wait.
    fn wait_timeout(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        match self.due() {
            due if timeout == Some(Duration::ZERO) || due <= self.cx.now.floor => {
                Some(Duration::ZERO)
            }
            Tick::NEVER => timeout.map(|timeout| timeout.min(WAIT_MAX)),
            due => {
                self.read_clock();
                let left =
                    due.0.saturating_sub(self.cx.now.floor.0).min(WAIT_MAX.as_millis() as u64);
                let left = Duration::from_millis(left);
                Some(timeout.map_or(left, |timeout| timeout.min(left)))
            }
        }
    }

    /// Waits for readiness. Returns whether something is ready.
    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.cx.stats.waits += 1;
        self.cx.backend.wait(timeout)
    }

    /// Polls without blocking for at most the configured [`spin`](crate::Config::spin) time. If
    /// nothing is ready by then, waits for the rest of `timeout`.
    #[inline(never)]
    fn spin(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let max = self.cx.config.spin.min(timeout.unwrap_or(WAIT_MAX));
        let began = self.cx.backend.now();
        let (mut spun, mut outcome) = (Duration::ZERO, Ok(false));
        // A poll takes at least 50 ns. Limiting the number of polls ends the loop even if the clock
        // stands still.
        let mut polls = max.as_nanos() / 50;
        while spun < max && polls > 0 && matches!(outcome, Ok(false)) {
            outcome = self.poll(Some(Duration::ZERO));
            spun = self.cx.backend.now().saturating_sub(began);
            polls -= 1;
        }
        self.cx.stats.spun_ns += spun.as_nanos() as u64;
        match outcome {
            Ok(false) => self.poll(timeout.map(|timeout| timeout.saturating_sub(spun))),
            found => found,
        }
    }

    /// Returns the tick at which the next turn is due, even if nothing becomes ready. If work is
    /// left, this is the current tick or an earlier one. If nothing is planned, it is `NEVER`.
    pub(super) fn due(&self) -> Tick {
        if self.pool.any_ready() || self.cx.commands.has_work() {
            return self.cx.now.floor;
        }
        let due = self.pool.next_due().min(self.tick_at);
        let lingers = self.lingering.len() > 0;
        let reaps = self.cx.buffers.can_reap();
        if lingers | reaps | self.is_stopping() | self.listeners.any_ready() {
            due.min(self.rare_due())
        } else {
            due
        }
    }

    /// The part of [`Manager::due`] that most turns do not need.
    #[cold]
    #[inline(never)]
    fn rare_due(&self) -> Tick {
        if self.lingering.has_work() {
            return self.cx.now.floor;
        }
        let mut due = self.lingering.next_due();
        due = due.min(self.listeners.next_due(&self.mailbox.permits, &self.cx.config.overload));
        if self.cx.buffers.can_reap() {
            due = due.min(self.reap_at);
        }
        if let Some(drain) = self.drain {
            due = due.min(drain.until);
        }
        due
    }

    /// Plans the next reaping of warm buffers, one interval from now.
    pub(super) fn plan_reaping(&mut self) {
        self.reap_at = self.cx.now.ceil.after(self.cx.config.reap_interval);
    }

    /// Plans the next [`Handler::tick`], one interval from now, if it is configured.
    pub(super) fn plan_tick(&mut self) {
        let now = self.cx.now.ceil;
        self.tick_at = self.cx.config.tick.map_or(Tick::NEVER, |interval| now.after(interval));
    }
}
