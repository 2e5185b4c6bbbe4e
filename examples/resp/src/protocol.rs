//! The protocol: finds the end and the arguments of a request, and writes replies.
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>. Error messages are those of
//! Redis 7.0.

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;

use pool_manager::Frame;

/// Maximum size of a value, and of any other argument, in bytes.
pub(crate) const BULK_MAX: usize = 512 << 10;

/// Maximum number of arguments. A request that arrives byte by byte is parsed again for each byte,
/// so this limits the cost of parsing it once.
const ARGUMENTS_MAX: usize = 16_384;

/// Maximum size of an inline request, which is a line of words.
const INLINE_MAX: usize = 64 << 10;
/// Maximum length of a count or size in characters.
const NUMBER_MAX: usize = 32;

/// A protocol error. The start of the next request is unknown after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProtocolError {
    ArgumentCount,
    ArgumentCountTooLong,
    BulkLength,
    BulkLengthTooLong,
    NotABulk(u8),
    Quotes,
    InlineTooLong,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Protocol error: ")?;
        f.write_str(match self {
            Self::ArgumentCount => "invalid multibulk length",
            Self::ArgumentCountTooLong => "too big mbulk count string",
            Self::BulkLength => "invalid bulk length",
            Self::BulkLengthTooLong => "too big bulk count string",
            Self::NotABulk(got @ b' '..=b'~') => {
                return write!(f, "expected '$', got '{}'", char::from(*got));
            }
            // Redis repeats the byte even if that makes its reply invalid.
            Self::NotABulk(_) => "expected '$', got '?'",
            Self::Quotes => "unbalanced quotes in request",
            Self::InlineTooLong => "too big inline request",
        })
    }
}

/// The framing: one request is one frame. After a protocol error all held bytes are one frame, so
/// that the handler can answer with an error before it closes the connection.
pub(crate) fn frame(held: &[u8]) -> Frame {
    match walk(held, |_| ()) {
        Ok(Some(end)) => Frame::Complete(end),
        Ok(None) => Frame::Partial,
        Err(_) => Frame::Complete(held.len()),
    }
}

/// Finds the end of the request at the start of `held`, and calls `argument` with the position of
/// each argument. Returns `None` if the request is incomplete. Finds only the end of an inline
/// request, not its arguments; [`from_line`] converts it.
pub(crate) fn walk(
    held: &[u8],
    mut argument: impl FnMut(Range<usize>),
) -> Result<Option<usize>, ProtocolError> {
    if held[0] != b'*' {
        return match held.iter().take(INLINE_MAX).position(|&byte| byte == b'\n') {
            Some(at) => Ok(Some(at + 1)),
            None if held.len() >= INLINE_MAX => Err(ProtocolError::InlineTooLong),
            None => Ok(None),
        };
    }
    let Some((count, mut at)) =
        number(held, 1, ProtocolError::ArgumentCount, ProtocolError::ArgumentCountTooLong)?
    else {
        return Ok(None);
    };
    let count = usize::try_from(count).unwrap_or(0);
    if count > ARGUMENTS_MAX {
        return Err(ProtocolError::ArgumentCount);
    }
    for _ in 0..count {
        match held.get(at) {
            Some(b'$') => {}
            Some(&other) => return Err(ProtocolError::NotABulk(other)),
            None => return Ok(None),
        }
        let header =
            number(held, at + 1, ProtocolError::BulkLength, ProtocolError::BulkLengthTooLong)?;
        let Some((length, start)) = header else { return Ok(None) };
        let length = usize::try_from(length).map_err(|_| ProtocolError::BulkLength)?;
        if length > BULK_MAX {
            return Err(ProtocolError::BulkLength);
        }
        // As in Redis, the two bytes of the line end are not checked.
        at = start + length + 2;
        if at > held.len() {
            return Ok(None);
        }
        argument(start..start + length);
    }
    Ok(Some(at))
}

/// Parses the number at `at`. Returns it with the start of the next line, or `None` if the line is
/// incomplete.
fn number(
    held: &[u8],
    at: usize,
    invalid: ProtocolError,
    too_long: ProtocolError,
) -> Result<Option<(i64, usize)>, ProtocolError> {
    let (mut value, mut end) = (0_i64, at);
    let negative = held.get(at) == Some(&b'-');
    end += usize::from(negative);
    let digits = end;
    while let Some(digit) = held.get(end).map(|byte| byte.wrapping_sub(b'0')).filter(|&d| d < 10) {
        // A number of more than 18 digits may overflow. Such a number exceeds every limit anyway.
        value = if end < digits + 18 { value * 10 + i64::from(digit) } else { i64::MAX };
        end += 1;
        if end > at + NUMBER_MAX {
            return Err(too_long);
        }
    }
    match held.get(end..) {
        // Leading zeros and `-0` are invalid.
        Some([b'\r', _, ..]) if end > digits && (held[digits] != b'0' || end == at + 1) => {
            Ok(Some((if negative { -value } else { value }, end + 2)))
        }
        Some([] | [b'\r']) => Ok(None),
        _ => Err(invalid),
    }
}

/// Converts an inline request, as people type it, into an array of bulk strings.
pub(crate) fn from_line(line: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    let words = words(line)?;
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(format!("${}\r\n", word.len()).bytes());
        request.extend(word);
        request.extend(b"\r\n");
    }
    Ok(request)
}

/// Splits a line into words. `"` and `'` quote; a closing quote must end its word. Within `"` a
/// backslash escapes.
fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let (mut words, mut rest) = (Vec::new(), line.trim_ascii());
    while !rest.is_empty() {
        let mut word = Vec::new();
        while let Some((&byte, after)) = within_word(rest) {
            rest = after;
            if byte == b'"' || byte == b'\'' {
                rest = quoted(rest, byte, &mut word)?;
                if within_word(rest).is_some() {
                    return Err(ProtocolError::Quotes);
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

/// Splits off the next byte. Returns `None` at the end of the word.
fn within_word(rest: &[u8]) -> Option<(&u8, &[u8])> {
    rest.split_first().filter(|(byte, _)| !byte.is_ascii_whitespace())
}

/// Reads up to the closing quote and returns the bytes after it.
fn quoted<'a>(
    mut rest: &'a [u8],
    quote: u8,
    word: &mut Vec<u8>,
) -> Result<&'a [u8], ProtocolError> {
    loop {
        let (byte, taken) = match rest {
            [] => return Err(ProtocolError::Quotes),
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

/// Writes replies.
pub(crate) trait Reply: Write {
    fn simple(&mut self, text: &str) -> io::Result<()> {
        self.line(b'+', text.as_bytes())
    }

    /// Writes an error. `text` is a code in capitals and a message.
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

    /// Writes the head of an array. `count` replies must follow as its elements.
    fn array(&mut self, count: usize) -> io::Result<()> {
        let (digits, from) = digits(count);
        self.line(b'*', &digits[from..])
    }

    /// Writes a line. A short line is written with a single call of `write_all`.
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

/// Formats a number in decimal. Returns an array that ends with the digits, and the index at which
/// they begin.
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
