//! The end of a pause: by `resume`, at `paused_deadline`, and because the peer has gone.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pool_manager::{
    Cause, CloseReason, Config, Conn, ConnId, Framing, RateLimit, Socket, Transport,
};

use crate::support::{Rig, Seen, pair, reset, rig, unix_pair};

/// A deadline that no test reaches.
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(60);

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG).paused_deadline(LONG)
}

type Pauses = Rig<fn(&mut Conn<'_>, &[u8]) -> io::Result<()>>;

/// Returns a rig that pauses each connection at each line, without an answer.
fn pauses(config: Config) -> Pauses {
    rig(config, |conn: &mut Conn<'_>, _: &[u8]| {
        conn.pause();
        Ok(())
    })
}

/// Returns the lines that were delivered.
fn delivered(rig: &Pauses) -> Vec<Vec<u8>> {
    rig.record.requests().into_iter().map(|(_, line)| line).collect()
}

// The deadline.

#[test]
fn a_pause_ends_at_its_deadline_with_a_last_callback() {
    let rig = pauses(lines().paused_deadline(SHORT));
    let mut rig = rig.on_incomplete(|conn, _| conn.write_all(b"no answer"));
    let (mut client, id) = rig.connect();
    let began = Instant::now();
    client.write_all(b"one\n").unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"no answer");
    assert!(began.elapsed() >= SHORT, "{:?}", began.elapsed());
    let expected = [
        Seen::Opened(id),
        Seen::Request(id, Cause::Framed, b"one".to_vec()),
        Seen::Incomplete(id, Cause::Unanswered, vec![]),
        Seen::Closed(id, CloseReason::Expired),
    ];
    assert_eq!(rig.record.all(), expected);
    let stats = rig.manager.stats();
    assert_eq!((stats.incomplete(Cause::Unanswered), stats.expired), (1, 1));
    assert_eq!(stats.incomplete(Cause::Expired), 0);
}

#[test]
fn held_requests_are_dropped_when_a_pause_ends_at_its_deadline() {
    let mut rig = pauses(lines().paused_deadline(SHORT));
    let (mut client, _) = rig.connect();
    client.write_all(b"one\ntwo\nthr").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert_eq!(delivered(&rig), [b"one"]);
    assert_eq!(rig.record.incomplete(), [(Cause::Unanswered, vec![])]);
    assert_eq!(rig.record.ends()[0].bytes_dropped, 7);
}

#[test]
fn without_a_deadline_a_pause_lasts_until_resumed() {
    let mut rig = pauses(lines().clients_deadline(SHORT).paused_deadline(None));
    let (mut client, id) = rig.connect();
    client.write_all(b"one\ntwo\n").unwrap();
    rig.requests(1);
    rig.pass(3 * SHORT);
    assert_eq!((rig.record.closed(), rig.manager.next_timeout()), (vec![], None));
    rig.manager.handle().resume(id).unwrap();
    assert_eq!(rig.requests(2)[1].1, b"two");
}

/// The last byte moved long before the pause.
#[test]
fn the_deadline_of_a_pause_by_a_handle_counts_from_the_pause() {
    let mut rig = pauses(lines().paused_deadline(SHORT));
    let (_client, id) = rig.connect();
    rig.pass(2 * SHORT);
    let began = Instant::now();
    rig.manager.handle().pause(id).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert!(began.elapsed() >= SHORT, "{:?}", began.elapsed());
}

#[test]
fn each_byte_sent_restarts_the_deadline_of_a_pause() {
    let limit = 4 * SHORT;
    let mut rig = pauses(lines().paused_deadline(limit));
    let (mut client, id) = rig.connect();
    client.write_all(b"one\n").unwrap();
    rig.requests(1);
    let began = Instant::now();
    while began.elapsed() < 2 * limit {
        rig.manager.handle().send(id, b"part").unwrap();
        assert_eq!(rig.read_exact(&mut client, 4), b"part");
        rig.pass(limit / 10);
    }
    assert_eq!(rig.record.closed(), []);
    assert_eq!(rig.first_close(), CloseReason::Expired);
}

#[test]
fn pausing_again_does_not_restart_the_deadline() {
    let rig = pauses(lines().paused_deadline(4 * SHORT)).on_incomplete(|conn, _| {
        conn.pause();
        Ok(())
    });
    let mut rig = rig;
    let (_client, id) = rig.connect();
    let handle = rig.manager.handle();
    let began = Instant::now();
    while rig.record.closed().is_empty() && began.elapsed() < 40 * SHORT {
        handle.pause(id).unwrap();
        rig.pass(SHORT / 4);
    }
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    assert_eq!(rig.record.incomplete(), [(Cause::Unanswered, vec![])]);
}

/// The callback pauses the connection again. The long reply has to wait, but not for a resume.
#[test]
fn a_long_reply_at_the_end_of_a_pause_is_sent() {
    const REPLY: usize = 900 << 10;
    let mut rig = pauses(lines().paused_deadline(SHORT)).on_incomplete(|conn, _| {
        conn.pause();
        conn.write_all(&vec![b'x'; REPLY])
    });
    let (mut client, ours) = pair();
    socket2::SockRef::from(&ours).set_send_buffer_size(1).unwrap();
    rig.manager.put(ours).unwrap();
    client.write_all(b"one\n").unwrap();
    rig.until(|rig| !rig.record.incomplete().is_empty());
    rig.quiet();
    assert!(rig.manager.stats().bytes_out < REPLY as u64, "part of the reply is unsent");
    assert!(rig.read_to_end(&mut client).unwrap() == vec![b'x'; REPLY]);
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    assert_eq!(rig.record.incomplete(), [(Cause::Unanswered, vec![])]);
}

/// The reply has to wait, so the connection is still open when the handle pauses it.
#[test]
fn a_connection_that_is_closing_cannot_be_paused() {
    const REPLY: usize = 900 << 10;
    let rig = pauses(lines().paused_deadline(SHORT));
    let mut rig = rig.on_incomplete(|conn, _| conn.write_all(&vec![b'x'; REPLY]));
    let (mut client, ours) = pair();
    socket2::SockRef::from(&ours).set_send_buffer_size(1).unwrap();
    let id = rig.manager.put(ours).unwrap();
    client.write_all(b"one\n").unwrap();
    rig.until(|rig| !rig.record.incomplete().is_empty());
    rig.manager.handle().pause(id).unwrap();
    rig.quiet();
    assert!(rig.read_to_end(&mut client).unwrap() == vec![b'x'; REPLY]);
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    assert_eq!(rig.record.incomplete(), [(Cause::Unanswered, vec![])]);
}

/// A transport that keeps the last bytes of its output while `blocked` is set.
struct Blocking {
    socket: UnixStream,
    blocked: Arc<AtomicBool>,
}

impl Read for Blocking {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.read(into)
    }
}

impl Write for Blocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        let blocked = self.blocked.load(Ordering::Relaxed);
        if blocked { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }
}

impl AsFd for Blocking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Transport for Blocking {}

/// While the connection was blocked, no byte moved for longer than the deadline of the pause.
#[test]
fn the_deadline_of_a_pause_counts_from_when_a_transport_is_flushed() {
    let limit = 4 * SHORT;
    let blocked = Arc::new(AtomicBool::new(false));
    let blocks = blocked.clone();
    let mut rig = rig(lines().paused_deadline(limit), move |conn: &mut Conn<'_>, _: &[u8]| {
        blocks.store(true, Ordering::Relaxed);
        conn.write_all(b"part")
    });
    let (mut client, socket) = UnixStream::pair().unwrap();
    let transport = Blocking { socket, blocked: blocked.clone() };
    let id = rig.manager.put(Socket::Boxed(Box::new(transport))).unwrap();
    client.write_all(b"one\n").unwrap();
    rig.requests(1);
    rig.manager.handle().pause(id).unwrap();
    rig.pass(2 * limit);
    let flushed = Instant::now();
    blocked.store(false, Ordering::Relaxed);
    // The command makes the manager visit the connection.
    rig.manager.handle().pause(id).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert!(flushed.elapsed() >= limit, "{:?}", flushed.elapsed());
}

#[test]
fn a_pause_after_the_last_request_ends_at_its_deadline_too() {
    let config = lines().framing(Framing::Drained).clients_deadline(SHORT).paused_deadline(SHORT);
    let mut rig = pauses(config);
    let (_client, _) = rig.connect();
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert_eq!(rig.record.requests(), [(Cause::Expired, vec![])]);
    assert_eq!(rig.record.incomplete(), [(Cause::Unanswered, vec![])]);
}

#[test]
fn a_new_paused_deadline_applies_to_paused_connections() {
    let mut rig = pauses(lines());
    let (mut client, _) = rig.connect();
    client.write_all(b"one\n").unwrap();
    rig.requests(1);
    rig.manager.set_config(lines().paused_deadline(SHORT)).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Expired);
}

/// A reply that the peer does not take is ended by the idle deadline, paused or not.
#[test]
fn unsent_output_of_a_paused_connection_has_the_idle_deadline() {
    let config = lines().clients_deadline(SHORT).paused_deadline(LONG);
    let mut rig = rig(config, |conn: &mut Conn<'_>, _: &[u8]| {
        conn.pause();
        conn.write_all(&vec![b'x'; 900 << 10])
    });
    let (mut client, ours) = pair();
    socket2::SockRef::from(&ours).set_send_buffer_size(1).unwrap();
    rig.manager.put(ours).unwrap();
    client.write_all(b"one\n").unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteStalled);
    assert_eq!(rig.record.incomplete(), []);
}

// The peer has gone.

/// Puts a Unix socket whose peer sends `sent` and goes away during the pause.
fn gone(sent: &[u8]) -> (Pauses, ConnId) {
    let mut rig = pauses(lines());
    let (mut client, ours) = unix_pair();
    let id = rig.manager.put(ours).unwrap();
    client.write_all(b"one\n").unwrap();
    rig.requests(1);
    client.write_all(sent).unwrap();
    drop(client);
    (rig, id)
}

#[test]
fn a_paused_connection_closes_when_its_peer_has_gone() {
    let (mut rig, id) = gone(b"");
    assert_eq!(rig.first_close(), CloseReason::Eof);
    assert_eq!((rig.record.read_closed(), rig.record.incomplete()), (1, vec![]));
    rig.manager.handle().send(id, b"the answer").unwrap();
    rig.until(|rig| rig.record.all().contains(&Seen::Undelivered(id, b"the answer".to_vec())));
}

#[test]
fn requests_of_a_peer_that_has_gone_are_delivered_after_the_pause() {
    let (mut rig, id) = gone(b"two\nthree\n");
    rig.quiet();
    let turns = rig.turns_in(Duration::from_millis(100));
    assert!(turns < 5, "{turns} turns without work");
    assert_eq!((rig.record.closed(), delivered(&rig).len()), (vec![], 1));
    for (count, line) in [(2, &b"two"[..]), (3, b"three")] {
        rig.manager.handle().resume(id).unwrap();
        assert_eq!(rig.requests(count)[count - 1].1, line);
    }
    rig.manager.handle().resume(id).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    assert_eq!((rig.record.read_closed(), rig.record.ends()[0].bytes_dropped), (1, 0));
}

#[test]
fn requests_of_a_peer_that_has_gone_wait_no_longer_than_the_deadline() {
    let (mut rig, _) = gone(b"two\n");
    rig.quiet();
    rig.manager.set_config(lines().paused_deadline(SHORT)).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert_eq!(rig.record.incomplete(), [(Cause::Unanswered, vec![])]);
    assert_eq!(rig.record.ends()[0].bytes_dropped, 4);
}

/// The pool sees the hang-up before it serves the request that pauses the connection.
#[test]
fn a_peer_that_goes_right_after_its_request_ends_the_pause_too() {
    let mut rig = pauses(lines());
    let (mut client, ours) = unix_pair();
    rig.manager.put(ours).unwrap();
    client.write_all(b"one\n").unwrap();
    drop(client);
    assert_eq!(rig.first_close(), CloseReason::Eof);
    assert_eq!((delivered(&rig), rig.record.read_closed()), (vec![b"one".to_vec()], 1));
}

/// The pool sees the hang-up before the last callback pauses the connection.
#[test]
fn a_pause_in_the_last_callback_does_not_wait_for_a_peer_that_has_gone() {
    let config = lines().buffer_size(16).memory_limit(16).rate_limit(RateLimit::per_second(1));
    let mut rig = rig(config, |_: &mut Conn<'_>, _: &[u8]| Ok(())).on_incomplete(|conn, _| {
        conn.pause();
        Ok(())
    });
    // This connection keeps the only buffer.
    let (mut other, _) = rig.connect();
    other.write_all(b"part").unwrap();
    rig.bytes_in(4);
    let (mut client, ours) = unix_pair();
    client.write_all(b"one\ntwo\n").unwrap();
    drop(client);
    rig.manager.put(ours).unwrap();
    assert_eq!(rig.first_close(), CloseReason::MemoryLimit);
    assert_eq!(rig.record.incomplete(), [(Cause::MemoryLimit, b"two\n".to_vec())]);
}

#[test]
fn a_reset_ends_a_pause_at_once() {
    let mut rig = pauses(lines());
    let (mut client, _) = rig.connect();
    client.write_all(b"one\n").unwrap();
    rig.requests(1);
    reset(client);
    assert_eq!(rig.first_close(), CloseReason::Reset);
    let end = &rig.record.ends()[0];
    assert_eq!(end.error.as_ref().map(io::Error::kind), Some(io::ErrorKind::ConnectionReset));
    assert_eq!((rig.record.read_closed(), rig.record.incomplete()), (0, vec![]));
}

#[test]
fn a_paused_connection_whose_peer_closed_one_side_stays_until_resumed() {
    let mut rig = pauses(lines());
    let (mut client, id) = rig.connect();
    client.write_all(b"one\n").unwrap();
    rig.requests(1);
    client.shutdown(Shutdown::Write).unwrap();
    rig.pass(SHORT);
    assert_eq!((rig.record.closed(), rig.record.read_closed()), (vec![], 0));
    rig.manager.handle().send(id, b"the answer").unwrap();
    assert_eq!(rig.read_exact(&mut client, 10), b"the answer");
    rig.manager.handle().resume(id).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
}
