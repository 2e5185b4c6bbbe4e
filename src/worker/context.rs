//! Context: everything around a worker that a visit uses.

use std::time::Duration;

use crate::buffers::Buffers;
use crate::commands::Commands;
use crate::config::Config;
use crate::conn_state::Deadlines;
use crate::panics::catch;
use crate::stats::Stats;
use crate::sys::Backend;
use crate::time::Now;

/// What a worker is visited with. It is shared by all workers.
pub(crate) struct Context<H, B> {
    pub(crate) backend: B,
    pub(crate) handler: H,
    pub(crate) commands: Commands,
    pub(crate) buffers: Buffers,
    pub(crate) stats: Stats,
    pub(crate) config: Config,
    /// The deadlines of `config`, in milliseconds.
    pub(crate) deadlines: Deadlines,
    /// Replies of several requests share one write, up to this many bytes.
    pub(super) flush_at: usize,
    /// Bytes of the longest request that a buffer may grow to hold.
    pub(super) max_request: usize,
    pub(crate) now: Now,
    /// When the last timed callback began. It is here so that other callbacks carry nothing around.
    pub(super) callback_began: Duration,
}

impl<H, B: Backend> Context<H, B> {
    pub(crate) fn new(config: Config, handler: H, backend: B, commands: Commands) -> Self {
        let mut backend = backend;
        Self {
            deadlines: Deadlines::from(&config),
            flush_at: flush_at(&config),
            max_request: config.longest(),
            config,
            now: Now::new(backend.millis()),
            backend,
            handler,
            commands,
            buffers: Buffers::default(),
            stats: Stats::default(),
            callback_began: Duration::ZERO,
        }
    }

    /// Takes over a configuration and everything derived from it.
    pub(crate) fn configure(&mut self, config: Config) {
        self.deadlines = Deadlines::from(&config);
        self.flush_at = flush_at(&config);
        self.max_request = config.longest();
        self.config = config;
    }

    /// Runs a hook that belongs to no connection. Its panic is counted and ends nothing.
    pub(crate) fn run_hook(&mut self, hook: impl FnOnce(&mut H, &mut Commands)) {
        let (handler, commands) = (&mut self.handler, &mut self.commands);
        let outcome = catch(|| hook(handler, commands));
        self.stats.panics += u64::from(outcome.is_none());
    }

    /// Applies the configuration to the buffers.
    pub(crate) fn configure_buffers(&mut self) {
        let Config { min_workers, buffer_size, memory_limit, .. } = self.config;
        self.buffers.configure(min_workers, buffer_size, memory_limit);
    }
}

/// At most 64 KiB, and at most half of `write_limit`.
fn flush_at(config: &Config) -> usize {
    (64 << 10).min(config.write_limit / 2)
}
