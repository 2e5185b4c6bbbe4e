//! The `forward` example as both sides see it: complete streams, slow readers and unreachable
//! upstreams.

#[path = "support/examples.rs"]
mod examples;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use examples::*;

/// Starts a forwarder to an upstream listener of the test.
fn forwarder(args: &[&str]) -> (Program, SocketAddr, TcpListener) {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("bind");
    let to = upstream.local_addr().expect("address").to_string();
    let (program, addr) = listening("forward", &[&["--to", &to], args].concat());
    (program, addr, upstream)
}

/// Opens a forwarded connection. Returns the client's and the upstream's end.
fn open(addr: SocketAddr, upstream: &TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(addr);
    let (ours, _) = upstream.accept().expect("accept");
    ours.set_read_timeout(Some(TIMEOUT)).expect("read timeout");
    (client, ours)
}

/// Returns bytes that depend on their position, so that misplaced bytes are detected.
fn stream(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// Writes without blocking until no byte is accepted for 500 ms. Returns the number of bytes.
fn write_until_it_stalls(to: &mut TcpStream, bytes: &[u8]) -> usize {
    to.set_nonblocking(true).expect("non-blocking");
    let (mut written, mut last_write) = (0, Instant::now());
    while written < bytes.len() && last_write.elapsed() < Duration::from_millis(500) {
        match to.write(&bytes[written..]) {
            Ok(count) => {
                written += count;
                last_write = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("after {written} bytes: {error}"),
        }
    }
    to.set_nonblocking(false).expect("blocking");
    written
}

#[test]
fn bytes_and_end_of_file_are_forwarded_in_both_directions() {
    let (program, addr, upstream) = forwarder(&[]);
    // Bytes that arrive before the upstream is connected are kept.
    let mut client = connect(addr);
    send(&mut client, "early");
    let (mut ours, _) = upstream.accept().expect("accept");
    assert_eq!(receive(&mut ours, 5), "early");
    send(&mut ours, "answer");
    assert_eq!(receive(&mut client, 6), "answer");
    // Connections that are open at the same time are kept apart.
    let (mut other, mut theirs) = open(addr, &upstream);
    send(&mut theirs, "to the other");
    assert_eq!(receive(&mut other, 12), "to the other");
    send(&mut ours, "bye");
    drop(ours);
    assert_eq!(receive_all(&mut client), "bye");
    send(&mut other, "and bye");
    drop(other);
    assert_eq!(receive_all(&mut theirs), "and bye");
    // A connection that is open in one direction delays the stop.
    drop((client, theirs));
    program.signal("-TERM");
    let (status, stdout, stderr) = program.end();
    assert_eq!((status.code(), stderr), (Some(0), Vec::new()));
    assert!(stdout[0].starts_with("stopped: ") && stdout[0].contains("2 connected"), "{stdout:?}");
}

#[test]
fn each_direction_stays_open_after_the_other_has_ended() {
    let (_program, addr, upstream) = forwarder(&[]);
    // The client ends its direction first.
    let mut early = connect(addr);
    send(&mut early, "request");
    early.shutdown(Shutdown::Write).expect("shutdown");
    let (mut ours, _) = upstream.accept().expect("accept");
    ours.set_read_timeout(Some(TIMEOUT)).expect("read timeout");
    assert_eq!(receive_all(&mut ours), "request");
    send(&mut ours, "reply");
    drop(ours);
    assert_eq!(receive_all(&mut early), "reply");
    // The upstream ends its direction first.
    let (mut client, mut ours) = open(addr, &upstream);
    ours.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(receive_all(&mut client), "");
    send(&mut client, "still received");
    drop(client);
    assert_eq!(receive_all(&mut ours), "still received");
}

#[test]
fn a_client_is_closed_if_the_upstream_refuses_the_connection() {
    let (_program, addr, upstream) = forwarder(&[]);
    drop(upstream);
    for _ in 0..3 {
        assert_eq!(receive_all(&mut connect(addr)), "");
    }
}

#[test]
fn a_client_is_closed_if_the_upstream_exceeds_the_connect_timeout() {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("bind");
    socket2::SockRef::from(&upstream).listen(1).expect("listen");
    let to = upstream.local_addr().expect("address");
    let limit = Duration::from_millis(100);
    let full = std::iter::from_fn(|| TcpStream::connect_timeout(&to, limit).ok());
    let queued: Vec<TcpStream> = full.take(16).collect();
    let args = ["--to", &to.to_string(), "--connect-ms", "150"];
    let (_program, addr) = listening("forward", &args);
    let began = Instant::now();
    assert_eq!(receive_all(&mut connect(addr)), "");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(150) && took < TIMEOUT, "{took:?}");
    drop(queued);
}

#[test]
fn a_client_is_closed_if_no_worker_is_free_for_its_upstream() {
    let (_program, addr, upstream) = forwarder(&["--max", "1"]);
    let (mut client, mut ours) = open(addr, &upstream);
    assert!(["", "ERROR_SERVER_BUSY"].contains(&receive_all(&mut connect(addr)).as_str()));
    send(&mut client, "still");
    assert_eq!(receive(&mut ours, 5), "still");
}

/// Checks that unread bytes stay with the sender and in the buffers of the kernel.
fn check_back_pressure(from: TcpStream, to: TcpStream) {
    let (mut from, mut to) = (from, to);
    let bytes = stream(32 << 20);
    let written = write_until_it_stalls(&mut from, &bytes);
    assert!(written < bytes.len() / 2, "{written} bytes accepted without a reader");
    let rest = bytes[written..].to_vec();
    let writer = thread::spawn(move || -> io::Result<TcpStream> {
        from.write_all(&rest)?;
        Ok(from)
    });
    let mut got = vec![0; bytes.len()];
    to.read_exact(&mut got).expect("all bytes");
    assert!(got == bytes, "the bytes differ");
    drop(writer.join().expect("no panic").expect("sent"));
    assert_eq!(to.read(&mut got).expect("an end of file"), 0);
}

#[test]
fn a_slow_client_slows_its_upstream_and_receives_all_bytes() {
    let (_program, addr, upstream) = forwarder(&[]);
    let (client, ours) = open(addr, &upstream);
    check_back_pressure(ours, client);
}

#[test]
fn a_slow_upstream_slows_its_client_and_receives_all_bytes() {
    let (_program, addr, upstream) = forwarder(&[]);
    let (client, ours) = open(addr, &upstream);
    check_back_pressure(client, ours);
}
