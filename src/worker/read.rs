//! Reads from the socket, and remembers what the kernel said about more bytes.

use std::io::ErrorKind;

use super::{BUDGET, Context, Worker};
use crate::conn_state::CloseReason;
use crate::handler::Handler;
use crate::sys::Backend;

/// What one call of [`Worker::fill`] did.
pub(super) enum Filled {
    /// Read this many bytes, at least one.
    Bytes(usize),
    /// Read none: the end of file, `WouldBlock` or an interrupted read; or the buffer was full and
    /// has grown.
    Nothing,
    /// The buffer is full and `memory_limit` does not allow a larger one.
    MemoryLimit,
    /// The read failed.
    Failed(CloseReason),
}

impl<H: Handler> Worker<H> {
    /// Reads once, or makes room for the next read. Notes in the connection's state whether the
    /// stream has ended and whether there is more to read.
    #[inline(always)]
    pub(super) fn fill<B: Backend>(&mut self, cx: &mut Context<H, B>) -> Filled {
        let spare = cx.buffers.input.spare(BUDGET);
        let room = spare.len();
        if room == 0 {
            return if self.grow(cx) { Filled::Nothing } else { Filled::MemoryLimit };
        }
        let state = &mut self.state;
        cx.stats.reads += 1;
        match cx.backend.read(&mut self.socket, spare) {
            Ok(0) => {
                state.eof = true;
                state.readable = false;
                Filled::Nothing
            }
            Ok(count) => {
                // Only a backend that is not ours can get this wrong.
                assert!(count <= room, "a backend read more than there was room for");
                cx.buffers.input.commit(count);
                cx.stats.bytes_in += count as u64;
                state.bytes_in += count as u64;
                state.last_activity = cx.now.ceil;
                let short = count < room && !state.must_drain;
                if short && cx.backend.short_read_is_drained(&self.socket) {
                    state.readable = false;
                }
                Filled::Bytes(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                state.readable = false;
                state.must_drain = false;
                Filled::Nothing
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Filled::Nothing,
            Err(error) => Filled::Failed(CloseReason::of(&error)),
        }
    }
}
