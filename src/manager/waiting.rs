//! Waiting: the first two phases of a turn, wait and clock, and until when to wait.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::{Manager, Phase};
use crate::backend::Backend;
use crate::error::Error;
use crate::handler::Handler;
use crate::time::{Now, Span, Tick};

/// No wait is longer, whatever a system's timeout can express.
const LONGEST: Duration = Duration::from_secs(3_600);

impl<H: Handler, B: Backend> Manager<H, B> {
    /// 1. Wait, for `timeout` at most, and not at all if something is left to do.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        let patience = self.patience(timeout);
        let outcome = if self.kit.config.spin.is_zero() || patience == Some(Duration::ZERO) {
            self.poll(patience)
        } else {
            self.spin(patience)
        };
        match outcome {
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                log::error!("can't wait for readiness, closing everything: {error}");
                self.read_clock();
                self.abort_all();
                Err(Error::Wait(error))
            }
            _ => Ok(()),
        }
    }

    /// How long to wait. The clock is read before a wait that may block: time spent in callbacks,
    /// or outside, would make it oversleep.
    fn patience(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        match self.due() {
            due if timeout == Some(Duration::ZERO) || due <= self.kit.now.tick => {
                Some(Duration::ZERO)
            }
            Tick::NEVER => timeout.map(|timeout| timeout.min(LONGEST)),
            due => {
                self.read_clock();
                let left =
                    due.0.saturating_sub(self.kit.now.tick.0).min(LONGEST.as_millis() as u64);
                let left = Duration::from_millis(left);
                Some(timeout.map_or(left, |timeout| timeout.min(left)))
            }
        }
    }

    /// Whether something is ready, within this time.
    fn poll(&mut self, patience: Option<Duration>) -> io::Result<bool> {
        self.kit.stats.waits += 1;
        self.kit.backend.wait(patience)
    }

    /// Asks again and again, for as long as is configured, before it gives up the core.
    #[inline(never)]
    fn spin(&mut self, patience: Option<Duration>) -> io::Result<bool> {
        let most = self.kit.config.spin.min(patience.unwrap_or(LONGEST));
        let began = self.kit.backend.now();
        let (mut spun, mut outcome) = (Duration::ZERO, Ok(false));
        // None takes less than 50 ns: so it ends even if the clock stands still.
        let mut polls = most.as_nanos() / 50;
        while spun < most && polls > 0 && matches!(outcome, Ok(false)) {
            outcome = self.poll(Some(Duration::ZERO));
            spun = self.kit.backend.now().saturating_sub(began);
            polls -= 1;
        }
        self.kit.stats.spun_ns += spun.as_nanos() as u64;
        match outcome {
            Ok(false) => self.poll(patience.map(|patience| patience.saturating_sub(spun))),
            found => found,
        }
    }

    /// 2. Read the clock, once: everything in a turn sees the same time. If the last turn took
    ///    long, what happened in it counts from its end: those who were served must not pay for it.
    pub(super) fn read_clock(&mut self) {
        let began = self.kit.now.stamp;
        self.kit.now = Now::new(self.kit.backend.millis());
        let span = Span { began, ended: self.kit.now.stamp };
        if span.is_long() {
            for &id in &self.visited {
                if let Some(worker) = self.pool.get_mut(id) {
                    worker.vitals.credit(span);
                }
            }
        }
        self.visited.clear();
    }

    /// When the next turn is due even if nothing becomes ready: not later than now if work is left,
    /// `NEVER` if nothing is planned.
    #[inline(always)]
    fn due(&self) -> Tick {
        if self.pool.any_ready() || self.kit.commands.has_work() {
            return self.kit.now.tick;
        }
        let due = self.pool.next_due().min(self.tick_at);
        let lingers = self.lingering.len() > 0;
        let reaps = self.kit.spares.can_reap();
        let stops = matches!(self.phase, Phase::Stopping(_));
        if lingers | reaps | stops | self.listeners.any_ready() {
            due.min(self.due_besides())
        } else {
            due
        }
    }

    /// As [`Manager::due`], for what is not there most of the time.
    #[cold]
    #[inline(never)]
    fn due_besides(&self) -> Tick {
        if self.lingering.has_work() {
            return self.kit.now.tick;
        }
        let mut due = self.lingering.next_due();
        due = due.min(self.listeners.next_due(&self.mailbox.places, &self.kit.config.overload));
        if self.kit.spares.can_reap() {
            due = due.min(self.reap_at);
        }
        if let Phase::Stopping(drain) = self.phase {
            due = due.min(drain.until);
        }
        due
    }

    /// From now on the handler is called every so often, if it is configured.
    pub(super) fn plan_tick(&mut self) {
        let interval = self.kit.config.tick;
        let now = self.kit.now.stamp;
        self.tick_at = if interval.is_zero() { Tick::NEVER } else { now.after(interval) };
    }

    /// Calls the handler for its own sake, if it is time.
    pub(super) fn tick(&mut self) {
        if self.tick_at > self.kit.now.tick {
            return;
        }
        self.plan_tick();
        self.kit.stats.ticks += 1;
        self.kit.tell(H::tick);
    }

    /// How long from now until the next turn is due; `None` if nothing is planned.
    pub(super) fn next(&self) -> Option<Duration> {
        let due = self.due();
        (due != Tick::NEVER).then(|| self.kit.now.tick.until(due))
    }
}
