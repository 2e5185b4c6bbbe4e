//! Peers that read their replies slowly, late, in part or not at all.
//!
//! The tests make the kernel's socket buffers as small as possible, so that part of a reply stays
//! unsent.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pool_manager::{
    Cause, CloseReason, Config, Conn, ConnId, Framing, Handler, Manager, Transport,
};

use crate::support::{Rig, Seen, pair, reset, rig, shrink_buffers, unix_pair};

/// A deadline that no test reaches.
const LONG_DEADLINE: Duration = Duration::from_secs(600);

/// Length of a reply that does not fit into the socket buffers of both ends.
const LONG_REPLY: usize = 400_000;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(LONG_DEADLINE)
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG_DEADLINE)
}

/// Returns a rig that takes the body as a decimal number and replies with that many bytes. If the
/// body is not a number, it replies with `LONG_REPLY` bytes.
fn replies(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    let all = pattern(3 << 20);
    rig(config, move |conn: &mut Conn<'_>, body: &[u8]| {
        let length = std::str::from_utf8(body).ok().and_then(|body| body.trim().parse().ok());
        conn.write_all(&all[..length.unwrap_or(LONG_REPLY)])
    })
}

fn pattern(length: usize) -> Vec<u8> {
    // The length of the block is prime, so that a shift by a power of two changes the bytes.
    let block: Vec<u8> = (0..4093_u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let mut bytes = block.repeat(length / block.len() + 1);
    bytes.truncate(length);
    bytes
}

/// Connects over TCP with small socket buffers at both ends. Reading a long reply through them
/// would take minutes.
fn connect_stuck<F>(rig: &mut Rig<F>) -> (TcpStream, ConnId)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let (client, ours) = pair();
    shrink_buffers(&client, &ours);
    (client, rig.manager.put(ours).expect("put"))
}

/// Connects over TCP with a small send buffer at the pool's end only, so that the client can read
/// a long reply quickly.
fn connect_tcp<F>(rig: &mut Rig<F>) -> (TcpStream, ConnId)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let (client, ours) = pair();
    socket2::SockRef::from(&ours).set_send_buffer_size(1).expect("send buffer");
    (client, rig.manager.put(ours).expect("put"))
}

/// Connects over a Unix socket with a small send buffer at the pool's end.
fn connect_unix<F>(rig: &mut Rig<F>) -> (TcpStream, ConnId)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let (client, ours) = unix_pair();
    socket2::SockRef::from(&ours).set_send_buffer_size(1).expect("send buffer");
    (client, rig.manager.put(ours).expect("put"))
}

/// Counts the calls of `flushed`.
fn flushes(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| matches!(seen, Seen::Flushed(_))).count()
}

#[test]
fn a_connection_with_an_unsent_reply_is_not_read() {
    let mut rig = replies(drained());
    let (mut client, _) = connect_tcp(&mut rig);
    client.write_all(b"first").unwrap();
    rig.requests(1);
    rig.quiet();
    let before = rig.manager.stats();
    assert!(before.bytes_out < LONG_REPLY as u64, "part of the reply is unsent");
    client.write_all(b"10").unwrap();
    rig.quiet();
    let after = rig.manager.stats();
    assert_eq!(
        (after.bytes_in, after.reads),
        (5, before.reads),
        "the second request stays in the kernel"
    );
    assert_eq!(rig.read_exact(&mut client, LONG_REPLY), pattern(LONG_REPLY));
    assert_eq!(rig.read_exact(&mut client, 10), pattern(10), "read without a new event");
    assert_eq!(rig.record.requests().len(), 2);
}

/// The request fills the read buffer, so bytes may be left in the socket after the callback.
#[test]
fn a_connection_whose_reply_blocks_is_not_read_again() {
    let mut rig = replies(lines().buffer_size(16));
    let (mut client, ours) = unix_pair();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[b'y'; 4096]).is_ok() {}
    rig.manager.put(ours).unwrap();
    client.write_all(b"fifteen letters\nand more").unwrap();
    rig.requests(1);
    rig.quiet();
    assert_eq!(rig.manager.stats().bytes_in, 16, "the rest stays in the kernel");
}

#[test]
fn a_long_reply_arrives_complete_and_in_order() {
    const REPLY: usize = 3 << 20;
    for tcp in [true, false] {
        let mut rig = replies(drained().write_limit(REPLY));
        let (mut client, _) = if tcp { connect_tcp(&mut rig) } else { connect_unix(&mut rig) };
        client.write_all(REPLY.to_string().as_bytes()).unwrap();
        assert!(rig.read_exact(&mut client, REPLY) == pattern(REPLY), "every byte, in order");
        rig.quiet();
        let stats = rig.manager.stats();
        assert_eq!((stats.bytes_out, stats.bytes_unsent), (REPLY as u64, 0));
        assert!(stats.writes > 3, "{} writes: the reply was sent in parts", stats.writes);
        assert_eq!(flushes(&rig.record.all()), 1);
    }
}

#[test]
fn the_flushed_hook_runs_once_when_a_blocked_reply_is_sent() {
    let mut rig = replies(drained());
    let (mut client, id) = connect_tcp(&mut rig);
    client.write_all(b"100").unwrap();
    rig.read_exact(&mut client, 100);
    rig.quiet();
    assert_eq!(flushes(&rig.record.all()), 0, "not for a reply that was sent at once");
    client.write_all(b"long").unwrap();
    rig.requests(2);
    rig.quiet();
    assert_eq!(flushes(&rig.record.all()), 0, "not before the reply is sent");
    rig.read_exact(&mut client, LONG_REPLY);
    rig.until(|rig| flushes(&rig.record.all()) == 1);
    client.write_all(b"100").unwrap();
    rig.read_exact(&mut client, 100);
    rig.quiet();
    let seen: Vec<Seen> =
        rig.record.all().into_iter().filter(|seen| !matches!(seen, Seen::Opened(_))).collect();
    assert!(matches!(seen[..], [Seen::Request(..), Seen::Request(..), Seen::Flushed(flushed),
        Seen::Request(..)] if flushed == id));
}

#[test]
fn frames_held_while_the_socket_is_full_are_answered_later_in_order() {
    const FRAMES: usize = 200;
    const REPLY: usize = 8 << 10;
    // The replies are 1.6 MB in all. `write_limit` is only a little larger than the number of bytes
    // of one flush.
    let config = lines().write_limit((64 << 10) + REPLY);
    for unix in [false, true] {
        let mut rig = rig(config.clone(), |conn: &mut Conn<'_>, body: &[u8]| {
            let number: u8 = std::str::from_utf8(body).unwrap().parse().unwrap();
            conn.write_all(&[number; REPLY])
        });
        let (mut client, _) = if unix { connect_unix(&mut rig) } else { connect_tcp(&mut rig) };
        let frames: Vec<String> = (0..FRAMES).map(|number| format!("{number}\n")).collect();
        client.write_all(frames.concat().as_bytes()).unwrap();
        // The client reads nothing until the socket is full.
        rig.requests(1);
        rig.quiet();
        let answered = rig.record.requests().len();
        assert!(answered < FRAMES, "{answered} frames answered before the client reads");
        let reply = rig.read_exact(&mut client, FRAMES * REPLY);
        let expected: Vec<u8> = (0..FRAMES).flat_map(|number| [number as u8; REPLY]).collect();
        assert!(reply == expected, "in order");
        assert_eq!(rig.record.requests().len(), FRAMES);
        assert_eq!(rig.record.closed(), []);
    }
}

#[test]
fn frames_held_while_the_socket_is_full_are_answered_after_end_of_file() {
    const FRAMES: usize = 60;
    let reply = |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&[b'r'; 10_000]);
    let mut rig = rig(lines(), reply).on_incomplete(reply);
    let (mut client, _) = connect_unix(&mut rig);
    client.write_all(&b"\n".repeat(FRAMES)).unwrap();
    client.write_all(b"rest").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    rig.requests(1);
    for _ in 0..20 {
        rig.turn();
    }
    assert!(rig.record.requests().len() < FRAMES);
    let reply = rig.read_to_end(&mut client).unwrap();
    assert_eq!(reply.len(), (FRAMES + 1) * 10_000);
    assert_eq!(rig.record.requests(), vec![(Cause::Framed, vec![]); FRAMES]);
    assert_eq!(rig.record.incomplete(), [(Cause::Eof, b"rest".to_vec())]);
    assert_eq!(rig.record.closed(), [CloseReason::Eof]);
}

#[test]
fn a_peer_that_reads_nothing_is_closed_at_its_deadline() {
    let deadline = millis(100);
    let mut rig = replies(drained().clients_deadline(deadline));
    let (mut client, _) = connect_stuck(&mut rig);
    client.write_all(b"long").unwrap();
    rig.requests(1);
    rig.quiet();
    let began = Instant::now();
    assert_eq!(rig.first_close(), CloseReason::WriteStalled);
    assert!(began.elapsed() < deadline + millis(1000));
    let end = rig.record.ends().remove(0);
    assert!(end.age >= deadline, "{end:?}");
    assert!(end.bytes_unsent > 0);
    assert_eq!(end.bytes_out + end.bytes_unsent, LONG_REPLY as u64);
    assert_eq!(rig.manager.stats().bytes_unsent, end.bytes_unsent);
    assert_eq!(rig.record.requests().len(), 1, "no request callback while the reply is unsent");
    assert_eq!(rig.manager.stats().lingering, 0, "the socket does not linger");
}

#[test]
fn input_from_a_peer_that_reads_nothing_extends_no_deadline() {
    let mut rig = replies(drained().clients_deadline(millis(100)));
    let (mut client, _) = connect_stuck(&mut rig);
    client.write_all(b"long").unwrap();
    rig.requests(1);
    rig.quiet();
    let began = Instant::now();
    while rig.record.ends().is_empty() && began.elapsed() < Duration::from_secs(10) {
        if client.write_all(b".").is_err() {
            break;
        }
        rig.pass(millis(10));
    }
    assert_eq!(rig.first_close(), CloseReason::WriteStalled);
    assert_eq!(rig.record.ends()[0].bytes_in, 4, "not read while the reply is unsent");
}

/// Reads a little every 10 ms until the connection ends. Returns the number of bytes read.
fn read_slowly<F>(rig: &mut Rig<F>, client: &mut TcpStream) -> usize
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    client.set_nonblocking(true).unwrap();
    let mut received = 0;
    while rig.record.ends().is_empty() {
        match client.read(&mut [0; 2_000]) {
            Ok(0) => break,
            Ok(count) => received += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        rig.pass(millis(10));
        assert!(received < 1 << 20, "the connection does not end");
    }
    received
}

#[test]
fn a_slow_reader_survives_the_idle_deadline_but_not_the_total_one() {
    let total = millis(500);
    let config =
        drained().clients_deadline(millis(200)).request_deadline(total).write_limit(1 << 20);
    let mut rig = replies(config);
    let (mut client, _) = connect_unix(&mut rig);
    client.write_all((1 << 20).to_string().as_bytes()).unwrap();
    rig.requests(1);
    read_slowly(&mut rig, &mut client);
    assert_eq!(rig.first_close(), CloseReason::WriteStalled);
    let end = rig.record.ends().remove(0);
    assert!(end.age >= total, "{end:?}: closed at the total deadline, not at the idle one");
    assert!(end.bytes_unsent > 0);
}

#[test]
fn without_a_total_deadline_a_slow_reader_gets_the_whole_reply() {
    const REPLY: usize = 60_000;
    let config = drained().clients_deadline(millis(250)).request_deadline(None);
    let mut rig = replies(config);
    let (mut client, _) = connect_unix(&mut rig);
    client.write_all(REPLY.to_string().as_bytes()).unwrap();
    rig.requests(1);
    let received = read_slowly(&mut rig, &mut client);
    rig.first_close();
    assert_eq!(
        rig.record.closed(),
        [CloseReason::Expired],
        "closed while idle, after the whole reply"
    );
    let end = rig.record.ends().remove(0);
    assert!(end.age >= millis(300), "{end:?}: the reply took longer than the idle deadline");
    assert_eq!((end.bytes_out, end.bytes_unsent), (REPLY as u64, 0));
    assert!(received <= REPLY);
}

#[test]
fn the_total_deadline_of_a_reply_ends_when_the_reply_is_sent() {
    let total = millis(150);
    let mut rig = replies(drained().request_deadline(total));
    let (mut client, _) = connect_unix(&mut rig);
    client.write_all(b"long").unwrap();
    rig.requests(1);
    rig.quiet();
    assert!(rig.manager.stats().bytes_out < LONG_REPLY as u64, "part of the reply had to wait");
    rig.read_exact(&mut client, LONG_REPLY);
    rig.pass(2 * total);
    assert_eq!(rig.record.closed(), []);
}

/// A transport that writes at most 10 bytes per call.
struct SmallWrites(UnixStream);

impl Read for SmallWrites {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for SmallWrites {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(10)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for SmallWrites {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for SmallWrites {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }
}

#[test]
fn a_reply_beyond_the_write_budget_continues_without_another_event() {
    let mut rig = replies(drained());
    let (mut client, ours) = UnixStream::pair().unwrap();
    let boxed: Box<dyn Transport> = Box::new(SmallWrites(ours));
    rig.manager.put(boxed).unwrap();
    client.write_all(b"1000").unwrap();
    // The client reads nothing meanwhile, so no new event reports the socket as writable.
    rig.until(|rig| rig.manager.stats().bytes_out == 1000);
    let mut got = vec![0; 1000];
    client.read_exact(&mut got).unwrap();
    assert_eq!(got, pattern(1000));
}

/// In the Go package, fifty such peers took half a gigabyte of memory within a second.
#[test]
fn peers_that_never_read_use_at_most_their_limit_and_delay_no_other() {
    const LIMIT: usize = 100_000;
    let config = lines().write_limit(LIMIT);
    let mut rig = rig(config, |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(&body.repeat(500)));
    let mut stalled_clients: Vec<TcpStream> = (0..50)
        .map(|_| {
            let (client, _) = connect_stuck(&mut rig);
            client.set_nonblocking(true).unwrap();
            client
        })
        .collect();
    let (mut reader, reader_id) = rig.connect();
    let requests = b"ping\n".repeat(2_000);
    for _ in 0..5 {
        for client in &mut stalled_clients {
            // A short or failed write is expected once the socket is full.
            let _ = client.write(&requests);
        }
        reader.write_all(b"hello\n").unwrap();
        assert_eq!(rig.read_exact(&mut reader, 2_500), b"hello".repeat(500));
    }
    rig.quiet();
    assert_eq!(rig.record.closed(), [], "requests wait, so that write_limit is not exceeded");
    let bytes_in = rig.manager.stats().bytes_in;
    let reads = rig.manager.stats().reads;
    reader.write_all(b"hello\n").unwrap();
    assert_eq!(rig.read_exact(&mut reader, 2_500).len(), 2_500);
    rig.quiet();
    assert_eq!(rig.manager.stats().bytes_in, bytes_in + 6, "the stalled connections are not read");
    assert!(rig.manager.stats().reads <= reads + 2);
    rig.manager.set_config(lines().write_limit(LIMIT).clients_deadline(millis(1))).unwrap();
    rig.until(|rig| rig.manager.stats().live == 0);
    let ends = rig.record.ends();
    let stalled = ends.iter().filter(|end| end.reason == CloseReason::WriteStalled);
    assert_eq!(stalled.count(), 50);
    for end in ends.iter().filter(|end| end.id != reader_id) {
        assert!((1..=LIMIT as u64).contains(&end.bytes_unsent), "{end:?}");
        assert!(end.bytes_dropped <= 5120, "{end:?}: at most one buffer is held");
    }
}

#[test]
fn close_waits_until_the_reply_is_sent() {
    let mut rig = rig(drained(), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.write_all(&pattern(LONG_REPLY))?;
        conn.close();
        Ok(())
    });
    let (mut client, _) = connect_unix(&mut rig);
    client.write_all(b"bye").unwrap();
    rig.requests(1);
    rig.quiet();
    assert_eq!(rig.record.closed(), [], "not closed before the reply is sent");
    assert!(rig.read_to_end(&mut client).unwrap() == pattern(LONG_REPLY));
    assert_eq!(rig.record.closed(), [CloseReason::Requested]);
    assert_eq!(flushes(&rig.record.all()), 0, "no hook runs for a closing connection");
    assert_eq!(rig.record.ends()[0].bytes_unsent, 0);
}

#[test]
fn a_callback_error_closes_after_the_reply_is_sent() {
    let mut rig = rig(drained(), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.write_all(&pattern(LONG_REPLY))?;
        Err(ErrorKind::Other.into())
    });
    let (mut client, _) = connect_unix(&mut rig);
    client.write_all(b"bye").unwrap();
    assert!(rig.read_to_end(&mut client).unwrap() == pattern(LONG_REPLY));
    assert_eq!(rig.record.closed(), [CloseReason::Failed]);
}

#[test]
fn a_closing_connection_still_has_a_deadline() {
    let mut rig = rig(drained().clients_deadline(millis(80)), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.write_all(&pattern(LONG_REPLY))?;
        conn.close();
        Ok(())
    });
    let (mut client, _) = connect_unix(&mut rig);
    client.write_all(b"bye").unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteStalled);
    let end = rig.record.ends().remove(0);
    assert_eq!(end.bytes_out + end.bytes_unsent, LONG_REPLY as u64);
}

#[test]
fn abort_does_not_flush() {
    let mut rig = rig(lines(), |conn: &mut Conn<'_>, body: &[u8]| {
        conn.write_all(body)?;
        if body == b"abort" {
            conn.abort();
        }
        Ok(())
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"one\nabort\nlost\n").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Aborted);
    let end = rig.record.ends().remove(0);
    assert_eq!((end.bytes_out, end.bytes_unsent, end.bytes_dropped), (0, 8, 5));
    assert_eq!(rig.read_to_end(&mut client).unwrap_or_default(), b"");
    assert_eq!(rig.manager.stats().writes, 0);
    assert_eq!(rig.manager.stats().lingering, 0);
}

/// Writes to each new connection and aborts it in the same callback.
struct AbortsInOpened;

impl Handler for AbortsInOpened {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
        conn.write_all(b"not sent!!")?;
        conn.abort();
        Ok(())
    }

    fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> io::Result<()> {
        panic!("the connection was aborted in `opened`");
    }
}

#[test]
fn abort_does_not_flush_the_output_of_the_opened_hook() {
    let mut manager = Manager::with_handler(drained(), AbortsInOpened).unwrap();
    manager.start().unwrap();
    let (mut client, ours) = pair();
    manager.put(ours).unwrap();
    while manager.stats().live > 0 {
        manager.turn(Some(millis(1000))).unwrap();
    }
    let stats = manager.stats();
    assert_eq!(stats.closed(CloseReason::Aborted), 1);
    assert_eq!((stats.bytes_out, stats.bytes_unsent), (0, 10));
    let mut got = Vec::new();
    let _ = client.read_to_end(&mut got);
    assert_eq!(got, b"");
}

#[test]
fn end_of_file_while_a_reply_is_blocked_does_not_truncate_it() {
    for unix in [true, false] {
        let mut rig = replies(drained());
        let (mut client, _) = if unix { connect_unix(&mut rig) } else { connect_tcp(&mut rig) };
        client.write_all(b"500000").unwrap();
        rig.requests(1);
        rig.quiet();
        assert!(rig.manager.stats().bytes_out < 500_000 || !unix);
        client.shutdown(Shutdown::Write).unwrap();
        rig.turn();
        assert!(rig.read_to_end(&mut client).unwrap() == pattern(500_000));
        assert_eq!(rig.record.closed(), [CloseReason::Eof]);
        assert_eq!(rig.record.requests().len(), 1);
    }
}

/// This test is left out with poll(2). There, mio arms the descriptor again after each write that
/// would block, and the end of file is then reported again.
#[cfg(not(mio_unsupported_force_poll_poll))]
#[test]
fn end_of_file_while_a_reply_is_blocked_does_not_spin() {
    let mut rig = replies(drained());
    let (mut client, _) = connect_stuck(&mut rig);
    client.write_all(b"long").unwrap();
    rig.requests(1);
    client.shutdown(Shutdown::Write).unwrap();
    rig.quiet();
    let before = rig.manager.stats();
    rig.pass(millis(50));
    let after = rig.manager.stats();
    assert!(after.turns - before.turns <= 4, "{} turns", after.turns - before.turns);
    assert!(after.writes - before.writes <= 2, "{} writes", after.writes - before.writes);
}

#[test]
fn a_reset_while_a_reply_is_blocked_closes_at_once() {
    let mut rig = replies(drained());
    let (mut client, _) = connect_stuck(&mut rig);
    client.write_all(b"long").unwrap();
    rig.requests(1);
    rig.quiet();
    assert_eq!(rig.record.closed(), []);
    reset(client);
    assert_eq!(rig.first_close(), CloseReason::Reset);
    let end = rig.record.ends().remove(0);
    assert_eq!(end.bytes_out + end.bytes_unsent, LONG_REPLY as u64);
    assert!(end.bytes_unsent > 0);
}

/// Returns a rig that executes the commands `pause N`, `resume N`, `close N` and `send N text`. N
/// is the index of a connection, in the order of the first requests of all connections. Other
/// bodies are echoed.
fn command_rig(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    let mut known: Vec<ConnId> = Vec::new();
    rig(config, move |conn: &mut Conn<'_>, body: &[u8]| {
        if !known.contains(&conn.id()) {
            known.push(conn.id());
        }
        let text = String::from_utf8_lossy(body);
        let words: Vec<&str> = text.splitn(3, ' ').collect();
        let other = words.get(1).and_then(|word| known.get(word.parse::<usize>().ok()?).copied());
        match (words[0], other) {
            ("pause", Some(other)) => conn.commands().pause(other)?,
            ("resume", Some(other)) => conn.commands().resume(other)?,
            ("close", Some(other)) => conn.commands().close(other)?,
            ("send", Some(other)) => conn.commands().send(other, words[2].as_bytes())?,
            _ => conn.write_all(body)?,
        }
        Ok(())
    })
}

#[test]
fn a_callback_pauses_and_resumes_another_connection() {
    let mut rig = command_rig(lines());
    let ((mut first, first_id), (mut second, _)) = (rig.connect(), rig.connect());
    first.write_all(b"hello\n").unwrap();
    assert_eq!(rig.read_exact(&mut first, 5), b"hello");
    second.write_all(b"pause 0\n").unwrap();
    rig.requests(2);
    rig.quiet();
    let bytes_in = rig.manager.stats().bytes_in;
    first.write_all(b"one\ntwo\n").unwrap();
    rig.quiet();
    assert_eq!(rig.manager.stats().bytes_in, bytes_in, "a paused connection is not read");
    second.write_all(b"me\n").unwrap();
    assert_eq!(rig.read_exact(&mut second, 2), b"me", "another connection is served");
    second.write_all(b"resume 0\n").unwrap();
    assert_eq!(rig.read_exact(&mut first, 6), b"onetwo", "read without a new event");
    second.write_all(b"pause 0\n").unwrap();
    rig.requests(7);
    rig.quiet();
    first.write_all(b"lost\n").unwrap();
    second.write_all(b"close 0\n").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Requested);
    assert_eq!(rig.record.ends()[0].id, first_id, "a paused connection can be closed");
}

#[test]
fn frames_held_by_a_paused_connection_wait_for_the_resume() {
    let mut rig = rig(lines(), |conn: &mut Conn<'_>, body: &[u8]| {
        if body == b"wait" {
            conn.pause();
        }
        conn.write_all(body)
    });
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    client.write_all(b"one\nwait\ntwo\nthr").unwrap();
    assert_eq!(
        rig.read_exact(&mut client, 7),
        b"onewait",
        "the output of the callback that pauses is sent"
    );
    rig.quiet();
    assert_eq!(rig.record.requests().len(), 2);
    handle.resume(id).unwrap();
    assert_eq!(rig.read_exact(&mut client, 3), b"two");
    client.write_all(b"ee\n").unwrap();
    assert_eq!(rig.read_exact(&mut client, 5), b"three");
}

/// `set_config` has armed the timer again, so no flag is set when the connection is visited after
/// the resume.
#[test]
fn a_resumed_connection_without_new_input_is_not_read() {
    let mut rig = replies(lines());
    let (mut client, id) = rig.connect();
    client.write_all(b"1\n").unwrap();
    rig.read_exact(&mut client, 1);
    rig.quiet();
    let before = rig.manager.stats().reads;
    for _ in 0..3 {
        rig.manager.handle().pause(id).unwrap();
        rig.quiet();
        rig.manager.handle().resume(id).unwrap();
        rig.manager.handle().set_config(lines()).unwrap();
        rig.quiet();
    }
    assert_eq!(rig.manager.stats().reads, before);
}

#[test]
fn a_paused_connection_sees_end_of_file_when_it_is_resumed() {
    let mut rig = rig(lines(), |conn: &mut Conn<'_>, body: &[u8]| {
        if body == b"wait" {
            conn.pause();
        }
        Ok(())
    });
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    client.write_all(b"wait\n").unwrap();
    rig.requests(1);
    client.write_all(b"rest").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    rig.quiet();
    assert_eq!(rig.record.closed(), []);
    handle.resume(id).unwrap();
    assert_eq!(rig.incomplete(), [(Cause::Eof, b"rest".to_vec())]);
    assert_eq!(rig.first_close(), CloseReason::Eof);
    assert_eq!(rig.record.requests(), [(Cause::Framed, b"wait".to_vec())]);
}

#[test]
fn a_connection_paused_in_its_last_callback_stays_open_until_resumed() {
    let mut rig = rig(lines(), |_, _| Ok(())).on_incomplete(|conn, _| {
        conn.pause();
        Ok(())
    });
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    client.write_all(b"last").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.incomplete(), [(Cause::Eof, b"last".to_vec())]);
    rig.quiet();
    assert_eq!(rig.record.closed(), []);
    handle.send(id, b"answer").unwrap();
    assert_eq!(rig.read_exact(&mut client, 6), b"answer");
    assert_eq!(rig.record.closed(), []);
    handle.resume(id).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"");
    assert_eq!(rig.record.closed(), [CloseReason::Eof]);
    assert_eq!((rig.record.requests(), rig.record.read_closed()), (vec![], 1));
}

#[test]
fn a_paused_connection_is_flushed_but_not_read() {
    let mut rig = rig(drained(), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.pause();
        conn.write_all(&pattern(LONG_REPLY))
    });
    let handle = rig.manager.handle();
    let (mut client, id) = connect_unix(&mut rig);
    client.write_all(b"first").unwrap();
    rig.requests(1);
    client.write_all(b"second").unwrap();
    assert!(rig.read_exact(&mut client, LONG_REPLY) == pattern(LONG_REPLY));
    rig.quiet();
    assert_eq!(rig.record.requests().len(), 1);
    handle.resume(id).unwrap();
    assert_eq!(rig.requests(2)[1], (Cause::Drained, b"second".to_vec()));
}

#[test]
fn a_paused_connection_whose_peer_reads_nothing_is_closed() {
    let mut rig = rig(drained().clients_deadline(millis(80)), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.pause();
        conn.write_all(&pattern(LONG_REPLY))
    });
    let (mut client, _) = connect_unix(&mut rig);
    client.write_all(b"first").unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteStalled);
}

#[test]
fn a_callback_sends_to_other_connections() {
    let mut rig = command_rig(lines());
    let ((mut first, _), (mut second, _)) = (rig.connect(), rig.connect());
    first.write_all(b"hello\n").unwrap();
    assert_eq!(rig.read_exact(&mut first, 5), b"hello");
    second.write_all(b"send 0 good\nsend 0  morning\nsend 1 myself\n").unwrap();
    assert_eq!(rig.read_exact(&mut first, 12), b"good morning", "in order");
    assert_eq!(rig.read_exact(&mut second, 6), b"myself");
    drop(first);
    rig.first_close();
    let stale = rig.manager.stats().stale_commands;
    second.write_all(b"send 0 too late\nstill here\n").unwrap();
    assert_eq!(rig.read_exact(&mut second, 10), b"still here");
    rig.quiet();
    assert_eq!(rig.manager.stats().stale_commands, stale + 1);
}

#[test]
fn bytes_sent_by_another_callback_follow_a_blocked_reply() {
    let mut blocked = None;
    let mut rig = rig(drained(), move |conn: &mut Conn<'_>, body: &[u8]| match blocked {
        None => {
            blocked = Some(conn.id());
            conn.write_all(&pattern(LONG_REPLY))
        }
        Some(blocked) => Ok(conn.commands().send(blocked, body)?),
    });
    let (mut first, _) = connect_unix(&mut rig);
    first.write_all(b"long").unwrap();
    rig.requests(1);
    let (mut second, _) = rig.connect();
    second.write_all(b"and this").unwrap();
    rig.requests(2);
    rig.quiet();
    let expected = [pattern(LONG_REPLY), b"and this".to_vec()].concat();
    assert!(rig.read_exact(&mut first, expected.len()) == expected);
    rig.quiet();
    assert_eq!(flushes(&rig.record.all()), 1);
}

#[test]
fn a_send_to_a_connection_does_not_lose_its_input() {
    let mut rig = command_rig(lines());
    let ((mut first, _), (mut second, _)) = (connect_unix(&mut rig), rig.connect());
    first.write_all(b"hello\n").unwrap();
    assert_eq!(rig.read_exact(&mut first, 5), b"hello");
    for _ in 0..20 {
        // Both writes may arrive in one turn. When the command is executed, the first connection
        // may already be on the ready list. If it is not, the command adds it to the list.
        second.write_all(b"send 0 news \n").unwrap();
        first.write_all(b"ping\n").unwrap();
        let mut got = rig.read_exact(&mut first, 9);
        got.sort_unstable();
        let mut expected = b"news ping".to_vec();
        expected.sort_unstable();
        assert_eq!(got, expected);
    }
}

#[test]
fn replies_of_several_flushes_in_one_turn_are_complete() {
    let mut rig = rig(lines().buffer_size(64 << 10), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.write_all(&pattern(1000))
    });
    let (mut client, _) = rig.connect();
    client.write_all(&b"\n".repeat(900)).unwrap();
    let reply = rig.read_exact(&mut client, 900_000);
    assert!(reply.chunks(1000).all(|chunk| chunk == pattern(1000)));
    let writes = rig.manager.stats().writes;
    assert!((900_000 / (66 << 10)..100).contains(&writes), "{writes} writes");
}

#[test]
fn nothing_is_written_without_a_reply() {
    let mut rig = rig(drained(), |_: &mut Conn<'_>, _: &[u8]| Ok(()));
    let (mut client, _) = rig.connect();
    client.write_all(b"no reply").unwrap();
    rig.requests(1);
    rig.quiet();
    assert_eq!(rig.manager.stats().writes, 0);
    assert_eq!(flushes(&rig.record.all()), 0);
}

#[test]
fn earlier_replies_of_a_visit_do_not_count_against_the_next_one() {
    let mut rig = rig(lines(), |conn, body| {
        let size: usize = std::str::from_utf8(body).unwrap().parse().unwrap();
        conn.write_all(&vec![b'x'; size])
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"60000\n1000000\n").unwrap();
    assert_eq!(rig.read_exact(&mut client, 1_060_000).len(), 1_060_000);
}
