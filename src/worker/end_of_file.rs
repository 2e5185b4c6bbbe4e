//! The end of a stream: last callbacks, the end of file, and the close of the write side.

use std::io::ErrorKind;

use super::{Bounds, Context, Filled, Verdict, Worker};
use crate::conn_state::{Cause, CloseReason, Flags, Stage};
use crate::handler::Handler;
use crate::socket::uninterrupted;
use crate::sys::Backend;

impl<H: Handler> Worker<H> {
    /// Makes the last callback of a connection that is about to end. Under a framing without
    /// message boundaries, the held bytes are a last request. A peer that never sent a byte gets a
    /// last request too, unless the connection began here. In all other cases
    /// [`Handler::incomplete`] gets the held bytes.
    #[cold]
    #[inline(never)]
    pub(super) fn deliver_last<B: Backend>(&mut self, cx: &mut Context<H, B>, cause: Cause) {
        let held = cx.buffers.input.len();
        let silent = self.state.bytes_in == 0
            && !self.state.is_outgoing()
            && !self.state.flags.intersects(Flags::READ_CLOSED);
        if cx.config.framing.is_stream() && (held > 0 || silent) {
            self.deliver(cx, Bounds::all(held), cause);
        } else {
            self.call_incomplete(cx, cause);
        }
    }

    /// Calls [`Handler::incomplete`] with the held bytes, and consumes them.
    #[cold]
    #[inline(never)]
    pub(super) fn call_incomplete<B: Backend>(&mut self, cx: &mut Context<H, B>, cause: Cause) {
        cx.stats.count_incomplete(cause);
        self.run_callback(cx, cause, |handler, conn, session, held| {
            handler.incomplete(conn, session, held)
        });
        let held = cx.buffers.input.len();
        self.consume(cx, held, cause);
    }

    /// Ends a pause whose deadline has passed. The handler gets a last callback. The held bytes are
    /// not part of a request in progress, so the callback does not get them. They are dropped when
    /// the connection closes.
    #[cold]
    #[inline(never)]
    pub(super) fn expire_pause<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Verdict {
        cx.stats.count_incomplete(Cause::Unanswered);
        self.run_callback(cx, Cause::Unanswered, |handler, conn, session, _| {
            handler.incomplete(conn, session, b"")
        });
        // The callback may have paused the connection again.
        self.state.flags.remove(Flags::PAUSED);
        self.state.end(CloseReason::Expired);
        let reason = self.state.close_reason().unwrap_or(CloseReason::Expired);
        self.end_visit(cx, Verdict::Close(reason))
    }

    /// Reads a paused connection whose peer has gone, unless bytes are held. If there are no bytes,
    /// nobody waits for an answer, and the connection closes. Returns the verdict of the visit.
    #[cold]
    #[inline(never)]
    pub(super) fn read_paused<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Verdict {
        if self.state.stage() != Stage::Open || !cx.buffers.input.is_empty() {
            return Verdict::Wait;
        }
        if !self.eof {
            match self.fill(cx) {
                Filled::Failed(reason) => return Verdict::Close(reason),
                Filled::Nothing if self.readable => return Verdict::Again,
                _ if !self.eof => return Verdict::Wait,
                _ => {}
            }
        }
        self.end_of_file(cx);
        Verdict::Close(self.state.close_reason().unwrap_or(CloseReason::Eof))
    }

    /// Calls [`Handler::read_closed`], once per connection. Everything that the peer sent was
    /// delivered before. Returns the verdict of the visit.
    #[cold]
    #[inline(never)]
    pub(super) fn end_of_file<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Verdict {
        if self.state.flags.insert(Flags::READ_CLOSED) {
            self.run_callback(cx, Cause::Eof, |handler, conn, session, _| {
                handler.read_closed(conn, session)
            });
        }
        if let Some(reason) = self.state.close_reason() {
            self.end(reason)
        } else if self.state.flags.intersects(Flags::FINISHED) {
            self.end(CloseReason::Eof)
        } else {
            Verdict::Wait
        }
    }

    /// Closes the write side of a finished connection when all of its output is sent. Returns the
    /// verdict of the visit.
    pub(super) fn close_write<B: Backend>(
        &mut self,
        cx: &mut Context<H, B>,
        verdict: Verdict,
    ) -> Verdict {
        let flags = self.state.flags;
        if !flags.intersects(Flags::FINISHED) || matches!(verdict, Verdict::Close(_)) {
            return verdict;
        }
        let due = !flags.intersects(Flags::WRITE_CLOSED | Flags::BLOCKED)
            && self.state.stage() == Stage::Open
            && cx.buffers.output.is_empty();
        if !due {
            return verdict;
        }
        match uninterrupted(|| cx.backend.shutdown_write(&mut self.socket)) {
            Ok(()) => {
                self.state.flags.insert(Flags::WRITE_CLOSED);
                self.flush_closing_message(cx, verdict)
            }
            // A transport may need another event before it can make its closing message.
            Err(error) if error.kind() == ErrorKind::WouldBlock => verdict,
            Err(error) if self.socket.is_boxed() => Verdict::Close(self.state.fail(error)),
            // The connection was reset. The next read reports it.
            Err(_) => {
                self.state.flags.insert(Flags::WRITE_CLOSED);
                verdict
            }
        }
    }

    /// Sends the closing message of a transport, such as a TLS `close_notify`. If the socket does
    /// not take all of it, later visits send the rest.
    fn flush_closing_message<B: Backend>(
        &mut self,
        cx: &mut Context<H, B>,
        verdict: Verdict,
    ) -> Verdict {
        if !self.socket.is_boxed() {
            return verdict;
        }
        match uninterrupted(|| cx.backend.flush(&mut self.socket)) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                Verdict::Close(self.state.fail(error))
            }
            _ => verdict,
        }
    }
}
