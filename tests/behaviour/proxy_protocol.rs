//! The PROXY protocol: a header from a load balancer names the client of a connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use pool_manager::{Cause, CloseReason, Config, Conn, Framing, ListenOptions};

use crate::support::{Rig, connect, reset, rig};

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(Duration::from_secs(600))
}

/// A rig, and the address on which it expects headers.
type Listening<F> = (Rig<F>, SocketAddr);

/// Returns a rig that replies to each line, and to an incomplete one, with the peer's address, the line and `bytes_in`. It
/// expects headers on connections from the network `trusted`.
fn reporting(
    config: Config,
    trusted: &str,
) -> Listening<impl FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()>> {
    let reply = |conn: &mut Conn<'_>, body: &[u8]| {
        let peer = conn.peer_addr().map_or("unknown".into(), |addr| addr.to_string());
        let body = body.escape_ascii();
        write!(conn, "{peer} sent {body}, {} bytes", conn.bytes_in())
    };
    let mut rig = rig(config, reply).on_incomplete(reply);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let options = ListenOptions::new().proxy_protocol([trusted.parse().unwrap()]);
    rig.manager.listen_with(listener, options).unwrap();
    (rig, addr)
}

#[track_caller]
fn assert_reply<F>(rig: &mut Rig<F>, client: &mut TcpStream, expected: &str)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()>,
{
    let reply = rig.read_exact(client, expected.len());
    assert_eq!(String::from_utf8_lossy(&reply), expected);
}

#[test]
fn a_header_is_read_in_one_piece_or_byte_by_byte() {
    let (mut rig, addr) = reporting(lines(), "127.0.0.0/8");
    let mut client = connect(addr);
    client.write_all(&[HEADER, b"hello\n"].concat()).unwrap();
    assert_reply(&mut rig, &mut client, "192.0.2.7:4711 sent hello, 6 bytes");

    let mut slow = connect(addr);
    for (count, byte) in (1..).zip(HEADER) {
        assert_eq!(rig.record.open_lives(), 1, "a connection is opened after its header");
        slow.write_all(&[*byte]).unwrap();
        rig.until(|rig| rig.manager.stats().bytes_in >= 6 + count || rig.record.open_lives() == 2);
    }
    rig.until(|rig| rig.record.open_lives() == 2);
    slow.write_all(b"hello\n").unwrap();
    assert_reply(&mut rig, &mut slow, "192.0.2.7:4711 sent hello, 6 bytes");
    let stats = rig.manager.stats();
    assert_eq!((stats.proxied, stats.bytes_in), (2, 12), "headers are not counted");
}

#[test]
fn a_local_or_unknown_header_keeps_the_socket_s_address() {
    let (mut rig, addr) = reporting(lines(), "127.0.0.1");
    for header in [LOCAL, b"PROXY UNKNOWN\r\n"] {
        let mut client = connect(addr);
        client.write_all(&[header, b"a\n"].concat()).unwrap();
        let expected = format!("{} sent a, 2 bytes", client.local_addr().unwrap());
        assert_reply(&mut rig, &mut client, &expected);
    }
}

#[test]
fn a_header_from_an_untrusted_peer_is_delivered_as_data() {
    let (mut rig, addr) = reporting(lines(), "10.0.0.0/8");
    let mut client = connect(addr);
    client.write_all(HEADER).unwrap();
    let header = HEADER[..HEADER.len() - 1].escape_ascii();
    let expected = format!("{} sent {header}, 44 bytes", client.local_addr().unwrap());
    assert_reply(&mut rig, &mut client, &expected);
    assert_eq!(rig.manager.stats().proxied, 0);
}

#[test]
fn listeners_without_the_option_read_no_headers() {
    let (mut rig, _) = reporting(lines(), "127.0.0.1");
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut client = connect(addr);
    client.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    let expected = format!("{} sent PROXY UNKNOWN\\r, 15 bytes", client.local_addr().unwrap());
    assert_reply(&mut rig, &mut client, &expected);
}

/// Asserts that a connection that sends only `sent` is closed with `reason` and never opened.
#[track_caller]
fn assert_never_opened(config: Config, sent: &[u8], finishes: bool, reason: CloseReason) {
    let (mut rig, addr) = reporting(config, "127.0.0.1");
    let mut client = connect(addr);
    client.write_all(sent).unwrap();
    if finishes {
        client.shutdown(Shutdown::Write).unwrap();
    }
    rig.until(|rig| rig.manager.stats().closed(reason) == 1);
    assert_eq!(rig.record.all(), [], "no callback is called");
    let stats = rig.manager.stats();
    assert_eq!((stats.put, stats.closed_total(), stats.live), (1, 1, 0));
    assert_eq!((stats.bytes_in, stats.bytes_dropped, stats.proxied), (0, 0, 0));
    let outcome = client.read(&mut [0; 9]);
    let reset = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
    assert!(matches!(&outcome, Ok(0)) || outcome.as_ref().is_err_and(reset), "{outcome:?}");
    assert_eq!(rig.manager.stop().unwrap().dropped_bytes, 0);
}

#[test]
fn a_connection_without_a_valid_header_is_closed_unopened() {
    assert_never_opened(lines(), b"GET / HTTP/1.1\r\n\r\n", false, CloseReason::BadHeader);
    assert_never_opened(lines(), &HEADER[..20], true, CloseReason::BadHeader);
    assert_never_opened(lines(), b"", true, CloseReason::Eof);
    let tight = lines().buffer_size(HEADER.len() - 1);
    assert_never_opened(tight, HEADER, false, CloseReason::BadHeader);
}

#[test]
fn a_header_counts_against_both_deadlines() {
    let soon = Duration::from_millis(60);
    for sent in [&b""[..], &HEADER[..20]] {
        assert_never_opened(lines().clients_deadline(soon), sent, false, CloseReason::Expired);
    }
    let (mut rig, addr) = reporting(lines().request_deadline(soon), "127.0.0.1");
    let mut client = connect(addr);
    client.write_all(HEADER).unwrap();
    rig.until(|rig| rig.record.open_lives() == 1);
    rig.pass(soon * 2);
    assert_eq!(rig.record.closed(), [], "the deadline does not apply after the header");
    let mut client = connect(addr);
    for byte in HEADER.iter().cycle() {
        // The connection may be closed by now.
        if client.write_all(&[*byte]).is_err() || rig.manager.stats().closed_total() == 1 {
            break;
        }
        rig.pass(Duration::from_millis(5));
        assert_ne!(rig.manager.stats().proxied, 2, "a header sent slowly was completed in time");
    }
    rig.until(|rig| rig.manager.stats().closed(CloseReason::Expired) == 1);
}

#[test]
fn a_client_silent_after_its_header_causes_an_empty_last_call() {
    let config = lines().clients_deadline(Duration::from_millis(50));
    for (framing, requests, incomplete) in
        [(Framing::Delimited(b'\n'), 0, 1), (Framing::Drained, 1, 0)]
    {
        let (mut rig, addr) = reporting(config.clone().framing(framing), "127.0.0.1");
        let mut client = connect(addr);
        client.write_all(HEADER).unwrap();
        assert_reply(&mut rig, &mut client, "192.0.2.7:4711 sent , 0 bytes");
        let empty = (Cause::Expired, vec![]);
        assert_eq!(rig.record.requests(), vec![empty.clone(); requests]);
        assert_eq!(rig.record.incomplete(), vec![empty; incomplete]);
    }
}

#[test]
fn a_unix_listener_with_the_option_reads_headers_from_all_peers() {
    let path = std::env::temp_dir().join(format!("pool-manager-proxy-{}", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (mut rig, _) = reporting(lines(), "127.0.0.1");
    rig.manager.listen_with(listener, ListenOptions::new().proxy_protocol([])).unwrap();
    let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    client.write_all(&[HEADER, b"a\n"].concat()).unwrap();
    let expected = b"192.0.2.7:4711 sent a, 2 bytes";
    rig.until(|rig| rig.manager.stats().bytes_out == expected.len() as u64);
    let mut reply = [0; 30];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, expected);
}

#[test]
fn half_a_header_above_the_memory_limit_is_closed_unopened() {
    let (mut rig, addr) = reporting(lines().buffer_size(128).memory_limit(128), "127.0.0.1");
    let mut first = connect(addr);
    first.write_all(&HEADER[..20]).unwrap();
    rig.bytes_in(20);
    let mut second = connect(addr);
    second.write_all(&HEADER[..20]).unwrap();
    rig.until(|rig| rig.manager.stats().closed(CloseReason::MemoryLimit) == 1);
    assert_eq!(rig.record.all(), [], "no callback is called");
    assert_eq!(rig.manager.stats().requests_total(), 0);
    first.write_all(&[&HEADER[20..], b"hello\n"].concat()).unwrap();
    assert_reply(&mut rig, &mut first, "192.0.2.7:4711 sent hello, 6 bytes");
}

#[test]
fn max_per_peer_does_not_count_connections_with_headers() {
    let (mut rig, addr) = reporting(lines().max_per_peer(1), "127.0.0.1");
    let mut clients = [(); 3].map(|()| connect(addr));
    for client in &mut clients {
        client.write_all(&[HEADER, b"hello\n"].concat()).unwrap();
        assert_reply(&mut rig, client, "192.0.2.7:4711 sent hello, 6 bytes");
    }
    assert_eq!(rig.manager.stats().refused_per_peer, 0);
}

/// After a reset, a socket no longer has a peer address, but its bytes can still be read.
#[test]
fn a_reset_does_not_make_an_untrusted_peer_s_header_trusted() {
    let (mut rig, addr) = reporting(lines(), "10.0.0.0/8");
    let mut client = connect(addr);
    client.write_all(&[HEADER, b"hello\n"].concat()).unwrap();
    reset(client);
    rig.until(|rig| rig.manager.stats().closed_total() == 1);
    assert_eq!(rig.manager.stats().proxied, 0);
}
