//! When a connection's time is up, and what becomes of it then.
//!
//! Where two connections can be compared, the order in which they end is the assertion: it holds
//! on a machine that is as slow as it likes.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use pool_manager::{Cause, CloseReason, Commands, Config, Conn, ConnId, Framing, Handler, Manager};

use crate::support::{Rig, echo, pair, rig, unix_pair};

const LATER: Duration = Duration::from_secs(600);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn idle(deadline: Duration) -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(deadline)
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LATER)
}

/// Lets time pass in which the manager is not turn_ended, as if the process were suspended.
fn suspend(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        thread::park_timeout(time.saturating_sub(began.elapsed()));
    }
}

/// The ids of those that ended, in order, once `count` have.
fn ended<F>(rig: &mut Rig<F>, count: usize) -> Vec<ConnId>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()>,
{
    rig.until(|rig| rig.record.ends().len() >= count);
    rig.record.ends().iter().map(|end| end.id).collect()
}

#[test]
fn a_served_peer_that_falls_silent_is_closed_without_a_callback() {
    let mut rig = echo(idle(millis(60)));
    let (mut client, _) = rig.connect();
    client.write_all(b"ping").unwrap();
    assert_eq!(rig.read_exact(&mut client, 4), b"ping");
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"");
    assert_eq!(rig.record.requests(), [(Cause::Drained, b"ping".to_vec())]);
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
}

#[test]
fn a_peer_that_never_spoke_is_delivered_once_and_empty_and_gets_its_reply() {
    for framing in [Framing::Filled, Framing::Drained, Framing::Delimited(b'\n')] {
        let config = idle(millis(40)).framing(framing);
        let mut rig = rig(config, |conn: &mut Conn<'_>, body: &[u8]| {
            assert_eq!(conn.cause(), Cause::Expired);
            conn.write_all(if body.is_empty() { b"ERROR" } else { b"OK" })
        });
        let (mut client, _) = rig.connect();
        assert_eq!(rig.read_to_end(&mut client).unwrap(), b"ERROR");
        assert_eq!(rig.record.requests(), [(Cause::Expired, vec![])]);
        assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    }
}

#[test]
fn what_is_held_at_a_deadline_is_delivered_answered_and_then_closed() {
    for (framing, sent, body) in [
        (Framing::Filled, &b"part"[..], &b"part"[..]),
        (Framing::Delimited(b'\n'), b"part", b"part"),
        (
            Framing::LengthPrefixed { prefix: pool_manager::Prefix::U16Be, limit: 0 },
            b"\0\x20part",
            b"part",
        ),
    ] {
        let mut rig = echo(idle(millis(40)).framing(framing.clone()));
        let (mut client, _) = rig.connect();
        client.write_all(sent).unwrap();
        assert_eq!(rig.read_to_end(&mut client).unwrap(), body, "{framing:?}");
        assert_eq!(rig.record.requests(), [(Cause::Expired, body.to_vec())]);
        assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    }
}

#[test]
fn a_deadline_is_never_early_and_soon_after_its_time() {
    let deadline = millis(20);
    let mut rig = echo(idle(deadline));
    for offset in 0..8 {
        // Somewhere within a millisecond.
        suspend(Duration::from_micros(offset * 137));
        let began = Instant::now();
        let (_client, _) = rig.connect();
        let before = rig.record.ends().len();
        rig.until(|rig| rig.record.ends().len() > before);
        let took = began.elapsed();
        assert!(took >= deadline, "{took:?} is early");
        assert!(took < deadline + millis(500), "{took:?} is late");
        assert!(rig.record.ends()[before].age + millis(1) >= deadline);
    }
}

#[test]
fn every_byte_moves_the_idle_deadline() {
    let mut rig = echo(idle(millis(300)).framing(Framing::Filled));
    let (mut talker, talker_id) = rig.connect();
    let (_silent, silent_id) = rig.connect();
    let began = Instant::now();
    while rig.record.ends().is_empty() {
        talker.write_all(b".").unwrap();
        rig.pass(millis(20));
    }
    assert!(began.elapsed() >= millis(299));
    assert_eq!(ended(&mut rig, 2), [silent_id, talker_id]);
}

#[test]
fn bytes_that_go_out_move_the_idle_deadline_too() {
    let mut target = None;
    let mut rig = rig(idle(millis(200)), move |conn: &mut Conn<'_>, body: &[u8]| {
        match target {
            None => target = Some(conn.id()),
            Some(target) => conn.commands().send(target, body)?,
        }
        Ok(())
    });
    let (mut reader, reader_id) = rig.connect();
    reader.write_all(b"me").unwrap();
    rig.requests(1);
    let (_between, between_id) = rig.connect();
    suspend(millis(20));
    let (mut sender, sender_id) = rig.connect();
    sender.write_all(b"news").unwrap();
    assert_eq!(rig.read_exact(&mut reader, 4), b"news");
    assert_eq!(ended(&mut rig, 3)[0], between_id);
    assert!(rig.record.ends().iter().any(|end| end.id == reader_id && end.bytes_out == 4));
    assert!(rig.record.ends().iter().any(|end| end.id == sender_id));
}

/// Two workers of one connection are both told of its bytes, and one of them takes them all.
#[test]
fn readiness_without_bytes_moves_no_deadline() {
    let mut rig = rig(idle(millis(250)), |_: &mut Conn<'_>, _: &[u8]| Ok(()));
    let (mut client, ours) = pair();
    rig.manager.put(ours.try_clone().unwrap()).unwrap();
    rig.manager.put(ours).unwrap();
    rig.quiet();
    suspend(millis(20));
    let (_between, between_id) = rig.connect();
    rig.quiet();
    suspend(millis(20));
    client.write_all(b"for one").unwrap();
    rig.requests(1);
    rig.quiet();
    assert!(rig.manager.stats().reads >= 2, "both have tried");
    let order = ended(&mut rig, 3);
    let bytes: Vec<u64> = rig.record.ends().iter().map(|end| end.bytes_in).collect();
    assert_eq!((order[1], &bytes[..]), (between_id, &[0, 0, 7][..]), "{order:?}");
}

/// A Unix socket says that it is writable whenever its peer has read.
#[test]
fn a_writable_event_moves_no_deadline() {
    let mut rig = echo(idle(millis(250)));
    let (mut peer, ours) = UnixStream::pair().unwrap();
    let first = rig.manager.put(ours).unwrap();
    peer.write_all(b"ping").unwrap();
    rig.requests(1);
    suspend(millis(20));
    let (_between, between) = rig.connect();
    rig.quiet();
    suspend(millis(20));
    let events = rig.manager.stats().events;
    peer.read_exact(&mut [0; 4]).unwrap();
    rig.quiet();
    if cfg!(not(mio_unsupported_force_poll_poll)) {
        assert!(rig.manager.stats().events > events, "there was an event");
    }
    assert_eq!(ended(&mut rig, 2), [first, between]);
}

/// In the Go package every byte re-armed the one deadline there was.
#[test]
fn one_byte_at_a_time_does_not_hold_a_worker_past_the_request_deadline() {
    let deadline = millis(120);
    let config = Config::new().clients_deadline(LATER).request_deadline(deadline);
    for framing in [Framing::Filled, Framing::Delimited(b'\n')] {
        let mut rig = echo(config.clone().framing(framing));
        let (mut client, _) = rig.connect();
        suspend(millis(20));
        let (began, mut sent) = (Instant::now(), 0);
        while rig.record.ends().is_empty() {
            if client.write_all(b".").is_ok() {
                sent += 1;
            }
            rig.pass(millis(5));
            assert!(sent < 4000, "it drips for ever");
        }
        let took = began.elapsed();
        assert!(took >= deadline, "{took:?}: counted from the first byte");
        let requests = rig.record.requests();
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].0, Cause::Expired);
        assert!(requests[0].1.len() >= 2, "what had come by then");
        assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    }
}

#[test]
fn the_request_deadline_does_not_run_before_the_first_byte() {
    let config = lines().request_deadline(millis(40));
    let mut rig = echo(config);
    let (mut client, _) = rig.connect();
    rig.pass(millis(100));
    assert_eq!(rig.record.ends(), []);
    client.write_all(b"line\n").unwrap();
    assert_eq!(rig.read_exact(&mut client, 4), b"line");
    rig.pass(millis(100));
    assert_eq!(rig.record.ends(), [], "nor between two requests");
}

#[test]
fn no_request_deadline_lets_a_request_take_as_long_as_it_likes() {
    let mut rig = echo(lines().request_deadline(Duration::ZERO));
    let (mut client, _) = rig.connect();
    client.write_all(b".").unwrap();
    rig.bytes_in(1);
    let next = rig.manager.next_timeout().unwrap();
    assert!(next > Duration::from_secs(60), "{next:?}: the idle one alone");
    rig.pass(millis(60));
    client.write_all(b"\n").unwrap();
    assert_eq!(rig.requests(1), [(Cause::Framed, b".".to_vec())]);
}

#[test]
fn each_request_has_a_total_deadline_of_its_own() {
    let deadline = millis(250);
    let mut rig = echo(lines().request_deadline(deadline));
    let (mut client, _) = rig.connect();
    let began = Instant::now();
    client.write_all(b"x").unwrap();
    let mut lines = 0;
    while began.elapsed() < 2 * deadline {
        rig.pass(millis(40));
        // The end of one request and the beginning of the next.
        client.write_all(b"\nx").unwrap();
        lines += 1;
        rig.requests(lines);
    }
    assert_eq!(rig.record.ends(), [], "none took that long by itself");
    let last = Instant::now();
    rig.first_close();
    assert!(last.elapsed() + millis(1) >= deadline);
    assert_eq!(rig.record.requests().last(), Some(&(Cause::Expired, b"x".to_vec())));
}

#[test]
fn a_connection_may_have_an_idle_deadline_of_its_own() {
    let mut rig = rig(idle(millis(100)), |conn: &mut Conn<'_>, body: &[u8]| {
        let own: u64 = std::str::from_utf8(body).unwrap().trim().parse().unwrap();
        conn.set_idle_deadline(millis(own));
        Ok(())
    });
    let mut clients = Vec::new();
    for own in ["220", "30", "100000", "0"] {
        let (mut client, id) = rig.connect();
        client.write_all(own.as_bytes()).unwrap();
        clients.push((client, id));
    }
    let began = Instant::now();
    let ids = |picked: [usize; 3]| picked.map(|index| clients[index].1);
    assert_eq!(ended(&mut rig, 3), ids([1, 3, 0]), "30, the configured 100, 220");
    assert!(began.elapsed() >= millis(219));
    rig.pass(millis(50));
    assert_eq!(rig.manager.stats().live, 1);
}

#[test]
fn a_paused_connection_s_clocks_stand_still_and_start_anew() {
    let deadline = millis(80);
    let mut rig = rig(idle(deadline), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.pause();
        Ok(())
    });
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    client.write_all(b"wait").unwrap();
    rig.requests(1);
    rig.pass(2 * deadline);
    assert_eq!(rig.record.ends(), []);
    assert_eq!(rig.manager.next_timeout(), None, "nothing is planned");
    handle.resume(id).unwrap();
    let began = Instant::now();
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
}

/// The total deadline is a clock as well.
#[test]
fn a_request_that_was_paused_in_the_middle_has_its_time_when_resumed() {
    let deadline = millis(80);
    let mut rig = rig(lines().request_deadline(deadline), |conn: &mut Conn<'_>, body: &[u8]| {
        if body == b"pause" {
            conn.pause();
        }
        conn.write_all(body)
    });
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    client.write_all(b"pause\nhalf").unwrap();
    assert_eq!(rig.read_exact(&mut client, 5), b"pause");
    rig.pass(2 * deadline);
    assert_eq!(rig.record.ends(), []);
    handle.resume(id).unwrap();
    rig.quiet();
    client.write_all(b" a line\n").unwrap();
    assert_eq!(rig.requests(2)[1], (Cause::Framed, b"half a line".to_vec()));
    assert_eq!(rig.record.ends(), []);
}

#[test]
fn a_suspended_process_does_not_punish_peers_who_spoke() {
    let deadline = millis(300);
    let mut rig = echo(idle(deadline).request_deadline(deadline));
    let mut speakers: Vec<TcpStream> = (0..10).map(|_| rig.connect().0).collect();
    let (_silent, silent_id) = rig.connect();
    rig.quiet();
    for speaker in &mut speakers {
        speaker.write_all(b"in time").unwrap();
    }
    suspend(deadline + millis(20));
    rig.turn();
    assert_eq!(rig.record.ends().iter().map(|end| end.id).collect::<Vec<_>>(), [silent_id]);
    for speaker in &mut speakers {
        assert_eq!(rig.read_exact(speaker, 7), b"in time");
    }
}

/// More were ready than one wait returns, so the last read is what saves the rest.
#[test]
fn a_suspended_process_hears_even_those_that_one_wait_does_not_report() {
    let deadline = millis(425);
    let mut rig = echo(idle(deadline));
    let began = Instant::now();
    let mut peers: Vec<UnixStream> = (0..1200)
        .map(|_| {
            let (peer, ours) = UnixStream::pair().unwrap();
            rig.manager.put(ours).unwrap();
            peer
        })
        .collect();
    // The wheel has sorted the first of them to the millisecond: it does so at multiples of 64.
    rig.pass(millis(395).saturating_sub(began.elapsed()));
    // Those whose time is up first are reported last.
    for peer in peers.iter_mut().rev() {
        peer.write_all(b"in time").unwrap();
    }
    let in_time = began.elapsed() < deadline;
    suspend(deadline);
    rig.until(|rig| rig.manager.stats().requests_total() == 1200);
    if in_time {
        assert_eq!(rig.manager.stats().requests(Cause::Drained), 1200);
    }
}

#[test]
fn data_and_deadline_in_the_same_turn_count_as_data() {
    let deadline = millis(40);
    let mut rig = echo(idle(deadline).framing(Framing::Delimited(b'\n')));
    let (mut half, half_id) = rig.connect();
    let (mut whole, whole_id) = rig.connect();
    let (mut gone, gone_id) = rig.connect();
    for (client, bytes) in [(&mut half, &b"ha"[..]), (&mut whole, b"who"), (&mut gone, b"go")] {
        client.write_all(bytes).unwrap();
    }
    rig.bytes_in(7);
    whole.write_all(b"le\n").unwrap();
    half.write_all(b"lf").unwrap();
    gone.write_all(b"ne").unwrap();
    gone.shutdown(Shutdown::Write).unwrap();
    suspend(2 * deadline);
    rig.turn();
    assert_eq!(rig.read_exact(&mut whole, 5), b"whole");
    assert_eq!(ended(&mut rig, 3)[0], gone_id);
    let causes: Vec<_> = rig.record.requests();
    assert!(causes.contains(&(Cause::Framed, b"whole".to_vec())));
    assert!(causes.contains(&(Cause::Eof, b"gone".to_vec())));
    assert!(causes.contains(&(Cause::Expired, b"half".to_vec())), "after the bytes moved it");
    assert_eq!(causes.len(), 3);
    assert!(rig.record.ends().iter().any(|end| end.id == half_id));
    assert!(rig.record.ends().iter().any(|end| end.id == whole_id));
}

#[test]
fn many_equal_deadlines_all_fire_in_batches_with_service_in_between() {
    const MANY: usize = 2_000;
    let deadline = millis(300);
    let mut rig = rig(idle(LATER), |_: &mut Conn<'_>, _: &[u8]| Ok(()));
    let peers: Vec<UnixStream> = (0..MANY)
        .map(|_| {
            let (peer, ours) = UnixStream::pair().unwrap();
            rig.manager.put(ours).unwrap();
            peer
        })
        .collect();
    let (mut busy, busy_id) = rig.connect();
    rig.turn();
    assert_eq!(rig.record.ends(), []);
    // Only now, however long it took to put so many.
    rig.manager.set_config(idle(deadline)).unwrap();
    suspend(deadline);
    busy.write_all(b"hello").unwrap();
    let (mut expired, mut turns) = (0, 0);
    while expired < MANY {
        let turn = rig.manager.turn(None).unwrap();
        assert!(turn.expired <= 256, "{} in one turn", turn.expired);
        if expired + turn.expired < MANY {
            assert_eq!(rig.manager.next_timeout(), Some(Duration::ZERO), "more are due");
        }
        expired += turn.expired;
        turns += 1;
    }
    assert!((MANY / 256..MANY / 16).contains(&turns), "{turns} turns");
    assert_eq!(rig.manager.stats().expired, MANY as u64);
    assert_eq!(rig.manager.stats().requests(Cause::Expired), MANY as u64);
    assert_eq!(rig.record.requests()[0], (Cause::Drained, b"hello".to_vec()), "served first");
    assert!(rig.record.ends().iter().all(|end| end.id != busy_id));
    drop(peers);
}

#[test]
fn deadlines_beyond_every_clock_never_come_and_never_spin() {
    let day = Duration::from_secs(86_400);
    for far in [Duration::MAX, day.mul_f64(24.9), day * 50, Duration::from_secs(u64::MAX)] {
        let config = lines().clients_deadline(far).request_deadline(far).reap_interval(far);
        let mut rig = echo(config);
        let (mut client, id) = rig.connect();
        client.write_all(b"half").unwrap();
        rig.bytes_in(4);
        rig.quiet();
        let turns = rig.manager.stats().turns;
        rig.pass(millis(30));
        let turns = rig.manager.stats().turns - turns;
        assert!(turns <= 3, "{turns} turns for nothing, {far:?}");
        client.write_all(b" a line\n").unwrap();
        assert_eq!(rig.requests(1), [(Cause::Framed, b"half a line".to_vec())]);
        rig.manager.handle().close(id).unwrap();
        assert_eq!(rig.first_close(), CloseReason::Requested);
    }
}

#[test]
fn a_connection_s_own_deadline_may_be_beyond_every_clock() {
    let mut rig = rig(idle(millis(40)), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.set_idle_deadline(Duration::MAX);
        Ok(())
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"patience").unwrap();
    rig.requests(1);
    rig.pass(millis(100));
    assert_eq!(rig.record.ends(), []);
}

#[test]
fn the_shortest_deadlines_come_at_once_and_only_once() {
    for short in [Duration::from_nanos(1), Duration::from_micros(999), millis(1)] {
        let mut rig = echo(idle(short).request_deadline(short));
        let began = Instant::now();
        let (_client, _) = rig.connect();
        assert_eq!(rig.first_close(), CloseReason::Expired, "{short:?}");
        assert!(began.elapsed() >= short);
        assert_eq!(rig.record.requests(), [(Cause::Expired, vec![])]);
        assert!(rig.manager.stats().turns <= 6, "{} turns", rig.manager.stats().turns);
    }
}

#[test]
fn the_next_deadline_says_when_to_call_again() {
    let deadline = millis(100);
    let mut rig = echo(idle(deadline).request_deadline(Duration::ZERO));
    assert_eq!(rig.manager.next_timeout(), None);
    rig.turn();
    assert_eq!(rig.manager.next_timeout(), None, "nothing is planned");
    let (mut client, _) = rig.connect();
    let next = rig.manager.next_timeout().unwrap();
    assert!(next <= deadline + millis(1), "{next:?}");
    // As an embedder would: wait as long as it says, then turn without waiting.
    let (mut calls, began) = (0, Instant::now());
    while rig.record.ends().is_empty() {
        let next = rig.manager.next_timeout().expect("something is planned");
        suspend(next);
        rig.turn();
        let next = rig.manager.next_timeout();
        assert!(next.is_none_or(|next| next <= deadline + millis(1)), "{next:?}");
        calls += 1;
    }
    assert!(calls <= 6, "{calls} calls for one deadline");
    assert!(began.elapsed() < deadline + millis(500));
    assert_eq!(rig.manager.stats().expired, 1);
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"");
}

#[test]
fn work_that_is_left_is_due_at_once() {
    let mut rig = echo(lines().buffer_size(8192));
    let (mut client, _) = rig.connect();
    client.write_all(&b"x\n".repeat(1000)).unwrap();
    rig.bytes_in(2);
    assert!(rig.record.requests().len() < 1000, "more than one batch");
    assert_eq!(rig.manager.next_timeout(), Some(Duration::ZERO));
    let turn = rig.manager.turn(None).unwrap();
    assert_eq!((turn.served, rig.manager.next_timeout()), (1, Some(Duration::ZERO)));
    rig.requests(1000);
    rig.quiet();
    assert!(rig.manager.next_timeout().unwrap() > millis(1000));
}

#[test]
fn changed_deadlines_hold_for_connections_that_are_there() {
    let mut rig = echo(lines());
    let (_silent, _) = rig.connect();
    let (mut half, half_id) = rig.connect();
    half.write_all(b"half").unwrap();
    rig.bytes_in(4);
    rig.pass(millis(20));
    rig.manager.set_config(lines().request_deadline(millis(60))).unwrap();
    assert_eq!(ended(&mut rig, 1), [half_id]);
    rig.manager.set_config(lines().clients_deadline(millis(60))).unwrap();
    assert!(rig.manager.next_timeout().unwrap() <= millis(60));
    rig.until(|rig| rig.manager.stats().live == 0);

    let mut rig = echo(idle(millis(60)));
    let (_silent, _) = rig.connect();
    rig.manager.set_config(lines()).unwrap();
    rig.pass(millis(150));
    assert_eq!(rig.record.ends(), [], "a later deadline holds as well");
}

#[test]
fn a_waiting_turn_does_not_spin() {
    for deadline in [millis(70), millis(100), millis(131), millis(200)] {
        let mut rig = echo(idle(deadline));
        let (mut client, _) = rig.connect();
        client.write_all(b"ping").unwrap();
        rig.requests(1);
        rig.quiet();
        let before = rig.manager.stats();
        while rig.record.ends().is_empty() {
            rig.manager.turn(None).unwrap();
        }
        let turns = rig.manager.stats().turns - before.turns;
        assert!(turns <= 6, "{turns} turns in {deadline:?}");
        let reads = rig.manager.stats().reads - before.reads;
        assert!(reads <= 2, "{reads} reads: a last one, and one to see whether it lingers");
    }
}

#[test]
fn a_turn_waits_no_longer_than_it_is_told() {
    let mut rig = echo(idle(LATER));
    let (_client, _) = rig.connect();
    rig.quiet();
    let began = Instant::now();
    rig.manager.turn(Some(millis(30))).unwrap();
    let took = began.elapsed();
    assert!((millis(30)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

#[test]
fn an_expired_one_does_not_disturb_its_successor() {
    let mut rig = echo(idle(millis(60)));
    let (_first, first) = rig.connect();
    suspend(millis(30));
    rig.manager.handle().close(first).unwrap();
    rig.first_close();
    let began = Instant::now();
    let (mut client, second) = rig.connect();
    assert_eq!(first.as_u64() as u32, second.as_u64() as u32, "the same slot");
    assert_eq!(ended(&mut rig, 2), [first, second]);
    assert!(began.elapsed() >= millis(60), "its own deadline, not that of the first");
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"");
}

#[test]
fn an_expired_request_gets_time_for_a_long_reply() {
    const REPLY: usize = 1_000_000;
    let config = Config::new().clients_deadline(millis(150)).request_deadline(Duration::ZERO);
    let mut rig = rig(config, |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&vec![b'r'; REPLY]));
    let (mut client, ours) = unix_pair();
    rig.manager.put(ours).unwrap();
    rig.requests(1);
    assert_eq!(rig.record.ends(), [], "the reply is on its way");
    assert_eq!(rig.read_to_end(&mut client).unwrap().len(), REPLY);
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
}

/// Counts its ticks; panics in the second, and stops in the fourth.
struct Ticking(Rc<Cell<u32>>);

impl Handler for Ticking {
    type Session = ();

    fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }

    fn tick(&mut self, commands: &mut Commands) {
        self.0.set(self.0.get() + 1);
        match self.0.get() {
            2 => std::panic::panic_any("as planned"),
            4 => commands.stop().unwrap(),
            _ => {}
        }
    }
}

#[test]
fn a_handler_is_called_every_so_often_though_nobody_is_there() {
    let (ticks, interval) = (Rc::new(Cell::new(0)), millis(30));
    let config = Config::new().tick(interval);
    let mut manager = Manager::with_handler(config, Ticking(ticks.clone())).unwrap();
    let began = Instant::now();
    manager.start().unwrap();
    manager.run().unwrap();
    assert!(began.elapsed() >= interval * 4, "{:?}", began.elapsed());
    let stats = manager.stats();
    assert_eq!((ticks.get(), stats.ticks, stats.panics), (4, 4, 1));
    assert!(stats.turns < 30, "it sleeps in between: {stats}");
    manager.set_config(Config::new()).unwrap();
    manager.start().unwrap();
    assert_eq!(manager.next_timeout(), None);
}

#[test]
fn a_configuration_that_is_set_again_and_again_does_not_put_off_the_tick() {
    let (ticks, config) = (Rc::new(Cell::new(0)), Config::new().tick(millis(40)));
    let mut manager = Manager::with_handler(config.clone(), Ticking(ticks.clone())).unwrap();
    manager.start().unwrap();
    let began = Instant::now();
    while ticks.get() == 0 && began.elapsed() < crate::support::PATIENCE {
        manager.turn(Some(millis(5))).unwrap();
        manager.set_config(config.clone()).unwrap();
    }
    assert_eq!(ticks.get(), 1);
    manager.set_config(config.tick(millis(3_600_000))).unwrap();
    assert!(manager.next_timeout() > Some(millis(3_000_000)), "another one is planned anew");
}
