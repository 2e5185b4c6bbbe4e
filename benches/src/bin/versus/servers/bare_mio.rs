//! The layer below pool-manager: a mio loop with a slab, without deadlines and without framing.
//!
//! It buffers no output. It therefore closes a connection whose socket does not take a reply at
//! once.

use std::io::{self, ErrorKind, Read, Write};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::BUFFER;

/// Maximum events per wait.
const EVENTS: usize = 1024;

/// The token of the listener. The token of a connection is its key in the slab.
const LISTENER: Token = Token(usize::MAX);

pub(super) fn serve(listener: std::net::TcpListener) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::from_std(listener);
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut connections = Slab::new();
    let mut events = Events::with_capacity(EVENTS);
    let mut buffer = [0; BUFFER];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            waited => waited?,
        }
        for event in &events {
            if event.token() == LISTENER {
                accept_all(&listener, &poll, &mut connections)?;
                continue;
            }
            let key = event.token().0;
            let Some(socket) = connections.get_mut(key) else { continue };
            if !echo(socket, &mut buffer, event) {
                connections.remove(key);
            }
        }
    }
}

fn accept_all(
    listener: &TcpListener,
    poll: &Poll,
    connections: &mut Slab<TcpStream>,
) -> io::Result<()> {
    loop {
        let mut socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // The connection was closed before it was accepted.
            Err(error) if is_transient(&error) => continue,
            Err(error) => return Err(error),
        };
        let entry = connections.vacant_entry();
        poll.registry().register(&mut socket, Token(entry.key()), Interest::READABLE)?;
        entry.insert(socket);
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted)
}

/// Echoes the available bytes. Returns false if the caller must close the connection. A short read
/// means that the socket is empty, so it ends the loop. If the peer has closed its side, a short
/// read does not end the loop.
fn echo(socket: &mut TcpStream, buffer: &mut [u8], event: &Event) -> bool {
    loop {
        match socket.read(buffer) {
            Ok(0) => return false,
            Ok(length) => {
                if !matches!(socket.write(&buffer[..length]), Ok(written) if written == length) {
                    return false;
                }
                if length < buffer.len() && !event.is_read_closed() {
                    return true;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}
