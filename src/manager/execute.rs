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
    /// Carries out one command.
    #[inline(never)]
    pub(super) fn execute(&mut self, command: Command) {
        self.cx.stats.commands += 1;
        match command {
            Command::Put(socket) if self.is_running() => {
                let outcome = self.admit_blocking(socket);
                self.drop_failed(outcome);
            }
            Command::Put(socket) => self.abandon_put(socket),
            Command::Connect(call) => self.execute_connect(*call),
            Command::Linger(socket) => self.linger(socket),
            Command::SetConfig(config) => self.apply(*config),
            Command::PublishStats(question) => self.mailbox.publish(question, &self.stats()),
            Command::Stop => self.begin_stop(),
            Command::Send(id, bytes) => self.send(id, bytes),
            Command::Close(id) => {
                self.change(id, |worker| worker.state.end(CloseReason::Requested));
            }
            Command::Pause(id) => {
                self.change(id, |worker| worker.state.flags.set(Flags::PAUSED, true));
            }
            Command::Resume(id) => {
                let ceil = self.cx.now.ceil;
                self.change(id, |worker| worker.state.resume(ceil));
            }
        }
    }

    /// Queues bytes behind what a connection has been sent. Behind a close they have no place, and
    /// come back as those for nobody do.
    fn send(&mut self, id: ConnId, bytes: Vec<u8>) {
        let limit = self.cx.config.write_limit;
        let (mut closing, mut taken) = (false, false);
        let known = self.change(id, |worker| {
            closing = worker.state.close_reason().is_some_and(|reason| !reason.is_natural());
            taken = !closing && worker.queue_output(&bytes, limit);
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
        self.cx.run_hook(|handler, commands| handler.undelivered(id, bytes, commands));
    }

    /// Changes a worker and has it served. A stale id is counted; false then.
    fn change(&mut self, id: ConnId, change: impl FnOnce(&mut Worker<H>)) -> bool {
        let Some(worker) = self.pool.get_mut(id) else {
            self.cx.stats.stale_commands += 1;
            return false;
        };
        change(worker);
        self.pool.enqueue(id);
        true
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
        Ok(&self.cx.config)
    }

    fn apply(&mut self, config: Config) {
        let Config { tick, reap_interval, .. } = self.cx.config;
        self.cx.configure(config);
        if self.is_stopped() {
            return;
        }
        self.apply_to_pool();
        // What is planned already is not put off by being asked for again.
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

    /// Has everything but the connections follow the configuration.
    pub(super) fn apply_to_pool(&mut self) {
        self.mailbox.permits.set_max(self.cx.config.max_workers);
        self.cx.configure_buffers();
        self.pool.reserve(self.cx.config.min_workers);
        self.visited.reserve(self.cx.config.min_workers);
    }
}
