//! Visiting: what is more than an exchange. Pay, frame what is held, read, and leave: send what has
//! gathered, keep what stays behind, and note since when it waits.

use super::{BUDGET, CALLBACK, Kit, READ, Step, Verdict, Worker};
use crate::backend::Backend;
use crate::handler::Handler;
use crate::time::Tick;
use crate::vitals::{CloseReason, State};

impl<S> Worker<S> {
    /// A visit that has spent so much of its budget on what turn_ended out to be no exchange.
    ///
    /// All that is no exchange is called cold, so that an exchange is laid out and inlined as the
    /// way things go. A visit itself is not cold: its loops are to be fast as well.
    #[cold]
    #[inline(never)]
    pub(super) fn go_on<H, B>(&mut self, kit: &mut Kit<H, B>, spent: usize) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        self.visit(kit, BUDGET - spent)
    }

    /// Any visit, from its beginning or from wherever an exchange ended.
    #[inline(never)]
    fn visit<H, B>(&mut self, kit: &mut Kit<H, B>, budget: usize) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let keeps = self.input.capacity() > 0 || self.output.capacity() > 0;
        debug_assert!(self.vitals.state.any(State::KEEPS) || !keeps, "buffers it does not know of");
        let held_up = if self.vitals.state.is_empty() { None } else { self.prepare(kit) };
        let verdict = match held_up {
            None => self.converse(kit, budget),
            Some(verdict) => verdict,
        };
        self.leave(kit, verdict)
    }

    /// What comes before a visit that is out of the ordinary; a verdict if there is no more to it.
    #[cold]
    #[inline(never)]
    fn prepare<H, B>(&mut self, kit: &mut Kit<H, B>) -> Option<Verdict>
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let pays = self.owes() || self.vitals.state.any(State::BOXED);
        self.attach(&mut kit.spares);
        if let Some(reason) = self.vitals.ending().filter(|reason| !reason.is_polite()) {
            return Some(Verdict::Close(reason));
        }
        let mut held_up = if pays { self.pay(kit) } else { self.rests() };
        if held_up.is_none() && self.vitals.state.any(State::UNKNOWN) {
            held_up = self.introduce(kit);
        }
        if held_up.is_none() && self.is_held_back(kit) {
            held_up = Some(Verdict::Wait);
        }
        held_up
    }

    /// Frames, reads and calls back until there is nothing left to do or the budget is used up.
    #[inline(always)]
    fn converse<H, B>(&mut self, kit: &mut Kit<H, B>, budget: usize) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let mut budget = budget;
        loop {
            while !kit.spares.input.is_empty() {
                if let Some(verdict) = self.relieve(kit) {
                    return verdict;
                }
                let (bounds, cause) = match self.step(kit) {
                    Step::Deliver(bounds, cause) => (bounds, cause),
                    Step::Lack => break,
                    Step::Close(reason) => return Verdict::Close(reason),
                };
                if self.is_early(kit) {
                    return Verdict::Wait;
                }
                self.deliver::<H, B, true>(kit, bounds, cause);
                if let Some(verdict) = self.rests() {
                    return verdict;
                }
                budget = budget.saturating_sub(CALLBACK);
                if budget == 0 && !kit.spares.input.is_empty() {
                    return Verdict::Again;
                }
            }
            if !self.vitals.readable {
                return if self.vitals.eof {
                    Verdict::Close(CloseReason::Eof)
                } else {
                    Verdict::Wait
                };
            }
            if budget == 0 {
                return Verdict::Again;
            }
            if let Some(verdict) = self.relieve(kit) {
                return verdict;
            }
            match self.fill(kit) {
                Ok(Some(count)) => budget = budget.saturating_sub(count.max(READ)),
                Ok(None) => return self.give_in(kit, Verdict::Wait),
                Err(reason) => return Verdict::Close(reason),
            }
        }
    }

    /// Sends what has gathered once it is much, before there is more; a verdict if that has to wait.
    #[inline(always)]
    fn relieve<H, B>(&mut self, kit: &mut Kit<H, B>) -> Option<Verdict>
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        // None of it was sent yet, so its mark is its length; else it would have blocked.
        if kit.spares.output.mark() >= kit.flush_at { self.send(kit) } else { None }
    }

    /// Whether nothing more may be read or delivered.
    #[inline(always)]
    pub(super) fn rests(&self) -> Option<Verdict> {
        if !self.vitals.state.any(State::ENDING | State::PAUSED) {
            return None;
        }
        Some(self.vitals.ending().map_or(Verdict::Wait, |reason| self.end(reason)))
    }

    /// Ends a visit: what is owed is sent, and what stays behind kept.
    #[cold]
    #[inline(never)]
    pub(super) fn leave<H, B>(&mut self, kit: &mut Kit<H, B>, verdict: Verdict) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let verdict = self.conclude(kit, verdict);
        let verdict = self.keep(kit, verdict);
        if !kit.spares.input.is_empty() && self.vitals.since == Tick::NEVER {
            // It came just now, or with what was answered just now: if it waits, it waits for us.
            self.vitals.since = kit.now.stamp;
            self.vitals.moved = kit.now.stamp;
        }
        self.detach(&mut kit.spares);
        verdict
    }
}
