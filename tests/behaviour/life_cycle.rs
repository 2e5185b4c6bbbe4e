//! The life cycle of a manager (start, stop, restart and drop), and callbacks that fail.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::panic::panic_any;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pool_manager::sys::{Backend, Event, ListenSocket, Wake};
use pool_manager::{
    CloseReason, Closed, Commands, Config, ConfigError, Conn, ConnId, Error, Framing, Handle,
    Handler, Manager, PutError, Socket, Stats, StopReport, Turn,
};

use crate::support::{
    Record, Rig, Seen, TIMEOUT, alone, descriptors, echo, logged, pair, remember_log, rig,
    shrink_buffers,
};

const LONG: Duration = Duration::from_secs(60);

/// On Linux, an address that no other test uses, so that no other test takes a port that was just
/// released. All of 127/8 is local there.
const UNSHARED: &str = if cfg!(target_os = "linux") { "127.0.77.1:0" } else { "127.0.0.1:0" };

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG)
}

fn tcp(socket: Socket) -> TcpStream {
    match socket {
        Socket::Tcp(stream) => stream,
        other => panic!("not the TCP socket: {other:?}"),
    }
}

/// Returns a connection whose kernel buffers hold less than half a megabyte, but enough for a fast
/// transfer.
fn narrow_pair() -> (TcpStream, TcpStream) {
    let (client, ours) = pair();
    socket2::SockRef::from(&client).set_recv_buffer_size(64 << 10).unwrap();
    socket2::SockRef::from(&ours).set_send_buffer_size(64 << 10).unwrap();
    (client, ours)
}

/// Returns the numbers of connections in a report: idle, finished and aborted.
fn numbers(report: StopReport) -> (usize, usize, usize) {
    (report.idle, report.finished, report.aborted)
}

impl<F> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// Runs turns until the requested stop is complete, and returns its report.
    #[track_caller]
    fn stopped(&mut self) -> StopReport {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            let turn = self.manager.turn(Some(Duration::from_millis(10))).expect("turn");
            if let Some(report) = turn.stopped {
                return report;
            }
        }
        panic!("the manager does not stop: {:#?}", self.record.all());
    }
}

#[test]
fn a_second_start_is_refused() {
    let mut rig = echo(Config::new());
    let refused = rig.manager.start().unwrap_err();
    assert!(matches!(refused, Error::AlreadyRunning));
    assert_eq!(refused.to_string(), "already running");
    let (mut client, _) = rig.connect();
    client.write_all(b"still served").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 12);
}

#[test]
fn a_put_before_start_or_after_stop_gives_the_socket_back_usable() {
    let mut manager = Manager::new(Config::new(), |_, _| Ok(())).unwrap();
    for _ in 0..2 {
        let (mut client, ours) = pair();
        client.write_all(b"unread").unwrap();
        let refused = manager.put(ours).unwrap_err();
        assert!(matches!(refused.error(), Error::NotRunning));
        assert!(refused.to_string().contains("not running"), "{refused}");
        let mut ours = tcp(refused.into_socket());
        let mut got = [0; 6];
        ours.read_exact(&mut got).expect("the socket is still blocking, and unread");
        assert_eq!(&got, b"unread");
        ours.write_all(b"alive").unwrap();
        client.read_exact(&mut got[..5]).unwrap();
        manager.start().unwrap();
        manager.stop().unwrap();
    }
    assert_eq!(manager.stats().put, 0);
}

#[test]
fn calls_that_need_a_running_manager_return_not_running() {
    let mut manager = Manager::new(Config::new(), |_, _| Ok(())).unwrap();
    let check = |manager: &mut Manager<_>| {
        assert!(matches!(manager.stop(), Err(Error::NotRunning)));
        assert!(matches!(manager.turn(None), Err(Error::NotRunning)));
        assert!(matches!(manager.run(), Err(Error::NotRunning)));
        assert!(matches!(manager.listen("127.0.0.1:0"), Err(Error::NotRunning)));
        assert!(matches!(manager.handle().stop(), Err(Error::NotRunning)));
        assert_eq!(manager.next_timeout(), None);
        assert!(Error::NotRunning.to_string().contains("not running"));
    };
    check(&mut manager);
    manager.start().unwrap();
    manager.stop().unwrap();
    check(&mut manager);
}

#[test]
fn a_restarted_manager_keeps_its_port_and_handle_but_uses_new_ids() {
    let mut rig = echo(Config::new().framing(Framing::Drained));
    let handle = rig.manager.handle();
    let addr = rig.manager.listen(UNSHARED).unwrap();
    let mut clients = Vec::new();
    for round in 1..=3 {
        let mut client = TcpStream::connect(addr).unwrap();
        client.write_all(b"again").unwrap();
        assert_eq!(rig.read_exact(&mut client, 5), b"again");
        clients.push(client);
        assert_eq!(rig.record.all().iter().filter(|seen| opened(seen).is_some()).count(), round);
        handle.stop().unwrap();
        assert_eq!(numbers(rig.manager.run().unwrap()), (1, 0, 0));
        rig.manager.start().unwrap();
        assert_eq!(rig.manager.listen(addr).unwrap(), addr);
    }
    let mut ids: Vec<ConnId> = rig.record.all().iter().filter_map(opened).collect();
    ids.dedup();
    assert_eq!(ids.len(), 3, "an id was reused: {ids:?}");
    assert_eq!(rig.record.open_lives(), 0);
}

fn opened(seen: &Seen) -> Option<ConnId> {
    if let Seen::Opened(id) = seen { Some(*id) } else { None }
}

#[test]
fn a_stop_closes_idle_connections_at_once() {
    let mut rig = echo(lines());
    let mut clients: Vec<TcpStream> = (0..3).map(|_| rig.connect().0).collect();
    clients[0].write_all(b"served\n").unwrap();
    assert_eq!(rig.read_exact(&mut clients[0], 6), b"served");
    let waits = rig.manager.stats().waits;
    assert_eq!(numbers(rig.manager.stop().unwrap()), (3, 0, 0));
    assert_eq!(rig.manager.stats().waits, waits, "the stop waited");
    assert_eq!(rig.record.closed(), [CloseReason::Stopped; 3]);
    assert_eq!(rig.record.open_lives(), 0);
    for mut client in clients {
        client.set_nonblocking(false).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_connection_already_closing_when_a_stop_begins_keeps_its_reason() {
    let mut rig = echo(lines());
    let (_client, id) = rig.connect();
    let handle = rig.manager.handle();
    handle.close(id).unwrap();
    handle.stop().unwrap();
    rig.manager.run().unwrap();
    assert_eq!(rig.record.closed(), [CloseReason::Requested]);
}

#[test]
fn a_stop_lets_a_request_in_progress_finish() {
    let mut rig = echo(lines());
    let (mut busy, _) = rig.connect();
    let (_idle, _) = rig.connect();
    busy.write_all(b"hel").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 3);
    rig.manager.handle().stop().unwrap();
    assert_eq!(rig.turn().stopped, None);
    assert_eq!(rig.record.closed(), [CloseReason::Stopped], "the idle connection");
    busy.write_all(b"lo\n").unwrap();
    assert_eq!(rig.read_to_end(&mut busy).unwrap(), b"hello");
    drop(busy);
    let report = rig.stopped();
    assert_eq!(numbers(report), (1, 1, 0));
    assert_eq!((report.unsent_bytes, report.dropped_bytes), (0, 0));
    assert_eq!(rig.record.closed(), [CloseReason::Stopped; 2]);
}

#[test]
fn a_stop_serves_a_request_that_is_still_in_the_kernel() {
    let mut rig = echo(lines());
    let (mut client, _) = rig.connect();
    rig.turn();
    client.write_all(b"in time\n").unwrap();
    rig.manager.handle().stop().unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"in time");
    drop(client);
    assert_eq!(numbers(rig.stopped()), (0, 1, 0));
}

/// The stop begins outside a turn. Its final read consumes the readiness edge, so that no event
/// follows.
#[test]
fn a_stop_closes_a_connection_that_was_answered_as_it_began() {
    let mut rig = echo(lines().stop_deadline(Duration::from_secs(5)));
    let (mut client, _) = rig.connect();
    rig.turn();
    client.write_all(b"in time\n").unwrap();
    let reader = std::thread::spawn(move || {
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).map(|_| reply)
    });
    assert_eq!(numbers(rig.manager.stop().unwrap()), (0, 1, 0));
    assert_eq!(reader.join().unwrap().unwrap(), b"in time");
}

#[test]
fn a_stop_flushes_a_reply_to_a_slow_reader() {
    let mut rig = rig(lines(), |conn, _| conn.write_all(&vec![b'x'; 1 << 20]));
    let (mut client, ours) = narrow_pair();
    rig.manager.put(ours).unwrap();
    client.write_all(b"go\n").unwrap();
    rig.requests(1);
    assert!(rig.manager.stats().bytes_out < 1 << 20, "the whole reply was sent at once");
    let reader = std::thread::spawn(move || {
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).map(|_| reply.len())
    });
    assert_eq!(numbers(rig.manager.stop().unwrap()), (0, 1, 0));
    assert_eq!(reader.join().unwrap().unwrap(), 1 << 20);
}

#[test]
fn at_the_stop_deadline_peers_that_never_read_are_aborted_and_counted() {
    let drain = Duration::from_millis(100);
    let mut rig = rig(lines().stop_deadline(drain), |conn, _| conn.write_all(&vec![b'x'; 500_000]));
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (mut client, ours) = pair();
        shrink_buffers(&client, &ours);
        rig.manager.put(ours).unwrap();
        client.write_all(b"go\nand more").unwrap();
        clients.push(client);
    }
    let (_idle, _) = rig.connect();
    rig.requests(3);
    let began = Instant::now();
    let report = rig.manager.stop().unwrap();
    assert!(began.elapsed() >= drain, "{:?}", began.elapsed());
    assert_eq!(numbers(report), (1, 0, 3));
    let stats = rig.manager.stats();
    assert_eq!(report.unsent_bytes, 3 * 500_000 - stats.bytes_out);
    assert_eq!(report.unsent_bytes, stats.bytes_unsent);
    assert_eq!(report.dropped_bytes, stats.bytes_dropped);
    assert_eq!(report.dropped_bytes, stats.bytes_in - 3 * 3, "read, but not delivered");
    assert_eq!(rig.record.closed(), [CloseReason::Stopped; 4]);
    assert_eq!(rig.record.open_lives(), 0);
}

#[test]
fn a_report_counts_from_the_beginning_of_its_own_stop() {
    let mut rig =
        rig(lines().stop_deadline(Duration::ZERO), |conn, _| conn.write_all(&vec![b'x'; 500_000]));
    let mut before = 0;
    for _ in 0..2 {
        let (mut client, ours) = pair();
        shrink_buffers(&client, &ours);
        rig.manager.put(ours).unwrap();
        client.write_all(b"go\n").unwrap();
        rig.until(|rig| rig.manager.stats().bytes_out > before);
        let unsent = rig.manager.stats().bytes_unsent;
        let report = rig.manager.stop().unwrap();
        assert!(report.unsent_bytes > 0);
        assert_eq!(report.unsent_bytes, rig.manager.stats().bytes_unsent - unsent);
        before = rig.manager.stats().bytes_out;
        rig.manager.start().unwrap();
    }
}

#[test]
fn a_stop_deadline_of_zero_aborts_at_once() {
    let mut rig = echo(lines().stop_deadline(Duration::ZERO));
    let (mut client, _) = rig.connect();
    client.write_all(b"unfinished").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 10);
    let waits = rig.manager.stats().waits;
    let report = rig.manager.stop().unwrap();
    assert_eq!(numbers(report), (0, 0, 1));
    assert_eq!(report.dropped_bytes, 10);
    assert_eq!(rig.manager.stats().waits, waits, "the stop waited");
}

#[test]
fn the_stop_deadline_is_the_clients_deadline_unless_set() {
    let deadline = Duration::from_millis(80);
    let mut rig = echo(Config::new().clients_deadline(deadline));
    let (client, id) = rig.connect();
    rig.manager.handle().pause(id).unwrap();
    rig.turn();
    let began = Instant::now();
    assert_eq!(numbers(rig.manager.stop().unwrap()), (0, 0, 1), "a paused one is in progress");
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
    drop(client);
}

#[test]
fn a_stop_requested_in_a_callback_ends_run_with_the_report() {
    let mut rig = rig(lines(), |conn, body| {
        conn.write_all(body)?;
        conn.commands().stop()?;
        Ok(())
    });
    let (mut client, _) = rig.connect();
    let (_idle, _) = rig.connect();
    client.write_all(b"stop\n").unwrap();
    let report = rig.manager.run().unwrap();
    assert_eq!((report.idle + report.finished, report.aborted), (2, 0));
    let mut reply = Vec::new();
    client.read_to_end(&mut reply).unwrap();
    assert_eq!(reply, b"stop", "the reply of the callback that requested the stop");
}

#[test]
fn a_stop_requested_by_a_handle_ends_a_run_that_waits_for_ever() {
    let mut manager = Manager::new(lines(), |_, _| Ok(())).unwrap();
    manager.start().unwrap();
    let handle = manager.handle();
    let (done, report) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(manager.run()));
    assert_eq!(handle.stats().live, 0, "the manager runs");
    handle.stop().unwrap();
    let report = report.recv_timeout(TIMEOUT).expect("run returns").unwrap();
    assert_eq!(numbers(report), (0, 0, 0));
}

#[test]
fn a_second_stop_does_not_prolong_the_first() {
    let mut rig = echo(lines().stop_deadline(Duration::from_millis(60)));
    let (mut client, _) = rig.connect();
    client.write_all(b"unfinished").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 10);
    let handle = rig.manager.handle();
    let deadline = Instant::now() + TIMEOUT;
    let report = loop {
        // If each of these calls restarted the stop, the stop would never end.
        handle.stop().unwrap();
        if let Some(report) = rig.turn().stopped {
            break report;
        }
        assert!(Instant::now() < deadline, "the stop does not end");
    };
    assert_eq!(numbers(report), (0, 0, 1));
}

#[test]
fn put_and_listen_are_refused_during_a_stop() {
    let refused_inside = Rc::new(Cell::new(false));
    let refused = refused_inside.clone();
    let mut rig = rig(lines(), move |conn, _| {
        let error = conn.commands().put(pair().1).unwrap_err();
        refused.set(matches!(error.error(), Error::NotRunning));
        Ok(())
    });
    let handle = rig.manager.handle();
    let (mut client, _) = rig.connect();
    client.write_all(b"unfinished").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 10);
    handle.stop().unwrap();
    assert_eq!(rig.turn().stopped, None);
    for refused in [rig.manager.put(pair().1).map(drop), handle.put(pair().1)] {
        let refused = refused.unwrap_err();
        assert!(matches!(refused.error(), Error::NotRunning), "{refused}");
    }
    assert!(matches!(rig.manager.listen("127.0.0.1:0"), Err(Error::NotRunning)));
    assert!(matches!(rig.manager.start(), Err(Error::AlreadyRunning)));
    client.write_all(b"\n").unwrap();
    assert_eq!(numbers(rig.stopped()), (0, 1, 0));
    assert!(refused_inside.get());
    assert_eq!(rig.manager.stats().put, 1);
}

#[test]
fn a_stopping_manager_closes_its_listeners_at_once() {
    let mut rig = echo(lines());
    let addr = rig.manager.listen(UNSHARED).unwrap();
    let (mut client, _) = rig.connect();
    client.write_all(b"unfinished").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 10);
    rig.manager.handle().stop().unwrap();
    assert_eq!(rig.turn().stopped, None);
    assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn after_a_stop_no_descriptor_of_the_manager_is_open() {
    alone("life_cycle::after_a_stop_no_descriptor_of_the_manager_is_open", 512, || {
        let mut rig = echo(lines().stop_deadline(Duration::from_millis(20)));
        rig.manager.stop().unwrap();
        let before = descriptors();
        for ending in ["idle", "unfinished", "queued", "lingering"] {
            rig.manager.start().unwrap();
            rig.manager.listen("127.0.0.1:0").unwrap();
            let (mut client, id) = rig.connect();
            client.write_all(if ending == "idle" { b"a\n" } else { b"abc" }).unwrap();
            rig.until(|rig| rig.manager.stats().bytes_in > 0);
            match ending {
                "queued" => rig.manager.handle().put(pair().1).unwrap(),
                "lingering" => {
                    rig.manager.handle().send(id, b"last reply").unwrap();
                    rig.manager.handle().close(id).unwrap();
                    rig.until(|rig| rig.manager.stats().lingering == 1);
                }
                _ => {}
            }
            rig.manager.stop().unwrap();
            drop(client);
            assert_eq!(descriptors(), before, "{ending}");
        }
        assert_eq!(rig.record.open_lives(), 0);
    });
}

#[test]
fn two_hundred_starts_and_stops_leave_no_descriptor() {
    alone("life_cycle::two_hundred_starts_and_stops_leave_no_descriptor", 64, || {
        let mut manager = Manager::new(Config::new().min_workers(2), |_, _| Ok(())).unwrap();
        let before = descriptors();
        for _ in 0..200 {
            manager.start().unwrap();
            let _clients: Vec<TcpStream> = (0..3)
                .map(|_| {
                    let (client, ours) = pair();
                    manager.put(ours).unwrap();
                    client
                })
                .collect();
            manager.turn(Some(Duration::ZERO)).unwrap();
            assert_eq!(manager.stop().unwrap().idle, 3);
        }
        assert_eq!(descriptors(), before);
        assert_eq!(manager.stats().live, 0);
    });
}

#[test]
fn creating_a_manager_without_descriptors_fails_and_leaks_nothing() {
    alone("life_cycle::creating_a_manager_without_descriptors_fails_and_leaks_nothing", 32, || {
        let open = || std::fs::File::open("/dev/null");
        let mut taken: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
        let mut failures = 0;
        let mut manager = loop {
            match Manager::new(Config::new(), |_, _| Ok(())) {
                Ok(manager) => break manager,
                Err(error) => assert!(matches!(error, Error::Start(_)), "{error}"),
            }
            let spare: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
            assert_eq!(spare.len(), failures, "a failed attempt leaves no descriptor open");
            drop(spare);
            taken.pop().expect("the manager can be created with enough descriptors");
            failures += 1;
        };
        assert!(failures > 0);
        drop(taken);
        manager.start().unwrap();
        manager.put(pair().1).unwrap();
    });
}

#[test]
fn dropping_a_running_manager_closes_everything_once_and_does_not_wait() {
    let mut rig = rig(lines(), |conn, _| conn.write_all(&vec![b'x'; 500_000]));
    let addr = rig.manager.listen(UNSHARED).unwrap();
    let (mut stalled, ours) = pair();
    shrink_buffers(&stalled, &ours);
    rig.manager.put(ours).unwrap();
    stalled.write_all(b"go\n").unwrap();
    rig.requests(1);
    let (mut unfinished, _) = rig.connect();
    unfinished.write_all(b"abc").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 6);
    let (mut idle, _) = rig.connect();
    let (mut queued, ours) = pair();
    rig.manager.handle().put(ours).unwrap();
    let Rig { manager, record } = rig;
    drop(manager);
    assert_eq!(record.closed(), [CloseReason::Stopped; 3], "the queued one was never opened");
    assert_eq!(record.open_lives(), 0);
    assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    for client in [&mut idle, &mut queued] {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn dropping_a_stopping_manager_does_not_wait_for_the_stop() {
    let mut rig = echo(lines());
    let (mut client, _) = rig.connect();
    client.write_all(b"unfinished").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 10);
    rig.manager.handle().stop().unwrap();
    assert_eq!(rig.turn().stopped, None);
    let Rig { manager, record } = rig;
    drop(manager);
    assert_eq!(record.closed(), [CloseReason::Stopped]);
}

/// The hook in which a [`FailingHandler`] fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Nowhere,
    Opened,
    Request,
    Flushed,
    Closed,
}

/// The kind of failure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fail {
    Err,
    /// An error that panics when it is dropped.
    ErrBomb,
    Panic,
    /// A panic whose payload panics again when it is dropped.
    Bomb,
}

#[derive(Debug)]
struct Bomb;

impl std::fmt::Display for Bomb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an error that panics when dropped")
    }
}

impl std::error::Error for Bomb {}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

/// The failure of each connection that is opened from now on.
type NextFailure = Rc<Cell<(At, Fail)>>;

/// A handler that fails in one of its hooks. When a connection is opened, `next` says in which hook
/// the handler fails and how. `opened` writes `<`. If `flushed` has to fail, `request` writes a
/// reply that is blocked.
struct FailingHandler {
    record: Record,
    next: NextFailure,
}

impl FailingHandler {
    fn fail_at(at: At, (hook, how): (At, Fail)) -> io::Result<()> {
        match how {
            _ if at != hook => Ok(()),
            Fail::Err => Err(ErrorKind::Other.into()),
            Fail::ErrBomb => Err(io::Error::other(Bomb)),
            Fail::Panic => panic!("in {at:?}"),
            Fail::Bomb => panic_any(Bomb),
        }
    }
}

/// The failure of one connection.
#[derive(Clone, Copy)]
struct Failure((At, Fail));

impl Handler for FailingHandler {
    type Session = Failure;

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<Failure> {
        let failure = Failure(self.next.get());
        self.record.0.borrow_mut().push(Seen::Opened(conn.id()));
        conn.write_all(b"<")?;
        Self::fail_at(At::Opened, failure.0).map(|()| failure)
    }

    fn request(
        &mut self,
        conn: &mut Conn<'_>,
        failure: &mut Failure,
        body: &[u8],
    ) -> io::Result<()> {
        self.record.0.borrow_mut().push(Seen::Request(conn.id(), conn.cause(), body.to_vec()));
        conn.write_all(body)?;
        match failure.0.0 {
            At::Flushed => conn.write_all(&vec![b'x'; 500_000]),
            // The request before the one that fails is answered.
            At::Request if body == b"well" => Ok(()),
            _ => Self::fail_at(At::Request, failure.0),
        }
    }

    fn flushed(&mut self, conn: &mut Conn<'_>, failure: &mut Failure) -> io::Result<()> {
        self.record.0.borrow_mut().push(Seen::Flushed(conn.id()));
        conn.write_all(b"flushed")?;
        Self::fail_at(At::Flushed, failure.0)
    }

    fn closed(&mut self, end: &Closed, failure: Option<Failure>, _commands: &mut Commands) {
        self.record.0.borrow_mut().push(Seen::Closed(end.id, end.reason));
        // `closed` returns no error, so only a panic has an effect here.
        let _ = failure.map(|failure| Self::fail_at(At::Closed, failure.0));
    }
}

/// Returns a started manager with a [`FailingHandler`], its record, and its next failure.
fn failing_manager(next: (At, Fail)) -> (Manager<FailingHandler>, Record, NextFailure) {
    let (record, next) = (Record::default(), Rc::new(Cell::new(next)));
    let handler = FailingHandler { record: record.clone(), next: next.clone() };
    let mut manager = Manager::with_handler(lines(), handler).unwrap();
    manager.start().unwrap();
    (manager, record, next)
}

/// Runs turns until the client reads the end of file, and returns the bytes before it.
#[track_caller]
fn read_all<H: Handler>(manager: &mut Manager<H>, mut client: &TcpStream) -> Vec<u8> {
    client.set_nonblocking(true).unwrap();
    let (deadline, mut got, mut chunk) = (Instant::now() + TIMEOUT, Vec::new(), [0; 4096]);
    while Instant::now() < deadline {
        match client.read(&mut chunk) {
            Ok(0) => return got,
            Ok(count) => got.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                manager.turn(Some(Duration::from_millis(10))).unwrap();
            }
            Err(error) => panic!("{error} after {} bytes", got.len()),
        }
    }
    panic!("no end of file after {} bytes", got.len());
}

/// Returns the bytes that a failing connection sends. Asserts that its neighbour is unaffected.
#[track_caller]
fn output_of(at: At, how: Fail) -> Vec<u8> {
    let (mut manager, record, next) = failing_manager((At::Nowhere, how));
    let (mut neighbour, ours) = pair();
    manager.put(ours).unwrap();
    next.set((at, how));
    let (mut client, ours) = narrow_pair();
    let id = manager.put(ours).unwrap();
    if at != At::Opened {
        client.write_all(b"well\nbad\nnever\n").unwrap();
    }
    let output = read_all(&mut manager, &client);
    drop(client);
    neighbour.write_all(b"ping\n").unwrap();
    neighbour.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut manager, &neighbour), b"<ping", "the neighbour is affected");
    assert_eq!(manager.stats().live, 0);
    assert_eq!(record.open_lives(), 0);
    let reason = match how {
        Fail::Err | Fail::ErrBomb => CloseReason::Failed,
        Fail::Panic | Fail::Bomb => CloseReason::Panicked,
    };
    assert!(record.all().contains(&Seen::Closed(id, reason)), "{:?}", record.all());
    output
}

#[test]
fn a_panic_in_opened_closes_that_connection_and_drops_its_output() {
    assert_eq!(output_of(At::Opened, Fail::Panic), b"");
    assert_eq!(output_of(At::Opened, Fail::Bomb), b"");
}

#[test]
fn a_panic_in_a_request_closes_that_connection_after_earlier_replies() {
    assert_eq!(output_of(At::Request, Fail::Panic), b"<well");
    assert_eq!(output_of(At::Request, Fail::Bomb), b"<well", "the payload panics again");
}

#[test]
fn a_panic_in_flushed_closes_that_connection_after_the_blocked_reply() {
    for how in [Fail::Panic, Fail::Bomb] {
        let output = output_of(At::Flushed, how);
        assert!(output.starts_with(b"<wellx") && !output.ends_with(b"flushed"), "{}", output.len());
    }
}

#[test]
fn an_error_closes_that_connection_after_sending_its_output() {
    assert_eq!(output_of(At::Opened, Fail::Err), b"<");
    assert_eq!(output_of(At::Request, Fail::Err), b"<wellbad");
    assert!(output_of(At::Flushed, Fail::Err).ends_with(b"flushed"));
}

#[test]
fn an_error_that_panics_when_dropped_is_handled_as_an_error() {
    assert_eq!(output_of(At::Opened, Fail::ErrBomb), b"<");
    assert_eq!(output_of(At::Request, Fail::ErrBomb), b"<wellbad");
    assert!(output_of(At::Flushed, Fail::ErrBomb).ends_with(b"flushed"));
}

#[test]
fn a_panic_in_closed_affects_no_other_connection() {
    for how in [Fail::Panic, Fail::Bomb] {
        let (mut manager, record, _) = failing_manager((At::Closed, how));
        let clients = [pair(), pair()].map(|(client, ours)| {
            manager.put(ours).unwrap();
            client
        });
        clients[0].shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut manager, &clients[0]), b"<");
        assert_eq!((record.closed().len(), manager.stats().live), (1, 1));
        assert_eq!(manager.stop().unwrap().idle, 1);
        assert_eq!(record.open_lives(), 0);
        manager.start().unwrap();
        manager.put(pair().1).unwrap();
        drop(manager);
        assert_eq!((record.open_lives(), record.closed().len()), (0, 3), "also in the drop");
    }
}

#[test]
fn an_abort_in_opened_sends_nothing() {
    struct AbortsInOpened;
    impl Handler for AbortsInOpened {
        type Session = ();
        fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
            conn.write_all(b"not to be sent")?;
            conn.abort();
            Ok(())
        }
        fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> io::Result<()> {
            unreachable!("the connection was aborted")
        }
    }
    let mut manager = Manager::with_handler(lines(), AbortsInOpened).unwrap();
    manager.start().unwrap();
    let (client, ours) = pair();
    manager.put(ours).unwrap();
    assert_eq!(read_all(&mut manager, &client), b"");
    assert_eq!(manager.stats().closed(CloseReason::Aborted), 1);
}

/// Covers the close reasons that a client alone can cause.
#[test]
fn every_close_calls_closed_exactly_once_and_no_callback_after_it() {
    let config = lines().buffer_size(64).write_limit(1024).max_workers(20);
    let mut rig = rig(config, |conn, body| match body {
        b"close" => {
            conn.close();
            conn.write_all(b"bye")
        }
        b"abort" => {
            conn.abort();
            Ok(())
        }
        b"fail" => Err(ErrorKind::Other.into()),
        b"panic" => panic!("requested by the test"),
        b"much" => conn.write_all(&[b'x'; 2000]),
        b"expire" => {
            conn.set_idle_deadline(Duration::from_millis(1));
            Ok(())
        }
        _ => Ok(()),
    });
    let requests: [(&[u8], CloseReason); 9] = [
        (b"close\nx\n", CloseReason::Requested),
        (b"abort\nx\n", CloseReason::Aborted),
        (b"fail\nx\n", CloseReason::Failed),
        (b"panic\nx\n", CloseReason::Panicked),
        (b"much\nx\n", CloseReason::WriteLimit),
        (b"expire\n", CloseReason::Expired),
        (&[b'x'; 100], CloseReason::Overlong),
        (b"end", CloseReason::Eof),
        (b"reset\n", CloseReason::Reset),
    ];
    for (count, (request, reason)) in requests.into_iter().enumerate() {
        let (mut client, id) = rig.connect();
        client.write_all(request).unwrap();
        match reason {
            CloseReason::Eof => client.shutdown(Shutdown::Write).unwrap(),
            CloseReason::Reset => crate::support::reset(client.try_clone().unwrap()),
            _ => {}
        }
        if reason == CloseReason::Reset {
            // `reset` set the linger time through a clone of the socket. The next line closes the
            // last descriptor of the socket, which sends the reset.
            drop(client);
        }
        rig.until(|rig| rig.record.closed().len() > count);
        assert_eq!(rig.record.all().last(), Some(&Seen::Closed(id, reason)));
        assert_eq!(rig.manager.stats().closed(reason), 1, "{reason:?}");
    }
    assert_eq!((rig.record.open_lives(), rig.manager.stats().live), (0, 0));
    assert_eq!(rig.manager.stats().closed_total(), 9);
    for _ in 0..20 {
        rig.manager.put(pair().1).expect("all workers are free");
    }
}

/// A backend in which every call succeeds, except that waits fail with `fail`.
struct FailingWaits {
    fail: Option<ErrorKind>,
    waits: Rc<Cell<u32>>,
}

impl Backend for FailingWaits {
    type Listener = ();

    fn start(&mut self) -> io::Result<Wake> {
        Ok(std::sync::Arc::new(|| Ok(())))
    }
    fn stop(&mut self) {}
    fn now(&mut self) -> Duration {
        Duration::from_millis(1)
    }
    fn wait(&mut self, _: Option<Duration>) -> io::Result<bool> {
        self.waits.set(self.waits.get() + 1);
        self.fail.map_or(Ok(false), |kind| Err(kind.into()))
    }
    fn events(&mut self, _: impl FnMut(Event)) {}
    fn register(&mut self, _: &Socket, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn deregister(&mut self, _: &Socket) {}
    fn listen(&mut self, _: ListenSocket, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn close_listener(&mut self, (): ()) {}
    fn accept(&mut self, (): &mut ()) -> io::Result<(Socket, Option<IpAddr>)> {
        Err(ErrorKind::WouldBlock.into())
    }
    fn short_read_is_drained(&self, _: &Socket) -> bool {
        false
    }
}

/// Returns a manager over [`FailingWaits`], the client of its one connection, and the wait counter.
fn failing_waits(
    fail: ErrorKind,
) -> (Manager<impl Handler, FailingWaits>, TcpStream, Rc<Cell<u32>>) {
    let waits = Rc::new(Cell::new(0));
    let backend = FailingWaits { fail: Some(fail), waits: waits.clone() };
    let handler = |_: &mut Conn<'_>, _: &[u8]| Ok(());
    let mut manager = Manager::with_backend(Config::new(), handler, backend).unwrap();
    manager.start().unwrap();
    let (client, ours) = pair();
    manager.put(ours).unwrap();
    (manager, client, waits)
}

#[test]
fn a_wait_that_fails_closes_everything_and_stops() {
    let (mut manager, mut client, waits) = failing_waits(ErrorKind::InvalidInput);
    let handle = manager.handle();
    let (mut queued, ours) = pair();
    handle.put(ours).unwrap();
    assert!(matches!(manager.run(), Err(Error::Wait(_))));
    assert_eq!(waits.get(), 1, "the wait was repeated");
    assert_eq!(manager.stats().closed(CloseReason::Stopped), 1);
    for client in [&mut client, &mut queued] {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    assert!(matches!(manager.turn(None), Err(Error::NotRunning)));
    assert!(matches!(handle.stop(), Err(Error::NotRunning)));
    manager.start().expect("the manager can be started again");
}

#[test]
fn a_wait_that_a_signal_interrupts_is_an_empty_turn() {
    let (mut manager, _client, _) = failing_waits(ErrorKind::Interrupted);
    let turn = manager.turn(None).unwrap();
    assert_eq!((turn.events, turn.stopped), (0, None));
    assert_eq!(manager.stats().live, 1);
}

/// A manager that another loop drives. The other loop runs a turn when the manager's descriptor is
/// readable.
#[cfg(not(mio_unsupported_force_poll_poll))]
mod embedded {
    use super::*;
    use pool_manager::Transport;
    use std::os::fd::{AsFd, BorrowedFd};

    type Reply = fn(&mut Conn<'_>, &[u8]) -> io::Result<()>;

    /// A manager that is wrapped as a transport. An outer manager waits for the descriptor of this
    /// manager.
    struct Inner(Manager<Reply>);

    impl Read for Inner {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            loop {
                let events = self.0.turn(Some(Duration::ZERO)).unwrap().events;
                if events == 0 && self.0.next_timeout() != Some(Duration::ZERO) {
                    return Err(ErrorKind::WouldBlock.into());
                }
            }
        }
    }

    impl Write for Inner {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Inner {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Transport for Inner {}

    #[test]
    fn another_loop_can_wait_for_the_manager_s_descriptor() {
        let reply: Reply = |conn, body| conn.write_all(body);
        let mut inner = Manager::new(lines(), reply).unwrap();
        inner.start().unwrap();
        let addr = inner.listen("127.0.0.1:0").unwrap();
        let handle = inner.handle();
        let mut outer = echo(lines());
        outer.manager.put(Socket::Boxed(Box::new(Inner(inner)))).unwrap();
        let mut client = TcpStream::connect(addr).unwrap();
        for _ in 0..3 {
            client.write_all(b"nested\n").unwrap();
            assert_eq!(outer.read_exact(&mut client, 6), b"nested");
        }
        let (mut woken, ours) = pair();
        handle.put(ours).unwrap();
        woken.write_all(b"by a wake\n").unwrap();
        assert_eq!(outer.read_exact(&mut woken, 9), b"by a wake");
    }
}

#[test]
fn turning_when_next_timeout_has_passed_is_enough() {
    let deadline = Duration::from_millis(60);
    let mut rig = echo(Config::new().clients_deadline(deadline));
    assert_eq!(rig.manager.next_timeout(), None, "no deadline is set");
    let began = Instant::now();
    let (client, _) = rig.connect();
    rig.turn();
    let mut turns = 0;
    while rig.record.closed().is_empty() {
        let next = rig.manager.next_timeout().expect("a deadline is set");
        assert!(next <= deadline + Duration::from_millis(2), "{next:?}");
        let until = Instant::now() + next;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        rig.turn();
        turns += 1;
        assert!(turns < 100, "the loop runs too many turns");
    }
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    drop(client);
}

#[test]
fn next_timeout_is_zero_while_work_is_left() {
    let mut rig = echo(lines());
    let (_client, id) = rig.connect();
    rig.turn();
    rig.manager.handle().send(id, b"work").unwrap();
    assert_eq!(rig.manager.next_timeout(), Some(Duration::ZERO));
    rig.turn();
    assert!(rig.manager.next_timeout() > Some(Duration::ZERO));
}

#[test]
fn public_types_are_send_and_sync_as_documented() {
    fn send<T: Send>() {}
    fn shared<T: Clone + Send + Sync>() {}
    fn sync<T: Send + Sync>() {}
    fn movable<H: Handler + Send>(_: &Manager<H>)
    where
        H::Session: Send,
        Manager<H>: Send,
    {
    }
    shared::<Handle>();
    shared::<Config>();
    shared::<Stats>();
    shared::<ConnId>();
    sync::<PutError>();
    sync::<Error>();
    sync::<ConfigError>();
    sync::<Turn>();
    sync::<StopReport>();
    send::<Socket>();
    send::<Commands>();
    movable(&Manager::new(Config::new(), |_, _| Ok(())).unwrap());
}

#[test]
fn slow_callbacks_are_counted_and_logged_at_most_once_a_second() {
    remember_log();
    let limit = Duration::from_millis(2);
    let mut rig = rig(lines().slow_callback(limit), |_, body| {
        let began = Instant::now();
        while body == b"slow" && began.elapsed() <= limit {
            std::hint::spin_loop();
        }
        Ok(())
    });
    let (mut client, _) = rig.connect();
    for count in 1..=3 {
        client.write_all(b"slow\n").unwrap();
        rig.requests(count);
    }
    let stats = rig.manager.stats();
    assert!(stats.slow_callbacks >= 3, "at least the three slow callbacks");
    assert!(stats.longest_callback > limit);
    let warnings = logged(log::Level::Warn);
    assert!(!warnings.is_empty() && warnings.len() <= 2, "{warnings:?}");
    assert!(warnings[0].contains("slow callback"), "{warnings:?}");
}

/// The Rust API Guidelines require that `Debug` output is never empty (C-DEBUG-NONEMPTY).
#[test]
fn debug_output_is_never_empty_and_contains_no_peer_data() {
    let mut rig = rig(lines(), |conn, body| {
        let (shown, number) = (format!("{conn:?}"), conn.id());
        let id = format!("{number:?}");
        let parts = ["Conn {", &id, "cause: Framed", "Tcp(fd "];
        assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
        conn.commands().send(number, "secret")?;
        let commands = format!("{:?}", conn.commands());
        assert!(
            commands.contains("waiting: 1 commands") && commands.contains("Running"),
            "{commands}"
        );
        assert!(!shown.contains("secret") && !commands.contains("secret"), "{shown} {commands}");
        conn.flush()?;
        assert_eq!(conn.bytes_in(), 8);
        conn.write_all(body)
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"secret\ns").unwrap();
    rig.requests(1);
    assert_eq!(rig.record.closed(), [], "an assertion in the callback failed");
    let shown = format!("{:?}", rig.manager);
    for part in ["Manager {", "life_cycle: Running", "live: 1", "config: "] {
        assert!(shown.contains(part), "{shown}");
    }
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(format!("{:?}", Socket::from(one)).starts_with("Unix(fd "));
    let boxed = Socket::boxed(crate::support::plain::Plain(other));
    assert!(format!("{boxed:?}").starts_with("Boxed(fd "));
    assert_eq!(boxed.peer_addr(), None, "the default of `Transport`");
}

#[test]
fn without_a_limit_callbacks_are_not_timed() {
    let mut rig = echo(lines());
    let (mut client, _) = rig.connect();
    client.write_all(b"quick\n").unwrap();
    rig.requests(1);
    assert_eq!(rig.manager.stats().longest_callback, Duration::ZERO);
}

#[test]
fn warnings_of_panics_are_throttled() {
    remember_log();
    let mut rig = rig(lines(), |_, _| panic!("requested by the test"));
    for count in 1..=5 {
        let (mut client, _) = rig.connect();
        client.write_all(b"?\n").unwrap();
        rig.until(|rig| rig.record.closed().len() == count);
    }
    assert_eq!(rig.manager.stats().panics, 5);
    let warnings = logged(log::Level::Warn);
    assert!(!warnings.is_empty() && warnings.len() <= 2, "{warnings:?}");
    assert!(warnings[0].contains("panicked"), "{warnings:?}");
}

#[test]
fn connection_events_are_logged_only_if_debug_is_set() {
    remember_log();
    for debug in [false, true] {
        let mut rig = rig(lines().debug(debug), |_, _| Err(ErrorKind::InvalidData.into()));
        let (client, ended) = rig.connect();
        drop(client);
        rig.first_close();
        let (mut client, failed) = rig.connect();
        client.write_all(b"secret\n").unwrap();
        rig.until(|rig| rig.record.closed().len() == 2);
        let logged_lines = logged(log::Level::Debug);
        if debug {
            let wanted = [
                format!("{ended}: put"),
                format!("{ended}: closed after "),
                format!("{failed}: put"),
                format!("{failed}: Framed callback failed: "),
                format!("{failed}: closed after "),
            ];
            let all_match =
                logged_lines.iter().zip(&wanted).all(|(line, wanted)| line.starts_with(wanted));
            assert!(logged_lines.len() == wanted.len() && all_match, "{logged_lines:#?}");
            assert!(!logged_lines.concat().contains("secret"));
        } else {
            assert_eq!(logged_lines, [""; 0]);
        }
    }
}

#[test]
fn age_is_the_time_since_the_connection_was_put() {
    let mut rig = rig(lines(), |conn, _| write!(conn, "{}", conn.age().as_millis()));
    let before = Instant::now();
    let (mut client, id) = rig.connect();
    let after = Instant::now();
    rig.manager.handle().pause(id).unwrap();
    let passed = Duration::from_millis(30);
    rig.until(|_| after.elapsed() > passed);
    rig.manager.handle().resume(id).unwrap();
    client.write_all(b"how old?\n").unwrap();
    rig.requests(1);
    rig.turn();
    let mut age = [0; 16];
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let count = client.read(&mut age).unwrap();
    let age: u128 = std::str::from_utf8(&age[..count]).unwrap().parse().unwrap();
    let max = before.elapsed().as_millis() + 1;
    assert!((29..=max).contains(&age), "{age} ms, of at most {max} ms");
}
