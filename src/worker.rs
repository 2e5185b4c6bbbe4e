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
mod sending;

use std::io::ErrorKind;
use std::mem;

use crate::backend::{Backend, Event};
use crate::buffer::Buffer;
use crate::framing::{Bounds, Found, Framing};
use crate::handler::Handler;
use crate::output::Output;
use crate::socket::Socket;
use crate::spares::Spares;
use crate::time::Tick;
use crate::vitals::{Cause, CloseReason, Vitals};

pub(crate) use kit::Kit;

/// What one visit may do at most, so that nobody waits long for its turn; a read counts as
/// [`READ_LEAST`] bytes even if it got fewer.
const READ_BYTES: usize = 64 << 10;
const READ_LEAST: usize = 4 << 10;
const CALLBACKS: u32 = 256;

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
    Fill,
    Rest(Verdict),
    /// The framing panicked.
    Panicked,
}

/// Invariant: between visits, `input` and `output` have storage iff they hold bytes; during one, what
/// they held is in the hot buffers.
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
        Self { vitals, socket, input: Buffer::default(), output: Output::default(), session }
    }

    /// Whether bytes of reply have yet to go out.
    pub(crate) fn owes(&self) -> bool {
        self.vitals.blocked || !self.output.is_empty()
    }

    /// Whether it is between two requests, with nobody about to answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.input.is_empty() && !self.owes() && !self.vitals.paused
    }

    /// Notes an edge of readiness, and says whether it gives the worker something to do.
    pub(crate) fn note(&mut self, event: Event) -> bool {
        let (owes, boxed) = (self.owes(), self.socket.is_boxed());
        let vitals = &mut self.vitals;
        let readable = event.readable || event.closed || event.priority || boxed;
        vitals.readable |= readable;
        vitals.insistent |= event.closed || event.priority;
        let still = vitals.paused || vitals.throttled;
        if owes { event.writable || event.closed || boxed } else { readable && !still }
    }

    /// Tells the handler that the connection is there; what it writes goes out at the first visit.
    pub(crate) fn open<H, B>(&mut self, kit: &mut Kit<H, B>)
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        self.call(kit, Cause::Opened, |handler, conn, session, _| handler.opened(conn, session));
        self.detach(&mut kit.spares);
    }

    /// Does what there is to do, within the budget of one visit.
    pub(crate) fn serve<H, B>(&mut self, kit: &mut Kit<H, B>) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if let Some(reason) = self.vitals.ending.filter(|reason| !reason.is_polite()) {
            return Verdict::Close(reason);
        }
        let pays = self.owes() || self.socket.is_boxed();
        self.attach(&mut kit.spares);
        let mut held_up = if pays { self.pay(kit) } else { self.rests() };
        if held_up.is_none() && self.vitals.unknown {
            held_up = self.introduce(kit);
        }
        let verdict = match held_up {
            None => self.converse(kit),
            Some(verdict) => verdict,
        };
        let mut verdict = self.conclude(kit, verdict);
        if self.input.capacity() > 0 || !kit.spares.input.is_empty() {
            verdict = self.keep(kit, verdict);
        }
        self.detach_output(&mut kit.spares);
        verdict
    }

    /// Ends a connection whose time is up, after a last delivery of what it left.
    pub(crate) fn expire<H, B>(&mut self, kit: &mut Kit<H, B>) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if self.vitals.is_connecting() {
            return Verdict::Close(CloseReason::Unreachable(ErrorKind::TimedOut));
        }
        if self.owes() {
            return Verdict::Close(CloseReason::WriteStalled);
        }
        if self.vitals.unknown {
            return Verdict::Close(CloseReason::Expired);
        }
        self.attach(&mut kit.spares);
        let held = kit.spares.input.len();
        if held > 0 || self.vitals.bytes_in == 0 {
            self.deliver(kit, kit.config.framing.remainder(held), Cause::Expired);
        }
        let reason = self.vitals.ending.unwrap_or(CloseReason::Expired);
        let verdict = self.conclude(kit, self.end(reason));
        self.detach(&mut kit.spares);
        verdict
    }

    /// An end that is natural waits while the connection is paused: somebody is still to answer.
    fn end(&self, reason: CloseReason) -> Verdict {
        if self.vitals.paused && reason.is_natural() {
            return Verdict::Wait;
        }
        Verdict::Close(reason)
    }

    /// The hot buffers become those this worker kept, if it kept any.
    #[inline(always)]
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
        self.detach_output(spares);
    }

    #[inline(always)]
    fn detach_output(&mut self, spares: &mut Spares) {
        if self.output.capacity() > 0 || !spares.output.is_empty() {
            mem::swap(&mut self.output, &mut spares.output);
            if self.output.is_empty() {
                spares.give_back_output(mem::take(&mut self.output));
            }
        }
    }

    #[cold]
    #[inline(never)]
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
        if self.is_held_back(kit) {
            return Verdict::Wait;
        }
        let mut to_read = READ_BYTES;
        for _ in 0..CALLBACKS {
            let (bounds, cause) = loop {
                let input = &mut kit.spares.input;
                match self.step(input, &kit.config.framing, kit.longest, to_read) {
                    Step::Deliver(bounds, cause) => break (bounds, cause),
                    Step::Fill if kit.spares.input.is_full() && !self.grow(kit) => {
                        let held = kit.spares.input.len();
                        break (kit.config.framing.remainder(held), Cause::MemoryLimit);
                    }
                    Step::Fill => match self.fill(kit) {
                        Ok(count) => to_read = to_read.saturating_sub(count.max(READ_LEAST)),
                        Err(reason) => return Verdict::Close(reason),
                    },
                    Step::Rest(verdict) => return verdict,
                    Step::Panicked => {
                        kit.stats.panics += 1;
                        return Verdict::Close(CloseReason::Panicked);
                    }
                }
            };
            if self.is_early(kit) {
                return Verdict::Wait;
            }
            self.deliver(kit, bounds, cause);
            if let Some(verdict) = self.rests() {
                return verdict;
            }
            if kit.spares.output.len() >= kit.flush_at {
                if let Some(verdict) = self.send(kit) {
                    return verdict;
                }
            }
        }
        Verdict::Again
    }

    /// Whether nothing more may be read or delivered.
    fn rests(&self) -> Option<Verdict> {
        match self.vitals.ending {
            Some(reason) => Some(self.end(reason)),
            None => self.vitals.paused.then_some(Verdict::Wait),
        }
    }

    /// Decides what to do next. Bytes and decisions only; nothing is read, written or called.
    #[inline]
    fn step(&self, input: &mut Buffer, framing: &Framing, longest: usize, to_read: usize) -> Step {
        if input.is_empty() {
            if self.vitals.eof {
                return Step::Rest(Verdict::Close(CloseReason::Eof));
            }
        } else {
            let found = if framing.is_stream() {
                Found::Partial
            } else {
                let mut scanned = input.scanned();
                let longest = longest.max(input.capacity());
                let found = framing.find(input.held(), &mut scanned, longest);
                input.set_scanned(scanned);
                found
            };
            let all = || framing.remainder(input.len());
            match found {
                Found::Frame(bounds) => return Step::Deliver(bounds, Cause::Framed),
                Found::Overlong => return Step::Deliver(all(), Cause::Overlong),
                Found::Invalid => return Step::Rest(Verdict::Close(CloseReason::Invalid)),
                Found::Panicked => return Step::Panicked,
                Found::Partial => {
                    if let Some(cause) = self.completes(input, framing, longest) {
                        return Step::Deliver(all(), cause);
                    }
                }
            }
        }
        if !self.vitals.readable {
            Step::Rest(Verdict::Wait)
        } else if to_read == 0 {
            Step::Rest(Verdict::Again)
        } else {
            Step::Fill
        }
    }

    /// What makes a body of held bytes that are no frame, if anything does.
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

    /// Reads once, and says how much. What it learns about the end of the stream, or of what there
    /// is to read, is remembered in the vital signs.
    #[inline(always)]
    fn fill<H, B: Backend>(&mut self, kit: &mut Kit<H, B>) -> Result<usize, CloseReason> {
        let vitals = &mut self.vitals;
        let spare = kit.spares.input.spare(READ_BYTES);
        let room = spare.len();
        kit.stats.reads += 1;
        match kit.backend.read(&mut self.socket, spare) {
            Ok(0) => {
                vitals.eof = true;
                vitals.readable = false;
                Ok(0)
            }
            Ok(count) => {
                kit.spares.input.commit(count);
                kit.stats.bytes_in += count as u64;
                vitals.bytes_in += count as u64;
                vitals.moved = kit.now.stamp;
                if vitals.since == Tick::NEVER {
                    vitals.since = kit.now.stamp;
                }
                let short = count < room && !vitals.insistent;
                if short && kit.backend.short_read_is_drained(&self.socket) {
                    vitals.readable = false;
                }
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                vitals.readable = false;
                vitals.insistent = false;
                Ok(0)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(CloseReason::of(&error)),
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
            self.vitals.ending.get_or_insert(reason);
        }
    }
}
