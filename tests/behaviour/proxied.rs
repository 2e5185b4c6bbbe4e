//! Connections that a balancer passes on: the header says who the client is, and is nobody's
//! request.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use pool_manager::{CloseReason, Config, Conn, Framing, ListenOptions};

use crate::support::{Rig, connect, reset, rig};

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(Duration::from_secs(600))
}

/// A manager whose handler is some closure, and where it listens.
type Listening<F> = (Rig<F>, SocketAddr);

/// Tells each line who said it and how many bytes came so far.
fn telling(
    config: Config,
    trusted: &str,
) -> Listening<impl FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()>> {
    let mut rig = rig(config, |conn: &mut Conn<'_>, body: &[u8]| {
        let peer = conn.peer_addr().map_or("nobody".into(), |addr| addr.to_string());
        let body = body.escape_ascii();
        write!(conn, "{peer} said {body}, {} bytes", conn.bytes_in())
    });
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let options = ListenOptions::new().proxy_protocol([trusted.parse().unwrap()]);
    rig.manager.listen_with(listener, options).unwrap();
    (rig, addr)
}

#[track_caller]
fn assert_told<F>(rig: &mut Rig<F>, client: &mut TcpStream, expected: &str)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()>,
{
    let told = rig.read_exact(client, expected.len());
    assert_eq!(String::from_utf8_lossy(&told), expected);
}

#[test]
fn a_header_names_the_client_in_one_piece_or_byte_by_byte() {
    let (mut rig, addr) = telling(lines(), "127.0.0.0/8");
    let mut client = connect(addr);
    client.write_all(&[HEADER, b"hello\n"].concat()).unwrap();
    assert_told(&mut rig, &mut client, "192.0.2.7:4711 said hello, 6 bytes");

    let mut slow = connect(addr);
    for (count, byte) in (1..).zip(HEADER) {
        assert_eq!(rig.record.open_lives(), 1, "not opened before its header");
        slow.write_all(&[*byte]).unwrap();
        rig.until(|rig| rig.manager.stats().bytes_in >= 6 + count || rig.record.open_lives() == 2);
    }
    rig.until(|rig| rig.record.open_lives() == 2);
    slow.write_all(b"hello\n").unwrap();
    assert_told(&mut rig, &mut slow, "192.0.2.7:4711 said hello, 6 bytes");
    let stats = rig.manager.stats();
    assert_eq!((stats.proxied, stats.bytes_in), (2, 12), "headers are no requests");
}

#[test]
fn a_balancer_that_speaks_for_itself_keeps_its_address() {
    let (mut rig, addr) = telling(lines(), "127.0.0.1");
    for header in [LOCAL, b"PROXY UNKNOWN\r\n"] {
        let mut client = connect(addr);
        client.write_all(&[header, b"a\n"].concat()).unwrap();
        let expected = format!("{} said a, 2 bytes", client.local_addr().unwrap());
        assert_told(&mut rig, &mut client, &expected);
    }
}

#[test]
fn who_is_not_trusted_is_not_believed() {
    let (mut rig, addr) = telling(lines(), "10.0.0.0/8");
    let mut client = connect(addr);
    client.write_all(HEADER).unwrap();
    let header = HEADER[..HEADER.len() - 1].escape_ascii();
    let expected = format!("{} said {header}, 44 bytes", client.local_addr().unwrap());
    assert_told(&mut rig, &mut client, &expected);
    assert_eq!(rig.manager.stats().proxied, 0);
}

#[test]
fn other_listeners_read_no_headers() {
    let (mut rig, _) = telling(lines(), "127.0.0.1");
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut client = connect(addr);
    client.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    let expected = format!("{} said PROXY UNKNOWN\\r, 15 bytes", client.local_addr().unwrap());
    assert_told(&mut rig, &mut client, &expected);
}

/// How a connection ends that says this, and then no more.
#[track_caller]
fn assert_unknown(config: Config, said: &[u8], finishes: bool, reason: CloseReason) {
    let (mut rig, addr) = telling(config, "127.0.0.1");
    let mut client = connect(addr);
    client.write_all(said).unwrap();
    if finishes {
        client.shutdown(Shutdown::Write).unwrap();
    }
    rig.until(|rig| rig.manager.stats().closed(reason) == 1);
    assert_eq!(rig.record.all(), [], "the handler hears nothing of it");
    let stats = rig.manager.stats();
    assert_eq!((stats.put, stats.closed_total(), stats.live), (1, 1, 0));
    assert_eq!((stats.bytes_in, stats.bytes_dropped, stats.proxied), (0, 0, 0));
    let outcome = client.read(&mut [0; 9]);
    let reset = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
    assert!(matches!(&outcome, Ok(0)) || outcome.as_ref().is_err_and(reset), "{outcome:?}");
    assert_eq!(rig.manager.stop().unwrap().dropped_bytes, 0);
}

#[test]
fn what_has_no_header_ends_unknown_to_the_handler() {
    assert_unknown(lines(), b"GET / HTTP/1.1\r\n\r\n", false, CloseReason::BadHeader);
    assert_unknown(lines(), &HEADER[..20], true, CloseReason::BadHeader);
    assert_unknown(lines(), b"", true, CloseReason::Eof);
    let tight = lines().buffer_size(HEADER.len() - 1);
    assert_unknown(tight, HEADER, false, CloseReason::BadHeader);
}

#[test]
fn a_header_counts_against_both_deadlines() {
    let soon = Duration::from_millis(60);
    for said in [&b""[..], &HEADER[..20]] {
        assert_unknown(lines().clients_deadline(soon), said, false, CloseReason::Expired);
    }
    let (mut rig, addr) = telling(lines().request_deadline(soon), "127.0.0.1");
    let mut client = connect(addr);
    client.write_all(HEADER).unwrap();
    rig.until(|rig| rig.record.open_lives() == 1);
    rig.pass(soon * 2);
    assert_eq!(rig.record.closed(), [], "behind its header it may think");
    let mut client = connect(addr);
    for byte in HEADER.iter().cycle() {
        // It may have been closed by now.
        if client.write_all(&[*byte]).is_err() || rig.manager.stats().closed_total() == 1 {
            break;
        }
        rig.pass(Duration::from_millis(5));
        assert_ne!(rig.manager.stats().proxied, 2, "it dripped a header in time");
    }
    rig.until(|rig| rig.manager.stats().closed(CloseReason::Expired) == 1);
}

#[test]
fn a_client_that_never_speaks_behind_its_header_is_delivered_empty() {
    let (mut rig, addr) = telling(lines().clients_deadline(Duration::from_millis(50)), "127.0.0.1");
    let mut client = connect(addr);
    client.write_all(HEADER).unwrap();
    assert_told(&mut rig, &mut client, "192.0.2.7:4711 said , 0 bytes");
}

#[test]
fn connections_to_a_unix_socket_have_headers_if_any_have() {
    let path = std::env::temp_dir().join(format!("pool-manager-proxy-{}", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (mut rig, _) = telling(lines(), "127.0.0.1");
    rig.manager.listen_with(listener, ListenOptions::new().proxy_protocol([])).unwrap();
    let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    client.write_all(&[HEADER, b"a\n"].concat()).unwrap();
    let expected = b"192.0.2.7:4711 said a, 2 bytes";
    rig.until(|rig| rig.manager.stats().bytes_out == expected.len() as u64);
    let mut told = [0; 30];
    client.read_exact(&mut told).unwrap();
    assert_eq!(&told, expected);
}

#[test]
fn half_a_header_that_memory_has_no_room_for_is_nobody_s_request() {
    let (mut rig, addr) = telling(lines().buffer_size(128).memory_limit(128), "127.0.0.1");
    let mut first = connect(addr);
    first.write_all(&HEADER[..20]).unwrap();
    rig.bytes_in(20);
    let mut second = connect(addr);
    second.write_all(&HEADER[..20]).unwrap();
    rig.until(|rig| rig.manager.stats().closed(CloseReason::MemoryLimit) == 1);
    assert_eq!(rig.record.all(), [], "the handler hears nothing of it");
    assert_eq!(rig.manager.stats().requests_total(), 0);
    first.write_all(&[&HEADER[20..], b"hello\n"].concat()).unwrap();
    assert_told(&mut rig, &mut first, "192.0.2.7:4711 said hello, 6 bytes");
}

#[test]
fn clients_behind_a_balancer_are_not_counted_as_one() {
    let (mut rig, addr) = telling(lines().max_per_peer(1), "127.0.0.1");
    let mut clients = [(); 3].map(|()| connect(addr));
    for client in &mut clients {
        client.write_all(&[HEADER, b"hello\n"].concat()).unwrap();
        assert_told(&mut rig, client, "192.0.2.7:4711 said hello, 6 bytes");
    }
    assert_eq!(rig.manager.stats().refused_per_peer, 0);
}

/// A socket that was reset says no longer whose it was, and its bytes can still be read.
#[test]
fn who_is_not_trusted_is_not_believed_for_having_gone() {
    let (mut rig, addr) = telling(lines(), "10.0.0.0/8");
    let mut client = connect(addr);
    client.write_all(&[HEADER, b"hello\n"].concat()).unwrap();
    reset(client);
    rig.until(|rig| rig.manager.stats().closed_total() == 1);
    assert_eq!(rig.manager.stats().proxied, 0);
}
