//! Content of the requests. This module uses no sockets.
//!
//! A request consists of a stamp, characters of a pseudo-random table, and a newline. The stamp is
//! unique in the run. The offset in the table depends on the stamp. A request contains no other
//! newline. A reply to another request, a repeated reply, a shifted reply and a reply with a wrong
//! byte therefore differ from the expected bytes. If requests are shorter than the stamp, such
//! replies differ only with high probability.

/// Bytes per stamp: 64 bits, six bits per character.
const STAMP: usize = 11;

/// Bytes of the table. The number is a prime, so that blocks of a round size, such as 4096 bytes,
/// differ from each other within a long request.
const TABLE: usize = 65_521;

const CHARACTERS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+-";

/// The bytes of all requests of a run.
#[derive(Debug)]
pub(super) struct Content {
    /// Bytes per request, including its newline. Invariant: at least 1.
    pub(super) size: usize,
    table: Vec<u8>,
}

/// The source of the bytes of one request.
struct Request {
    stamp: [u8; STAMP],
    /// Offset in the table.
    start: usize,
}

impl Content {
    pub(super) fn new(size: usize) -> Self {
        let table = (0..TABLE as u64).map(|i| CHARACTERS[(mix(!i) >> 58) as usize]).collect();
        Self { size: size.max(1), table }
    }

    /// Fills `into` with bytes that `connection` sends. They begin at byte `offset` of its request
    /// `number` and continue with the next requests.
    pub(super) fn fill(&self, connection: usize, number: u64, offset: usize, into: &mut [u8]) {
        let mut filled = 0;
        self.pieces(connection, number, offset, into.len(), |piece| {
            into[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
            true
        });
    }

    /// Returns the first index at which `bytes` differ from the output of [`Content::fill`].
    pub(super) fn first_difference(
        &self,
        connection: usize,
        number: u64,
        offset: usize,
        bytes: &[u8],
    ) -> Option<usize> {
        let mut same = 0;
        self.pieces(connection, number, offset, bytes.len(), |piece| {
            let equal = bytes[same..same + piece.len()] == *piece;
            if equal {
                same += piece.len();
            } else {
                let pairs = bytes[same..].iter().zip(piece);
                same += pairs.take_while(|(actual, expected)| actual == expected).count();
            }
            equal
        });
        (same < bytes.len()).then_some(same)
    }

    /// Passes the next `length` bytes to `each` in pieces, until `each` returns false.
    fn pieces(
        &self,
        connection: usize,
        mut number: u64,
        mut offset: usize,
        mut length: usize,
        mut each: impl FnMut(&[u8]) -> bool,
    ) {
        let mut request = Request::new(connection, number);
        while length > 0 {
            if offset == self.size {
                (number, offset) = (number + 1, 0);
                request = Request::new(connection, number);
            }
            let piece = self.piece(&request, offset);
            let piece = &piece[..piece.len().min(length)];
            if !each(piece) {
                return;
            }
            offset += piece.len();
            length -= piece.len();
        }
    }

    /// Returns the longest contiguous piece of a request from `offset` on.
    fn piece<'a>(&'a self, request: &'a Request, offset: usize) -> &'a [u8] {
        let end = self.size - 1;
        if offset == end {
            b"\n"
        } else if offset < STAMP {
            &request.stamp[offset..STAMP.min(end)]
        } else {
            let from = (request.start + offset) % TABLE;
            &self.table[from..TABLE.min(from + end - offset)]
        }
    }
}

impl Request {
    fn new(connection: usize, number: u64) -> Self {
        // The connection has 24 bits and the number 40 bits, so no two requests of a run have the
        // same key.
        let key = mix((connection as u64) << 40 ^ number);
        let mut stamp = [0; STAMP];
        for (i, character) in stamp.iter_mut().enumerate() {
            *character = CHARACTERS[(key >> (6 * i) & 63) as usize];
        }
        Self { stamp, start: (key >> 32) as usize % TABLE }
    }
}

/// Computes `SplitMix64`. This is a bijection, so different keys have different results.
pub(super) fn mix(key: u64) -> u64 {
    let key = key.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let key = (key ^ key >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let key = (key ^ key >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    key ^ key >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn request(content: &Content, connection: usize, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; content.size];
        content.fill(connection, number, 0, &mut bytes);
        bytes
    }

    #[test]
    fn a_request_is_one_line_of_text() {
        for size in [1, 2, 11, 12, 13, 64, 70_000, 200_000] {
            let bytes = request(&Content::new(size), 3, 9);
            assert_eq!(bytes.len(), size);
            assert_eq!(bytes.iter().position(|byte| *byte == b'\n'), Some(size - 1));
            assert!(bytes[..size - 1].iter().all(u8::is_ascii_graphic));
        }
    }

    #[test]
    fn no_two_requests_are_equal() {
        let content = Content::new(12);
        let mut seen = HashSet::new();
        for connection in [0, 1, 2, 9_999] {
            for number in 0..5_000 {
                assert!(seen.insert(request(&content, connection, number)));
            }
        }
    }

    #[test]
    fn the_stream_is_the_same_from_any_offset() {
        let content = Content::new(20);
        let mut whole = Vec::new();
        for number in 0..5 {
            whole.extend(request(&content, 7, number));
        }
        for from in 0..whole.len() {
            let mut part = vec![0; whole.len() - from];
            content.fill(7, from as u64 / 20, from % 20, &mut part);
            assert_eq!(part, whole[from..]);
            assert_eq!(content.first_difference(7, from as u64 / 20, from % 20, &part), None);
        }
    }

    #[test]
    fn each_wrong_byte_is_found_at_its_offset() {
        for size in [1, 2, 15, 40] {
            let content = Content::new(size);
            let mut bytes = vec![0; 3 * size];
            content.fill(1, 5, 0, &mut bytes);
            for at in 0..bytes.len() {
                bytes[at] ^= 1;
                assert_eq!(content.first_difference(1, 5, 0, &bytes), Some(at));
                bytes[at] ^= 1;
            }
        }
    }

    #[test]
    fn a_shift_of_a_long_request_is_found() {
        let content = Content::new(200_000);
        let bytes = request(&content, 0, 0);
        for shift in [1, 2, 512, 1 << 10, 1 << 12, 1 << 14, 1 << 16] {
            assert!(content.first_difference(0, 0, 0, &bytes[shift..]).is_some(), "{shift}");
        }
    }
}
