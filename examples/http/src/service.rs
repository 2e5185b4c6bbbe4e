//! The handler: routes requests and writes replies. The module `message` finds the requests.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use pool_manager::{Cause, Commands, Conn, Handler};

use crate::message::{
    self, BAD_REQUEST, Body, CONTENT_TOO_LARGE, FIELDS_TOO_LARGE, METHOD_NOT_ALLOWED, NOT_FOUND,
    OK, REQUEST_TIMEOUT, Request, Status,
};

/// Maximum `N` of `/size/N`; the reply must fit in `write_limit`.
pub(crate) const SIZE_MAX: usize = 512 << 10;

/// The reply to connections above the maximum.
pub(crate) const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Retry-After: 1\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 24\r\n\
    Connection: close\r\n\
    \r\n\
    503 Service Unavailable\n";

pub(crate) struct Service {
    date: Date,
    /// `SIZE_MAX` bytes. `/size/N` returns the first `N`.
    filler: Vec<u8>,
    /// Maximum size of a request in bytes.
    max: usize,
    /// The manager stops. Replies then close the connection.
    stopping: bool,
}

/// The current time as an HTTP date, formatted once per second.
struct Date {
    second: u64,
    text: String,
}

impl Date {
    fn now(&mut self) -> &str {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.second != since.as_secs() || self.text.is_empty() {
            self.second = since.as_secs();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.second);
            self.text = httpdate::fmt_http_date(time);
        }
        &self.text
    }
}

/// The header section of a reply.
struct Head<'a> {
    status: Status,
    length: usize,
    kind: &'a str,
    /// The minor version of the request: an HTTP/1.0 peer needs an explicit `keep-alive`.
    minor: u8,
    keep_alive: bool,
    /// The allowed methods, for a 405 reply.
    allow: Option<&'a str>,
}

impl Handler for Service {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), held: &[u8]) -> io::Result<()> {
        match message::parse(held, self.max) {
            Ok(Some(request)) => self.answer(conn, &request),
            Ok(None) => self.refuse(conn, BAD_REQUEST),
            Err(status) => self.refuse(conn, status),
        }
    }

    fn incomplete(&mut self, conn: &mut Conn<'_>, (): &mut (), held: &[u8]) -> io::Result<()> {
        let status = match conn.cause() {
            // No request is in progress. This is normal, because browsers open connections in
            // advance and keep them open.
            Cause::Expired if held.is_empty() => return Ok(()),
            Cause::Expired => REQUEST_TIMEOUT,
            Cause::Overlong if message::has_header_section(held) => CONTENT_TOO_LARGE,
            Cause::Overlong => FIELDS_TOO_LARGE,
            _ => BAD_REQUEST,
        };
        self.refuse(conn, status)
    }

    fn stopping(&mut self, _: &mut Commands) {
        self.stopping = true;
    }
}

impl Service {
    pub(crate) fn new(max: usize) -> Self {
        let date = Date { second: 0, text: String::new() };
        Self { date, filler: vec![b'x'; SIZE_MAX], max, stopping: false }
    }

    fn answer(&mut self, conn: &mut Conn<'_>, request: &Request<'_>) -> io::Result<()> {
        match (request.path, request.method) {
            ("/", "GET" | "HEAD") => {
                let greeting = b"pool-manager: a connection pool on one thread\n";
                self.text(conn, request, OK, None, greeting)
            }
            ("/echo", "POST") => self.echo(conn, request, request.body),
            ("/", _) => self.wrong_method(conn, request, "GET, HEAD"),
            ("/echo", _) => self.wrong_method(conn, request, "POST"),
            (path, method) => match path.strip_prefix("/size/").map(str::parse) {
                Some(Ok(size @ 0..=SIZE_MAX)) if matches!(method, "GET" | "HEAD") => {
                    self.size(conn, request, size)
                }
                Some(Ok(0..=SIZE_MAX)) => self.wrong_method(conn, request, "GET, HEAD"),
                _ => self.text(conn, request, NOT_FOUND, None, b"404 Not Found\n"),
            },
        }
    }

    fn wrong_method(
        &mut self,
        conn: &mut Conn<'_>,
        request: &Request<'_>,
        right: &str,
    ) -> io::Result<()> {
        let text = b"405 Method Not Allowed\n";
        self.text(conn, request, METHOD_NOT_ALLOWED, Some(right), text)
    }

    fn text(
        &mut self,
        conn: &mut Conn<'_>,
        request: &Request<'_>,
        status: Status,
        allow: Option<&str>,
        text: &[u8],
    ) -> io::Result<()> {
        let head = Head { allow, ..self.head(request, status, "text/plain", text.len()) };
        self.begin(conn, &head)?;
        if request.method == "HEAD" { Ok(()) } else { conn.write_all(text) }
    }

    fn echo(
        &mut self,
        conn: &mut Conn<'_>,
        request: &Request<'_>,
        body: Body<'_>,
    ) -> io::Result<()> {
        self.begin(conn, &self.head(request, OK, "application/octet-stream", body.length()))?;
        body.pieces().try_for_each(|piece| conn.write_all(piece))
    }

    fn size(&mut self, conn: &mut Conn<'_>, request: &Request<'_>, size: usize) -> io::Result<()> {
        self.begin(conn, &self.head(request, OK, "application/octet-stream", size))?;
        if request.method == "HEAD" { Ok(()) } else { conn.write_all(&self.filler[..size]) }
    }

    /// Sends an error and closes the connection, because the start of the next request is unknown.
    fn refuse(&mut self, conn: &mut Conn<'_>, status: Status) -> io::Result<()> {
        let text = format!("{} {}\n", status.0, status.1);
        let head = Head {
            status,
            length: text.len(),
            kind: "text/plain",
            minor: 1,
            keep_alive: false,
            allow: None,
        };
        self.begin(conn, &head)?;
        conn.write_all(text.as_bytes())
    }

    /// Returns the header section of a reply to `request`.
    fn head<'a>(
        &self,
        request: &Request<'_>,
        status: Status,
        kind: &'a str,
        length: usize,
    ) -> Head<'a> {
        let keep_alive = request.keep_alive && !self.stopping;
        Head { status, length, kind, minor: request.minor, keep_alive, allow: None }
    }

    /// Writes the header section. If the connection is not to be kept alive, it is closed after the
    /// reply.
    fn begin(&mut self, conn: &mut Conn<'_>, head: &Head<'_>) -> io::Result<()> {
        let Head { status: Status(code, reason), length, kind, .. } = head;
        let date = self.date.now();
        write!(
            conn,
            "HTTP/1.1 {code} {reason}\r\nDate: {date}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
        )?;
        if let Some(allow) = head.allow {
            write!(conn, "Allow: {allow}\r\n")?;
        }
        conn.write_all(match (head.keep_alive, head.minor) {
            (false, _) => b"Connection: close\r\n\r\n",
            (true, 0) => b"Connection: keep-alive\r\n\r\n",
            (true, _) => b"\r\n",
        })?;
        if !head.keep_alive {
            conn.close();
        }
        Ok(())
    }
}
