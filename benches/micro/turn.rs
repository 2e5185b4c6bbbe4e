//! A full turn on a backend in memory. It measures all work of the loop, without system calls. In
//! each turn every connection receives a request of 64 bytes and echoes it.

mod quick;

use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pool_manager::sys::{Backend, Event, ListenSocket, Wake};
use pool_manager::{Config, Conn, Framing, Manager, Socket};

const REQUEST: [u8; 64] = [b'a'; 64];

/// A backend on which every socket always has one request to read and takes any reply. The backend
/// never uses the sockets themselves.
#[derive(Default)]
struct Memory {
    tokens: Vec<u64>,
    now: Duration,
}

impl Backend for Memory {
    type Listener = ();

    fn start(&mut self) -> io::Result<Wake> {
        Ok(Arc::new(|| Ok(())))
    }

    fn stop(&mut self) {}

    /// Advances by 20 µs per reading, so that a turn takes about as long as a real one.
    fn now(&mut self) -> Duration {
        self.now += Duration::from_micros(20);
        self.now
    }

    fn wait(&mut self, _timeout: Option<Duration>) -> io::Result<bool> {
        Ok(!self.tokens.is_empty())
    }

    fn events(&mut self, mut each: impl FnMut(Event)) {
        for &token in &self.tokens {
            let (readable, writable) = (true, true);
            each(Event {
                token,
                readable,
                writable,
                closed: false,
                hung_up: false,
                priority: false,
            });
        }
    }

    fn register(&mut self, _socket: &Socket, token: u64) -> io::Result<()> {
        self.tokens.push(token);
        Ok(())
    }

    fn deregister(&mut self, _socket: &Socket) {}

    fn listen(&mut self, _socket: ListenSocket, _token: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn close_listener(&mut self, (): ()) {}

    fn accept(&mut self, (): &mut ()) -> io::Result<(Socket, Option<IpAddr>)> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn read(&mut self, _socket: &mut Socket, into: &mut [u8]) -> io::Result<usize> {
        into[..REQUEST.len()].copy_from_slice(&REQUEST);
        Ok(REQUEST.len())
    }

    fn write(&mut self, _socket: &mut Socket, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn short_read_is_drained(&self, _socket: &Socket) -> bool {
        true
    }
}

fn turns(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a turn over memory");
    for connections in [1, 64, 1_000] {
        let config = Config::new().framing(Framing::Drained);
        let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
        let mut manager =
            Manager::with_backend(config, echo, Memory::default()).expect("a manager");
        manager.start().expect("start");
        for _ in 0..connections {
            manager.put(UnixStream::pair().expect("a socket").0).expect("put");
        }
        group.throughput(Throughput::Elements(connections));
        group.bench_function(format!("{connections} requests"), |bencher| {
            bencher.iter(|| {
                let turn = manager.turn(None).expect("a turn");
                assert_eq!(turn.served, connections as usize);
            });
        });
        let stats = manager.stats();
        assert_eq!(
            stats.bytes_out,
            stats.turns * connections * 64,
            "each turn serves every connection"
        );
    }
    group.finish();
}

criterion_group! {
    name = all;
    config = quick::quick(20);
    targets = turns
}
criterion_main!(all);
