//! Requests larger than a buffer: how far they may grow, and what all of them may take together.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

use pool_manager::{Cause, CloseReason, Config, Conn, Frame, Framing, Prefix};

use crate::support::{Rig, echo, logged, remember_log, rig, write_behind};

/// Longer than any test has patience.
const LATER: Duration = Duration::from_secs(600);

fn config(framing: Framing) -> Config {
    Config::new().framing(framing).buffer_size(16).max_request(1000).clients_deadline(LATER)
}

fn lines() -> Config {
    config(Framing::Delimited(b'\n'))
}

fn prefixed() -> Framing {
    Framing::LengthPrefixed { prefix: Prefix::U32Be, limit: 0 }
}

/// What ends with a full stop.
fn sentences() -> Framing {
    Framing::custom(|held| match held.iter().position(|&byte| byte == b'.') {
        Some(at) => Frame::Complete(at + 1),
        None => Frame::Partial,
    })
}

/// Answers what is too long, or too much, as a service does.
fn service(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    rig(config, |conn: &mut Conn<'_>, _: &[u8]| match conn.cause() {
        Cause::Overlong => conn.write_all(b"413"),
        Cause::MemoryLimit => conn.write_all(b"503"),
        _ => conn.write_all(b"200"),
    })
}

fn held<F>(rig: &Rig<F>) -> u64
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    rig.manager.stats().bytes_held
}

#[test]
fn a_request_of_exactly_max_request_is_served_whatever_its_fragments() {
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
            // A second one behind it, so that bytes of two requests are in one buffer.
            let twice = stream.repeat(2);
            for part in twice.chunks(fragment) {
                client.write_all(part).unwrap();
                rig.turn();
            }
            let expected = vec![(Cause::Framed, body.clone()); 2];
            assert_eq!(rig.requests(2), expected, "{framing:?} in {fragment}s");
            rig.quiet();
            assert_eq!(held(&rig), 0, "the large buffer is freed");
            assert!(rig.manager.stats().spare <= 3, "and none but small ones is kept warm");
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
        assert_eq!(rig.record.closed(), [CloseReason::Overlong]);
        assert_eq!(held(&rig), 0);
    }
}

#[test]
fn without_max_request_nothing_grows() {
    let mut rig = service(lines().max_request(0));
    let (mut client, _) = rig.connect();
    client.write_all(&[b'x'; 17]).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"413");
    assert_eq!(rig.record.requests(), [(Cause::Overlong, vec![b'x'; 16])]);
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

/// Who announces much and sends little costs what it has sent.
#[test]
fn the_buffer_grows_with_what_arrives_not_with_what_is_announced() {
    let mut rig = echo(config(prefixed()).max_request(512 << 20));
    let (mut client, _) = rig.connect();
    client.write_all(&[&(500_u32 << 20).to_be_bytes()[..], &[0; 96]].concat()).unwrap();
    rig.bytes_in(100);
    rig.quiet();
    assert_eq!(held(&rig), 128);
}

#[test]
fn the_longest_line_is_sought_once_and_not_again_with_each_growth() {
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
fn a_large_buffer_shrinks_to_what_is_left_in_it() {
    let mut rig = echo(lines());
    let (mut client, _) = rig.connect();
    client.write_all(&[b'x'; 450]).unwrap();
    rig.bytes_in(450);
    rig.quiet();
    assert_eq!(held(&rig), 512);
    client.write_all(&[b"\n", &[b'y'; 32][..]].concat()).unwrap();
    assert_eq!(rig.requests(1).len(), 1);
    rig.quiet();
    // Where a short read may not be the last, room is made for one more.
    let full = if cfg!(mio_unsupported_force_poll_poll) { 64 } else { 32 };
    assert_eq!(held(&rig), full, "a smaller one, and full");
    client.write_all(b"\nz").unwrap();
    assert_eq!(rig.requests(2).len(), 2);
    rig.quiet();
    assert_eq!(held(&rig), 16, "the usual one");
    client.write_all(b"\n").unwrap();
    assert_eq!(rig.requests(3)[2], (Cause::Framed, b"z".to_vec()));
    assert_eq!(held(&rig), 0);
}

#[test]
fn a_large_buffer_shrinks_though_the_reply_is_blocked() {
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
    assert!(rig.manager.stats().bytes_out < 32 << 20, "it owes most of the reply");
    assert_eq!(held(&rig), 16);
}

#[test]
fn growing_beyond_the_memory_of_all_is_answered_and_closed() {
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
    assert_eq!(held(&rig), 1024, "there is room for both");
    second.write_all(&[b'x'; 100]).unwrap();
    assert_eq!(rig.read_to_end(&mut second).unwrap(), b"503");
    assert_eq!(rig.record.requests()[0].0, Cause::MemoryLimit);
    assert_eq!(rig.record.closed(), [CloseReason::MemoryLimit]);
    let warned = logged(log::Level::Warn);
    assert!(warned.concat().contains("memory_limit is used up"), "{warned:?}");
    first.write_all(&[&[b'x'; 499][..], b"\n"].concat()).unwrap();
    assert_eq!(rig.read_exact(&mut first, 3), b"200", "what it freed is there for others");
    assert_eq!(held(&rig), 0);
}

#[test]
fn who_has_not_even_a_small_buffer_is_answered_but_whole_requests_are_served() {
    let mut rig = service(lines().max_request(16).memory_limit(40));
    let [(mut first, _), (mut second, _), (mut third, _)] = [(); 3].map(|()| rig.connect());
    for client in [&mut first, &mut second] {
        client.write_all(b"begun").unwrap();
    }
    rig.bytes_in(10);
    rig.quiet();
    assert_eq!(held(&rig), 32);
    third.write_all(b"whole\n").unwrap();
    assert_eq!(rig.read_exact(&mut third, 3), b"200", "it takes no memory");
    third.write_all(b"begun").unwrap();
    assert_eq!(rig.read_to_end(&mut third).unwrap(), b"503");
    assert_eq!(rig.record.closed(), [CloseReason::MemoryLimit]);
    assert_eq!(rig.record.requests()[1], (Cause::MemoryLimit, b"begun".to_vec()));
    first.write_all(b"\n").unwrap();
    assert_eq!(rig.read_exact(&mut first, 3), b"200");
    assert_eq!(held(&rig), 16);
}

#[test]
fn who_cannot_be_called_is_closed_when_its_bytes_cannot_be_kept() {
    let mut rig = rig(lines().max_request(16).memory_limit(16), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.pause();
        conn.write_all(b"later")
    });
    let [_first, mut second] = use_up(&mut rig);
    second.write_all(b"one\ntwo\n").unwrap();
    assert_eq!(rig.read_to_end(&mut second).unwrap(), b"later");
    assert_eq!(rig.record.requests().len(), 1, "nothing is delivered to one that is paused");
    assert_eq!(rig.record.closed(), [CloseReason::MemoryLimit]);
    assert_eq!(rig.record.ends()[0].bytes_dropped, 4);
    assert_eq!(held(&rig), 16);
}

/// A service whose replies never fit, with memory for one.
fn huge_replies() -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    let config = lines().max_request(16).memory_limit(16).write_limit(64 << 20);
    rig(config, |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&vec![b'x'; 32 << 20]))
}

/// Two connections, the first of which has begun what takes the memory of both.
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
fn who_owes_a_reply_is_closed_when_its_bytes_cannot_be_kept() {
    let mut rig = huge_replies();
    let [_first, mut second] = use_up(&mut rig);
    second.write_all(b"one\ntwo\n").unwrap();
    rig.until(|rig| !rig.record.closed().is_empty());
    assert_eq!(rig.record.requests().len(), 1, "nothing is delivered to one that owes a reply");
    assert_eq!(rig.record.closed(), [CloseReason::MemoryLimit]);
    assert_eq!(rig.record.ends()[0].bytes_dropped, 4);
    assert_eq!(held(&rig), 16);
}

/// It has nothing to keep: what comes next stays in the kernel until the reply is out.
#[test]
fn who_owes_a_reply_to_all_that_was_read_is_not_closed_for_want_of_memory() {
    let mut rig = huge_replies();
    let [_first, mut second] = use_up(&mut rig);
    second.write_all(b"fifteen letters\nand more").unwrap();
    assert_eq!(rig.requests(1), [(Cause::Framed, b"fifteen letters".to_vec())]);
    rig.quiet();
    assert_eq!(rig.record.closed(), []);
    assert_eq!(held(&rig), 16, "that of the first");
}

#[test]
fn a_pause_when_memory_is_used_up_keeps_the_connection_until_it_is_resumed() {
    let mut rig = rig(lines().max_request(16).memory_limit(16), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.pause();
        Ok(())
    });
    let [(mut first, _), (mut second, id)] = [(); 2].map(|()| rig.connect());
    first.write_all(b"begun").unwrap();
    rig.bytes_in(5);
    rig.quiet();
    second.write_all(b"begun").unwrap();
    assert_eq!(rig.requests(1)[0].0, Cause::MemoryLimit);
    rig.quiet();
    assert_eq!(rig.manager.stats().live, 2);
    rig.manager.handle().send(id, b"503".to_vec()).unwrap();
    rig.manager.handle().resume(id).unwrap();
    assert_eq!(rig.read_to_end(&mut second).unwrap(), b"503");
    assert_eq!(rig.record.closed(), [CloseReason::MemoryLimit]);
}

/// The other limits can be changed while requests are held.
#[test]
fn changed_limits_cut_nobody_off() {
    let mut rig = service(lines());
    let (mut client, _) = rig.connect();
    client.write_all(&[b'x'; 100]).unwrap();
    rig.bytes_in(100);
    rig.manager.set_config(lines().max_request(32).memory_limit(32)).unwrap();
    rig.quiet();
    assert_eq!(held(&rig), 128, "it stays");
    client.write_all(&[b'x'; 27]).unwrap();
    rig.bytes_in(127);
    rig.manager.set_config(lines().buffer_size(512)).unwrap();
    assert_eq!(held(&rig), 512, "a larger buffer holds at once");
    rig.manager.set_config(lines().buffer_size(600).max_request(0).memory_limit(600)).unwrap();
    assert_eq!(held(&rig), 600);
    rig.manager.set_config(lines().buffer_size(600).max_request(0).memory_limit(600)).unwrap();
    let (mut other, _) = rig.connect();
    other.write_all(b"begun").unwrap();
    assert_eq!(rig.read_to_end(&mut other).unwrap(), b"503");
    client.write_all(b"\n").unwrap();
    assert_eq!(rig.read_exact(&mut client, 3), b"200");
}

#[test]
fn a_frame_that_fits_in_the_buffer_it_has_is_finished_under_lowered_limits() {
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
fn a_frame_announced_behind_one_that_was_begun_before_is_held_to_the_lowered_limit() {
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

/// A larger buffer is not to be had when memory is used up, and that is no reason to close.
#[test]
fn a_buffer_that_may_not_become_larger_stays_as_it_is() {
    let mut rig = service(lines().max_request(0).memory_limit(40));
    let [(mut first, _), (mut second, _)] = [(); 2].map(|()| rig.connect());
    for client in [&mut first, &mut second] {
        client.write_all(b"begun").unwrap();
    }
    rig.bytes_in(10);
    rig.quiet();
    rig.manager.set_config(lines().buffer_size(24).max_request(0).memory_limit(40)).unwrap();
    assert_eq!(held(&rig), 40, "one is larger, the other not");
    for client in [&mut first, &mut second] {
        client.write_all(b"\n").unwrap();
        assert_eq!(rig.read_exact(client, 3), b"200");
    }
    assert_eq!(held(&rig), 0);
}
