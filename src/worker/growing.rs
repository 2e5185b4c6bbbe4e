//! Growing: room for requests larger than a buffer, and what becomes of a connection when memory is
//! used up.

use super::{Kit, Verdict, Worker};
use crate::backend::Backend;
use crate::handler::Handler;
use crate::vitals::{Cause, CloseReason, State};

impl<S> Worker<S> {
    /// Makes room in a full input buffer. False if the manager's memory is used up.
    #[cold]
    #[inline(never)]
    pub(super) fn grow<H, B>(&mut self, kit: &mut Kit<H, B>) -> bool {
        kit.spares.grow_input(&mut self.input, kit.longest)
    }

    /// What becomes of a worker at the end of a visit that has kept no input so far and from now on
    /// has to, though memory is used up?
    pub(super) fn keep<H, B>(&mut self, kit: &mut Kit<H, B>, verdict: Verdict) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let keeps_more = self.input.capacity() == 0 && !kit.spares.input.is_empty();
        let closes = matches!(verdict, Verdict::Close(_));
        let uncallable = State::UNKNOWN | State::BLOCKED | State::PAUSED | State::ENDING;
        if !keeps_more || closes || kit.spares.may_keep_input() {
            verdict
        } else if self.vitals.state.any(uncallable) {
            // Nothing can be delivered now, and nothing kept for later.
            Verdict::Close(CloseReason::MemoryLimit)
        } else {
            let verdict = self.give_in(kit, verdict);
            self.conclude(kit, verdict)
        }
    }

    /// Delivers what is held, for there is no room for more.
    #[cold]
    #[inline(never)]
    pub(super) fn give_in<H, B>(&mut self, kit: &mut Kit<H, B>, verdict: Verdict) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let held = kit.spares.input.len();
        self.deliver::<H, B, true>(kit, kit.config.framing.remainder(held), Cause::MemoryLimit);
        self.rests().unwrap_or(verdict)
    }
}
