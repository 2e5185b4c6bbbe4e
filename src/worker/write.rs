//! Sends replies, in order. Bytes that the socket does not take stay unsent until the socket is
//! writable.

use std::io::ErrorKind;
use std::ops::ControlFlow;

use super::{Context, Flow, Verdict, Worker};
use crate::conn_state::{Cause, CloseReason, Flags, Stage};
use crate::handler::Handler;
use crate::sys::Backend;
use crate::time::Tick;

/// Maximum number of writes of one connection per flush.
const WRITES: u32 = 16;

/// The result of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// Nothing is unsent.
    All,
    /// The socket is full. The kernel reports when the socket is writable again.
    Blocked,
    /// The socket may take more.
    Partial,
    Failed(CloseReason),
}

impl<H: Handler> Worker<H> {
    /// Sends the output that earlier turns left unsent. If the connection was blocked and all
    /// output is sent now, calls [`Handler::flushed`].
    #[cold]
    pub(super) fn flush_unsent<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Flow {
        if self.state.stage() == Stage::Connecting {
            return self.finish_connect(cx);
        }
        self.send(cx)?;
        if self.state.flags.remove(Flags::BLOCKED) {
            let held = !cx.buffers.input.is_empty();
            self.state.total_from = if held { cx.now.ceil } else { Tick::NEVER };
            // A transport may have sent its buffered bytes without moving the time of activity.
            self.state.last_activity = cx.now.ceil;
            if !self.state.flags.intersects(Flags::CLOSING) {
                self.run_callback(cx, Cause::Flushed, |handler, conn, session, _| {
                    handler.flushed(conn, session)
                });
            }
        }
        self.may_proceed()
    }

    /// Sends the output. Breaks if not all of it was sent.
    #[inline(always)]
    pub(super) fn send<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Flow {
        if cx.buffers.output.is_empty() && !self.state.flags.intersects(Flags::BOXED) {
            return ControlFlow::Continue(());
        }
        match self.write(cx) {
            Sent::All => ControlFlow::Continue(()),
            sent => self.send_rest(cx, sent),
        }
    }

    /// Continues after a first write that did not send all of the output.
    #[cold]
    fn send_rest<B: Backend>(&mut self, cx: &mut Context<H, B>, sent: Sent) -> Flow {
        let mut sent = sent;
        for _ in 1..WRITES {
            if sent == Sent::Partial {
                sent = self.write(cx);
            }
        }
        match sent {
            Sent::All => ControlFlow::Continue(()),
            Sent::Failed(reason) => ControlFlow::Break(Verdict::Close(reason)),
            Sent::Blocked => ControlFlow::Break(self.mark_blocked(cx, Verdict::Wait)),
            Sent::Partial => ControlFlow::Break(self.mark_blocked(cx, Verdict::Again)),
        }
    }

    /// Marks the connection as blocked. From now on, both deadlines apply to the unsent output.
    fn mark_blocked<B: Backend>(&mut self, cx: &mut Context<H, B>, verdict: Verdict) -> Verdict {
        if !self.state.flags.insert(Flags::BLOCKED) {
            return verdict;
        }
        self.state.total_from = cx.now.ceil;
        self.state.last_activity = cx.now.ceil;
        // `run_callback` takes a mark before it calls the hook. If the hook panics, the output
        // after the mark is dropped. Drop the sent prefix now, so that a push in the hook does not
        // make the mark invalid.
        cx.buffers.output.drop_sent();
        if !self.state.flags.intersects(Flags::CLOSING) {
            self.run_callback(cx, Cause::Blocked, |handler, conn, session, _| {
                handler.blocked(conn, session)
            });
        }
        match self.state.close_reason().filter(|reason| !reason.is_polite()) {
            Some(reason) => Verdict::Close(reason),
            None => verdict,
        }
    }

    /// Writes once. If there is no output, flushes the bytes that a transport has buffered.
    #[inline(always)]
    fn write<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Sent {
        let output = &mut cx.buffers.output;
        let flushes = output.is_empty();
        let outcome = if flushes {
            cx.backend.flush(&mut self.socket).map(|()| 0)
        } else {
            cx.stats.writes += 1;
            cx.backend.write(&mut self.socket, output.unsent())
        };
        match outcome {
            Ok(0) if flushes => Sent::All,
            Ok(0) => Sent::Failed(self.state.fail(ErrorKind::WriteZero.into())),
            Ok(count) => {
                self.state.bytes_out += count as u64;
                self.state.last_activity = cx.now.ceil;
                cx.stats.bytes_out += count as u64;
                let all = output.advance(count) && !self.state.flags.intersects(Flags::BOXED);
                if all { Sent::All } else { Sent::Partial }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::Blocked,
            Err(error) if error.kind() == ErrorKind::Interrupted => Sent::Partial,
            Err(error) => Sent::Failed(self.state.fail(error)),
        }
    }

    /// Sends the output before a visit ends. A [polite](CloseReason::is_polite) close waits until
    /// all output is sent.
    pub(super) fn flush_before_end<B: Backend>(
        &mut self,
        cx: &mut Context<H, B>,
        verdict: Verdict,
    ) -> Verdict {
        let rude = matches!(verdict, Verdict::Close(reason) if !reason.is_polite());
        if rude || self.state.flags.intersects(Flags::BLOCKED) {
            return verdict;
        }
        match self.send(cx) {
            ControlFlow::Continue(()) => verdict,
            ControlFlow::Break(failed @ Verdict::Close(_)) => failed,
            ControlFlow::Break(waiting) => {
                if let Verdict::Close(reason) = verdict {
                    self.state.end(reason);
                }
                waiting
            }
        }
    }
}
