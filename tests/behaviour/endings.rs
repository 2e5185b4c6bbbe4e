//! How connections end, and what must not end with them: slow callbacks, pauses after the last
//! body, panics outside of callbacks, stops.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pool_manager::{
    Cause, CloseReason, Config, Conn, ERROR_SERVER_BUSY, Error, Framing, Handler, Manager, Socket,
};

use crate::support::plain::Plain;
use crate::support::{
    PATIENCE, Rig, Seen, echo, pair, rig, shrink_buffers, unix_pair, write_behind,
};

const LONG: Duration = Duration::from_secs(600);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(LONG)
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG)
}

/// Turns until somebody else's manager has done something.
#[track_caller]
fn until<H: Handler>(manager: &mut Manager<H>, mut done: impl FnMut(&Manager<H>) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(manager) {
        assert!(Instant::now() < deadline, "it never came: {}", manager.stats());
        manager.turn(Some(millis(10))).unwrap();
    }
}

/// Frames that are complete wait for us, not for the peer: no deadline makes one body of them.
#[test]
fn complete_frames_held_up_by_our_own_callbacks_stay_frames() {
    for config in [lines().clients_deadline(millis(20)), lines().request_deadline(millis(20))] {
        let mut rig = rig(config, |_: &mut Conn<'_>, _: &[u8]| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_micros(100) {}
            Ok(())
        });
        let (mut client, _) = rig.connect();
        client.write_all(&[b'\n'; 1_000]).unwrap();
        let requests = rig.requests(1_000);
        let odd = |(cause, body): &&(Cause, Vec<u8>)| *cause != Cause::Framed || !body.is_empty();
        assert_eq!(requests.iter().find(odd), None);
        assert_eq!(rig.record.closed(), []);
    }
}

/// Says more than it may to whoever comes.
struct Chatterbox;

impl Handler for Chatterbox {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        conn.write_all(b"hello")?;
        conn.write_all(b"and welcome")
    }

    fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_write_beyond_the_limit_in_opened_sends_nothing() {
    let mut manager = Manager::with_handler(lines().write_limit(10), Chatterbox).unwrap();
    manager.start().unwrap();
    let (mut client, ours) = pair();
    manager.put(ours).unwrap();
    until(&mut manager, |manager| manager.stats().live == 0);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"");
    let stats = manager.stats();
    assert_eq!((stats.closed(CloseReason::WriteLimit), stats.bytes_unsent), (1, 5));
}

#[test]
fn a_greeting_goes_out_though_a_stop_comes_at_once() {
    let mut manager = Manager::with_handler(lines(), Chatterbox).unwrap();
    manager.start().unwrap();
    let (mut client, ours) = pair();
    manager.put(ours).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let report = manager.stop().unwrap();
    assert_eq!((report.idle + report.finished, report.aborted, report.unsent_bytes), (1, 0, 0));
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"helloand welcome");
}

#[test]
fn resuming_who_is_not_paused_prolongs_nothing() {
    let deadline = millis(60);
    let mut rig = echo(lines().clients_deadline(deadline));
    let (_client, id) = rig.connect();
    let handle = rig.manager.handle();
    let began = Instant::now();
    rig.until(|rig| {
        let _ = handle.resume(id);
        !rig.record.closed().is_empty() || began.elapsed() > 20 * deadline
    });
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
}

/// A rig whose callback pauses at the causes that are a connection's last.
fn pauses_at_the_end(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    rig(config, |conn: &mut Conn<'_>, _: &[u8]| {
        conn.write_all(b"wait; ")?;
        if matches!(conn.cause(), Cause::Eof | Cause::Expired | Cause::Overlong) {
            conn.pause();
        }
        Ok(())
    })
}

/// The connection stays, is sent to, and closes for its own reason once it is resumed.
#[track_caller]
fn answered_late<F>(rig: &mut Rig<F>, client: &mut TcpStream, cause: Cause, reason: CloseReason)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    assert_eq!(rig.requests(1)[0].0, cause);
    assert_eq!(rig.read_exact(client, 6), b"wait; ");
    let Some(Seen::Opened(id)) = rig.record.all().first().cloned() else { panic!("not opened") };
    let turns = rig.turns_in(millis(100));
    assert!(turns < 5, "{turns} turns to wait for an answer");
    assert_eq!(rig.record.closed(), [], "somebody is still to answer");
    let handle = rig.manager.handle();
    handle.send(id, b"the ".to_vec()).unwrap();
    assert_eq!(rig.read_exact(client, 4), b"the ");
    assert_eq!(rig.record.closed(), [], "an answer in parts");
    handle.send(id, b"answer".to_vec()).unwrap();
    handle.resume(id).unwrap();
    assert_eq!(rig.read_to_end(client).unwrap(), b"answer");
    assert_eq!(rig.record.closed(), [reason]);
    assert_eq!(rig.record.requests().len(), 1, "its last body");
    assert_eq!(rig.record.ends()[0].bytes_unsent, 0);
}

#[test]
fn a_pause_after_end_of_file_keeps_the_connection_until_it_is_resumed() {
    let mut rig = pauses_at_the_end(lines().clients_deadline(millis(50)));
    let (mut client, _) = rig.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    answered_late(&mut rig, &mut client, Cause::Eof, CloseReason::Eof);
}

#[test]
fn a_pause_at_a_deadline_keeps_the_connection_until_it_is_resumed() {
    for question in ["question", ""] {
        let mut rig = pauses_at_the_end(lines().clients_deadline(millis(50)));
        let (mut client, _) = rig.connect();
        client.write_all(question.as_bytes()).unwrap();
        answered_late(&mut rig, &mut client, Cause::Expired, CloseReason::Expired);
    }
}

#[test]
fn a_pause_after_an_overlong_frame_keeps_the_connection_until_it_is_resumed() {
    let mut rig = pauses_at_the_end(lines().clients_deadline(millis(50)).buffer_size(8));
    let (mut client, _) = rig.connect();
    client.write_all(b"a long question\n").unwrap();
    answered_late(&mut rig, &mut client, Cause::Overlong, CloseReason::Overlong);
}

#[test]
fn who_is_paused_after_end_of_file_can_be_closed() {
    let mut rig = pauses_at_the_end(lines());
    let (mut client, id) = rig.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.read_exact(&mut client, 6), b"wait; ");
    rig.manager.handle().send(id, b"never mind".to_vec()).unwrap();
    rig.manager.handle().close(id).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"never mind");
    assert_eq!(rig.record.open_lives(), 0);
}

/// Nobody will answer for a callback that failed.
#[test]
fn who_is_paused_and_then_fails_or_closes_is_not_kept() {
    for (body, reason) in [
        (&b"fail"[..], CloseReason::Failed),
        (b"panic", CloseReason::Panicked),
        (b"close", CloseReason::Requested),
        (b"abort", CloseReason::Aborted),
    ] {
        let mut rig = rig(lines(), |conn: &mut Conn<'_>, body: &[u8]| {
            conn.pause();
            match body {
                b"fail" => return Err(ErrorKind::Other.into()),
                b"close" => conn.close(),
                b"abort" => conn.abort(),
                _ => panic!("as asked"),
            }
            Ok(())
        });
        let (mut client, _) = rig.connect();
        client.write_all(body).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rig.first_close(), reason);
    }
}

/// A peer that always stays a little behind, for ever: what is sent is let go of.
#[test]
fn a_slow_reader_costs_no_more_than_its_limit() {
    const PIECE: usize = 16 << 10;
    let used = allocation_counter::measure(|| {
        let mut rig = echo(lines().request_deadline(Duration::ZERO).write_limit(256 << 10));
        let (mut peer, ours) = unix_pair();
        let id = rig.manager.put(ours).unwrap();
        let handle = rig.manager.handle();
        let piece = || handle.send(id, vec![1; PIECE]).unwrap();
        peer.set_nonblocking(true).unwrap();
        let mut chunk = vec![0; PIECE];
        while rig.manager.stats().bytes_out + 4 * PIECE as u64
            > rig.manager.stats().commands * PIECE as u64
        {
            piece();
            rig.turn();
        }
        for _ in 0..1_000 {
            piece();
            rig.turn();
            let mut left = PIECE;
            rig.until(|_| {
                match peer.read(&mut chunk[..left]) {
                    Ok(count) => left -= count,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                left == 0
            });
        }
        assert_eq!(rig.record.closed(), []);
    });
    assert!(used.bytes_max < 2 << 20, "{} bytes at most, for 256 KiB", used.bytes_max);
}

/// A session that cannot be made while its fuse burns; one for each test.
macro_rules! bomb {
    ($bomb:ident, $fuse:ident) => {
        struct $bomb;
        static $fuse: AtomicBool = AtomicBool::new(false);
        impl Default for $bomb {
            fn default() -> Self {
                assert!(!$fuse.load(Ordering::Relaxed), "the session's default panics");
                Self
            }
        }
    };
}

/// A handler with a session of any kind.
struct With<S>(std::marker::PhantomData<S>);

impl<S: Default> Handler for With<S> {
    type Session = S;

    fn request(&mut self, conn: &mut Conn<'_>, _: &mut S, body: &[u8]) -> io::Result<()> {
        conn.write_all(body)
    }
}

fn with<S: Default>(config: Config) -> Manager<With<S>> {
    let mut manager = Manager::with_handler(config, With(std::marker::PhantomData)).unwrap();
    manager.start().unwrap();
    manager
}

#[test]
fn a_session_whose_default_panics_gives_the_socket_back_and_leaves_the_place_free() {
    bomb!(Bomb, FUSE);
    let mut manager = with::<Bomb>(drained().max_workers(1));
    FUSE.store(true, Ordering::Relaxed);
    let (mut client, ours) = pair();
    let refused = manager.put(ours).unwrap_err();
    assert!(matches!(refused.error(), Error::Unsuitable(_)), "{refused}");
    assert!(refused.to_string().contains("panicked"), "{refused}");
    let Socket::Tcp(mut ours) = refused.into_socket() else { panic!("another socket") };
    ours.write_all(b"well").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(
        (manager.stats().live, manager.stats().admit_failures, manager.stats().busy),
        (0, 0, 0)
    );
    FUSE.store(false, Ordering::Relaxed);
    manager.put(ours).expect("its place is free");
}

#[test]
fn a_session_whose_default_panics_is_counted_as_lost_with_nobody_to_give_it_back_to() {
    bomb!(Bomb, FUSE);
    let mut manager = with::<Bomb>(drained().max_workers(1));
    let addr = manager.listen("127.0.0.1:0").unwrap();
    let handle = manager.handle();
    FUSE.store(true, Ordering::Relaxed);
    let (client, ours) = pair();
    handle.put(ours).unwrap();
    until(&mut manager, |manager| manager.stats().admit_failures == 1);
    assert_eq!((&client).read(&mut [0]).unwrap(), 0, "closed");
    let client = TcpStream::connect(addr).unwrap();
    until(&mut manager, |manager| manager.stats().admit_failures == 2);
    assert_eq!((&client).read(&mut [0]).unwrap(), 0, "closed");
    FUSE.store(false, Ordering::Relaxed);
    let mut client = TcpStream::connect(addr).unwrap();
    client.write_all(b"hello").unwrap();
    until(&mut manager, |manager| manager.stats().bytes_out == 5);
    assert_eq!((manager.stats().put, manager.stats().closed_total()), (1, 0));
}

#[test]
fn a_listener_that_was_shut_down_does_not_starve_the_others() {
    let mut rig = echo(drained());
    let broken = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = broken.try_clone().unwrap();
    rig.manager.listen_on(broken).unwrap();
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&other).shutdown(Shutdown::Both).unwrap();
    rig.quiet();
    let turns = rig.turns_in(millis(100));
    assert!(turns < 5, "{turns} turns for a listener that never listens again");
    let mut client = TcpStream::connect(addr).unwrap();
    client.write_all(b"hello").unwrap();
    assert_eq!(rig.read_exact(&mut client, 5), b"hello");
    assert_eq!((rig.manager.stats().accepted, rig.manager.stats().fd_exhausted), (1, 0));
}

/// Its end of file is known, its reply is stuck: nothing is left to hear of.
#[test]
fn a_half_closed_peer_that_reads_nothing_does_not_spin() {
    let reply = |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&vec![7; 900 << 10]);
    let mut rig = rig(lines(), reply);
    let (tcp, ours) = pair();
    shrink_buffers(&tcp, &ours);
    rig.manager.put(ours).unwrap();
    let (mut unix, ours) = unix_pair();
    rig.manager.put(ours).unwrap();
    for mut client in [&tcp, &unix] {
        client.write_all(b"\n").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
    }
    rig.requests(2);
    rig.quiet();
    let turns = rig.turns_in(millis(100));
    assert!(turns < 5, "{turns} turns in which there was nothing to do");
    assert_eq!(rig.record.closed(), []);
    assert_eq!(rig.read_to_end(&mut unix).unwrap().len(), 900 << 10);
    assert_eq!(rig.record.closed(), [CloseReason::Eof]);
}

/// Nor does one that closes its side, or sends on, once the reply is stuck.
#[test]
fn what_a_peer_does_that_takes_no_reply_does_not_spin() {
    let mut rig = rig(drained(), |conn: &mut Conn<'_>, body: &[u8]| match body {
        b"long" => conn.write_all(&vec![7; 900 << 10]),
        body => conn.write_all(body),
    });
    let mut clients = Vec::new();
    for boxed in [false, true] {
        for half_closed in [false, true] {
            let (client, ours) = UnixStream::pair().unwrap();
            let ours = if boxed { Socket::Boxed(Box::new(Plain(ours))) } else { ours.into() };
            rig.manager.put(ours).unwrap();
            clients.push((client, half_closed));
        }
    }
    let mut say = |what: &[u8]| clients.iter_mut().for_each(|(it, _)| it.write_all(what).unwrap());
    say(b"short");
    rig.requests(4);
    rig.quiet();
    say(b"long");
    rig.requests(8);
    rig.quiet();
    say(b"more");
    for (client, _) in clients.iter().filter(|(_, half_closed)| *half_closed) {
        client.shutdown(Shutdown::Write).unwrap();
    }
    rig.quiet();
    let turns = rig.turns_in(millis(100));
    assert!(turns < 5, "{turns} turns in which there was nothing to do");
    let total = b"short".len() + (900 << 10) + b"more".len();
    for (client, _) in clients {
        let mut client = TcpStream::from(std::os::fd::OwnedFd::from(client));
        assert!(rig.read_exact(&mut client, total).ends_with(b"more"));
    }
}

/// What is heard of a connection whose first words had to wait is not lost.
#[test]
fn who_was_greeted_at_length_is_heard() {
    let mut rig = echo(drained());
    for boxed in [false, true] {
        let (client, ours) = UnixStream::pair().unwrap();
        let ours = if boxed { Socket::Boxed(Box::new(Plain(ours))) } else { ours.into() };
        let id = rig.manager.put(ours).unwrap();
        rig.manager.handle().send(id, vec![7; 900 << 10]).unwrap();
        rig.quiet();
        let mut client = TcpStream::from(std::os::fd::OwnedFd::from(client));
        rig.read_exact(&mut client, 900 << 10);
        rig.quiet();
        client.write_all(b"thank you").unwrap();
        assert_eq!(rig.read_exact(&mut client, 9), b"thank you");
    }
}

#[test]
fn a_report_adds_up_to_those_that_were_there() {
    let mut rig = echo(Config::new().clients_deadline(LONG).stop_deadline(millis(50)));
    let mut clients: Vec<_> = (0..5).map(|_| rig.connect()).collect();
    clients[0].0.write_all(b"half a request").unwrap();
    let handle = rig.manager.handle();
    handle.pause(clients[1].1).unwrap();
    handle.close(clients[2].1).unwrap();
    clients[3].0.shutdown(Shutdown::Write).unwrap();
    let began = Instant::now();
    let report = rig.manager.stop().unwrap();
    assert!(began.elapsed() >= millis(50), "two were still at it");
    assert_eq!(report.idle + report.finished + report.aborted, 5, "{report:?}");
    assert_eq!(report.dropped_bytes, 14);
    assert_eq!(rig.record.open_lives(), 0);
}

#[test]
fn end_of_file_that_is_there_when_a_stop_begins_is_the_reason() {
    let mut rig = echo(drained());
    drop(rig.connect());
    let report = rig.manager.stop().unwrap();
    assert_eq!((report.idle, report.finished, report.aborted), (0, 1, 0));
    assert_eq!(rig.record.closed(), [CloseReason::Eof]);
}

#[test]
fn after_a_stop_in_the_middle_of_work_a_restart_plans_nothing() {
    let config = drained().stop_deadline(Duration::ZERO);
    let mut manager = Manager::with_handler(config, Chatterbox).unwrap();
    manager.start().unwrap();
    let handle = manager.handle();
    for _ in 0..3 {
        let (_client, ours) = pair();
        let id = manager.put(ours).unwrap();
        handle.send(id, b"behind the greeting".to_vec()).unwrap();
        assert_eq!(manager.stop().unwrap().aborted, 1);
        manager.start().unwrap();
        assert_eq!(manager.next_timeout(), None);
        assert_eq!(manager.turn(Some(Duration::ZERO)).unwrap().served, 0);
    }
}

#[test]
fn a_stop_waits_for_those_that_linger_but_not_past_its_deadline() {
    let mut rig = echo(drained().stop_deadline(millis(80)));
    for patient in [true, false] {
        let (mut client, id) = rig.connect();
        client.write_all(b"hello").unwrap();
        assert_eq!(rig.read_exact(&mut client, 5), b"hello");
        rig.manager.handle().close(id).unwrap();
        rig.until(|rig| rig.manager.stats().lingering == 1);
        let began = Instant::now();
        rig.manager.handle().stop().unwrap();
        rig.turn();
        assert_eq!(rig.manager.stats().lingering, 1, "it is waited for");
        if !patient {
            drop(client);
        }
        while rig.manager.turn(None).unwrap().stopped.is_none() {}
        assert!(began.elapsed() >= millis(80) || !patient, "{:?}", began.elapsed());
        assert_eq!(rig.manager.stats().lingering, 0);
        rig.manager.start().unwrap();
    }
}

#[test]
fn a_stop_waits_for_those_that_are_paused_but_not_past_its_deadline() {
    for answered in [true, false] {
        let mut rig = pauses_at_the_end(lines().stop_deadline(millis(80)));
        let (mut client, id) = rig.connect();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rig.read_exact(&mut client, 6), b"wait; ");
        let (began, handle) = (Instant::now(), rig.manager.handle());
        handle.stop().unwrap();
        rig.turn();
        rig.turn();
        assert_eq!(rig.record.closed(), [], "somebody is still to answer");
        if answered {
            handle.send(id, b"answer".to_vec()).unwrap();
            handle.resume(id).unwrap();
        }
        let report = rig.manager.run().unwrap();
        assert_eq!((report.finished, report.aborted), (answered.into(), (!answered).into()));
        assert!(answered || began.elapsed() >= millis(80), "{:?}", began.elapsed());
        client.set_nonblocking(false).unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got.is_empty(), !answered);
    }
}

#[test]
fn a_callback_that_stops_and_puts_again_and_again_takes_no_place_with_it() {
    let mut peers = Vec::new();
    let config = drained().max_workers(3).stop_deadline(millis(50));
    let mut rig = rig(config, move |conn: &mut Conn<'_>, body: &[u8]| {
        for _ in 0..4 {
            let (peer, ours) = UnixStream::pair()?;
            peers.push(peer);
            let refused = conn.commands().put(ours).is_err();
            assert_eq!(
                refused,
                peers.len() % 4 == 3 || peers.len() % 4 == 0,
                "two places are left"
            );
            conn.commands().stop().unwrap();
        }
        conn.write_all(body)
    });
    for lap in 1..=3 {
        let (mut client, _) = rig.connect();
        client.write_all(b"stop").unwrap();
        let report = rig.manager.run().unwrap();
        assert_eq!(report.aborted + report.finished + report.idle, 2, "it, and whom it put first");
        assert_eq!(rig.record.closed().len(), 2 * lap);
        rig.manager.start().unwrap();
    }
    let clients: Vec<_> = (0..3).map(|_| rig.connect()).collect();
    assert!(rig.manager.put(pair().1).unwrap_err().is_busy());
    drop(clients);
}

#[test]
fn the_smallest_buffer_does_not_keep_a_refusal_from_arriving() {
    let mut rig = echo(drained().buffer_size(1).max_workers(1));
    let _busy = rig.connect();
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(addr).unwrap();
    let writing = write_behind(&client, vec![0; 64 << 10]);
    let got = rig.read_to_end(&mut client).expect("no reset before the last word");
    assert_eq!(got, ERROR_SERVER_BUSY.as_bytes());
    rig.until(|_| writing.is_finished());
    drop(client);
    rig.until(|rig| rig.manager.stats().lingering == 0);
    let _ = writing.join();
}

/// Panics in the hook that it is told to.
struct Touchy(&'static str);

impl Touchy {
    fn touch(&self, hook: &str) {
        assert_ne!(self.0, hook, "{hook} panics");
    }
}

impl Handler for Touchy {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.touch("opened");
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        if body == b"long" {
            return conn.write_all(&vec![7; 900 << 10]);
        }
        conn.write_all(body)?;
        self.touch("request");
        Ok(())
    }

    fn flushed(&mut self, _: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.touch("flushed");
        Ok(())
    }

    fn closed(&mut self, _: &pool_manager::Closed, (): (), _: &mut pool_manager::Commands) {
        self.touch("closed");
    }
}

#[test]
fn a_panic_in_any_hook_is_counted_once() {
    for hook in ["opened", "request", "flushed", "closed", "none"] {
        let mut manager = Manager::with_handler(lines(), Touchy(hook)).unwrap();
        manager.start().unwrap();
        let (mut client, ours) = unix_pair();
        manager.put(ours).unwrap();
        client.write_all(b"long\nshort\n").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut chunk = vec![0; 64 << 10];
        until(&mut manager, |manager| {
            while client.read(&mut chunk).is_ok_and(|count| count > 0) {}
            manager.stats().live == 0
        });
        assert_eq!(manager.stats().panics, u64::from(hook != "none"), "{hook}");
    }
}

/// Why the connection then ends is another matter.
#[test]
fn a_panic_is_counted_though_the_peer_takes_none_of_the_earlier_replies() {
    let config = lines().clients_deadline(millis(50)).buffer_size(64);
    let mut rig = rig(config, |conn: &mut Conn<'_>, body: &[u8]| {
        assert_ne!(body, b"bad");
        conn.write_all(&vec![7; 60 << 10])
    });
    let (mut client, ours) = unix_pair();
    socket2::SockRef::from(&ours).set_send_buffer_size(1).unwrap();
    rig.manager.put(ours).unwrap();
    client.write_all(b"good\nbad\n").unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteStalled);
    assert_eq!(rig.manager.stats().panics, 1);
}
