//! Grows buffers for requests larger than `buffer_size`, and enforces `memory_limit`.

use std::ops::ControlFlow;

use super::{Context, Flow, Verdict, Worker};
use crate::conn_state::{Cause, CloseReason, Flags};
use crate::handler::Handler;
use crate::sys::Backend;

impl<H: Handler> Worker<H> {
    /// Grows a full input buffer. Returns false if `memory_limit` does not allow it.
    #[cold]
    #[inline(never)]
    pub(super) fn grow<B: Backend>(&mut self, cx: &mut Context<H, B>) -> bool {
        cx.buffers.grow_input(&mut self.input, cx.max_request)
    }

    /// Checks whether `memory_limit` allows the worker to keep its input after this visit. If not,
    /// the held bytes are delivered, or the connection closes. Returns the verdict of the visit.
    pub(super) fn enforce_memory_limit<B: Backend>(
        &mut self,
        cx: &mut Context<H, B>,
        verdict: Verdict,
    ) -> Verdict {
        let needs_buffer = self.input.capacity() == 0 && !cx.buffers.input.is_empty();
        let closes = matches!(verdict, Verdict::Close(_));
        let uncallable = Flags::NOT_OPEN | Flags::BLOCKED | Flags::PAUSED | Flags::CLOSING;
        if !needs_buffer || closes || cx.buffers.may_keep_input() {
            verdict
        } else if self.state.flags.intersects(uncallable) {
            // The bytes can neither be delivered now nor kept for later.
            Verdict::Close(CloseReason::MemoryLimit)
        } else {
            let verdict = match self.deliver_on_memory_limit(cx) {
                ControlFlow::Continue(()) => verdict,
                ControlFlow::Break(verdict) => verdict,
            };
            self.flush_before_end(cx, verdict)
        }
    }

    /// Makes the last callback, because `memory_limit` is reached.
    #[cold]
    #[inline(never)]
    pub(super) fn deliver_on_memory_limit<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Flow {
        self.deliver_last(cx, Cause::MemoryLimit);
        self.may_proceed()
    }
}
