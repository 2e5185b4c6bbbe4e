//! Worker: one connection. Flush what is owed, frame what is held, read, call back, flush once.
//!
//! A worker is visited with borrows of everything around it and answers with a [`Verdict`]; it
//! knows neither the pool it lives in nor the other workers.

mod calling;
mod sending;

use std::io::ErrorKind;
use std::mem;

use crate::backend::Backend;
use crate::buffer::Buffer;
use crate::command::Desk;
use crate::config::Config;
use crate::framing::{Bounds, Found, Framing};
use crate::handler::{Conn, Handler};
use crate::output::Output;
use crate::socket::Socket;
use crate::spares::Spares;
use crate::stats::Stats;
use crate::time::{Now, Tick};
use crate::vitals::{Cause, CloseReason, Vitals};

/// What one visit may do at most, so that nobody waits long for its turn.
const READS: u32 = 16;
const READ_BYTES: usize = 64 << 10;
const CALLBACKS: u32 = 256;

/// Replies of several frames go out in one write, but not more than this waits for it, nor more
/// than half of what may be unsent.
const FLUSH_AT: usize = 64 << 10;

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

/// What remains of the budget of one visit.
struct Budget {
    reads: u32,
    bytes: usize,
    callbacks: u32,
}

/// Everything around the worker that a visit uses.
pub(crate) struct Visit<'a, H, B> {
    pub(crate) backend: &'a mut B,
    pub(crate) handler: &'a mut H,
    pub(crate) desk: &'a mut Desk,
    pub(crate) spares: &'a mut Spares,
    pub(crate) stats: &'a mut Stats,
    pub(crate) config: &'a Config,
    pub(crate) now: Now,
}

/// Invariant: between visits, `input` has storage iff it holds bytes.
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

    /// Tells the handler that the connection is there; what it writes goes out at the first visit.
    pub(crate) fn open<H, B>(&mut self, visit: &mut Visit<'_, H, B>)
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        self.call(visit, Cause::Opened, |handler, conn, session, _| handler.opened(conn, session));
        if !visit.spares.output.is_empty() {
            self.output = mem::take(&mut visit.spares.output);
        }
    }

    /// Does what there is to do, within the budget of one visit.
    pub(crate) fn serve<H, B>(&mut self, visit: &mut Visit<'_, H, B>) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if let Some(reason) = self.vitals.ending.filter(|reason| !reason.is_polite()) {
            return Verdict::Close(reason);
        }
        let waited = self.vitals.blocked;
        if let Some(verdict) = self.pay(visit) {
            return verdict;
        }
        self.attach(visit.spares);
        if waited && self.vitals.ending.is_none() {
            let flushed = |handler: &mut H, conn: &mut Conn<'_>, session: &mut S, _: &[u8]| {
                handler.flushed(conn, session)
            };
            self.call(visit, Cause::Flushed, flushed);
        }
        let verdict = self.converse(visit);
        let verdict = self.conclude(visit, verdict);
        self.detach(visit.spares);
        verdict
    }

    /// Ends a connection whose time is up, after a last delivery of what it left.
    pub(crate) fn expire<H, B>(&mut self, visit: &mut Visit<'_, H, B>) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if self.owes() {
            return Verdict::Close(CloseReason::WriteStalled);
        }
        self.attach(visit.spares);
        let held = visit.spares.input.len();
        if held > 0 || self.vitals.bytes_in == 0 {
            self.deliver(visit, visit.config.framing.remainder(held), Cause::Expired);
        }
        let reason = self.vitals.ending.unwrap_or(CloseReason::Expired);
        let verdict = self.conclude(visit, self.end(reason));
        self.detach(visit.spares);
        verdict
    }

    /// An end that is natural waits while the connection is paused: somebody is still to answer.
    fn end(&self, reason: CloseReason) -> Verdict {
        if self.vitals.paused && reason.is_natural() {
            return Verdict::Wait;
        }
        Verdict::Close(reason)
    }

    /// The hot input buffer becomes the one this worker kept, if it kept one.
    fn attach(&mut self, spares: &mut Spares) {
        if self.input.capacity() > 0 {
            mem::swap(&mut self.input, &mut spares.input);
        }
    }

    /// Undoes [`Worker::attach`]: keeps a buffer that holds bytes, gives back one that does not.
    fn detach(&mut self, spares: &mut Spares) {
        if self.input.capacity() > 0 {
            mem::swap(&mut self.input, &mut spares.input);
            if self.input.is_empty() {
                spares.give_back(mem::take(&mut self.input));
            }
        } else if !spares.input.is_empty() {
            self.input = spares.part_with_input();
        }
    }

    /// Frames, reads and calls back until there is nothing left to do or the budget is used up.
    fn converse<H, B>(&mut self, visit: &mut Visit<'_, H, B>) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let mut budget = Budget { reads: READS, bytes: READ_BYTES, callbacks: CALLBACKS };
        loop {
            if let Some(reason) = self.vitals.ending {
                return self.end(reason);
            }
            if visit.spares.output.len() >= FLUSH_AT.min(visit.config.write_limit / 2) {
                if let Some(verdict) = self.send(visit) {
                    return verdict;
                }
            }
            match self.step(&mut visit.spares.input, &visit.config.framing, &budget) {
                Step::Deliver(bounds, cause) => {
                    budget.callbacks -= 1;
                    self.deliver(visit, bounds, cause);
                }
                Step::Fill => {
                    if let Err(reason) = self.fill(visit, &mut budget) {
                        return Verdict::Close(reason);
                    }
                }
                Step::Rest(verdict) => return verdict,
                Step::Panicked => {
                    visit.stats.panics += 1;
                    return Verdict::Close(CloseReason::Panicked);
                }
            }
        }
    }

    /// Decides what to do next. Bytes and decisions only; nothing is read, written or called.
    fn step(&mut self, input: &mut Buffer, framing: &Framing, budget: &Budget) -> Step {
        if self.vitals.paused {
            return Step::Rest(Verdict::Wait);
        }
        if budget.callbacks == 0 {
            return Step::Rest(Verdict::Again);
        }
        let mut scanned = input.scanned();
        let found = framing.find(input.held(), &mut scanned, input.capacity());
        input.set_scanned(scanned);
        match found {
            Found::Frame(bounds) => Step::Deliver(bounds, Cause::Framed),
            Found::Overlong => Step::Deliver(framing.remainder(input.len()), Cause::Overlong),
            Found::Invalid => Step::Rest(Verdict::Close(CloseReason::Invalid)),
            Found::Panicked => Step::Panicked,
            Found::Partial => self.step_without_frame(input, framing, budget),
        }
    }

    fn step_without_frame(&self, input: &Buffer, framing: &Framing, budget: &Budget) -> Step {
        let all = framing.remainder(input.len());
        if input.is_full() {
            let cause = if framing.is_stream() { Cause::Full } else { Cause::Overlong };
            Step::Deliver(all, cause)
        } else if self.vitals.eof {
            if input.is_empty() {
                Step::Rest(Verdict::Close(CloseReason::Eof))
            } else {
                Step::Deliver(all, Cause::Eof)
            }
        } else if !self.vitals.readable {
            if matches!(framing, Framing::Drained) && !input.is_empty() {
                Step::Deliver(all, Cause::Drained)
            } else {
                Step::Rest(Verdict::Wait)
            }
        } else if budget.reads == 0 || budget.bytes == 0 {
            Step::Rest(Verdict::Again)
        } else {
            Step::Fill
        }
    }

    /// Reads once. What it learns about the end of the stream, or of what there is to read, is
    /// remembered in the vital signs.
    fn fill<H, B: Backend>(
        &mut self,
        visit: &mut Visit<'_, H, B>,
        budget: &mut Budget,
    ) -> Result<(), CloseReason> {
        let vitals = &mut self.vitals;
        let spare = visit.spares.input.spare(READ_BYTES);
        let room = spare.len();
        budget.reads -= 1;
        visit.stats.reads += 1;
        match visit.backend.read(&mut self.socket, spare) {
            Ok(0) => {
                vitals.eof = true;
                vitals.readable = false;
            }
            Ok(count) => {
                visit.spares.input.commit(count);
                visit.stats.bytes_in += count as u64;
                budget.bytes = budget.bytes.saturating_sub(count);
                vitals.bytes_in += count as u64;
                vitals.moved = visit.now.stamp;
                if vitals.since == Tick::NEVER {
                    vitals.since = visit.now.stamp;
                }
                let short = count < room && !vitals.insistent;
                if short && visit.backend.short_read_is_drained(&self.socket) {
                    vitals.readable = false;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                vitals.readable = false;
                vitals.insistent = false;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(CloseReason::of(&error)),
        }
        Ok(())
    }

    /// Runs the callback on one body, and lets go of the bytes it was made of.
    fn deliver<H, B>(&mut self, visit: &mut Visit<'_, H, B>, bounds: Bounds, cause: Cause)
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        visit.stats.count_request(cause);
        let body = bounds.skip..bounds.skip + bounds.body;
        self.call(visit, cause, |handler, conn, session, held| {
            handler.request(conn, session, &held[body])
        });
        let input = &mut visit.spares.input;
        input.consume(bounds.total);
        self.vitals.since = Tick::NEVER;
        if input.is_empty() {
            // The next bytes go into a buffer of the size that is configured by then.
            self.detach(visit.spares);
        } else {
            // What is left came with this request: if it waits, it waits for us.
            self.vitals.since = visit.now.stamp;
            self.vitals.moved = visit.now.stamp;
        }
        self.vitals.ending = self.vitals.ending.or(cause.ends());
    }
}
