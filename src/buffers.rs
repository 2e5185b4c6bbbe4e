//! Buffers that the workers share. Every visit uses the hot buffers. The warm buffers are spare
//! input buffers.
//!
//! A worker reads into the hot input buffer, and its replies are gathered in the hot output buffer.
//! If input is left after the visit, the worker keeps the input buffer, and a warm buffer becomes
//! the hot input buffer. If output is unsent, the worker keeps the output buffer. An idle
//! connection therefore has no buffer. A kept input buffer may grow. `memory_limit` limits the
//! total capacity of the kept input buffers.

use std::mem;

use crate::ds::buffer::Buffer;
use crate::ds::output::Output;

/// Invariant: `kept` is the sum of the capacities of the input buffers that workers keep.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The hot input buffer. It is empty between visits.
    pub(crate) input: Buffer,
    /// The hot output buffer. It is empty between visits.
    pub(crate) output: Output,
    warm: Vec<Buffer>,
    /// The number of warm buffers that reaping does not free.
    keep: usize,
    /// The smallest number of warm buffers since the last reaping. This is the number of buffers
    /// that were not used since then.
    low_water: usize,
    buffer_size: usize,
    /// The capacity in bytes of the input buffers that workers keep.
    kept: usize,
    /// The limit on `kept`. `usize::MAX` means no limit.
    memory_limit: usize,
    allocated: u64,
}

impl Buffers {
    /// Sets the number of warm buffers, the size of a buffer and the limit on kept bytes. Allocates
    /// the buffers that are missing. If the size changes, warm buffers of the old size are freed
    /// now. A buffer of the old size that a worker keeps is freed when the worker returns it.
    pub(crate) fn configure(&mut self, keep: usize, buffer_size: usize, memory_limit: usize) {
        self.memory_limit = memory_limit;
        if buffer_size != self.buffer_size {
            self.buffer_size = buffer_size;
            self.warm.clear();
            self.input = self.allocate(buffer_size);
        }
        self.keep = keep;
        self.warm.reserve(keep.saturating_sub(self.warm.len()));
        while self.warm.len() < keep {
            let buffer = self.allocate(buffer_size);
            self.warm.push(buffer);
        }
        self.low_water = self.warm.len();
    }

    /// Returns the hot input buffer and the bytes in it, for a worker that will keep this buffer. A
    /// warm or new buffer becomes the hot input buffer.
    pub(crate) fn take_input(&mut self) -> Buffer {
        let spare = self.take(self.buffer_size);
        let input = mem::replace(&mut self.input, spare);
        self.kept += input.capacity();
        input
    }

    /// Takes back an input buffer that a worker kept. Its bytes are dropped.
    pub(crate) fn recycle(&mut self, buffer: Buffer) {
        self.kept -= buffer.capacity();
        self.warm(buffer);
    }

    /// Returns whether `memory_limit` allows a worker to keep the hot input buffer.
    pub(crate) fn may_keep_input(&self) -> bool {
        self.leaves(self.input.capacity())
    }

    /// Doubles the capacity of the hot input buffer, to at most `max` bytes. The larger buffer
    /// counts as kept by the worker.
    ///
    /// `own` is the input field of the worker. If the worker kept a buffer from an earlier visit,
    /// the two buffers were swapped at the beginning of this visit: the kept buffer is now the hot
    /// one, and `own` holds the buffer that was hot before. If the worker kept no buffer, `own` has
    /// no storage until the first growth. If `memory_limit` does not allow the growth, returns
    /// false and changes nothing.
    pub(crate) fn grow_input(&mut self, own: &mut Buffer, max: usize) -> bool {
        let capacity = self.input.capacity().saturating_mul(2).min(max);
        let before = if own.capacity() > 0 { self.input.capacity() } else { 0 };
        if !self.leaves(capacity - before) {
            return false;
        }
        self.kept += capacity - before;
        let small = self.resize_input(capacity);
        if before > 0 {
            self.warm(small);
        } else {
            *own = small;
        }
        true
    }

    /// Shrinks the hot input buffer if it has grown. The new capacity is `buffer_size`, doubled
    /// until the held bytes fit.
    pub(crate) fn shrink_input(&mut self) {
        let mut capacity = self.buffer_size;
        while capacity < self.input.len() {
            capacity *= 2;
        }
        if capacity < self.input.capacity() {
            self.kept -= self.input.capacity() - capacity;
            let large = self.resize_input(capacity);
            self.warm(large);
        }
    }

    /// Enlarges a kept buffer to `buffer_size`, if the buffer is smaller and `memory_limit` allows
    /// the growth.
    pub(crate) fn enlarge(&mut self, kept: &mut Buffer) {
        let Some(more) = self.buffer_size.checked_sub(kept.capacity()) else { return };
        if more > 0 && self.leaves(more) {
            self.kept += more;
            let mut large = self.take(self.buffer_size);
            kept.move_to(&mut large);
            *kept = large;
        }
    }

    /// Returns the capacity in bytes of the input buffers that workers keep.
    pub(crate) fn kept(&self) -> usize {
        self.kept
    }

    /// Returns whether `memory_limit` allows workers to keep `more` additional bytes.
    fn leaves(&self, more: usize) -> bool {
        self.kept.saturating_add(more) <= self.memory_limit
    }

    /// Replaces the hot input buffer with a buffer of this capacity, and moves the held bytes to
    /// it. Returns the old buffer.
    fn resize_input(&mut self, capacity: usize) -> Buffer {
        let mut other = self.take(capacity);
        self.input.move_to(&mut other);
        mem::replace(&mut self.input, other)
    }

    /// Returns an empty buffer of this capacity, a warm one if possible.
    fn take(&mut self, capacity: usize) -> Buffer {
        let warm = if capacity == self.buffer_size { self.warm.pop() } else { None };
        self.low_water = self.low_water.min(self.warm.len());
        warm.unwrap_or_else(|| self.allocate(capacity))
    }

    /// Empties a buffer and adds it to the warm buffers. Frees it if its capacity is not
    /// `buffer_size`.
    fn warm(&mut self, mut buffer: Buffer) {
        if buffer.capacity() == self.buffer_size {
            buffer.consume(buffer.len());
            self.warm.push(buffer);
        }
    }

    /// Takes an empty output buffer from a worker. If the hot output buffer is empty and smaller,
    /// the worker's buffer replaces it. If not, the worker's buffer is freed.
    pub(crate) fn recycle_output(&mut self, output: Output) {
        if self.output.is_empty() && output.capacity() > self.output.capacity() {
            self.output = output;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.warm.len()
    }

    /// Returns the number of buffers that were allocated so far.
    pub(crate) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Returns whether there are more warm buffers than reaping must keep.
    pub(crate) fn can_reap(&self) -> bool {
        self.warm.len() > self.keep
    }

    /// Frees the warm buffers that were not used since the last call, but leaves at least `keep`
    /// buffers.
    #[inline(never)]
    pub(crate) fn reap(&mut self) {
        let idle = self.low_water.min(self.warm.len().saturating_sub(self.keep));
        self.warm.truncate(self.warm.len() - idle);
        self.low_water = self.warm.len();
    }

    /// Frees all buffers.
    pub(crate) fn clear(&mut self) {
        *self = Self { allocated: self.allocated, ..Self::default() };
    }

    fn allocate(&mut self, capacity: usize) -> Buffer {
        self.allocated += 1;
        Buffer::with_capacity(capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(buffers: &mut Buffers) -> Buffer {
        buffers.input.commit(1);
        buffers.take_input()
    }

    #[test]
    fn reaping_frees_only_buffers_that_were_not_used() {
        let mut buffers = Buffers::default();
        buffers.configure(1, 8, 0);
        let busy: Vec<Buffer> = (0..4).map(|_| part(&mut buffers)).collect();
        assert_eq!(buffers.allocated(), 5, "one hot, one warm and three more");
        for buffer in busy {
            buffers.recycle(buffer);
        }
        assert_eq!(buffers.len(), 4);
        buffers.reap();
        assert_eq!(buffers.len(), 4, "all were used since the last reaping");
        let buffer = part(&mut buffers);
        buffers.recycle(buffer);
        buffers.reap();
        assert_eq!(buffers.len(), 1, "three were not used, and one must be kept");
        assert!(!buffers.can_reap());
    }

    #[test]
    fn steady_use_allocates_nothing_without_min_workers() {
        let mut buffers = Buffers::default();
        buffers.configure(0, 8, 0);
        for _ in 0..10 {
            let buffer = part(&mut buffers);
            buffers.recycle(buffer);
            buffers.reap();
        }
        assert_eq!(buffers.allocated(), 2);
        buffers.reap();
        assert_eq!(buffers.len(), 0, "it was not used for a whole interval");
    }

    #[test]
    fn buffers_of_another_size_are_not_kept() {
        let mut buffers = Buffers::default();
        buffers.configure(2, 8, 0);
        let buffer = part(&mut buffers);
        buffers.configure(2, 16, 0);
        assert_eq!((buffers.len(), buffers.input.capacity()), (2, 16));
        buffers.recycle(buffer);
        assert_eq!(buffers.len(), 2);
    }

    #[test]
    fn a_buffer_given_back_is_empty() {
        let mut buffers = Buffers::default();
        buffers.configure(0, 8, 0);
        let buffer = part(&mut buffers);
        assert_eq!(buffer.len(), 1);
        buffers.recycle(buffer);
        assert!(buffers.take_input().is_empty(), "the hot buffer");
        assert!(buffers.take_input().is_empty(), "the returned buffer");
    }
}
