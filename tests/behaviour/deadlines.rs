//! The times at which deadlines expire, and the effects of an expiry on a connection.
//!
//! Where possible, a test compares two connections and asserts the order in which they close. The
//! order does not depend on the speed of the machine.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use pool_manager::{Cause, CloseReason, Commands, Config, Conn, ConnId, Framing, Handler, Manager};

use crate::support::{Rig, echo, pair, rig, unix_pair};

/// A deadline that no test reaches.
const LONG_DEADLINE: Duration = Duration::from_secs(600);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn idle(deadline: Duration) -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(deadline)
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG_DEADLINE)
}

/// Waits without running a turn, as if the process were suspended.
fn suspend(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        thread::park_timeout(time.saturating_sub(began.elapsed()));
    }
}

/// Runs turns until `count` connections have closed. Returns the ids of all closed connections, in
/// order.
fn closed_ids<F>(rig: &mut Rig<F>, count: usize) -> Vec<ConnId>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()>,
{
    rig.until(|rig| rig.record.ends().len() >= count);
    rig.record.ends().iter().map(|end| end.id).collect()
}

#[test]
fn a_served_peer_that_falls_silent_is_closed_without_a_request() {
    let mut rig = echo(idle(millis(60)));
    let (mut client, _) = rig.connect();
    client.write_all(b"ping").unwrap();
    assert_eq!(rig.read_exact(&mut client, 4), b"ping");
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"");
    assert_eq!(rig.record.requests(), [(Cause::Drained, b"ping".to_vec())]);
    assert_eq!(rig.record.incomplete(), [(Cause::Expired, vec![])]);
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
}

/// Returns the requests and the calls of `incomplete` of a connection that expires while it holds
/// these bytes, and that was not served before.
fn last_call(framing: &Framing, held: &[u8]) -> (Calls, Calls) {
    let last = vec![(Cause::Expired, held.to_vec())];
    let stream = matches!(framing, Framing::Filled | Framing::Drained);
    if stream { (last, vec![]) } else { (vec![], last) }
}

type Calls = Vec<(Cause, Vec<u8>)>;

#[test]
fn a_silent_peer_expires_with_one_empty_call_and_gets_its_reply() {
    for framing in [Framing::Filled, Framing::Drained, Framing::Delimited(b'\n')] {
        let config = idle(millis(40)).framing(framing.clone());
        let reply = |conn: &mut Conn<'_>, body: &[u8]| {
            assert_eq!(conn.cause(), Cause::Expired);
            conn.write_all(if body.is_empty() { b"ERROR" } else { b"OK" })
        };
        let mut rig = rig(config, reply).on_incomplete(reply);
        let (mut client, _) = rig.connect();
        assert_eq!(rig.read_to_end(&mut client).unwrap(), b"ERROR");
        let calls = (rig.record.requests(), rig.record.incomplete());
        assert_eq!(calls, last_call(&framing, b""), "{framing:?}");
        assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    }
}

#[test]
fn held_bytes_are_delivered_and_answered_at_a_deadline() {
    for (framing, sent) in [
        (Framing::Filled, &b"part"[..]),
        (Framing::Delimited(b'\n'), b"part"),
        (
            Framing::LengthPrefixed {
                prefix: pool_manager::Prefix::U16Be,
                limit: Framing::NO_LIMIT,
            },
            b"\0\x20part",
        ),
    ] {
        let config = idle(millis(40)).framing(framing.clone());
        let mut rig = echo(config).on_incomplete(|conn, held| conn.write_all(held));
        let (mut client, _) = rig.connect();
        client.write_all(sent).unwrap();
        assert_eq!(rig.read_to_end(&mut client).unwrap(), sent, "{framing:?}");
        let calls = (rig.record.requests(), rig.record.incomplete());
        assert_eq!(calls, last_call(&framing, sent), "{framing:?}");
        assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    }
}

#[test]
fn a_deadline_expires_never_early_and_soon_after_its_time() {
    let deadline = millis(20);
    let mut rig = echo(idle(deadline));
    for offset in 0..8 {
        // Begin at different offsets within a millisecond.
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
fn every_byte_restarts_the_idle_deadline() {
    let mut rig = echo(idle(millis(300)).framing(Framing::Filled));
    let (mut talker, talker_id) = rig.connect();
    let (_silent, silent_id) = rig.connect();
    let began = Instant::now();
    while rig.record.ends().is_empty() {
        talker.write_all(b".").unwrap();
        rig.pass(millis(20));
    }
    assert!(began.elapsed() >= millis(299));
    assert_eq!(closed_ids(&mut rig, 2), [silent_id, talker_id]);
}

#[test]
fn sent_bytes_restart_the_idle_deadline_too() {
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
    assert_eq!(closed_ids(&mut rig, 3)[0], between_id);
    assert!(rig.record.ends().iter().any(|end| end.id == reader_id && end.bytes_out == 4));
    assert!(rig.record.ends().iter().any(|end| end.id == sender_id));
}

/// Two workers have clones of the same socket. Both workers get the event. One worker reads all
/// bytes, and the other worker finds none.
#[test]
fn a_readable_event_without_bytes_restarts_no_deadline() {
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
    assert!(rig.manager.stats().reads >= 2, "both workers have tried to read");
    let order = closed_ids(&mut rig, 3);
    let bytes: Vec<u64> = rig.record.ends().iter().map(|end| end.bytes_in).collect();
    assert_eq!((order[1], &bytes[..]), (between_id, &[0, 0, 7][..]), "{order:?}");
}

/// A Unix socket reports that it is writable whenever its peer has read.
#[test]
fn a_writable_event_restarts_no_deadline() {
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
    assert_eq!(closed_ids(&mut rig, 2), [first, between]);
}

/// In the Go package every byte restarted the only deadline.
#[test]
fn one_byte_at_a_time_does_not_hold_a_worker_past_the_request_deadline() {
    let deadline = millis(120);
    let config = Config::new().clients_deadline(LONG_DEADLINE).request_deadline(deadline);
    for framing in [Framing::Filled, Framing::Delimited(b'\n')] {
        let mut rig = echo(config.clone().framing(framing.clone()));
        let (mut client, _) = rig.connect();
        suspend(millis(20));
        let (began, mut sent) = (Instant::now(), 0);
        while rig.record.ends().is_empty() {
            if client.write_all(b".").is_ok() {
                sent += 1;
            }
            rig.pass(millis(5));
            assert!(sent < 4000, "the connection never expires");
        }
        let took = began.elapsed();
        assert!(took >= deadline, "{took:?}: the deadline counts from the first byte");
        let held = vec![b'.'; rig.record.ends()[0].bytes_in as usize];
        assert!(held.len() >= 2, "more than one byte was received by then");
        let calls = (rig.record.requests(), rig.record.incomplete());
        assert_eq!(calls, last_call(&framing, &held), "{framing:?}");
        assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    }
}

#[test]
fn the_request_deadline_does_not_run_before_the_first_byte() {
    let config = lines().request_deadline(millis(40));
    let mut rig = echo(config);
    let (mut client, _) = rig.connect();
    rig.pass(millis(100));
    assert_eq!(rig.record.closed(), []);
    client.write_all(b"line\n").unwrap();
    assert_eq!(rig.read_exact(&mut client, 4), b"line");
    rig.pass(millis(100));
    assert_eq!(rig.record.closed(), [], "the deadline does not run between two requests either");
}

#[test]
fn without_a_request_deadline_a_request_may_take_any_time() {
    let mut rig = echo(lines().request_deadline(None));
    let (mut client, _) = rig.connect();
    client.write_all(b".").unwrap();
    rig.bytes_in(1);
    let next = rig.manager.next_timeout().unwrap();
    assert!(next > Duration::from_secs(60), "{next:?}: only the idle deadline is armed");
    rig.pass(millis(60));
    client.write_all(b"\n").unwrap();
    assert_eq!(rig.requests(1), [(Cause::Framed, b".".to_vec())]);
}

#[test]
fn each_request_has_its_own_total_deadline() {
    let deadline = millis(250);
    let mut rig = echo(lines().request_deadline(deadline));
    let (mut client, _) = rig.connect();
    let began = Instant::now();
    client.write_all(b"x").unwrap();
    let mut lines = 0;
    while began.elapsed() < 2 * deadline {
        rig.pass(millis(40));
        // This ends one request and begins the next.
        client.write_all(b"\nx").unwrap();
        lines += 1;
        rig.requests(lines);
    }
    assert_eq!(rig.record.closed(), [], "no single request took that long");
    let last = Instant::now();
    rig.first_close();
    assert!(last.elapsed() + millis(1) >= deadline);
    assert_eq!(rig.record.incomplete(), [(Cause::Expired, b"x".to_vec())]);
    assert_eq!(rig.manager.stats().requests(Cause::Framed), lines as u64);
    assert_eq!(rig.record.requests().len(), lines);
}

#[test]
fn a_connection_may_have_its_own_idle_deadline() {
    let mut rig = rig(idle(millis(100)), |conn: &mut Conn<'_>, body: &[u8]| {
        let own: Option<u64> = std::str::from_utf8(body).unwrap().parse().ok();
        conn.set_idle_deadline(own.map(millis));
        Ok(())
    });
    let mut clients = Vec::new();
    for own in ["220", "30", "100000", "none"] {
        let (mut client, id) = rig.connect();
        client.write_all(own.as_bytes()).unwrap();
        clients.push((client, id));
    }
    let began = Instant::now();
    let ids = |picked: [usize; 3]| picked.map(|index| clients[index].1);
    assert_eq!(closed_ids(&mut rig, 3), ids([1, 3, 0]), "in order: 30, the configured 100, 220 ms");
    assert!(began.elapsed() >= millis(219));
    rig.pass(millis(50));
    assert_eq!(rig.manager.stats().live, 1);
}

#[test]
fn a_pause_suspends_the_deadlines_and_a_resume_restarts_them() {
    let deadline = millis(80);
    let config = idle(deadline).paused_deadline(None);
    let mut rig = rig(config, |conn: &mut Conn<'_>, _: &[u8]| {
        conn.pause();
        Ok(())
    });
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    client.write_all(b"wait").unwrap();
    rig.requests(1);
    rig.pass(2 * deadline);
    assert_eq!(rig.record.closed(), []);
    assert_eq!(rig.manager.next_timeout(), None, "no timer is armed");
    handle.resume(id).unwrap();
    let began = Instant::now();
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
}

/// A pause suspends the total deadline too.
#[test]
fn a_request_paused_in_the_middle_has_its_full_time_when_resumed() {
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
    assert_eq!(rig.record.closed(), []);
    handle.resume(id).unwrap();
    rig.quiet();
    client.write_all(b" a line\n").unwrap();
    assert_eq!(rig.requests(2)[1], (Cause::Framed, b"half a line".to_vec()));
    assert_eq!(rig.record.closed(), []);
}

#[test]
fn a_suspended_process_does_not_expire_peers_that_sent_in_time() {
    let deadline = millis(300);
    let mut rig = echo(idle(deadline).request_deadline(deadline));
    let mut senders: Vec<TcpStream> = (0..10).map(|_| rig.connect().0).collect();
    let (_silent, silent_id) = rig.connect();
    rig.quiet();
    for sender in &mut senders {
        sender.write_all(b"in time").unwrap();
    }
    suspend(deadline + millis(20));
    rig.turn();
    assert_eq!(rig.record.ends().iter().map(|end| end.id).collect::<Vec<_>>(), [silent_id]);
    for sender in &mut senders {
        assert_eq!(rig.read_exact(sender, 7), b"in time");
    }
}

/// More connections are ready than one wait reports. The connections that it does not report do not
/// expire either, because each is read once more before it expires.
#[test]
fn a_suspended_process_reads_data_that_one_wait_does_not_report() {
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
    // Wait until the wheel holds the earliest timers in slots of one millisecond. The wheel moves
    // timers to such slots at multiples of 64 ms.
    rig.pass(millis(395).saturating_sub(began.elapsed()));
    // Write in reverse order, so that the connections that expire first are reported last.
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
    assert_eq!(closed_ids(&mut rig, 3)[0], gone_id);
    assert_eq!(rig.record.requests(), [(Cause::Framed, b"whole".to_vec())]);
    let incomplete = rig.record.incomplete();
    assert_eq!(incomplete[0], (Cause::Eof, b"gone".to_vec()));
    assert!(
        incomplete.contains(&(Cause::Expired, b"half".to_vec())),
        "expired later, because the bytes restarted the deadline"
    );
    assert!(incomplete.contains(&(Cause::Expired, vec![])), "the served peer has fallen silent");
    assert_eq!(incomplete.len(), 3);
    assert!(rig.record.ends().iter().any(|end| end.id == half_id));
    assert!(rig.record.ends().iter().any(|end| end.id == whole_id));
}

#[test]
fn many_equal_deadlines_all_fire_in_batches_with_service_in_between() {
    const MANY: usize = 2_000;
    let deadline = millis(300);
    let mut rig = rig(idle(LONG_DEADLINE), |_: &mut Conn<'_>, _: &[u8]| Ok(()));
    let peers: Vec<UnixStream> = (0..MANY)
        .map(|_| {
            let (peer, ours) = UnixStream::pair().unwrap();
            rig.manager.put(ours).unwrap();
            peer
        })
        .collect();
    let (mut busy, busy_id) = rig.connect();
    rig.turn();
    assert_eq!(rig.record.closed(), []);
    // Set the deadline only now, so that the time of the calls of `put` does not count.
    rig.manager.set_config(idle(deadline)).unwrap();
    suspend(deadline);
    busy.write_all(b"hello").unwrap();
    let (mut expired, mut turns) = (0, 0);
    while expired < MANY {
        let turn = rig.manager.turn(None).unwrap();
        assert!(turn.expired <= 256, "{} in one turn", turn.expired);
        if expired + turn.expired < MANY {
            assert_eq!(rig.manager.next_timeout(), Some(Duration::ZERO), "more timers are due");
        }
        expired += turn.expired;
        turns += 1;
    }
    assert!((MANY / 256..MANY / 16).contains(&turns), "{turns} turns");
    assert_eq!(rig.manager.stats().expired, MANY as u64);
    assert_eq!(rig.manager.stats().requests(Cause::Expired), MANY as u64);
    assert_eq!(
        rig.record.requests()[0],
        (Cause::Drained, b"hello".to_vec()),
        "served before the expiries"
    );
    assert!(rig.record.ends().iter().all(|end| end.id != busy_id));
    drop(peers);
}

#[test]
fn deadlines_beyond_the_clock_never_expire_and_never_spin() {
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
        assert!(turns <= 3, "{turns} turns without work, {far:?}");
        client.write_all(b" a line\n").unwrap();
        assert_eq!(rig.requests(1), [(Cause::Framed, b"half a line".to_vec())]);
        rig.manager.handle().close(id).unwrap();
        assert_eq!(rig.first_close(), CloseReason::Requested);
    }
}

#[test]
fn a_connection_s_own_deadline_may_be_beyond_the_clock() {
    let mut rig = rig(idle(millis(40)), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.set_idle_deadline(Duration::MAX);
        Ok(())
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"hello").unwrap();
    rig.requests(1);
    rig.pass(millis(100));
    assert_eq!(rig.record.closed(), []);
}

#[test]
fn the_shortest_deadlines_expire_at_once_and_only_once() {
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
fn next_timeout_says_when_to_call_turn_again() {
    let deadline = millis(100);
    let mut rig = echo(idle(deadline).request_deadline(None));
    assert_eq!(rig.manager.next_timeout(), None);
    rig.turn();
    assert_eq!(rig.manager.next_timeout(), None, "no timer is armed");
    let (mut client, _) = rig.connect();
    let next = rig.manager.next_timeout().unwrap();
    assert!(next <= deadline + millis(1), "{next:?}");
    // Do as an embedding program does: wait for `next_timeout`, then run a turn with a zero
    // timeout.
    let (mut calls, began) = (0, Instant::now());
    while rig.record.ends().is_empty() {
        let next = rig.manager.next_timeout().expect("a timer is armed");
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
fn remaining_work_is_due_at_once() {
    let mut rig = echo(lines().buffer_size(8192));
    let (mut client, _) = rig.connect();
    client.write_all(&b"x\n".repeat(1000)).unwrap();
    rig.bytes_in(2);
    assert!(rig.record.requests().len() < 1000, "the requests take more than one visit");
    assert_eq!(rig.manager.next_timeout(), Some(Duration::ZERO));
    let turn = rig.manager.turn(None).unwrap();
    assert_eq!((turn.served, rig.manager.next_timeout()), (1, Some(Duration::ZERO)));
    rig.requests(1000);
    rig.quiet();
    assert!(rig.manager.next_timeout().unwrap() > millis(1000));
}

#[test]
fn changed_deadlines_apply_to_open_connections() {
    let mut rig = echo(lines());
    let (_silent, _) = rig.connect();
    let (mut half, half_id) = rig.connect();
    half.write_all(b"half").unwrap();
    rig.bytes_in(4);
    rig.pass(millis(20));
    rig.manager.set_config(lines().request_deadline(millis(60))).unwrap();
    assert_eq!(closed_ids(&mut rig, 1), [half_id]);
    rig.manager.set_config(lines().clients_deadline(millis(60))).unwrap();
    assert!(rig.manager.next_timeout().unwrap() <= millis(60));
    rig.until(|rig| rig.manager.stats().live == 0);

    let mut rig = echo(idle(millis(60)));
    let (_silent, _) = rig.connect();
    rig.manager.set_config(lines()).unwrap();
    rig.pass(millis(150));
    assert_eq!(rig.record.closed(), [], "a later deadline applies as well");
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
        assert!(
            reads <= 2,
            "{reads} reads: one before the expiry, and one while the socket lingers"
        );
    }
}

#[test]
fn a_turn_waits_no_longer_than_its_timeout() {
    let mut rig = echo(idle(LONG_DEADLINE));
    let (_client, _) = rig.connect();
    rig.quiet();
    let began = Instant::now();
    rig.manager.turn(Some(millis(30))).unwrap();
    let took = began.elapsed();
    assert!((millis(30)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

#[test]
fn the_timer_of_a_closed_connection_does_not_expire_its_successor() {
    let mut rig = echo(idle(millis(60)));
    let (_first, first) = rig.connect();
    suspend(millis(30));
    rig.manager.handle().close(first).unwrap();
    rig.first_close();
    let began = Instant::now();
    let (mut client, second) = rig.connect();
    assert_eq!(first.as_u64() as u32, second.as_u64() as u32, "the same slot");
    assert_eq!(closed_ids(&mut rig, 2), [first, second]);
    assert!(began.elapsed() >= millis(60), "the deadline of the second, not that of the first");
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"");
}

#[test]
fn an_expired_request_gets_time_for_a_long_reply() {
    const REPLY: usize = 1_000_000;
    let config = Config::new().clients_deadline(millis(150)).request_deadline(None);
    let mut rig = rig(config, |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&vec![b'r'; REPLY]));
    let (mut client, ours) = unix_pair();
    rig.manager.put(ours).unwrap();
    rig.requests(1);
    assert_eq!(rig.record.closed(), [], "the reply is being sent");
    assert_eq!(rig.read_to_end(&mut client).unwrap().len(), REPLY);
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
}

/// Counts its ticks. Panics in the second tick and stops the manager in the fourth.
struct Ticking(Rc<Cell<u32>>);

impl Handler for Ticking {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> std::io::Result<()> {
        Ok(())
    }

    fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }

    fn tick(&mut self, commands: &mut Commands) {
        self.0.set(self.0.get() + 1);
        match self.0.get() {
            2 => std::panic::panic_any("a test panic"),
            4 => commands.stop().unwrap(),
            _ => {}
        }
    }
}

#[test]
fn tick_is_called_at_its_interval_without_any_connection() {
    let (ticks, interval) = (Rc::new(Cell::new(0)), millis(30));
    let config = Config::new().tick(interval);
    let mut manager = Manager::with_handler(config, Ticking(ticks.clone())).unwrap();
    let began = Instant::now();
    manager.start().unwrap();
    manager.run().unwrap();
    assert!(began.elapsed() >= interval * 4, "{:?}", began.elapsed());
    let stats = manager.stats();
    assert_eq!((ticks.get(), stats.ticks, stats.panics), (4, 4, 1));
    assert!(stats.turns < 30, "the loop sleeps between two ticks: {stats}");
    manager.set_config(Config::new()).unwrap();
    manager.start().unwrap();
    assert_eq!(manager.next_timeout(), None);
}

#[test]
fn setting_the_configuration_repeatedly_does_not_postpone_the_tick() {
    let (ticks, config) = (Rc::new(Cell::new(0)), Config::new().tick(millis(40)));
    let mut manager = Manager::with_handler(config.clone(), Ticking(ticks.clone())).unwrap();
    manager.start().unwrap();
    let began = Instant::now();
    while ticks.get() == 0 && began.elapsed() < crate::support::TIMEOUT {
        manager.turn(Some(millis(5))).unwrap();
        manager.set_config(config.clone()).unwrap();
    }
    assert_eq!(ticks.get(), 1);
    manager.set_config(config.tick(millis(3_600_000))).unwrap();
    assert!(manager.next_timeout() > Some(millis(3_000_000)), "a new interval takes effect");
}
