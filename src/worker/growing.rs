//! Growing: room for requests larger than a buffer, and what becomes of a connection when memory is
//! used up.

use super::{Kit, Verdict, Worker};
use crate::backend::Backend;
use crate::handler::Handler;
use crate::vitals::{Cause, CloseReason};

impl<S> Worker<S> {
    /// Makes room in a full input buffer. False if the manager's memory is used up.
    #[cold]
    #[inline(never)]
    pub(super) fn grow<H, B>(&mut self, kit: &mut Kit<H, B>) -> bool {
        kit.spares.grow_input(&mut self.input, kit.longest)
    }

    /// Keeps what is held, or lets go of the buffer that held something. What becomes of a worker
    /// that has kept none so far and from now on has to, though memory is used up?
    #[cold]
    #[inline(never)]
    pub(super) fn keep<H, B>(&mut self, kit: &mut Kit<H, B>, verdict: Verdict) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let closes = matches!(verdict, Verdict::Close(_));
        let verdict = if self.input.capacity() > 0 || closes || kit.spares.may_keep_input() {
            verdict
        } else if self.vitals.unknown
            || self.vitals.blocked
            || self.vitals.paused
            || self.vitals.ending.is_some()
        {
            // Nothing can be delivered now, and nothing kept for later.
            Verdict::Close(CloseReason::MemoryLimit)
        } else {
            let held = kit.spares.input.len();
            self.deliver(kit, kit.config.framing.remainder(held), Cause::MemoryLimit);
            self.conclude(kit, self.rests().unwrap_or(verdict))
        };
        self.detach_input(&mut kit.spares);
        verdict
    }
}
