//! Started, stopped, started again, dropped; and what a callback that fails takes with it.

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
    PATIENCE, Record, Rig, Seen, alone, descriptors, echo, logged, pair, remember_log, rig,
    shrink_buffers,
};

const LONG: Duration = Duration::from_secs(60);

/// Where no other test may take a port that was just given up. All of 127/8 is here on Linux.
const APART: &str = if cfg!(target_os = "linux") { "127.0.77.1:0" } else { "127.0.0.1:0" };

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG)
}

fn tcp(socket: Socket) -> TcpStream {
    match socket {
        Socket::Tcp(stream) => stream,
        other => panic!("{other:?} was put as TCP"),
    }
}

/// A connection that half a megabyte does not fit into, though it flows well.
fn narrow_pair() -> (TcpStream, TcpStream) {
    let (client, ours) = pair();
    socket2::SockRef::from(&client).set_recv_buffer_size(64 << 10).unwrap();
    socket2::SockRef::from(&ours).set_send_buffer_size(64 << 10).unwrap();
    (client, ours)
}

/// Numbers of a report, in the order of its line.
fn numbers(report: StopReport) -> (usize, usize, usize) {
    (report.idle, report.finished, report.aborted)
}

impl<F> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// Turns until a stop that has been asked for is done.
    #[track_caller]
    fn stopped(&mut self) -> StopReport {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let turn = self.manager.turn(Some(Duration::from_millis(10))).expect("turn");
            if let Some(report) = turn.stopped {
                return report;
            }
        }
        panic!("it never stopped: {:#?}", self.record.all());
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
        ours.read_exact(&mut got).expect("it is still in blocking mode, and nothing was read");
        assert_eq!(&got, b"unread");
        ours.write_all(b"alive").unwrap();
        client.read_exact(&mut got[..5]).unwrap();
        manager.start().unwrap();
        manager.stop().unwrap();
    }
    assert_eq!(manager.stats().put, 0);
}

#[test]
fn what_needs_a_running_manager_says_so() {
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
fn a_restarted_manager_serves_on_the_same_port_with_new_ids_and_the_old_handle() {
    let mut rig = echo(Config::new().framing(Framing::Drained));
    let handle = rig.manager.handle();
    let addr = rig.manager.listen(APART).unwrap();
    let mut clients = Vec::new();
    for lap in 1..=3 {
        let mut client = TcpStream::connect(addr).unwrap();
        client.write_all(b"again").unwrap();
        assert_eq!(rig.read_exact(&mut client, 5), b"again");
        clients.push(client);
        assert_eq!(rig.record.all().iter().filter(|seen| opened(seen).is_some()).count(), lap);
        handle.stop().unwrap();
        assert_eq!(numbers(rig.manager.run().unwrap()), (1, 0, 0));
        rig.manager.start().unwrap();
        assert_eq!(rig.manager.listen(addr).unwrap(), addr);
    }
    let mut ids: Vec<ConnId> = rig.record.all().iter().filter_map(opened).collect();
    ids.dedup();
    assert_eq!(ids.len(), 3, "an id was used again: {ids:?}");
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
    assert_eq!(rig.manager.stats().waits, waits, "it waited for somebody");
    assert_eq!(rig.record.closed(), [CloseReason::Stopped; 3]);
    assert_eq!(rig.record.open_lives(), 0);
    for mut client in clients {
        client.set_nonblocking(false).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn who_was_to_be_closed_when_a_stop_began_is_not_told_of_the_stop() {
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
    assert_eq!(rig.record.closed(), [CloseReason::Stopped], "the idle one");
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

/// Outside a turn, the read with which it begins takes the edge away: no event comes for it.
#[test]
fn a_stop_closes_who_was_answered_as_it_began() {
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
    assert!(rig.manager.stats().bytes_out < 1 << 20, "it all went out at once");
    let reader = std::thread::spawn(move || {
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).map(|_| reply.len())
    });
    assert_eq!(numbers(rig.manager.stop().unwrap()), (0, 1, 0));
    assert_eq!(reader.join().unwrap().unwrap(), 1 << 20);
}

#[test]
fn at_the_drain_deadline_peers_that_never_read_are_aborted_and_their_bytes_counted() {
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
    assert_eq!(report.dropped_bytes, stats.bytes_in - 3 * 3, "read, and seen by no callback");
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
fn a_drain_deadline_of_zero_aborts_at_once() {
    let mut rig = echo(lines().stop_deadline(Duration::ZERO));
    let (mut client, _) = rig.connect();
    client.write_all(b"unfinished").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 10);
    let waits = rig.manager.stats().waits;
    let report = rig.manager.stop().unwrap();
    assert_eq!(numbers(report), (0, 0, 1));
    assert_eq!(report.dropped_bytes, 10);
    assert_eq!(rig.manager.stats().waits, waits, "it waited");
}

#[test]
fn the_drain_deadline_is_the_clients_deadline_unless_set() {
    let deadline = Duration::from_millis(80);
    let mut rig = echo(Config::new().clients_deadline(deadline));
    let (client, id) = rig.connect();
    rig.manager.handle().pause(id).unwrap();
    rig.turn();
    let began = Instant::now();
    assert_eq!(numbers(rig.manager.stop().unwrap()), (0, 0, 1), "paused, so somebody may answer");
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
    drop(client);
}

#[test]
fn a_stop_asked_for_in_a_callback_ends_run_with_the_report() {
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
    assert_eq!(reply, b"stop", "the reply of the callback that asked");
}

#[test]
fn a_stop_asked_for_by_a_handle_ends_a_run_that_waits_for_ever() {
    let mut manager = Manager::new(lines(), |_, _| Ok(())).unwrap();
    manager.start().unwrap();
    let handle = manager.handle();
    let (done, report) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(manager.run()));
    assert_eq!(handle.stats().live, 0, "it runs");
    handle.stop().unwrap();
    let report = report.recv_timeout(PATIENCE).expect("run returns").unwrap();
    assert_eq!(numbers(report), (0, 0, 0));
}

#[test]
fn a_second_stop_does_not_prolong_the_first() {
    let mut rig = echo(lines().stop_deadline(Duration::from_millis(60)));
    let (mut client, _) = rig.connect();
    client.write_all(b"unfinished").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 10);
    let handle = rig.manager.handle();
    let deadline = Instant::now() + PATIENCE;
    let report = loop {
        // A stop that began anew with each of these would never end.
        handle.stop().unwrap();
        if let Some(report) = rig.turn().stopped {
            break report;
        }
        assert!(Instant::now() < deadline, "it is prolonged");
    };
    assert_eq!(numbers(report), (0, 0, 1));
}

#[test]
fn nobody_can_put_while_it_stops() {
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
    let addr = rig.manager.listen(APART).unwrap();
    let (mut client, _) = rig.connect();
    client.write_all(b"unfinished").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 10);
    rig.manager.handle().stop().unwrap();
    assert_eq!(rig.turn().stopped, None);
    assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn after_a_stop_no_descriptor_of_ours_is_open() {
    alone("life_cycle::after_a_stop_no_descriptor_of_ours_is_open", 512, || {
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
                    rig.manager.handle().send(id, b"last word").unwrap();
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
fn a_manager_made_without_descriptors_fails_whole_and_succeeds_later() {
    alone(
        "life_cycle::a_manager_made_without_descriptors_fails_whole_and_succeeds_later",
        32,
        || {
            let open = || std::fs::File::open("/dev/null");
            let mut taken: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
            let mut failures = 0;
            let mut manager = loop {
                match Manager::new(Config::new(), |_, _| Ok(())) {
                    Ok(manager) => break manager,
                    Err(error) => assert!(matches!(error, Error::Start(_)), "{error}"),
                }
                let spare: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
                assert_eq!(spare.len(), failures, "a failed attempt leaves nothing open");
                drop(spare);
                taken.pop().expect("it can be made when there are enough");
                failures += 1;
            };
            assert!(failures > 0);
            drop(taken);
            manager.start().unwrap();
            manager.put(pair().1).unwrap();
        },
    );
}

#[test]
fn dropping_a_running_manager_closes_everything_once_and_does_not_wait() {
    let mut rig = rig(lines(), |conn, _| conn.write_all(&vec![b'x'; 500_000]));
    let addr = rig.manager.listen(APART).unwrap();
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
fn dropping_in_the_middle_of_a_stop_does_not_wait_for_it() {
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

/// Where a [`Touchy`] handler fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Nowhere,
    Opened,
    Request,
    Flushed,
    Closed,
}

/// How it does.
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
        f.write_str("ticking")
    }
}

impl std::error::Error for Bomb {}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

/// What the connections opened from now on fail at, and how.
type Armed = Rc<Cell<(At, Fail)>>;

/// A handler that fails in one of its hooks, for connections opened while it is armed. It writes
/// `<` in front of where it fails, and a reply that has to wait if it is to fail in `flushed`.
struct Touchy {
    record: Record,
    armed: Armed,
}

impl Touchy {
    fn pass(at: At, (armed, how): (At, Fail)) -> io::Result<()> {
        match how {
            _ if at != armed => Ok(()),
            Fail::Err => Err(ErrorKind::Other.into()),
            Fail::ErrBomb => Err(io::Error::other(Bomb)),
            Fail::Panic => panic!("in {at:?}"),
            Fail::Bomb => panic_any(Bomb),
        }
    }
}

/// What a connection was opened with.
#[derive(Clone, Copy)]
struct Fate((At, Fail));

impl Default for Fate {
    fn default() -> Self {
        Self((At::Nowhere, Fail::Err))
    }
}

impl Handler for Touchy {
    type Session = Fate;

    fn opened(&mut self, conn: &mut Conn<'_>, fate: &mut Fate) -> io::Result<()> {
        *fate = Fate(self.armed.get());
        self.record.0.borrow_mut().push(Seen::Opened(conn.id()));
        conn.write_all(b"<")?;
        Self::pass(At::Opened, fate.0)
    }

    fn request(&mut self, conn: &mut Conn<'_>, fate: &mut Fate, body: &[u8]) -> io::Result<()> {
        self.record.0.borrow_mut().push(Seen::Request(conn.id(), conn.cause(), body.to_vec()));
        conn.write_all(body)?;
        match fate.0.0 {
            At::Flushed => conn.write_all(&vec![b'x'; 500_000]),
            // What came before the request that fails is answered.
            At::Request if body == b"well" => Ok(()),
            _ => Self::pass(At::Request, fate.0),
        }
    }

    fn flushed(&mut self, conn: &mut Conn<'_>, fate: &mut Fate) -> io::Result<()> {
        self.record.0.borrow_mut().push(Seen::Flushed(conn.id()));
        conn.write_all(b"flushed")?;
        Self::pass(At::Flushed, fate.0)
    }

    fn closed(&mut self, end: &Closed, fate: Fate, _desk: &mut Commands) {
        self.record.0.borrow_mut().push(Seen::Closed(end.id, end.reason));
        // An error cannot be returned here.
        let _ = Self::pass(At::Closed, fate.0);
    }
}

/// A manager of a [`Touchy`] handler, started; armed it fails `at`.
fn touchy(armed: (At, Fail)) -> (Manager<Touchy>, Record, Armed) {
    let (record, armed) = (Record::default(), Rc::new(Cell::new(armed)));
    let handler = Touchy { record: record.clone(), armed: armed.clone() };
    let mut manager = Manager::with_handler(lines(), handler).unwrap();
    manager.start().unwrap();
    (manager, record, armed)
}

/// Turns the manager until the client has seen the end, and returns what came before it.
#[track_caller]
fn all_of<H: Handler>(manager: &mut Manager<H>, mut client: &TcpStream) -> Vec<u8> {
    client.set_nonblocking(true).unwrap();
    let (deadline, mut got, mut chunk) = (Instant::now() + PATIENCE, Vec::new(), [0; 4096]);
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
    panic!("no end after {} bytes", got.len());
}

/// What the one connection that fails is told, with a neighbour that must not notice.
#[track_caller]
fn told(at: At, how: Fail) -> Vec<u8> {
    let (mut manager, record, armed) = touchy((At::Nowhere, how));
    let (mut neighbour, ours) = pair();
    manager.put(ours).unwrap();
    armed.set((at, how));
    let (mut client, ours) = narrow_pair();
    let id = manager.put(ours).unwrap();
    if at != At::Opened {
        client.write_all(b"well\nbad\nnever\n").unwrap();
    }
    let told = all_of(&mut manager, &client);
    drop(client);
    neighbour.write_all(b"ping\n").unwrap();
    neighbour.shutdown(Shutdown::Write).unwrap();
    assert_eq!(all_of(&mut manager, &neighbour), b"<ping", "the neighbour noticed");
    assert_eq!(manager.stats().live, 0);
    assert_eq!(record.open_lives(), 0);
    let reason = match how {
        Fail::Err | Fail::ErrBomb => CloseReason::Failed,
        Fail::Panic | Fail::Bomb => CloseReason::Panicked,
    };
    assert!(record.all().contains(&Seen::Closed(id, reason)), "{:?}", record.all());
    told
}

#[test]
fn a_panic_in_opened_closes_that_connection_and_nothing_it_wrote_is_sent() {
    assert_eq!(told(At::Opened, Fail::Panic), b"");
    assert_eq!(told(At::Opened, Fail::Bomb), b"");
}

#[test]
fn a_panic_in_a_request_closes_that_connection_after_the_earlier_replies() {
    assert_eq!(told(At::Request, Fail::Panic), b"<well");
    assert_eq!(told(At::Request, Fail::Bomb), b"<well", "and its payload panics again");
}

#[test]
fn a_panic_in_flushed_closes_that_connection_after_the_reply_that_waited() {
    for how in [Fail::Panic, Fail::Bomb] {
        let told = told(At::Flushed, how);
        assert!(told.starts_with(b"<wellx") && !told.ends_with(b"flushed"), "{}", told.len());
    }
}

#[test]
fn an_error_closes_that_connection_after_what_it_wrote() {
    assert_eq!(told(At::Opened, Fail::Err), b"<");
    assert_eq!(told(At::Request, Fail::Err), b"<wellbad");
    assert!(told(At::Flushed, Fail::Err).ends_with(b"flushed"));
}

#[test]
fn an_error_that_panics_when_it_is_dropped_is_an_error() {
    assert_eq!(told(At::Opened, Fail::ErrBomb), b"<");
    assert_eq!(told(At::Request, Fail::ErrBomb), b"<wellbad");
    assert!(told(At::Flushed, Fail::ErrBomb).ends_with(b"flushed"));
}

#[test]
fn a_panic_in_closed_harms_nobody() {
    for how in [Fail::Panic, Fail::Bomb] {
        let (mut manager, record, _) = touchy((At::Closed, how));
        let clients = [pair(), pair()].map(|(client, ours)| {
            manager.put(ours).unwrap();
            client
        });
        clients[0].shutdown(Shutdown::Write).unwrap();
        assert_eq!(all_of(&mut manager, &clients[0]), b"<");
        assert_eq!((record.closed().len(), manager.stats().live), (1, 1));
        assert_eq!(manager.stop().unwrap().idle, 1);
        assert_eq!(record.open_lives(), 0);
        manager.start().unwrap();
        manager.put(pair().1).unwrap();
        drop(manager);
        assert_eq!((record.open_lives(), record.closed().len()), (0, 3), "dropped, it panics too");
    }
}

/// A connection that is aborted in the hook that opens it is told nothing.
#[test]
fn an_abort_in_opened_sends_nothing() {
    struct Doorman;
    impl Handler for Doorman {
        type Session = ();
        fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
            conn.write_all(b"not to be sent")?;
            conn.abort();
            Ok(())
        }
        fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> io::Result<()> {
            unreachable!("it was aborted")
        }
    }
    let mut manager = Manager::with_handler(lines(), Doorman).unwrap();
    manager.start().unwrap();
    let (client, ours) = pair();
    manager.put(ours).unwrap();
    assert_eq!(all_of(&mut manager, &client), b"");
    assert_eq!(manager.stats().closed(CloseReason::Aborted), 1);
}

/// The reasons for which a client alone can have its connection closed.
#[test]
fn every_ending_has_exactly_one_closed_and_no_callback_after_it() {
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
        b"panic" => panic!("asked for"),
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
            // The clone set the linger time; this is the last descriptor.
            drop(client);
        }
        rig.until(|rig| rig.record.closed().len() > count);
        assert_eq!(rig.record.all().last(), Some(&Seen::Closed(id, reason)));
        assert_eq!(rig.manager.stats().closed(reason), 1, "{reason:?}");
    }
    assert_eq!((rig.record.open_lives(), rig.manager.stats().live), (0, 0));
    assert_eq!(rig.manager.stats().closed_total(), 9);
    for _ in 0..20 {
        rig.manager.put(pair().1).expect("all places are free");
    }
}

/// A world that takes everything and whose waits fail as they are told to.
struct Blind {
    fail: Option<ErrorKind>,
    waits: Rc<Cell<u32>>,
}

impl Backend for Blind {
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

/// A manager over a [`Blind`] world with one connection, its waits, and how many have closed.
fn blind(fail: ErrorKind) -> (Manager<impl Handler, Blind>, TcpStream, Rc<Cell<u32>>) {
    let waits = Rc::new(Cell::new(0));
    let backend = Blind { fail: Some(fail), waits: waits.clone() };
    let handler = |_: &mut Conn<'_>, _: &[u8]| Ok(());
    let mut manager = Manager::with_backend(Config::new(), handler, backend).unwrap();
    manager.start().unwrap();
    let (client, ours) = pair();
    manager.put(ours).unwrap();
    (manager, client, waits)
}

#[test]
fn a_wait_that_fails_closes_everything_and_stops() {
    let (mut manager, mut client, waits) = blind(ErrorKind::InvalidInput);
    let handle = manager.handle();
    let (mut queued, ours) = pair();
    handle.put(ours).unwrap();
    assert!(matches!(manager.run(), Err(Error::Wait(_))));
    assert_eq!(waits.get(), 1, "it tried again");
    assert_eq!(manager.stats().closed(CloseReason::Stopped), 1);
    for client in [&mut client, &mut queued] {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    assert!(matches!(manager.turn(None), Err(Error::NotRunning)));
    assert!(matches!(handle.stop(), Err(Error::NotRunning)));
    manager.start().expect("it can be started again");
}

#[test]
fn a_wait_that_a_signal_ends_is_an_empty_turn() {
    let (mut manager, _client, _) = blind(ErrorKind::Interrupted);
    let turn = manager.turn(None).unwrap();
    assert_eq!((turn.events, turn.stopped), (0, None));
    assert_eq!(manager.stats().live, 1);
}

/// Turned as its own loop would: when its descriptor is readable, or its next deadline has come.
#[cfg(not(mio_unsupported_force_poll_poll))]
mod embedded {
    use super::*;
    use pool_manager::Transport;
    use std::os::fd::{AsFd, BorrowedFd};

    type Reply = fn(&mut Conn<'_>, &[u8]) -> io::Result<()>;

    /// A manager dressed as a connection of another one: the other's loop waits for it.
    struct Guest(Manager<Reply>);

    impl Read for Guest {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            loop {
                let events = self.0.turn(Some(Duration::ZERO)).unwrap().events;
                if events == 0 && self.0.next_timeout() != Some(Duration::ZERO) {
                    return Err(ErrorKind::WouldBlock.into());
                }
            }
        }
    }

    impl Write for Guest {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Guest {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Transport for Guest {}

    #[test]
    fn another_loop_can_wait_for_its_descriptor() {
        let reply: Reply = |conn, body| conn.write_all(body);
        let mut guest = Manager::new(lines(), reply).unwrap();
        guest.start().unwrap();
        let addr = guest.listen("127.0.0.1:0").unwrap();
        let handle = guest.handle();
        let mut host = echo(lines());
        host.manager.put(Socket::Boxed(Box::new(Guest(guest)))).unwrap();
        let mut client = TcpStream::connect(addr).unwrap();
        for _ in 0..3 {
            client.write_all(b"nested\n").unwrap();
            assert_eq!(host.read_exact(&mut client, 6), b"nested");
        }
        let (mut woken, ours) = pair();
        handle.put(ours).unwrap();
        woken.write_all(b"by a wake\n").unwrap();
        assert_eq!(host.read_exact(&mut woken, 9), b"by a wake");
    }
}

#[test]
fn next_deadline_says_when_to_turn_and_turning_then_is_enough() {
    let deadline = Duration::from_millis(60);
    let mut rig = echo(Config::new().clients_deadline(deadline));
    assert_eq!(rig.manager.next_timeout(), None, "nothing is planned");
    let began = Instant::now();
    let (client, _) = rig.connect();
    rig.turn();
    let mut turns = 0;
    while rig.record.closed().is_empty() {
        let next = rig.manager.next_timeout().expect("a deadline is planned");
        assert!(next <= deadline + Duration::from_millis(2), "{next:?}");
        let until = Instant::now() + next;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        rig.turn();
        turns += 1;
        assert!(turns < 100, "it is called again and again for nothing");
    }
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    drop(client);
}

#[test]
fn next_deadline_is_zero_while_work_is_left() {
    let mut rig = echo(lines());
    let (_client, id) = rig.connect();
    rig.turn();
    rig.manager.handle().send(id, b"work").unwrap();
    assert_eq!(rig.manager.next_timeout(), Some(Duration::ZERO));
    rig.turn();
    assert!(rig.manager.next_timeout() > Some(Duration::ZERO));
}

#[test]
fn what_is_promised_to_other_threads_holds() {
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
fn slow_callbacks_are_counted_and_warned_of_once_a_second() {
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
    assert!(stats.slow_callbacks >= 3, "at least the slow ones");
    assert!(stats.longest_callback > limit);
    let warnings = logged(log::Level::Warn);
    assert!(!warnings.is_empty() && warnings.len() <= 2, "{warnings:?}");
    assert!(warnings[0].contains("slow callback"), "{warnings:?}");
}

/// As the API guidelines ask: never empty, and never a byte of what a peer sent.
#[test]
fn debug_of_what_users_hold_says_something_and_no_contents() {
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
    assert_eq!(boxed.peer_addr(), None, "unless the transport knows better");
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
fn panics_are_warned_of_but_not_one_by_one() {
    remember_log();
    let mut rig = rig(lines(), |_, _| panic!("each time"));
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
fn what_happens_to_each_connection_is_logged_only_if_asked_for() {
    remember_log();
    for debug in [false, true] {
        let mut rig = rig(lines().debug(debug), |_, _| Err(ErrorKind::InvalidData.into()));
        let (client, gone) = rig.connect();
        drop(client);
        rig.first_close();
        let (mut client, failed) = rig.connect();
        client.write_all(b"secret\n").unwrap();
        rig.until(|rig| rig.record.closed().len() == 2);
        let said = logged(log::Level::Debug);
        if debug {
            let wanted = [
                format!("{gone}: put"),
                format!("{gone}: closed after "),
                format!("{failed}: put"),
                format!("{failed}: Framed callback failed: "),
                format!("{failed}: closed after "),
            ];
            let agree = said.iter().zip(&wanted).all(|(said, wanted)| said.starts_with(wanted));
            assert!(said.len() == wanted.len() && agree, "{said:#?}");
            assert!(!said.concat().contains("secret"));
        } else {
            assert_eq!(said, [""; 0]);
        }
    }
}

#[test]
fn a_connection_knows_its_age() {
    let mut rig = rig(lines(), |conn, _| write!(conn, "{}", conn.age().as_millis()));
    let began = Instant::now();
    let (mut client, id) = rig.connect();
    rig.manager.handle().pause(id).unwrap();
    let passed = Duration::from_millis(30);
    rig.until(|_| began.elapsed() > passed);
    rig.manager.handle().resume(id).unwrap();
    client.write_all(b"how old?\n").unwrap();
    rig.requests(1);
    rig.turn();
    let mut age = [0; 16];
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let count = client.read(&mut age).unwrap();
    let age: u128 = std::str::from_utf8(&age[..count]).unwrap().parse().unwrap();
    let max = began.elapsed().as_millis() + 1;
    assert!((29..=max).contains(&age), "{age} ms of {max}, both ends rounded down");
}
