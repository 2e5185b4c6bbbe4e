//! The last calls of a connection: the hooks that get the bytes that are held at the end of file, at
//! a deadline, and when a limit is reached.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use pool_manager::{
    Cause, CloseReason, Config, Conn, ConnId, Frame, Framing, Manager, Prefix, RateLimit,
};

use crate::support::{Record, Rig, Seen, echo, pair, rig, turn_until, with_timeouts};

/// A deadline that no test reaches.
const LONG: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_millis(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Request,
    Incomplete,
    ReadClosed,
}

use Hook::{Incomplete, ReadClosed, Request};

/// A callback of a connection, with its cause and the bytes that it got.
type Call = (Hook, Cause, Vec<u8>);

fn call(hook: Hook, cause: Cause, bytes: &[u8]) -> Call {
    (hook, cause, bytes.to_vec())
}

/// The only call at the end of file if no bytes are held.
fn read_closed() -> Call {
    call(ReadClosed, Cause::Eof, b"")
}

/// Returns the calls for a connection, in order.
fn calls(record: &Record, of: ConnId) -> Vec<Call> {
    let call = |seen| match seen {
        Seen::Request(id, cause, body) if id == of => Some((Request, cause, body)),
        Seen::Incomplete(id, cause, held) if id == of => Some((Incomplete, cause, held)),
        Seen::ReadClosed(id, cause) if id == of => Some((ReadClosed, cause, vec![])),
        _ => None,
    };
    record.all().into_iter().filter_map(call).collect()
}

/// Returns the answer of [`answering`] to a call.
fn answer((hook, _, bytes): &Call) -> Vec<u8> {
    match hook {
        Request => [b"<", &bytes[..], b">"].concat(),
        Incomplete => [b"[", &bytes[..], b"]"].concat(),
        ReadClosed => b"eof".to_vec(),
    }
}

fn write_answer(conn: &mut Conn<'_>, hook: Hook, bytes: &[u8]) -> io::Result<()> {
    let answer = answer(&call(hook, conn.cause(), bytes));
    conn.write_all(&answer)
}

/// Returns a rig that answers every call, so that the peer sees the calls and their order. It
/// finishes the connection at the end of file.
fn answering(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    rig(config, |conn: &mut Conn<'_>, body: &[u8]| write_answer(conn, Request, body))
        .on_incomplete(|conn, held| write_answer(conn, Incomplete, held))
        .on_read_closed(|conn| {
            write_answer(conn, ReadClosed, b"")?;
            conn.finish();
            Ok(())
        })
}

fn config(framing: Framing) -> Config {
    Config::new().framing(framing).buffer_size(16).clients_deadline(LONG)
}

/// A framing with message boundaries, and bytes for it.
struct Frames {
    framing: Framing,
    /// A complete frame and its body.
    frame: &'static [u8],
    body: &'static [u8],
    /// A part of a frame.
    part: &'static [u8],
    /// A part of a frame that is longer than 16 bytes.
    long: &'static [u8],
}

fn frames() -> [Frames; 3] {
    let sentence = |held: &[u8]| match held.iter().position(|&byte| byte == b'.') {
        Some(at) => Frame::Complete(at + 1),
        None => Frame::Partial,
    };
    [
        Frames {
            framing: Framing::Delimited(b'\n'),
            frame: b"one\n",
            body: b"one",
            part: b"tw",
            long: b"sixteen bytes, x",
        },
        Frames {
            framing: Framing::LengthPrefixed { prefix: Prefix::U16Be, limit: Framing::NO_LIMIT },
            frame: b"\0\x03one",
            body: b"one",
            part: b"\0\x05tw",
            long: b"\0\x0ftw",
        },
        Frames {
            framing: Framing::custom(sentence),
            frame: b"one.",
            body: b"one.",
            part: b"tw",
            long: b"sixteen bytes, x",
        },
    ]
}

const STREAMS: [Framing; 2] = [Framing::Filled, Framing::Drained];

/// Returns every framing.
fn framings() -> Vec<Framing> {
    STREAMS.into_iter().chain(frames().map(|frames| frames.framing)).collect()
}

/// Returns the two ends of a connection on which a client has sent bytes and, if `finishes`, the end
/// of file.
fn sent(bytes: &[u8], finishes: bool) -> (TcpStream, TcpStream) {
    let (mut client, ours) = pair();
    client.write_all(bytes).unwrap();
    if finishes {
        client.shutdown(Shutdown::Write).unwrap();
    }
    (client, ours)
}

/// Checks that a connection has ended for `reason` after exactly these calls, that its peer got
/// exactly the answers to them, and that all calls were counted.
#[track_caller]
fn assert_ended<F>(
    rig: &mut Rig<F>,
    client: &mut TcpStream,
    id: ConnId,
    expected: &[Call],
    reason: CloseReason,
) where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let reply = rig.read_to_end(client).unwrap();
    rig.until(|rig| rig.record.ends().iter().any(|end| end.id == id));
    assert_eq!(calls(&rig.record, id), expected);
    let answers: Vec<u8> = expected.iter().flat_map(answer).collect();
    assert_eq!(reply.escape_ascii().to_string(), answers.escape_ascii().to_string());
    let end = rig.record.ends().remove(0);
    assert_eq!((end.reason, end.bytes_dropped, end.bytes_unsent), (reason, 0, 0));
    assert_counted(rig);
}

/// Checks that the counters match the recorded calls of all connections.
#[track_caller]
fn assert_counted<F>(rig: &Rig<F>)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let (requests, incomplete) = (rig.record.requests(), rig.record.incomplete());
    let stats = rig.manager.stats();
    let count = |calls: &[(Cause, Vec<u8>)], cause| {
        calls.iter().filter(|(of, _)| *of == cause).count() as u64
    };
    for cause in [
        Cause::Drained,
        Cause::Framed,
        Cause::Full,
        Cause::Eof,
        Cause::Expired,
        Cause::MemoryLimit,
        Cause::Overlong,
    ] {
        assert_eq!(stats.requests(cause), count(&requests, cause), "requests, {cause:?}");
        assert_eq!(stats.incomplete(cause), count(&incomplete, cause), "incomplete, {cause:?}");
    }
}

/// Puts a connection on which a client has sent `bytes`, and checks its calls and its end.
#[track_caller]
fn assert_calls(
    config: Config,
    bytes: &[u8],
    finishes: bool,
    expected: &[Call],
    reason: CloseReason,
) {
    let (mut client, ours) = sent(bytes, finishes);
    let mut rig = answering(config);
    let id = rig.manager.put(ours).unwrap();
    assert_ended(&mut rig, &mut client, id, expected, reason);
}

// The end of file.

#[test]
fn at_end_of_file_the_held_bytes_of_a_stream_are_a_request() {
    for framing in STREAMS {
        let expected = [call(Request, Cause::Eof, b"rest"), read_closed()];
        assert_calls(config(framing), b"rest", true, &expected, CloseReason::Eof);
    }
    let expected = [
        call(Request, Cause::Full, b"sixteen bytes..."),
        call(Request, Cause::Eof, b"rest"),
        read_closed(),
    ];
    for framing in STREAMS {
        let bytes = b"sixteen bytes...rest";
        assert_calls(config(framing), bytes, true, &expected, CloseReason::Eof);
    }
}

#[test]
fn at_end_of_file_a_part_of_a_frame_is_incomplete_and_not_a_request() {
    for Frames { framing, frame, body, part, .. } in frames() {
        let expected =
            [call(Request, Cause::Framed, body), call(Incomplete, Cause::Eof, part), read_closed()];
        let bytes = [frame, part].concat();
        assert_calls(config(framing), &bytes, true, &expected, CloseReason::Eof);
    }
}

#[test]
fn at_end_of_file_without_held_bytes_only_read_closed_is_called() {
    for framing in framings() {
        assert_calls(config(framing), b"", true, &[read_closed()], CloseReason::Eof);
    }
    for Frames { framing, frame, body, .. } in frames() {
        let expected = [call(Request, Cause::Framed, body), read_closed()];
        assert_calls(config(framing), frame, true, &expected, CloseReason::Eof);
    }
}

#[test]
fn half_a_line_before_end_of_file_is_answered_once_in_any_fragments() {
    let stream = b"one\ntw";
    for fragment in [1, 3, stream.len()] {
        let mut rig = answering(config(Framing::Delimited(b'\n')));
        let (mut client, id) = rig.connect();
        for (count, piece) in stream.chunks(fragment).enumerate() {
            client.write_all(piece).unwrap();
            rig.bytes_in((count * fragment + piece.len()) as u64);
        }
        client.shutdown(Shutdown::Write).unwrap();
        let expected = [
            call(Request, Cause::Framed, b"one"),
            call(Incomplete, Cause::Eof, b"tw"),
            read_closed(),
        ];
        assert_ended(&mut rig, &mut client, id, &expected, CloseReason::Eof);
    }
}

#[test]
fn an_upload_of_any_length_is_answered_once_at_its_end() {
    for size in [0, 7, 8, 9, 16, 17] {
        for framing in STREAMS {
            let total = Rc::new(Cell::new(0));
            let sum = total.clone();
            let config = config(framing.clone()).buffer_size(8);
            let rig = rig(config, move |_: &mut Conn<'_>, body: &[u8]| {
                sum.set(sum.get() + body.len());
                Ok(())
            });
            let mut rig = rig.on_read_closed(move |conn| {
                write!(conn, "{} bytes", total.get())?;
                conn.finish();
                Ok(())
            });
            let (mut client, _) = rig.connect();
            client.write_all(&vec![b'x'; size]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let reply = rig.read_to_end(&mut client).unwrap();
            assert_eq!(String::from_utf8(reply).unwrap(), format!("{size} bytes"), "{framing:?}");
            assert_eq!((rig.record.read_closed(), rig.record.incomplete()), (1, vec![]));
            assert_eq!(rig.record.closed(), [CloseReason::Eof]);
        }
    }
}

#[test]
fn a_closure_gets_complete_requests_only_and_closes_at_end_of_file() {
    let config = config(Framing::Delimited(b'\n'));
    let mut manager = Manager::new(config, |conn, body| conn.write_all(body)).unwrap();
    manager.start().unwrap();
    let (client, ours) = sent(b"one\ntw", true);
    manager.put(ours).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let mut reply = Vec::new();
    with_timeouts(client).read_to_end(&mut reply).unwrap();
    assert_eq!(reply, b"one");
    let stats = manager.stats();
    assert_eq!((stats.requests_total(), stats.incomplete(Cause::Eof)), (1, 1));
    assert_eq!((stats.closed(CloseReason::Eof), stats.bytes_dropped), (1, 0));
}

// Deadlines.

/// Under `Drained`, no bytes are held when a deadline passes.
#[test]
fn at_a_deadline_the_held_bytes_of_a_stream_are_a_request() {
    let expected = [call(Request, Cause::Expired, b"part")];
    let config = config(Framing::Filled);
    let idle = config.clone().clients_deadline(SOON);
    assert_calls(idle, b"part", false, &expected, CloseReason::Expired);
    let total = config.clone().request_deadline(SOON);
    assert_calls(total, b"part", false, &expected, CloseReason::Expired);

    let expected =
        [call(Request, Cause::Full, b"sixteen bytes..."), call(Request, Cause::Expired, b"part")];
    let config = config.clients_deadline(SOON);
    assert_calls(config, b"sixteen bytes...part", false, &expected, CloseReason::Expired);
}

#[test]
fn a_silent_peer_of_a_stream_expires_with_one_empty_request() {
    for framing in STREAMS {
        let config = config(framing).clients_deadline(SOON);
        let expected = [call(Request, Cause::Expired, b"")];
        assert_calls(config, b"", false, &expected, CloseReason::Expired);
    }
}

#[test]
fn a_served_peer_of_a_stream_expires_without_another_request() {
    for (framing, cause) in [(Framing::Filled, Cause::Full), (Framing::Drained, Cause::Drained)] {
        let config = config(framing).buffer_size(4).clients_deadline(SOON);
        // Under `Drained`, a full buffer is delivered as `Full`.
        let bytes: &[u8] = if cause == Cause::Full { b"four" } else { b"one" };
        let expected = [call(Request, cause, bytes), call(Incomplete, Cause::Expired, b"")];
        assert_calls(config, bytes, false, &expected, CloseReason::Expired);
    }
}

#[test]
fn at_a_deadline_a_part_of_a_frame_is_incomplete_and_not_a_request() {
    for Frames { framing, frame, body, part, .. } in frames() {
        let expected = [call(Incomplete, Cause::Expired, part)];
        let idle = config(framing.clone()).clients_deadline(SOON);
        assert_calls(idle.clone(), part, false, &expected, CloseReason::Expired);
        let total = config(framing).request_deadline(SOON);
        assert_calls(total, part, false, &expected, CloseReason::Expired);

        let request = call(Request, Cause::Framed, body);
        let expected = [&[request], &expected[..]].concat();
        assert_calls(idle, &[frame, part].concat(), false, &expected, CloseReason::Expired);
    }
}

#[test]
fn at_a_deadline_a_peer_that_sent_no_part_of_a_frame_is_incomplete_too() {
    for Frames { framing, frame, body, .. } in frames() {
        let config = config(framing).clients_deadline(SOON);
        let silent = [call(Incomplete, Cause::Expired, b"")];
        assert_calls(config.clone(), b"", false, &silent, CloseReason::Expired);

        let served = [call(Request, Cause::Framed, body), call(Incomplete, Cause::Expired, b"")];
        assert_calls(config, frame, false, &served, CloseReason::Expired);
    }
}

#[test]
fn a_line_service_tells_a_served_peer_that_it_was_idle_too_long() {
    let config = config(Framing::Delimited(b'\n')).clients_deadline(SOON);
    let mut rig = echo(config).on_incomplete(|conn, held| {
        assert_eq!((conn.cause(), held), (Cause::Expired, &b""[..]));
        conn.write_all(b"421 idle too long\r\n")
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"one\n").unwrap();
    assert_eq!(rig.read_exact(&mut client, 3), b"one");
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"421 idle too long\r\n");
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
}

/// Connects a rig to a peer. Returns the peer's end and the id of the connection.
fn connect_out<F>(rig: &mut Rig<F>) -> (TcpStream, ConnId)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let id = rig.manager.connect(listener.local_addr().unwrap()).unwrap();
    let peer = listener.accept().unwrap().0;
    rig.until(|rig| rig.manager.stats().connected == 1);
    (peer, id)
}

#[test]
fn an_outgoing_connection_whose_peer_never_spoke_gets_no_request() {
    for framing in framings() {
        let mut rig = answering(config(framing).clients_deadline(SOON));
        let (mut peer, id) = connect_out(&mut rig);
        let expected = [call(Incomplete, Cause::Expired, b"")];
        assert_ended(&mut rig, &mut peer, id, &expected, CloseReason::Expired);
    }
}

#[test]
fn bytes_on_an_outgoing_connection_are_treated_as_on_any_other() {
    let mut cases = vec![(Framing::Filled, &b"part"[..], Request)];
    cases.extend(frames().map(|frames| (frames.framing, frames.part, Incomplete)));
    for (framing, part, hook) in cases {
        let mut rig = answering(config(framing.clone()).clients_deadline(SOON));
        let (mut peer, id) = connect_out(&mut rig);
        peer.write_all(part).unwrap();
        let expected = [call(hook, Cause::Expired, part)];
        assert_ended(&mut rig, &mut peer, id, &expected, CloseReason::Expired);

        let mut rig = answering(config(framing));
        let (mut peer, id) = connect_out(&mut rig);
        peer.write_all(part).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let expected = [call(hook, Cause::Eof, part), read_closed()];
        assert_ended(&mut rig, &mut peer, id, &expected, CloseReason::Eof);
    }
}

// Limits.

#[test]
fn an_overlong_frame_is_incomplete_and_not_a_request() {
    for Frames { framing, frame, body, long, .. } in frames() {
        let overlong = call(Incomplete, Cause::Overlong, long);
        let expected = [overlong.clone()];
        assert_calls(config(framing.clone()), long, false, &expected, CloseReason::Overlong);

        let expected = [call(Request, Cause::Framed, body), overlong];
        let bytes = [frame, long].concat();
        assert_calls(config(framing), &bytes, false, &expected, CloseReason::Overlong);
    }
}

/// The end of file has arrived together with the frame. The limit still counts, so `read_closed` is
/// not called.
#[test]
fn an_overlong_frame_before_end_of_file_is_overlong() {
    for Frames { framing, long, .. } in frames() {
        let expected = [call(Incomplete, Cause::Overlong, long)];
        assert_calls(config(framing), long, true, &expected, CloseReason::Overlong);
    }
}

/// Checks the calls of a connection that sends `bytes` while another one has used up the memory
/// limit. Before that, both have sent `before`.
#[track_caller]
fn assert_calls_at_memory_limit(config: Config, before: &[u8], bytes: &[u8], expected: &[Call]) {
    let mut rig = answering(config.memory_limit(16));
    let [(mut first, _), (mut second, id)] = [(); 2].map(|()| rig.connect());
    for client in [&mut first, &mut second] {
        client.write_all(before).unwrap();
    }
    rig.bytes_in(2 * before.len() as u64);
    first.write_all(bytes).unwrap();
    rig.bytes_in((2 * before.len() + bytes.len()) as u64);
    rig.quiet();
    assert_eq!(rig.manager.stats().bytes_held, 16, "the first uses up the limit");
    second.write_all(bytes).unwrap();
    assert_ended(&mut rig, &mut second, id, expected, CloseReason::MemoryLimit);
    assert_eq!(rig.manager.stats().live, 1);
}

#[test]
fn at_memory_limit_the_held_bytes_of_a_stream_are_a_request() {
    let expected = [call(Request, Cause::MemoryLimit, b"part")];
    assert_calls_at_memory_limit(config(Framing::Filled), b"", b"part", &expected);

    // Under `Drained`, bytes are held because of the rate limit.
    let drained = config(Framing::Drained).rate_limit(RateLimit::per_second(1));
    let expected =
        [call(Request, Cause::Drained, b"one"), call(Request, Cause::MemoryLimit, b"two")];
    assert_calls_at_memory_limit(drained, b"one", b"two", &expected);
}

#[test]
fn at_memory_limit_a_part_of_a_frame_is_incomplete_and_not_a_request() {
    for Frames { framing, part, .. } in frames() {
        let expected = [call(Incomplete, Cause::MemoryLimit, part)];
        assert_calls_at_memory_limit(config(framing), b"", part, &expected);
    }
}

#[test]
fn at_memory_limit_delayed_requests_are_part_of_the_incomplete_one() {
    for Frames { framing, frame, body, part, .. } in frames() {
        let config = config(framing).rate_limit(RateLimit::per_second(1));
        let held = [frame, part].concat();
        let expected =
            [call(Request, Cause::Framed, body), call(Incomplete, Cause::MemoryLimit, &held)];
        assert_calls_at_memory_limit(config, frame, &held, &expected);
    }
}

// Hooks that fail, panic or close the connection.

/// What a hook does after it has written `bye`.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Fails,
    Panics,
    Closes,
    Aborts,
}

impl Ending {
    /// Every ending, with the close reason and the bytes that the peer gets.
    const ALL: [(Self, CloseReason, &'static [u8]); 4] = [
        (Self::Fails, CloseReason::Failed, b"bye"),
        (Self::Panics, CloseReason::Panicked, b""),
        (Self::Closes, CloseReason::Requested, b"bye"),
        (Self::Aborts, CloseReason::Aborted, b""),
    ];

    fn run(self, conn: &mut Conn<'_>) -> io::Result<()> {
        conn.write_all(b"bye")?;
        match self {
            Self::Fails => return Err(ErrorKind::Other.into()),
            Self::Panics => panic!("a test panic"),
            Self::Closes => conn.close(),
            Self::Aborts => conn.abort(),
        }
        Ok(())
    }
}

#[test]
fn a_failure_in_incomplete_is_the_close_reason_and_the_last_call() {
    for (ending, reason, reply) in Ending::ALL {
        for (bytes, finishes, cause) in [
            (&b"tw"[..], true, Cause::Eof),
            (b"tw", false, Cause::Expired),
            (b"sixteen bytes...", false, Cause::Overlong),
        ] {
            let config = config(Framing::Delimited(b'\n')).clients_deadline(SOON);
            let mut rig = echo(config).on_incomplete(move |conn, _| ending.run(conn));
            let (mut client, ours) = sent(bytes, finishes);
            let id = rig.manager.put(ours).unwrap();
            assert_eq!(rig.read_to_end(&mut client).unwrap(), reply, "{ending:?}, {cause:?}");
            assert_eq!(rig.first_close(), reason, "{ending:?}, {cause:?}");
            assert_eq!(calls(&rig.record, id), [call(Incomplete, cause, bytes)]);
            let unsent = if matches!(ending, Ending::Aborts) { 3 } else { 0 };
            assert_eq!(rig.record.ends()[0].bytes_unsent, unsent, "{ending:?}, {cause:?}");
            let panics = u64::from(matches!(ending, Ending::Panics));
            assert_eq!(rig.manager.stats().panics, panics);
        }
    }
}

#[test]
fn a_failure_in_read_closed_is_the_close_reason() {
    for (ending, reason, reply) in Ending::ALL {
        for finishes_too in [false, true] {
            let rig = echo(config(Framing::Delimited(b'\n')));
            let mut rig = rig.on_read_closed(move |conn| {
                let outcome = ending.run(conn);
                if finishes_too {
                    conn.finish();
                }
                outcome
            });
            let (mut client, ours) = sent(b"one\n", true);
            let id = rig.manager.put(ours).unwrap();
            let aborts = matches!(ending, Ending::Aborts);
            let reply = if aborts { b"".to_vec() } else { [b"one", reply].concat() };
            assert_eq!(rig.read_to_end(&mut client).unwrap(), reply, "{ending:?}");
            assert_eq!(rig.first_close(), reason, "{ending:?}");
            let expected = [call(Request, Cause::Framed, b"one"), read_closed()];
            assert_eq!(calls(&rig.record, id), expected);
            let unsent = if aborts { 6 } else { 0 };
            assert_eq!(rig.record.ends()[0].bytes_unsent, unsent, "{ending:?}");
            let panics = u64::from(matches!(ending, Ending::Panics));
            assert_eq!(rig.manager.stats().panics, panics);
        }
    }
}
