//! What a kernel seldom does, in a world that does as it is told: errors of `accept`, sockets that
//! cannot be registered, waits that fail, and minutes that pass at once.

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

/// What the world is to do, and what it was asked.
#[derive(Default)]
struct Script {
    now: Duration,
    /// Reported by the next wait, once.
    events: Vec<Event>,
    /// What `accept` gives, in order; then there is nothing more.
    accepts: VecDeque<io::Result<Socket>>,
    waits_fail: bool,
    nothing_registers: bool,
    /// A short read says that there is no more.
    short_reads_drain: bool,
    /// How many bytes more a read says than it has read.
    boasts: usize,
    /// How long the last wait was to be at most, and how many of those before it were to be none.
    timeout: Option<Duration>,
    polls: u32,
    /// What each poll takes, and after how many the events are there.
    poll_takes: Duration,
    silent_polls: u32,
    clock_readings: u32,
    accepted: u32,
    tokens: Vec<u64>,
    listeners: Vec<u64>,
    closed_listeners: u32,
}

#[derive(Clone, Default)]
struct World(Rc<RefCell<Script>>);

impl World {
    fn pass(&self, millis: u64) {
        self.0.borrow_mut().now += Duration::from_millis(millis);
    }

    /// Says that there is something to accept, and what that is.
    fn offer(&self, accepts: impl IntoIterator<Item = io::Result<Socket>>) {
        let mut script = self.0.borrow_mut();
        script.accepts.extend(accepts);
        let token = script.listeners[0];
        script.events.push(readable(token));
    }
}

fn readable(token: u64) -> Event {
    Event { token, readable: true, writable: false, closed: false, priority: false }
}

impl Backend for World {
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
        if script.nothing_registers {
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
        Ok(socket.read(into)? + self.0.borrow().boasts)
    }
    fn short_read_is_drained(&self, _: &Socket) -> bool {
        self.0.borrow().short_reads_drain
    }
}

/// A started manager in a world of its own, with one listener.
fn listening(config: Config) -> (Manager<impl Handler, World>, World) {
    let world = World::default();
    let echo = |conn: &mut Conn<'_>, body: &[u8]| conn.write_all(body);
    let mut manager = Manager::with_backend(config, echo, world.clone()).unwrap();
    manager.start().unwrap();
    manager.listen_on(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    (manager, world)
}

fn turn(manager: &mut Manager<impl Handler, World>) -> Turn {
    manager.turn(Some(Duration::ZERO)).unwrap()
}

fn accepted() -> (TcpStream, io::Result<Socket>) {
    let (client, ours) = pair();
    ours.set_nonblocking(true).unwrap();
    (client, Ok(Socket::from(ours)))
}

/// `EMFILE` and its like have no kind of their own.
fn shortage() -> io::Result<Socket> {
    Err(io::Error::other("too many open files"))
}

#[test]
fn an_accept_that_fails_for_one_connection_does_not_keep_the_next_waiting() {
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
    let (mut manager, world) = listening(Config::new().max_workers(1));
    let (_client, socket) = accepted();
    world.offer(kinds.into_iter().map(|kind| Err(kind.into())).chain([socket]));
    assert_eq!(turn(&mut manager).accepted, 1);
    let stats = manager.stats();
    assert_eq!((stats.accept_errors, stats.accepted, stats.fd_exhausted), (10, 1, 0));
    assert_eq!(stats.accepts, 12, "one more to see that there is no more");
    assert_eq!((stats.live, stats.busy), (1, 0), "those that failed took no place");
}

#[test]
fn a_listener_that_somebody_else_shut_down_is_given_up_and_said_so_once() {
    remember_log();
    let (mut manager, world) = listening(Config::new());
    world.offer([Err(ErrorKind::InvalidInput.into())]);
    for _ in 0..5 {
        turn(&mut manager);
        assert_eq!(manager.next_timeout(), None, "there is nothing to come back for");
        world.pass(1_000);
    }
    assert_eq!(world.0.borrow().accepted, 1);
    let stats = manager.stats();
    assert_eq!((stats.accept_errors, stats.fd_exhausted), (0, 0));
    let warnings = logged(log::Level::Warn);
    assert!(warnings.len() == 1 && warnings[0].contains("no longer listens"), "{warnings:?}");
}

#[test]
fn without_descriptors_it_tries_again_after_60_ms_and_warns_once_a_minute() {
    remember_log();
    let (mut manager, world) = listening(Config::new());
    for (passes, tries, warnings) in
        [(0, 1, 1), (59, 1, 1), (1, 2, 1), (59_939, 3, 1), (60, 4, 2), (60, 5, 2)]
    {
        world.pass(passes);
        world.offer([shortage()]);
        turn(&mut manager);
        let next = manager.next_timeout().expect("it will try again");
        assert!(!next.is_zero() && next <= Duration::from_millis(60), "{next:?}");
        assert_eq!(world.0.borrow().accepted, tries, "at {:?}", world.0.borrow().now);
        assert_eq!(logged(log::Level::Warn).len(), warnings, "at {:?}", world.0.borrow().now);
        world.0.borrow_mut().accepts.clear();
    }
    assert_eq!(manager.stats().fd_exhausted, 5);
    world.pass(60);
    turn(&mut manager);
    assert_eq!(manager.next_timeout(), None, "nobody is left in the queue");
}

#[test]
fn who_is_refused_for_want_of_a_place_is_accepted_first_and_one_that_pauses_is_not_asked() {
    for (overload, accepts) in [(Overload::Reject(b"busy".into()), 2), (Overload::Pause, 0)] {
        let (mut manager, world) = listening(Config::new().max_workers(1).overload(overload));
        let (_first, ours) = pair();
        manager.put(ours).unwrap();
        let (_client, socket) = accepted();
        world.offer([socket]);
        turn(&mut manager);
        assert_eq!(world.0.borrow().accepted, accepts);
        let stats = manager.stats();
        assert_eq!((stats.busy, stats.writes), if accepts == 0 { (0, 0) } else { (1, 1) });
    }
}

#[test]
fn an_accepted_connection_that_cannot_be_registered_is_closed_and_counted_as_lost() {
    for debug in [false, true] {
        remember_log();
        let (mut manager, world) = listening(Config::new().max_workers(1).debug(debug));
        world.0.borrow_mut().nothing_registers = true;
        let (mut client, socket) = accepted();
        world.offer([socket]);
        turn(&mut manager);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        let stats = manager.stats();
        assert_eq!((stats.accepted, stats.admit_failures, stats.put, stats.live), (1, 1, 0, 0));
        let warnings = logged(log::Level::Warn);
        assert!(warnings.len() == 1 && warnings[0].contains("registered"), "{warnings:?}");
        assert_eq!(logged(log::Level::Debug).len(), usize::from(debug), "only if asked for");
        world.0.borrow_mut().nothing_registers = false;
        manager.put(pair().1).expect("its place is free");
    }
}

#[test]
fn after_a_wait_that_failed_nothing_of_it_is_left() {
    let (mut manager, world) = listening(Config::new().framing(Framing::Drained));
    let (_client, ours) = pair();
    let id = manager.put(ours).unwrap();
    manager.handle().send(id, "to be served").unwrap();
    world.offer([]);
    turn(&mut manager);
    assert_eq!(manager.stats().stale_events, 0, "it was the listener's");
    let token = world.0.borrow().tokens[0];
    manager.handle().send(id, "and again").unwrap();
    world.0.borrow_mut().waits_fail = true;
    assert!(matches!(manager.turn(None), Err(Error::Wait(_))));
    assert_eq!(world.0.borrow().closed_listeners, 1);
    assert_eq!(manager.stats().closed(CloseReason::Stopped), 1);
    world.0.borrow_mut().waits_fail = false;
    manager.start().unwrap();
    world.0.borrow_mut().events.push(readable(token));
    let Turn { events, served, .. } = turn(&mut manager);
    assert_eq!((events, served, manager.next_timeout()), (1, 0, None));
    assert_eq!(manager.stats().stale_events, 1);
}

/// The socket is full though not a byte of this reply has moved.
#[test]
fn a_reply_that_finds_the_socket_full_has_its_idle_deadline_from_then_on() {
    let config = Config::new().clients_deadline(Duration::from_secs(3));
    let (mut manager, world) = listening(config);
    let (client, ours) = unix_pair();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[7; 4096]).is_ok() {}
    let id = manager.put(Socket::Boxed(Box::new(Plain(ours)))).unwrap();
    world.pass(2_000);
    manager.handle().send(id, "too much").unwrap();
    turn(&mut manager);
    world.pass(2_999);
    turn(&mut manager);
    assert_eq!(manager.stats().live, 1);
    world.pass(1);
    turn(&mut manager);
    assert_eq!(manager.stats().closed(CloseReason::WriteStalled), 1);
    drop(client);
}

/// Its request is in the kernel, and the event of it among those that the next wait returns.
#[test]
fn who_owed_a_reply_when_a_stop_began_is_read_a_last_time_before_it_goes() {
    let config = Config::new().framing(Framing::Drained).clients_deadline(Duration::from_secs(3));
    let (mut manager, world) = listening(config);
    let (mut client, ours) = unix_pair();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[7; 4096]).is_ok() {}
    let id = manager.put(ours).unwrap();
    manager.handle().send(id, "owed").unwrap();
    turn(&mut manager);
    manager.handle().stop().unwrap();
    assert_eq!(turn(&mut manager).stopped, None, "it owes");
    client.set_nonblocking(true).unwrap();
    while client.read(&mut [0; 4096]).is_ok() {}
    client.write_all(b"one more").unwrap();
    let token = world.0.borrow().tokens[0];
    world.0.borrow_mut().events.push(Event { readable: false, writable: true, ..readable(token) });
    while manager.stats().live > 0 {
        turn(&mut manager);
    }
    let mut got = Vec::new();
    client.set_nonblocking(false).unwrap();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"owedone more");
    assert_eq!(manager.stats().closed(CloseReason::Stopped), 1);
}

/// What it did not read may be what another connection has left there.
#[test]
#[should_panic(expected = "more than there was room for")]
fn a_backend_that_says_it_has_read_more_than_it_can_is_not_believed() {
    let (mut manager, world) = listening(Config::new().framing(Framing::Drained));
    let (mut client, ours) = unix_pair();
    manager.put(ours).unwrap();
    client.write_all(b"hello").unwrap();
    world.0.borrow_mut().boasts = 1 << 20;
    let token = world.0.borrow().tokens[0];
    world.0.borrow_mut().events.push(readable(token));
    turn(&mut manager);
}

/// A short read says nothing while there is urgent data, until one has found nothing more.
#[test]
fn urgent_data_costs_one_read_more_and_only_once() {
    let config = Config::new().framing(Framing::Drained).clients_deadline(Duration::from_secs(3));
    let (mut manager, world) = listening(config);
    world.0.borrow_mut().short_reads_drain = true;
    let (mut client, ours) = unix_pair();
    manager.put(ours).unwrap();
    let token = world.0.borrow().tokens[0];
    for (priority, reads) in [(true, 2), (false, 3), (false, 4)] {
        client.write_all(b"hello").unwrap();
        world.0.borrow_mut().events.push(Event { priority, ..readable(token) });
        turn(&mut manager);
        assert_eq!(manager.stats().reads, reads);
        client.read_exact(&mut [0; 5]).unwrap();
    }
}

#[test]
fn a_callback_is_timed_from_its_own_beginning() {
    let world = World::default();
    let clock = world.clone();
    let config = Config::new().framing(Framing::Drained).slow_callback(Duration::from_millis(3));
    let answer = move |_: &mut Conn<'_>, body: &[u8]| {
        clock.pass(u64::from(body[0]));
        Ok(())
    };
    let mut manager = Manager::with_backend(config, answer, world.clone()).unwrap();
    manager.start().unwrap();
    let (mut client, ours) = unix_pair();
    world.pass(1_000);
    manager.put(ours).unwrap();
    let token = world.0.borrow().tokens[0];
    for (takes, slow) in [(2, 0), (5, 1), (3, 1)] {
        world.pass(1_000);
        client.write_all(&[takes]).unwrap();
        world.0.borrow_mut().events.push(readable(token));
        turn(&mut manager);
        assert_eq!(manager.stats().slow_callbacks, slow, "{takes} ms");
    }
    assert_eq!(manager.stats().longest_callback, Duration::from_millis(5));
}

#[test]
fn no_wait_is_longer_than_an_hour() {
    let hour = Some(Duration::from_secs(3_600));
    let (mut manager, world) =
        listening(Config::new().clients_deadline(Duration::from_secs(9_000)));
    manager.turn(None).unwrap();
    assert_eq!(world.0.borrow().timeout, None, "nothing is planned");
    manager.turn(Some(Duration::MAX)).unwrap();
    assert_eq!(world.0.borrow().timeout, hour);
    let (_client, ours) = pair();
    manager.put(ours).unwrap();
    for asked in [None, Some(Duration::MAX)] {
        manager.turn(asked).unwrap();
        assert_eq!(world.0.borrow().timeout, hour);
    }
    manager.turn(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(world.0.borrow().timeout, Some(Duration::from_secs(5)));
    let stats = manager.stats();
    assert_eq!((stats.turns, stats.waits), (5, 5));
}

/// A world in which a poll takes a microsecond, and a manager that spins for twenty.
fn spinning() -> (Manager<impl Handler, World>, World) {
    let (manager, world) = listening(Config::new().spin(Duration::from_micros(20)));
    world.0.borrow_mut().poll_takes = Duration::from_micros(1);
    (manager, world)
}

#[test]
fn a_turn_that_spins_polls_for_so_long_and_then_waits_for_the_rest() {
    let (mut manager, world) = spinning();
    manager.turn(Some(Duration::from_millis(5))).unwrap();
    assert_eq!((world.0.borrow().polls, manager.stats().spun_ns), (20, 20_000));
    assert_eq!(manager.stats().waits, 21);
    assert_eq!(world.0.borrow().timeout, Some(Duration::from_micros(4_980)));
    manager.turn(None).unwrap();
    assert_eq!((world.0.borrow().timeout, manager.stats().spun_ns), (None, 40_000));
}

#[test]
fn what_comes_while_it_spins_is_served_at_once() {
    let (mut manager, world) = spinning();
    let (_client, ours) = pair();
    manager.put(ours).unwrap();
    turn(&mut manager);
    let token = world.0.borrow().tokens[0];
    let mut script = world.0.borrow_mut();
    script.silent_polls = script.polls + 7;
    script.events.push(readable(token));
    drop(script);
    assert_eq!(manager.turn(None).unwrap().served, 1);
    assert_eq!(manager.stats().spun_ns, 7_000);
}

#[test]
fn nothing_spins_that_may_not_wait_or_has_a_deadline_sooner() {
    let (mut manager, world) = spinning();
    turn(&mut manager);
    assert_eq!((world.0.borrow().polls, manager.stats().spun_ns), (1, 0));
    manager.turn(Some(Duration::from_micros(3))).unwrap();
    assert_eq!(manager.stats().spun_ns, 3_000, "no longer than the caller lets it");
    manager.handle().stop().unwrap();
    manager.turn(None).unwrap();
    assert_eq!(manager.stats().spun_ns, 3_000, "a command is there");
}

/// No system's does; a simulated one may.
#[test]
fn a_clock_that_stands_still_ends_the_spinning() {
    let (mut manager, world) = spinning();
    world.0.borrow_mut().poll_takes = Duration::ZERO;
    manager.turn(None).unwrap();
    assert_eq!((world.0.borrow().polls, world.0.borrow().timeout), (400, None));
}

/// Once for all that happens in it; and before a wait, or at the end if the caller waits elsewhere.
#[test]
fn a_turn_reads_the_clock_once_and_once_more_if_it_or_its_caller_may_wait() {
    let (mut manager, world) = listening(Config::new());
    let (_client, ours) = pair();
    let id = manager.put(ours).unwrap();
    let mut readings = |timeout, asked: bool| {
        if asked {
            manager.handle().resume(id).unwrap();
        }
        let before = world.0.borrow().clock_readings;
        manager.turn(timeout).unwrap();
        world.0.borrow().clock_readings - before
    };
    assert_eq!(readings(Some(Duration::ZERO), false), 2);
    assert_eq!(readings(None, true), 1, "there is something to do");
    assert_eq!(readings(None, false), 2, "its deadline is counted from just before the wait");
}

#[test]
fn who_had_its_last_byte_five_seconds_ago_has_nothing_to_linger_for() {
    for (silent, lingers) in [(4_999, 1), (5_000, 0)] {
        let config = Config::new().framing(Framing::Delimited(b'\n'));
        let (mut manager, world) = listening(config.clients_deadline(Duration::from_secs(60)));
        let (mut client, ours) = pair();
        let id = manager.put(ours).unwrap();
        client.write_all(b"hello\n").unwrap();
        let token = world.0.borrow().tokens[0];
        world.0.borrow_mut().events.push(readable(token));
        turn(&mut manager);
        assert_eq!(manager.stats().bytes_out, 5);
        world.pass(silent);
        manager.handle().close(id).unwrap();
        turn(&mut manager);
        let stats = manager.stats();
        assert_eq!((stats.closed(CloseReason::Requested), stats.lingering), (1, lingers));
    }
}

/// One connection needs a buffer of its own in the first interval, and nobody does in the second.
#[test]
fn a_spare_is_freed_at_the_end_of_the_first_interval_that_did_not_need_it() {
    let config = Config::new().framing(Framing::Delimited(b'\n'));
    let (mut manager, world) = listening(config.clients_deadline(Duration::from_secs(60)));
    let (mut client, ours) = pair();
    manager.put(ours).unwrap();
    let token = world.0.borrow().tokens[0];
    for part in [&b"in two "[..], b"parts\n"] {
        client.write_all(part).unwrap();
        world.0.borrow_mut().events.push(readable(token));
        turn(&mut manager);
    }
    for (passes, spare) in [(0, 1), (1_999, 1), (1, 1), (1_999, 1), (1, 0)] {
        world.pass(passes);
        turn(&mut manager);
        assert_eq!(manager.stats().spare, spare, "at {:?}", world.0.borrow().now);
    }
}
