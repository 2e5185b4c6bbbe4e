//! Outgoing connections, and the hooks that run when such a connection is established or fails.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use pool_manager::{
    Cause, CloseReason, Closed, Commands, Config, Conn, ConnId, ConnectOptions, Error, Framing,
    Handler, Manager,
};

use crate::support::{TIMEOUT, alone, descriptors, reset, turn_until, with_timeouts};

/// The hook calls that a handler has recorded.
#[derive(Debug, Default)]
struct Calls {
    opened: Vec<(ConnId, Option<u64>, Option<SocketAddr>)>,
    requests: Vec<(Cause, Vec<u8>)>,
    closed: Vec<Closed>,
    undelivered: Vec<Vec<u8>>,
}

impl Calls {
    fn reasons(&self) -> Vec<CloseReason> {
        self.closed.iter().map(|closed| closed.reason).collect()
    }

    /// Asserts that one connection ended, and that it could not be reached because of this error.
    fn assert_unreachable(&self, kind: ErrorKind) {
        assert_eq!(self.reasons(), [CloseReason::Unreachable]);
        assert_eq!(self.closed[0].error.as_ref().map(io::Error::kind), Some(kind));
    }
}

/// Writes `greeting` to each established connection. If `connect_to` is set, connects to that
/// address once, in the first call of `request`. If `from_closed` is set and `closed` is called
/// before `request`, the handler connects in `closed` instead.
struct Connector {
    calls: Rc<RefCell<Calls>>,
    greeting: &'static [u8],
    connect_to: Option<SocketAddr>,
    from_closed: bool,
}

impl Handler for Connector {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
        assert_eq!(conn.cause(), Cause::Opened);
        let peer = conn.peer_addr();
        self.calls.borrow_mut().opened.push((conn.id(), conn.key(), peer));
        conn.write_all(self.greeting)
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self.calls.borrow_mut().requests.push((conn.cause(), body.to_vec()));
        if let Some(addr) = self.connect_to.take() {
            conn.commands().connect_with(addr, ConnectOptions::new().key(77))?;
        }
        Ok(())
    }

    fn closed(&mut self, closed: &Closed, _: Option<()>, commands: &mut Commands) {
        self.calls.borrow_mut().closed.push(closed.clone());
        if let Some(addr) = self.connect_to.filter(|_| self.from_closed) {
            self.connect_to = None;
            commands.connect_with(addr, ConnectOptions::new().key(78)).unwrap();
        }
    }

    fn undelivered(&mut self, _id: ConnId, bytes: Vec<u8>, _commands: &mut Commands) {
        self.calls.borrow_mut().undelivered.push(bytes);
    }
}

type Started = (Manager<Connector>, Rc<RefCell<Calls>>);

fn connector_with(config: Config, greeting: &'static [u8]) -> Started {
    let calls = Rc::<RefCell<Calls>>::default();
    let connector =
        Connector { calls: calls.clone(), greeting, connect_to: None, from_closed: false };
    let mut manager = Manager::with_handler(config, connector).unwrap();
    manager.start().unwrap();
    (manager, calls)
}

fn connector() -> Started {
    connector_with(drained(), b"hello ")
}

fn drained() -> Config {
    Config::new().framing(Framing::Drained).connect_deadline(TIMEOUT)
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Returns an address that refuses connections. The returned socket is bound to the address but
/// does not listen. The socket keeps other processes from getting the port.
fn refusing() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, addr)
}

/// Returns a listener with a full accept queue, its address, and the streams that fill the queue.
/// Further connects get no answer.
fn silent() -> (TcpListener, SocketAddr, Vec<TcpStream>) {
    let (listener, addr) = listener();
    socket2::SockRef::from(&listener).listen(1).unwrap();
    let timeout = Duration::from_millis(100);
    let queued = std::iter::from_fn(|| TcpStream::connect_timeout(&addr, timeout).ok());
    let queued: Vec<TcpStream> = queued.take(16).collect();
    assert!(queued.len() < 16, "the accept queue never fills");
    (listener, addr, queued)
}

/// Returns a function that accepts one stream of a silent listener per call. The returned function
/// discards the streams that filled the queue, and returns the first later stream.
fn accept_after(
    listener: &TcpListener,
    queued: Vec<TcpStream>,
) -> impl FnMut() -> Option<TcpStream> {
    let mut left = queued.len();
    listener.set_nonblocking(true).unwrap();
    let listener = listener.try_clone().unwrap();
    move || {
        let _ = &queued;
        let (stream, _) = listener.accept().ok()?;
        left = left.checked_sub(1).unwrap_or(usize::MAX);
        if left == usize::MAX {
            stream.set_nonblocking(false).unwrap();
        }
        (left == usize::MAX).then(|| with_timeouts(stream))
    }
}

#[test]
fn an_established_connection_works_like_any_other() {
    let (mut manager, calls) = connector();
    let (listener, addr) = listener();
    let id = manager.connect(addr).unwrap();
    assert_eq!((manager.stats().live, manager.stats().connects), (1, 1));
    assert!(calls.borrow().opened.is_empty(), "no hook has run yet");
    let mut peer = with_timeouts(listener.accept().unwrap().0);
    turn_until(&mut manager, |manager| manager.stats().bytes_out == 6);
    assert_eq!(calls.borrow().opened, [(id, None, Some(addr))]);
    let mut greeting = [0; 6];
    peer.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hello ");
    peer.write_all(b"welcome").unwrap();
    turn_until(&mut manager, |_| !calls.borrow().requests.is_empty());
    assert_eq!(calls.borrow().requests, [(Cause::Drained, b"welcome".to_vec())]);
    manager.handle().send(id, &b"and bye"[..]).unwrap();
    manager.handle().close(id).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"and bye");
    drop(peer);
    drop(listener);
    assert_eq!(calls.borrow().reasons(), [CloseReason::Requested]);
    let stats = manager.stats();
    assert_eq!((stats.connects, stats.connected, stats.put), (1, 1, 1), "{stats}");
}

#[test]
fn no_connect_leaves_a_descriptor_open() {
    alone("connect::no_connect_leaves_a_descriptor_open", 64, || {
        let before = descriptors();
        an_established_connection_works_like_any_other();
        a_refused_connect_calls_closed_once();
        a_connect_without_an_answer_fails_at_its_deadline_and_not_before();
        a_close_while_connecting_calls_closed_at_once();
        a_stop_while_connecting_calls_closed_at_once();
        assert_eq!(descriptors(), before);
    });
}

#[test]
fn a_refused_connect_calls_closed_once() {
    let (mut manager, calls) = connector();
    let (_reserved, addr) = refusing();
    let id = manager.connect_with(addr, ConnectOptions::new().key(5)).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let calls = calls.borrow();
    calls.assert_unreachable(ErrorKind::ConnectionRefused);
    assert_eq!((calls.closed[0].id, calls.closed[0].key), (id, Some(5)));
    assert!(calls.opened.is_empty());
    let stats = manager.stats();
    assert_eq!((stats.connects, stats.connected), (1, 0));
    assert_eq!(stats.closed(CloseReason::Unreachable), 1, "one counter for all kinds of errors");
    assert_eq!((stats.reads, stats.writes), (0, 0), "neither read nor written");
}

#[test]
fn a_connect_without_an_answer_fails_at_its_deadline_and_not_before() {
    let config = drained().clients_deadline(TIMEOUT * 2);
    let (mut manager, calls) = connector_with(config.clone(), b"");
    let (_listener, addr, _queued) = silent();
    let deadline = Duration::from_micros(150_500);
    let began = Instant::now();
    manager.connect_with(addr, ConnectOptions::new().deadline(deadline)).unwrap();
    let next = manager.next_timeout().unwrap();
    assert!(next <= Duration::from_millis(152), "the next timeout is {next:?}");
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let took = began.elapsed();
    assert!(took >= deadline, "{took:?}");
    calls.borrow().assert_unreachable(ErrorKind::TimedOut);
    assert_eq!(manager.stats().expired, 1);
    // Without a deadline in the options, `connect_deadline` applies.
    manager.set_config(config.connect_deadline(Duration::from_millis(40))).unwrap();
    let began = Instant::now();
    manager.connect(addr).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert!(began.elapsed() >= Duration::from_millis(40) && began.elapsed() < TIMEOUT);
    assert_eq!(calls.borrow().reasons().len(), 2);
}

#[test]
fn a_connect_in_a_slow_turn_has_its_full_deadline_after_that_turn() {
    let slow = Duration::from_millis(200);
    let mut manager = Manager::new(drained(), move |_: &mut Conn<'_>, _: &[u8]| {
        std::thread::sleep(slow);
        Ok(())
    })
    .unwrap();
    manager.start().unwrap();
    let (mut client, ours) = crate::support::pair();
    manager.put(ours).unwrap();
    client.write_all(b"?").unwrap();
    let (_listener, addr, _queued) = silent();
    manager.handle().connect_with(addr, ConnectOptions::new().deadline(slow / 2)).unwrap();
    turn_until(&mut manager, |manager| manager.stats().requests(Cause::Drained) == 1);
    assert_eq!(manager.stats().connects, 1, "started in the slow turn");
    manager.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(manager.stats().live, 2, "its deadline began when the slow turn ended");
    turn_until(&mut manager, |manager| manager.stats().live == 1);
}

/// An established connection has only the usual deadlines.
#[test]
fn the_connect_deadline_ends_when_the_connection_is_established() {
    let idle = Duration::from_millis(80);
    let (mut manager, calls) = connector_with(drained().clients_deadline(idle), b"");
    let (listener, addr) = listener();
    manager.connect_with(addr, ConnectOptions::new().deadline(TIMEOUT)).unwrap();
    let _peer = listener.accept().unwrap();
    let began = Instant::now();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert!(began.elapsed() < TIMEOUT);
    assert_eq!(calls.borrow().reasons(), [CloseReason::Expired]);
}

#[test]
fn a_callback_connects_and_identifies_the_connection_by_its_key() {
    let (mut manager, calls) = connector();
    let (listener, addr) = listener();
    let (_reserved, refusing) = refusing();
    manager.connect_with(addr, ConnectOptions::new().key(1)).unwrap();
    manager.handle().connect_with(refusing, ConnectOptions::new().key(2)).unwrap();
    turn_until(&mut manager, |manager| manager.stats().closed_total() == 1);
    assert_eq!(calls.borrow().closed[0].key, Some(2), "the connect of the handle failed");
    drop(manager);
    let _ = listener.accept();
    let calls = Rc::<RefCell<Calls>>::default();
    let connector = Connector {
        calls: calls.clone(),
        greeting: b"",
        connect_to: Some(addr),
        from_closed: false,
    };
    let mut manager = Manager::with_handler(drained(), connector).unwrap();
    manager.start().unwrap();
    manager.connect(addr).unwrap();
    let mut peer = with_timeouts(listener.accept().unwrap().0);
    peer.write_all(b"?").unwrap();
    turn_until(&mut manager, |manager| manager.stats().connected == 2);
    let keys: Vec<_> = calls.borrow().opened.iter().map(|opened| opened.1).collect();
    assert_eq!(keys, [None, Some(77)]);
    drop(manager);
    assert_eq!(calls.borrow().closed.iter().map(|closed| closed.key).max(), Some(Some(77)));
}

#[test]
fn the_closed_hook_may_connect_again() {
    let (listener, addr) = listener();
    let (_reserved, refusing) = refusing();
    let calls = Rc::<RefCell<Calls>>::default();
    let connector = Connector {
        calls: calls.clone(),
        greeting: b"",
        connect_to: Some(addr),
        from_closed: true,
    };
    let mut manager = Manager::with_handler(drained().max_workers(1), connector).unwrap();
    manager.start().unwrap();
    manager.connect(refusing).unwrap();
    turn_until(&mut manager, |manager| manager.stats().connected == 1);
    assert_eq!(calls.borrow().opened[0].1, Some(78));
    drop(listener);
}

#[test]
fn a_connect_takes_a_worker_and_is_refused_if_none_is_free() {
    let (mut manager, calls) = connector_with(drained().max_workers(1), b"");
    let (_listener, silent, _queued) = silent();
    let id = manager.connect(silent).unwrap();
    let refused = manager.connect(silent).unwrap_err();
    assert!(matches!(refused, Error::Busy { max_workers: 1 }), "{refused}");
    assert!(matches!(manager.handle().connect(silent), Err(Error::Busy { max_workers: 1 })));
    let (_peer, ours) = crate::support::pair();
    assert!(manager.put(ours).unwrap_err().is_busy());
    assert_eq!(manager.stats().busy, 3);
    manager.handle().close(id).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    // A handle takes the permit before the connect begins.
    manager.handle().connect(silent).unwrap();
    assert!(matches!(manager.connect(silent), Err(Error::Busy { max_workers: 1 })));
    assert_eq!(calls.borrow().reasons(), [CloseReason::Requested]);
    manager.stop().unwrap();
    assert!(matches!(manager.connect(silent), Err(Error::NotRunning)));
    assert!(matches!(manager.handle().connect(silent), Err(Error::NotRunning)));
}

#[test]
fn a_connect_that_fails_at_once_frees_its_worker() {
    let (mut manager, calls) = connector_with(drained().max_workers(1), b"");
    // A TCP connect to the broadcast address fails at once.
    let nowhere = SocketAddr::from((Ipv4Addr::BROADCAST, 9));
    for _ in 0..3 {
        let error = manager.connect(nowhere).unwrap_err();
        assert!(matches!(error, Error::Connect { addr, .. } if addr == nowhere), "{error}");
        assert!(error.to_string().starts_with("can't connect to 255.255.255.255:9: "), "{error}");
    }
    assert_eq!((manager.stats().put, manager.stats().live), (0, 0));
    assert!(calls.borrow().closed.is_empty(), "the error was returned instead");
    // A handle cannot return the error, so `closed` is called.
    let options = ConnectOptions::new().key(9);
    for turn in 1..=3 {
        manager.handle().connect_with(nowhere, options).unwrap();
        turn_until(&mut manager, |manager| manager.stats().closed_total() == turn);
    }
    let calls = calls.borrow();
    let ids: std::collections::HashSet<ConnId> =
        calls.closed.iter().map(|closed| closed.id).collect();
    assert_eq!(ids.len(), 3, "no id is reused");
    for closed in &calls.closed {
        assert!(matches!(closed.reason, CloseReason::Unreachable), "{closed:?}");
        assert_eq!(closed.key, Some(9));
    }
    let stats = manager.stats();
    assert_eq!((stats.put, stats.connects, stats.live), (3, 3, 0), "{stats}");
}

#[test]
fn a_connect_without_descriptors_fails_and_frees_its_worker() {
    alone("connect::a_connect_without_descriptors_fails_and_frees_its_worker", 40, || {
        let (mut manager, calls) = connector_with(drained().max_workers(1), b"");
        let (listener, addr) = listener();
        let taken: Vec<_> = std::iter::from_fn(|| listener.try_clone().ok()).collect();
        let error = manager.connect(addr).unwrap_err();
        assert!(error.to_string().contains("Too many open files"), "{error}");
        manager.handle().connect_with(addr, ConnectOptions::new().key(3)).unwrap();
        turn_until(&mut manager, |manager| manager.stats().closed_total() == 1);
        assert_eq!(calls.borrow().closed[0].key, Some(3));
        drop(taken);
        manager.connect(addr).unwrap();
        turn_until(&mut manager, |manager| manager.stats().connected == 1);
    });
}

#[test]
fn a_close_while_connecting_calls_closed_at_once() {
    let (mut manager, calls) = connector();
    let (_listener, addr, _queued) = silent();
    let id = manager.connect(addr).unwrap();
    let handle = manager.handle();
    handle.send(id, &b"never sent"[..]).unwrap();
    handle.close(id).unwrap();
    handle.send(id, &b"too late"[..]).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let calls = calls.borrow();
    assert_eq!(calls.reasons(), [CloseReason::Requested]);
    assert_eq!((calls.closed[0].id, calls.closed[0].bytes_unsent), (id, 10));
    assert_eq!(calls.undelivered, [b"too late".to_vec()]);
    let stats = manager.stats();
    assert_eq!((stats.writes, stats.lingering, stats.connected), (0, 0, 0), "{stats}");
}

#[test]
fn a_stop_while_connecting_calls_closed_at_once() {
    let (mut manager, calls) = connector_with(drained().stop_deadline(TIMEOUT), b"");
    let (_listener, addr, _queued) = silent();
    let id = manager.connect(addr).unwrap();
    let began = Instant::now();
    let report = manager.stop().unwrap();
    assert!(began.elapsed() < TIMEOUT);
    assert_eq!((report.idle, report.finished, report.aborted), (1, 0, 0), "{report}");
    assert_eq!(
        (calls.borrow().reasons(), calls.borrow().closed[0].id),
        (vec![CloseReason::Stopped], id)
    );
}

/// `closed` is called even if the manager stops before the connect begins.
#[test]
fn a_stop_before_a_queued_connect_calls_closed_with_its_key() {
    let (mut manager, calls) = connector_with(drained().max_workers(1), b"");
    let (_listener, addr) = listener();
    let options = ConnectOptions::new().key(4);
    manager.handle().connect_with(addr, options).unwrap();
    let report = manager.stop().unwrap();
    assert_eq!(report.aborted, 0, "{report}");
    assert_eq!(calls.borrow().closed[0].key, Some(4));
    manager.start().unwrap();
    let handle = manager.handle();
    // Both commands run in one turn. The connect begins, and the stop closes the connection.
    handle.connect_with(addr, options).unwrap();
    handle.stop().unwrap();
    manager.run().unwrap();
    assert_eq!(calls.borrow().reasons(), [CloseReason::Stopped; 2]);
    manager.start().unwrap();
    manager.connect(addr).expect("both connects have freed their worker");
}

#[test]
fn dropping_the_manager_while_connecting_calls_closed() {
    let (mut manager, calls) = connector();
    let (_listener, addr, _queued) = silent();
    manager.connect(addr).unwrap();
    drop(manager);
    assert_eq!(calls.borrow().reasons(), [CloseReason::Stopped]);
}

/// The test takes a second, because the kernel waits for this time before it repeats an unanswered
/// SYN.
#[test]
fn bytes_sent_while_connecting_follow_the_output_of_opened() {
    let (mut manager, calls) = connector();
    let (listener, addr, queued) = silent();
    let id = manager.connect(addr).unwrap();
    let handle = manager.handle();
    handle.send(id, &b"one "[..]).unwrap();
    handle.pause(id).unwrap();
    handle.send(id, &b"two"[..]).unwrap();
    for _ in 0..4 {
        manager.turn(Some(Duration::from_millis(5))).unwrap();
    }
    assert!(calls.borrow().opened.is_empty());
    assert!(manager.next_timeout().is_some(), "a pause does not suspend the connect deadline");
    let mut next = accept_after(&listener, queued);
    let mut peer = None;
    turn_until(&mut manager, |_| {
        peer = peer.take().or_else(&mut next);
        peer.is_some()
    });
    turn_until(&mut manager, |manager| manager.stats().bytes_out == 13);
    let mut got = [0; 13];
    let mut peer = peer.unwrap();
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello one two");
    peer.write_all(b"later?").unwrap();
    for _ in 0..4 {
        manager.turn(Some(Duration::from_millis(5))).unwrap();
    }
    assert!(calls.borrow().requests.is_empty(), "the connection is paused");
    manager.handle().resume(id).unwrap();
    turn_until(&mut manager, |_| !calls.borrow().requests.is_empty());
}

#[test]
fn more_than_write_limit_closes_before_and_after_the_connect() {
    let config = drained().write_limit(10);
    let (mut manager, calls) = connector_with(config, b"hello ");
    let (_listener, silent, _queued) = silent();
    let handle = manager.handle();
    let id = manager.connect(silent).unwrap();
    handle.send(id, vec![b'x'; 10]).unwrap();
    handle.send(id, vec![b'y'; 1]).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert_eq!(calls.borrow().reasons(), [CloseReason::WriteLimit]);
    assert_eq!((calls.borrow().undelivered.len(), calls.borrow().closed[0].bytes_unsent), (1, 10));
    let (_listener, addr) = listener();
    let id = manager.connect(addr).unwrap();
    handle.send(id, vec![b'x'; 5]).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let calls = calls.borrow();
    assert_eq!(calls.opened.len(), 1, "the greeting alone is within the limit");
    assert_eq!(calls.reasons(), [CloseReason::WriteLimit; 2]);
    assert_eq!(calls.closed[1].bytes_unsent, 11);
}

/// `closed` is called once for each connection. The connection may or may not have been established
/// before the reset.
#[test]
fn a_connection_that_is_reset_at_once_calls_closed_once() {
    let (mut manager, calls) = connector();
    let (listener, addr) = listener();
    for _ in 0..20 {
        manager.connect(addr).unwrap();
        reset(listener.accept().unwrap().0);
    }
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert_eq!(calls.borrow().closed.len(), 20);
    let ids: std::collections::HashSet<ConnId> =
        calls.borrow().closed.iter().map(|closed| closed.id).collect();
    assert_eq!(ids.len(), 20);
}

#[test]
fn hundreds_of_connects_at_once_are_all_established() {
    let began = Instant::now();
    let (mut manager, calls) = connector_with(drained().buffer_size(64), b"ping");
    let (listener, addr) = listener();
    listener.set_nonblocking(true).unwrap();
    let mut peers = Vec::new();
    for _ in 0..300 {
        manager.connect(addr).unwrap();
        peers.extend(listener.accept().ok());
    }
    turn_until(&mut manager, |manager| {
        peers.extend(listener.accept().ok());
        manager.stats().bytes_out == 1_200
    });
    assert_eq!(calls.borrow().opened.len(), 300);
    peers.extend(std::iter::from_fn(|| listener.accept().ok()));
    assert_eq!(peers.len(), 300);
    drop(peers);
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert!(began.elapsed() < TIMEOUT);
}
