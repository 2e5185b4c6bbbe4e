//! Reading: bytes come in, and what the kernel says about more of them is remembered.

use std::io::ErrorKind;

use super::{BUDGET, Kit, Worker};
use crate::backend::Backend;
use crate::vitals::CloseReason;

impl<S> Worker<S> {
    /// Reads once, and says how much; or makes room to read into, `None` if there may be no more.
    /// What it learns about the end of the stream, or of what there is to read, is remembered in the
    /// vital signs.
    #[inline(always)]
    pub(super) fn fill<H, B: Backend>(
        &mut self,
        kit: &mut Kit<H, B>,
    ) -> Result<Option<usize>, CloseReason> {
        let spare = kit.spares.input.spare(BUDGET);
        let room = spare.len();
        if room == 0 {
            return Ok(self.grow(kit).then_some(0));
        }
        let vitals = &mut self.vitals;
        kit.stats.reads += 1;
        match kit.backend.read(&mut self.socket, spare) {
            Ok(0) => {
                vitals.eof = true;
                vitals.readable = false;
                Ok(Some(0))
            }
            Ok(count) => {
                // Of all that read, only a backend of somebody else's can say so.
                assert!(count <= room, "a backend read more than there was room for");
                kit.spares.input.commit(count);
                kit.stats.bytes_in += count as u64;
                vitals.bytes_in += count as u64;
                vitals.moved = kit.now.stamp;
                let short = count < room && !vitals.insistent;
                if short && kit.backend.short_read_is_drained(&self.socket) {
                    vitals.readable = false;
                }
                Ok(Some(count))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                vitals.readable = false;
                vitals.insistent = false;
                Ok(Some(0))
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Some(0)),
            Err(error) => Err(CloseReason::of(&error)),
        }
    }
}
