//! Connections that begin here: told when they are there, or that they never were.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use pool_manager::{
    Cause, CloseReason, Closed, Commands, Config, Conn, ConnId, ConnectOptions, Error, Framing,
    Handler, Manager,
};

use crate::support::{PATIENCE, alone, descriptors, patient, reset, turn_until};

/// What a caller was told.
#[derive(Debug, Default)]
struct Told {
    opened: Vec<(ConnId, Option<u64>, Option<SocketAddr>)>,
    heard: Vec<(Cause, Vec<u8>)>,
    ends: Vec<Closed>,
    back: Vec<Vec<u8>>,
}

impl Told {
    fn reasons(&self) -> Vec<CloseReason> {
        self.ends.iter().map(|end| end.reason).collect()
    }
}

/// Greets whom it reaches; asked for `again` it connects there, from `closed` if `on_end`.
struct Caller {
    told: Rc<RefCell<Told>>,
    greeting: &'static [u8],
    again: Option<SocketAddr>,
    on_end: bool,
}

impl Handler for Caller {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        assert_eq!(conn.cause(), Cause::Opened);
        let peer = conn.peer_addr();
        self.told.borrow_mut().opened.push((conn.id(), conn.key(), peer));
        conn.write_all(self.greeting)
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self.told.borrow_mut().heard.push((conn.cause(), body.to_vec()));
        if let Some(addr) = self.again.take() {
            conn.commands().connect_with(addr, ConnectOptions::new().key(77))?;
        }
        Ok(())
    }

    fn closed(&mut self, end: &Closed, (): (), commands: &mut Commands) {
        self.told.borrow_mut().ends.push(*end);
        if let Some(addr) = self.again.filter(|_| self.on_end) {
            self.again = None;
            commands.connect_with(addr, ConnectOptions::new().key(78)).unwrap();
        }
    }

    fn undelivered(&mut self, _id: ConnId, bytes: Vec<u8>, _desk: &mut Commands) {
        self.told.borrow_mut().back.push(bytes);
    }
}

type Called = (Manager<Caller>, Rc<RefCell<Told>>);

fn caller_with(config: Config, greeting: &'static [u8]) -> Called {
    let told = Rc::<RefCell<Told>>::default();
    let caller = Caller { told: told.clone(), greeting, again: None, on_end: false };
    let mut manager = Manager::with_handler(config, caller).unwrap();
    manager.start().unwrap();
    (manager, told)
}

fn caller() -> Called {
    caller_with(drained(), b"hello ")
}

fn drained() -> Config {
    Config::new().framing(Framing::Drained).connect_deadline(PATIENCE)
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// A port at which nobody listens, and which nobody else gets meanwhile.
fn refusing() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, addr)
}

/// A listener whose queue is full, so that who connects is not answered, and who fills it.
fn silent() -> (TcpListener, SocketAddr, Vec<TcpStream>) {
    let (listener, addr) = listener();
    socket2::SockRef::from(&listener).listen(1).unwrap();
    let patience = Duration::from_millis(100);
    let crowd = std::iter::from_fn(|| TcpStream::connect_timeout(&addr, patience).ok());
    let crowd: Vec<TcpStream> = crowd.take(16).collect();
    assert!(crowd.len() < 16, "a queue that is never full");
    (listener, addr, crowd)
}

/// Lets in one of those who wait at a silent listener that is not of its crowd.
fn let_in(listener: &TcpListener, crowd: Vec<TcpStream>) -> impl FnMut() -> Option<TcpStream> {
    let mut left = crowd.len();
    listener.set_nonblocking(true).unwrap();
    let listener = listener.try_clone().unwrap();
    move || {
        let _ = &crowd;
        let (stream, _) = listener.accept().ok()?;
        left = left.checked_sub(1).unwrap_or(usize::MAX);
        if left == usize::MAX {
            stream.set_nonblocking(false).unwrap();
        }
        (left == usize::MAX).then(|| patient(stream))
    }
}

fn unreachable(kind: ErrorKind) -> Vec<CloseReason> {
    vec![CloseReason::Unreachable(kind)]
}

#[test]
fn what_is_reached_is_a_connection_like_any_other() {
    let (mut manager, told) = caller();
    let (listener, addr) = listener();
    let id = manager.connect(addr).unwrap();
    assert_eq!((manager.stats().live, manager.stats().connects), (1, 1));
    assert!(told.borrow().opened.is_empty(), "nobody knows of it yet");
    let mut peer = patient(listener.accept().unwrap().0);
    turn_until(&mut manager, |manager| manager.stats().bytes_out == 6);
    assert_eq!(told.borrow().opened, [(id, None, Some(addr))]);
    let mut greeting = [0; 6];
    peer.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hello ");
    peer.write_all(b"welcome").unwrap();
    turn_until(&mut manager, |_| !told.borrow().heard.is_empty());
    assert_eq!(told.borrow().heard, [(Cause::Drained, b"welcome".to_vec())]);
    manager.handle().send(id, &b"and bye"[..]).unwrap();
    manager.handle().close(id).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"and bye");
    drop(peer);
    drop(listener);
    assert_eq!(told.borrow().reasons(), [CloseReason::Requested]);
    let stats = manager.stats();
    assert_eq!((stats.connects, stats.connected, stats.put), (1, 1, 1), "{stats}");
}

#[test]
fn no_descriptor_is_left_of_any_of_them() {
    alone("connect::no_descriptor_is_left_of_any_of_them", 64, || {
        let before = descriptors();
        what_is_reached_is_a_connection_like_any_other();
        a_port_at_which_nobody_listens_is_told_once();
        who_never_answers_is_given_up_at_the_deadline_and_not_before();
        a_close_while_connecting_is_told_at_once();
        a_stop_while_connecting_is_told_at_once();
        assert_eq!(descriptors(), before);
    });
}

#[test]
fn a_port_at_which_nobody_listens_is_told_once() {
    let (mut manager, told) = caller();
    let (_reserved, addr) = refusing();
    let id = manager.connect_with(addr, ConnectOptions::new().key(5)).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let told = told.borrow();
    assert_eq!(told.reasons(), unreachable(ErrorKind::ConnectionRefused));
    assert_eq!((told.ends[0].id, told.ends[0].key), (id, Some(5)));
    assert!(told.opened.is_empty());
    let stats = manager.stats();
    assert_eq!((stats.connects, stats.connected), (1, 0));
    assert_eq!(stats.closed(CloseReason::Unreachable(ErrorKind::Other)), 1, "of any kind");
    assert_eq!((stats.reads, stats.writes), (0, 0), "neither read nor written");
}

#[test]
fn who_never_answers_is_given_up_at_the_deadline_and_not_before() {
    let config = drained().clients_deadline(PATIENCE * 2);
    let (mut manager, told) = caller_with(config.clone(), b"");
    let (_listener, addr, _crowd) = silent();
    let deadline = Duration::from_micros(150_500);
    let began = Instant::now();
    manager.connect_with(addr, ConnectOptions::new().deadline(deadline)).unwrap();
    let next = manager.next_timeout().unwrap();
    assert!(next <= Duration::from_millis(152), "planned in {next:?}");
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let took = began.elapsed();
    assert!(took >= deadline, "{took:?}");
    assert_eq!(told.borrow().reasons(), unreachable(ErrorKind::TimedOut));
    assert_eq!(manager.stats().expired, 1);
    // The configured one, which is that of those who have no other.
    manager.set_config(config.connect_deadline(Duration::from_millis(40))).unwrap();
    let began = Instant::now();
    manager.connect(addr).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert!(began.elapsed() >= Duration::from_millis(40) && began.elapsed() < PATIENCE);
    assert_eq!(told.borrow().reasons().len(), 2);
}

#[test]
fn what_begins_in_a_slow_turn_has_its_time_from_that_turn_s_end() {
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
    let (_listener, addr, _crowd) = silent();
    manager.handle().connect_with(addr, ConnectOptions::new().deadline(slow / 2)).unwrap();
    turn_until(&mut manager, |manager| manager.stats().requests(Cause::Drained) == 1);
    assert_eq!(manager.stats().connects, 1, "in the turn that was slow");
    manager.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(manager.stats().live, 2, "its time has only begun");
    turn_until(&mut manager, |manager| manager.stats().live == 1);
}

/// Once it is there its deadlines are those of any other.
#[test]
fn the_connect_deadline_ends_with_the_connect() {
    let idle = Duration::from_millis(80);
    let (mut manager, told) = caller_with(drained().clients_deadline(idle), b"");
    let (listener, addr) = listener();
    manager.connect_with(addr, ConnectOptions::new().deadline(PATIENCE)).unwrap();
    let _peer = listener.accept().unwrap();
    let began = Instant::now();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(told.borrow().reasons(), [CloseReason::Expired]);
}

#[test]
fn a_callback_connects_and_knows_it_by_its_key() {
    let (mut manager, told) = caller();
    let (listener, addr) = listener();
    let (_reserved, nobody) = refusing();
    manager.connect_with(addr, ConnectOptions::new().key(1)).unwrap();
    manager.handle().connect_with(nobody, ConnectOptions::new().key(2)).unwrap();
    turn_until(&mut manager, |manager| manager.stats().closed_total() == 1);
    assert_eq!(told.borrow().ends[0].key, Some(2), "a handle's");
    drop(manager);
    let _ = listener.accept();
    let told = Rc::<RefCell<Told>>::default();
    let caller = Caller { told: told.clone(), greeting: b"", again: Some(addr), on_end: false };
    let mut manager = Manager::with_handler(drained(), caller).unwrap();
    manager.start().unwrap();
    manager.connect(addr).unwrap();
    let mut peer = patient(listener.accept().unwrap().0);
    peer.write_all(b"?").unwrap();
    turn_until(&mut manager, |manager| manager.stats().connected == 2);
    let keys: Vec<_> = told.borrow().opened.iter().map(|opened| opened.1).collect();
    assert_eq!(keys, [None, Some(77)]);
    drop(manager);
    assert_eq!(told.borrow().ends.iter().map(|end| end.key).max(), Some(Some(77)));
}

#[test]
fn who_is_told_of_an_end_may_connect_again() {
    let (listener, addr) = listener();
    let (_reserved, nobody) = refusing();
    let told = Rc::<RefCell<Told>>::default();
    let caller = Caller { told: told.clone(), greeting: b"", again: Some(addr), on_end: true };
    let mut manager = Manager::with_handler(drained().max_workers(1), caller).unwrap();
    manager.start().unwrap();
    manager.connect(nobody).unwrap();
    turn_until(&mut manager, |manager| manager.stats().connected == 1);
    assert_eq!(told.borrow().opened[0].1, Some(78));
    drop(listener);
}

#[test]
fn it_takes_a_place_and_is_refused_without_one() {
    let (mut manager, told) = caller_with(drained().max_workers(1), b"");
    let (_listener, silent, _crowd) = silent();
    let id = manager.connect(silent).unwrap();
    let refused = manager.connect(silent).unwrap_err();
    assert!(matches!(refused, Error::Busy { max_workers: 1 }), "{refused}");
    assert!(matches!(manager.handle().connect(silent), Err(Error::Busy { max_workers: 1 })));
    let (_peer, ours) = crate::support::pair();
    assert!(manager.put(ours).unwrap_err().is_busy());
    assert_eq!(manager.stats().busy, 3);
    manager.handle().close(id).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    // A handle takes the place before its connection begins.
    manager.handle().connect(silent).unwrap();
    assert!(matches!(manager.connect(silent), Err(Error::Busy { max_workers: 1 })));
    assert_eq!(told.borrow().reasons(), [CloseReason::Requested]);
    manager.stop().unwrap();
    assert!(matches!(manager.connect(silent), Err(Error::NotRunning)));
    assert!(matches!(manager.handle().connect(silent), Err(Error::NotRunning)));
}

#[test]
fn a_connection_that_cannot_begin_leaves_its_place() {
    let (mut manager, told) = caller_with(drained().max_workers(1), b"");
    // Nobody can connect to the broadcast address.
    let nowhere = SocketAddr::from((Ipv4Addr::BROADCAST, 9));
    for _ in 0..3 {
        let error = manager.connect(nowhere).unwrap_err();
        assert!(matches!(error, Error::Connect { addr, .. } if addr == nowhere), "{error}");
        assert!(error.to_string().starts_with("can't connect to 255.255.255.255:9: "), "{error}");
    }
    assert_eq!((manager.stats().put, manager.stats().live), (0, 0));
    assert!(told.borrow().ends.is_empty(), "the caller knows");
    // Who asks from elsewhere is told.
    let options = ConnectOptions::new().key(9);
    for turn in 1..=3 {
        manager.handle().connect_with(nowhere, options).unwrap();
        turn_until(&mut manager, |manager| manager.stats().closed_total() == turn);
    }
    let told = told.borrow();
    let ids: std::collections::HashSet<ConnId> = told.ends.iter().map(|end| end.id).collect();
    assert_eq!(ids.len(), 3, "an id is never used again");
    for end in &told.ends {
        assert!(matches!(end.reason, CloseReason::Unreachable(_)), "{end:?}");
        assert_eq!(end.key, Some(9));
    }
    let stats = manager.stats();
    assert_eq!((stats.put, stats.connects, stats.live), (3, 3, 0), "{stats}");
}

#[test]
fn without_descriptors_it_says_so_and_the_place_is_free() {
    alone("connect::without_descriptors_it_says_so_and_the_place_is_free", 40, || {
        let (mut manager, told) = caller_with(drained().max_workers(1), b"");
        let (listener, addr) = listener();
        let taken: Vec<_> = std::iter::from_fn(|| listener.try_clone().ok()).collect();
        let error = manager.connect(addr).unwrap_err();
        assert!(error.to_string().contains("Too many open files"), "{error}");
        manager.handle().connect_with(addr, ConnectOptions::new().key(3)).unwrap();
        turn_until(&mut manager, |manager| manager.stats().closed_total() == 1);
        assert_eq!(told.borrow().ends[0].key, Some(3));
        drop(taken);
        manager.connect(addr).unwrap();
        turn_until(&mut manager, |manager| manager.stats().connected == 1);
    });
}

#[test]
fn a_close_while_connecting_is_told_at_once() {
    let (mut manager, told) = caller();
    let (_listener, addr, _crowd) = silent();
    let id = manager.connect(addr).unwrap();
    let handle = manager.handle();
    handle.send(id, &b"never sent"[..]).unwrap();
    handle.close(id).unwrap();
    handle.send(id, &b"too late"[..]).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let told = told.borrow();
    assert_eq!(told.reasons(), [CloseReason::Requested]);
    assert_eq!((told.ends[0].id, told.ends[0].bytes_unsent), (id, 10));
    assert_eq!(told.back, [b"too late".to_vec()]);
    let stats = manager.stats();
    assert_eq!((stats.writes, stats.lingering, stats.connected), (0, 0, 0), "{stats}");
}

#[test]
fn a_stop_while_connecting_is_told_at_once() {
    let (mut manager, told) = caller_with(drained().stop_deadline(PATIENCE), b"");
    let (_listener, addr, _crowd) = silent();
    let id = manager.connect(addr).unwrap();
    let began = Instant::now();
    let report = manager.stop().unwrap();
    assert!(began.elapsed() < PATIENCE);
    assert_eq!((report.idle, report.finished, report.aborted), (1, 0, 0), "{report}");
    assert_eq!(
        (told.borrow().reasons(), told.borrow().ends[0].id),
        (vec![CloseReason::Stopped], id)
    );
}

/// It is told as well of one that a stop comes before, in the same batch of commands.
#[test]
fn a_stop_before_it_begins_is_told_by_its_key() {
    let (mut manager, told) = caller_with(drained().max_workers(1), b"");
    let (_listener, addr) = listener();
    let options = ConnectOptions::new().key(4);
    manager.handle().connect_with(addr, options).unwrap();
    let report = manager.stop().unwrap();
    assert_eq!(report.aborted, 0, "{report}");
    assert_eq!(told.borrow().ends[0].key, Some(4));
    manager.start().unwrap();
    let handle = manager.handle();
    // Behind its own stop there is no place any more; before it there is.
    handle.connect_with(addr, options).unwrap();
    handle.stop().unwrap();
    manager.run().unwrap();
    assert_eq!(told.borrow().reasons(), [CloseReason::Stopped; 2]);
    manager.start().unwrap();
    manager.connect(addr).expect("the places of both are free again");
}

#[test]
fn a_drop_while_connecting_is_told() {
    let (mut manager, told) = caller();
    let (_listener, addr, _crowd) = silent();
    manager.connect(addr).unwrap();
    drop(manager);
    assert_eq!(told.borrow().reasons(), [CloseReason::Stopped]);
}

/// The kernel asks again after a second.
#[test]
fn what_is_sent_meanwhile_goes_out_behind_the_greeting() {
    let (mut manager, told) = caller();
    let (listener, addr, crowd) = silent();
    let id = manager.connect(addr).unwrap();
    let handle = manager.handle();
    handle.send(id, &b"one "[..]).unwrap();
    handle.pause(id).unwrap();
    handle.send(id, &b"two"[..]).unwrap();
    for _ in 0..4 {
        manager.turn(Some(Duration::from_millis(5))).unwrap();
    }
    assert!(told.borrow().opened.is_empty());
    assert!(manager.next_timeout().is_some(), "a pause does not stop its clock");
    let mut next = let_in(&listener, crowd);
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
    peer.write_all(b"heard?").unwrap();
    for _ in 0..4 {
        manager.turn(Some(Duration::from_millis(5))).unwrap();
    }
    assert!(told.borrow().heard.is_empty(), "it is paused");
    manager.handle().resume(id).unwrap();
    turn_until(&mut manager, |_| !told.borrow().heard.is_empty());
}

#[test]
fn more_than_write_limit_ends_it_before_and_when_it_is_there() {
    let config = drained().write_limit(10);
    let (mut manager, told) = caller_with(config, b"hello ");
    let (_listener, silent, _crowd) = silent();
    let handle = manager.handle();
    let id = manager.connect(silent).unwrap();
    handle.send(id, vec![b'x'; 10]).unwrap();
    handle.send(id, vec![b'y'; 1]).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert_eq!(told.borrow().reasons(), [CloseReason::WriteLimit]);
    assert_eq!((told.borrow().back.len(), told.borrow().ends[0].bytes_unsent), (1, 10));
    let (_listener, addr) = listener();
    let id = manager.connect(addr).unwrap();
    handle.send(id, vec![b'x'; 5]).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let told = told.borrow();
    assert_eq!(told.opened.len(), 1, "the greeting alone would not be too much");
    assert_eq!(told.reasons(), [CloseReason::WriteLimit; 2]);
    assert_eq!(told.ends[1].bytes_unsent, 11);
}

/// Whatever comes first, each is told of once.
#[test]
fn who_resets_at_once_is_told_of_once() {
    let (mut manager, told) = caller();
    let (listener, addr) = listener();
    for _ in 0..20 {
        manager.connect(addr).unwrap();
        reset(listener.accept().unwrap().0);
    }
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert_eq!(told.borrow().ends.len(), 20);
    let ids: std::collections::HashSet<ConnId> =
        told.borrow().ends.iter().map(|end| end.id).collect();
    assert_eq!(ids.len(), 20);
}

#[test]
fn hundreds_at_once_all_come_about() {
    let began = Instant::now();
    let (mut manager, told) = caller_with(drained().buffer_size(64), b"ping");
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
    assert_eq!(told.borrow().opened.len(), 300);
    peers.extend(std::iter::from_fn(|| listener.accept().ok()));
    assert_eq!(peers.len(), 300);
    drop(peers);
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert!(began.elapsed() < PATIENCE);
}
