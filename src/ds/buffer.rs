//! Buffer: the bytes of one connection that no callback has seen yet.
//!
//! A storage with a window of held bytes in it. Bytes are committed at the back and
//! consumed at the front; the window slides to the front only when there is no room behind it.
//! It knows neither sockets nor framing, beyond remembering how far a delimiter was sought.

use std::fmt;

/// Invariant: `start <= end <= storage.len()`, `scanned <= end - start`, and
/// `start == end` implies `start == 0`.
#[derive(Default)]
pub(crate) struct Buffer {
    storage: Box<[u8]>,
    start: u32,
    end: u32,
    scanned: u32,
}

impl Buffer {
    /// A buffer that can hold `capacity` bytes, zeroed; at most `u32::MAX`.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { storage: vec![0; capacity].into_boxed_slice(), start: 0, end: 0, scanned: 0 }
    }

    /// How many bytes it can hold; zero for one without storage.
    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.storage.len()
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.len() == self.capacity()
    }

    #[inline]
    pub(crate) fn held(&self) -> &[u8] {
        &self.storage[self.start as usize..self.end as usize]
    }

    /// Room to read into, at most `max` bytes; empty only if the buffer is full.
    #[inline]
    pub(crate) fn spare(&mut self, max: usize) -> &mut [u8] {
        // It is never beyond: asked like this, what comes behind needs no check of its own.
        if self.end as usize >= self.storage.len() {
            return self.slide(max);
        }
        self.behind(max)
    }

    /// Moves what is held to the front, and gives the room behind it.
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

    /// Holds the first `count` bytes of what [`Buffer::spare`] gave; who read them has seen that they
    /// are no more.
    #[inline]
    pub(crate) fn commit(&mut self, count: usize) {
        debug_assert!(count <= self.storage.len() - self.end as usize, "more than was spare");
        self.end += count as u32;
    }

    /// Lets go of the first `count` held bytes, and says whether these were all.
    #[inline]
    pub(crate) fn consume(&mut self, count: usize) -> bool {
        let all = count == self.len();
        if all {
            (self.start, self.end, self.scanned) = (0, 0, 0);
        } else {
            assert!(count < self.len(), "consumed more than was held");
            self.start += count as u32;
            self.scanned = self.scanned.saturating_sub(count as u32);
        }
        all
    }

    /// Moves what is held, with how far it was scanned, to the front of `other`, which is empty
    /// and has room for it; this one is empty then.
    pub(crate) fn move_to(&mut self, other: &mut Self) {
        other.storage[..self.len()].copy_from_slice(self.held());
        (other.start, other.end, other.scanned) = (0, self.len() as u32, self.scanned);
        (self.start, self.end, self.scanned) = (0, 0, 0);
    }

    /// How many of the held bytes are known to contain no delimiter.
    #[inline]
    pub(crate) fn scanned(&self) -> usize {
        self.scanned as usize
    }

    #[inline]
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

    /// Every way to fill and consume a buffer of up to four bytes, seven steps long.
    #[test]
    fn every_small_history_is_a_queue_of_bytes() {
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
                assert!(spare.len() <= count, "more than was asked for");
                if count > 0 {
                    assert!(!spare.is_empty(), "room left, but an empty slice to read into");
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
    fn scanned_bytes_shrink_as_bytes_are_consumed() {
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
    fn moving_keeps_what_is_held_and_leaves_nothing() {
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
    fn what_is_held_slides_to_the_front_only_when_there_is_no_room_behind_it() {
        let mut buffer = Buffer::with_capacity(4);
        buffer.commit(3);
        buffer.consume(2);
        assert_eq!(buffer.spare(9).len(), 1, "as long as there is room, nothing is moved");
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
