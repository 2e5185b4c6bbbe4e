//! Calling: the one place where user code runs, timed if asked for, and caught if it panics.

use std::io;

use super::{Kit, Worker};
use crate::backend::Backend;
use crate::guard::{contain, dispose};
use crate::handler::{Conn, Handler};
use crate::vitals::{Cause, CloseReason};

impl<S> Worker<S> {
    /// Runs the first hook of a connection, whichever way it came.
    pub(super) fn greet<H, B>(&mut self, kit: &mut Kit<H, B>)
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        self.call(kit, Cause::Opened, |handler, conn, session, _| handler.opened(conn, session));
    }

    /// Runs one hook. Its error or panic ends the connection; what a panicking one wrote is
    /// taken back.
    #[inline(always)]
    pub(super) fn call<H, B, F>(&mut self, kit: &mut Kit<H, B>, cause: Cause, hook: F)
    where
        H: Handler<Session = S>,
        B: Backend,
        F: FnOnce(&mut H, &mut Conn<'_>, &mut S, &[u8]) -> io::Result<()>,
    {
        if kit.config.slow_callback.is_some() {
            kit.began = kit.backend.now();
        }
        let output = &mut kit.spares.output;
        let mark = output.mark();
        let gathered = if cause == Cause::Blocked { 0 } else { mark };
        let held = kit.spares.input.held();
        let mut conn = Conn {
            vitals: &mut self.vitals,
            socket: &self.socket,
            output,
            commands: &mut kit.commands,
            // What has gathered and was offered to no socket yet is not the peer's fault.
            write_limit: kit.config.write_limit.saturating_add(gathered),
            now: kit.now.tick,
            cause,
        };
        let (handler, session) = (&mut kit.handler, &mut self.session);
        let outcome = contain(|| hook(handler, &mut conn, session, held));
        if let Some(limit) = kit.config.slow_callback {
            kit.stats.count_callback(kit.backend.now().saturating_sub(kit.began), limit);
        }
        match outcome {
            Some(Ok(())) => {}
            Some(Err(error)) => self.fail(error, cause, kit.config.debug),
            None => {
                kit.stats.panics += 1;
                kit.spares.output.rewind(mark);
                self.vitals.end_now(CloseReason::Panicked);
            }
        }
    }

    #[cold]
    fn fail(&mut self, error: io::Error, cause: Cause, debug: bool) {
        if debug {
            log::debug!("{}: {cause:?} callback failed: {}", self.vitals.id, error.kind());
        }
        self.vitals.end(CloseReason::Failed);
        dispose(error);
    }
}
