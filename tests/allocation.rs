//! A warm loop allocates nothing for requests, for refused connections or for short connections.
//!
//! The counter counts the allocations of one thread, so the manager and the clients run on the
//! thread of the test. If the clients of a test only read and write, their allocations are counted
//! too.

mod support;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use allocation_counter::measure;
use pool_manager::{Config, Conn, Framing, Handler, Manager, PutError, Socket};
use support::{TIMEOUT, pair};

const REQUESTS: u64 = 10_000;
const AT_A_TIME: usize = 8;

/// Returns the number of allocations that `work` makes.
fn allocations(work: impl FnOnce()) -> u64 {
    measure(work).count_total
}

fn drained() -> Config {
    Config::new().framing(Framing::Drained)
}

fn echo(config: Config) -> Manager<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    started(config, |conn, body| conn.write_all(body))
}

fn started<F>(config: Config, request: F) -> Manager<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let mut manager = Manager::new(config, request).expect("a manager");
    manager.start().expect("start");
    manager
}

fn until<H: Handler>(manager: &mut Manager<H>, mut done: impl FnMut(&Manager<H>) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !done(manager) {
        assert!(Instant::now() < deadline, "timed out: {}", manager.stats());
        manager.turn(Some(Duration::from_millis(10))).expect("turn");
    }
}

/// Makes `times` exchanges: sends `request`, and reads a reply that fills `reply`.
fn ask<H: Handler>(
    manager: &mut Manager<H>,
    client: &mut TcpStream,
    request: &[u8],
    reply: &mut [u8],
    times: u64,
) {
    for _ in 0..times {
        let sent = manager.stats().bytes_out + reply.len() as u64;
        client.write_all(request).expect("send");
        until(manager, |manager| manager.stats().bytes_out == sent);
        client.read_exact(reply).expect("a reply");
    }
}

#[test]
fn the_counter_counts_an_allocation() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn ten_thousand_requests_allocate_nothing() {
    let mut manager = echo(drained());
    let (mut client, ours) = pair();
    manager.put(ours).expect("put");
    let mut reply = [0; 100];
    ask(&mut manager, &mut client, &[b'a'; 100], &mut reply, 10);
    let count = allocations(|| ask(&mut manager, &mut client, &[b'b'; 100], &mut reply, REQUESTS));
    assert_eq!(count, 0);
    assert_eq!(manager.stats().requests_total(), REQUESTS + 10);
}

#[test]
fn ten_thousand_pipelined_lines_allocate_nothing() {
    const LINES: u64 = 16;
    let mut manager = echo(Config::new().framing(Framing::Delimited(b'\n')));
    let (mut client, ours) = pair();
    manager.put(ours).expect("put");
    let burst = b"a line of bytes\n".repeat(LINES as usize);
    let mut reply = vec![0; burst.len() - LINES as usize];
    ask(&mut manager, &mut client, &burst, &mut reply, 10);
    let bursts = REQUESTS / LINES;
    let count = allocations(|| ask(&mut manager, &mut client, &burst, &mut reply, bursts));
    assert_eq!(count, 0);
    assert_eq!(manager.stats().requests_total(), (bursts + 10) * LINES);
}

/// Each request arrives in two parts, so that the worker keeps a buffer between two turns.
#[test]
fn partial_requests_within_min_workers_allocate_nothing() {
    let config = Config::new().framing(Framing::Delimited(b'\n')).min_workers(AT_A_TIME);
    let mut manager = echo(config);
    let mut clients: Vec<TcpStream> = (0..AT_A_TIME)
        .map(|_| {
            let (client, ours) = pair();
            manager.put(ours).expect("put");
            client
        })
        .collect();
    let mut reply = [0; 10];
    let mut round = |manager: &mut Manager<_>| {
        for part in [&b"hello"[..], b"there\n"] {
            let received = manager.stats().bytes_in + (part.len() * AT_A_TIME) as u64;
            for client in &mut clients {
                client.write_all(part).expect("send");
            }
            until(manager, |manager| manager.stats().bytes_in == received);
        }
        for client in &mut clients {
            client.read_exact(&mut reply).expect("a reply");
        }
    };
    round(&mut manager);
    let buffers = manager.stats().buffers_allocated;
    let count = allocations(|| {
        for _ in 0..REQUESTS / AT_A_TIME as u64 {
            round(&mut manager);
        }
    });
    assert_eq!(count, 0);
    assert_eq!(manager.stats().buffers_allocated, buffers);
    assert_eq!(buffers, AT_A_TIME as u64 + 1, "the warm buffers and the hot buffer");
}

/// Passes the same socket to `put` again and again. Each call fails with an error that returns the
/// socket.
fn put_ten_thousand_times(mut put: impl FnMut(Socket) -> Result<(), PutError>) {
    let (_client, ours) = pair();
    let mut socket = Some(Socket::from(ours));
    let count = allocations(|| {
        for _ in 0..REQUESTS {
            let refused = put(socket.take().expect("a socket")).expect_err("refused");
            assert!(refused.is_busy());
            socket = Some(refused.into_socket());
        }
    });
    assert_eq!(count, 0);
}

#[test]
fn ten_thousand_refused_puts_allocate_nothing() {
    let mut manager = echo(drained().max_workers(1));
    let (_client, ours) = pair();
    manager.put(ours).expect("the only worker is free");
    put_ten_thousand_times(|socket| manager.put(socket).map(drop));
    assert_eq!(manager.stats().busy, REQUESTS);
}

#[test]
fn ten_thousand_puts_refused_by_a_handle_allocate_nothing() {
    let mut manager = echo(drained().max_workers(1));
    let (_client, ours) = pair();
    manager.put(ours).expect("the only worker is free");
    let handle = manager.handle();
    put_ten_thousand_times(|socket| handle.put(socket));
    assert_eq!(manager.stats().live, 1);
}

/// Short connections. mio's poll(2) backend allocates when it registers a descriptor, so these
/// tests do not apply to it.
#[cfg(not(mio_unsupported_force_poll_poll))]
mod connections {
    use std::net::SocketAddr;

    use pool_manager::{CloseReason, ERROR_SERVER_BUSY};

    use super::*;

    const CONNECTIONS: u64 = 1_000;

    /// Opens `count` connections, [`AT_A_TIME`] at a time, exchanges one message on each and waits
    /// until all are closed. Returns the number of allocations of the manager, and the number of
    /// connections that lingered.
    fn open_and_close<H: Handler>(
        manager: &mut Manager<H>,
        count: u64,
        mut open: impl FnMut(&mut Manager<H>) -> (TcpStream, u64),
    ) -> (u64, u64) {
        let (mut total, mut lingered, mut clients) = (0, 0, Vec::with_capacity(AT_A_TIME));
        for _ in 0..count / AT_A_TIME as u64 {
            for _ in 0..AT_A_TIME {
                let (mut client, allocated) = open(manager);
                client.write_all(b"hello").expect("send");
                total += allocated;
                clients.push(client);
            }
            let sent = manager.stats().bytes_out + 5 * AT_A_TIME as u64;
            total += allocations(|| until(manager, |manager| manager.stats().bytes_out == sent));
            lingered += manager.stats().lingering;
            for mut client in clients.drain(..) {
                client.read_exact(&mut [0; 5]).expect("a reply");
            }
            total += allocations(|| {
                until(manager, |manager| {
                    let stats = manager.stats();
                    stats.live == 0 && stats.lingering == 0
                });
            });
        }
        (total, lingered)
    }

    fn put<H: Handler>(manager: &mut Manager<H>) -> (TcpStream, u64) {
        let (client, ours) = pair();
        let put = || {
            manager.put(ours).expect("put");
        };
        (client, allocations(put))
    }

    /// Counts the allocations from `put` to the first request. The handler does not reply, because
    /// the first reply allocates the hot output buffer.
    #[test]
    fn the_first_connections_allocate_nothing_up_to_min_workers() {
        const WARM: usize = 64;
        for raised_later in [false, true] {
            let config = drained().min_workers(if raised_later { 1 } else { WARM });
            let mut manager = started(config, |_, _| Ok(()));
            if raised_later {
                manager.set_config(drained().min_workers(WARM)).expect("more");
            }
            let pairs: Vec<_> = (0..WARM).map(|_| pair()).collect();
            let (mut clients, ours): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            for client in &mut clients {
                client.write_all(b"hello").expect("send");
            }
            let count = allocations(|| {
                for ours in ours {
                    manager.put(ours).expect("put");
                }
                until(&mut manager, |manager| manager.stats().requests_total() >= WARM as u64);
            });
            assert_eq!((count, manager.stats().live), (0, WARM as u64));
        }
    }

    #[test]
    fn a_thousand_short_connections_allocate_nothing() {
        let mut manager = echo(drained().min_workers(AT_A_TIME));
        open_and_close(&mut manager, AT_A_TIME as u64, put);
        assert_eq!(open_and_close(&mut manager, CONNECTIONS, put), (0, 0));
        let stats = manager.stats();
        assert_eq!(stats.closed(CloseReason::Eof), CONNECTIONS + AT_A_TIME as u64);
        assert_eq!(stats.peak, AT_A_TIME as u64);
    }

    #[test]
    fn a_thousand_connections_that_linger_allocate_nothing() {
        let mut manager = started(drained().min_workers(AT_A_TIME), |conn, body| {
            conn.close();
            conn.write_all(body)
        });
        open_and_close(&mut manager, AT_A_TIME as u64, put);
        assert_eq!(open_and_close(&mut manager, CONNECTIONS, put), (0, CONNECTIONS));
        let stats = manager.stats();
        assert_eq!(stats.closed(CloseReason::Requested), CONNECTIONS + AT_A_TIME as u64);
    }

    #[test]
    fn a_thousand_connections_put_by_a_handle_allocate_nothing() {
        let mut manager = echo(drained().min_workers(AT_A_TIME));
        let handle = manager.handle();
        let mut put = |_: &mut Manager<_>| {
            let (client, ours) = pair();
            (client, allocations(|| handle.put(ours).expect("put")))
        };
        open_and_close(&mut manager, AT_A_TIME as u64, &mut put);
        assert_eq!(open_and_close(&mut manager, CONNECTIONS, put), (0, 0));
    }

    #[test]
    fn a_thousand_accepted_connections_allocate_nothing() {
        let mut manager = echo(drained().min_workers(AT_A_TIME));
        let addr = manager.listen("127.0.0.1:0").expect("listen");
        let accept = |_: &mut Manager<_>| (connect(addr), 0);
        open_and_close(&mut manager, AT_A_TIME as u64, accept);
        assert_eq!(open_and_close(&mut manager, CONNECTIONS, accept), (0, 0));
        assert_eq!(manager.stats().accepted, CONNECTIONS + AT_A_TIME as u64);
    }

    fn connect(addr: SocketAddr) -> TcpStream {
        TcpStream::connect(addr).expect("connect")
    }

    #[test]
    fn a_thousand_refused_connections_allocate_nothing() {
        let mut manager = echo(drained().max_workers(1));
        let addr = manager.listen("127.0.0.1:0").expect("listen");
        let (_client, ours) = pair();
        manager.put(ours).expect("the only worker is free");
        let mut refuse = |count: u64| {
            let mut allocated = 0;
            for _ in 0..count {
                let mut client = connect(addr);
                let busy = manager.stats().busy + 1;
                allocated +=
                    allocations(|| until(&mut manager, |manager| manager.stats().busy == busy));
                let mut message = String::new();
                client.read_to_string(&mut message).expect("the message to a refused connection");
                assert_eq!(message, ERROR_SERVER_BUSY);
                drop(client);
                allocated +=
                    allocations(|| until(&mut manager, |manager| manager.stats().lingering == 0));
            }
            allocated
        };
        refuse(1);
        assert_eq!(refuse(CONNECTIONS), 0);
    }
}
