//! Stops the manager. Idle connections are closed at once. Busy connections may finish. Connections
//! that are still open at the deadline are aborted.

use super::Manager;
use crate::command::Command;
use crate::conn_state::{CloseReason, Stage};
use crate::error::Error;
use crate::handler::Handler;
use crate::report::StopReport;
use crate::socket::Socket;
use crate::sys::Backend;
use crate::time::Tick;
use crate::worker::Verdict;

/// A stop in progress: its deadline, and the values that counters had when it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    pub(super) until: Tick,
    /// The number of the turn in which the stop began.
    turn: u64,
    live: usize,
    pub(super) idle: usize,
    put_before: u64,
    unsent_before: u64,
    dropped_before: u64,
}

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Stops gracefully, and runs turns until the stop is complete. From now on,
    /// [`put`](Manager::put) and [`connect`](Manager::connect) fail. Idle connections, and outgoing
    /// connections that are not established, are closed at once. Requests in progress may finish,
    /// and their replies are sent. Connections that are still open at
    /// [`stop_deadline`](crate::Config::stop_deadline) are aborted. Afterwards every connection and
    /// listener is closed, and the manager can be started again.
    ///
    /// Connections in a listener's accept queue are accepted before the listener closes, at most
    /// 4096 per listener. Each of them may make one request. The clients of these connections
    /// already see them as established. If they were not accepted, closing the listener would reset
    /// them. With a `stop_deadline` of zero, none of them is accepted. The kernel resets clients
    /// that connect in the few microseconds between the last `accept` and the close. If other
    /// listeners share the port by `SO_REUSEPORT` and `net.ipv4.tcp_migrate_req` is set, Linux
    /// passes these clients to the other listeners instead.
    ///
    /// A paused connection counts as in progress, because an answer is pending. The stop also waits
    /// for the lingering sockets of closed connections, for at most 5 s each.
    ///
    /// # Errors
    /// [`Error::NotRunning`], and the errors of [`Manager::turn`].
    pub fn stop(&mut self) -> Result<StopReport, Error> {
        if self.is_stopped() {
            return Err(Error::NotRunning);
        }
        self.read_clock();
        self.begin_stop();
        self.accept_new();
        if let Some(report) = self.drain.and_then(|drain| self.finish_if_drained(drain)) {
            return Ok(report);
        }
        self.run()
    }

    /// Begins a graceful stop when bytes arrive on `signals`. [`Handle::stop`](crate::Handle::stop)
    /// begins the same stop. If bytes arrive during a stop that began in an earlier turn, this stop
    /// is completed at once. The connections that are still open are then aborted. All bytes that
    /// are read in one turn count as one signal. An end of file does not stop the manager.
    ///
    /// This method may be called before or after [`Manager::start`], and more than once to add more
    /// sockets. The sockets also stay in use when the manager is started again. Bytes that arrive
    /// before a start stop the manager after the start. With the crate
    /// `signal-hook`, a service can stop on SIGTERM. This needs no thread and no polling, and has
    /// no race:
    ///
    /// ```
    /// use pool_manager::{Config, Manager};
    /// use signal_hook::consts::SIGTERM;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let mut manager = Manager::new(Config::new(), |_, _| Ok(()))?;
    /// let (read, write) = UnixStream::pair()?;
    /// signal_hook::low_level::pipe::register(SIGTERM, write)?;
    /// manager.stop_on(read)?;
    /// manager.start()?;
    /// signal_hook::low_level::raise(SIGTERM)?;
    /// assert_eq!(manager.run()?.finished, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsuitable`] if the socket cannot be made non-blocking, or cannot be registered. If
    /// the manager is not started, the socket is registered by [`Manager::start`], which then
    /// returns [`Error::Start`].
    pub fn stop_on(&mut self, signals: impl Into<Socket>) -> Result<(), Error> {
        let started = !self.is_stopped();
        self.listeners
            .add_signal(&mut self.cx.backend, signals.into(), started)
            .map_err(Error::Unsuitable)
    }

    /// Reads the sockets of [`Manager::stop_on`]. If bytes have arrived, begins a stop, or
    /// completes the stop in progress.
    #[cold]
    #[inline(never)]
    pub(super) fn on_signal(&mut self) {
        if !self.listeners.read_signals(&mut self.cx.backend) {
            return;
        }
        match &mut self.drain {
            None => self.begin_stop(),
            // A command may have begun the stop earlier in this turn.
            Some(drain) if drain.turn == self.cx.stats.turns => {}
            Some(drain) => {
                log::info!("a second signal: the stop is completed at once");
                drain.until = self.cx.now.floor;
            }
        }
    }

    /// Calls [`Handler::stopping`], and executes the commands that are queued when the hook
    /// returns.
    fn run_stopping_hook(&mut self) {
        self.cx.run_hook(H::stopping);
        for _ in 0..self.cx.commands.queued() {
            let Some(command) = self.cx.commands.next() else { break };
            self.execute(command);
        }
    }

    /// Begins a stop if the manager is running. The deadline of a stop that has already begun is
    /// not changed.
    pub(super) fn begin_stop(&mut self) {
        if !self.is_running() {
            return;
        }
        self.mailbox.set_stopping();
        let limit = self.cx.config.stop_time();
        let (now, stats) = (self.cx.now, &self.cx.stats);
        let drain = Drain {
            until: if limit.is_zero() { now.floor } else { now.ceil.after(limit) },
            turn: stats.turns,
            live: self.pool.live(),
            idle: 0,
            put_before: stats.put,
            unsent_before: stats.bytes_unsent,
            dropped_before: stats.bytes_dropped,
        };
        log::info!("stopping: {} connections, at most {limit:?}", drain.live);
        self.drain = Some(drain);
        self.run_stopping_hook();
        if limit.is_zero() {
            self.listeners.clear(&mut self.cx.backend);
        } else {
            self.listeners.finish();
        }
        self.close_idle();
        // Connections that `close_idle` has served, and that are idle again, can be closed now.
        for id in self.pool.ids() {
            if !self.pool.get_mut(id).is_some_and(|worker| worker.queued) {
                self.apply_verdict(id, Verdict::Wait);
            }
        }
    }

    /// Reads every idle connection once more and closes it if no data has arrived. Closes every
    /// outgoing connection that is not established. The connections that this method closes are
    /// counted in `Drain::idle`.
    fn close_idle(&mut self) {
        // While `self.drain` is `None`, a verdict of `Wait` closes nothing. Each connection is
        // therefore closed and counted below.
        let Some(mut drain) = self.drain.take() else { return };
        for id in self.pool.ids() {
            let Some(worker) = self.pool.get_mut(id) else { continue };
            if worker.state.stage() == Stage::Connecting {
                self.close(id, CloseReason::Stopped);
                drain.idle += 1;
                continue;
            }
            if !worker.is_idle() {
                continue;
            }
            let before = worker.state.bytes_in;
            worker.final_read = true;
            self.read_once_more(id);
            let Some(worker) = self.pool.get_mut(id) else { continue };
            if worker.is_idle() && worker.state.bytes_in == before {
                self.close(id, CloseReason::Stopped);
                drain.idle += 1;
            }
        }
        self.drain = Some(drain);
    }

    /// Completes a stop if nothing is left to wait for, or if its deadline has passed.
    pub(super) fn finish_if_drained(&mut self, drain: Drain) -> Option<StopReport> {
        let over = drain.until <= self.cx.now.floor;
        let left = self.pool.live() > 0 || self.lingering.len() > 0 || self.listeners.any_open();
        if left && !over {
            return None;
        }
        let aborted = self.pool.live();
        let came = (self.cx.stats.put - drain.put_before) as usize;
        self.abort_all();
        // `abort_all` also counts the queued outgoing connections that were never started.
        let late = (self.cx.stats.put - drain.put_before) as usize - came;
        let report = StopReport {
            idle: drain.idle + late,
            finished: (drain.live + came).saturating_sub(drain.idle + aborted),
            aborted,
            unsent_bytes: self.cx.stats.bytes_unsent - drain.unsent_before,
            dropped_bytes: self.cx.stats.bytes_dropped - drain.dropped_before,
        };
        log::info!("stopped: {report}");
        Some(report)
    }

    /// Closes everything at once, without flushing. The manager is stopped afterwards.
    #[inline(never)]
    pub(super) fn abort_all(&mut self) {
        self.drain = None;
        self.mailbox.set_stopping();
        for id in self.pool.ids() {
            self.close(id, CloseReason::Stopped);
        }
        self.pool.clear_ready();
        self.listeners.stop(&mut self.cx.backend);
        self.lingering.clear(&mut self.cx.backend);
        let mut left = self.mailbox.close();
        left.extend(std::iter::from_fn(|| self.cx.commands.next()));
        let mut last_request = 0;
        for command in left {
            match command {
                Command::Put(socket) => self.abandon_put(socket),
                Command::Connect(request) => self.abandon_connect(*request),
                Command::Linger(socket) => socket.close(),
                Command::PublishStats(request) => last_request = last_request.max(request),
                Command::Send(id, bytes) => self.return_undelivered(id, bytes),
                _ => {}
            }
        }
        // Discard the commands that the hooks above have queued, because the manager has stopped.
        while self.cx.commands.next().is_some() {}
        self.cx.backend.stop();
        self.cx.buffers.clear();
        self.mailbox.publish(last_request, &self.stats());
    }
}
