//! Signals: sockets whose bytes are requests to stop. They stay when the listeners close.

use std::io::{self, ErrorKind};
use std::mem;

use crate::id::Token;
use crate::socket::Socket;
use crate::sys::Backend;

/// Signals share the listeners' kind of token, from this index on: a kind of its own would cost
/// every event a comparison.
const FIRST: usize = 1 << 31;

/// Bytes of one read from a signal, and reads from a signal per turn.
const READ_SIZE: usize = 256;
const READS: u32 = 64;

#[derive(Debug)]
struct Signal {
    /// `None` after the end of file.
    socket: Option<Socket>,
    /// The kernel reported readable, and no read has drained the socket since.
    ready: bool,
}

impl Signal {
    fn read<B: Backend>(&mut self, backend: &mut B) -> io::Result<usize> {
        let Some(socket) = &mut self.socket else { return Ok(0) };
        backend.read(socket, &mut [0; READ_SIZE])
    }

    fn close<B: Backend>(&mut self, backend: &mut B) {
        self.ready = false;
        if let Some(socket) = self.socket.take() {
            backend.deregister(&socket);
            socket.close();
        }
    }
}

/// All signals of a manager. There are few, so that they are searched one by one.
#[derive(Debug, Default)]
pub(super) struct Signals {
    all: Vec<Signal>,
}

impl Signals {
    pub(super) fn add<B: Backend>(&mut self, backend: &mut B, socket: Socket) -> io::Result<()> {
        socket.set_nonblocking()?;
        let token = Token::Listener(FIRST + self.all.len()).pack();
        backend.register(&socket, token)?;
        self.all.push(Signal { socket: Some(socket), ready: false });
        Ok(())
    }

    /// Notes that a signal is readable. Returns whether that is new, or `None` if there is no such
    /// signal.
    pub(super) fn mark_ready(&mut self, index: usize) -> Option<bool> {
        let signal = self.all.get_mut(index.checked_sub(FIRST)?)?;
        signal.socket.as_ref()?;
        Some(!mem::replace(&mut signal.ready, true))
    }

    /// Returns how many signals are ready.
    pub(super) fn ready(&self) -> usize {
        self.all.iter().filter(|signal| signal.ready).count()
    }

    /// Reads the ready signals until they are drained, within a limit. Returns whether there were
    /// any bytes.
    pub(super) fn read<B: Backend>(&mut self, backend: &mut B) -> bool {
        let mut any = false;
        for signal in self.all.iter_mut().filter(|signal| signal.ready) {
            for _ in 0..READS {
                match signal.read(backend) {
                    Ok(1..) => any = true,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        signal.ready = false;
                        break;
                    }
                    Ok(0) | Err(_) => {
                        signal.close(backend);
                        break;
                    }
                }
            }
        }
        any
    }
}
