//! Parses requests: converts bytes into a request or an error status. This module does no I/O. It
//! knows neither connections nor replies.
//!
//! If two parsers disagree about where a request ends, an attacker can hide one request inside
//! another (request smuggling). Therefore each message that parsers may interpret differently is an
//! error (RFC 9112, sections 6.3 and 11.2; RFC 9110, section 8.6). No byte after an error is
//! parsed.

use std::mem::MaybeUninit;

use httparse::{Error, Header, Status as Parse};
use pool_manager::Frame;

/// Maximum number of fields in a header section.
const FIELDS_MAX: usize = 64;
/// Maximum number of fields in a trailer section.
const TRAILERS_MAX: usize = 16;
/// Maximum size of a chunk's size line, including extensions and line end.
const CHUNK_LINE_MAX: usize = 256;

/// Status code and reason phrase of a reply.
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
    /// The path of the target, without scheme, authority and query.
    pub(crate) path: &'a str,
    /// The minor version; the major version is 1.
    pub(crate) minor: u8,
    /// Whether the connection stays open after this request.
    pub(crate) keep_alive: bool,
    pub(crate) body: Body<'a>,
    /// Size of the request in bytes, from the request line to the end of the body.
    pub(crate) length: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'a> {
    Plain(&'a [u8]),
    /// Valid chunks, up to the end of the last one.
    Chunked(&'a [u8]),
}

impl<'a> Body<'a> {
    /// Returns the decoded parts of the body, in order.
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

    /// Returns the size of the decoded body in bytes.
    pub(crate) fn length(self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }
}

/// Returns the end of the request at the start of `held`. An invalid request is a complete frame
/// too, so that the handler can answer it.
pub(crate) fn frame(held: &[u8], max: usize) -> Frame {
    match parse(held, max) {
        Ok(Some(request)) => Frame::Complete(request.length),
        Ok(None) => Frame::Partial,
        Err(_) => Frame::Complete(held.len()),
    }
}

/// Parses the request at the start of `held`. Returns `None` if it is incomplete.
///
/// # Errors
/// Returns the status for the reply if the request is invalid or would exceed `max` bytes.
pub(crate) fn parse(held: &[u8], max: usize) -> Result<Option<Request<'_>>, Status> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let Some(skip) = complete(parsed.parse_with_uninit_headers(held, &mut fields))? else {
        return Ok(None);
    };
    reject_bare_line_feeds(&held[..skip])?;
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(BAD_REQUEST);
    };
    let info = MessageInfo::from_fields(parsed.headers, minor)?;
    let rest = &held[skip..];
    let body = if info.chunked {
        chunked(rest, max.saturating_sub(skip))?
            .map(|length| (Body::Chunked(&rest[..length]), length))
    } else if info.length > max.saturating_sub(skip) {
        return Err(CONTENT_TOO_LARGE);
    } else {
        rest.get(..info.length).map(|body| (Body::Plain(body), info.length))
    };
    let Some((body, length)) = body else { return Ok(None) };
    let (path, keep_alive) = (path(target), info.keep_alive);
    Ok(Some(Request { method, path, minor, keep_alive, body, length: skip + length }))
}

/// Returns whether `held` contains a complete header section.
pub(crate) fn has_header_section(held: &[u8]) -> bool {
    held.windows(4).any(|bytes| bytes == b"\r\n\r\n")
}

/// Translates a result of `httparse`. Returns `None` if the input is incomplete.
fn complete<T>(parsed: httparse::Result<T>) -> Result<Option<T>, Status> {
    match parsed {
        Ok(Parse::Complete(parsed)) => Ok(Some(parsed)),
        Ok(Parse::Partial) => Ok(None),
        Err(Error::TooManyHeaders) => Err(FIELDS_TOO_LARGE),
        Err(_) => Err(BAD_REQUEST),
    }
}

/// Rejects lines that end with LF instead of CRLF, because parsers disagree about whether LF ends a
/// line.
fn reject_bare_line_feeds(section: &[u8]) -> Result<(), Status> {
    let mut lines = section.split(|&byte| byte == b'\n');
    // The section ends with a line feed, so the last element is empty.
    lines.next_back();
    if lines.all(|line| line.ends_with(b"\r")) { Ok(()) } else { Err(BAD_REQUEST) }
}

/// The framing of the body and the persistence of the connection, from the header fields.
struct MessageInfo {
    chunked: bool,
    length: usize,
    keep_alive: bool,
    closes: bool,
}

impl MessageInfo {
    fn from_fields(fields: &[Header<'_>], minor: u8) -> Result<Self, Status> {
        let mut hosts = 0;
        let mut length = None;
        let keep_alive = minor > 0;
        let mut info = Self { chunked: false, length: 0, keep_alive, closes: false };
        for &Header { name, value } in fields {
            if name.eq_ignore_ascii_case("host") {
                hosts += 1;
            } else if name.eq_ignore_ascii_case("content-length") {
                if length.replace(decimal(value)?).is_some() {
                    return Err(BAD_REQUEST);
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if info.chunked || minor == 0 {
                    return Err(BAD_REQUEST);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(NOT_IMPLEMENTED);
                }
                info.chunked = true;
            } else if name.eq_ignore_ascii_case("connection") {
                info.connection(value);
            }
        }
        if hosts > 1 || (hosts == 0 && minor > 0) || (info.chunked && length.is_some()) {
            return Err(BAD_REQUEST);
        }
        info.length = length.unwrap_or(0);
        info.keep_alive &= !info.closes;
        Ok(info)
    }

    /// Parses a `Connection` field. `close` takes precedence over `keep-alive` (RFC 9112, section
    /// 9.3).
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

/// Parses a decimal number that consists of digits only: no sign, list or space.
fn decimal(value: &[u8]) -> Result<usize, Status> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().filter(|_| digits);
    number.and_then(|number| number.parse().ok()).ok_or(BAD_REQUEST)
}

/// Returns the path of a target in origin form (`/a?b`) or absolute form (`http://host/a?b`).
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

/// Returns the size of the chunked body at the start of `held`, or `None` if it is incomplete. Each
/// time that more bytes arrive, the search starts at the first chunk again. `max` limits the cost
/// of these searches.
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

/// A parsed size line.
struct Chunk {
    /// Size of the line in bytes.
    skip: usize,
    /// Size of the chunk in bytes.
    size: usize,
}

/// Parses the size line at the start of `held`. Returns `None` if it is incomplete.
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

/// Returns the size of the trailer section, or `None` if it is incomplete. Its fields are ignored.
fn trailers(held: &[u8]) -> Result<Option<usize>, Status> {
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    let Some((length, _)) = complete(httparse::parse_headers(held, &mut fields))? else {
        return Ok(None);
    };
    reject_bare_line_feeds(&held[..length])?;
    Ok(Some(length))
}
