//! Rare events, produced by a scripted backend: errors of `accept`, sockets that cannot be
//! registered, waits that fail, and a clock that the test advances.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use pool_manager::sys::{Backend, Event, ListenSocket, Wake};
use pool_manager::{
    CloseReason, Config, Conn, Error, Framing, Handler, Manager, Overload, Socket, Turn,
};

use crate::support::plain::Plain;
use crate::support::{logged, pair, remember_log, unix_pair};

/// The behaviour of a [`ScriptedBackend`], and a record of the calls it received.
#[derive(Default)]
struct Script {
    now: Duration,
    /// The events that the next wait reports, once.
    events: Vec<Event>,
    /// The results of `accept`, in order. After the last one, `accept` returns `WouldBlock`.
    accepts: VecDeque<io::Result<Socket>>,
    waits_fail: bool,
    registering_fails: bool,
    /// The result of `short_read_is_drained`.
    short_read_is_drained: bool,
    /// The number of bytes that a read reports in addition to those that it has read.
    overreported: usize,
    /// The timeout of the last wait.
    timeout: Option<Duration>,
    /// The number of waits with a timeout of zero.
    polls: u32,
    /// The time that each poll takes.
    poll_takes: Duration,
    /// The number of polls before any event is reported.
    silent_polls: u32,
    clock_readings: u32,
    accepted: u32,
    tokens: Vec<u64>,
    listeners: Vec<u64>,
    closed_listeners: u32,
}

#[derive(Clone, Default)]
struct ScriptedBackend(Rc<RefCell<Script>>);

impl ScriptedBackend {
    /// Advances the clock.
    fn pass(&self, millis: u64) {
        self.0.borrow_mut().now += Duration::from_millis(millis);
    }

    /// Adds results of `accept`, and reports the first listener as readable.
    fn offer(&self, accepts: impl IntoIterator<Item = io::Result<Socket>>) {
        let mut script = self.0.borrow_mut();
        script.accepts.extend(accepts);
        let token = script.listeners[0];
        script.events.push(readable(token));
    }
}

fn readable(token: u64) -> Event {
    Event { token, readable: true, writable: false, closed: false, hung_up: false, priority: false }
}

impl Backend for ScriptedBackend {
    type Listener = ();

    fn start(&mut self) -> io::Result<Wake> {
        Ok(std::sync::Arc::new(|| Ok(())))
    }
    fn stop(&mut self) {}
    fn now(&mut self) -> Duration {
        let mut script = self.0.borrow_mut();
        script.clock_readings += 1;
        script.now
    }
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut script = self.0.borrow_mut();
        script.timeout = timeout;
        if timeout == Some(Duration::ZERO) {
            script.polls += 1;
            let takes = script.poll_takes;
            script.now += takes;
        }
        let ready = !script.events.is_empty() && script.polls >= script.silent_polls;
        if script.waits_fail { Err(ErrorKind::InvalidInput.into()) } else { Ok(ready) }
    }
    fn events(&mut self, each: impl FnMut(Event)) {
        let mut script = self.0.borrow_mut();
        if script.polls < script.silent_polls {
            return;
        }
        let events = std::mem::take(&mut script.events);
        drop(script);
        events.into_iter().for_each(each);
    }
    fn register(&mut self, _: &Socket, token: u64) -> io::Result<()> {
        let mut script = self.0.borrow_mut();
        if script.registering_fails {
            return Err(ErrorKind::QuotaExceeded.into());
        }
        script.tokens.push(token);
        Ok(())
    }
    fn deregister(&mut self, _: &Socket) {}
    fn listen(&mut self, _: ListenSocket, token: u64) -> io::Result<()> {
        self.0.borrow_mut().listeners.push(token);
        Ok(())
    }
    fn close_listener(&mut self, (): ()) {
        self.0.borrow_mut().closed_listeners += 1;
    }
    fn accept(&mut self, (): &mut ()) -> io::Result<(Socket, Option<IpAddr>)> {
        let mut script = self.0.borrow_mut();
        script.accepted += 1;
        let next = script.accepts.pop_front();
        next.unwrap_or_else(|| Err(ErrorKind::WouldBlock.into())).map(|socket| (socket, None))
    }
    fn read(&mut self, socket: &mut Socket, into: &mut [u8]) -> io::Result<usize> {
        Ok(socket.read(into)? + self.0.borrow().overreported)
    }
    fn short_read_is_drained(&self, _: &Socket) -> bool {
        self.0.borrow().short_read_is_drained
    }
}

/// Returns a started manager over a scripted backend, with one listener.
fn listening(config: Config) -> (Manager<impl Handler, ScriptedBackend>, ScriptedBackend) {
    let backend = ScriptedBackend::default();
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let mut manager = Manager::with_backend(config, echo, backend.clone()).unwrap();
    manager.start().unwrap();
    manager.listen_on(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    (manager, backend)
}

fn turn(manager: &mut Manager<impl Handler, ScriptedBackend>) -> Turn {
    manager.turn(Some(Duration::ZERO)).unwrap()
}

fn accepted() -> (TcpStream, io::Result<Socket>) {
    let (client, ours) = pair();
    ours.set_nonblocking(true).unwrap();
    (client, Ok(Socket::from(ours)))
}

/// Returns an error like `EMFILE`, for which [`ErrorKind`] has no variant.
fn shortage() -> io::Result<Socket> {
    Err(io::Error::other("too many open files"))
}

#[test]
fn an_accept_error_of_one_connection_does_not_delay_the_next() {
    let kinds = [
        ErrorKind::Interrupted,
        ErrorKind::ConnectionAborted,
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionRefused,
        ErrorKind::PermissionDenied,
        ErrorKind::TimedOut,
        ErrorKind::NetworkDown,
        ErrorKind::NetworkUnreachable,
        ErrorKind::HostUnreachable,
        ErrorKind::Unsupported,
    ];
    let (mut manager, backend) = listening(Config::new().max_workers(1));
    let (_client, socket) = accepted();
    backend.offer(kinds.into_iter().map(|kind| Err(kind.into())).chain([socket]));
    assert_eq!(turn(&mut manager).accepted, 1);
    let stats = manager.stats();
    assert_eq!((stats.accept_errors, stats.accepted, stats.fd_exhausted), (10, 1, 0));
    assert_eq!(stats.accepts, 12, "the last accept finds the queue empty");
    assert_eq!((stats.live, stats.busy), (1, 0), "failed accepts took no permit");
}

#[test]
fn a_listener_shut_down_elsewhere_is_abandoned_and_logged_once() {
    remember_log();
    let (mut manager, backend) = listening(Config::new());
    backend.offer([Err(ErrorKind::InvalidInput.into())]);
    for _ in 0..5 {
        turn(&mut manager);
        assert_eq!(manager.next_timeout(), None, "no retry is due");
        backend.pass(1_000);
    }
    assert_eq!(backend.0.borrow().accepted, 1);
    let stats = manager.stats();
    assert_eq!((stats.accept_errors, stats.fd_exhausted), (0, 0));
    let warnings = logged(log::Level::Warn);
    assert!(warnings.len() == 1 && warnings[0].contains("no longer listens"), "{warnings:?}");
}

#[test]
fn without_descriptors_accept_waits_60_ms_and_warns_once_a_minute() {
    remember_log();
    let (mut manager, backend) = listening(Config::new());
    for (passes, tries, warnings) in
        [(0, 1, 1), (59, 1, 1), (1, 2, 1), (59_939, 3, 1), (60, 4, 2), (60, 5, 2)]
    {
        backend.pass(passes);
        backend.offer([shortage()]);
        turn(&mut manager);
        let next = manager.next_timeout().expect("a retry is due");
        assert!(!next.is_zero() && next <= Duration::from_millis(60), "{next:?}");
        assert_eq!(backend.0.borrow().accepted, tries, "at {:?}", backend.0.borrow().now);
        assert_eq!(logged(log::Level::Warn).len(), warnings, "at {:?}", backend.0.borrow().now);
        backend.0.borrow_mut().accepts.clear();
    }
    assert_eq!(manager.stats().fd_exhausted, 5);
    backend.pass(60);
    turn(&mut manager);
    assert_eq!(manager.next_timeout(), None, "the queue is empty");
}

#[test]
fn at_the_maximum_reject_accepts_first_and_pause_does_not_accept() {
    for (overload, accepts) in [(Overload::Reject(b"busy".into()), 2), (Overload::Pause, 0)] {
        let (mut manager, backend) = listening(Config::new().max_workers(1).overload(overload));
        let (_first, ours) = pair();
        manager.put(ours).unwrap();
        let (_client, socket) = accepted();
        backend.offer([socket]);
        turn(&mut manager);
        assert_eq!(backend.0.borrow().accepted, accepts);
        let stats = manager.stats();
        assert_eq!((stats.busy, stats.writes), if accepts == 0 { (0, 0) } else { (1, 1) });
    }
}

#[test]
fn an_accepted_connection_that_cannot_be_registered_is_closed() {
    for debug in [false, true] {
        remember_log();
        let (mut manager, backend) = listening(Config::new().max_workers(1).debug(debug));
        backend.0.borrow_mut().registering_fails = true;
        let (mut client, socket) = accepted();
        backend.offer([socket]);
        turn(&mut manager);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        let stats = manager.stats();
        assert_eq!((stats.accepted, stats.admit_failures, stats.put, stats.live), (1, 1, 0, 0));
        let warnings = logged(log::Level::Warn);
        assert!(warnings.len() == 1 && warnings[0].contains("registered"), "{warnings:?}");
        assert_eq!(logged(log::Level::Debug).len(), usize::from(debug), "only with `debug`");
        backend.0.borrow_mut().registering_fails = false;
        manager.put(pair().1).expect("the permit is free");
    }
}

#[test]
fn after_a_failed_wait_no_connection_and_no_event_is_left() {
    let (mut manager, backend) = listening(Config::new().framing(Framing::Drained));
    let (_client, ours) = pair();
    let id = manager.put(ours).unwrap();
    manager.handle().send(id, "to be served").unwrap();
    backend.offer([]);
    turn(&mut manager);
    assert_eq!(manager.stats().stale_events, 0, "the event was the listener's");
    let token = backend.0.borrow().tokens[0];
    manager.handle().send(id, "and again").unwrap();
    backend.0.borrow_mut().waits_fail = true;
    assert!(matches!(manager.turn(None), Err(Error::Wait(_))));
    assert_eq!(backend.0.borrow().closed_listeners, 1);
    assert_eq!(manager.stats().closed(CloseReason::Stopped), 1);
    backend.0.borrow_mut().waits_fail = false;
    manager.start().unwrap();
    backend.0.borrow_mut().events.push(readable(token));
    let Turn { events, served, .. } = turn(&mut manager);
    assert_eq!((events, served, manager.next_timeout()), (1, 0, None));
    assert_eq!(manager.stats().stale_events, 1);
}

/// The socket is full before the reply is written, so that none of its bytes is sent.
#[test]
fn the_idle_deadline_of_a_reply_to_a_full_socket_starts_with_the_write() {
    let config = Config::new().clients_deadline(Duration::from_secs(3));
    let (mut manager, backend) = listening(config);
    let (client, ours) = unix_pair();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[7; 4096]).is_ok() {}
    let id = manager.put(Socket::Boxed(Box::new(Plain(ours)))).unwrap();
    backend.pass(2_000);
    manager.handle().send(id, "too much").unwrap();
    turn(&mut manager);
    backend.pass(2_999);
    turn(&mut manager);
    assert_eq!(manager.stats().live, 1);
    backend.pass(1);
    turn(&mut manager);
    assert_eq!(manager.stats().closed(CloseReason::WriteStalled), 1);
    drop(client);
}

/// The request is in the kernel, but no event reports it.
#[test]
fn a_stop_reads_a_connection_once_more_after_its_reply_is_sent() {
    let config = Config::new().framing(Framing::Drained).clients_deadline(Duration::from_secs(3));
    let (mut manager, backend) = listening(config);
    let (mut client, ours) = unix_pair();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[7; 4096]).is_ok() {}
    let id = manager.put(ours).unwrap();
    manager.handle().send(id, "late").unwrap();
    turn(&mut manager);
    manager.handle().stop().unwrap();
    assert_eq!(turn(&mut manager).stopped, None, "a reply is unsent");
    client.set_nonblocking(true).unwrap();
    while client.read(&mut [0; 4096]).is_ok() {}
    client.write_all(b"one more").unwrap();
    let token = backend.0.borrow().tokens[0];
    backend.0.borrow_mut().events.push(Event {
        readable: false,
        writable: true,
        ..readable(token)
    });
    while manager.stats().live > 0 {
        turn(&mut manager);
    }
    let mut got = Vec::new();
    client.set_nonblocking(false).unwrap();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"lateone more");
    assert_eq!(manager.stats().closed(CloseReason::Stopped), 1);
}

/// The buffer may hold data of another connection beyond the bytes that were read.
#[test]
#[should_panic(expected = "more than there was room for")]
fn a_backend_that_reports_more_bytes_than_fit_causes_a_panic() {
    let (mut manager, backend) = listening(Config::new().framing(Framing::Drained));
    let (mut client, ours) = unix_pair();
    manager.put(ours).unwrap();
    client.write_all(b"hello").unwrap();
    backend.0.borrow_mut().overreported = 1 << 20;
    let token = backend.0.borrow().tokens[0];
    backend.0.borrow_mut().events.push(readable(token));
    turn(&mut manager);
}

/// A read stops at urgent data. After an event with urgent data, a short read does not mean that
/// the socket is empty. This is the case until a read returns `WouldBlock`.
#[test]
fn urgent_data_costs_one_additional_read_once() {
    let config = Config::new().framing(Framing::Drained).clients_deadline(Duration::from_secs(3));
    let (mut manager, backend) = listening(config);
    backend.0.borrow_mut().short_read_is_drained = true;
    let (mut client, ours) = unix_pair();
    manager.put(ours).unwrap();
    let token = backend.0.borrow().tokens[0];
    for (priority, reads) in [(true, 2), (false, 3), (false, 4)] {
        client.write_all(b"hello").unwrap();
        backend.0.borrow_mut().events.push(Event { priority, ..readable(token) });
        turn(&mut manager);
        assert_eq!(manager.stats().reads, reads);
        client.read_exact(&mut [0; 5]).unwrap();
    }
}

#[test]
fn the_time_of_a_callback_is_counted_from_its_own_start() {
    let backend = ScriptedBackend::default();
    let clock = backend.clone();
    let config = Config::new().framing(Framing::Drained).slow_callback(Duration::from_millis(3));
    let answer = move |_: &mut Conn<'_>, body: &[u8]| {
        clock.pass(u64::from(body[0]));
        Ok(())
    };
    let mut manager = Manager::with_backend(config, answer, backend.clone()).unwrap();
    manager.start().unwrap();
    let (mut client, ours) = unix_pair();
    backend.pass(1_000);
    manager.put(ours).unwrap();
    let token = backend.0.borrow().tokens[0];
    for (takes, slow) in [(2, 0), (5, 1), (3, 1)] {
        backend.pass(1_000);
        client.write_all(&[takes]).unwrap();
        backend.0.borrow_mut().events.push(readable(token));
        turn(&mut manager);
        assert_eq!(manager.stats().slow_callbacks, slow, "{takes} ms");
    }
    assert_eq!(manager.stats().longest_callback, Duration::from_millis(5));
}

#[test]
fn no_wait_is_longer_than_an_hour() {
    let hour = Some(Duration::from_secs(3_600));
    let (mut manager, backend) =
        listening(Config::new().clients_deadline(Duration::from_secs(9_000)));
    manager.turn(None).unwrap();
    assert_eq!(backend.0.borrow().timeout, None, "no deadline is set");
    manager.turn(Some(Duration::MAX)).unwrap();
    assert_eq!(backend.0.borrow().timeout, hour);
    let (_client, ours) = pair();
    manager.put(ours).unwrap();
    for max_wait in [None, Some(Duration::MAX)] {
        manager.turn(max_wait).unwrap();
        assert_eq!(backend.0.borrow().timeout, hour);
    }
    manager.turn(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(backend.0.borrow().timeout, Some(Duration::from_secs(5)));
    let stats = manager.stats();
    assert_eq!((stats.turns, stats.waits), (5, 5));
}

/// Returns a manager that spins for 20 µs, and its backend, in which a poll takes 1 µs.
fn spinning() -> (Manager<impl Handler, ScriptedBackend>, ScriptedBackend) {
    let (manager, backend) = listening(Config::new().spin(Duration::from_micros(20)));
    backend.0.borrow_mut().poll_takes = Duration::from_micros(1);
    (manager, backend)
}

#[test]
fn a_turn_polls_for_the_spin_time_and_then_waits_for_the_rest() {
    let (mut manager, backend) = spinning();
    manager.turn(Some(Duration::from_millis(5))).unwrap();
    assert_eq!((backend.0.borrow().polls, manager.stats().spun_ns), (20, 20_000));
    assert_eq!(manager.stats().waits, 21);
    assert_eq!(backend.0.borrow().timeout, Some(Duration::from_micros(4_980)));
    manager.turn(None).unwrap();
    assert_eq!((backend.0.borrow().timeout, manager.stats().spun_ns), (None, 40_000));
}

#[test]
fn an_event_that_arrives_while_spinning_is_served_at_once() {
    let (mut manager, backend) = spinning();
    let (_client, ours) = pair();
    manager.put(ours).unwrap();
    turn(&mut manager);
    let token = backend.0.borrow().tokens[0];
    let mut script = backend.0.borrow_mut();
    script.silent_polls = script.polls + 7;
    script.events.push(readable(token));
    drop(script);
    assert_eq!(manager.turn(None).unwrap().served, 1);
    assert_eq!(manager.stats().spun_ns, 7_000);
}

#[test]
fn a_turn_never_spins_longer_than_it_may_wait() {
    let (mut manager, backend) = spinning();
    turn(&mut manager);
    assert_eq!((backend.0.borrow().polls, manager.stats().spun_ns), (1, 0));
    manager.turn(Some(Duration::from_micros(3))).unwrap();
    assert_eq!(manager.stats().spun_ns, 3_000, "at most the caller's timeout");
    manager.handle().stop().unwrap();
    manager.turn(None).unwrap();
    assert_eq!(manager.stats().spun_ns, 3_000, "a command is queued");
}

/// A simulated clock may stand still. The clock of the operating system does not.
#[test]
fn a_clock_that_stands_still_ends_spinning() {
    let (mut manager, backend) = spinning();
    backend.0.borrow_mut().poll_takes = Duration::ZERO;
    manager.turn(None).unwrap();
    assert_eq!((backend.0.borrow().polls, backend.0.borrow().timeout), (400, None));
}

/// The clock is read once for the turn itself. It is read again just before a wait. In a turn with
/// a timeout of zero, the second reading is at the end of the turn, because the caller may then
/// wait elsewhere.
#[test]
fn a_turn_reads_the_clock_once_and_again_only_if_a_wait_may_follow() {
    let (mut manager, backend) = listening(Config::new());
    let (_client, ours) = pair();
    let id = manager.put(ours).unwrap();
    let mut readings = |timeout, with_command: bool| {
        if with_command {
            manager.handle().resume(id).unwrap();
        }
        let before = backend.0.borrow().clock_readings;
        manager.turn(timeout).unwrap();
        backend.0.borrow().clock_readings - before
    };
    assert_eq!(readings(Some(Duration::ZERO), false), 2);
    assert_eq!(readings(None, true), 1, "a command is queued");
    assert_eq!(readings(None, false), 2, "one reading just before the wait");
}

#[test]
fn a_connection_idle_for_five_seconds_does_not_linger() {
    for (silent, lingers) in [(4_999, 1), (5_000, 0)] {
        let config = Config::new().framing(Framing::Delimited(b'\n'));
        let (mut manager, backend) = listening(config.clients_deadline(Duration::from_secs(60)));
        let (mut client, ours) = pair();
        let id = manager.put(ours).unwrap();
        client.write_all(b"hello\n").unwrap();
        let token = backend.0.borrow().tokens[0];
        backend.0.borrow_mut().events.push(readable(token));
        turn(&mut manager);
        assert_eq!(manager.stats().bytes_out, 5);
        backend.pass(silent);
        manager.handle().close(id).unwrap();
        turn(&mut manager);
        let stats = manager.stats();
        assert_eq!((stats.closed(CloseReason::Requested), stats.lingering), (1, lingers));
    }
}

/// One connection needs a buffer in the first interval. No connection needs one in the second.
#[test]
fn a_spare_buffer_is_freed_after_the_first_interval_without_use() {
    let config = Config::new().framing(Framing::Delimited(b'\n'));
    let (mut manager, backend) = listening(config.clients_deadline(Duration::from_secs(60)));
    let (mut client, ours) = pair();
    manager.put(ours).unwrap();
    let token = backend.0.borrow().tokens[0];
    for part in [&b"in two "[..], b"parts\n"] {
        client.write_all(part).unwrap();
        backend.0.borrow_mut().events.push(readable(token));
        turn(&mut manager);
    }
    for (passes, spare) in [(0, 1), (1_999, 1), (1, 1), (1_999, 1), (1, 0)] {
        backend.pass(passes);
        turn(&mut manager);
        assert_eq!(manager.stats().spare, spare, "at {:?}", backend.0.borrow().now);
    }
}
