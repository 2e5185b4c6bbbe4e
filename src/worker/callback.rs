//! Runs the callbacks of a connection. Callbacks are timed if `slow_callback` is configured. Their
//! panics are caught.

use std::io;

use super::{Context, Worker};
use crate::conn::Conn;
use crate::conn_state::{Cause, CloseReason, Flags};
use crate::handler::Handler;
use crate::panics::{catch, drop_catching};
use crate::sys::Backend;

impl<H: Handler> Worker<H> {
    /// Calls [`Handler::opened`], the first hook of every connection, and stores the session.
    pub(super) fn call_opened<B: Backend>(&mut self, cx: &mut Context<H, B>) {
        self.run(cx, Cause::Opened, |handler, conn, session, _| {
            *session = Some(handler.opened(conn)?);
            Ok(())
        });
    }

    /// Runs one callback of an open connection. If [`Handler::opened`] has failed, the connection
    /// has no session and is closing. The callback is not run then.
    #[inline(always)]
    pub(super) fn run_callback<B: Backend>(
        &mut self,
        cx: &mut Context<H, B>,
        cause: Cause,
        callback: impl FnOnce(&mut H, &mut Conn<'_>, &mut H::Session, &[u8]) -> io::Result<()>,
    ) {
        self.run(cx, cause, |handler, conn, session, held| match session {
            Some(session) => callback(handler, conn, session, held),
            None => Ok(()),
        });
    }

    /// Runs one callback. An error or a panic ends the connection. The output of a callback that
    /// panics is dropped.
    #[inline(always)]
    fn run<B: Backend>(
        &mut self,
        cx: &mut Context<H, B>,
        cause: Cause,
        callback: impl FnOnce(&mut H, &mut Conn<'_>, &mut Option<H::Session>, &[u8]) -> io::Result<()>,
    ) {
        if cx.config.slow_callback.is_some() {
            cx.callback_began = cx.backend.now();
        }
        let output = &mut cx.buffers.output;
        let mark = output.mark();
        let gathered = if cause == Cause::Blocked { 0 } else { mark };
        let write_limit = if self.state.flags.intersects(Flags::FINISHED) && cause != Cause::Opened
        {
            // The output of a finished connection is discarded, except the output of `opened`.
            0
        } else {
            // Output from before this callback does not count against the limit if it was not yet
            // offered to the socket.
            cx.config.write_limit.saturating_add(gathered)
        };
        let held = cx.buffers.input.held();
        let mut conn = Conn {
            state: &mut self.state,
            socket: &self.socket,
            output,
            commands: &mut cx.commands,
            write_limit,
            now: cx.now.ceil,
            cause,
        };
        let (handler, session) = (&mut cx.handler, &mut self.session);
        let outcome = catch(|| callback(handler, &mut conn, session, held));
        if let Some(limit) = cx.config.slow_callback {
            cx.stats.count_callback(cx.backend.now().saturating_sub(cx.callback_began), limit);
        }
        match outcome {
            Some(Ok(())) => {}
            Some(Err(error)) => self.fail(error, cause, cx.config.debug),
            None => {
                cx.stats.panics += 1;
                cx.buffers.output.rewind(mark);
                self.state.end_now(CloseReason::Panicked);
            }
        }
    }

    #[cold]
    fn fail(&mut self, error: io::Error, cause: Cause, debug: bool) {
        if debug {
            log::debug!("{}: {cause:?} callback failed: {}", self.state.id, error.kind());
        }
        self.state.end(CloseReason::Failed);
        if self.state.close_reason() == Some(CloseReason::Failed) {
            self.state.set_error(error);
        } else {
            drop_catching(error);
        }
    }
}
