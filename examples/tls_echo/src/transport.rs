//! Transport: a TLS session of rustls over a TCP socket, as the pool wants one.
//!
//! Reading and writing are driven independently, each as far as the socket goes: what a handshake
//! has to say goes out when the pool flushes, at the end of each of its visits. It knows neither
//! the pool nor what the bytes are for.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use pool_manager::Transport;
use rustls::{ServerConfig, ServerConnection};

/// How often one read may turn to the socket and come back without plaintext: a peer that sends
/// nothing but handshake bytes is to keep nobody else waiting.
const FRUITLESS: u32 = 16;

/// How far it is with saying `close_notify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goodbye {
    Unsaid,
    /// It goes out behind everything else.
    Queued,
    Said,
}

pub(crate) struct Tls {
    socket: TcpStream,
    session: ServerConnection,
    goodbye: Goodbye,
}

impl Tls {
    /// Waits for a client's first word on a non-blocking socket.
    pub(crate) fn new(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        Ok(Self { socket, session, goodbye: Goodbye::Unsaid })
    }

    /// Sends what there is to send, as far as the socket takes it. It goes out by `writev(2)`:
    /// a program in Rust ignores SIGPIPE, unlike one that it is embedded in.
    fn send(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        if self.goodbye == Goodbye::Queued {
            self.goodbye = Goodbye::Said;
            self.socket.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }
}

impl Read for Tls {
    /// Plaintext, until neither the session nor the socket has more: the pool is told nothing of
    /// what a session holds, so `WouldBlock` may come from the socket alone. An end of file is 0
    /// only behind a `close_notify`; else somebody has cut the stream, which is `UnexpectedEof`.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        for _ in 0..FRUITLESS {
            match self.session.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            self.session.read_tls(&mut self.socket)?;
            if let Err(error) = self.session.process_new_packets() {
                // Best effort: the alert says to the peer what was wrong.
                let _ = self.send();
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
        Err(ErrorKind::Interrupted.into())
    }
}

impl Write for Tls {
    /// Takes as much as the session may hold unsent, by default 64 KiB.
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
        if self.goodbye == Goodbye::Unsaid {
            self.goodbye = Goodbye::Queued;
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
