//! Worker: one connection. Flush what is owed, frame what is held, read, call back, flush once.
//!
//! A worker is visited with a [`Kit`] of what is around it and answers with a [`Verdict`]; it knows
//! neither the pool it lives in nor the other workers.

mod calling;
mod connecting;
mod growing;
mod kit;
mod pacing;
mod proxied;
mod reading;
mod sending;

use std::io;
use std::mem;

use crate::backend::{Backend, Event};
use crate::buffer::Buffer;
use crate::framing::{Bounds, Found, Framing};
use crate::handler::Handler;
use crate::output::Output;
use crate::socket::Socket;
use crate::spares::Spares;
use crate::time::Tick;
use crate::vitals::{Cause, CloseReason, State, Vitals};

pub(crate) use kit::Kit;

/// What one visit may do at most, so that nobody waits long for its turn: in bytes read, of which a
/// read counts as [`READ`] at least, and a callback as [`CALLBACK`]. So it is at most 16 reads and
/// 256 callbacks.
const BUDGET: usize = 64 << 10;
const READ: usize = 4 << 10;
const CALLBACK: usize = 256;

/// What becomes of a worker after a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is more to do, and the kernel will not say so again.
    Again,
    /// Nothing to do until the kernel, a deadline or a command says so.
    Wait,
    Close(CloseReason),
}

/// What to do next with what is held.
enum Step {
    Deliver(Bounds, Cause),
    /// It is nothing, or not enough.
    Lack,
    Close(CloseReason),
}

/// Invariant: between visits, `input` and `output` have storage iff they hold bytes, and then its
/// state says that it keeps some; during one, what they held is in the hot buffers.
#[derive(Debug)]
pub(crate) struct Worker<S> {
    pub(crate) vitals: Vitals,
    pub(crate) socket: Socket,
    pub(crate) input: Buffer,
    pub(crate) output: Output,
    pub(crate) session: S,
}

impl<S> Worker<S> {
    pub(crate) fn new(vitals: Vitals, socket: Socket, session: S) -> Self {
        let mut vitals = vitals;
        vitals.state.set(State::BOXED, socket.is_boxed());
        Self { vitals, socket, input: Buffer::default(), output: Output::default(), session }
    }

    /// Whether bytes of reply have yet to go out.
    pub(crate) fn owes(&self) -> bool {
        self.vitals.state.any(State::BLOCKED) || !self.output.is_empty()
    }

    /// Queues bytes behind those that have yet to go out; false if `limit` allows no more.
    pub(crate) fn gather(&mut self, bytes: &[u8], limit: usize) -> bool {
        self.vitals.state.enter(State::KEEPS);
        self.output.push(bytes, limit)
    }

    /// Whether it is between two requests, with nobody about to answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.input.is_empty() && !self.owes() && !self.vitals.state.any(State::PAUSED)
    }

    /// Notes an edge of readiness, and says whether it gives the worker something to do. One that
    /// has been sent bytes by others is on the ready list already.
    pub(crate) fn note(&mut self, event: Event) -> bool {
        let vitals = &mut self.vitals;
        let readable = event.invites_read();
        vitals.readable |= readable;
        vitals.insistent |= event.closed || event.priority;
        if vitals.state.is_empty() { readable } else { self.wants(event) }
    }

    /// Whether an edge gives something to do to a worker that is out of the ordinary.
    #[cold]
    fn wants(&mut self, event: Event) -> bool {
        let boxed = self.vitals.state.any(State::BOXED);
        self.vitals.readable |= boxed;
        if self.owes() {
            event.writable || event.closed || boxed
        } else {
            (event.invites_read() || boxed) && !self.vitals.stands_still()
        }
    }

    /// Tells the handler that the connection is there; what it writes goes out at the first visit.
    pub(crate) fn open<H, B>(&mut self, kit: &mut Kit<H, B>)
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        self.greet(kit);
        self.detach(&mut kit.spares);
    }

    /// Does what there is to do, within the budget of one visit.
    pub(crate) fn serve<H, B>(&mut self, kit: &mut Kit<H, B>) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let keeps = self.input.capacity() > 0 || self.output.capacity() > 0;
        debug_assert!(self.vitals.state.any(State::KEEPS) || !keeps, "buffers it does not know of");
        let held_up = if self.vitals.state.is_empty() { None } else { self.prepare(kit) };
        let verdict = match held_up {
            None => self.converse(kit),
            Some(verdict) => verdict,
        };
        let verdict = self.conclude(kit, verdict);
        if verdict == Verdict::Wait && self.vitals.state.is_empty() && kit.spares.input.is_empty() {
            return verdict;
        }
        self.put_away(kit, verdict)
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

    /// What comes after a visit that leaves something behind: its buffers, or the connection itself.
    #[cold]
    #[inline(never)]
    fn put_away<H, B>(&mut self, kit: &mut Kit<H, B>, verdict: Verdict) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let verdict = self.keep(kit, verdict);
        self.detach(&mut kit.spares);
        verdict
    }

    /// Ends a connection whose time is up, after a last delivery of what it left.
    pub(crate) fn expire<H, B>(&mut self, kit: &mut Kit<H, B>) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if self.vitals.is_connecting() {
            return Verdict::Close(CloseReason::Unreachable(io::ErrorKind::TimedOut));
        }
        if self.owes() {
            return Verdict::Close(CloseReason::WriteStalled);
        }
        if self.vitals.state.any(State::UNKNOWN) {
            return Verdict::Close(CloseReason::Expired);
        }
        self.attach(&mut kit.spares);
        let held = kit.spares.input.len();
        if held > 0 || self.vitals.bytes_in == 0 {
            self.deliver(kit, kit.config.framing.remainder(held), Cause::Expired);
        }
        let reason = self.vitals.ending().unwrap_or(CloseReason::Expired);
        let verdict = self.conclude(kit, self.end(reason));
        self.detach(&mut kit.spares);
        verdict
    }

    /// An end that is natural waits while the connection is paused: somebody is still to answer.
    fn end(&self, reason: CloseReason) -> Verdict {
        if self.vitals.state.any(State::PAUSED) && reason.is_natural() {
            return Verdict::Wait;
        }
        Verdict::Close(reason)
    }

    /// The hot buffers become those this worker kept, if it kept any.
    fn attach(&mut self, spares: &mut Spares) {
        if self.input.capacity() > 0 {
            mem::swap(&mut self.input, &mut spares.input);
        }
        if self.output.capacity() > 0 {
            mem::swap(&mut self.output, &mut spares.output);
        }
    }

    /// Undoes [`Worker::attach`]: keeps the buffers that hold bytes, gives back those that do not.
    fn detach(&mut self, spares: &mut Spares) {
        self.detach_input(spares);
        if self.output.capacity() > 0 || !spares.output.is_empty() {
            mem::swap(&mut self.output, &mut spares.output);
            if self.output.is_empty() {
                spares.give_back_output(mem::take(&mut self.output));
            }
        }
        let keeps = self.input.capacity() > 0 || self.output.capacity() > 0;
        self.vitals.state.set(State::KEEPS, keeps);
    }

    #[cold]
    fn detach_input(&mut self, spares: &mut Spares) {
        if self.input.capacity() == 0 {
            if !spares.input.is_empty() {
                self.input = spares.part_with_input();
            }
            return;
        }
        mem::swap(&mut self.input, &mut spares.input);
        if self.input.is_empty() {
            spares.give_back(mem::take(&mut self.input));
        }
    }

    /// Frames, reads and calls back until there is nothing left to do or the budget is used up.
    #[inline(always)]
    fn converse<H, B>(&mut self, kit: &mut Kit<H, B>) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let mut budget = BUDGET;
        loop {
            while !kit.spares.input.is_empty() {
                let (bounds, cause) = match self.step(kit) {
                    Step::Deliver(bounds, cause) => (bounds, cause),
                    Step::Lack => break,
                    Step::Close(reason) => return Verdict::Close(reason),
                };
                if self.is_early(kit) {
                    return Verdict::Wait;
                }
                self.deliver(kit, bounds, cause);
                if let Some(verdict) = self.rests() {
                    return verdict;
                }
                // None of it was offered to the socket yet, or it would have blocked.
                if kit.spares.output.mark() >= kit.flush_at {
                    if let Some(verdict) = self.send(kit) {
                        return verdict;
                    }
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
            match self.fill(kit) {
                Ok(Some(count)) => budget = budget.saturating_sub(count.max(READ)),
                Ok(None) => return self.give_in(kit, Verdict::Wait),
                Err(reason) => return Verdict::Close(reason),
            }
        }
    }

    /// Whether nothing more may be read or delivered.
    #[inline(always)]
    fn rests(&self) -> Option<Verdict> {
        if !self.vitals.state.any(State::ENDING | State::PAUSED) {
            return None;
        }
        Some(self.vitals.ending().map_or(Verdict::Wait, |reason| self.end(reason)))
    }

    /// What to do with what is held. Bytes and decisions only; nothing is read, written or called.
    #[inline(always)]
    fn step<H, B>(&self, kit: &mut Kit<H, B>) -> Step {
        let (input, framing) = (&mut kit.spares.input, &kit.config.framing);
        let found = if framing.is_stream() {
            Found::Partial
        } else {
            let longest = kit.longest.max(input.capacity());
            let mut scanned = input.scanned();
            let found = framing.find(input.held(), &mut scanned, longest);
            input.set_scanned(scanned);
            found
        };
        let all = || framing.remainder(input.len());
        match found {
            Found::Frame(bounds) => Step::Deliver(bounds, Cause::Framed),
            Found::Overlong => Step::Deliver(all(), Cause::Overlong),
            Found::Invalid => Step::Close(CloseReason::Invalid),
            Found::Panicked => {
                kit.stats.panics += 1;
                Step::Close(CloseReason::Panicked)
            }
            Found::Partial => match self.completes(input, framing, kit.longest) {
                Some(cause) => Step::Deliver(all(), cause),
                None => Step::Lack,
            },
        }
    }

    /// What makes a body of held bytes that are no frame, if anything does.
    #[inline(always)]
    fn completes(&self, input: &Buffer, framing: &Framing, longest: usize) -> Option<Cause> {
        if input.is_full() && framing.is_stream() {
            Some(Cause::Full)
        } else if input.is_full() && input.capacity() >= longest {
            Some(Cause::Overlong)
        } else if self.vitals.eof {
            Some(Cause::Eof)
        } else if !self.vitals.readable && matches!(framing, Framing::Drained) {
            Some(Cause::Drained)
        } else {
            None
        }
    }

    /// Runs the callback on one body, and lets go of the bytes it was made of.
    #[inline(always)]
    fn deliver<H, B>(&mut self, kit: &mut Kit<H, B>, bounds: Bounds, cause: Cause)
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        kit.stats.count_request(cause);
        let body = bounds.skip..bounds.skip + bounds.body;
        self.call(kit, cause, |handler, conn, session, held| {
            handler.request(conn, session, &held[body])
        });
        let input = &mut kit.spares.input;
        input.consume(bounds.total);
        self.vitals.since = Tick::NEVER;
        if input.is_empty() {
            // The next bytes go into a buffer of the size that is configured by then.
            if self.input.capacity() > 0 {
                self.detach_input(&mut kit.spares);
            }
        } else {
            // What is left came with this request: if it waits, it waits for us.
            self.vitals.since = kit.now.stamp;
            self.vitals.moved = kit.now.stamp;
            if input.capacity() > kit.config.buffer_size {
                kit.spares.shrink_input();
            }
        }
        if let Some(reason) = cause.ends() {
            let reason = self.vitals.ending().unwrap_or(reason);
            self.vitals.end_now(reason);
        }
    }
}
