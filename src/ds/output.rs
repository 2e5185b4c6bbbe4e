//! Output: the bytes of reply that the kernel has not taken yet.
//!
//! Replies are appended at the back and sent from the front; a mark taken before a callback lets
//! what a panicking one wrote be taken back. It knows no socket.

use std::fmt;

/// Invariant: `sent <= bytes.len()`, and `sent == bytes.len()` implies both are 0.
#[derive(Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    /// Bytes still to be sent.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    #[inline]
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Appends all of `bytes`, or none of them if more than `limit` would then be unsent.
    #[inline]
    pub(crate) fn push(&mut self, bytes: &[u8], limit: usize) -> bool {
        let fits = bytes.len() <= limit.saturating_sub(self.len());
        self.drop_sent();
        if fits {
            self.bytes.extend_from_slice(bytes);
        }
        fits
    }

    /// Forgets what is sent, if it is time; no push does then, until more is sent.
    #[inline(always)]
    pub(crate) fn drop_sent(&mut self) {
        if self.sent > self.len() {
            self.forget_sent();
        }
    }

    /// What is sent goes once it is most of it, or a peer that always stays a little behind would
    /// let it grow without end. Each byte is moved at most once a byte sent.
    #[cold]
    fn forget_sent(&mut self) {
        self.bytes.drain(..self.sent);
        self.sent = 0;
    }

    /// Lets go of the first `count` unsent bytes, and says whether these were all.
    #[inline]
    pub(crate) fn advance(&mut self, count: usize) -> bool {
        let all = count == self.len();
        if all {
            self.bytes.clear();
            self.sent = 0;
        } else {
            assert!(count < self.len(), "sent more than there was");
            self.sent += count;
        }
        all
    }

    /// Where the next byte will go, for [`Output::rewind`], unless what is sent is forgotten before
    /// that: [`Output::settle`] sees to it that it is not.
    #[inline]
    pub(crate) fn mark(&self) -> usize {
        self.bytes.len()
    }

    /// Has the first `count` unsent bytes wait behind the others.
    #[cold]
    pub(crate) fn move_behind(&mut self, count: usize) {
        self.bytes[self.sent..].rotate_left(count);
    }

    /// Takes back what was appended since `mark`.
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
        assert_eq!(format!("{output:?}"), "Output(3 unsent)", "and no contents");
        output.advance(2);
        assert!(output.push(b"def", 5), "only unsent bytes count");
        assert_eq!(output.unsent(), b"cdef");
        assert!(!output.push(b"xy", 1), "a lowered limit");
    }

    #[test]
    fn a_peer_that_is_always_behind_does_not_make_it_grow() {
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
    fn what_has_to_wait_goes_behind_the_others() {
        let mut output = Output::default();
        assert!(output.push(b"-late", 99));
        output.advance(1);
        assert!(output.push(b"first", 99));
        output.move_behind(4);
        assert_eq!(output.unsent(), b"firstlate");
    }

    #[test]
    fn rewinding_takes_back_what_came_after_the_mark() {
        let mut output = Output::default();
        assert!(output.push(b"kept", 99));
        let mark = output.mark();
        assert!(output.push(b" lost", 99));
        output.rewind(mark);
        assert_eq!(output.unsent(), b"kept");
        output.advance(4);
        assert!(output.is_empty());
        assert_eq!(output.mark(), 0, "sent bytes are let go of");
    }

    #[test]
    fn of_what_is_mostly_sent_a_mark_holds_once_it_is_settled() {
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
