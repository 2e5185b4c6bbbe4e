//! Blocking workers, as the Go package has them: one accepts, each of the others has one
//! connection at a time, reads it with a deadline, answers, and waits for the next one.
//!
//! Go's workers are cheap; these are threads with small stacks, started as they are needed.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{BUFFER, Mode, Service};

/// A worker needs its buffers, on the heap, and a few frames.
const STACK: usize = 64 << 10;

/// Connections that nobody has taken yet, and how many workers wait for one.
#[derive(Default)]
struct Queue {
    connections: VecDeque<TcpStream>,
    waiting: usize,
}

#[derive(Default)]
struct Pool {
    queue: Mutex<Queue>,
    some: Condvar,
}

pub(super) fn serve(listener: &TcpListener, service: Service) -> io::Result<()> {
    listener.set_nonblocking(false)?;
    let pool = Arc::new(Pool::default());
    loop {
        let (socket, _) = listener.accept()?;
        if pool.put(socket) {
            let pool = pool.clone();
            thread::Builder::new().stack_size(STACK).spawn(move || pool.work(service))?;
        }
    }
}

impl Pool {
    /// Whether there are more connections than workers for them.
    fn put(&self, socket: TcpStream) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.connections.push_back(socket);
        let short = queue.connections.len() > queue.waiting;
        drop(queue);
        self.some.notify_one();
        short
    }

    fn take(&self) -> TcpStream {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(socket) = queue.connections.pop_front() {
                return socket;
            }
            queue.waiting += 1;
            queue = self.some.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.waiting -= 1;
        }
    }

    fn work(&self, service: Service) {
        loop {
            let socket = self.take();
            // How a connection ends is its own affair: the client sees it.
            let _ = match service.mode {
                Mode::Echo | Mode::Idle => echo(&socket, service.deadline),
                Mode::Lines => lines(&socket, service.deadline),
            };
        }
    }
}

fn echo(mut socket: &TcpStream, deadline: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(deadline))?;
    let mut buffer = [0; BUFFER];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => socket.write_all(&buffer[..length])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Answers a burst of lines with one write: flushes when no further byte is held.
fn lines(socket: &TcpStream, deadline: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(deadline))?;
    let mut reader = BufReader::with_capacity(BUFFER, socket);
    let mut writer = BufWriter::with_capacity(BUFFER, socket);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        writer.write_all(&line)?;
        line.clear();
        if reader.buffer().is_empty() {
            writer.flush()?;
        }
    }
    Ok(())
}
