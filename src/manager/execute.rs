//! Executes commands, and applies configurations.

use super::Manager;
use crate::command::Command;
use crate::config::Config;
use crate::conn_state::{CloseReason, Flags};
use crate::error::Error;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::sys::Backend;
use crate::worker::Worker;

impl<H: Handler, B: Backend> Manager<H, B> {
    /// Executes one command.
    #[inline(never)]
    pub(super) fn execute(&mut self, command: Command) {
        self.cx.stats.commands += 1;
        match command {
            Command::Put(socket) if self.is_running() => {
                let outcome = self.admit_blocking(socket);
                self.drop_failed(outcome);
            }
            Command::Put(socket) => self.abandon_put(socket),
            Command::Connect(request) => self.execute_connect(*request),
            Command::Linger(socket) => self.linger(socket),
            Command::SetConfig(config) => self.apply(*config),
            Command::PublishStats(request) => self.mailbox.publish(request, &self.stats()),
            Command::Stop => self.begin_stop(),
            Command::Send(id, bytes) => self.send(id, bytes),
            Command::Close(id) => {
                self.change(id, |worker| worker.state.end(CloseReason::Requested));
            }
            Command::Abort(id) => {
                self.change(id, |worker| worker.state.end_now(CloseReason::Aborted));
            }
            Command::Finish(id) => {
                self.change(id, |worker| worker.state.flags.set(Flags::FINISHED, true));
            }
            Command::Pause(id) => {
                let now = self.cx.now.ceil;
                self.change(id, |worker| worker.state.pause(now));
            }
            Command::Resume(id) => {
                let now = self.cx.now.ceil;
                self.change(id, |worker| worker.state.resume(now));
            }
        }
    }

    /// Appends bytes to the unsent output of a connection. If the connection is closing, finished
    /// or unknown, the bytes are returned through [`Handler::undelivered`]. If more than
    /// `write_limit` bytes would be unsent, the bytes are returned in the same way, and the
    /// connection is closed.
    fn send(&mut self, id: ConnId, bytes: Vec<u8>) {
        let limit = self.cx.config.write_limit;
        let (mut closing, mut taken) = (false, false);
        let known = self.change(id, |worker| {
            closing = worker.state.close_reason().is_some_and(|reason| !reason.is_natural())
                || worker.state.flags.intersects(Flags::FINISHED);
            taken = !closing && worker.queue_output(&bytes, limit);
        });
        if !taken {
            self.return_undelivered(id, bytes);
        }
        if known && !closing && !taken {
            self.close(id, CloseReason::WriteLimit);
        }
    }

    /// Calls [`Handler::undelivered`] with bytes that cannot be sent.
    #[inline(never)]
    pub(super) fn return_undelivered(&mut self, id: ConnId, bytes: Vec<u8>) {
        self.cx.run_hook(|handler, commands| handler.undelivered(id, bytes, commands));
    }

    /// Changes a worker and adds it to the ready list. If the id is stale, counts a stale command
    /// and returns false.
    fn change(&mut self, id: ConnId, change: impl FnOnce(&mut Worker<H>)) -> bool {
        let Some(worker) = self.pool.get_mut(id) else {
            self.cx.stats.stale_commands += 1;
            return false;
        };
        change(worker);
        self.pool.enqueue(id);
        true
    }

    /// Replaces the configuration. Returns the configuration that is now in effect. An invalid
    /// configuration changes nothing.
    ///
    /// No connection is closed by the change itself:
    ///
    /// - With a lower `max_workers`, [`put`](Manager::put) fails with [`Error::Busy`] until fewer
    ///   than `max_workers` connections are open.
    /// - A larger `buffer_size` applies at once, as far as `memory_limit` allows. A smaller
    ///   `buffer_size` applies to a connection as soon as it holds no bytes.
    /// - Held bytes that exceed a lowered `max_request` or `memory_limit` stay until they are
    ///   consumed.
    /// - Held bytes are framed again.
    /// - A new idle deadline counts from the last byte that was read or written. A new total
    ///   deadline counts from the first byte of the request. Either deadline may have passed
    ///   already.
    /// - Requests that were delivered under the old `rate_limit` count against the new one. However
    ///   many there were, they use up at most one full burst of the new one.
    ///
    /// The cost of a change is proportional to the number of connections.
    ///
    /// # Errors
    /// [`Error::Config`]. The configuration stays as it was.
    pub fn set_config(&mut self, config: Config) -> Result<&Config, Error> {
        self.apply(config.checked()?);
        Ok(&self.cx.config)
    }

    fn apply(&mut self, config: Config) {
        let Config { tick, reap_interval, .. } = self.cx.config;
        self.cx.configure(config);
        if self.is_stopped() {
            return;
        }
        self.apply_to_pool();
        // Do not postpone the next tick or the next reaping if its interval is unchanged.
        if self.cx.config.tick != tick {
            self.plan_tick();
        }
        if self.cx.config.reap_interval != reap_interval {
            self.plan_reaping();
        }
        for id in self.pool.ids() {
            let Some(worker) = self.pool.get_mut(id) else { continue };
            worker.state.change_rate(self.cx.deadlines.rate, self.cx.now);
            worker.input.set_scanned(0);
            if !worker.input.is_empty() {
                self.cx.buffers.enlarge(&mut worker.input);
                self.pool.enqueue(id);
            }
            self.pool.arm_timer(id, self.cx.deadlines);
        }
        log::info!("configured: {:?}", self.cx.config);
    }

    /// Applies the configuration to the permits, the buffers and the reserved memory, but not to
    /// the connections.
    pub(super) fn apply_to_pool(&mut self) {
        self.mailbox.permits.set_max(self.cx.config.max_workers.unwrap_or(usize::MAX));
        self.cx.configure_buffers();
        self.pool.reserve(self.cx.config.min_workers);
        self.visited.reserve(self.cx.config.min_workers);
    }
}
