//! A connection whose PROXY header has not arrived yet. The handler gets no callbacks for it.

use std::ops::ControlFlow;

use super::{Context, Filled, Flow, Verdict, Worker};
use crate::conn_state::{CloseReason, Stage};
use crate::handler::Handler;
use crate::proxy_protocol::{self, Parsed};
use crate::sys::Backend;
use crate::time::Tick;

/// Maximum number of reads per visit while the header is incomplete.
const READS: u32 = 16;

impl<H: Handler> Worker<H> {
    /// Reads the header. When it is complete, the connection is opened.
    #[cold]
    #[inline(never)]
    pub(super) fn read_proxy_header<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Flow {
        for _ in 0..READS {
            let input = &cx.buffers.input;
            match proxy_protocol::parse(input.held()) {
                Parsed::Complete { length, peer } => {
                    self.state.set_peer(peer);
                    self.open_after_header(cx, length);
                    return self.may_proceed();
                }
                Parsed::Partial if self.eof && input.is_empty() => {
                    return ControlFlow::Break(Verdict::Close(CloseReason::Eof));
                }
                Parsed::Partial if !self.eof && !input.is_full() => {}
                _ => return ControlFlow::Break(Verdict::Close(CloseReason::BadHeader)),
            }
            if !self.readable {
                return ControlFlow::Break(Verdict::Wait);
            }
            if let Filled::Failed(reason) = self.fill(cx) {
                return ControlFlow::Break(Verdict::Close(reason));
            }
        }
        ControlFlow::Break(Verdict::Again)
    }

    /// Opens a connection whose header of `length` bytes is complete. The header does not count as
    /// received bytes or as a request.
    fn open_after_header<B: Backend>(&mut self, cx: &mut Context<H, B>, length: usize) {
        if cx.buffers.input.consume(length) {
            self.state.total_from = Tick::NEVER;
        }
        self.state.bytes_in -= length as u64;
        cx.stats.bytes_in -= length as u64;
        cx.stats.proxied += 1;
        self.state.set_stage(Stage::Open);
        self.call_opened(cx);
    }
}
