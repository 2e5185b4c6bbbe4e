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
mod visiting;

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
/// 256 callbacks. A first read that took all there was counts as [`READ`] whatever it took.
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

/// Which edge of readiness gives a worker something to do.
enum Awaits {
    Bytes,
    Room,
    Any,
    Nothing,
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
    #[inline(always)]
    pub(crate) fn note(&mut self, event: Event) -> bool {
        let vitals = &mut self.vitals;
        let readable = event.invites_read();
        vitals.readable |= readable;
        vitals.insistent |= event.closed | event.priority;
        if vitals.state.is_empty() {
            return readable;
        }
        let writable = event.writable || event.closed;
        match self.awaits() {
            Awaits::Bytes => readable,
            Awaits::Room => writable,
            Awaits::Any => true,
            Awaits::Nothing => false,
        }
    }

    /// What a worker waits for that is out of the ordinary. To a transport any edge may mean both.
    #[cold]
    fn awaits(&mut self) -> Awaits {
        let boxed = self.vitals.state.any(State::BOXED);
        self.vitals.readable |= boxed;
        match (self.owes(), boxed) {
            (true, false) => Awaits::Room,
            (false, _) if self.vitals.stands_still() => Awaits::Nothing,
            (false, false) => Awaits::Bytes,
            (_, true) => Awaits::Any,
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
    ///
    /// Nearly always that is an exchange, straight through: one read takes all there is, one
    /// request is all of it, one write takes the reply. As soon as it is not, it
    /// [goes on](Worker::go_on) as any other visit.
    pub(crate) fn serve<H, B>(&mut self, kit: &mut Kit<H, B>) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if !self.vitals.state.is_empty() || !self.vitals.readable {
            return self.go_on(kit, 0);
        }
        match self.fill(kit) {
            Ok(Some(1..)) if !self.vitals.readable => {}
            Ok(count) => return self.go_on(kit, count.unwrap_or(0).max(READ)),
            Err(reason) => return self.leave(kit, Verdict::Close(reason)),
        }
        match self.step(kit) {
            Step::Deliver(bounds, cause) if !self.is_early(kit) => {
                self.deliver::<H, B, false>(kit, bounds, cause);
            }
            Step::Deliver(..) | Step::Lack => return self.leave(kit, Verdict::Wait),
            Step::Close(reason) => return self.leave(kit, Verdict::Close(reason)),
        }
        if !self.vitals.state.is_empty() || !kit.spares.input.is_empty() {
            return self.go_on(kit, READ + CALLBACK);
        }
        match self.send(kit) {
            None => Verdict::Wait,
            Some(verdict) => self.leave(kit, verdict),
        }
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
            self.deliver::<H, B, true>(kit, kit.config.framing.remainder(held), Cause::Expired);
        }
        let reason = self.vitals.ending().unwrap_or(CloseReason::Expired);
        self.leave(kit, self.end(reason))
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

    /// Runs the callback on one body, and lets go of the bytes it was made of. Only if some may be
    /// `OLDER` than the visit is there a buffer of their own to let go of, and a time.
    ///
    /// Each value has a callback of its own built in, which a function called from two places has
    /// not.
    #[inline(always)]
    fn deliver<H, B, const OLDER: bool>(
        &mut self,
        kit: &mut Kit<H, B>,
        bounds: Bounds,
        cause: Cause,
    ) where
        H: Handler<Session = S>,
        B: Backend,
    {
        kit.stats.count_request(cause);
        let body = bounds.skip..bounds.skip + bounds.body;
        self.call(kit, cause, |handler, conn, session, held| {
            handler.request(conn, session, &held[body])
        });
        let all = kit.spares.input.consume(bounds.total);
        if OLDER {
            self.vitals.since = Tick::NEVER;
            if !all && kit.spares.input.capacity() > kit.config.buffer_size {
                kit.spares.shrink_input();
            }
            if all && self.input.capacity() > 0 {
                // The next bytes go into a buffer of the size that is configured by then.
                self.detach_input(&mut kit.spares);
            }
        }
        debug_assert!(self.vitals.since == Tick::NEVER, "it waits from before");
        if let Some(reason) = cause.ends() {
            let reason = self.vitals.ending().unwrap_or(reason);
            self.vitals.end_now(reason);
        }
    }
}
