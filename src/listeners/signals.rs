//! Signals: sockets whose bytes are requests to stop. They stay open when the listeners close. They
//! are registered only while the manager is running. Bytes that arrive before a start are therefore
//! reported after the start.

use std::io::{self, ErrorKind};
use std::mem;

use crate::id::Token;
use crate::socket::Socket;
use crate::sys::Backend;

/// The index of the first signal in its token. Signals use the tokens of listeners, because a
/// separate kind of token would cost one more comparison for each event.
const FIRST: usize = 1 << 31;

/// Maximum number of bytes of one read.
const READ_SIZE: usize = 256;
/// Maximum number of reads per signal and turn.
const READS: u32 = 64;

/// Returns the token of the signal with this index.
fn token(index: usize) -> u64 {
    Token::Listener(FIRST + index).pack()
}

#[derive(Debug)]
struct Signal {
    /// `None` after the end of file.
    socket: Option<Socket>,
    /// The kernel reported that the socket is readable, and no read has failed since.
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

/// All signals of a manager. There are only a few, so every call scans all of them.
#[derive(Debug, Default)]
pub(super) struct Signals {
    all: Vec<Signal>,
}

impl Signals {
    /// Adds a socket. If `running` is true, registers it.
    pub(super) fn add<B: Backend>(
        &mut self,
        backend: &mut B,
        socket: Socket,
        running: bool,
    ) -> io::Result<()> {
        socket.set_nonblocking()?;
        if running {
            backend.register(&socket, token(self.all.len()))?;
        }
        self.all.push(Signal { socket: Some(socket), ready: false });
        Ok(())
    }

    /// Registers all open signals. On failure, none is registered.
    pub(super) fn register<B: Backend>(&mut self, backend: &mut B) -> io::Result<()> {
        let mut sockets = self.all.iter().map(|signal| &signal.socket).enumerate();
        let outcome = sockets.try_for_each(|(index, socket)| {
            socket.as_ref().map_or(Ok(()), |socket| backend.register(socket, token(index)))
        });
        if outcome.is_err() {
            self.deregister(backend);
        }
        outcome
    }

    /// Deregisters all signals. From now on, none is ready.
    pub(super) fn deregister<B: Backend>(&mut self, backend: &mut B) {
        for signal in &mut self.all {
            signal.ready = false;
            if let Some(socket) = &signal.socket {
                backend.deregister(socket);
            }
        }
    }

    /// Marks a signal as ready. Returns whether it was not ready before, or `None` if no open
    /// signal has this index.
    pub(super) fn mark_ready(&mut self, index: usize) -> Option<bool> {
        let signal = self.all.get_mut(index.checked_sub(FIRST)?)?;
        signal.socket.as_ref()?;
        Some(!mem::replace(&mut signal.ready, true))
    }

    /// Returns the number of ready signals.
    pub(super) fn ready(&self) -> usize {
        self.all.iter().filter(|signal| signal.ready).count()
    }

    /// Reads each ready signal until no bytes are left, with at most [`READS`] reads per signal.
    /// Returns whether any bytes were read.
    pub(super) fn read<B: Backend>(&mut self, backend: &mut B) -> bool {
        let mut any = false;
        for signal in self.all.iter_mut().filter(|signal| signal.ready) {
            for _ in 0..READS {
                match signal.read(backend) {
                    Ok(1..) => any = true,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Ok(0) => {
                        signal.close(backend);
                        break;
                    }
                    // All bytes were read, or the read failed. After a failure, the next bytes
                    // cause a new event. The signal is then read again, so no bytes are lost.
                    Err(_) => {
                        signal.ready = false;
                        break;
                    }
                }
            }
        }
        any
    }
}
