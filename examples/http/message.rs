//! Message: where a request ends and what it says. Bytes in, a request or its fault out; pure.
//!
//! Who reads two requests where the other side wrote one can be made to serve somebody else's:
//! request smuggling. So whatever two readers might take for different things is a fault (RFC 9112,
//! 6.3 and 11.2; RFC 9110, 8.6), and after a fault no byte is taken for a request any more. It
//! knows neither connections nor replies.

use std::mem::MaybeUninit;

use httparse::{Error, Header, Status as Parse};
use pool_manager::Frame;

/// Fields of a header section; one with more is refused.
const FIELDS_MAX: usize = 64;
const TRAILERS_MAX: usize = 16;
/// The longest line before a chunk, with its extensions and its end.
const CHUNK_LINE_MAX: usize = 256;

/// A status line without its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u16, pub(crate) &'static str);

pub(crate) const OK: Status = Status(200, "OK");
pub(crate) const BAD_REQUEST: Status = Status(400, "Bad Request");
pub(crate) const NOT_FOUND: Status = Status(404, "Not Found");
pub(crate) const METHOD_NOT_ALLOWED: Status = Status(405, "Method Not Allowed");
pub(crate) const REQUEST_TIMEOUT: Status = Status(408, "Request Timeout");
pub(crate) const CONTENT_TOO_LARGE: Status = Status(413, "Content Too Large");
pub(crate) const FIELDS_TOO_LARGE: Status = Status(431, "Request Header Fields Too Large");
pub(crate) const NOT_IMPLEMENTED: Status = Status(501, "Not Implemented");

/// A complete request.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    /// Of the target: without scheme, authority and query.
    pub(crate) path: &'a str,
    /// The second number of the version; the first is 1.
    pub(crate) minor: u8,
    /// The peer wants to go on after this.
    pub(crate) keep_alive: bool,
    pub(crate) body: Body<'a>,
    /// Bytes of it all, from the request line to the end of the body.
    pub(crate) length: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'a> {
    Plain(&'a [u8]),
    /// Well-formed chunks, to their end.
    Chunked(&'a [u8]),
}

impl<'a> Body<'a> {
    /// What it consists of, in order.
    pub(crate) fn pieces(self) -> impl Iterator<Item = &'a [u8]> + Clone {
        let (mut plain, mut chunks) = match self {
            Self::Plain(bytes) => (Some(bytes), &b""[..]),
            Self::Chunked(bytes) => (None, bytes),
        };
        std::iter::from_fn(move || {
            plain.take().or_else(|| {
                let chunk = next_chunk(chunks).ok().flatten().filter(|chunk| chunk.size > 0)?;
                let (piece, rest) = chunks.get(chunk.skip..)?.split_at_checked(chunk.size)?;
                chunks = rest.get(2..)?;
                Some(piece)
            })
        })
    }

    pub(crate) fn length(self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }
}

/// Whether `held` begins with a request. A fault is a frame too: a callback has to say what it was.
pub(crate) fn frame(held: &[u8], max: usize) -> Frame {
    match parse(held, max) {
        Ok(Some(request)) => Frame::Complete(request.length),
        Ok(None) => Frame::Partial,
        Err(_) => Frame::Complete(held.len()),
    }
}

/// The request that `held` begins with, if all of it is there, or why there is none. It may be
/// `max` bytes long in all.
pub(crate) fn parse(held: &[u8], max: usize) -> Result<Option<Request<'_>>, Status> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let Some(skip) = complete(parsed.parse_with_uninit_headers(held, &mut fields))? else {
        return Ok(None);
    };
    only_whole_line_ends(&held[..skip])?;
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(BAD_REQUEST);
    };
    let facts = Facts::of(parsed.headers, minor)?;
    let rest = &held[skip..];
    let body = if facts.chunked {
        chunked(rest, max.saturating_sub(skip))?
            .map(|length| (Body::Chunked(&rest[..length]), length))
    } else if facts.length > max.saturating_sub(skip) {
        return Err(CONTENT_TOO_LARGE);
    } else {
        rest.get(..facts.length).map(|body| (Body::Plain(body), facts.length))
    };
    let Some((body, length)) = body else { return Ok(None) };
    let (path, keep_alive) = (path(target), facts.keep_alive);
    Ok(Some(Request { method, path, minor, keep_alive, body, length: skip + length }))
}

/// Whether all of the header section is there.
pub(crate) fn has_header_section(held: &[u8]) -> bool {
    held.windows(4).any(|bytes| bytes == b"\r\n\r\n")
}

fn complete<T>(parsed: httparse::Result<T>) -> Result<Option<T>, Status> {
    match parsed {
        Ok(Parse::Complete(parsed)) => Ok(Some(parsed)),
        Ok(Parse::Partial) => Ok(None),
        Err(Error::TooManyHeaders) => Err(FIELDS_TOO_LARGE),
        Err(_) => Err(BAD_REQUEST),
    }
}

/// A bare line feed ends a line for some readers and not for others.
fn only_whole_line_ends(section: &[u8]) -> Result<(), Status> {
    let mut lines = section.split(|&byte| byte == b'\n');
    // What follows the last one is nothing.
    lines.next_back();
    if lines.all(|line| line.ends_with(b"\r")) { Ok(()) } else { Err(BAD_REQUEST) }
}

/// What the header fields say about the message itself.
struct Facts {
    chunked: bool,
    length: usize,
    keep_alive: bool,
    closes: bool,
}

impl Facts {
    fn of(fields: &[Header<'_>], minor: u8) -> Result<Self, Status> {
        let mut hosts = 0;
        let mut length = None;
        let keep_alive = minor > 0;
        let mut facts = Self { chunked: false, length: 0, keep_alive, closes: false };
        for &Header { name, value } in fields {
            if name.eq_ignore_ascii_case("host") {
                hosts += 1;
            } else if name.eq_ignore_ascii_case("content-length") {
                if length.replace(decimal(value)?).is_some() {
                    return Err(BAD_REQUEST);
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if facts.chunked || minor == 0 {
                    return Err(BAD_REQUEST);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(NOT_IMPLEMENTED);
                }
                facts.chunked = true;
            } else if name.eq_ignore_ascii_case("connection") {
                facts.connection(value);
            }
        }
        if hosts > 1 || (hosts == 0 && minor > 0) || (facts.chunked && length.is_some()) {
            return Err(BAD_REQUEST);
        }
        facts.length = length.unwrap_or(0);
        facts.keep_alive &= !facts.closes;
        Ok(facts)
    }

    /// What is to become of the connection; a wish to close outweighs the other (RFC 9112, 9.3).
    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                self.closes = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            }
        }
    }
}

/// Digits and nothing else: no sign, no list, no space.
fn decimal(value: &[u8]) -> Result<usize, Status> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().filter(|_| digits);
    number.and_then(|number| number.parse().ok()).ok_or(BAD_REQUEST)
}

/// The path of a target in origin form (`/a?b`) or absolute form (`http://host/a?b`).
fn path(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            rest.find(['/', '?']).map_or("/", |at| &rest[at..])
        }
        _ => target,
    };
    match path.split_once('?') {
        Some(("", _)) => "/",
        Some((path, _)) => path,
        None => path,
    }
}

/// The length of the chunks at the front of `held`, if their end is there. Begins anew each time
/// bytes come, so it is `max` that bounds what they cost.
fn chunked(held: &[u8], max: usize) -> Result<Option<usize>, Status> {
    let mut at = 0;
    while let Some(chunk) = next_chunk(&held[at..])? {
        at += chunk.skip;
        if chunk.size == 0 {
            return Ok(trailers(&held[at..])?.map(|length| at + length));
        }
        if chunk.size > max.saturating_sub(at) {
            return Err(CONTENT_TOO_LARGE);
        }
        at += chunk.size;
        match held.get(at..).unwrap_or_default() {
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Ok(None),
            _ => return Err(BAD_REQUEST),
        }
    }
    Ok(None)
}

/// The line before a chunk, and how long the chunk is.
struct Chunk {
    skip: usize,
    size: usize,
}

fn next_chunk(held: &[u8]) -> Result<Option<Chunk>, Status> {
    let window = &held[..held.len().min(CHUNK_LINE_MAX)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return if window.len() == CHUNK_LINE_MAX { Err(BAD_REQUEST) } else { Ok(None) };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(BAD_REQUEST)?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extensions = &line[digits..];
    let clean = extensions.iter().all(|&byte| byte == b'\t' || !byte.is_ascii_control());
    if !(1..=8).contains(&digits) || !clean || !matches!(extensions, [] | [b';', ..]) {
        return Err(BAD_REQUEST);
    }
    let size = std::str::from_utf8(&line[..digits]).map_err(|_| BAD_REQUEST)?;
    let size = usize::from_str_radix(size, 16).map_err(|_| BAD_REQUEST)?;
    Ok(Some(Chunk { skip: end + 1, size }))
}

/// The length of the trailer section, if all of it is there; what it says is not needed.
fn trailers(held: &[u8]) -> Result<Option<usize>, Status> {
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    let Some((length, _)) = complete(httparse::parse_headers(held, &mut fields))? else {
        return Ok(None);
    };
    only_whole_line_ends(&held[..length])?;
    Ok(Some(length))
}
