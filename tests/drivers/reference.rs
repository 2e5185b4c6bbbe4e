//! A naive framing of a whole stream, written from the documentation. It shares no code with the
//! crate. For every fragmentation of the stream, the crate must give the same result.
//!
//! The module that includes this file decides which [`Framing`] is compared with the naive one.

use std::ops::Range;

use arbtest::arbitrary::{Result, Unstructured};

use super::{Frame, Framing, Prefix};

/// The rule that says when a body is complete.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rules {
    /// A full buffer.
    Filled,
    /// All bytes that have arrived, up to a full buffer.
    Drained,
    /// All bytes before a delimiter.
    Lines(u8),
    Prefixed {
        width: usize,
        big_endian: bool,
        limit: usize,
    },
    /// The first byte is the length of the record, including itself, or one of the constants below.
    Records,
}

/// First bytes for which the framing function returns an invalid result.
const INVALID: u8 = 0;
const EMPTY_FRAME: u8 = 254;
const TOO_LONG: u8 = 255;

/// The item at the front of a stream.
enum Next {
    /// A frame of this length, and the range of its body.
    Frame(usize, Range<usize>),
    Partial,
    Overlong,
    Invalid,
}

/// The reason why no frame follows the last one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    Partial,
    Overlong,
    Invalid,
}

/// The result for a stream: the complete bodies, and the position of the rest. `stream[rest..]`
/// does not begin with a frame.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) bodies: Vec<Vec<u8>>,
    pub(crate) rest: usize,
    pub(crate) ending: Ending,
}

impl Rules {
    pub(crate) fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        Ok(match u.int_in_range(0..=5)? {
            0 => Self::Filled,
            1 => Self::Drained,
            2 => Self::Lines(u.arbitrary()?),
            3 => Self::Records,
            _ => Self::Prefixed {
                width: *u.choose(&[1, 2, 4])?,
                big_endian: u.arbitrary()?,
                limit: *u.choose(&[Framing::NO_LIMIT, 0, 1, 7, 100])?,
            },
        })
    }

    pub(crate) fn framing(self) -> Framing {
        match self {
            Self::Filled => Framing::Filled,
            Self::Drained => Framing::Drained,
            Self::Lines(delimiter) => Framing::Delimited(delimiter),
            Self::Prefixed { width, big_endian, limit } => {
                let prefix = match (width, big_endian) {
                    (1, _) => Prefix::U8,
                    (2, true) => Prefix::U16Be,
                    (2, false) => Prefix::U16Le,
                    (_, true) => Prefix::U32Be,
                    (_, false) => Prefix::U32Le,
                };
                Framing::LengthPrefixed { prefix, limit }
            }
            Self::Records => Framing::custom(|held| match held[0] {
                INVALID => Frame::Invalid,
                EMPTY_FRAME => Frame::Complete(0),
                TOO_LONG => Frame::Complete(usize::MAX),
                length if held.len() < usize::from(length) => Frame::Partial,
                length => Frame::Complete(usize::from(length)),
            }),
        }
    }

    /// Returns a stream of up to `max` bytes. It has many short frames, or a few frames that are
    /// about as long as the buffer. Some streams also contain bytes that are no frame.
    pub(crate) fn stream(
        self,
        u: &mut Unstructured<'_>,
        capacity: usize,
        max: usize,
    ) -> Result<Vec<u8>> {
        let longest = *u.choose(&[1, 16, 1 + capacity.min(300)])?;
        let (wild, mut stream) = (u.ratio(1, 3)?, Vec::new());
        while !u.is_empty() && stream.len() < max {
            let length = u.int_in_range(0..=longest)?.min(u.len());
            let bytes = u.bytes(length)?;
            if !(wild && u.ratio(1, 32)?) {
                stream.extend(self.header(length));
            }
            stream.extend(bytes);
            if let Self::Lines(delimiter) = self {
                stream.push(delimiter);
            }
        }
        stream.truncate(max);
        Ok(stream)
    }

    /// Returns the bytes before a body of `length` bytes.
    fn header(self, length: usize) -> Vec<u8> {
        match self {
            Self::Filled | Self::Drained | Self::Lines(_) => Vec::new(),
            Self::Records => vec![(length as u8).wrapping_add(1)],
            Self::Prefixed { width, big_endian, .. } => {
                let mut digits: Vec<u8> = (0..width).map(|at| (length >> (8 * at)) as u8).collect();
                if big_endian {
                    digits.reverse();
                }
                digits
            }
        }
    }

    pub(crate) fn outcome(self, stream: &[u8], capacity: usize) -> Outcome {
        let (mut bodies, mut rest) = (Vec::new(), 0);
        let ending = loop {
            match self.next(&stream[rest..], capacity) {
                Next::Frame(total, body) => {
                    bodies.push(stream[rest..][body].to_vec());
                    rest += total;
                }
                Next::Partial => break Ending::Partial,
                Next::Overlong => break Ending::Overlong,
                Next::Invalid => break Ending::Invalid,
            }
        };
        Outcome { bodies, rest, ending }
    }

    fn next(self, stream: &[u8], capacity: usize) -> Next {
        // The framing never sees more than a full buffer.
        let seen = &stream[..stream.len().min(capacity)];
        let incomplete = if seen.len() == capacity { Next::Overlong } else { Next::Partial };
        match self {
            Self::Filled | Self::Drained if seen.len() == capacity => {
                Next::Frame(capacity, 0..capacity)
            }
            Self::Filled | Self::Drained => Next::Partial,
            Self::Lines(delimiter) => match seen.iter().position(|&byte| byte == delimiter) {
                Some(length) => Next::Frame(length + 1, 0..length),
                None => incomplete,
            },
            Self::Records => match seen.first().copied() {
                None => Next::Partial,
                Some(INVALID | EMPTY_FRAME | TOO_LONG) => Next::Invalid,
                Some(length) if usize::from(length) > seen.len() => incomplete,
                Some(length) => Next::Frame(length.into(), 0..length.into()),
            },
            Self::Prefixed { width, .. } if seen.len() < width => incomplete,
            Self::Prefixed { width, big_endian, limit } => {
                let mut digits = seen[..width].to_vec();
                if !big_endian {
                    digits.reverse();
                }
                let length =
                    digits.iter().fold(0, |length, &digit| length * 256 + u64::from(digit));
                let total = width as u64 + length;
                if total > capacity as u64 || length > limit as u64 {
                    Next::Overlong
                } else if total > seen.len() as u64 {
                    Next::Partial
                } else {
                    Next::Frame(total as usize, width..total as usize)
                }
            }
        }
    }
}

/// The values that decide where a stream is cut. They are repeated in a cycle.
#[derive(Debug)]
pub(crate) struct Cuts {
    sizes: Vec<u8>,
    next: usize,
}

impl Cuts {
    pub(crate) fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        let count = u.int_in_range(1..=16)?;
        let sizes = (0..count).map(|_| u.arbitrary()).collect::<Result<_>>()?;
        Ok(Self { sizes, next: 0 })
    }

    pub(crate) fn next(&mut self) -> u8 {
        self.next += 1;
        self.sizes[self.next % self.sizes.len()]
    }
}
