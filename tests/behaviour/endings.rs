//! The end of connections: after slow callbacks, pauses after the last body, panics outside of
//! callbacks, and stops.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pool_manager::{
    Cause, CloseReason, Closed, Commands, Config, Conn, ConnId, ERROR_SERVER_BUSY, Framing,
    Handler, Manager, Socket,
};

use crate::support::plain::Plain;
use crate::support::{
    Rig, Seen, TIMEOUT, echo, pair, rig, shrink_buffers, unix_pair, write_behind,
};

/// A deadline that no test reaches.
const LONG_DEADLINE: Duration = Duration::from_secs(600);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(LONG_DEADLINE)
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG_DEADLINE)
}

/// Runs turns of a manager without a rig until `done` returns true.
#[track_caller]
fn until<H: Handler>(manager: &mut Manager<H>, mut done: impl FnMut(&Manager<H>) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !done(manager) {
        assert!(Instant::now() < deadline, "timed out: {}", manager.stats());
        manager.turn(Some(millis(10))).unwrap();
    }
}

/// The complete frames wait for callbacks, and not for the peer. A deadline must not merge them
/// into one body.
#[test]
fn complete_frames_delayed_by_slow_callbacks_stay_separate() {
    for config in [lines().clients_deadline(millis(20)), lines().request_deadline(millis(20))] {
        let mut rig = rig(config, |_: &mut Conn<'_>, _: &[u8]| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_micros(100) {}
            Ok(())
        });
        let (mut client, _) = rig.connect();
        client.write_all(&[b'\n'; 1_000]).unwrap();
        let requests = rig.requests(1_000);
        let unexpected =
            |(cause, body): &&(Cause, Vec<u8>)| *cause != Cause::Framed || !body.is_empty();
        assert_eq!(requests.iter().find(unexpected), None);
        assert_eq!(rig.record.closed(), []);
    }
}

/// Writes 16 bytes to each new connection, in two writes.
struct Greeter;

impl Handler for Greeter {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
        conn.write_all(b"hello")?;
        conn.write_all(b"and welcome")
    }

    fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_write_beyond_the_limit_in_opened_sends_nothing() {
    let mut manager = Manager::with_handler(lines().write_limit(10), Greeter).unwrap();
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
fn the_output_of_opened_is_sent_even_if_a_stop_follows_at_once() {
    let mut manager = Manager::with_handler(lines(), Greeter).unwrap();
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
fn resuming_a_connection_that_is_not_paused_extends_no_deadline() {
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

/// Returns a rig that replies to every call of `request` and `incomplete`. It pauses the connection
/// if the cause of the call is one that ends a connection.
fn pauses_at_the_end(config: Config) -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    let reply = |conn: &mut Conn<'_>, _: &[u8]| {
        conn.write_all(b"wait; ")?;
        if matches!(conn.cause(), Cause::Eof | Cause::Expired | Cause::Overlong) {
            conn.pause();
        }
        Ok(())
    };
    rig(config, reply).on_incomplete(reply)
}

/// Returns the requests and the calls of `incomplete`.
fn calls<F>(rig: &Rig<F>) -> Vec<(Cause, Vec<u8>)>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    [rig.record.requests(), rig.record.incomplete()].concat()
}

/// Checks that a connection that was paused in its only callback stays open, that bytes can be sent
/// to it, and that it closes with `reason` once it is resumed.
#[track_caller]
fn assert_late_answer<F>(
    rig: &mut Rig<F>,
    client: &mut TcpStream,
    call: &(Cause, Vec<u8>),
    reason: CloseReason,
) where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    rig.until(|rig| !calls(rig).is_empty());
    assert_eq!(calls(rig), std::slice::from_ref(call));
    assert_eq!(rig.read_exact(client, 6), b"wait; ");
    let Some(Seen::Opened(id)) = rig.record.all().first().cloned() else { panic!("not opened") };
    let turns = rig.turns_in(millis(100));
    assert!(turns < 5, "{turns} turns while the connection waits for its answer");
    assert_eq!(rig.record.closed(), [], "the connection waits for its answer");
    let handle = rig.manager.handle();
    handle.send(id, b"the ".to_vec()).unwrap();
    assert_eq!(rig.read_exact(client, 4), b"the ");
    assert_eq!(rig.record.closed(), [], "a part of the answer does not close it");
    assert_eq!(rig.record.read_closed(), 0, "not before the connection is resumed");
    handle.send(id, b"answer".to_vec()).unwrap();
    handle.resume(id).unwrap();
    assert_eq!(rig.read_to_end(client).unwrap(), b"answer");
    assert_eq!(rig.record.closed(), [reason]);
    assert_eq!(calls(rig).len(), 1, "no request follows the last one");
    assert_eq!(rig.record.read_closed(), usize::from(reason == CloseReason::Eof));
    assert_eq!(rig.record.ends()[0].bytes_unsent, 0);
}

#[test]
fn a_pause_after_end_of_file_keeps_the_connection_until_it_is_resumed() {
    for framing in [Framing::Delimited(b'\n'), Framing::Filled] {
        let config = lines().framing(framing).clients_deadline(millis(50));
        let mut rig = pauses_at_the_end(config);
        let (mut client, _) = rig.connect();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let call = (Cause::Eof, b"question".to_vec());
        assert_late_answer(&mut rig, &mut client, &call, CloseReason::Eof);
    }
}

#[test]
fn a_pause_at_a_deadline_keeps_the_connection_until_it_is_resumed() {
    for framing in [Framing::Delimited(b'\n'), Framing::Filled] {
        for question in ["question", ""] {
            let config = lines().framing(framing.clone()).clients_deadline(millis(50));
            let mut rig = pauses_at_the_end(config);
            let (mut client, _) = rig.connect();
            client.write_all(question.as_bytes()).unwrap();
            let call = (Cause::Expired, question.as_bytes().to_vec());
            assert_late_answer(&mut rig, &mut client, &call, CloseReason::Expired);
        }
    }
}

#[test]
fn a_pause_after_an_overlong_frame_keeps_the_connection_until_resumed() {
    let mut rig = pauses_at_the_end(lines().clients_deadline(millis(50)).buffer_size(8));
    let (mut client, _) = rig.connect();
    client.write_all(b"a long question\n").unwrap();
    let call = (Cause::Overlong, b"a long q".to_vec());
    assert_late_answer(&mut rig, &mut client, &call, CloseReason::Overlong);
}

#[test]
fn a_connection_paused_after_end_of_file_can_be_closed() {
    let mut rig = pauses_at_the_end(lines());
    let (mut client, id) = rig.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.read_exact(&mut client, 6), b"wait; ");
    rig.manager.handle().send(id, b"never mind".to_vec()).unwrap();
    rig.manager.handle().close(id).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"never mind");
    assert_eq!(rig.record.open_lives(), 0);
    assert_eq!(rig.record.closed(), [CloseReason::Requested]);
    assert_eq!(rig.record.read_closed(), 0);
}

/// A paused connection does not wait for an answer if the callback fails or closes the connection.
#[test]
fn a_connection_that_pauses_and_then_fails_or_closes_is_not_kept() {
    for (body, reason) in [
        (&b"fail"[..], CloseReason::Failed),
        (b"panic", CloseReason::Panicked),
        (b"close", CloseReason::Requested),
        (b"abort", CloseReason::Aborted),
    ] {
        let ending = |conn: &mut Conn<'_>, body: &[u8]| {
            conn.pause();
            match body {
                b"fail" => return Err(ErrorKind::Other.into()),
                b"close" => conn.close(),
                b"abort" => conn.abort(),
                _ => panic!("a test panic"),
            }
            Ok(())
        };
        for framing in [Framing::Delimited(b'\n'), Framing::Filled] {
            let mut rig = rig(lines().framing(framing), ending).on_incomplete(ending);
            let (mut client, _) = rig.connect();
            client.write_all(body).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rig.first_close(), reason);
            assert_eq!(calls(&rig), [(Cause::Eof, body.to_vec())]);
            assert_eq!(rig.record.read_closed(), 0);
        }
    }
}

/// The peer always reads a little too late, so a part of the output is always unsent. The part that
/// was sent must be freed.
#[test]
fn the_memory_for_a_slow_reader_is_bounded() {
    const PIECE: usize = 16 << 10;
    let used = allocation_counter::measure(|| {
        let mut rig = echo(lines().request_deadline(None).write_limit(256 << 10));
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
    assert!(used.bytes_max < 2 << 20, "a peak of {} bytes with a limit of 256 KiB", used.bytes_max);
}

/// A session without a default: the id of its connection.
struct Owner(ConnId);

/// The result of `opened`.
#[derive(Clone, Copy)]
enum Opens {
    Well,
    WithError,
    WithPanic,
}

/// The close reason, the text of the error, and whether the session was the one of the connection.
type Ended = (CloseReason, Option<String>, Option<bool>);

/// Greets each connection, then fails as configured. Records the ends of connections.
struct Opener {
    opens: Rc<Cell<Opens>>,
    ended: Rc<RefCell<Vec<Ended>>>,
}

impl Handler for Opener {
    type Session = Owner;

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<Owner> {
        conn.write_all(b"hello")?;
        match self.opens.get() {
            Opens::Well => Ok(Owner(conn.id())),
            Opens::WithError => Err(io::Error::other("no session")),
            Opens::WithPanic => panic!("in opened"),
        }
    }

    fn request(&mut self, conn: &mut Conn<'_>, owner: &mut Owner, body: &[u8]) -> io::Result<()> {
        assert_eq!(owner.0, conn.id());
        conn.write_all(body)
    }

    fn closed(&mut self, closed: &Closed, owner: Option<Owner>, _: &mut Commands) {
        let error = closed.error.as_ref().map(ToString::to_string);
        let own = owner.map(|owner| owner.0 == closed.id);
        self.ended.borrow_mut().push((closed.reason, error, own));
    }
}

#[test]
fn a_connection_whose_opened_fails_ends_without_a_session() {
    let (opens, ended) = (Rc::new(Cell::new(Opens::Well)), Rc::new(RefCell::new(Vec::new())));
    let handler = Opener { opens: opens.clone(), ended: ended.clone() };
    let mut manager = Manager::with_handler(drained().max_workers(1), handler).unwrap();
    manager.start().unwrap();
    let failed = Some("no session".to_owned());
    for (how, greeting, expected) in [
        (Opens::WithError, "hello", (CloseReason::Failed, failed, None)),
        (Opens::WithPanic, "", (CloseReason::Panicked, None, None)),
        (Opens::Well, "hello", (CloseReason::Eof, None, Some(true))),
    ] {
        opens.set(how);
        let (mut client, ours) = pair();
        manager.put(ours).expect("the worker is free");
        client.write_all(b"?").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        until(&mut manager, |manager| manager.stats().live == 0);
        // Without a reply, a close with unread input resets the connection.
        let mut got = String::new();
        let _ = client.read_to_string(&mut got);
        assert_eq!(got.strip_suffix('?').unwrap_or(&got), greeting);
        assert_eq!(ended.borrow_mut().drain(..).collect::<Vec<_>>(), [expected]);
    }
    assert_eq!(manager.stats().requests_total(), 1, "only the open connection was served");
}

#[test]
fn the_error_of_a_callback_and_of_a_socket_reaches_closed() {
    let mut rig = rig(drained(), |_: &mut Conn<'_>, _: &[u8]| Err(io::Error::other("too bad")));
    let (mut client, ours) = pair();
    rig.manager.put(ours).unwrap();
    client.write_all(b"?").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Failed);
    let (client, ours) = pair();
    rig.manager.put(ours).unwrap();
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    rig.until(|rig| rig.record.closed().len() == 2);
    let ends = rig.record.ends();
    let errors: Vec<_> = ends.iter().map(|end| (end.reason, end.error.as_ref().unwrap())).collect();
    assert_eq!((errors[0].0, errors[0].1.to_string()), (CloseReason::Failed, "too bad".into()));
    assert_eq!((errors[1].0, errors[1].1.kind()), (CloseReason::Reset, ErrorKind::ConnectionReset));
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
    assert!(turns < 5, "{turns} turns for a listener that was shut down");
    let mut client = TcpStream::connect(addr).unwrap();
    client.write_all(b"hello").unwrap();
    assert_eq!(rig.read_exact(&mut client, 5), b"hello");
    assert_eq!((rig.manager.stats().accepted, rig.manager.stats().fd_exhausted), (1, 0));
}

/// The pool has seen the end of file, and the reply is blocked, so there is no work left.
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
    assert!(turns < 5, "{turns} turns without work");
    assert_eq!(rig.record.closed(), []);
    assert_eq!(rig.read_to_end(&mut unix).unwrap().len(), 900 << 10);
    assert_eq!(rig.record.closed(), [CloseReason::Eof]);
}

/// After the replies are blocked, all peers send more, and some of them shut down their write side.
#[test]
fn input_from_a_peer_that_reads_nothing_does_not_spin() {
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
    let mut send_all =
        |bytes: &[u8]| clients.iter_mut().for_each(|(client, _)| client.write_all(bytes).unwrap());
    send_all(b"short");
    rig.requests(4);
    rig.quiet();
    send_all(b"long");
    rig.requests(8);
    rig.quiet();
    send_all(b"more");
    for (client, _) in clients.iter().filter(|(_, half_closed)| *half_closed) {
        client.shutdown(Shutdown::Write).unwrap();
    }
    rig.quiet();
    let turns = rig.turns_in(millis(100));
    assert!(turns < 5, "{turns} turns without work");
    let total = b"short".len() + (900 << 10) + b"more".len();
    for (client, _) in clients {
        let mut client = TcpStream::from(std::os::fd::OwnedFd::from(client));
        assert!(rig.read_exact(&mut client, total).ends_with(b"more"));
    }
}

/// No event is lost while the first output of a connection has to wait.
#[test]
fn a_connection_whose_first_output_blocks_is_read_afterwards() {
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
fn a_stop_report_counts_each_connection_once() {
    let mut rig = echo(Config::new().clients_deadline(LONG_DEADLINE).stop_deadline(millis(50)));
    let mut clients: Vec<_> = (0..5).map(|_| rig.connect()).collect();
    clients[0].0.write_all(b"half a request").unwrap();
    let handle = rig.manager.handle();
    handle.pause(clients[1].1).unwrap();
    handle.close(clients[2].1).unwrap();
    clients[3].0.shutdown(Shutdown::Write).unwrap();
    let began = Instant::now();
    let report = rig.manager.stop().unwrap();
    assert!(began.elapsed() >= millis(50), "two connections were in progress");
    assert_eq!(report.idle + report.finished + report.aborted, 5, "{report:?}");
    assert_eq!(report.dropped_bytes, 14);
    assert_eq!(rig.record.open_lives(), 0);
}

#[test]
fn end_of_file_before_a_stop_is_the_close_reason() {
    let mut rig = echo(drained());
    drop(rig.connect());
    let report = rig.manager.stop().unwrap();
    assert_eq!((report.idle, report.finished, report.aborted), (0, 1, 0));
    assert_eq!(rig.record.closed(), [CloseReason::Eof]);
}

#[test]
fn a_restart_after_an_aborting_stop_has_no_work_left() {
    let config = drained().stop_deadline(Duration::ZERO);
    let mut manager = Manager::with_handler(config, Greeter).unwrap();
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
fn a_stop_waits_for_lingering_sockets_but_not_past_its_deadline() {
    let mut rig = echo(drained().stop_deadline(millis(80)));
    for peer_stays in [true, false] {
        let (mut client, id) = rig.connect();
        client.write_all(b"hello").unwrap();
        assert_eq!(rig.read_exact(&mut client, 5), b"hello");
        rig.manager.handle().close(id).unwrap();
        rig.until(|rig| rig.manager.stats().lingering == 1);
        let began = Instant::now();
        rig.manager.handle().stop().unwrap();
        rig.turn();
        assert_eq!(rig.manager.stats().lingering, 1, "the stop waits for the lingering connection");
        if !peer_stays {
            drop(client);
        }
        while rig.manager.turn(None).unwrap().stopped.is_none() {}
        assert!(began.elapsed() >= millis(80) || !peer_stays, "{:?}", began.elapsed());
        assert_eq!(rig.manager.stats().lingering, 0);
        rig.manager.start().unwrap();
    }
}

#[test]
fn a_stop_waits_for_paused_connections_but_not_past_its_deadline() {
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
        assert_eq!(rig.record.closed(), [], "the connection waits for its answer");
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
fn a_callback_that_stops_and_puts_repeatedly_leaks_no_permit() {
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
                "two workers are free"
            );
            conn.commands().stop().unwrap();
        }
        conn.write_all(body)
    });
    for round in 1..=3 {
        let (mut client, _) = rig.connect();
        client.write_all(b"stop").unwrap();
        let report = rig.manager.run().unwrap();
        assert_eq!(
            report.aborted + report.finished + report.idle,
            2,
            "the connection and the first socket that it put"
        );
        assert_eq!(rig.record.closed().len(), 2 * round);
        rig.manager.start().unwrap();
    }
    let clients: Vec<_> = (0..3).map(|_| rig.connect()).collect();
    assert!(rig.manager.put(pair().1).unwrap_err().is_busy());
    drop(clients);
}

#[test]
fn a_refusal_arrives_even_with_the_smallest_buffer() {
    let mut rig = echo(drained().buffer_size(1).max_workers(1));
    let _busy = rig.connect();
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(addr).unwrap();
    let writing = write_behind(&client, vec![0; 64 << 10]);
    let got = rig.read_to_end(&mut client).expect("no reset before the refusal");
    assert_eq!(got, ERROR_SERVER_BUSY.as_bytes());
    rig.until(|_| writing.is_finished());
    drop(client);
    rig.until(|rig| rig.manager.stats().lingering == 0);
    let _ = writing.join();
}

/// Panics in the named hook.
struct PanicsIn(&'static str);

impl PanicsIn {
    fn check(&self, hook: &str) {
        assert_ne!(self.0, hook, "{hook} panics");
    }
}

impl Handler for PanicsIn {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        self.check("opened");
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        if body == b"long" {
            return conn.write_all(&vec![7; 900 << 10]);
        }
        conn.write_all(body)?;
        self.check("request");
        Ok(())
    }

    fn flushed(&mut self, _: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.check("flushed");
        Ok(())
    }

    fn closed(&mut self, _: &Closed, _: Option<()>, _: &mut Commands) {
        self.check("closed");
    }
}

#[test]
fn a_panic_in_any_hook_is_counted_once() {
    for hook in ["opened", "request", "flushed", "closed", "none"] {
        let mut manager = Manager::with_handler(lines(), PanicsIn(hook)).unwrap();
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

/// The panic is not the close reason, because the earlier replies are still unsent at the deadline.
#[test]
fn a_panic_is_counted_even_if_the_earlier_replies_stay_unsent() {
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
