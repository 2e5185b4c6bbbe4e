//! The conditions under which the request callback runs, and the bodies that it gets.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pool_manager::{Cause, CloseReason, Config, Conn, Frame, Framing, Prefix};

use crate::support::{Rig, echo, pair, reset, rig, write_behind};

/// A deadline that no test reaches, so that no body is delivered because of a deadline.
const LONG_DEADLINE: Duration = Duration::from_secs(600);

fn config(framing: Framing, buffer_size: usize) -> Config {
    Config::new().framing(framing).buffer_size(buffer_size).clients_deadline(LONG_DEADLINE)
}

fn lines() -> Framing {
    Framing::Delimited(b'\n')
}

fn prefixed(prefix: Prefix) -> Framing {
    Framing::LengthPrefixed { prefix, limit: Framing::NO_LIMIT }
}

/// Returns a framing whose frames begin with a letter. The distance of the letter from `a` is the
/// number of bytes that follow it. Any other first byte is invalid.
fn letters() -> Framing {
    Framing::custom(|held| match held[0] {
        letter @ b'a'..=b'z' if held.len() > usize::from(letter - b'a') => {
            Frame::Complete(usize::from(letter - b'a') + 1)
        }
        b'a'..=b'z' => Frame::Partial,
        _ => Frame::Invalid,
    })
}

/// Returns a rig that replies with each body in angle brackets, so that empty bodies are visible.
/// It replies with the bytes of an incomplete frame in square brackets.
fn quote(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    let request = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(&[b"<", body, b">"].concat());
    rig(config, request).on_incomplete(|conn, held| conn.write_all(&[b"[", held, b"]"].concat()))
}

/// The causes and the bytes of calls of one hook.
type Calls = Vec<(Cause, Vec<u8>)>;

fn with_cause(cause: Cause, bodies: &[&[u8]]) -> Calls {
    bodies.iter().map(|body| (cause, body.to_vec())).collect()
}

fn framed(bodies: &[&[u8]]) -> Calls {
    with_cause(Cause::Framed, bodies)
}

/// Returns bytes that repeat only every 4093 bytes.
fn pattern(length: usize) -> Vec<u8> {
    // The length of the block is prime, so that a shift by a power of two changes the bytes.
    let block: Vec<u8> = (0..4093_u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let mut bytes = block.repeat(length / block.len() + 1);
    bytes.truncate(length);
    bytes
}

/// Returns each framing with a stream. The last three streams end with an incomplete frame.
fn streams() -> [(Framing, &'static [u8]); 5] {
    [
        (Framing::Filled, b"sixteen byte bufhold, and a rest"),
        (Framing::Drained, b"any bytes"),
        (lines(), b"one\n\ntwo\nthr"),
        (prefixed(Prefix::U16Be), b"\0\x03one\0\0\0\x03two\0\x09thr"),
        (letters(), b"adONEcTWzTHREE"),
    ]
}

#[test]
fn drained_answers_a_peer_that_waits() {
    let mut rig = echo(Config::new().framing(Framing::Drained));
    let (mut client, _) = rig.connect();
    client.write_all(b"ping").unwrap();
    assert_eq!(rig.read_exact(&mut client, 4), b"ping");
    assert_eq!(rig.record.requests(), [(Cause::Drained, b"ping".to_vec())]);
}

#[test]
fn filled_waits_for_a_full_buffer() {
    let mut rig = echo(config(Framing::Filled, 8));
    let (mut client, _) = rig.connect();
    client.write_all(b"seven b").unwrap();
    rig.bytes_in(7);
    rig.quiet();
    assert_eq!(rig.record.requests(), []);
    client.write_all(b"!").unwrap();
    assert_eq!(rig.read_exact(&mut client, 8), b"seven b!");
    assert_eq!(rig.record.requests(), with_cause(Cause::Full, &[b"seven b!"]));
}

#[test]
fn the_default_framing_is_filled() {
    assert!(matches!(Config::new().framing, Framing::Filled));
}

#[test]
fn frames_in_one_segment_cause_ordered_callbacks_and_one_write() {
    for (framing, segment, bodies) in [
        (lines(), &b"one\n\ntwo\n"[..], [&b"one"[..], b"", b"two"]),
        (prefixed(Prefix::U8), b"\x03one\0\x03two", [b"one", b"", b"two"]),
        (letters(), b"dONEadTWO", [b"dONE", b"a", b"dTWO"]),
    ] {
        let mut rig = quote(config(framing, 64));
        let (mut client, _) = rig.connect();
        client.write_all(segment).unwrap();
        let reply: Vec<u8> = bodies.iter().flat_map(|body| [b"<", *body, b">"].concat()).collect();
        assert_eq!(rig.read_exact(&mut client, reply.len()), reply);
        assert_eq!(rig.record.requests(), framed(&bodies));
        assert_eq!(rig.manager.stats().writes, 1);
    }
}

#[test]
fn every_length_prefix_is_decoded() {
    for (prefix, frames) in [
        (Prefix::U8, &b"\x02hi\0\x01!"[..]),
        (Prefix::U16Be, b"\0\x02hi\0\0\0\x01!"),
        (Prefix::U16Le, b"\x02\0hi\0\0\x01\0!"),
        (Prefix::U32Be, b"\0\0\0\x02hi\0\0\0\0\0\0\0\x01!"),
        (Prefix::U32Le, b"\x02\0\0\0hi\0\0\0\0\x01\0\0\0!"),
    ] {
        let mut rig = echo(config(prefixed(prefix), 64));
        let (mut client, _) = rig.connect();
        client.write_all(frames).unwrap();
        assert_eq!(rig.requests(3), framed(&[b"hi", b"", b"!"]), "{prefix:?}");
    }
}

#[test]
fn a_frame_may_come_in_fragments() {
    let mut rig = quote(config(lines(), 64));
    let (mut client, _) = rig.connect();
    let mut sent = 0;
    for (fragment, delivered) in [(&b"on"[..], 0), (b"e\ntw", 1), (b"o", 1), (b"\nthree\n", 3)] {
        client.write_all(fragment).unwrap();
        sent += fragment.len() as u64;
        rig.bytes_in(sent);
        assert_eq!(rig.record.requests().len(), delivered, "after {sent} bytes");
    }
    assert_eq!(rig.record.requests(), framed(&[b"one", b"two", b"three"]));
    assert_eq!(rig.read_exact(&mut client, 17), b"<one><two><three>");
}

/// Sends a stream in fragments of `fragment` bytes, then the end of file. Returns the requests and
/// the calls of `incomplete`.
fn delivered(framing: &Framing, stream: &[u8], fragment: usize) -> (Calls, Calls) {
    let mut rig = echo(config(framing.clone(), 16));
    let (mut client, _) = rig.connect();
    for (count, piece) in stream.chunks(fragment).enumerate() {
        client.write_all(piece).unwrap();
        rig.bytes_in((count * fragment + piece.len()) as u64);
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    assert_eq!(rig.record.read_closed(), 1);
    (rig.record.requests(), rig.record.incomplete())
}

#[test]
fn one_byte_fragmentation_gives_the_same_callbacks_as_one_write() {
    for (framing, stream) in streams() {
        let whole = delivered(&framing, stream, stream.len());
        let mut bytes = delivered(&framing, stream, 1);
        if let Framing::Drained = framing {
            // `Drained` delivers the bytes that have arrived, so each byte is a body.
            let expected: Vec<&[u8]> = stream.chunks(1).collect();
            assert_eq!(bytes.0, with_cause(Cause::Drained, &expected));
            bytes.0 = with_cause(Cause::Drained, &[&bytes.0.concat_bodies()]);
        }
        assert_eq!(bytes, whole, "{framing:?}");
    }
}

trait Bodies {
    fn concat_bodies(&self) -> Vec<u8>;
}

impl Bodies for Calls {
    fn concat_bodies(&self) -> Vec<u8> {
        self.iter().flat_map(|(_, body)| body.clone()).collect()
    }
}

#[test]
fn held_bytes_are_delivered_and_answered_at_end_of_file() {
    for (framing, held) in [
        (Framing::Filled, &b"rest"[..]),
        (lines(), b"rest"),
        (prefixed(Prefix::U16Be), b"\0\x09rest"),
        (letters(), b"zrest"),
    ] {
        let mut rig = quote(config(framing.clone(), 16));
        let (mut client, _) = rig.connect();
        client.write_all(held).unwrap();
        rig.bytes_in(held.len() as u64);
        let calls = (rig.record.requests(), rig.record.incomplete());
        assert_eq!(calls, (vec![], vec![]), "{framing:?}: not before the end of file");
        client.shutdown(Shutdown::Write).unwrap();
        let reply = rig.read_to_end(&mut client).unwrap();
        let last = with_cause(Cause::Eof, &[held]);
        let (expected, calls) = match framing {
            Framing::Filled => ([b"<", held, b">"].concat(), (last, vec![])),
            _ => ([b"[", held, b"]"].concat(), (vec![], last)),
        };
        assert_eq!(reply, expected, "a half-closed peer gets its reply");
        assert_eq!((rig.record.requests(), rig.record.incomplete()), calls, "{framing:?}");
        assert_eq!(rig.record.closed(), [CloseReason::Eof]);
    }
}

#[test]
fn complete_frames_and_the_remainder_go_to_different_hooks() {
    for (framing, stream) in streams() {
        let (mut client, ours) = pair();
        client.write_all(stream).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut rig = quote(config(framing.clone(), 16));
        rig.manager.put(ours).unwrap();
        let reply = rig.read_to_end(&mut client).unwrap();
        let (requests, held): (_, &[u8]) = match framing {
            Framing::Filled => (with_cause(Cause::Full, &[&stream[..16], &stream[16..]]), b""),
            Framing::Drained => (with_cause(Cause::Eof, &[stream]), b""),
            Framing::Delimited(_) => (framed(&[b"one", b"", b"two"]), b"thr"),
            Framing::LengthPrefixed { .. } => (framed(&[b"one", b"", b"two"]), b"\0\x09thr"),
            _ => (framed(&[b"a", b"dONE", b"cTW"]), b"zTHREE"),
        };
        let quoted: Vec<u8> =
            requests.iter().flat_map(|(_, body)| [b"<", &body[..], b">"].concat()).collect();
        assert_eq!(rig.record.requests(), requests, "{framing:?}");
        if held.is_empty() {
            assert_eq!((reply, rig.record.incomplete()), (quoted, vec![]), "{framing:?}");
        } else {
            assert_eq!(reply, [&quoted[..], b"[", held, b"]"].concat());
            assert_eq!(rig.record.incomplete(), with_cause(Cause::Eof, &[held]), "{framing:?}");
        }
        assert_eq!(rig.manager.stats().writes, 1, "{framing:?}: all replies in one write");
    }
}

#[test]
fn a_body_excludes_its_delimiter_or_prefix_and_held_bytes_include_it() {
    for (framing, stream, bodies, held) in [
        (lines(), &b"\n\na\n"[..], &[&b""[..], b"", b"a"][..], None),
        (prefixed(Prefix::U32Be), b"\0\0\0\x02he", &[b"he"], None),
        (prefixed(Prefix::U32Be), b"\0\0\0\x05he", &[], Some(&b"\0\0\0\x05he"[..])),
        (prefixed(Prefix::U32Be), b"\0\0\0\x05", &[], Some(b"\0\0\0\x05")),
        (prefixed(Prefix::U32Be), b"\0\0", &[], Some(b"\0\0")),
    ] {
        let mut rig = echo(config(framing, 16));
        let (mut client, _) = rig.connect();
        client.write_all(stream).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rig.first_close(), CloseReason::Eof);
        assert_eq!(rig.record.requests(), framed(bodies), "{stream:?}");
        let incomplete: Calls = held.iter().map(|held| (Cause::Eof, held.to_vec())).collect();
        assert_eq!(rig.record.incomplete(), incomplete, "{stream:?}");
    }
}

#[test]
fn end_of_file_without_held_bytes_is_not_a_request() {
    for (framing, _) in streams() {
        let mut rig = echo(config(framing, 16));
        let (client, _) = rig.connect();
        rig.quiet();
        drop(client);
        assert_eq!(rig.first_close(), CloseReason::Eof);
        assert_eq!((rig.record.requests(), rig.record.incomplete()), (vec![], vec![]));
        assert_eq!(rig.record.read_closed(), 1);
    }
}

#[test]
fn end_of_file_after_a_complete_request_is_not_a_request() {
    for (framing, request) in [
        (Framing::Filled, &b"0123456789abcdef"[..]),
        (Framing::Drained, b"ping"),
        (lines(), b"ping\n"),
    ] {
        let mut rig = quote(config(framing.clone(), 16));
        let (mut client, _) = rig.connect();
        client.write_all(request).unwrap();
        rig.requests(1);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rig.first_close(), CloseReason::Eof);
        assert_eq!(rig.record.requests().len(), 1, "{framing:?}");
        assert_eq!((rig.record.incomplete(), rig.record.read_closed()), (vec![], 1));
    }
}

#[test]
fn data_and_end_of_file_in_one_event_do_not_wait_for_a_deadline() {
    for (framing, stream) in streams() {
        let mut rig = quote(config(framing.clone(), 64));
        let (mut client, ours) = pair();
        let (mut unix_client, unix_ours) = UnixStream::pair().unwrap();
        client.write_all(stream).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        unix_client.write_all(stream).unwrap();
        unix_client.shutdown(Shutdown::Write).unwrap();
        rig.manager.put(ours).unwrap();
        rig.manager.put(unix_ours).unwrap();
        rig.until(|rig| rig.record.closed().len() == 2);
        assert_eq!(rig.record.closed(), [CloseReason::Eof; 2]);
        let stats = rig.manager.stats();
        let calls = (stats.requests(Cause::Eof), stats.incomplete(Cause::Eof));
        let stream = matches!(framing, Framing::Filled | Framing::Drained);
        assert_eq!(calls, if stream { (2, 0) } else { (0, 2) }, "{framing:?}");
        assert_eq!((stats.bytes_dropped, rig.record.read_closed()), (0, 2));
    }
}

#[test]
fn end_of_file_between_the_wait_and_the_read_is_seen() {
    let (mut second, ours) = pair();
    let mut sender = second.try_clone().unwrap();
    let mut rig = rig(config(Framing::Filled, 64), move |_: &mut Conn<'_>, body: &[u8]| {
        if body == b"first" {
            sender.write_all(b"+late")?;
            sender.shutdown(Shutdown::Write)?;
        }
        Ok(())
    });
    let (mut first, _) = rig.connect();
    rig.manager.put(ours).unwrap();
    rig.quiet();
    // One wait reports both connections as readable. The pool reads the first connection before the
    // second one. In between, the callback of the first connection sends more bytes and the end of
    // file to the second connection.
    first.write_all(b"first").unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    second.write_all(b"early").unwrap();
    assert_eq!(rig.requests(2), with_cause(Cause::Eof, &[b"first", b"early+late"]));
}

#[test]
fn a_request_of_exactly_k_buffers_is_delivered_at_once() {
    for framing in [Framing::Filled, Framing::Drained] {
        for (k, waits) in [(1, true), (2, true), (3, true), (1, false), (2, false), (3, false)] {
            let request = pattern(k * 64);
            let mut rig = echo(config(framing.clone(), 64));
            let (mut client, _) = rig.connect();
            client.write_all(&request).unwrap();
            if !waits {
                client.shutdown(Shutdown::Write).unwrap();
            }
            assert_eq!(rig.read_exact(&mut client, request.len()), request);
            rig.quiet();
            let chunks: Vec<&[u8]> = request.chunks(64).collect();
            assert_eq!(
                rig.record.requests(),
                with_cause(Cause::Full, &chunks),
                "{framing:?}, {k} buffers"
            );
            assert_eq!(rig.manager.stats().live, u64::from(waits));
        }
    }
}

#[test]
fn a_burst_is_delivered_to_its_last_byte_without_another_packet() {
    let burst = pattern(2 * 64 + 7);
    for put_first in [true, false] {
        let mut rig = echo(config(Framing::Drained, 64));
        let (mut client, ours) = pair();
        if !put_first {
            client.write_all(&burst).unwrap();
        }
        rig.manager.put(ours).unwrap();
        if put_first {
            client.write_all(&burst).unwrap();
        }
        assert_eq!(rig.read_exact(&mut client, burst.len()), burst);
        let full = with_cause(Cause::Full, &[&burst[..64], &burst[64..128]]);
        assert_eq!(
            rig.record.requests(),
            [full, with_cause(Cause::Drained, &[&burst[128..]])].concat()
        );
    }
}

#[test]
fn input_of_about_the_buffer_size_is_split_at_the_buffer_size() {
    for size in [0, 1, 63, 64, 65, 127, 128, 129] {
        for framing in [Framing::Filled, Framing::Drained] {
            let request = pattern(size);
            let mut rig = echo(config(framing.clone(), 64));
            let (mut client, _) = rig.connect();
            client.write_all(&request).unwrap();
            rig.bytes_in(size as u64);
            rig.quiet();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rig.read_to_end(&mut client).unwrap(), request);
            let (full, rest) = request.split_at(size / 64 * 64);
            let mut expected = with_cause(Cause::Full, &full.chunks(64).collect::<Vec<_>>());
            if !rest.is_empty() {
                let drained = matches!(framing, Framing::Drained);
                expected.push((if drained { Cause::Drained } else { Cause::Eof }, rest.to_vec()));
            }
            assert_eq!(rig.record.requests(), expected, "{size} bytes, {framing:?}");
        }
    }
}

#[test]
fn a_frame_that_cannot_fit_is_overlong_answered_and_closed() {
    let long = pattern(16).iter().map(|byte| byte | 0x80).collect::<Vec<u8>>();
    let limited = Framing::LengthPrefixed { prefix: Prefix::U32Be, limit: 5 };
    for (framing, stream) in [
        (lines(), &long[..]),
        (limited.clone(), b"\0\0\0\x06"),
        (limited, b"\0\0\0\x06abc"),
        (prefixed(Prefix::U32Be), b"\0\0\0\x0d"),
        (prefixed(Prefix::U32Be), b"\xff\xff\xff\xff"),
        (Framing::custom(|_| Frame::Partial), &long),
    ] {
        let mut rig = quote(config(framing.clone(), 16));
        let (mut client, _) = rig.connect();
        client.write_all(stream).unwrap();
        let reply = rig.read_to_end(&mut client).unwrap();
        assert_eq!(reply, [b"[", stream, b"]"].concat(), "{framing:?}");
        let overlong = with_cause(Cause::Overlong, &[stream]);
        assert_eq!(rig.record.incomplete(), overlong, "{framing:?}");
        assert_eq!(rig.record.requests(), [], "{framing:?}");
        assert_eq!(rig.record.closed(), [CloseReason::Overlong]);
    }
}

#[test]
fn the_largest_frame_fits_with_its_delimiter_or_prefix() {
    let limited = Framing::LengthPrefixed { prefix: Prefix::U8, limit: 15 };
    for (framing, stream, body) in [
        (lines(), &b"fifteen bytes..\n"[..], &b"fifteen bytes.."[..]),
        (prefixed(Prefix::U32Be), b"\0\0\0\x0ctwelve bytes", b"twelve bytes"),
        (limited, b"\x0ffifteen bytes..", b"fifteen bytes.."),
        (letters(), b"pfifteen bytes..", b"pfifteen bytes.."),
    ] {
        for fragment in [1, stream.len()] {
            let mut bytes = stream.to_vec();
            bytes.extend_from_slice(stream);
            let delivered = delivered(&framing, &bytes, fragment);
            let expected = (framed(&[body, body]), vec![]);
            assert_eq!(delivered, expected, "{framing:?} in {fragment}s");
        }
    }
}

#[test]
fn the_reply_to_an_overlong_frame_follows_the_earlier_replies() {
    let mut rig = quote(config(lines(), 16));
    let (mut client, _) = rig.connect();
    client.write_all(b"one\n0123456789abcdefg").unwrap();
    let reply = rig.read_to_end(&mut client).unwrap();
    assert_eq!(reply, b"<one>[0123456789abcdef]");
}

#[test]
fn a_custom_framing_finds_the_frames() {
    let mut rig = quote(config(letters(), 16));
    let (mut client, _) = rig.connect();
    client.write_all(b"ab").unwrap();
    assert_eq!(rig.read_exact(&mut client, 3), b"<a>");
    client.write_all(b"1c").unwrap();
    assert_eq!(rig.read_exact(&mut client, 4), b"<b1>");
    client.write_all(b"23a!lost").unwrap();
    let reply = rig.read_to_end(&mut client).unwrap();
    assert_eq!(reply, b"<c23><a>", "frames before the invalid bytes are answered");
    assert_eq!(rig.record.closed(), [CloseReason::Invalid]);
    assert_eq!(rig.record.requests(), framed(&[b"a", b"b1", b"c23", b"a"]));
    assert_eq!(rig.manager.stats().bytes_dropped, 5);
}

#[test]
fn an_empty_or_too_long_custom_frame_is_invalid() {
    for frame in [Frame::Complete(0), Frame::Complete(5), Frame::Complete(usize::MAX)] {
        let mut rig = echo(config(Framing::custom(move |_| frame), 16));
        let (mut client, _) = rig.connect();
        client.write_all(b"four").unwrap();
        assert_eq!(rig.first_close(), CloseReason::Invalid, "{frame:?}");
        assert_eq!(rig.record.requests(), []);
    }
}

#[test]
fn a_panic_in_a_custom_framing_closes_that_connection_alone() {
    let framing = Framing::custom(|held| {
        assert!(held[0] != b'!', "a test panic");
        Frame::Complete(held.len())
    });
    let mut rig = echo(config(framing, 16));
    let (mut good, _) = rig.connect();
    let (mut bad, bad_id) = rig.connect();
    bad.write_all(b"!").unwrap();
    good.write_all(b"well").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Panicked);
    assert_eq!(rig.read_exact(&mut good, 4), b"well");
    good.write_all(b"again").unwrap();
    assert_eq!(rig.read_exact(&mut good, 5), b"again");
    assert_eq!(rig.record.ends().iter().map(|end| end.id).collect::<Vec<_>>(), [bad_id]);
}

/// A read stops at urgent data, so a short read does not mean that the socket is drained.
#[test]
fn bytes_behind_urgent_data_are_read() {
    for round in 0..30 {
        let mut rig = echo(config(Framing::Drained, 64));
        let (mut client, ours) = pair();
        let urgent = |client: &TcpStream| {
            let sent = socket2::SockRef::from(client).send_out_of_band(b"!").unwrap();
            assert_eq!(sent, 1);
        };
        client.write_all(b"before").unwrap();
        urgent(&client);
        client.write_all(b"behind").unwrap();
        rig.manager.put(ours).unwrap();
        assert_eq!(rig.read_exact(&mut client, 12), b"beforebehind", "round {round}");
        urgent(&client);
        client.write_all(b"later").unwrap();
        assert_eq!(rig.read_exact(&mut client, 5), b"later", "round {round}");
    }
}

#[test]
fn urgent_data_does_not_hide_an_end_of_file() {
    let mut rig = echo(config(Framing::Filled, 64));
    let (mut client, ours) = pair();
    client.write_all(b"before").unwrap();
    socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"behind").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    rig.manager.put(ours).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    assert_eq!(rig.record.requests(), with_cause(Cause::Eof, &[b"beforebehind"]));
}

#[test]
fn held_bytes_are_framed_again_when_the_framing_changes() {
    let mut rig = echo(config(Framing::Filled, 64));
    let (mut client, _) = rig.connect();
    client.write_all(b"one\ntwo;three").unwrap();
    rig.bytes_in(13);
    assert_eq!(rig.record.requests(), []);
    rig.manager.set_config(config(lines(), 64)).unwrap();
    assert_eq!(rig.requests(1), framed(&[b"one"]));
    // After a change of the delimiter, bytes that were already searched are searched again.
    rig.manager.set_config(config(Framing::Delimited(b';'), 64)).unwrap();
    assert_eq!(rig.requests(2), framed(&[b"one", b"two"]));
    rig.manager.set_config(config(Framing::Drained, 64)).unwrap();
    assert_eq!(rig.requests(3)[2], (Cause::Drained, b"three".to_vec()));
    client.write_all(b"four").unwrap();
    assert_eq!(rig.requests(4)[3], (Cause::Drained, b"four".to_vec()));
}

#[test]
fn a_thousand_frames_in_one_segment_are_answered_a_batch_per_turn() {
    let mut rig = echo(config(lines(), 8192));
    let (mut client, _) = rig.connect();
    rig.quiet();
    client.write_all(&b"x\n".repeat(1000)).unwrap();
    rig.bytes_in(1);
    let (mut max, mut before) = (rig.record.requests().len(), 0);
    rig.until(|rig| {
        let delivered = rig.record.requests().len();
        max = max.max(delivered - before);
        before = delivered;
        delivered == 1000
    });
    assert!((1..=256).contains(&max), "{max} callbacks in one turn");
    assert_eq!(rig.read_exact(&mut client, 1000), [b'x'; 1000]);
}

/// At one of these counts, the last frame uses up the budget of the visit. The connection is idle
/// afterwards only on systems on which a short read means that the socket is drained.
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
#[test]
fn a_drained_connection_is_idle_for_any_number_of_frames() {
    let mut rig = echo(config(lines(), 8192));
    for frames in 230..=256 {
        let (mut client, _) = rig.connect();
        rig.quiet();
        let before = rig.record.requests().len();
        client.write_all(&b"x\n".repeat(frames)).unwrap();
        rig.requests(before + frames);
        assert_ne!(rig.manager.next_timeout(), Some(Duration::ZERO), "after {frames}");
    }
}

#[test]
fn all_frames_before_end_of_file_are_answered() {
    let (mut client, ours) = pair();
    client.write_all(&b"\n".repeat(777)).unwrap();
    client.write_all(b"rest").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut rig = quote(config(lines(), 1024));
    rig.manager.put(ours).unwrap();
    let reply = rig.read_to_end(&mut client).unwrap();
    assert_eq!(reply, [b"<>".repeat(777), b"[rest]".to_vec()].concat());
}

#[test]
fn input_beyond_the_read_budget_is_read_without_another_event() {
    const SIZE: usize = 600_000;
    for (framing, buffer_size) in [(Framing::Drained, 1000), (Framing::Filled, 200_000)] {
        let request = pattern(SIZE);
        let mut rig =
            rig(config(framing.clone(), buffer_size), |_: &mut Conn<'_>, _: &[u8]| Ok(()));
        let (client, _) = rig.connect();
        let (mut quiet, quiet_id) = rig.connect();
        let writer = write_behind(&client, request.clone());
        quiet.write_all(&vec![b'q'; buffer_size]).unwrap();
        let mut before = 0;
        rig.until(|rig| {
            let bytes = rig.manager.stats().bytes_in;
            // A turn visits each of the two connections once. A visit reads at most its budget,
            // plus one more read.
            assert!(bytes - before <= 2 * (128 << 10), "{} bytes in a turn", bytes - before);
            before = bytes;
            bytes >= (SIZE + buffer_size) as u64
        });
        writer.join().unwrap().unwrap();
        rig.quiet();
        let bodies: Vec<u8> = rig.record.of_others(quiet_id);
        assert!(bodies == request, "{framing:?}: every byte, in order");
    }
}

#[test]
fn each_cause_of_a_call_has_its_own_counter() {
    let mut rig = echo(config(Framing::Drained, 8).clients_deadline(Duration::from_millis(30)));
    let (mut client, _) = rig.connect();
    client.write_all(b"fullfulldrained").unwrap();
    rig.requests(2);
    let (mut half_closed, ours) = pair();
    half_closed.write_all(b"eof").unwrap();
    half_closed.shutdown(Shutdown::Write).unwrap();
    rig.manager.put(ours).unwrap();
    let (_silent, _) = rig.connect();
    rig.until(|rig| rig.manager.stats().requests(Cause::Expired) == 1);
    rig.manager.set_config(config(lines(), 8)).unwrap();
    let (mut line_client, _) = rig.connect();
    line_client.write_all(b"line\n012345678").unwrap();
    rig.until(|rig| rig.record.closed_with(CloseReason::Overlong));
    let stats = rig.manager.stats();
    for cause in [Cause::Full, Cause::Drained, Cause::Eof, Cause::Expired, Cause::Framed] {
        assert_eq!(stats.requests(cause), 1, "{cause:?}");
    }
    assert_eq!((stats.requests(Cause::Overlong), stats.requests_total()), (0, 5));
    assert_eq!(stats.incomplete(Cause::Overlong), 1);
    assert_eq!(stats.incomplete(Cause::Expired), 1, "the first client has fallen silent");
    assert_eq!((stats.incomplete(Cause::Eof), stats.incomplete(Cause::MemoryLimit)), (0, 0));
}

#[test]
fn bytes_before_a_reset_are_not_delivered_as_complete() {
    let mut rig = echo(config(Framing::Filled, 64));
    let (mut client, _) = rig.connect();
    client.write_all(b"half a req").unwrap();
    rig.bytes_in(10);
    reset(client);
    assert_eq!(rig.first_close(), CloseReason::Reset);
    assert_eq!(rig.record.requests(), []);
    assert_eq!(rig.record.ends()[0].bytes_dropped, 10);
}

#[test]
fn frames_behind_a_close_are_not_delivered() {
    let mut rig = rig(config(lines(), 64), |conn: &mut Conn<'_>, body: &[u8]| {
        if body == b"quit" {
            conn.close();
        }
        conn.write_all(body)
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"one\nquit\nlost\n").unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"onequit");
    assert_eq!(rig.record.requests(), framed(&[b"one", b"quit"]));
    assert_eq!(rig.record.closed(), [CloseReason::Requested]);
    assert_eq!(rig.record.ends()[0].bytes_dropped, 5);
}

#[test]
fn any_byte_may_be_a_delimiter_or_in_a_body() {
    for delimiter in [0, 0x7f, 0xff] {
        let mut rig = echo(config(Framing::Delimited(delimiter), 600));
        let (mut client, _) = rig.connect();
        let body: Vec<u8> = (0..=255).filter(|&byte| byte != delimiter).collect();
        client.write_all(&[&body[..], &[delimiter]].concat()).unwrap();
        assert_eq!(rig.requests(1), framed(&[&body]));
    }
}
