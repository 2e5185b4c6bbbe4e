//! Newcomers when there is no place: who goes for them, and who is sent away.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pool_manager::{CloseReason, Config, Conn, ERROR_SERVER_BUSY, Framing, Overload};

use socket2::Type;

use crate::support::{PATIENCE, Rig, Seen, connect, echo, pair, rig};

const LONG: Duration = Duration::from_secs(600);
/// More than a tick, so that who spoke later has moved later.
const PAUSE: Duration = Duration::from_millis(4);

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG)
}

fn evicting(max: usize) -> Config {
    lines().max_workers(max).overload(Overload::EvictIdle)
}

/// Says a line, and turns until it comes back; then a moment passes.
#[track_caller]
fn converse<F>(rig: &mut Rig<F>, client: &mut TcpStream)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()>,
{
    client.write_all(b"line\n").unwrap();
    assert_eq!(rig.read_exact(client, 4), b"line");
    rig.pass(PAUSE);
}

#[test]
fn the_connection_that_is_idle_longest_makes_a_place_for_a_new_one() {
    let mut rig = echo(evicting(3));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut clients = [(); 3].map(|()| connect(addr));
    for index in [0, 1, 2, 0] {
        converse(&mut rig, &mut clients[index]);
    }
    let mut newcomer = connect(addr);
    converse(&mut rig, &mut newcomer);
    assert_eq!(rig.read_to_end(&mut clients[1]).unwrap(), b"", "the second spoke longest ago");
    assert_eq!(rig.record.closed(), [CloseReason::Evicted]);
    converse(&mut rig, &mut clients[0]);
    converse(&mut rig, &mut clients[2]);
    let stats = rig.manager.stats();
    assert_eq!((stats.closed(CloseReason::Evicted), stats.busy, stats.live), (1, 0, 3), "{stats}");
}

#[test]
fn who_never_spoke_is_idle_as_well_and_hears_no_callback() {
    let mut rig = echo(evicting(1));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let _silent = connect(addr);
    rig.until(|rig| rig.manager.stats().live == 1);
    rig.pass(PAUSE);
    converse(&mut rig, &mut connect(addr));
    assert_eq!(rig.record.closed(), [CloseReason::Evicted]);
    let called = rig.record.all().into_iter().filter(|seen| matches!(seen, Seen::Request(..)));
    assert_eq!(called.count(), 1);
}

#[test]
fn who_has_something_under_way_stays_and_the_newcomer_is_told() {
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
    let mut newcomer = connect(addr);
    assert_eq!(rig.read_to_end(&mut newcomer).unwrap(), ERROR_SERVER_BUSY.as_bytes());
    collecting.write_all(b"ne\n").unwrap();
    assert_eq!(rig.read_exact(&mut collecting, 11), b"half a line");
    let stats = rig.manager.stats();
    assert_eq!((stats.closed_total(), stats.busy, stats.live), (0, 1, 2), "{stats}");
}

#[test]
fn put_says_busy_whatever_listeners_do() {
    let mut rig = echo(evicting(1));
    let (_client, _) = rig.connect();
    let refused = rig.manager.put(pair().1).expect_err("busy");
    assert!(refused.is_busy());
    assert_eq!(rig.manager.stats().live, 1);
}

#[test]
fn a_flood_of_newcomers_leaves_as_many_as_there_may_be() {
    let mut rig = echo(evicting(4));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let clients: Vec<TcpStream> = (0..100).map(|_| connect(addr)).collect();
    rig.until(|rig| rig.manager.stats().accepted == 100);
    rig.quiet();
    let stats = rig.manager.stats();
    let evicted = stats.closed(CloseReason::Evicted);
    assert_eq!((stats.live, stats.peak, evicted + stats.busy), (4, 4, 96), "{stats}");
    rig.pass(PAUSE);
    converse(&mut rig, &mut connect(addr));
    assert_eq!(rig.manager.stats().closed(CloseReason::Evicted), evicted + 1);
    drop(clients);
}

/// Connects from an address of this machine's own: all of 127/8 is.
fn connect_from(from: &str, to: SocketAddr) -> TcpStream {
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from.parse().unwrap(), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    socket.into()
}

#[test]
fn one_address_has_no_more_connections_than_it_may_and_others_are_not_in_the_way() {
    let mut rig = echo(lines().max_per_peer(2));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let [mut first, mut second, mut third] = [(); 3].map(|()| connect_from("127.0.0.2", addr));
    let mut other = connect_from("127.0.0.3", addr);
    for client in [&mut first, &mut second, &mut other] {
        converse(&mut rig, client);
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
    converse(&mut rig, &mut connect_from("127.0.0.2", addr));
}

#[test]
fn one_too_many_of_a_peer_takes_nobody_s_place() {
    let mut rig = echo(evicting(2).max_per_peer(1));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut clients = ["127.0.0.2", "127.0.0.3"].map(|from| connect_from(from, addr));
    for client in &mut clients {
        converse(&mut rig, client);
    }
    let mut third = connect_from("127.0.0.3", addr);
    assert_eq!(rig.read_to_end(&mut third).unwrap(), ERROR_SERVER_BUSY.as_bytes());
    assert_eq!((rig.manager.stats().refused_per_peer, rig.manager.stats().closed_total()), (1, 0));
    converse(&mut rig, &mut connect_from("127.0.0.4", addr));
    assert_eq!(rig.record.closed(), [CloseReason::Evicted]);
}

#[test]
fn who_was_put_or_came_by_a_path_or_before_the_limit_is_not_counted() {
    let mut rig = echo(lines());
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let _early = [(); 3].map(|()| connect(addr));
    rig.until(|rig| rig.manager.stats().live == 3);
    rig.manager.set_config(lines().max_per_peer(1).stop_deadline(PAUSE)).unwrap();
    let _put = [(); 2].map(|()| rig.connect());
    let path = std::env::temp_dir().join(format!("pool-manager-peers-{}", std::process::id()));
    rig.manager.listen_unix(&path).unwrap();
    let _local = [(); 2].map(|()| UnixStream::connect(&path).unwrap());
    converse(&mut rig, &mut connect(addr));
    rig.until(|rig| rig.manager.stats().accepted == 6);
    assert_eq!(rig.manager.stats().refused_per_peer, 0);
    let _counted = connect(addr);
    let mut one_more = connect(addr);
    assert_eq!(rig.read_to_end(&mut one_more).unwrap(), ERROR_SERVER_BUSY.as_bytes());
    // A restart remembers nobody.
    rig.manager.stop().unwrap();
    rig.manager.start().unwrap();
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    converse(&mut rig, &mut connect(addr));
}

#[test]
fn who_is_accepted_in_a_stop_makes_way_for_nobody() {
    let mut rig = echo(evicting(1).stop_deadline(PAUSE * 5));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    // More than are accepted in one turn.
    let clients: Vec<TcpStream> = (0..100).map(|_| connect(addr)).collect();
    rig.manager.stop().unwrap();
    let stats = rig.manager.stats();
    assert_eq!((stats.closed(CloseReason::Evicted), stats.put, stats.busy), (0, 1, 99), "{stats}");
    drop(clients);
}
