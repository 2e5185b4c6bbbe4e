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

    /// What becomes of a worker that has kept no buffer so far and from now on has to.
    #[cold]
    #[inline(never)]
    pub(super) fn keep<H, B>(&mut self, kit: &mut Kit<H, B>, verdict: Verdict) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if matches!(verdict, Verdict::Close(_)) || kit.spares.may_keep_input() {
            return verdict;
        }
        if self.vitals.blocked || self.vitals.paused || self.vitals.ending.is_some() {
            // Nothing can be delivered now, and nothing kept for later.
            return Verdict::Close(CloseReason::MemoryLimit);
        }
        let held = kit.spares.input.len();
        self.deliver(kit, kit.config.framing.remainder(held), Cause::MemoryLimit);
        let reason = self.vitals.ending.unwrap_or(CloseReason::MemoryLimit);
        self.conclude(kit, self.end(reason))
    }
}
