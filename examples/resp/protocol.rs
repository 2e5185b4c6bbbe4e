//! The protocol: where a request ends, what its arguments are, and how replies are written.
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>; the words of errors are those
//! of Redis 7.0.

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;

use pool_manager::Frame;

/// The longest value accepted, and argument of any kind.
pub(crate) const BULK_MAX: usize = 512 << 10;

/// The most arguments: a request that comes byte by byte is looked at as often, so this bounds
/// what a look costs.
const ARGUMENTS_MAX: usize = 16_384;

/// The longest line that is a request by itself, and the longest that holds a number.
const INLINE_MAX: usize = 64 << 10;
const NUMBER_MAX: usize = 32;

/// Why bytes are no request, after which there is no telling where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    ArgumentCount,
    ArgumentCountTooLong,
    BulkLength,
    BulkLengthTooLong,
    NoBulk(u8),
    Quotes,
    InlineTooLong,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Protocol error: ")?;
        f.write_str(match self {
            Self::ArgumentCount => "invalid multibulk length",
            Self::ArgumentCountTooLong => "too big mbulk count string",
            Self::BulkLength => "invalid bulk length",
            Self::BulkLengthTooLong => "too big bulk count string",
            Self::NoBulk(got @ b' '..=b'~') => {
                return write!(f, "expected '$', got '{}'", char::from(*got));
            }
            // Redis repeats what it got even if it breaks its own reply.
            Self::NoBulk(_) => "expected '$', got '?'",
            Self::Quotes => "unbalanced quotes in request",
            Self::InlineTooLong => "too big inline request",
        })
    }
}

/// The framing: one request is one frame. What is broken is a frame as well, all that is held, so
/// that the handler can say so before it closes.
pub(crate) fn frame(held: &[u8]) -> Frame {
    match walk(held, |_| ()) {
        Ok(Some(end)) => Frame::Complete(end),
        Ok(None) => Frame::Partial,
        Err(_) => Frame::Complete(held.len()),
    }
}

/// Finds the arguments of the request at the front of `held`, without looking into them, and where
/// it ends, if all of it is there. A line of words has its end and no arguments.
pub(crate) fn walk(
    held: &[u8],
    mut argument: impl FnMut(Range<usize>),
) -> Result<Option<usize>, Broken> {
    if held[0] != b'*' {
        return match held.iter().take(INLINE_MAX).position(|&byte| byte == b'\n') {
            Some(at) => Ok(Some(at + 1)),
            None if held.len() >= INLINE_MAX => Err(Broken::InlineTooLong),
            None => Ok(None),
        };
    }
    let Some((count, mut at)) =
        number(held, 1, Broken::ArgumentCount, Broken::ArgumentCountTooLong)?
    else {
        return Ok(None);
    };
    let count = usize::try_from(count).unwrap_or(0);
    if count > ARGUMENTS_MAX {
        return Err(Broken::ArgumentCount);
    }
    for _ in 0..count {
        match held.get(at) {
            Some(b'$') => {}
            Some(&other) => return Err(Broken::NoBulk(other)),
            None => return Ok(None),
        }
        let header = number(held, at + 1, Broken::BulkLength, Broken::BulkLengthTooLong)?;
        let Some((length, start)) = header else { return Ok(None) };
        let length = usize::try_from(length).map_err(|_| Broken::BulkLength)?;
        if length > BULK_MAX {
            return Err(Broken::BulkLength);
        }
        // As in Redis, what stands in place of the line end does not matter.
        at = start + length + 2;
        if at > held.len() {
            return Ok(None);
        }
        argument(start..start + length);
    }
    Ok(Some(at))
}

/// The number at `at`, and where what follows its line begins.
fn number(
    held: &[u8],
    at: usize,
    broken: Broken,
    too_long: Broken,
) -> Result<Option<(i64, usize)>, Broken> {
    let (mut value, mut end) = (0_i64, at);
    let negative = held.get(at) == Some(&b'-');
    end += usize::from(negative);
    let digits = end;
    while let Some(digit) = held.get(end).map(|byte| byte.wrapping_sub(b'0')).filter(|&d| d < 10) {
        // More than 18 digits may not fit, and are more than enough.
        value = if end < digits + 18 { value * 10 + i64::from(digit) } else { i64::MAX };
        end += 1;
        if end > at + NUMBER_MAX {
            return Err(too_long);
        }
    }
    match held.get(end..) {
        // One number is written in one way.
        Some([b'\r', _, ..]) if end > digits && (held[digits] != b'0' || end == at + 1) => {
            Ok(Some((if negative { -value } else { value }, end + 2)))
        }
        Some([] | [b'\r']) => Ok(None),
        _ => Err(broken),
    }
}

/// The same request, written with lengths, as the line of words that people type.
pub(crate) fn from_line(line: &[u8]) -> Result<Vec<u8>, Broken> {
    let words = words(line)?;
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(format!("${}\r\n", word.len()).bytes());
        request.extend(word);
        request.extend(b"\r\n");
    }
    Ok(request)
}

/// The words of a line: `"` and `'` quote, at the latest to a word's end, and within `"` a backslash
/// escapes.
fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, Broken> {
    let (mut words, mut rest) = (Vec::new(), line.trim_ascii());
    while !rest.is_empty() {
        let mut word = Vec::new();
        while let Some((&byte, after)) = within_word(rest) {
            rest = after;
            if byte == b'"' || byte == b'\'' {
                rest = quoted(rest, byte, &mut word)?;
                if within_word(rest).is_some() {
                    return Err(Broken::Quotes);
                }
            } else {
                word.push(byte);
            }
        }
        words.push(word);
        rest = rest.trim_ascii_start();
    }
    Ok(words)
}

/// The next byte and what is behind it, unless the word ends here.
fn within_word(rest: &[u8]) -> Option<(&u8, &[u8])> {
    rest.split_first().filter(|(byte, _)| !byte.is_ascii_whitespace())
}

/// Reads up to the closing quote, and returns what is behind it.
fn quoted<'a>(mut rest: &'a [u8], quote: u8, word: &mut Vec<u8>) -> Result<&'a [u8], Broken> {
    loop {
        let (byte, taken) = match rest {
            [] => return Err(Broken::Quotes),
            [end, after @ ..] if *end == quote => return Ok(after),
            [b'\\', b'\'', ..] if quote == b'\'' => (b'\'', 2),
            [b'\\', b'x', high, low, ..] if quote == b'"' && hex(*high, *low).is_some() => {
                (hex(*high, *low).unwrap_or_default(), 4)
            }
            [b'\\', escaped, ..] if quote == b'"' => (unescape(*escaped), 2),
            [byte, ..] => (*byte, 1),
        };
        word.push(byte);
        rest = &rest[taken..];
    }
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(high)? * 16 + digit(low)?) as u8)
}

fn unescape(escaped: u8) -> u8 {
    match escaped {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

/// Replies, written into whatever takes bytes.
pub(crate) trait Reply: Write {
    fn simple(&mut self, text: &str) -> io::Result<()> {
        self.line(b'+', text.as_bytes())
    }

    /// An error: a word in capitals, and what is wrong.
    fn error(&mut self, text: &str) -> io::Result<()> {
        let one_line = text.replace(['\r', '\n'], " ");
        self.line(b'-', one_line.as_bytes())
    }

    fn integer(&mut self, value: impl TryInto<i64>) -> io::Result<()> {
        let (digits, from) = digits(value);
        self.line(b':', &digits[from..])
    }

    fn bulk(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (digits, from) = digits(bytes.len());
        self.line(b'$', &digits[from..])?;
        self.write_all(bytes)?;
        self.write_all(b"\r\n")
    }

    fn null(&mut self) -> io::Result<()> {
        self.write_all(b"$-1\r\n")
    }

    /// So many replies follow, which are the elements.
    fn array(&mut self, count: usize) -> io::Result<()> {
        let (digits, from) = digits(count);
        self.line(b'*', &digits[from..])
    }

    /// One short line in one write.
    fn line(&mut self, kind: u8, text: &[u8]) -> io::Result<()> {
        let mut line = [0; 32];
        let end = 1 + text.len();
        if end + 2 > line.len() {
            self.write_all(&[kind])?;
            self.write_all(text)?;
            return self.write_all(b"\r\n");
        }
        line[0] = kind;
        line[1..end].copy_from_slice(text);
        line[end..end + 2].copy_from_slice(b"\r\n");
        self.write_all(&line[..end + 2])
    }
}

impl<W: Write> Reply for W {}

/// A number in decimal, at the end of the array, and where it begins.
pub(crate) fn digits(value: impl TryInto<i64>) -> ([u8; 20], usize) {
    let value = value.try_into().unwrap_or(i64::MAX);
    let (mut digits, mut at, mut left) = ([0; 20], 20, value.unsigned_abs());
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    (digits, at)
}
