//! Servers for the tests: a correct echo server, and servers with faults.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use pool_manager::{Config, Conn, Framing, Handle, Manager, StopReport};

/// An echo server on pool-manager. It stops when dropped.
pub struct Echo {
    pub addr: SocketAddr,
    handle: Handle,
    running: Option<JoinHandle<StopReport>>,
}

impl Echo {
    pub fn new() -> Self {
        Self::with(None, |conn, body| conn.write_all(body))
    }

    pub fn on(path: &Path) -> Self {
        Self::with(Some(path), |conn, body| conn.write_all(body))
    }

    pub fn with<F>(path: Option<&Path>, reply: F) -> Self
    where
        F: FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let path = path.map(Path::to_owned);
        let running = thread::spawn(move || {
            let mut manager = Manager::new(Config::new().framing(Framing::Drained), reply).unwrap();
            manager.start().unwrap();
            manager.listen_on(listener).unwrap();
            if let Some(path) = path {
                manager.listen_unix(path).unwrap();
            }
            sender.send(manager.handle()).unwrap();
            manager.run().unwrap()
        });
        Self { addr, handle: receiver.recv().unwrap(), running: Some(running) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.handle.stop();
        if let Some(running) = self.running.take() {
            running.join().unwrap();
        }
    }
}

/// Listens until the process ends. Serves each connection on a separate thread.
pub fn serve(each: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, each) = (stream.unwrap(), each.clone());
            thread::spawn(move || each(stream));
        }
    });
    addr
}

/// Answers each line with the result of `reply`, which takes the number of the line on its
/// connection, from 0, and the line. Closes the connection if the result is `None`.
pub fn lines(
    reply: impl Fn(u64, Vec<u8>) -> Option<Vec<u8>> + Clone + Send + 'static,
) -> SocketAddr {
    serve(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        for number in 0.. {
            let mut line = Vec::new();
            if reader.read_until(b'\n', &mut line).unwrap_or(0) == 0 {
                return;
            }
            let Some(answer) = reply(number, line) else { return };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    })
}
