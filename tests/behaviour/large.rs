//! Requests that are larger than a buffer: the limit of one request, and the memory limit of all
//! requests.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

use pool_manager::{Cause, CloseReason, Config, Conn, Frame, Framing, Prefix};

use crate::support::{Rig, echo, logged, remember_log, rig, write_behind};

/// A deadline that no test reaches.
const LATER: Duration = Duration::from_secs(600);

fn config(framing: Framing) -> Config {
    Config::new().framing(framing).buffer_size(16).max_request(1000).clients_deadline(LATER)
}

fn lines() -> Config {
    config(Framing::Delimited(b'\n'))
}

fn prefixed() -> Framing {
    Framing::LengthPrefixed { prefix: Prefix::U32Be, limit: Framing::NO_LIMIT }
}

/// Returns a framing whose frames end with a full stop.
fn sentences() -> Framing {
    Framing::custom(|held| match held.iter().position(|&byte| byte == b'.') {
        Some(at) => Frame::Complete(at + 1),
        None => Frame::Partial,
    })
}

/// Returns a rig that replies as an HTTP service does: 200 to a complete request, 413 if a request
/// is too long, and 503 if the memory limit is reached.
fn service(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    let rig = rig(config, |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(b"200"));
    rig.on_incomplete(|conn, _| match conn.cause() {
        Cause::Overlong => conn.write_all(b"413"),
        Cause::MemoryLimit => conn.write_all(b"503"),
        cause => panic!("{cause:?}"),
    })
}

fn held<F>(rig: &Rig<F>) -> u64
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    rig.manager.stats().bytes_held
}

#[test]
fn a_request_of_exactly_max_request_is_served_in_any_fragments() {
    let body = vec![b'x'; 996];
    let cases = [
        (
            Framing::Delimited(b'\n'),
            [&[b'x'; 3][..], &body, b"\n"].concat(),
            [&[b'x'; 3][..], &body].concat(),
        ),
        (prefixed(), [&996_u32.to_be_bytes()[..], &body].concat(), body.clone()),
        (
            sentences(),
            [&[b'x'; 3][..], &body, b"."].concat(),
            [&[b'x'; 3][..], &body, b"."].concat(),
        ),
    ];
    for (framing, stream, body) in cases {
        assert_eq!(stream.len(), 1000);
        for fragment in [1, 7, 16, 333, 1000] {
            let mut rig = rig(config(framing.clone()), |_: &mut Conn<'_>, _: &[u8]| Ok(()));
            let (mut client, _) = rig.connect();
            // Send two requests, so that bytes of both are in one buffer.
            let twice = stream.repeat(2);
            for part in twice.chunks(fragment) {
                client.write_all(part).unwrap();
                rig.turn();
            }
            let expected = vec![(Cause::Framed, body.clone()); 2];
            assert_eq!(rig.requests(2), expected, "{framing:?} in {fragment}s");
            rig.quiet();
            assert_eq!(held(&rig), 0, "the large buffer is freed");
            assert!(rig.manager.stats().spare <= 3, "only small buffers are kept warm");
        }
    }
}

#[test]
fn one_byte_more_is_overlong_and_answered() {
    for (framing, stream) in [
        (Framing::Delimited(b'\n'), vec![b'x'; 1001]),
        (prefixed(), [&997_u32.to_be_bytes()[..], b"x"].concat()),
        (sentences(), vec![b'x'; 1001]),
    ] {
        let mut rig = service(config(framing.clone()));
        let (mut client, _) = rig.connect();
        client.write_all(&stream).unwrap();
        assert_eq!(rig.read_to_end(&mut client).unwrap(), b"413", "{framing:?}");
        let first = &stream[..stream.len().min(1000)];
        assert_eq!(rig.record.incomplete(), [(Cause::Overlong, first.to_vec())], "{framing:?}");
        assert_eq!(rig.record.requests(), [], "{framing:?}");
        assert_eq!(rig.record.closed(), [CloseReason::Overlong]);
        assert_eq!(held(&rig), 0);
    }
}

#[test]
fn without_max_request_nothing_grows() {
    let mut rig = service(lines().max_request(None));
    let (mut client, _) = rig.connect();
    client.write_all(&[b'x'; 17]).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"413");
    assert_eq!(rig.record.incomplete(), [(Cause::Overlong, vec![b'x'; 16])]);
    assert_eq!(rig.record.requests(), []);
}

#[test]
fn a_chunk_of_a_stream_is_never_longer_than_the_buffer() {
    for framing in [Framing::Filled, Framing::Drained] {
        let mut rig = echo(config(framing));
        let (mut client, _) = rig.connect();
        client.write_all(&[b'x'; 64]).unwrap();
        assert_eq!(rig.read_exact(&mut client, 64), [b'x'; 64]);
        assert!(rig.record.requests().iter().all(|(_, body)| body.len() <= 16));
    }
}

/// A peer that announces a long request and sends a small part of it uses memory only for that
/// part.
#[test]
fn the_buffer_grows_with_received_bytes_not_the_announced_length() {
    let mut rig = echo(config(prefixed()).max_request(512 << 20));
    let (mut client, _) = rig.connect();
    client.write_all(&[&(500_u32 << 20).to_be_bytes()[..], &[0; 96]].concat()).unwrap();
    rig.bytes_in(100);
    rig.quiet();
    assert_eq!(held(&rig), 128);
}

#[test]
fn a_long_line_is_not_searched_again_when_the_buffer_grows() {
    let size = 32 << 20;
    let config = lines().buffer_size(4096).max_request(64 << 20);
    let mut rig = rig(config, |_: &mut Conn<'_>, _: &[u8]| Ok(()));
    let (client, _) = rig.connect();
    let mut line = vec![b'x'; size];
    line.push(b'\n');
    let writer = write_behind(&client, line);
    assert_eq!(rig.requests(1)[0].1.len(), size);
    writer.join().unwrap().unwrap();
    assert_eq!(held(&rig), 0);
}

#[test]
fn a_large_buffer_shrinks_to_the_bytes_left_in_it() {
    let mut rig = echo(lines());
    let (mut client, _) = rig.connect();
    client.write_all(&[b'x'; 450]).unwrap();
    rig.bytes_in(450);
    rig.quiet();
    assert_eq!(held(&rig), 512);
    client.write_all(&[b"\n", &[b'y'; 32][..]].concat()).unwrap();
    assert_eq!(rig.requests(1).len(), 1);
    rig.quiet();
    // On systems on which a short read does not show that the socket is drained, the buffer has
    // space for one more read.
    let full = if cfg!(mio_unsupported_force_poll_poll) { 64 } else { 32 };
    assert_eq!(held(&rig), full, "a smaller buffer");
    client.write_all(b"\nz").unwrap();
    assert_eq!(rig.requests(2).len(), 2);
    rig.quiet();
    assert_eq!(held(&rig), 16, "a buffer of buffer_size bytes");
    client.write_all(b"\n").unwrap();
    assert_eq!(rig.requests(3)[2], (Cause::Framed, b"z".to_vec()));
    assert_eq!(held(&rig), 0);
}

#[test]
fn a_large_buffer_shrinks_although_the_reply_is_blocked() {
    let mut rig = rig(lines().write_limit(64 << 20), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.write_all(&vec![b'x'; 32 << 20])
    });
    let (mut client, _) = rig.connect();
    client.write_all(&[b'x'; 450]).unwrap();
    rig.bytes_in(450);
    rig.quiet();
    assert_eq!(held(&rig), 512);
    client.write_all(b"\nz").unwrap();
    rig.bytes_in(452);
    rig.quiet();
    assert!(rig.manager.stats().bytes_out < 32 << 20, "most of the reply is unsent");
    assert_eq!(held(&rig), 16);
}

#[test]
fn a_request_above_memory_limit_is_answered_and_closed() {
    remember_log();
    let mut rig = service(lines().memory_limit(1200));
    let [(mut first, _), (mut second, _)] = [(); 2].map(|()| rig.connect());
    first.write_all(&[b'x'; 500]).unwrap();
    rig.bytes_in(500);
    rig.quiet();
    assert_eq!(held(&rig), 512);
    second.write_all(&[b'x'; 500]).unwrap();
    rig.bytes_in(1000);
    rig.quiet();
    assert_eq!(held(&rig), 1024, "both are within the limit");
    second.write_all(&[b'x'; 100]).unwrap();
    assert_eq!(rig.read_to_end(&mut second).unwrap(), b"503");
    assert_eq!(rig.record.incomplete(), [(Cause::MemoryLimit, vec![b'x'; 512])]);
    assert_eq!(rig.record.requests(), []);
    assert_eq!(rig.record.closed(), [CloseReason::MemoryLimit]);
    let warned = logged(log::Level::Warn);
    assert!(warned.concat().contains("memory_limit is used up"), "{warned:?}");
    first.write_all(&[&[b'x'; 499][..], b"\n"].concat()).unwrap();
    assert_eq!(rig.read_exact(&mut first, 3), b"200", "others can use the freed memory");
    assert_eq!(held(&rig), 0);
}

#[test]
fn at_memory_limit_only_whole_requests_are_served() {
    let mut rig = service(lines().max_request(16).memory_limit(40));
    let [(mut first, _), (mut second, _), (mut third, _)] = [(); 3].map(|()| rig.connect());
    for client in [&mut first, &mut second] {
        client.write_all(b"begun").unwrap();
    }
    rig.bytes_in(10);
    rig.quiet();
    assert_eq!(held(&rig), 32);
    third.write_all(b"whole\n").unwrap();
    assert_eq!(rig.read_exact(&mut third, 3), b"200", "a complete request does not count");
    third.write_all(b"begun").unwrap();
    assert_eq!(rig.read_to_end(&mut third).unwrap(), b"503");
    assert_eq!(rig.record.closed(), [CloseReason::MemoryLimit]);
    assert_eq!(rig.record.requests(), [(Cause::Framed, b"whole".to_vec())]);
    assert_eq!(rig.record.incomplete(), [(Cause::MemoryLimit, b"begun".to_vec())]);
    first.write_all(b"\n").unwrap();
    assert_eq!(rig.read_exact(&mut first, 3), b"200");
    assert_eq!(held(&rig), 16);
}

#[test]
fn a_paused_connection_is_closed_if_its_bytes_exceed_memory_limit() {
    let mut rig = rig(lines().max_request(16).memory_limit(16), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.pause();
        conn.write_all(b"later")
    });
    let [_first, mut second] = use_up(&mut rig);
    second.write_all(b"one\ntwo\n").unwrap();
    assert_eq!(rig.read_to_end(&mut second).unwrap(), b"later");
    assert_eq!(rig.record.requests().len(), 1, "nothing is delivered while paused");
    assert_eq!(rig.record.closed(), [CloseReason::MemoryLimit]);
    assert_eq!(rig.record.ends()[0].bytes_dropped, 4);
    assert_eq!(held(&rig), 16);
}

/// Returns a rig whose replies exceed the socket buffer. Its memory limit is one buffer.
fn huge_replies() -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    let config = lines().max_request(16).memory_limit(16).write_limit(64 << 20);
    rig(config, |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&vec![b'x'; 32 << 20]))
}

/// Returns the clients of two connections. The first has sent a part of a request, which uses up
/// the memory limit.
fn use_up<F>(rig: &mut Rig<F>) -> [TcpStream; 2]
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    let [(mut first, _), (second, _)] = [(); 2].map(|()| rig.connect());
    first.write_all(b"begun").unwrap();
    rig.bytes_in(5);
    rig.quiet();
    [first, second]
}

#[test]
fn a_blocked_connection_is_closed_if_its_bytes_exceed_memory_limit() {
    let mut rig = huge_replies();
    let [_first, mut second] = use_up(&mut rig);
    second.write_all(b"one\ntwo\n").unwrap();
    rig.until(|rig| !rig.record.closed().is_empty());
    assert_eq!(rig.record.requests().len(), 1, "nothing is delivered while blocked");
    assert_eq!(rig.record.closed(), [CloseReason::MemoryLimit]);
    assert_eq!(rig.record.ends()[0].bytes_dropped, 4);
    assert_eq!(held(&rig), 16);
}

/// The connection holds no bytes, because further input stays in the kernel until the reply is
/// sent.
#[test]
fn a_blocked_connection_without_held_bytes_survives_memory_limit() {
    let mut rig = huge_replies();
    let [_first, mut second] = use_up(&mut rig);
    second.write_all(b"fifteen letters\nand more").unwrap();
    assert_eq!(rig.requests(1), [(Cause::Framed, b"fifteen letters".to_vec())]);
    rig.quiet();
    assert_eq!(rig.record.closed(), []);
    assert_eq!(held(&rig), 16, "the buffer of the first");
}

#[test]
fn a_pause_at_memory_limit_keeps_the_connection_until_resumed() {
    let rig = echo(lines().max_request(16).memory_limit(16));
    let mut rig = rig.on_incomplete(|conn, _| {
        conn.pause();
        Ok(())
    });
    let [(mut first, _), (mut second, id)] = [(); 2].map(|()| rig.connect());
    first.write_all(b"begun").unwrap();
    rig.bytes_in(5);
    rig.quiet();
    second.write_all(b"begun").unwrap();
    assert_eq!(rig.incomplete(), [(Cause::MemoryLimit, b"begun".to_vec())]);
    rig.quiet();
    assert_eq!(rig.manager.stats().live, 2);
    rig.manager.handle().send(id, b"503".to_vec()).unwrap();
    rig.manager.handle().resume(id).unwrap();
    assert_eq!(rig.read_to_end(&mut second).unwrap(), b"503");
    assert_eq!(rig.record.closed(), [CloseReason::MemoryLimit]);
}

/// The limits can be changed while requests are held. The change closes no connection.
#[test]
fn changed_limits_close_no_connection() {
    let mut rig = service(lines());
    let (mut client, _) = rig.connect();
    client.write_all(&[b'x'; 100]).unwrap();
    rig.bytes_in(100);
    rig.manager.set_config(lines().max_request(32).memory_limit(32)).unwrap();
    rig.quiet();
    assert_eq!(held(&rig), 128, "the buffer stays");
    client.write_all(&[b'x'; 27]).unwrap();
    rig.bytes_in(127);
    rig.manager.set_config(lines().buffer_size(512)).unwrap();
    assert_eq!(held(&rig), 512, "a larger buffer_size applies at once");
    rig.manager.set_config(lines().buffer_size(600).max_request(None).memory_limit(600)).unwrap();
    assert_eq!(held(&rig), 600);
    rig.manager.set_config(lines().buffer_size(600).max_request(None).memory_limit(600)).unwrap();
    let (mut other, _) = rig.connect();
    other.write_all(b"begun").unwrap();
    assert_eq!(rig.read_to_end(&mut other).unwrap(), b"503");
    client.write_all(b"\n").unwrap();
    assert_eq!(rig.read_exact(&mut client, 3), b"200");
}

#[test]
fn a_frame_that_fits_its_buffer_is_served_under_lowered_limits() {
    let mut rig = service(config(prefixed()));
    let (mut client, _) = rig.connect();
    client.write_all(&[&120_u32.to_be_bytes()[..], &[b'x'; 100]].concat()).unwrap();
    rig.bytes_in(104);
    rig.quiet();
    rig.manager.set_config(config(prefixed()).max_request(32)).unwrap();
    rig.quiet();
    client.write_all(&[b'x'; 20]).unwrap();
    assert_eq!(rig.read_exact(&mut client, 3), b"200");
    client.write_all(&[&120_u32.to_be_bytes()[..], &[b'x'; 100]].concat()).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"413");
}

#[test]
fn a_later_frame_is_held_to_the_lowered_limit() {
    let mut rig = service(config(prefixed()));
    let (mut client, _) = rig.connect();
    client.write_all(&[&120_u32.to_be_bytes()[..], &[b'x'; 100]].concat()).unwrap();
    rig.bytes_in(104);
    rig.quiet();
    rig.manager.set_config(config(prefixed()).max_request(32)).unwrap();
    rig.quiet();
    client.write_all(&[&[b'x'; 20][..], &60_u32.to_be_bytes()].concat()).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"200413");
}

/// A buffer cannot grow when the memory limit is reached. For this reason alone, the connection
/// that uses the buffer is not closed.
#[test]
fn a_buffer_that_may_not_grow_keeps_its_size() {
    let mut rig = service(lines().max_request(None).memory_limit(40));
    let [(mut first, _), (mut second, _)] = [(); 2].map(|()| rig.connect());
    for client in [&mut first, &mut second] {
        client.write_all(b"begun").unwrap();
    }
    rig.bytes_in(10);
    rig.quiet();
    rig.manager.set_config(lines().buffer_size(24).max_request(None).memory_limit(40)).unwrap();
    assert_eq!(held(&rig), 40, "only one buffer has grown");
    for client in [&mut first, &mut second] {
        client.write_all(b"\n").unwrap();
        assert_eq!(rig.read_exact(client, 3), b"200");
    }
    assert_eq!(held(&rig), 0);
}
