//! Admission at the maximum: eviction of idle connections, refusals, and `max_per_peer`.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pool_manager::{CloseReason, Config, Conn, ERROR_SERVER_BUSY, Framing, Overload};

use socket2::Type;

use crate::support::{Rig, Seen, TIMEOUT, connect, echo, pair, rig};

const LONG: Duration = Duration::from_secs(600);
/// A pause that is longer than the loop's time resolution of 1 ms, so that a later exchange has a
/// later time.
const PAUSE: Duration = Duration::from_millis(4);

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG)
}

fn evicting(max: usize) -> Config {
    lines().max_workers(max).overload(Overload::EvictIdle)
}

/// Sends a line and runs turns until it is echoed. Then lets [`PAUSE`] pass.
#[track_caller]
fn exchange<F>(rig: &mut Rig<F>, client: &mut TcpStream)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()>,
{
    client.write_all(b"line\n").unwrap();
    assert_eq!(rig.read_exact(client, 4), b"line");
    rig.pass(PAUSE);
}

#[test]
fn the_longest_idle_connection_is_evicted_for_a_new_one() {
    let mut rig = echo(evicting(3));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut clients = [(); 3].map(|()| connect(addr));
    for index in [0, 1, 2, 0] {
        exchange(&mut rig, &mut clients[index]);
    }
    let mut new = connect(addr);
    exchange(&mut rig, &mut new);
    assert_eq!(rig.read_to_end(&mut clients[1]).unwrap(), b"", "the second has been idle longest");
    assert_eq!(rig.record.closed(), [CloseReason::Evicted]);
    exchange(&mut rig, &mut clients[0]);
    exchange(&mut rig, &mut clients[2]);
    let stats = rig.manager.stats();
    assert_eq!((stats.closed(CloseReason::Evicted), stats.busy, stats.live), (1, 0, 3), "{stats}");
}

#[test]
fn a_connection_that_sent_nothing_is_evicted_without_a_request() {
    let mut rig = echo(evicting(1));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let _silent = connect(addr);
    rig.until(|rig| rig.manager.stats().live == 1);
    rig.pass(PAUSE);
    exchange(&mut rig, &mut connect(addr));
    assert_eq!(rig.record.closed(), [CloseReason::Evicted]);
    let called = rig.record.all().into_iter().filter(|seen| matches!(seen, Seen::Request(..)));
    assert_eq!(called.count(), 1);
}

#[test]
fn connections_in_progress_are_kept_and_the_new_one_is_refused() {
    let pausing = |conn: &mut Conn<'_>, line: &[u8]| {
        if line == b"pause" {
            conn.pause();
        }
        conn.write_all(line)
    };
    let mut rig = rig(evicting(2), pausing);
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let [mut collecting, mut paused] = [(); 2].map(|()| connect(addr));
    collecting.write_all(b"half a li").unwrap();
    paused.write_all(b"pause\n").unwrap();
    rig.bytes_in(15);
    let mut new = connect(addr);
    assert_eq!(rig.read_to_end(&mut new).unwrap(), ERROR_SERVER_BUSY.as_bytes());
    collecting.write_all(b"ne\n").unwrap();
    assert_eq!(rig.read_exact(&mut collecting, 11), b"half a line");
    let stats = rig.manager.stats();
    assert_eq!((stats.closed_total(), stats.busy, stats.live), (0, 1, 2), "{stats}");
}

#[test]
fn put_returns_busy_and_evicts_nothing() {
    let mut rig = echo(evicting(1));
    let (_client, _) = rig.connect();
    let refused = rig.manager.put(pair().1).expect_err("busy");
    assert!(refused.is_busy());
    assert_eq!(rig.manager.stats().live, 1);
}

#[test]
fn a_flood_of_new_connections_stays_within_the_maximum() {
    let mut rig = echo(evicting(4));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let clients: Vec<TcpStream> = (0..100).map(|_| connect(addr)).collect();
    rig.until(|rig| rig.manager.stats().accepted == 100);
    rig.quiet();
    let stats = rig.manager.stats();
    let evicted = stats.closed(CloseReason::Evicted);
    assert_eq!((stats.live, stats.peak, evicted + stats.busy), (4, 4, 96), "{stats}");
    rig.pass(PAUSE);
    exchange(&mut rig, &mut connect(addr));
    assert_eq!(rig.manager.stats().closed(CloseReason::Evicted), evicted + 1);
    drop(clients);
}

/// Connects from a loopback address. On Linux all of 127/8 is local.
fn connect_from(from: &str, to: SocketAddr) -> TcpStream {
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from.parse().unwrap(), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    socket.into()
}

#[test]
fn max_per_peer_limits_one_address_and_not_the_others() {
    let mut rig = echo(lines().max_per_peer(2));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let [mut first, mut second, mut third] = [(); 3].map(|()| connect_from("127.0.0.2", addr));
    let mut other = connect_from("127.0.0.3", addr);
    for client in [&mut first, &mut second, &mut other] {
        exchange(&mut rig, client);
    }
    assert_eq!(rig.read_to_end(&mut third).unwrap(), ERROR_SERVER_BUSY.as_bytes());
    let stats = rig.manager.stats();
    assert_eq!(
        (stats.refused_per_peer, stats.busy, stats.accepted, stats.live),
        (1, 0, 4, 3),
        "{stats}"
    );
    drop(first);
    rig.until(|rig| rig.manager.stats().live == 2);
    exchange(&mut rig, &mut connect_from("127.0.0.2", addr));
}

#[test]
fn a_connection_above_max_per_peer_evicts_nothing() {
    let mut rig = echo(evicting(2).max_per_peer(1));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut clients = ["127.0.0.2", "127.0.0.3"].map(|from| connect_from(from, addr));
    for client in &mut clients {
        exchange(&mut rig, client);
    }
    let mut third = connect_from("127.0.0.3", addr);
    assert_eq!(rig.read_to_end(&mut third).unwrap(), ERROR_SERVER_BUSY.as_bytes());
    assert_eq!((rig.manager.stats().refused_per_peer, rig.manager.stats().closed_total()), (1, 0));
    exchange(&mut rig, &mut connect_from("127.0.0.4", addr));
    assert_eq!(rig.record.closed(), [CloseReason::Evicted]);
}

#[test]
fn max_per_peer_ignores_put_unix_and_earlier_connections() {
    let mut rig = echo(lines());
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let _early = [(); 3].map(|()| connect(addr));
    rig.until(|rig| rig.manager.stats().live == 3);
    rig.manager.set_config(lines().max_per_peer(1).stop_deadline(PAUSE)).unwrap();
    let _put = [(); 2].map(|()| rig.connect());
    let path = std::env::temp_dir().join(format!("pool-manager-peers-{}", std::process::id()));
    rig.manager.listen_unix(&path).unwrap();
    let _local = [(); 2].map(|()| UnixStream::connect(&path).unwrap());
    exchange(&mut rig, &mut connect(addr));
    rig.until(|rig| rig.manager.stats().accepted == 6);
    assert_eq!(rig.manager.stats().refused_per_peer, 0);
    let _counted = connect(addr);
    let mut one_more = connect(addr);
    assert_eq!(rig.read_to_end(&mut one_more).unwrap(), ERROR_SERVER_BUSY.as_bytes());
    // A restart resets the counts.
    rig.manager.stop().unwrap();
    rig.manager.start().unwrap();
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    exchange(&mut rig, &mut connect(addr));
}

#[test]
fn a_connection_accepted_in_a_stop_is_not_evicted() {
    let mut rig = echo(evicting(1).stop_deadline(PAUSE * 5));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    // One turn does not accept this many clients.
    let clients: Vec<TcpStream> = (0..100).map(|_| connect(addr)).collect();
    rig.manager.stop().unwrap();
    let stats = rig.manager.stats();
    assert_eq!((stats.closed(CloseReason::Evicted), stats.put, stats.busy), (0, 1, 99), "{stats}");
    drop(clients);
}
