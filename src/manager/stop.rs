//! Stopping: who is idle goes at once, who is busy may finish, and at the deadline the rest goes.

use super::Manager;
use crate::command::Command;
use crate::conn_state::{CloseReason, Stage};
use crate::error::Error;
use crate::handler::Handler;
use crate::report::StopReport;
use crate::sys::Backend;
use crate::time::Tick;
use crate::worker::Verdict;

/// A stop in progress: its deadline, and what there was when it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    pub(super) until: Tick,
    live: usize,
    pub(super) idle: usize,
    put_before: u64,
    unsent_before: u64,
    dropped_before: u64,
}

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Stops gracefully: refuses new connections, closes idle ones and those that are
    /// [connecting](Manager::connect) at once, lets requests in
    /// progress finish and replies go out, and aborts what is left at
    /// [`stop_deadline`](crate::Config::stop_deadline). Runs turns until then; afterwards no
    /// descriptor is open, and it can be started again.
    ///
    /// Whoever waits in a listener's queue is accepted before the listener closes (4096 at most
    /// of each; nobody if `stop_deadline` is zero), and may make one request: closing at once
    /// would reset them, though to them they have long been connected. It is the kernel that resets who connects between the last
    /// `accept` and the close, a few microseconds; where other listeners share the port by
    /// `SO_REUSEPORT`, Linux hands these over if `net.ipv4.tcp_migrate_req` is set.
    ///
    /// What is paused counts as in progress: somebody is still to answer. Closed connections
    /// that linger for their last reply are waited for as well, each at most 5 s.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; as [`Manager::turn`].
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

    /// Begins a stop; one that has begun already is not prolonged.
    pub(super) fn begin_stop(&mut self) {
        if !self.is_running() {
            return;
        }
        self.mailbox.refuse_puts();
        let patience = self.cx.config.stop_time();
        if patience.is_zero() {
            self.listeners.clear(&mut self.cx.backend);
        } else {
            self.listeners.finish();
        }
        let mut drain = Drain {
            until: if patience.is_zero() {
                self.cx.now.floor
            } else {
                self.cx.now.ceil.after(patience)
            },
            live: self.pool.live(),
            idle: 0,
            put_before: self.cx.stats.put,
            unsent_before: self.cx.stats.bytes_unsent,
            dropped_before: self.cx.stats.bytes_dropped,
        };
        log::info!("stopping: {} connections, at most {patience:?}", drain.live);
        drain.idle = self.close_idle();
        self.drain = Some(drain);
        // Those that were served a last time and are idle now have finished.
        for id in self.pool.ids() {
            if !self.pool.get_mut(id).is_some_and(|worker| worker.state.queued) {
                self.apply_verdict(id, Verdict::Wait);
            }
        }
    }

    /// Reads a last time from every idle connection, and closes those that have nothing to say, and
    /// those that are still to come.
    fn close_idle(&mut self) -> usize {
        let mut closed = 0;
        for id in self.pool.ids() {
            let Some(worker) = self.pool.get_mut(id) else { continue };
            if worker.state.stage() == Stage::Connecting {
                self.close(id, CloseReason::Stopped);
                closed += 1;
                continue;
            }
            if !worker.is_idle() {
                continue;
            }
            let before = worker.state.bytes_in;
            worker.state.final_read = true;
            self.read_once_more(id);
            let Some(worker) = self.pool.get_mut(id) else { continue };
            if worker.is_idle() && worker.state.bytes_in == before {
                self.close(id, CloseReason::Stopped);
                closed += 1;
            }
        }
        closed
    }

    /// Completes a stop once nothing is left to wait for, or its deadline has passed.
    pub(super) fn finish_if_drained(&mut self, drain: Drain) -> Option<StopReport> {
        let over = drain.until <= self.cx.now.floor;
        let left = self.pool.live() > 0 || self.lingering.len() > 0 || self.listeners.any_open();
        if left && !over {
            return None;
        }
        let aborted = self.pool.live();
        let came = (self.cx.stats.put - drain.put_before) as usize;
        self.abort_all();
        // Those that were asked for too late to begin.
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

    /// Closes everything without ceremony; the manager is stopped then.
    #[inline(never)]
    pub(super) fn abort_all(&mut self) {
        self.drain = None;
        self.mailbox.refuse_puts();
        for id in self.pool.ids() {
            self.close(id, CloseReason::Stopped);
        }
        self.pool.clear_ready();
        self.listeners.clear(&mut self.cx.backend);
        self.lingering.clear(&mut self.cx.backend);
        let mut left = self.mailbox.close();
        left.extend(std::iter::from_fn(|| self.cx.commands.next()));
        let mut last_question = 0;
        for command in left {
            match command {
                Command::Put(socket) => self.abandon_put(socket),
                Command::Connect(call) => self.abandon_connect(*call),
                Command::Linger(socket) => socket.close(),
                Command::PublishStats(question) => last_question = last_question.max(question),
                Command::Send(id, bytes) => self.give_back(id, bytes),
                _ => {}
            }
        }
        // What was asked for by whom that was told comes too late.
        while self.cx.commands.next().is_some() {}
        self.cx.backend.stop();
        self.cx.buffers.clear();
        self.mailbox.publish(last_question, &self.stats());
    }
}
