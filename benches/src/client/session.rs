//! Session: connections that stay open from one run to the next, for who has to look at something
//! else exactly when a run begins and ends.

use std::io;
use std::time::Duration;

use mio::Events;

use super::engine::{Engine, events};
use super::{Length, Load, Outcome, Progress};

/// Connections that are open and have been answered once. Dropped, it closes them.
pub struct Session<'a> {
    engine: Engine<'a>,
    events: Events,
}

impl<'a> Session<'a> {
    /// Connects. Who churns connects in its runs only.
    ///
    /// # Errors
    /// If any connection cannot be made or is not answered.
    pub fn connect(load: &Load, tell: &'a mut dyn FnMut(Progress)) -> io::Result<Self> {
        let mut session = Self { engine: Engine::new(load, tell)?, events: events() };
        session.engine.establish(&mut session.events)?;
        session.engine.outcome(None)?.if_right()?;
        Ok(session)
    }

    /// Loads for as long as `length` says, without a warm-up. In a closed loop nothing is under way
    /// before and after.
    ///
    /// # Errors
    /// If readiness cannot be waited for, or descriptors run out.
    pub fn run(&mut self, length: Length) -> io::Result<Outcome> {
        self.engine.load.length = length;
        self.engine.load.warmup = Duration::ZERO;
        self.engine.measure(&mut self.events)
    }
}
