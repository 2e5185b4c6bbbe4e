//! Stopping: who is idle goes at once, who is busy may finish, and at the deadline the rest goes.

use super::{Manager, Phase};
use crate::backend::Backend;
use crate::error::Error;
use crate::handler::Handler;
use crate::mailbox::Command;
use crate::report::StopReport;
use crate::time::Tick;
use crate::vitals::CloseReason;
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
        if matches!(self.phase, Phase::Stopped) {
            return Err(Error::NotRunning);
        }
        self.read_clock();
        self.begin_stop();
        self.accept_new();
        if let Phase::Stopping(drain) = self.phase {
            if let Some(report) = self.finish_if_drained(drain) {
                return Ok(report);
            }
        }
        // It turns, rather than runs: so who turns has no second copy of the loop.
        loop {
            if let Some(report) = self.turn(None)?.stopped {
                return Ok(report);
            }
        }
    }

    /// Begins a stop; one that has begun already is not prolonged.
    pub(super) fn begin_stop(&mut self) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        self.kit.commands.set_open(false);
        self.mailbox.refuse_puts();
        let patience = self.kit.config.stop_time();
        if patience.is_zero() {
            self.listeners.clear(&mut self.kit.backend);
        } else {
            self.listeners.finish();
        }
        let mut drain = Drain {
            until: if patience.is_zero() {
                self.kit.now.tick
            } else {
                self.kit.now.stamp.after(patience)
            },
            live: self.pool.live(),
            idle: 0,
            put_before: self.kit.stats.put,
            unsent_before: self.kit.stats.bytes_unsent,
            dropped_before: self.kit.stats.bytes_dropped,
        };
        log::info!("stopping: {} connections, at most {patience:?}", drain.live);
        drain.idle = self.close_idle();
        self.phase = Phase::Stopping(drain);
        // Those that were served a last time and are idle now have finished.
        for id in self.pool.ids() {
            if !self.pool.get_mut(id).is_some_and(|worker| worker.vitals.listed) {
                self.settle(id, Verdict::Wait);
            }
        }
    }

    /// Reads a last time from every idle connection, and closes those that have nothing to say, and
    /// those that are still to come.
    fn close_idle(&mut self) -> usize {
        let mut closed = 0;
        for id in self.pool.ids() {
            let Some(worker) = self.pool.get_mut(id) else { continue };
            if worker.vitals.is_connecting() {
                self.close(id, CloseReason::Stopped);
                closed += 1;
                continue;
            }
            if !worker.is_idle() {
                continue;
            }
            let before = worker.vitals.bytes_in;
            worker.vitals.farewell = true;
            self.hear(id);
            let Some(worker) = self.pool.get_mut(id) else { continue };
            if worker.is_idle() && worker.vitals.bytes_in == before {
                self.close(id, CloseReason::Stopped);
                closed += 1;
            }
        }
        closed
    }

    /// Completes a stop once nothing is left to wait for, or its deadline has passed.
    pub(super) fn finish_if_drained(&mut self, drain: Drain) -> Option<StopReport> {
        let over = drain.until <= self.kit.now.tick;
        let left = self.pool.live() > 0 || self.lingering.len() > 0 || self.listeners.any_open();
        if left && !over {
            return None;
        }
        let aborted = self.pool.live();
        let came = (self.kit.stats.put - drain.put_before) as usize;
        self.abort_all();
        // Those that were asked for too late to begin.
        let late = (self.kit.stats.put - drain.put_before) as usize - came;
        let report = StopReport {
            idle: drain.idle + late,
            finished: (drain.live + came).saturating_sub(drain.idle + aborted),
            aborted,
            unsent_bytes: self.kit.stats.bytes_unsent - drain.unsent_before,
            dropped_bytes: self.kit.stats.bytes_dropped - drain.dropped_before,
        };
        log::info!("stopped: {report}");
        Some(report)
    }

    /// Closes everything without ceremony; the manager is stopped then.
    #[inline(never)]
    pub(super) fn abort_all(&mut self) {
        self.phase = Phase::Stopped;
        self.kit.commands.set_open(false);
        for id in self.pool.ids() {
            self.close(id, CloseReason::Stopped);
        }
        self.pool.clear_ready();
        self.listeners.clear(&mut self.kit.backend);
        self.lingering.clear(&mut self.kit.backend);
        let mut left = self.mailbox.close();
        left.extend(std::iter::from_fn(|| self.kit.commands.next()));
        let mut last_question = 0;
        for command in left {
            match command {
                Command::Put(socket) => self.give_up(socket),
                Command::Connect(call) => self.give_up_call(*call),
                Command::Linger(socket) => socket.discard(),
                Command::PublishStats(question) => last_question = last_question.max(question),
                Command::Send(id, bytes) => self.give_back(id, bytes),
                _ => {}
            }
        }
        // What was asked for by whom that was told comes too late.
        while self.kit.commands.next().is_some() {}
        self.kit.backend.stop();
        self.kit.spares.clear();
        self.mailbox.publish(last_question, &self.stats());
    }
}
