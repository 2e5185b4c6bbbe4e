//! Worker: one connection. A visit flushes what is unsent, frames what is held, reads, calls back
//! and flushes again.
//!
//! A worker is visited with a [`Context`], which holds everything around it, and answers with a
//! [`Verdict`]. It knows neither the pool it lives in nor the other workers.

mod callback;
mod connect;
mod context;
mod memory;
mod proxy_header;
mod rate;
mod read;
mod visit;
mod write;

use std::fmt;
use std::io;
use std::mem;
use std::ops::ControlFlow;

use crate::buffers::Buffers;
use crate::conn_state::{Cause, CloseReason, ConnState, Flags, Stage};
use crate::ds::buffer::Buffer;
use crate::ds::output::Output;
use crate::framing::{Bounds, Found, Framing};
use crate::handler::Handler;
use crate::socket::Socket;
use crate::sys::{Backend, Event};
use crate::time::Tick;

pub(crate) use context::Context;
use read::Filled;

/// The budget of one visit in bytes, so that no connection keeps the others waiting. A read costs
/// the bytes it took, at least [`READ_COST`]; a callback costs [`CALLBACK_COST`]. A visit therefore
/// makes at most 16 reads and 256 callbacks. A first read that took all there was costs
/// [`READ_COST`] whatever its size.
const BUDGET: usize = 64 << 10;
const READ_COST: usize = 4 << 10;
const CALLBACK_COST: usize = 256;

/// What happens to a worker after a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Visit it again in the next turn: there is more to do, and the kernel will not report it
    /// again.
    Again,
    /// Wait for an event, a deadline or a command.
    Wait,
    /// Close it.
    Close(CloseReason),
}

/// Breaks with a verdict when a visit has nothing more to do.
type Flow = ControlFlow<Verdict>;

/// What to do next with the held bytes.
enum Step {
    Deliver(Bounds, Cause),
    /// There are no held bytes, or not enough for a request.
    Incomplete,
    Close(CloseReason),
}

/// Which readiness edge gives a worker something to do.
enum Awaits {
    Readable,
    Writable,
    Either,
    Nothing,
}

/// Invariant: between visits, `input` and `output` have storage only while they hold bytes, and
/// then `HAS_BUFFER` is set. During a visit their bytes are in the hot buffers.
pub(crate) struct Worker<H: Handler> {
    pub(crate) state: ConnState,
    pub(crate) socket: Socket,
    pub(crate) input: Buffer,
    pub(crate) output: Output,
    pub(crate) session: H::Session,
}

impl<H: Handler> Worker<H> {
    pub(crate) fn new(state: ConnState, socket: Socket, session: H::Session) -> Self {
        let mut state = state;
        state.flags.set(Flags::BOXED, socket.is_boxed());
        Self { state, socket, input: Buffer::default(), output: Output::default(), session }
    }

    /// Returns whether bytes of reply are unsent.
    pub(crate) fn has_unsent(&self) -> bool {
        self.state.flags.intersects(Flags::BLOCKED) || !self.output.is_empty()
    }

    /// Queues bytes behind the unsent ones. Returns false, and queues nothing, if more than `limit`
    /// would then be unsent.
    pub(crate) fn queue_output(&mut self, bytes: &[u8], limit: usize) -> bool {
        self.state.flags.insert(Flags::HAS_BUFFER);
        self.output.push(bytes, limit)
    }

    /// Returns whether the connection is between two requests and no answer is pending.
    pub(crate) fn is_idle(&self) -> bool {
        self.input.is_empty() && !self.has_unsent() && !self.state.flags.intersects(Flags::PAUSED)
    }

    /// Notes a readiness edge and returns whether it gives the worker something to do. A worker
    /// with queued output is on the ready list already.
    #[inline(always)]
    pub(crate) fn note_event(&mut self, event: Event) -> bool {
        let state = &mut self.state;
        let readable = event.invites_read();
        state.readable |= readable;
        state.must_drain |= event.closed | event.priority;
        if state.flags.is_empty() {
            return readable;
        }
        let writable = event.writable || event.closed;
        match self.awaits() {
            Awaits::Readable => readable,
            Awaits::Writable => writable,
            Awaits::Either => true,
            Awaits::Nothing => false,
        }
    }

    /// Returns which edge a worker with flags waits for. A transport may read and write on either
    /// edge.
    #[cold]
    fn awaits(&mut self) -> Awaits {
        let boxed = self.state.flags.intersects(Flags::BOXED);
        self.state.readable |= boxed;
        match (self.has_unsent(), boxed) {
            (true, false) => Awaits::Writable,
            (false, _) if self.state.is_suspended() => Awaits::Nothing,
            (false, false) => Awaits::Readable,
            (_, true) => Awaits::Either,
        }
    }

    /// Calls [`Handler::opened`]. What it writes is sent by the first visit.
    pub(crate) fn open<B: Backend>(&mut self, cx: &mut Context<H, B>) {
        self.call_opened(cx);
        self.detach(&mut cx.buffers);
    }

    /// Serves the connection within the budget of one visit.
    ///
    /// Most visits take the fast path: one read takes all there is, it is one request, and one
    /// write takes the reply. As soon as one of these does not hold,
    /// [`visit_rest`](Worker::visit_rest) continues with the general case.
    pub(crate) fn serve<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Verdict {
        if !self.state.flags.is_empty() || !self.state.readable {
            return self.visit_rest(cx, 0);
        }
        match self.fill(cx) {
            Filled::Bytes(_) if !self.state.readable => {}
            Filled::Bytes(count) => return self.visit_rest(cx, count.max(READ_COST)),
            Filled::Nothing | Filled::MemoryLimit => return self.visit_rest(cx, READ_COST),
            Filled::Failed(reason) => return self.end_visit(cx, Verdict::Close(reason)),
        }
        match self.step(cx) {
            Step::Deliver(bounds, cause) if !self.is_early(cx) => self.deliver(cx, bounds, cause),
            Step::Deliver(..) | Step::Incomplete => return self.end_visit(cx, Verdict::Wait),
            Step::Close(reason) => return self.end_visit(cx, Verdict::Close(reason)),
        }
        if !self.state.flags.is_empty() || !cx.buffers.input.is_empty() {
            return self.visit_rest(cx, READ_COST + CALLBACK_COST);
        }
        match self.send(cx) {
            ControlFlow::Continue(()) => Verdict::Wait,
            ControlFlow::Break(verdict) => self.end_visit(cx, verdict),
        }
    }

    /// Ends a connection whose deadline has passed, after delivering what it holds.
    pub(crate) fn expire<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Verdict {
        if self.state.stage() == Stage::Connecting {
            return Verdict::Close(CloseReason::Unreachable(io::ErrorKind::TimedOut));
        }
        if self.has_unsent() {
            return Verdict::Close(CloseReason::WriteStalled);
        }
        if self.state.stage() == Stage::AwaitingHeader {
            return Verdict::Close(CloseReason::Expired);
        }
        self.attach(&mut cx.buffers);
        let held = cx.buffers.input.len();
        if held > 0 || self.state.bytes_in == 0 {
            self.deliver(cx, cx.config.framing.remainder(held), Cause::Expired);
        }
        let reason = self.state.close_reason().unwrap_or(CloseReason::Expired);
        self.end_visit(cx, self.end(reason))
    }

    /// Returns the verdict for an end. A natural end waits while the connection is paused, because
    /// an answer is still pending.
    fn end(&self, reason: CloseReason) -> Verdict {
        if self.state.flags.intersects(Flags::PAUSED) && reason.is_natural() {
            return Verdict::Wait;
        }
        Verdict::Close(reason)
    }

    /// Makes the buffers that this worker kept the hot ones.
    fn attach(&mut self, buffers: &mut Buffers) {
        if self.input.capacity() > 0 {
            mem::swap(&mut self.input, &mut buffers.input);
        }
        if self.output.capacity() > 0 {
            mem::swap(&mut self.output, &mut buffers.output);
        }
    }

    /// Undoes [`Worker::attach`]: keeps the buffers that hold bytes and gives back empty ones.
    fn detach(&mut self, buffers: &mut Buffers) {
        self.detach_input(buffers);
        if self.output.capacity() > 0 || !buffers.output.is_empty() {
            mem::swap(&mut self.output, &mut buffers.output);
            if self.output.is_empty() {
                buffers.recycle_output(mem::take(&mut self.output));
            }
        }
        let has_buffer = self.input.capacity() > 0 || self.output.capacity() > 0;
        self.state.flags.set(Flags::HAS_BUFFER, has_buffer);
    }

    #[cold]
    fn detach_input(&mut self, buffers: &mut Buffers) {
        if self.input.capacity() == 0 {
            if !buffers.input.is_empty() {
                self.input = buffers.take_input();
            }
            return;
        }
        mem::swap(&mut self.input, &mut buffers.input);
        if self.input.is_empty() {
            buffers.recycle(mem::take(&mut self.input));
        }
    }

    /// Returns what to do with the held bytes. It reads, writes and calls nothing but the framing.
    #[inline(always)]
    fn step<B: Backend>(&self, cx: &mut Context<H, B>) -> Step {
        let (input, framing) = (&mut cx.buffers.input, &cx.config.framing);
        let found = if framing.is_stream() {
            Found::Partial
        } else {
            let max = cx.max_request.max(input.capacity());
            let mut scanned = input.scanned();
            let found = framing.find(input.held(), &mut scanned, max);
            input.set_scanned(scanned);
            found
        };
        let all = || framing.remainder(input.len());
        match found {
            Found::Frame(bounds) => Step::Deliver(bounds, Cause::Framed),
            Found::Overlong => Step::Deliver(all(), Cause::Overlong),
            Found::Invalid => Step::Close(CloseReason::Invalid),
            Found::Panicked => {
                cx.stats.panics += 1;
                Step::Close(CloseReason::Panicked)
            }
            Found::Partial => match self.completes(input, framing, cx.max_request) {
                Some(cause) => Step::Deliver(all(), cause),
                None => Step::Incomplete,
            },
        }
    }

    /// Returns why held bytes that are not a frame are delivered now, or `None` if they are not.
    #[inline(always)]
    fn completes(&self, input: &Buffer, framing: &Framing, max_request: usize) -> Option<Cause> {
        if input.is_full() && framing.is_stream() {
            Some(Cause::Full)
        } else if input.is_full() && input.capacity() >= max_request {
            Some(Cause::Overlong)
        } else if self.state.eof {
            Some(Cause::Eof)
        } else if !self.state.readable && matches!(framing, Framing::Drained) {
            Some(Cause::Drained)
        } else {
            None
        }
    }

    /// Calls the handler with one body, then consumes its bytes.
    #[inline(always)]
    fn deliver<B: Backend>(&mut self, cx: &mut Context<H, B>, bounds: Bounds, cause: Cause) {
        cx.stats.count_request(cause);
        let body = bounds.skip..bounds.skip + bounds.body;
        self.run_callback(cx, cause, |handler, conn, session, held| {
            handler.request(conn, session, &held[body])
        });
        let all = cx.buffers.input.consume(bounds.total);
        self.state.total_from = Tick::NEVER;
        if !all && cx.buffers.input.capacity() > cx.config.buffer_size {
            cx.buffers.shrink_input();
        }
        if all && self.input.capacity() > 0 {
            // The next bytes go into a buffer of the size that is configured by then.
            self.detach_input(&mut cx.buffers);
        }
        if let Some(reason) = cause.ends() {
            let reason = self.state.close_reason().unwrap_or(reason);
            self.state.end_now(reason);
        }
    }
}

impl<H: Handler> fmt::Debug for Worker<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("state", &self.state).finish_non_exhaustive()
    }
}
