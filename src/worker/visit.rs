//! The general case of a visit: send unsent output, frame held bytes, read, and end the visit.

use std::convert::Infallible;
use std::ops::ControlFlow;

use super::{BUDGET, CALLBACK_COST, Context, Filled, Flow, READ_COST, Step, Verdict, Worker};
use crate::conn_state::{Flags, Stage};
use crate::handler::Handler;
use crate::sys::Backend;
use crate::time::Tick;

impl<H: Handler> Worker<H> {
    /// Continues a visit that left the fast path after it had spent `spent` of its budget.
    ///
    /// This function is cold, so that the compiler treats the fast path as the common case when it
    /// inlines functions and lays out the code. `visit` itself is not cold, because its loops have
    /// to be fast too.
    #[cold]
    #[inline(never)]
    pub(super) fn visit_rest<B: Backend>(
        &mut self,
        cx: &mut Context<H, B>,
        spent: usize,
    ) -> Verdict {
        self.visit(cx, BUDGET - spent)
    }

    /// Makes a whole visit, or the rest of a visit that has left the fast path.
    #[inline(never)]
    fn visit<B: Backend>(&mut self, cx: &mut Context<H, B>, budget: usize) -> Verdict {
        let has_buffer = self.input.capacity() > 0 || self.output.capacity() > 0;
        debug_assert!(
            self.state.flags.intersects(Flags::HAS_BUFFER) || !has_buffer,
            "the worker keeps a buffer, but HAS_BUFFER is not set"
        );
        let ControlFlow::Break(verdict) = self.process(cx, budget);
        self.end_visit(cx, verdict)
    }

    /// Prepares the visit. Then frames held bytes, calls the handler and reads, until nothing is
    /// left to do or the budget is spent.
    #[inline(always)]
    fn process<B: Backend>(
        &mut self,
        cx: &mut Context<H, B>,
        budget: usize,
    ) -> ControlFlow<Verdict, Infallible> {
        if !self.state.flags.is_empty() {
            self.prepare(cx)?;
        }
        let mut budget = budget;
        loop {
            while !cx.buffers.input.is_empty() {
                self.flush_if_large(cx)?;
                let (bounds, cause) = match self.step(cx) {
                    Step::Deliver(bounds, cause) => (bounds, cause),
                    Step::Partial => break,
                    Step::Incomplete(cause) => {
                        self.call_incomplete(cx, cause);
                        self.may_proceed()?;
                        break;
                    }
                    Step::Close(reason) => return ControlFlow::Break(Verdict::Close(reason)),
                };
                if self.is_early(cx) {
                    return ControlFlow::Break(Verdict::Wait);
                }
                self.deliver(cx, bounds, cause);
                self.may_proceed()?;
                budget = budget.saturating_sub(CALLBACK_COST);
                if budget == 0 && !cx.buffers.input.is_empty() {
                    return ControlFlow::Break(Verdict::Again);
                }
            }
            if !self.readable {
                let eof = self.eof;
                let verdict = if eof { self.end_of_file(cx) } else { Verdict::Wait };
                return ControlFlow::Break(verdict);
            }
            if budget == 0 {
                return ControlFlow::Break(Verdict::Again);
            }
            self.flush_if_large(cx)?;
            let cost = match self.fill(cx) {
                Filled::Bytes(count) => count.max(READ_COST),
                Filled::Nothing => READ_COST,
                Filled::MemoryLimit => {
                    self.deliver_on_memory_limit(cx)?;
                    return ControlFlow::Break(Verdict::Wait);
                }
                Filled::Failed(reason) => return ControlFlow::Break(Verdict::Close(reason)),
            };
            budget = budget.saturating_sub(cost);
        }
    }

    /// Handles the connection's flags before anything is framed or read: attaches the kept buffers,
    /// sends unsent output, reads a PROXY header, and checks the rate limit.
    #[cold]
    #[inline(never)]
    fn prepare<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Flow {
        let flushes = self.has_unsent() || self.state.flags.intersects(Flags::BOXED);
        self.attach(&mut cx.buffers);
        if let Some(reason) = self.state.close_reason().filter(|reason| !reason.is_polite()) {
            return ControlFlow::Break(Verdict::Close(reason));
        }
        if flushes {
            self.flush_unsent(cx)?;
        } else {
            self.may_proceed()?;
        }
        if self.state.stage() == Stage::AwaitingHeader {
            self.read_proxy_header(cx)?;
        }
        if self.is_throttled(cx) {
            return ControlFlow::Break(Verdict::Wait);
        }
        ControlFlow::Continue(())
    }

    /// Sends the output if it has at least `flush_at` bytes. Breaks if not all of the output was
    /// sent.
    #[inline(always)]
    fn flush_if_large<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Flow {
        // No byte of this output was sent yet, because the connection is not blocked. The mark is
        // therefore the length of the output.
        if cx.buffers.output.mark() >= cx.flush_at {
            self.send(cx)
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Breaks if the connection is paused or closing. In these states, nothing more may be read or
    /// delivered.
    #[inline(always)]
    pub(super) fn may_proceed(&self) -> Flow {
        if !self.state.flags.intersects(Flags::CLOSING | Flags::PAUSED) {
            return ControlFlow::Continue(());
        }
        let reason = self.state.close_reason();
        ControlFlow::Break(reason.map_or(Verdict::Wait, |reason| self.end(reason)))
    }

    /// Ends a visit: sends the output, and lets the worker keep the buffers that still hold bytes.
    #[cold]
    #[inline(never)]
    pub(super) fn end_visit<B: Backend>(
        &mut self,
        cx: &mut Context<H, B>,
        verdict: Verdict,
    ) -> Verdict {
        let is_paused = self.state.flags.intersects(Flags::PAUSED);
        let verdict = if self.hung_up && is_paused && verdict == Verdict::Wait {
            self.read_paused(cx)
        } else {
            verdict
        };
        let verdict = self.flush_before_end(cx, verdict);
        let verdict = self.enforce_memory_limit(cx, verdict);
        let verdict = self.close_write(cx, verdict);
        if !cx.buffers.input.is_empty() && self.state.total_from == Tick::NEVER {
            // The bytes arrived in this visit, or they follow a request that was delivered in this
            // visit. The peer did not cause the delay of this visit, so both deadlines count from
            // now.
            self.state.total_from = cx.now.ceil;
            self.state.last_activity = cx.now.ceil;
        }
        self.detach(&mut cx.buffers);
        verdict
    }
}
