//! Calling: the one place where user code runs, timed if asked for, and caught if it panics.

use std::io;

use super::{Visit, Worker};
use crate::backend::Backend;
use crate::guard::contain;
use crate::handler::{Conn, Handler};
use crate::vitals::{Cause, CloseReason};

impl<S> Worker<S> {
    /// Runs one hook. Its error or panic ends the connection; what a panicking one wrote is
    /// taken back.
    pub(super) fn call<H, B, F>(&mut self, visit: &mut Visit<'_, H, B>, cause: Cause, hook: F)
    where
        H: Handler<Session = S>,
        B: Backend,
        F: FnOnce(&mut H, &mut Conn<'_>, &mut S, &[u8]) -> io::Result<()>,
    {
        let limit = visit.config.slow_callback;
        let began = limit.map(|_| visit.backend.now());
        let mark = visit.spares.output.mark();
        let held = visit.spares.input.held();
        let mut conn = Conn {
            vitals: &mut self.vitals,
            socket: &self.socket,
            output: &mut visit.spares.output,
            desk: visit.desk,
            // What has gathered and was offered to no socket yet is not the peer's fault.
            write_limit: visit.config.write_limit.saturating_add(mark),
            now: visit.now,
            cause,
        };
        let (handler, session) = (&mut *visit.handler, &mut self.session);
        let outcome = contain(|| hook(handler, &mut conn, session, held));
        if let (Some(limit), Some(began)) = (limit, began) {
            visit.stats.count_callback(visit.backend.now().saturating_sub(began), limit);
        }
        match outcome {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                if visit.config.debug {
                    log::debug!("{}: {cause:?} callback failed: {}", self.vitals.id, error.kind());
                }
                self.vitals.end(CloseReason::Failed);
            }
            None => {
                visit.stats.panics += 1;
                visit.spares.output.rewind(mark);
                self.vitals.ending = Some(CloseReason::Panicked);
            }
        }
    }
}
