//! Session: connections that stay open between runs. Use a session to measure something outside
//! the load client before and after each run, such as the processor time of the server.

use std::io;
use std::time::Duration;

use mio::Events;

use super::engine::{Engine, events};
use super::{Length, Load, Outcome, Progress};

/// Open connections that have each received one reply. They are closed when the session is dropped.
pub struct Session<'a> {
    engine: Engine<'a>,
    events: Events,
}

impl<'a> Session<'a> {
    /// Opens the connections. With `churn`, the runs open them instead.
    ///
    /// # Errors
    /// Returns an error if a connection fails or does not receive a correct reply.
    pub fn connect(load: &Load, on_progress: &'a mut dyn FnMut(Progress)) -> io::Result<Self> {
        let mut session = Self { engine: Engine::new(load, on_progress)?, events: events() };
        session.engine.establish(&mut session.events)?;
        session.engine.outcome(None)?.into_result()?;
        Ok(session)
    }

    /// Sends the load for `length`, without a warm-up. In a closed loop, no request is in flight
    /// before or after the run.
    ///
    /// # Errors
    /// Returns an error if waiting for readiness fails or the process runs out of file descriptors.
    pub fn run(&mut self, length: Length) -> io::Result<Outcome> {
        self.engine.load.length = length;
        self.engine.load.warmup = Duration::ZERO;
        self.engine.measure(&mut self.events)
    }
}
