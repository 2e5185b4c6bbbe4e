//! The input buffer of one connection: bytes that were read but not yet delivered.
//!
//! The held bytes are a window in a storage of fixed size. Reading adds bytes at the end of the
//! window, and delivery removes bytes from its start. The held bytes are moved to the start of the
//! storage only when there is no space after them. The buffer also stores how many of its bytes
//! were already searched for a delimiter.

use std::fmt;

/// Invariant: `start <= end <= storage.len()`, `scanned <= end - start`, and `start == end` implies
/// `start == 0`.
#[derive(Default)]
pub(crate) struct Buffer {
    storage: Box<[u8]>,
    start: u32,
    end: u32,
    scanned: u32,
}

impl Buffer {
    /// Creates a buffer of `capacity` zeroed bytes. The maximum capacity is `u32::MAX`.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { storage: vec![0; capacity].into_boxed_slice(), start: 0, end: 0, scanned: 0 }
    }

    /// Returns the number of bytes that the buffer can hold, or 0 if it has no storage.
    pub(crate) fn capacity(&self) -> usize {
        self.storage.len()
    }

    pub(crate) fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == self.capacity()
    }

    #[inline]
    pub(crate) fn held(&self) -> &[u8] {
        &self.storage[self.start as usize..self.end as usize]
    }

    /// Returns a slice to read into, of at most `max` bytes. The slice is empty only if the buffer
    /// is full or `max` is 0.
    #[inline]
    pub(crate) fn spare(&mut self, max: usize) -> &mut [u8] {
        // `end` is never greater than the length of the storage, so `==` would be correct too. With
        // `>=` the compiler omits the bounds check in `behind`.
        if self.end as usize >= self.storage.len() {
            return self.slide(max);
        }
        self.behind(max)
    }

    /// Moves the held bytes to the start of the storage and returns the space after them.
    #[cold]
    fn slide(&mut self, max: usize) -> &mut [u8] {
        self.storage.copy_within(self.start as usize..self.end as usize, 0);
        self.end -= self.start;
        self.start = 0;
        self.behind(max)
    }

    #[inline]
    fn behind(&mut self, max: usize) -> &mut [u8] {
        let room = &mut self.storage[self.end as usize..];
        let max = room.len().min(max);
        &mut room[..max]
    }

    /// Appends the first `count` bytes of the slice that [`Buffer::spare`] returned. The caller
    /// must have checked that the slice has at least `count` bytes.
    pub(crate) fn commit(&mut self, count: usize) {
        debug_assert!(
            count <= self.storage.len() - self.end as usize,
            "committed more than the spare space"
        );
        self.end += count as u32;
    }

    /// Drops the first `count` held bytes. Returns whether no bytes are left.
    #[inline]
    pub(crate) fn consume(&mut self, count: usize) -> bool {
        let all = count == self.len();
        if all {
            (self.start, self.end, self.scanned) = (0, 0, 0);
        } else {
            assert!(count < self.len(), "consumed more than the held bytes");
            self.start += count as u32;
            self.scanned = self.scanned.saturating_sub(count as u32);
        }
        all
    }

    /// Moves the held bytes and the scanned count to `other`, which must be empty and large enough.
    /// This buffer is empty afterwards.
    pub(crate) fn move_to(&mut self, other: &mut Self) {
        other.storage[..self.len()].copy_from_slice(self.held());
        (other.start, other.end, other.scanned) = (0, self.len() as u32, self.scanned);
        (self.start, self.end, self.scanned) = (0, 0, 0);
    }

    /// Returns the number of held bytes at the start that are known to contain no delimiter.
    pub(crate) fn scanned(&self) -> usize {
        self.scanned as usize
    }

    pub(crate) fn set_scanned(&mut self, scanned: usize) {
        debug_assert!(scanned <= self.len());
        self.scanned = scanned as u32;
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {})", self.len(), self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs all sequences of seven fills and consumes on buffers of up to four bytes.
    #[test]
    fn all_short_sequences_of_operations_behave_as_a_queue() {
        fn explore(buffer: &Buffer, model: &[u8], next: u8, depth: u8) {
            assert_eq!(buffer.held(), model);
            assert_eq!(buffer.len(), model.len());
            assert_eq!(buffer.is_full(), model.len() == buffer.capacity());
            if depth == 0 {
                return;
            }
            for count in 0..=buffer.capacity() - model.len() {
                let (mut buffer, mut model) = (copy(buffer), model.to_vec());
                let spare = buffer.spare(count);
                assert!(spare.len() <= count, "longer than the maximum");
                if count > 0 {
                    assert!(
                        !spare.is_empty(),
                        "the slice is empty although the buffer is not full"
                    );
                }
                let count = spare.len();
                for (offset, byte) in spare.iter_mut().enumerate() {
                    *byte = next + offset as u8;
                    model.push(*byte);
                }
                buffer.commit(count);
                explore(&buffer, &model, next + count as u8, depth - 1);
            }
            for count in 1..=model.len() {
                let mut buffer = copy(buffer);
                buffer.consume(count);
                explore(&buffer, &model[count..], next, depth - 1);
            }
        }
        fn copy(buffer: &Buffer) -> Buffer {
            Buffer { storage: buffer.storage.clone(), ..*buffer }
        }
        for capacity in 0..=4 {
            explore(&Buffer::with_capacity(capacity), &[], 1, 7);
        }
    }

    #[test]
    fn consuming_bytes_reduces_the_scanned_count() {
        let mut buffer = Buffer::with_capacity(8);
        buffer.spare(8).copy_from_slice(b"abcdefgh");
        buffer.commit(8);
        buffer.set_scanned(5);
        buffer.consume(3);
        assert_eq!(buffer.scanned(), 2);
        buffer.consume(5);
        assert_eq!(buffer.scanned(), 0);
    }

    #[test]
    fn move_to_keeps_the_held_bytes_and_empties_the_buffer() {
        for capacity in [3, 8] {
            let mut buffer = Buffer::with_capacity(4);
            buffer.spare(4).copy_from_slice(b"abcd");
            buffer.commit(4);
            buffer.consume(1);
            buffer.set_scanned(2);
            let mut other = Buffer::with_capacity(capacity);
            buffer.move_to(&mut other);
            assert_eq!((other.held(), other.scanned()), (&b"bcd"[..], 2));
            assert_eq!(other.spare(99).len(), capacity - 3);
            assert_eq!((buffer.len(), buffer.scanned(), buffer.spare(99).len()), (0, 0, 4));
        }
    }

    #[test]
    fn held_bytes_move_to_the_front_only_when_space_runs_out() {
        let mut buffer = Buffer::with_capacity(4);
        buffer.commit(3);
        buffer.consume(2);
        assert_eq!(buffer.spare(9).len(), 1, "nothing moves while there is space");
        buffer.commit(1);
        assert_eq!(buffer.spare(9).len(), 2);
    }

    #[test]
    fn debug_never_shows_contents() {
        let mut buffer = Buffer::with_capacity(8);
        buffer.spare(6)[..6].copy_from_slice(b"secret");
        buffer.commit(6);
        assert_eq!(format!("{buffer:?}"), "Buffer(6 of 8)");
    }
}
