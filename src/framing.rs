//! Framing: when a request is complete. Bytes in, the bounds of one frame out; pure.
//!
//! It looks at held bytes and at how many a buffer can hold, and knows neither sockets nor
//! deadlines: what to do at end of file or at a deadline is the worker's decision.

use std::fmt;
use std::sync::Arc;

use crate::panics::catch;

/// A function of your own that finds frames, as [`Framing::Custom`] holds it.
pub type FrameFn = Arc<dyn Fn(&[u8]) -> Frame + Send + Sync>;

/// When a request is complete, so that the callback runs.
///
/// Whatever the framing, a body is also delivered at end of file and at a deadline, and never
/// contains its delimiter or length prefix. A frame, with its delimiter or prefix, may be as long
/// as [`Config::max_request`](crate::Config::max_request), else it is
/// [`Cause::Overlong`](crate::Cause::Overlong).
///
/// ```
/// use pool_manager::{Config, Framing, Prefix};
/// let lines = Config::new().framing(Framing::Delimited(b'\n'));
/// let frames = Config::new().framing(Framing::LengthPrefixed { prefix: Prefix::U16Be, limit: 4096 });
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Framing {
    /// At `buffer_size` bytes. A peer that sends less and waits is answered at its deadline:
    /// for uploads, batches, one request per connection.
    #[default]
    Filled,
    /// As `Filled`, and as soon as the socket has no more to read: for request and reply, where
    /// the peer waits. A body is a chunk of a stream, not a message.
    Drained,
    /// At each occurrence of this byte: for lines.
    Delimited(u8),
    /// At each complete frame: a length of the given width and order, then that many bytes.
    LengthPrefixed {
        /// Width and byte order of the length.
        prefix: Prefix,
        /// The longest body accepted, in bytes; a longer one is
        /// [`Cause::Overlong`](crate::Cause::Overlong). 0 means as long as `max_request` allows.
        limit: usize,
    },
    /// Whatever this function makes of the held bytes, all of which it is given each time some
    /// arrive (never none): where requests are large, one that looks at lengths is cheaper than one
    /// that searches. The body is the whole frame. A panic in it is treated as one in a
    /// callback. Build it with [`Framing::custom`].
    Custom(FrameFn),
}

impl Framing {
    /// A framing of your own: `find` is given the held bytes and says whether they begin with a
    /// complete frame.
    ///
    /// ```
    /// use pool_manager::{Frame, Framing};
    /// // Records of three bytes each, the first of which is an exclamation mark.
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

/// Width and byte order of a length prefix; the length counts the body alone.
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

    /// The length at the front of `held`, if all of the prefix is there.
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

/// What a [`Framing::Custom`] function says of the bytes it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Frame {
    /// The first `n` bytes are a complete frame. Zero, or more than was shown, is taken as
    /// [`Frame::Invalid`].
    Complete(usize),
    /// More bytes are needed.
    Partial,
    /// No bytes can make this right: the connection is closed.
    Invalid,
}

/// The bounds of one frame within the held bytes: `skip` bytes of prefix, then `body` bytes,
/// and `total` to consume in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) skip: usize,
    pub(crate) body: usize,
    pub(crate) total: usize,
}

/// What the held bytes begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Frame(Bounds),
    Partial,
    /// A frame that says of itself that it will not fit.
    Overlong,
    Invalid,
    /// The custom function panicked.
    Panicked,
}

impl Framing {
    /// Looks for a frame at the front of `held`, in a buffer that may hold `capacity` bytes.
    /// `scanned` is where the last look at the same bytes got to, and is moved on.
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

    /// Whether a buffer full of bytes that are no frame is a body of its own
    /// ([`Cause::Full`](crate::Cause::Full)) rather than a frame that does not fit.
    #[inline]
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Self::Filled | Self::Drained)
    }

    /// All of the held bytes as one incomplete frame, less what is there of its prefix.
    #[inline]
    pub(crate) fn remainder(&self, held: usize) -> Bounds {
        let skip = match self {
            Self::LengthPrefixed { prefix, .. } => prefix.width().min(held),
            _ => 0,
        };
        Bounds { skip, body: held - skip, total: held }
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

/// Where `byte` first is. Whether it is in a block is one comparison on most machines; where in it,
/// which is asked once, takes some more.
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
        Some(Frame::Complete(n)) if (1..=held.len()).contains(&n) => {
            Found::Frame(Bounds { skip: 0, body: n, total: n })
        }
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
    if total > capacity || (limit > 0 && body > limit) {
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

    /// All strings of up to six symbols of a three-letter alphabet.
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
    fn any_stream_comes_to_what_a_naive_reader_of_the_whole_says() {
        arbtest::arbtest(drive).size_max(8192).budget_ms(1_500);
    }

    #[test]
    fn short_streams_do_so_whatever_the_fragments_and_the_buffer() {
        let prefixed = Rules::Prefixed { width: 1, big_endian: true, limit: 0 };
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
    fn every_prefix_reads_its_width_and_order() {
        let cases: [(Prefix, &[u8]); 5] = [
            (Prefix::U8, &[3]),
            (Prefix::U16Be, &[0, 3]),
            (Prefix::U16Le, &[3, 0]),
            (Prefix::U32Be, &[0, 0, 0, 3]),
            (Prefix::U32Le, &[3, 0, 0, 0]),
        ];
        for (prefix, bytes) in cases {
            let framing = Framing::LengthPrefixed { prefix, limit: 0 };
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
            assert_eq!(
                framing.remainder(2),
                Bounds { skip: skip.min(2), body: 2 - skip.min(2), total: 2 }
            );
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
    fn a_custom_frame_of_nothing_or_of_more_than_was_shown_is_invalid() {
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
    fn debug_names_the_framing_and_its_numbers() {
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
    fn the_first_delimiter_is_found_wherever_it_is_and_whatever_is_around_it() {
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
    fn nothing_held_is_never_a_frame_and_never_shown_to_a_custom_framing() {
        let framing = Framing::custom(|held| {
            assert!(!held.is_empty());
            Frame::Complete(1)
        });
        assert_eq!(find(&framing, b"", 8), Found::Partial);
        assert_eq!(find(&Framing::Delimited(b'\n'), b"", 8), Found::Partial);
    }
}
