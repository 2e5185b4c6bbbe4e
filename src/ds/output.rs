//! The output buffer of one connection: reply bytes that the socket has not taken yet.
//!
//! Bytes are appended at the end and sent from the start. Before each callback, the worker stores
//! the position of the end. This position is called a mark. If the callback panics, the bytes after
//! the mark are dropped.

use std::fmt;

/// Invariant: `sent <= bytes.len()`, and `sent == bytes.len()` implies that both values are 0.
#[derive(Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    /// Returns the number of unsent bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    #[inline]
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Appends `bytes` and returns true. Returns false, and appends nothing, if more than `limit`
    /// bytes would be unsent.
    pub(crate) fn push(&mut self, bytes: &[u8], limit: usize) -> bool {
        let fits = bytes.len() <= limit.saturating_sub(self.len());
        self.drop_sent();
        if fits {
            self.bytes.extend_from_slice(bytes);
        }
        fits
    }

    /// Drops the sent prefix if it is longer than the unsent rest. After this call, no push drops a
    /// sent prefix until more bytes are sent.
    pub(crate) fn drop_sent(&mut self) {
        if self.sent > self.len() {
            self.forget_sent();
        }
    }

    /// Drops the sent prefix. Without this, a peer that is always a little too slow would make the
    /// buffer grow without bound. Moving the unsent bytes is cheap, because they are fewer than the
    /// bytes that were sent since the last call.
    #[cold]
    fn forget_sent(&mut self) {
        self.bytes.drain(..self.sent);
        self.sent = 0;
    }

    /// Marks the first `count` unsent bytes as sent. Returns whether no unsent bytes are left.
    #[inline]
    pub(crate) fn advance(&mut self, count: usize) -> bool {
        let all = count == self.len();
        if all {
            self.bytes.clear();
            self.sent = 0;
        } else {
            assert!(count < self.len(), "sent more than the unsent bytes");
            self.sent += count;
        }
        all
    }

    /// Returns the position of the end, for [`Output::rewind`]. A push that drops the sent prefix
    /// makes the position invalid. To prevent this, call [`Output::drop_sent`] first.
    pub(crate) fn mark(&self) -> usize {
        self.bytes.len()
    }

    /// Moves the first `count` unsent bytes to the end.
    #[cold]
    pub(crate) fn move_behind(&mut self, count: usize) {
        self.bytes[self.sent..].rotate_left(count);
    }

    /// Drops the bytes that were appended since `mark`.
    pub(crate) fn rewind(&mut self, mark: usize) {
        self.bytes.truncate(mark);
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output({} unsent)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_beyond_the_limit_queues_nothing() {
        let mut output = Output::default();
        assert!(output.push(b"abc", 5));
        assert!(!output.push(b"def", 5));
        assert_eq!(output.unsent(), b"abc");
        assert_eq!(format!("{output:?}"), "Output(3 unsent)", "the contents are not shown");
        output.advance(2);
        assert!(output.push(b"def", 5), "only unsent bytes count");
        assert_eq!(output.unsent(), b"cdef");
        assert!(!output.push(b"xy", 1), "the limit is lower than the unsent bytes");
    }

    #[test]
    fn a_peer_that_is_always_behind_does_not_grow_the_output() {
        let mut output = Output::default();
        for _ in 0..10_000 {
            assert!(output.push(&[7; 100], 150));
            output.advance(output.len() - 50);
        }
        assert!(
            (150..1_000).contains(&output.capacity()),
            "{} bytes for 50 unsent",
            output.capacity()
        );
    }

    #[test]
    fn move_behind_moves_the_first_bytes_to_the_end() {
        let mut output = Output::default();
        assert!(output.push(b"-late", 99));
        output.advance(1);
        assert!(output.push(b"first", 99));
        output.move_behind(4);
        assert_eq!(output.unsent(), b"firstlate");
    }

    #[test]
    fn rewind_drops_the_bytes_after_the_mark() {
        let mut output = Output::default();
        assert!(output.push(b"kept", 99));
        let mark = output.mark();
        assert!(output.push(b" lost", 99));
        output.rewind(mark);
        assert_eq!(output.unsent(), b"kept");
        output.advance(4);
        assert!(output.is_empty());
        assert_eq!(output.mark(), 0, "the sent bytes are dropped");
    }

    #[test]
    fn a_mark_taken_after_drop_sent_stays_valid() {
        let mut output = Output::default();
        assert!(output.push(b"sent kept", 99));
        output.advance(5);
        output.drop_sent();
        let mark = output.mark();
        assert!(output.push(b" lost", 99));
        output.rewind(mark);
        assert_eq!(output.unsent(), b"kept");
    }
}
