//! Blocking workers, as in the Go package. One thread accepts connections. Each worker serves one
//! connection at a time: it reads with a deadline and answers. When the connection has ended, the
//! worker takes the next connection.
//!
//! In Go, the workers are goroutines. Here they are threads with small stacks, which are started on
//! demand.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{BUFFER, Mode, Service};

/// The stack size of a worker: enough for its read buffer and a few stack frames.
const STACK: usize = 64 << 10;

/// Connections that no worker has taken yet, and the number of workers that wait for one.
#[derive(Default)]
struct Queue {
    connections: VecDeque<TcpStream>,
    waiting: usize,
}

#[derive(Default)]
struct Pool {
    queue: Mutex<Queue>,
    not_empty: Condvar,
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
    /// Queues a connection. Returns true if there are more queued connections than waiting workers.
    fn put(&self, socket: TcpStream) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.connections.push_back(socket);
        let too_few_workers = queue.connections.len() > queue.waiting;
        drop(queue);
        self.not_empty.notify_one();
        too_few_workers
    }

    fn take(&self) -> TcpStream {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(socket) = queue.connections.pop_front() {
                return socket;
            }
            queue.waiting += 1;
            queue = self.not_empty.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.waiting -= 1;
        }
    }

    fn work(&self, service: Service) {
        loop {
            let socket = self.take();
            // Ignore the error, if any: the client detects it.
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

/// Answers a burst of lines with one write: flushes when the read buffer is empty.
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
