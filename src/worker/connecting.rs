//! Connecting: a connection that begins here, before it is there and the handler knows of it.
//!
//! It counts as one whose socket is full: only when it can be written to is there something to do,
//! and its time runs.

use super::{Kit, Verdict, Worker};
use crate::backend::Backend;
use crate::handler::Handler;
use crate::vitals::CloseReason;

impl<S> Worker<S> {
    /// Looks whether the connection is there; if so it is opened, and can be served unless there is
    /// a verdict. What was sent to it meanwhile goes behind what the handler writes first.
    #[cold]
    #[inline(never)]
    pub(super) fn arrive<H, B>(&mut self, kit: &mut Kit<H, B>) -> Option<Verdict>
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if let Some(reason) = self.vitals.ending() {
            return Some(Verdict::Close(reason));
        }
        match kit.backend.is_connected(&self.socket) {
            Ok(true) => {}
            Ok(false) => return Some(Verdict::Wait),
            Err(error) => return Some(Verdict::Close(CloseReason::Unreachable(error.kind()))),
        }
        self.vitals.connected(kit.now);
        kit.stats.connected += 1;
        let sent = kit.spares.output.len();
        self.greet(kit);
        let output = &mut kit.spares.output;
        if sent > 0 && output.len() > sent {
            output.move_behind(sent);
            if output.len() > kit.config.write_limit {
                self.vitals.end_now(CloseReason::WriteLimit);
            }
        }
        self.rests()
    }
}
