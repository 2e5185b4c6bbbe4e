//! An outgoing connection before it is established. [`Handler::opened`] was not called yet.
//!
//! Until it is established, the connection counts as blocked. Its worker has nothing to do until a
//! writable edge or a command arrives. Meanwhile the connect deadline runs.

use std::ops::ControlFlow;

use super::{Context, Flow, Verdict, Worker};
use crate::conn_state::CloseReason;
use crate::handler::Handler;
use crate::sys::Backend;

impl<H: Handler> Worker<H> {
    /// If the connection is closing, breaks with the close reason. If not, checks whether the
    /// connection is established. If it is established, calls [`Handler::opened`]. Bytes that were
    /// queued before are sent after the output of `opened`.
    #[cold]
    #[inline(never)]
    pub(super) fn finish_connect<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Flow {
        if let Some(reason) = self.state.close_reason() {
            return ControlFlow::Break(Verdict::Close(reason));
        }
        match cx.backend.is_connected(&self.socket) {
            Ok(true) => {}
            Ok(false) => return ControlFlow::Break(Verdict::Wait),
            Err(error) => {
                self.state.set_error(error);
                return ControlFlow::Break(Verdict::Close(CloseReason::Unreachable));
            }
        }
        self.state.set_connected(cx.now);
        cx.stats.connected += 1;
        let sent = cx.buffers.output.len();
        self.call_opened(cx);
        let output = &mut cx.buffers.output;
        if sent > 0 && output.len() > sent {
            output.move_behind(sent);
            if output.len() > cx.config.write_limit {
                self.state.end_now(CloseReason::WriteLimit);
            }
        }
        self.may_proceed()
    }
}
