//! The `forward` example as both sides see it: whole streams, slow readers, upstreams that are not
//! there.

#[path = "support/examples.rs"]
mod examples;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use examples::*;

/// A forwarder to an upstream that the test plays.
fn forwarder(args: &[&str]) -> (Program, SocketAddr, TcpListener) {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("bind");
    let to = upstream.local_addr().expect("address").to_string();
    let (program, addr) = listening("forward", &[&["--to", &to], args].concat());
    (program, addr, upstream)
}

/// The two ends of a forwarded connection: the client's and the upstream's.
fn through(addr: SocketAddr, upstream: &TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(addr);
    let (ours, _) = upstream.accept().expect("accept");
    ours.set_read_timeout(Some(PATIENCE)).expect("read timeout");
    (client, ours)
}

/// Bytes that tell where in the stream they are.
fn stream(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// Writes what is taken at once, until nothing is for a while; how much that was.
fn write_until_it_stalls(to: &mut TcpStream, bytes: &[u8]) -> usize {
    to.set_nonblocking(true).expect("non-blocking");
    let (mut written, mut moved) = (0, Instant::now());
    while written < bytes.len() && moved.elapsed() < Duration::from_millis(500) {
        match to.write(&bytes[written..]) {
            Ok(count) => {
                written += count;
                moved = Instant::now();
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
fn bytes_go_both_ways_and_an_end_ends_the_other_side() {
    let (program, addr, upstream) = forwarder(&[]);
    // What is said before the upstream is there is not lost.
    let mut client = connect(addr);
    say(&mut client, "early");
    let (mut ours, _) = upstream.accept().expect("accept");
    assert_eq!(hear(&mut ours, 5), "early");
    say(&mut ours, "answer");
    assert_eq!(hear(&mut client, 6), "answer");
    // Several at a time are kept apart.
    let (mut other, mut theirs) = through(addr, &upstream);
    say(&mut theirs, "to the other");
    assert_eq!(hear(&mut other, 12), "to the other");
    say(&mut ours, "bye");
    drop(ours);
    assert_eq!(hear_all(&mut client), "bye");
    say(&mut other, "and bye");
    drop(other);
    assert_eq!(hear_all(&mut theirs), "and bye");
    program.signal("-TERM");
    let (status, stdout, stderr) = program.end();
    assert_eq!((status.code(), stderr), (Some(0), Vec::new()));
    assert!(stdout[0].starts_with("stopped: ") && stdout[0].contains("2 connected"), "{stdout:?}");
}

#[test]
fn a_client_of_an_upstream_that_refuses_is_closed() {
    let (_program, addr, upstream) = forwarder(&[]);
    drop(upstream);
    for _ in 0..3 {
        assert_eq!(hear_all(&mut connect(addr)), "");
    }
}

#[test]
fn a_client_of_an_upstream_that_never_answers_is_closed_in_time() {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("bind");
    socket2::SockRef::from(&upstream).listen(1).expect("listen");
    let to = upstream.local_addr().expect("address");
    let soon = Duration::from_millis(100);
    let full = std::iter::from_fn(|| TcpStream::connect_timeout(&to, soon).ok());
    let crowd: Vec<TcpStream> = full.take(16).collect();
    let args = ["--to", &to.to_string(), "--connect-ms", "150"];
    let (_program, addr) = listening("forward", &args);
    let began = Instant::now();
    assert_eq!(hear_all(&mut connect(addr)), "");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(150) && took < PATIENCE, "{took:?}");
    drop(crowd);
}

#[test]
fn without_a_place_for_its_upstream_a_client_is_closed() {
    let (_program, addr, upstream) = forwarder(&["--max", "1"]);
    let (mut client, mut ours) = through(addr, &upstream);
    assert!(["", "ERROR_SERVER_BUSY"].contains(&hear_all(&mut connect(addr)).as_str()));
    say(&mut client, "still");
    assert_eq!(hear(&mut ours, 5), "still");
}

/// What one does not read stays where it comes from, and in the kernel's buffers.
fn who_is_slow_slows_the_other(from: TcpStream, to: TcpStream) {
    let (mut from, mut to) = (from, to);
    let bytes = stream(32 << 20);
    let written = write_until_it_stalls(&mut from, &bytes);
    assert!(written < bytes.len() / 2, "{written} bytes went nowhere");
    let rest = bytes[written..].to_vec();
    let writer = thread::spawn(move || -> io::Result<TcpStream> {
        from.write_all(&rest)?;
        Ok(from)
    });
    let mut got = vec![0; bytes.len()];
    to.read_exact(&mut got).expect("all of it");
    assert!(got == bytes, "not what was sent");
    drop(writer.join().expect("no panic").expect("sent"));
    assert_eq!(to.read(&mut got).expect("an end of file"), 0);
}

#[test]
fn a_slow_client_slows_its_upstream_and_gets_all() {
    let (_program, addr, upstream) = forwarder(&[]);
    let (client, ours) = through(addr, &upstream);
    who_is_slow_slows_the_other(ours, client);
}

#[test]
fn a_slow_upstream_slows_its_client_and_gets_all() {
    let (_program, addr, upstream) = forwarder(&[]);
    let (client, ours) = through(addr, &upstream);
    who_is_slow_slows_the_other(client, ours);
}
