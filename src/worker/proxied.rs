//! Proxied: a connection before its header has come, of which the handler does not know yet.

use super::{Kit, Verdict, Worker};
use crate::backend::Backend;
use crate::handler::Handler;
use crate::proxy::{self, Parsed};
use crate::time::Tick;
use crate::vitals::{CloseReason, State};

/// Reads of one connection a visit, until its header is there.
const READS: u32 = 16;

impl<S> Worker<S> {
    /// Reads the header; once it is there, the connection is opened, and can be served unless there
    /// is a verdict.
    #[cold]
    #[inline(never)]
    pub(super) fn introduce<H, B>(&mut self, kit: &mut Kit<H, B>) -> Option<Verdict>
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        for _ in 0..READS {
            let input = &kit.spares.input;
            match proxy::parse(input.held()) {
                Parsed::Complete { length, peer } => {
                    self.vitals.set_peer(peer);
                    self.open_behind(kit, length);
                    return self.rests();
                }
                Parsed::Partial if self.vitals.eof && input.is_empty() => {
                    return Some(Verdict::Close(CloseReason::Eof));
                }
                Parsed::Partial if !self.vitals.eof && !input.is_full() => {}
                _ => return Some(Verdict::Close(CloseReason::BadHeader)),
            }
            if !self.vitals.readable {
                return Some(Verdict::Wait);
            }
            if let Err(reason) = self.fill(kit) {
                return Some(Verdict::Close(reason));
            }
        }
        Some(Verdict::Again)
    }

    /// Opens a connection whose header of so many bytes is there: they are nobody's request.
    fn open_behind<H, B>(&mut self, kit: &mut Kit<H, B>, length: usize)
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if kit.spares.input.consume(length) {
            self.vitals.since = Tick::NEVER;
        }
        self.vitals.bytes_in -= length as u64;
        kit.stats.bytes_in -= length as u64;
        kit.stats.proxied += 1;
        self.vitals.state.leave(State::UNKNOWN);
        self.greet(kit);
    }
}
