//! The lower bound. It calls epoll, read and write without libc. It has no deadlines, no framing
//! and no stable connection identifiers.
//!
//! It is edge-triggered, because the kernel examines a level-triggered event twice. It buffers no
//! output. It therefore closes a connection whose socket does not take a reply at once.

use std::io;
use std::net::TcpListener;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::{Errno, read, write};
use rustix::net::{SocketFlags, accept_with};

use super::BUFFER;

/// Maximum events per wait.
const EVENTS: usize = 1024;

/// The event data of the listener. The event data of a connection is its descriptor.
const LISTENER: u64 = u64::MAX;

pub(super) fn serve(listener: &TcpListener) -> io::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut connections: Vec<Option<OwnedFd>> = Vec::new();
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    let mut buffer = [0; BUFFER];
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Err(Errno::INTR) => continue,
            waited => waited?,
        };
        for event in &events {
            if event.data.u64() == LISTENER {
                accept_all(listener, &epoll, &mut connections)?;
                continue;
            }
            let slot = &mut connections[event.data.u64() as usize];
            let hung_up = { event.flags }.intersects(EventFlags::RDHUP | EventFlags::HUP);
            if slot.as_ref().is_some_and(|socket| !echo(socket, &mut buffer, hung_up)) {
                *slot = None;
            }
        }
    }
}

fn accept_all(
    listener: &TcpListener,
    epoll: &OwnedFd,
    connections: &mut Vec<Option<OwnedFd>>,
) -> io::Result<()> {
    loop {
        let socket = match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(Errno::WOULDBLOCK) => return Ok(()),
            // The connection was closed before it was accepted.
            Err(Errno::CONNABORTED | Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let index = socket.as_raw_fd().cast_unsigned() as usize;
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(epoll, &socket, EventData::new_u64(index as u64), flags)?;
        if connections.len() <= index {
            connections.resize_with(index + 1, || None);
        }
        connections[index] = Some(socket);
    }
}

/// Echoes the available bytes. Returns false if the caller must close the connection. A short read
/// means that the socket is empty, so it ends the loop. If the peer has closed its side, a short
/// read does not end the loop.
fn echo(socket: &OwnedFd, buffer: &mut [u8], hung_up: bool) -> bool {
    loop {
        match read(socket, &mut *buffer) {
            Ok(0) => return false,
            Ok(length) => {
                if write(socket, &buffer[..length]) != Ok(length) {
                    return false;
                }
                if length < buffer.len() && !hung_up {
                    return true;
                }
            }
            Err(Errno::WOULDBLOCK) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
