//! Half-open connections: one side has closed its direction, and the other direction is still used.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pool_manager::{
    Cause, CloseReason, Config, Conn, ConnId, ERROR_SERVER_BUSY, Framing, Handle, Overload, Prefix,
};

use crate::support::{Rig, Seen, connect, echo, pair, reset, rig, shrink_buffers};

/// A deadline that no test reaches.
const LONG: Duration = Duration::from_secs(600);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG)
}

/// Returns a rig that echoes lines. It leaves a connection open at the end of file.
fn keeps_open(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    echo(config).on_read_closed(|_| Ok(()))
}

/// Returns a rig that echoes lines. The line `finish` is answered with `ok`, and finishes the
/// connection between two writes.
fn finishes(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    rig(config, |conn: &mut Conn<'_>, line: &[u8]| {
        if line != b"finish" {
            return conn.write_all(line);
        }
        conn.write_all(b"ok")?;
        conn.finish();
        conn.write_all(b"more")
    })
}

/// Connects a client that has closed its direction, and runs turns until the pool has seen this.
#[track_caller]
fn connect_half<F>(rig: &mut Rig<F>) -> (TcpStream, ConnId)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let before = rig.record.read_closed();
    let (client, id) = rig.connect();
    client.shutdown(Shutdown::Write).unwrap();
    rig.until(|rig| rig.record.read_closed() > before);
    (client, id)
}

/// Connects a client and finishes its connection. Runs turns until the client has seen this.
#[track_caller]
fn connect_finished<F>(rig: &mut Rig<F>) -> (TcpStream, ConnId)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let (mut client, id) = rig.connect();
    rig.manager.handle().finish(id).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"");
    (client, id)
}

/// Checks that the loop has nothing to do and that no connection has closed.
#[track_caller]
fn assert_rests<F>(rig: &mut Rig<F>)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    rig.quiet();
    let turns = rig.turns_in(millis(100));
    assert!(turns < 5, "{turns} turns without work");
    assert_eq!(rig.record.closed(), []);
}

// The peer has closed its direction.

#[test]
fn a_connection_kept_open_at_end_of_file_can_be_answered_later() {
    for stream in [&b"one\n"[..], b"one\ntw", b""] {
        let mut rig = keeps_open(lines());
        let (mut client, id) = rig.connect();
        client.write_all(stream).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        rig.until(|rig| rig.record.read_closed() == 1);
        let echoed: &[u8] = if stream.is_empty() { b"" } else { b"one" };
        assert_eq!(rig.read_exact(&mut client, echoed.len()), echoed);
        assert_rests(&mut rig);
        let handle = rig.manager.handle();
        for part in ["the ", "answer"] {
            handle.send(id, part).unwrap();
            assert_eq!(rig.read_exact(&mut client, part.len()), part.as_bytes());
            assert_rests(&mut rig);
        }
        handle.send(id, "!").unwrap();
        handle.finish(id).unwrap();
        assert_eq!(rig.read_to_end(&mut client).unwrap(), b"!");
        assert_eq!((rig.record.closed(), rig.record.read_closed()), (vec![CloseReason::Eof], 1));
        assert_eq!(rig.record.ends()[0].bytes_unsent, 0);
        assert_eq!(rig.manager.stats().lingering, 0);
    }
}

#[test]
fn a_connection_kept_open_at_end_of_file_expires_with_incomplete() {
    let prefix = Framing::LengthPrefixed { prefix: Prefix::U8, limit: Framing::NO_LIMIT };
    for framing in [Framing::Filled, Framing::Drained, Framing::Delimited(b'\n'), prefix] {
        for sent in [&b""[..], b"\x01\n"] {
            let deadline = millis(60);
            let config = lines().framing(framing.clone()).clients_deadline(deadline);
            let rig = rig(config, |_, _| Ok(())).on_read_closed(|_| Ok(()));
            let mut rig = rig.on_incomplete(|conn, _| conn.write_all(b"too late"));
            let (mut client, _) = rig.connect();
            client.write_all(sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            rig.until(|rig| rig.record.read_closed() == 1);
            let (began, requests) = (Instant::now(), rig.record.requests());
            assert_eq!(requests.len(), usize::from(!sent.is_empty()));
            assert_eq!(rig.read_to_end(&mut client).unwrap(), b"too late", "{framing:?}");
            // The age is in whole milliseconds, and the deadline counts from before this test.
            assert!(began.elapsed() >= deadline / 2, "{:?}", began.elapsed());
            assert_eq!(rig.record.incomplete(), [(Cause::Expired, vec![])], "{framing:?}");
            assert_eq!((rig.record.requests(), rig.record.read_closed()), (requests, 1));
            assert_eq!(rig.record.closed(), [CloseReason::Expired]);
        }
    }
}

#[test]
fn output_restarts_the_deadline_of_a_connection_kept_open() {
    let deadline = millis(200);
    let mut rig = keeps_open(lines().clients_deadline(deadline));
    let (mut client, id) = connect_half(&mut rig);
    let began = Instant::now();
    while began.elapsed() < 2 * deadline {
        rig.manager.handle().send(id, b"news").unwrap();
        assert_eq!(rig.read_exact(&mut client, 4), b"news");
        rig.pass(millis(20));
    }
    assert_eq!(rig.record.closed(), []);
    assert_eq!(rig.first_close(), CloseReason::Expired);
}

#[test]
fn read_closed_is_called_once_however_often_a_connection_is_visited() {
    let mut rig = keeps_open(lines());
    let (mut client, id) = connect_half(&mut rig);
    let handle = rig.manager.handle();
    for _ in 0..3 {
        handle.pause(id).unwrap();
        rig.quiet();
        handle.resume(id).unwrap();
        rig.quiet();
        handle.send(id, b"news").unwrap();
        assert_eq!(rig.read_exact(&mut client, 4), b"news");
        rig.manager.set_config(lines()).unwrap();
        rig.quiet();
    }
    assert_eq!(rig.record.closed(), []);
    handle.finish(id).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    let expected =
        [Seen::Opened(id), Seen::ReadClosed(id, Cause::Eof), Seen::Closed(id, CloseReason::Eof)];
    assert_eq!(rig.record.all(), expected);
}

#[test]
fn a_long_reply_at_end_of_file_is_sent_before_the_connection_closes() {
    const REPLY: usize = 900 << 10;
    for finishes in [true, false] {
        let mut rig = echo(lines()).on_read_closed(move |conn| {
            conn.write_all(&vec![b'x'; REPLY])?;
            if finishes {
                conn.finish();
            }
            Ok(())
        });
        let (mut client, ours) = pair();
        socket2::SockRef::from(&ours).set_send_buffer_size(1).unwrap();
        let id = rig.manager.put(ours).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        rig.until(|rig| rig.record.read_closed() == 1);
        rig.quiet();
        assert!(rig.manager.stats().bytes_out < REPLY as u64, "part of the reply is unsent");
        rig.manager.handle().finish(id).unwrap();
        assert_rests(&mut rig);
        assert!(rig.read_to_end(&mut client).unwrap() == vec![b'x'; REPLY]);
        assert_eq!((rig.record.closed(), rig.record.read_closed()), (vec![CloseReason::Eof], 1));
    }
}

/// Nothing can be sent or received any more, so there is nothing to wait for.
#[test]
fn a_pause_in_read_closed_does_not_keep_a_finished_connection() {
    let mut rig = echo(lines()).on_read_closed(|conn| {
        conn.write_all(b"last words")?;
        conn.finish();
        conn.pause();
        Ok(())
    });
    let (mut client, _) = connect_half(&mut rig);
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"last words", "and the end of file");
    assert_eq!(rig.first_close(), CloseReason::Eof);
    assert_eq!((rig.record.read_closed(), rig.record.incomplete()), (1, vec![]));
}

#[test]
fn a_pause_in_read_closed_suspends_the_deadline_until_resumed() {
    let deadline = millis(50);
    let mut rig = echo(lines().clients_deadline(deadline)).on_read_closed(|conn| {
        conn.pause();
        Ok(())
    });
    let (mut client, id) = connect_half(&mut rig);
    let handle = rig.manager.handle();
    rig.pass(3 * deadline);
    handle.send(id, b"news").unwrap();
    assert_eq!(rig.read_exact(&mut client, 4), b"news");
    rig.pass(3 * deadline);
    assert_eq!(rig.record.closed(), [], "paused");
    handle.resume(id).unwrap();
    let began = Instant::now();
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
    assert_eq!(rig.record.incomplete(), [(Cause::Expired, vec![])]);
    assert_eq!(rig.record.read_closed(), 1);
}

/// After the end of file, a read returns the end of file again and not the error.
#[test]
fn a_reset_of_a_connection_kept_open_is_seen_at_the_next_write() {
    let mut rig = keeps_open(lines());
    let (client, id) = connect_half(&mut rig);
    reset(client);
    assert_rests(&mut rig);
    rig.manager.handle().send(id, b"news").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Reset);
    assert_eq!((rig.record.read_closed(), rig.record.incomplete()), (1, vec![]));
    assert_eq!(rig.record.ends()[0].bytes_unsent, 4);
}

// The pool has closed its direction.

/// Checks the end of a connection that was finished after it had sent `sent`. The peer then sends
/// two requests and the end of file. Before that, `discarded` bytes were discarded.
#[track_caller]
fn assert_finished<F>(rig: &mut Rig<F>, client: &mut TcpStream, sent: &[u8], discarded: u64)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    assert_eq!(rig.read_to_end(client).unwrap(), sent);
    assert_rests(rig);
    let before = rig.record.requests().len();
    client.write_all(b"one\ntwo\n").unwrap();
    let requests = rig.requests(before + 2);
    let expected = [&b"one"[..], b"two"].map(|line| (Cause::Framed, line.to_vec()));
    assert_eq!(requests[before..], expected);
    assert_rests(rig);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    let end = rig.record.ends().remove(0);
    assert_eq!((end.bytes_out, end.bytes_unsent), (sent.len() as u64, discarded + 6));
    let stats = rig.manager.stats();
    assert_eq!((stats.bytes_out, stats.bytes_unsent), (end.bytes_out, end.bytes_unsent));
    assert_eq!((stats.lingering, rig.record.read_closed()), (0, 1));
    assert_eq!(rig.record.open_lives(), 0);
}

#[test]
fn a_connection_finished_in_a_request_still_gets_requests() {
    let mut rig = finishes(lines());
    let (mut client, _) = rig.connect();
    client.write_all(b"hello\nfinish\n").unwrap();
    assert_finished(&mut rig, &mut client, b"hellook", 4);
}

#[test]
fn a_connection_finished_in_opened_still_gets_requests() {
    let mut rig = echo(lines()).on_opened(|conn| {
        conn.write_all(b"hello")?;
        conn.finish();
        conn.write_all(b"more")
    });
    let (mut client, _) = rig.connect();
    assert_finished(&mut rig, &mut client, b"hello", 4);

    // The connection has written nothing.
    let mut rig = echo(lines()).on_opened(|conn| {
        conn.finish();
        Ok(())
    });
    let (mut client, _) = rig.connect();
    assert_finished(&mut rig, &mut client, b"", 0);
}

#[test]
fn a_connection_finished_by_a_handle_still_gets_requests() {
    let mut rig = echo(lines());
    let (mut client, id) = rig.connect();
    let handle = rig.manager.handle();
    handle.send(id, b"hello").unwrap();
    handle.finish(id).unwrap();
    handle.finish(id).unwrap();
    assert_finished(&mut rig, &mut client, b"hello", 0);
}

#[test]
fn a_callback_finishes_another_connection() {
    let mut first = None;
    let mut rig = rig(lines(), move |conn: &mut Conn<'_>, line: &[u8]| {
        if line == b"other" {
            let other = first.expect("a first connection");
            conn.commands().send(other, b"bye")?;
            return Ok(conn.commands().finish(other)?);
        }
        first = first.or(Some(conn.id()));
        conn.write_all(line)
    });
    let (mut client, id) = rig.connect();
    client.write_all(b"hello\n").unwrap();
    assert_eq!(rig.read_exact(&mut client, 5), b"hello");
    let (mut other, _) = rig.connect();
    other.write_all(b"other\n").unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"bye");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    assert_eq!(rig.record.ends()[0].id, id);
    assert_eq!(rig.manager.stats().live, 1);
}

/// The connection is finished before it is established. The output of `opened` and the bytes that
/// were sent before are still sent.
#[test]
fn a_connection_can_be_finished_while_it_is_connecting() {
    let mut rig = echo(lines()).on_opened(|conn| conn.write_all(b"hello"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let id = rig.manager.connect(listener.local_addr().unwrap()).unwrap();
    let handle = rig.manager.handle();
    handle.send(id, b", bye").unwrap();
    handle.finish(id).unwrap();
    let mut peer = listener.accept().unwrap().0;
    assert_finished(&mut rig, &mut peer, b"hello, bye", 0);
}

#[test]
fn a_blocked_reply_is_sent_before_the_end_of_file_that_follows_it() {
    const REPLY: usize = 900 << 10;
    let mut rig = rig(lines(), |conn: &mut Conn<'_>, line: &[u8]| {
        if line != b"long" {
            return conn.write_all(line);
        }
        conn.write_all(&vec![b'x'; REPLY])?;
        conn.finish();
        Ok(())
    });
    let (mut client, ours) = pair();
    socket2::SockRef::from(&ours).set_send_buffer_size(1).unwrap();
    rig.manager.put(ours).unwrap();
    client.write_all(b"long\n").unwrap();
    rig.requests(1);
    rig.quiet();
    assert!(rig.manager.stats().bytes_out < REPLY as u64, "part of the reply is unsent");
    assert_finished(&mut rig, &mut client, &vec![b'x'; REPLY], 0);
}

#[test]
fn writes_of_all_hooks_are_discarded_and_counted_after_finish() {
    let config = lines().write_limit(100);
    // A single write is larger than `write_limit`. This is no error, because it is discarded.
    let write = |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&[b'x'; 1_000]);
    let rig = rig(config, write).on_incomplete(write);
    let mut rig = rig.on_read_closed(move |conn| write(conn, b""));
    let (mut client, id) = connect_finished(&mut rig);
    client.write_all(b"one\ntw").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    let expected = [
        Seen::Opened(id),
        Seen::Request(id, Cause::Framed, b"one".to_vec()),
        Seen::Incomplete(id, Cause::Eof, b"tw".to_vec()),
        Seen::ReadClosed(id, Cause::Eof),
        Seen::Closed(id, CloseReason::Eof),
    ];
    assert_eq!(rig.record.all(), expected);
    let end = rig.record.ends().remove(0);
    assert_eq!((end.bytes_out, end.bytes_unsent), (0, 3_000));
    assert_eq!(rig.manager.stats().bytes_unsent, 3_000);
}

#[test]
fn bytes_sent_to_a_finished_connection_are_returned() {
    let mut rig = finishes(lines());
    let (mut client, id) = rig.connect();
    let handle = rig.manager.handle();
    handle.send(id, b"in time").unwrap();
    handle.finish(id).unwrap();
    handle.send(id, b"too late").unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"in time");
    handle.send(id, b"later").unwrap();
    rig.quiet();
    let returned = |bytes: &[u8]| Seen::Undelivered(id, bytes.to_vec());
    assert_eq!(rig.record.all(), [Seen::Opened(id), returned(b"too late"), returned(b"later")]);
    assert_eq!(rig.record.closed(), []);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    assert_eq!(rig.record.ends()[0].bytes_unsent, 0, "returned bytes are not counted as unsent");

    // The connection is finished in a callback.
    let (mut client, id) = rig.connect();
    client.write_all(b"finish\n").unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"ok");
    handle.send(id, b"too late").unwrap();
    rig.quiet();
    assert_eq!(rig.record.all().last(), Some(&Seen::Undelivered(id, b"too late".to_vec())));
}

#[test]
fn a_finished_connection_whose_peer_stays_silent_expires() {
    let deadline = millis(60);
    let mut rig = finishes(lines().clients_deadline(deadline));
    let (mut client, _) = rig.connect();
    let began = Instant::now();
    client.write_all(b"finish\ntw").unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"ok");
    assert_eq!(rig.first_close(), CloseReason::Expired);
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
    assert_eq!(rig.record.incomplete(), [(Cause::Expired, b"tw".to_vec())]);
    assert_eq!(rig.record.read_closed(), 0);
}

#[test]
fn a_finished_connection_can_be_closed_aborted_or_reset() {
    type End = fn(&Handle, ConnId, TcpStream) -> Option<TcpStream>;
    let close: End = |handle, id, client| {
        handle.close(id).unwrap();
        Some(client)
    };
    let abort: End = |handle, id, client| {
        handle.abort(id).unwrap();
        Some(client)
    };
    let reset: End = |_, _, client| {
        reset(client);
        None
    };
    for (end, reason) in [
        (close, CloseReason::Requested),
        (abort, CloseReason::Aborted),
        (reset, CloseReason::Reset),
    ] {
        let mut rig = echo(lines());
        let (client, id) = connect_finished(&mut rig);
        let _client = end(&rig.manager.handle(), id, client);
        assert_eq!(rig.first_close(), reason);
        assert_eq!(rig.record.all(), [Seen::Opened(id), Seen::Closed(id, reason)]);
    }
}

/// A pause stops only the reads.
#[test]
fn a_paused_connection_can_be_finished() {
    let mut rig = echo(lines());
    let (mut client, id) = rig.connect();
    let handle = rig.manager.handle();
    handle.pause(id).unwrap();
    rig.quiet();
    client.write_all(b"one\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    handle.send(id, b"bye").unwrap();
    handle.finish(id).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"bye");
    assert_rests(&mut rig);
    assert_eq!(rig.record.requests(), []);
    handle.resume(id).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    assert_eq!(rig.record.requests(), [(Cause::Framed, b"one".to_vec())]);
}

// Evictions and stops.

#[test]
fn a_half_open_connection_is_not_evicted() {
    let mut rig = keeps_open(lines().max_workers(3).overload(Overload::EvictIdle));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let (mut half, half_id) = connect_half(&mut rig);
    let (mut finished, _) = connect_finished(&mut rig);
    let (mut idle, idle_id) = rig.connect();
    // A connection can be evicted a few milliseconds after its last byte.
    rig.pass(millis(5));

    let mut new = connect(addr);
    new.write_all(b"hello\n").unwrap();
    assert_eq!(rig.read_exact(&mut new, 5), b"hello");
    assert_eq!(rig.read_to_end(&mut idle).unwrap(), b"");
    let evicted: Vec<_> = rig.record.ends().iter().map(|end| (end.id, end.reason)).collect();
    assert_eq!(evicted, [(idle_id, CloseReason::Evicted)]);

    // The new connection is busy, so no connection is idle now.
    new.write_all(b"half a line").unwrap();
    rig.bytes_in(6 + 11);
    rig.pass(millis(5));
    let mut refused = connect(addr);
    assert_eq!(rig.read_to_end(&mut refused).unwrap(), ERROR_SERVER_BUSY.as_bytes());
    assert_eq!(rig.record.closed(), [CloseReason::Evicted]);

    rig.manager.handle().send(half_id, b"answer").unwrap();
    assert_eq!(rig.read_exact(&mut half, 6), b"answer");
    finished.write_all(b"one\n").unwrap();
    rig.requests(2);
}

#[test]
fn a_stop_waits_for_half_open_connections() {
    let mut rig = keeps_open(lines().stop_deadline(LONG));
    let (mut half, half_id) = connect_half(&mut rig);
    let (mut finished, finished_id) = connect_finished(&mut rig);
    let handle = rig.manager.handle();
    handle.stop().unwrap();
    rig.pass(millis(50));
    assert_eq!(rig.record.closed(), [], "both are in progress");

    finished.write_all(b"one\n").unwrap();
    assert_eq!(rig.requests(1), [(Cause::Framed, b"one".to_vec())]);
    rig.pass(millis(50));
    assert_eq!(rig.record.closed(), []);
    finished.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);

    handle.send(half_id, b"answer").unwrap();
    handle.finish(half_id).unwrap();
    let report = rig.manager.run().unwrap();
    assert_eq!((report.finished, report.idle, report.aborted), (2, 0, 0), "{report:?}");
    let ends: Vec<_> = rig.record.ends().iter().map(|end| (end.id, end.reason)).collect();
    assert_eq!(ends, [(finished_id, CloseReason::Eof), (half_id, CloseReason::Eof)]);
    half.set_nonblocking(false).unwrap();
    let mut got = Vec::new();
    half.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"answer");
}

#[test]
fn a_stop_waits_for_half_open_connections_not_past_its_deadline() {
    let deadline = millis(80);
    let mut rig = keeps_open(lines().stop_deadline(deadline));
    let (_half, _) = connect_half(&mut rig);
    let (_finished, _) = connect_finished(&mut rig);
    let began = Instant::now();
    let report = rig.manager.stop().unwrap();
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
    assert_eq!((report.finished, report.idle, report.aborted), (0, 0, 2), "{report:?}");
    assert_eq!(rig.record.closed(), [CloseReason::Stopped; 2]);
}

/// The peer takes none of the output, so the connection is not closed in the same turn.
#[test]
fn a_finished_connection_whose_peer_reads_nothing_is_closed() {
    let config = lines().clients_deadline(millis(80));
    let mut rig = rig(config, |conn: &mut Conn<'_>, _: &[u8]| {
        conn.write_all(&vec![b'x'; 400_000])?;
        conn.finish();
        Ok(())
    });
    let (mut client, ours) = pair();
    shrink_buffers(&client, &ours);
    rig.manager.put(ours).unwrap();
    client.write_all(b"long\n").unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteStalled);
    let end = rig.record.ends().remove(0);
    assert_eq!(end.bytes_out + end.bytes_unsent, 400_000);
}
