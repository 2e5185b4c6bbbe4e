//! The context of a visit: everything that a visit uses except the worker.

use std::time::Duration;

use crate::buffers::Buffers;
use crate::commands::Commands;
use crate::config::Config;
use crate::conn_state::Deadlines;
use crate::panics::catch;
use crate::stats::Stats;
use crate::sys::Backend;
use crate::time::Now;

/// The state that all workers share. Each visit gets it.
pub(crate) struct Context<H, B> {
    pub(crate) backend: B,
    pub(crate) handler: H,
    pub(crate) commands: Commands,
    pub(crate) buffers: Buffers,
    pub(crate) stats: Stats,
    pub(crate) config: Config,
    /// The deadlines of `config`, in milliseconds.
    pub(crate) deadlines: Deadlines,
    /// Output of at least this many bytes is sent before more is added. As long as the output is
    /// smaller, the replies to several requests share one write.
    pub(super) flush_at: usize,
    /// The size in bytes of the longest request. An input buffer may grow to this size.
    pub(super) max_request: usize,
    pub(crate) now: Now,
    /// The time at which the last timed callback began. It is stored here so that a callback that
    /// is not timed needs no local variable for it.
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

    /// Replaces the configuration, and the values that are derived from it.
    pub(crate) fn configure(&mut self, config: Config) {
        self.deadlines = Deadlines::from(&config);
        self.flush_at = flush_at(&config);
        self.max_request = config.longest();
        self.config = config;
    }

    /// Runs a hook outside of any visit. If the hook panics, the panic is counted, and no
    /// connection is closed.
    pub(crate) fn run_hook(&mut self, hook: impl FnOnce(&mut H, &mut Commands)) {
        let (handler, commands) = (&mut self.handler, &mut self.commands);
        let outcome = catch(|| hook(handler, commands));
        self.stats.panics += u64::from(outcome.is_none());
    }

    /// Applies the configuration to the buffers.
    pub(crate) fn configure_buffers(&mut self) {
        let Config { min_workers, buffer_size, memory_limit, .. } = self.config;
        self.buffers.configure(min_workers, buffer_size, memory_limit.unwrap_or(usize::MAX));
    }
}

/// Returns 64 KiB or half of `write_limit`, whichever is smaller.
fn flush_at(config: &Config) -> usize {
    (64 << 10).min(config.write_limit / 2)
}
