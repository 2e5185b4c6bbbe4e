//! Rate limits. A request above the limit is delayed, but not lost. While it is delayed, the
//! deadlines of its connection are suspended.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use pool_manager::{Cause, CloseReason, Config, Conn, Framing, RateLimit};

use crate::support::{echo, rig, unix_pair};

const LONG: Duration = Duration::from_secs(600);

fn lines(limit: RateLimit) -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG).rate_limit(limit)
}

#[test]
fn a_burst_is_served_at_once_and_the_rest_at_its_rate() {
    let mut rig = echo(lines(RateLimit::per_second(100).burst(4)));
    let (mut client, _) = rig.connect();
    let began = Instant::now();
    client.write_all(&b"x\n".repeat(14)).unwrap();
    rig.requests(4);
    rig.requests(14);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(98), "ten more at 100 a second took {took:?}");
    assert_eq!(rig.read_exact(&mut client, 14), b"x".repeat(14));
    let stats = rig.manager.stats();
    assert!((1..=10).contains(&stats.throttled) && stats.expired == 0, "{stats}");
}

#[test]
fn a_connection_above_its_rate_does_not_delay_one_within_its_rate() {
    let mut rig = echo(lines(RateLimit::per_second(1).burst(3)));
    let [(mut fast, _), (mut slow, _)] = [(); 2].map(|()| rig.connect());
    fast.write_all(&b"f\n".repeat(50)).unwrap();
    rig.requests(3);
    for _ in 0..3 {
        slow.write_all(b"s\n").unwrap();
        assert_eq!(rig.read_exact(&mut slow, 1), b"s");
    }
    assert_eq!(rig.manager.stats().throttled, 1);
    assert!(rig.turns_in(Duration::from_millis(200)) < 8, "the loop sleeps meanwhile");
}

#[test]
fn delayed_requests_cause_back_pressure_once_the_buffer_is_full() {
    let mut rig = echo(lines(RateLimit::per_second(1)).buffer_size(1_000));
    let (mut client, ours) = unix_pair();
    rig.manager.put(ours).unwrap();
    client.set_nonblocking(true).unwrap();
    let line = [&[b'x'; 99][..], b"\n"].concat();
    let mut wrote = 0;
    while wrote < 4 << 20 {
        match client.write(&line) {
            Ok(count) => wrote += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
        rig.turn();
    }
    assert!(wrote < 4 << 20, "the peer sees no back-pressure");
    let stats = rig.manager.stats();
    assert!(stats.bytes_in <= 2_000, "{} bytes were read", stats.bytes_in);
}

#[test]
fn deadlines_are_suspended_while_a_request_is_delayed() {
    let deadline = Duration::from_millis(40);
    let config = lines(RateLimit::per_second(5));
    let mut rig = echo(config.clients_deadline(deadline).request_deadline(deadline));
    let (mut client, _) = rig.connect();
    client.write_all(b"one\ntwo\n").unwrap();
    let requests = rig.requests(2);
    assert!(requests.iter().all(|(cause, _)| *cause == Cause::Framed), "{requests:?}");
    let served = Instant::now();
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert!(
        served.elapsed() >= Duration::from_millis(35),
        "the idle deadline counts from the last request"
    );
}

#[test]
fn removing_the_limit_serves_delayed_requests_at_once() {
    let mut rig = echo(lines(RateLimit::per_second(1)));
    let mut clients: Vec<TcpStream> = (0..20).map(|_| rig.connect().0).collect();
    for client in &mut clients {
        client.write_all(&b"x\n".repeat(9)).unwrap();
    }
    rig.until(|rig| rig.manager.stats().throttled == 20);
    let began = Instant::now();
    rig.manager.set_config(Config::new().framing(Framing::Delimited(b'\n'))).unwrap();
    rig.requests(180);
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
}

#[test]
fn a_new_framing_without_a_request_in_the_held_bytes_does_not_spin() {
    let mut rig = echo(lines(RateLimit::per_second(20)));
    let (mut client, _) = rig.connect();
    client.write_all(b"one\ntwo\n").unwrap();
    rig.until(|rig| rig.manager.stats().throttled == 1);
    let longer = Framing::Delimited(b'!');
    rig.manager.set_config(lines(RateLimit::per_second(20)).framing(longer)).unwrap();
    assert!(rig.turns_in(Duration::from_millis(200)) < 12);
    client.write_all(b"!").unwrap();
    assert_eq!(rig.requests(2)[1], (Cause::Framed, b"two\n".to_vec()));
}

#[test]
fn a_pause_and_an_end_of_file_are_kept_while_a_request_is_delayed() {
    let mut rig = echo(lines(RateLimit::per_second(50)));
    let (mut client, id) = rig.connect();
    client.write_all(b"one\ntwo\nthree\nrest").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    rig.until(|rig| rig.manager.stats().throttled == 1);
    rig.manager.handle().pause(id).unwrap();
    rig.pass(Duration::from_millis(60));
    assert_eq!(rig.record.requests().len(), 1, "the connection is paused");
    rig.manager.handle().resume(id).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    let bodies: Vec<_> = rig.record.requests().into_iter().map(|(_, body)| body).collect();
    assert_eq!(bodies, [&b"one"[..], b"two", b"three"]);
    assert_eq!(rig.record.incomplete(), [(Cause::Eof, b"rest".to_vec())]);
    assert_eq!(rig.record.read_closed(), 1);
}

#[test]
fn a_changed_limit_counts_earlier_requests_as_one_burst_at_most() {
    let mut rig = echo(lines(RateLimit::per_second(1).burst(100)));
    let (mut client, _) = rig.connect();
    client.write_all(&b"x\n".repeat(100)).unwrap();
    rig.requests(100);
    rig.manager.set_config(lines(RateLimit::per_second(50).burst(2))).unwrap();
    let began = Instant::now();
    client.write_all(&b"x\n".repeat(3)).unwrap();
    rig.requests(103);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(38), "the burst is used up already: {took:?}");
    assert!(took < Duration::from_millis(900), "{took:?}");
}

#[test]
fn deadlines_are_suspended_for_delayed_requests_without_a_reply_too() {
    let deadline = Duration::from_millis(40);
    let config = lines(RateLimit::per_second(5)).clients_deadline(deadline);
    let mut rig = rig(config, |_: &mut Conn<'_>, _: &[u8]| Ok(()));
    let (mut client, _) = rig.connect();
    client.write_all(b"one\ntwo\n").unwrap();
    rig.requests(2);
    let served = Instant::now();
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert!(served.elapsed() >= Duration::from_millis(35), "{:?}", served.elapsed());
}
