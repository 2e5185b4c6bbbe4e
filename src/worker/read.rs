//! Reads from the socket, and notes whether there may be more to read.

use std::io::ErrorKind;

use super::{BUDGET, Context, Worker};
use crate::conn_state::CloseReason;
use crate::handler::Handler;
use crate::sys::Backend;

/// The result of one call of [`Worker::fill`].
pub(super) enum Filled {
    /// This many bytes were read, at least one.
    Bytes(usize),
    /// No bytes were read. Either the read returned the end of file, `WouldBlock` or `Interrupted`,
    /// or the buffer was full and has grown.
    Nothing,
    /// The buffer is full and `memory_limit` does not allow a larger one.
    MemoryLimit,
    /// The read failed.
    Failed(CloseReason),
}

impl<H: Handler> Worker<H> {
    /// Reads once. If the buffer is full, grows the buffer instead of reading. Notes in the
    /// connection's state whether the stream has ended and whether there may be more to read.
    #[inline(always)]
    pub(super) fn fill<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Filled {
        let spare = cx.buffers.input.spare(BUDGET);
        let room = spare.len();
        if room == 0 {
            return if self.grow(cx) { Filled::Nothing } else { Filled::MemoryLimit };
        }
        cx.stats.reads += 1;
        match cx.backend.read(&mut self.socket, spare) {
            Ok(0) => {
                self.eof = true;
                self.readable = false;
                Filled::Nothing
            }
            Ok(count) => {
                // The backends of this crate never return a count that is too large, but another
                // backend might.
                assert!(count <= room, "a backend read more than there was room for");
                cx.buffers.input.commit(count);
                cx.stats.bytes_in += count as u64;
                self.state.bytes_in += count as u64;
                self.state.last_activity = cx.now.ceil;
                let short = count < room && !self.must_drain;
                if short && cx.backend.short_read_is_drained(&self.socket) {
                    self.readable = false;
                }
                Filled::Bytes(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                self.must_drain = false;
                Filled::Nothing
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Filled::Nothing,
            Err(error) => Filled::Failed(self.state.fail(error)),
        }
    }
}
