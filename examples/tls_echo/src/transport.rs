//! A [`Transport`]: a TLS session of rustls over a TCP socket.
//!
//! Reads and writes are independent of each other. Each of them continues until the socket would
//! block. Handshake messages are sent when the pool flushes the transport, at the end of each visit
//! to the connection. This module knows neither the pool nor the protocol inside TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use pool_manager::Transport;
use rustls::{ServerConfig, ServerConnection};

/// Maximum number of socket reads without plaintext in one [`Read::read`]. A peer that sends only
/// handshake messages must not delay other connections.
const SOCKET_READS_MAX: u32 = 16;

/// The state of the outgoing `close_notify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CloseNotify {
    NotSent,
    /// It is queued in the session, after all other output.
    Queued,
    Sent,
}

pub(crate) struct Tls {
    socket: TcpStream,
    session: ServerConnection,
    close_notify: CloseNotify,
}

impl Tls {
    /// Begins a session on a non-blocking socket. The client sends first.
    pub(crate) fn new(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        Ok(Self { socket, session, close_notify: CloseNotify::NotSent })
    }

    /// Sends the session's output until the socket would block. It uses `writev(2)`, which raises
    /// SIGPIPE if the peer has closed. A Rust program ignores this signal, but a program in another
    /// language that embeds this code may not.
    fn send(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        if self.close_notify == CloseNotify::Queued {
            self.close_notify = CloseNotify::Sent;
            self.socket.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }
}

impl Read for Tls {
    /// Reads plaintext. Returns `WouldBlock` only if the socket would block and the session holds
    /// no plaintext. The reason is that the pool then waits for the socket, and does not know what
    /// the session holds. Returns 0 after a `close_notify`. If the stream ends without a
    /// `close_notify`, it is truncated, and the error is `UnexpectedEof`.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        for _ in 0..SOCKET_READS_MAX {
            match self.session.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            self.session.read_tls(&mut self.socket)?;
            if let Err(error) = self.session.process_new_packets() {
                // Best effort: the alert tells the peer what was wrong.
                let _ = self.send();
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
        Err(ErrorKind::Interrupted.into())
    }
}

impl Write for Tls {
    /// Takes bytes until the session holds its maximum of unsent bytes, by default 64 KiB.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut count = self.session.writer().write(bytes)?;
        if count == 0 {
            self.send()?;
            count = self.session.writer().write(bytes)?;
        }
        if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl AsFd for Tls {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Transport for Tls {
    fn shutdown_write(&mut self) -> io::Result<()> {
        if self.close_notify == CloseNotify::NotSent {
            self.close_notify = CloseNotify::Queued;
            self.session.send_close_notify();
        }
        match self.send() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            outcome => outcome,
        }
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket.peer_addr().ok()
    }
}
