//! A worker serves one connection. A visit sends unsent output, frames held bytes, reads, calls the
//! handler, and sends the replies.
//!
//! Each visit gets a [`Context`] with the state that all workers share. Each visit returns a
//! [`Verdict`]. A worker has no access to the pool or to other workers.

mod callback;
mod connect;
mod context;
mod end_of_file;
mod memory;
mod proxy_header;
mod rate;
mod read;
mod visit;
mod write;

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

/// The budget of one visit in bytes. It prevents one connection from delaying the others. A read
/// costs the number of bytes that it returned, but at least [`READ_COST`]. A request callback costs
/// [`CALLBACK_COST`]. A visit therefore makes at most 16 reads and 256 request callbacks. The reads
/// of a PROXY header are limited separately. If the first read on the fast path empties the socket,
/// it costs only [`READ_COST`], regardless of its size.
const BUDGET: usize = 64 << 10;
const READ_COST: usize = 4 << 10;
const CALLBACK_COST: usize = 256;

/// The action that follows a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Visit the worker again in the next turn. There is more to do, and the kernel might not
    /// report it again.
    Again,
    /// Wait for an event, a deadline or a command.
    Wait,
    /// Close the connection.
    Close(CloseReason),
}

/// The result of a step of a visit. It breaks with a verdict when the visit has nothing more to do.
type Flow = ControlFlow<Verdict>;

/// The next action for the held bytes.
enum Step {
    Deliver(Bounds, Cause),
    /// There are no held bytes, or not enough for a request.
    Partial,
    /// The held bytes will never be a complete request.
    Incomplete(Cause),
    Close(CloseReason),
}

/// The readiness edge that gives a worker something to do.
enum Awaits {
    Readable,
    Writable,
    Either,
    /// Only a hang-up.
    Nothing,
}

/// Invariant: between visits, `input` and `output` have storage only if they hold bytes. If one of
/// them has storage, `HAS_BUFFER` is set. During a visit, the held bytes and the unsent bytes are
/// in the hot buffers.
pub(crate) struct Worker<H: Handler> {
    pub(crate) state: ConnState,
    pub(crate) socket: Socket,
    pub(crate) input: Buffer,
    pub(crate) output: Output,
    /// The connection is on the ready list.
    pub(crate) queued: bool,
    /// The kernel reported the socket readable, and no read has drained it since.
    pub(crate) readable: bool,
    /// Reads must continue until the end of file or `WouldBlock`, even after a short read, because
    /// the kernel might not report the socket as readable again.
    pub(crate) must_drain: bool,
    /// The peer will send no more.
    pub(crate) eof: bool,
    /// The kernel reported that the peer can neither send nor receive any more.
    pub(crate) hung_up: bool,
    /// The connection was read once more because the manager is stopping.
    pub(crate) final_read: bool,
    /// The connection was accepted while the manager was stopping.
    pub(crate) accepted_in_stop: bool,
    /// `None` until the connection is open, and if [`Handler::opened`] has failed.
    pub(crate) session: Option<H::Session>,
}

impl<H: Handler> Worker<H> {
    pub(crate) fn new(state: ConnState, socket: Socket) -> Self {
        let mut state = state;
        state.flags.set(Flags::BOXED, socket.is_boxed());
        Self {
            state,
            socket,
            input: Buffer::default(),
            output: Output::default(),
            queued: false,
            readable: false,
            must_drain: false,
            eof: false,
            hung_up: false,
            final_read: false,
            accepted_in_stop: false,
            session: None,
        }
    }

    /// Returns whether the connection is blocked or has unsent output.
    pub(crate) fn has_unsent(&self) -> bool {
        self.state.flags.intersects(Flags::BLOCKED) || !self.output.is_empty()
    }

    /// Appends bytes to the unsent output. Returns false, and appends nothing, if the unsent output
    /// would become longer than `limit`.
    pub(crate) fn queue_output(&mut self, bytes: &[u8], limit: usize) -> bool {
        self.state.flags.insert(Flags::HAS_BUFFER);
        self.output.push(bytes, limit)
    }

    /// Returns whether the connection holds no bytes, has no unsent output, is not paused and is
    /// open in both directions.
    pub(crate) fn is_idle(&self) -> bool {
        let busy = Flags::PAUSED | Flags::READ_CLOSED | Flags::FINISHED;
        self.input.is_empty() && !self.has_unsent() && !self.state.flags.intersects(busy)
    }

    /// Notes a readiness edge. Returns whether the edge gives the worker something to do. A worker
    /// whose output was queued by a command is already on the ready list.
    #[inline(always)]
    pub(crate) fn note_event(&mut self, event: Event) -> bool {
        let readable = event.invites_read();
        self.readable |= readable;
        if event.closed | event.priority {
            self.must_drain = true;
            self.hung_up |= event.hung_up;
        }
        if self.state.flags.is_empty() {
            return readable;
        }
        let writable = event.writable || event.closed;
        match self.awaits() {
            Awaits::Readable => readable,
            Awaits::Writable => writable,
            Awaits::Either => true,
            Awaits::Nothing => event.hung_up,
        }
    }

    /// Returns the edge for which a worker waits. Called only if a flag is set. A transport may
    /// need a writable edge to read, and a readable edge to write.
    #[cold]
    fn awaits(&mut self) -> Awaits {
        let boxed = self.state.flags.intersects(Flags::BOXED);
        self.readable |= boxed;
        match (self.has_unsent(), boxed) {
            (true, false) => Awaits::Writable,
            (false, _) if self.state.is_suspended() => Awaits::Nothing,
            (false, false) => Awaits::Readable,
            (_, true) => Awaits::Either,
        }
    }

    /// Calls [`Handler::opened`]. The first visit sends the output of this callback.
    pub(crate) fn open<B: Backend>(&mut self, cx: &mut Context<H, B>) {
        self.call_opened(cx);
        self.detach(&mut cx.buffers);
    }

    /// Serves the connection within the budget of one visit.
    ///
    /// Most visits take the fast path: one read empties the socket, its bytes are one request, and
    /// one write sends the whole reply. If one of these conditions does not hold, the visit leaves
    /// the fast path. [`visit_rest`](Worker::visit_rest) then continues with the general case.
    pub(crate) fn serve<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Verdict {
        if !self.state.flags.is_empty() || !self.readable {
            return self.visit_rest(cx, 0);
        }
        match self.fill(cx) {
            Filled::Bytes(_) if !self.readable => {}
            Filled::Bytes(count) => return self.visit_rest(cx, count.max(READ_COST)),
            Filled::Nothing | Filled::MemoryLimit => return self.visit_rest(cx, READ_COST),
            Filled::Failed(reason) => return self.end_visit(cx, Verdict::Close(reason)),
        }
        match self.step(cx) {
            Step::Deliver(bounds, cause) if !self.is_early(cx) => self.deliver(cx, bounds, cause),
            Step::Deliver(..) | Step::Partial => return self.end_visit(cx, Verdict::Wait),
            Step::Incomplete(_) => return self.visit_rest(cx, READ_COST),
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

    /// Ends a connection whose deadline has passed. If the connection is open and no output is
    /// unsent, the handler gets a last callback.
    pub(crate) fn expire<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Verdict {
        if self.state.stage() == Stage::Connecting {
            self.state.set_error(io::ErrorKind::TimedOut.into());
            return Verdict::Close(CloseReason::Unreachable);
        }
        if self.has_unsent() {
            return Verdict::Close(CloseReason::WriteStalled);
        }
        if self.state.stage() == Stage::AwaitingHeader {
            return Verdict::Close(CloseReason::Expired);
        }
        self.attach(&mut cx.buffers);
        if self.state.flags.intersects(Flags::PAUSED) {
            return self.expire_pause(cx);
        }
        self.deliver_last(cx, Cause::Expired);
        let reason = self.state.close_reason().unwrap_or(CloseReason::Expired);
        self.end_visit(cx, self.end(reason))
    }

    /// Returns the verdict for a connection that ends for `reason`. A natural end waits while the
    /// connection is paused, because an answer is still pending, unless the peer has gone.
    fn end(&self, reason: CloseReason) -> Verdict {
        if self.state.flags.intersects(Flags::PAUSED) && reason.is_natural() && !self.hung_up {
            return Verdict::Wait;
        }
        Verdict::Close(reason)
    }

    /// Swaps the hot buffers with the buffers that this worker has kept.
    fn attach(&mut self, buffers: &mut Buffers) {
        if self.input.capacity() > 0 {
            mem::swap(&mut self.input, &mut buffers.input);
        }
        if self.output.capacity() > 0 {
            mem::swap(&mut self.output, &mut buffers.output);
        }
    }

    /// Undoes [`Worker::attach`]. The worker keeps the buffers that hold bytes, and returns the
    /// empty buffers.
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

    /// Returns the next action for the held bytes. This function does no I/O. The only user code
    /// that it may call is the framing.
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
        match found {
            Found::Frame(bounds) => Step::Deliver(bounds, Cause::Framed),
            Found::Overlong => Step::Incomplete(Cause::Overlong),
            Found::Invalid => Step::Close(CloseReason::Invalid),
            Found::Panicked => {
                cx.stats.panics += 1;
                Step::Close(CloseReason::Panicked)
            }
            Found::Partial if framing.is_stream() => self.step_stream(input, framing),
            Found::Partial if input.is_full() && input.capacity() >= cx.max_request => {
                Step::Incomplete(Cause::Overlong)
            }
            Found::Partial if self.eof => Step::Incomplete(Cause::Eof),
            Found::Partial => Step::Partial,
        }
    }

    /// Returns the next action for the held bytes under a framing without message boundaries.
    #[inline(always)]
    fn step_stream(&self, input: &Buffer, framing: &Framing) -> Step {
        let cause = if input.is_full() {
            Cause::Full
        } else if self.eof {
            Cause::Eof
        } else if !self.readable && matches!(framing, Framing::Drained) {
            Cause::Drained
        } else {
            return Step::Partial;
        };
        Step::Deliver(Bounds::all(input.len()), cause)
    }

    /// Calls the handler with the body of one request. Then consumes the bytes of this request.
    #[inline(always)]
    fn deliver<B: Backend>(&mut self, cx: &mut Context<H, B>, bounds: Bounds, cause: Cause) {
        cx.stats.count_request(cause);
        let body = bounds.skip..bounds.skip + bounds.body;
        self.run_callback(cx, cause, |handler, conn, session, held| {
            handler.request(conn, session, &held[body])
        });
        self.consume(cx, bounds.total, cause);
    }

    /// Consumes bytes that a callback with this cause has got. After a last callback, the
    /// connection is closing.
    #[inline(always)]
    fn consume<B: Backend>(&mut self, cx: &mut Context<H, B>, count: usize, cause: Cause) {
        let all = cx.buffers.input.consume(count);
        self.state.total_from = Tick::NEVER;
        if !all && cx.buffers.input.capacity() > cx.config.buffer_size {
            cx.buffers.shrink_input();
        }
        if all && self.input.capacity() > 0 {
            // Return the empty buffer. The next bytes then go into a buffer of the size that is
            // configured at that time.
            self.detach_input(&mut cx.buffers);
        }
        if let Some(reason) = cause.ends() {
            let reason = self.state.close_reason().unwrap_or(reason);
            self.state.end_now(reason);
        }
    }
}
