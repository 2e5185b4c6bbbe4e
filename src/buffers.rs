//! Spares: the hot buffers that every visit uses, and the warm ones for bytes that stay behind.
//!
//! A worker reads into the hot input buffer and its replies gather in the hot output buffer.
//! Only when bytes stay behind does it keep the buffer, and a spare becomes the hot one; so an
//! idle connection holds none. A kept buffer may grow, within a limit on all that are kept. It
//! knows neither workers nor time.

use std::mem;

use crate::ds::buffer::Buffer;
use crate::ds::output::Output;

/// Invariant: `kept` is the sum of the capacities of the buffers that workers keep.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// Empty between visits.
    pub(crate) input: Buffer,
    /// Empty between visits.
    pub(crate) output: Output,
    warm: Vec<Buffer>,
    /// How many must stay warm.
    keep: usize,
    /// The fewest there were since the last reaping: that many were not needed.
    low_water: usize,
    buffer_size: usize,
    /// Bytes of all buffers that workers keep, and how many there may be; 0 for any number.
    kept: usize,
    memory_limit: usize,
    allocated: u64,
}

impl Buffers {
    /// Sets how many to keep warm, how many bytes each holds, and how many bytes workers may keep,
    /// and allocates what is missing. Buffers of another size go as they are let go of.
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

    /// The hot input buffer, with what it holds, for a worker to keep; a spare takes its place.
    pub(crate) fn take_input(&mut self) -> Buffer {
        let spare = self.take(self.buffer_size);
        let input = mem::replace(&mut self.input, spare);
        self.kept += input.capacity();
        input
    }

    /// Takes back a buffer that a worker kept; what it held is forgotten.
    pub(crate) fn recycle(&mut self, buffer: Buffer) {
        self.kept -= buffer.capacity();
        self.warm(buffer);
    }

    /// Whether a worker may keep the hot input buffer.
    pub(crate) fn may_keep_input(&self) -> bool {
        self.leaves(self.input.capacity())
    }

    /// Doubles the input buffer, at most to `max` bytes. It is its worker's own from then on;
    /// `own` is where that worker has the hot one meanwhile, empty if it kept none so far. False,
    /// and nothing is changed, if there may be no more.
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

    /// Makes an input buffer that has grown no larger than what it still holds needs.
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

    /// Makes a buffer that a worker keeps as large as they are now, if it is smaller and may grow.
    pub(crate) fn enlarge(&mut self, kept: &mut Buffer) {
        let Some(more) = self.buffer_size.checked_sub(kept.capacity()) else { return };
        if more > 0 && self.leaves(more) {
            self.kept += more;
            let mut large = self.take(self.buffer_size);
            kept.move_to(&mut large);
            *kept = large;
        }
    }

    /// How many bytes the buffers have that workers keep.
    pub(crate) fn kept(&self) -> usize {
        self.kept
    }

    /// Whether workers may keep so many bytes more.
    fn leaves(&self, more: usize) -> bool {
        self.memory_limit == 0 || self.kept.saturating_add(more) <= self.memory_limit
    }

    /// Gives the input buffer another capacity, and returns the storage it had.
    fn resize_input(&mut self, capacity: usize) -> Buffer {
        let mut other = self.take(capacity);
        self.input.move_to(&mut other);
        mem::replace(&mut self.input, other)
    }

    /// An empty buffer of this size: a warm one, if it is the usual one.
    fn take(&mut self, capacity: usize) -> Buffer {
        let warm = if capacity == self.buffer_size { self.warm.pop() } else { None };
        self.low_water = self.low_water.min(self.warm.len());
        warm.unwrap_or_else(|| self.allocate(capacity))
    }

    /// Keeps a buffer warm, without what it held, if it has the usual size.
    fn warm(&mut self, mut buffer: Buffer) {
        if buffer.capacity() == self.buffer_size {
            buffer.consume(buffer.len());
            self.warm.push(buffer);
        }
    }

    /// Takes back an output that a worker kept and has sent, if it is worth having.
    pub(crate) fn recycle_output(&mut self, output: Output) {
        if self.output.is_empty() && output.capacity() > self.output.capacity() {
            self.output = output;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.warm.len()
    }

    /// How many buffers were ever allocated.
    pub(crate) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Whether there are more than must be kept.
    pub(crate) fn can_reap(&self) -> bool {
        self.warm.len() > self.keep
    }

    /// Frees the spares above what must be kept that were not needed since the last call.
    #[inline(never)]
    pub(crate) fn reap(&mut self) {
        let idle = self.low_water.min(self.warm.len().saturating_sub(self.keep));
        self.warm.truncate(self.warm.len() - idle);
        self.low_water = self.warm.len();
    }

    /// Frees everything.
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
    fn reaping_frees_only_what_was_not_needed() {
        let mut buffers = Buffers::default();
        buffers.configure(1, 8, 0);
        let busy: Vec<Buffer> = (0..4).map(|_| part(&mut buffers)).collect();
        assert_eq!(buffers.allocated(), 5, "one hot, one warm, three more");
        for buffer in busy {
            buffers.recycle(buffer);
        }
        assert_eq!(buffers.len(), 4);
        buffers.reap();
        assert_eq!(buffers.len(), 4, "all were needed since the last reaping");
        let buffer = part(&mut buffers);
        buffers.recycle(buffer);
        buffers.reap();
        assert_eq!(buffers.len(), 1, "three were not needed, and one is to be kept");
        assert!(!buffers.can_reap());
    }

    #[test]
    fn with_none_to_keep_a_steady_need_allocates_nothing() {
        let mut buffers = Buffers::default();
        buffers.configure(0, 8, 0);
        for _ in 0..10 {
            let buffer = part(&mut buffers);
            buffers.recycle(buffer);
            buffers.reap();
        }
        assert_eq!(buffers.allocated(), 2);
        buffers.reap();
        assert_eq!(buffers.len(), 0, "not needed for a whole interval");
    }

    #[test]
    fn buffers_of_another_size_are_not_taken_back() {
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
        assert!(buffers.take_input().is_empty(), "the hot one");
        assert!(buffers.take_input().is_empty(), "the one that was given back");
    }
}
