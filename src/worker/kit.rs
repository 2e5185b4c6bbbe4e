//! Kit: what a worker is visited with, and what follows from the configuration for a visit.

use std::time::Duration;

use crate::backend::Backend;
use crate::command::Commands;
use crate::config::Config;
use crate::guard::contain;
use crate::spares::Spares;
use crate::stats::Stats;
use crate::time::Now;
use crate::vitals::Deadlines;

/// What a worker is visited with: everything around it that it uses.
pub(crate) struct Kit<H, B> {
    pub(crate) backend: B,
    pub(crate) handler: H,
    pub(crate) commands: Commands,
    pub(crate) spares: Spares,
    pub(crate) stats: Stats,
    pub(crate) config: Config,
    /// Those of the configuration.
    pub(crate) deadlines: Deadlines,
    /// Replies of several frames go out in one write, but not more than this waits for it.
    pub(super) flush_at: usize,
    /// How many bytes of a frame a buffer may grow to hold.
    pub(super) longest: usize,
    pub(crate) now: Now,
    /// When the last callback that was timed began; here, so that others carry nothing around.
    pub(super) began: Duration,
}

impl<H, B: Backend> Kit<H, B> {
    pub(crate) fn new(config: Config, handler: H, backend: B, commands: Commands) -> Self {
        let mut backend = backend;
        Self {
            deadlines: Deadlines::from(&config),
            flush_at: flush_at(&config),
            longest: config.longest(),
            config,
            now: Now::new(backend.millis()),
            backend,
            handler,
            commands,
            spares: Spares::default(),
            stats: Stats::default(),
            began: Duration::ZERO,
        }
    }

    /// Takes over a configuration, and what follows from it.
    pub(crate) fn configure(&mut self, config: Config) {
        self.deadlines = Deadlines::from(&config);
        self.flush_at = flush_at(&config);
        self.longest = config.longest();
        self.config = config;
    }

    /// Runs a hook that is nobody's in particular: its panic ends nothing, and is counted.
    pub(crate) fn tell(&mut self, hook: impl FnOnce(&mut H, &mut Commands)) {
        let (handler, commands) = (&mut self.handler, &mut self.commands);
        let told = contain(|| hook(handler, commands));
        self.stats.panics += u64::from(told.is_none());
    }

    /// Has the buffers follow the configuration.
    pub(crate) fn configure_spares(&mut self) {
        let Config { min_workers, buffer_size, memory_limit, .. } = self.config;
        self.spares.configure(min_workers, buffer_size, memory_limit);
    }
}

/// At most 64 KiB, and at most half of what may be unsent.
fn flush_at(config: &Config) -> usize {
    (64 << 10).min(config.write_limit / 2)
}
