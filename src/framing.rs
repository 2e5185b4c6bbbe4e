//! Framing: finds where a request ends. The input is a slice of bytes. The output is the bounds of
//! one frame. The module does no I/O.
//!
//! The module does not handle the end of file or deadlines. When the end of file or a deadline ends
//! a connection, the worker decides what happens to an incomplete frame.

use std::fmt;
use std::sync::Arc;

use crate::panics::catch;

/// A user-defined function that finds frames, as stored in [`Framing::Custom`].
pub type FrameFn = Arc<dyn Fn(&[u8]) -> Frame + Send + Sync>;

/// Defines when a request is complete. The callback runs once for each complete request.
///
/// `Filled` and `Drained` have no message boundaries: all bytes that are held at the end of file or
/// at a deadline are a last request. Under the other framings, the bytes of an incomplete frame are
/// never a request. [`Handler::incomplete`](crate::Handler::incomplete) gets these bytes when the
/// connection is about to end.
///
/// A body never contains its delimiter or length prefix. A frame, including its delimiter or
/// prefix, may be at most [`Config::max_request`](crate::Config::max_request) bytes long. If a
/// frame is longer, the connection ends with [`Cause::Overlong`](crate::Cause::Overlong).
///
/// ```
/// use pool_manager::{Config, Framing, Prefix};
/// let lines = Config::new().framing(Framing::Delimited(b'\n'));
/// let prefixed = Framing::LengthPrefixed { prefix: Prefix::U16Be, limit: 4096 };
/// let frames = Config::new().framing(prefixed);
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Framing {
    /// Delivers a body when `buffer_size` bytes are held. If a peer sends less and waits, the held
    /// bytes are delivered when the deadline passes. Suited to uploads, batches and one request per
    /// connection.
    #[default]
    Filled,
    /// Delivers a body as `Filled` does, and also as soon as the socket has no more to read. Suited
    /// to protocols in which the peer sends a request and waits for the reply. A body is a chunk of
    /// a stream, not a message.
    Drained,
    /// Delivers the bytes before each occurrence of this byte. Suited to lines.
    Delimited(u8),
    /// Delivers the body of each complete frame. A frame is a length of the given width and byte
    /// order, followed by a body of that many bytes.
    LengthPrefixed {
        /// Width and byte order of the length.
        prefix: Prefix,
        /// Maximum length of a body in bytes. If the announced length is larger, the connection
        /// ends with [`Cause::Overlong`](crate::Cause::Overlong). With
        /// [`NO_LIMIT`](Framing::NO_LIMIT), only `max_request` limits the length.
        limit: usize,
    },
    /// Delivers the frames that this function finds. Build it with [`Framing::custom`].
    ///
    /// The function is called each time new bytes arrive. The argument is all held bytes. It is
    /// never empty. For large requests, a function that reads a length is cheaper than a function
    /// that searches all bytes. The body is the whole frame. If the function panics, the connection
    /// is closed with [`CloseReason::Panicked`](crate::CloseReason::Panicked).
    Custom(FrameFn),
}

impl Framing {
    /// The `limit` of a [`LengthPrefixed`](Framing::LengthPrefixed) framing that has none of its
    /// own.
    pub const NO_LIMIT: usize = usize::MAX;

    /// Creates a user-defined framing. `find` is called with the held bytes and returns whether
    /// they begin with a complete frame.
    ///
    /// ```
    /// use pool_manager::{Frame, Framing};
    /// // Each record has three bytes. The first byte is an exclamation mark.
    /// let records = Framing::custom(|held| match held {
    ///     [b'!', _, _, ..] => Frame::Complete(3),
    ///     [b'!', ..] => Frame::Partial,
    ///     _ => Frame::Invalid,
    /// });
    /// ```
    #[must_use]
    pub fn custom(find: impl Fn(&[u8]) -> Frame + Send + Sync + 'static) -> Self {
        Self::Custom(Arc::new(find))
    }
}

impl fmt::Debug for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filled => f.write_str("Filled"),
            Self::Drained => f.write_str("Drained"),
            Self::Delimited(byte) => write!(f, "Delimited({:?})", char::from(*byte)),
            Self::LengthPrefixed { prefix, limit } => {
                write!(f, "LengthPrefixed({prefix:?}, {limit})")
            }
            Self::Custom(_) => f.write_str("Custom(..)"),
        }
    }
}

/// Width and byte order of a length prefix. The length counts the body without the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Prefix {
    /// One byte.
    U8,
    /// Two bytes, most significant first (network order).
    U16Be,
    /// Two bytes, least significant first.
    U16Le,
    /// Four bytes, most significant first (network order).
    U32Be,
    /// Four bytes, least significant first.
    U32Le,
}

impl Prefix {
    fn width(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16Be | Self::U16Le => 2,
            Self::U32Be | Self::U32Le => 4,
        }
    }

    /// Returns the value of the length prefix at the front of `held`, or `None` if the prefix is
    /// incomplete.
    fn length(self, held: &[u8]) -> Option<usize> {
        Some(match self {
            Self::U8 => usize::from(*held.first()?),
            Self::U16Be => usize::from(u16::from_be_bytes(*held.first_chunk()?)),
            Self::U16Le => usize::from(u16::from_le_bytes(*held.first_chunk()?)),
            Self::U32Be => u32::from_be_bytes(*held.first_chunk()?) as usize,
            Self::U32Le => u32::from_le_bytes(*held.first_chunk()?) as usize,
        })
    }
}

/// The result of a [`Framing::Custom`] function for the held bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Frame {
    /// The first `n` bytes are a complete frame. If `n` is 0, or larger than the number of held
    /// bytes, the result counts as [`Frame::Invalid`].
    Complete(usize),
    /// More bytes are needed.
    Partial,
    /// The bytes are invalid, regardless of the bytes that follow. The connection is closed.
    Invalid,
}

/// The bounds of one frame in the held bytes: `skip` bytes of prefix, then `body` bytes. `total` is
/// the number of bytes to consume, including a delimiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) skip: usize,
    pub(crate) body: usize,
    pub(crate) total: usize,
}

impl Bounds {
    /// Returns the bounds of a body that consists of the first `count` held bytes.
    pub(crate) fn all(count: usize) -> Self {
        Self { skip: 0, body: count, total: count }
    }
}

/// The result of a search for a frame at the front of the held bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Frame(Bounds),
    Partial,
    /// The announced length of the frame is above the limit or the capacity.
    Overlong,
    Invalid,
    /// The custom function panicked.
    Panicked,
}

impl Framing {
    /// Searches for a frame at the front of `held`. `capacity` is the maximum size of the buffer in
    /// bytes. `scanned` is the number of bytes that earlier searches have covered. The call updates
    /// `scanned`.
    #[inline(always)]
    pub(crate) fn find(&self, held: &[u8], scanned: &mut usize, capacity: usize) -> Found {
        if held.is_empty() {
            return Found::Partial;
        }
        match self {
            Self::Filled | Self::Drained => Found::Partial,
            Self::Delimited(byte) => find_delimiter(held, scanned, *byte),
            Self::LengthPrefixed { prefix, limit } => find_length(held, *prefix, *limit, capacity),
            Self::Custom(find) => find_custom(held, find),
        }
    }

    /// Returns whether the framing has no message boundaries. Then all held bytes can be delivered
    /// as a body, for example when the buffer is full. Under the other framings, a full buffer
    /// without a complete frame means that the frame is too long.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Self::Filled | Self::Drained)
    }
}

#[inline(always)]
fn find_delimiter(held: &[u8], scanned: &mut usize, delimiter: u8) -> Found {
    let Some(unseen) = position(&held[*scanned..], delimiter) else {
        *scanned = held.len();
        return Found::Partial;
    };
    let body = *scanned + unseen;
    Found::Frame(Bounds { skip: 0, body, total: body + 1 })
}

/// Returns the position of the first occurrence of `byte` in `bytes`. Tests 16 bytes at a time. On
/// most machines, this takes one comparison. The position is computed only in the first block that
/// contains `byte`.
#[inline(never)]
fn position(bytes: &[u8], byte: u8) -> Option<usize> {
    let mut rest = bytes;
    while let Some((block, after)) = rest.split_first_chunk::<16>() {
        if block.iter().fold(0, |found, &other| found | u8::from(other == byte)) > 0 {
            let mask = u128::from_le_bytes(block.map(|other| if other == byte { 0xff } else { 0 }));
            return Some(bytes.len() - rest.len() + mask.trailing_zeros() as usize / 8);
        }
        rest = after;
    }
    let last = rest.iter().position(|&other| other == byte)?;
    Some(bytes.len() - rest.len() + last)
}

#[inline(never)]
fn find_custom(held: &[u8], find: &FrameFn) -> Found {
    match catch(|| find(held)) {
        Some(Frame::Complete(n)) if (1..=held.len()).contains(&n) => Found::Frame(Bounds::all(n)),
        Some(Frame::Partial) => Found::Partial,
        Some(Frame::Complete(_) | Frame::Invalid) => Found::Invalid,
        None => Found::Panicked,
    }
}

#[inline(never)]
fn find_length(held: &[u8], prefix: Prefix, limit: usize, capacity: usize) -> Found {
    let skip = prefix.width();
    let Some(body) = prefix.length(held) else { return Found::Partial };
    let total = skip.saturating_add(body);
    if total > capacity || body > limit {
        Found::Overlong
    } else if held.len() < total {
        Found::Partial
    } else {
        Found::Frame(Bounds { skip, body, total })
    }
}

#[cfg(test)]
#[path = "../tests/drivers/framing.rs"]
mod driver;

#[cfg(test)]
mod tests {
    use super::driver::{Rules, check, drive};
    use super::*;

    fn find(framing: &Framing, held: &[u8], capacity: usize) -> Found {
        framing.find(held, &mut 0, capacity)
    }

    /// Returns all strings of up to six symbols from an alphabet of three.
    fn strings() -> impl Iterator<Item = Vec<u8>> {
        (0..=6).flat_map(|length| {
            (0..3_usize.pow(length)).map(move |mut code| {
                (0..length)
                    .map(|_| {
                        let symbol = b"\n\x01a"[code % 3];
                        code /= 3;
                        symbol
                    })
                    .collect()
            })
        })
    }

    #[test]
    fn random_streams_are_framed_as_by_the_reference() {
        arbtest::arbtest(drive).size_max(8192).budget_ms(1_500);
    }

    #[test]
    fn all_short_streams_are_framed_as_by_the_reference() {
        let prefixed = Rules::Prefixed { width: 1, big_endian: true, limit: Framing::NO_LIMIT };
        for bytes in strings() {
            for rules in [Rules::Lines(b'\n'), prefixed, Rules::Records, Rules::Filled] {
                for capacity in [1, 3, 300] {
                    for step in 1..=bytes.len().max(1) {
                        check(rules, capacity, &bytes, || step);
                    }
                }
            }
        }
    }

    #[test]
    fn each_prefix_reads_its_width_and_byte_order() {
        let cases: [(Prefix, &[u8]); 5] = [
            (Prefix::U8, &[3]),
            (Prefix::U16Be, &[0, 3]),
            (Prefix::U16Le, &[3, 0]),
            (Prefix::U32Be, &[0, 0, 0, 3]),
            (Prefix::U32Le, &[3, 0, 0, 0]),
        ];
        for (prefix, bytes) in cases {
            let framing = Framing::LengthPrefixed { prefix, limit: Framing::NO_LIMIT };
            let skip = bytes.len();
            for short in 0..bytes.len() {
                assert_eq!(find(&framing, &bytes[..short], 64), Found::Partial);
            }
            let mut frame = bytes.to_vec();
            frame.extend(b"ab");
            assert_eq!(find(&framing, &frame, 64), Found::Partial);
            frame.extend(b"cd");
            let bounds = Bounds { skip, body: 3, total: skip + 3 };
            assert_eq!(find(&framing, &frame, 64), Found::Frame(bounds));
            assert_eq!(find(&framing, &frame, skip + 3), Found::Frame(bounds));
            assert_eq!(find(&framing, &frame, skip + 2), Found::Overlong);
        }
    }

    #[test]
    fn a_length_over_its_limit_is_overlong_before_its_body_arrives() {
        let framing = Framing::LengthPrefixed { prefix: Prefix::U32Be, limit: 10 };
        assert_eq!(find(&framing, &[0, 0, 0, 11], 5120), Found::Overlong);
        assert_eq!(find(&framing, &[0, 0, 0, 10], 5120), Found::Partial);
        assert_eq!(find(&framing, &[0xff; 4], 5120), Found::Overlong);
    }

    #[test]
    fn a_custom_frame_of_zero_or_too_many_bytes_is_invalid() {
        for (answer, expected) in [
            (Frame::Complete(0), Found::Invalid),
            (Frame::Complete(4), Found::Invalid),
            (Frame::Complete(usize::MAX), Found::Invalid),
            (Frame::Complete(3), Found::Frame(Bounds { skip: 0, body: 3, total: 3 })),
            (Frame::Partial, Found::Partial),
            (Frame::Invalid, Found::Invalid),
        ] {
            assert_eq!(find(&Framing::custom(move |_| answer), b"abc", 8), expected);
        }
    }

    #[test]
    fn debug_shows_the_framing_and_its_parameters() {
        for (framing, expected) in [
            (Framing::Filled, "Filled"),
            (Framing::Drained, "Drained"),
            (Framing::Delimited(b'\n'), "Delimited('\\n')"),
            (
                Framing::LengthPrefixed { prefix: Prefix::U16Be, limit: 9 },
                "LengthPrefixed(U16Be, 9)",
            ),
            (Framing::custom(|_| Frame::Partial), "Custom(..)"),
        ] {
            assert_eq!(format!("{framing:?}"), expected);
        }
    }

    #[test]
    fn the_first_delimiter_is_found_at_any_position() {
        for delimiter in [0, 1, b'\n', 0x7f, 0x80, 0xff] {
            for neighbour in [0, 1, 0x0b, 0x80, 0x81, 0xfe, 0xff, delimiter ^ 1, delimiter ^ 0x80] {
                for (length, at) in
                    (0..40).flat_map(|length| (0..=length).map(move |at| (length, at)))
                {
                    let mut bytes = vec![neighbour; length];
                    let expected = bytes.iter().position(|&byte| byte == delimiter);
                    assert_eq!(position(&bytes, delimiter), expected, "{delimiter} in {bytes:?}");
                    bytes[at.min(length)..].fill(delimiter);
                    let expected = bytes.iter().position(|&byte| byte == delimiter);
                    assert_eq!(position(&bytes, delimiter), expected, "{delimiter} in {bytes:?}");
                }
            }
        }
    }

    #[test]
    fn an_empty_buffer_is_never_a_frame() {
        let framing = Framing::custom(|held| {
            assert!(!held.is_empty());
            Frame::Complete(1)
        });
        assert_eq!(find(&framing, b"", 8), Found::Partial);
        assert_eq!(find(&Framing::Delimited(b'\n'), b"", 8), Found::Partial);
    }
}
