//! Reports and leftovers: a stop counts each connection once, and a handle keeps nothing open.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pool_manager::{
    CloseReason, Closed, Commands, Config, Conn, Error, Handler, Manager, Overload, Socket,
    Transport,
};

use crate::support::{alone, descriptors};

type Ignore = fn(&mut Conn<'_>, &[u8]) -> io::Result<()>;

fn manager(config: Config) -> Manager<Ignore> {
    let ignore: Ignore = |_, _| Ok(());
    Manager::new(config, ignore).unwrap()
}

/// Runs in a process of its own, because it counts descriptors.
#[test]
fn a_handle_that_outlives_the_manager_keeps_no_descriptor_open() {
    alone("restarts::a_handle_that_outlives_the_manager_keeps_no_descriptor_open", 64, || {
        let before = descriptors();
        let mut manager = manager(Config::new());
        manager.start().unwrap();
        let handle = manager.handle();
        assert!(descriptors() > before);
        drop(manager);
        assert_eq!(descriptors(), before);
        assert!(handle.stop().is_err());
    });
}

#[test]
fn a_connect_queued_behind_a_stop_counts_as_idle() {
    let mut manager = manager(Config::new());
    manager.start().unwrap();
    manager.handle().stop().unwrap();
    manager.handle().connect("127.0.0.1:9".parse().unwrap()).unwrap();
    let report = manager.run().unwrap();
    assert_eq!((report.idle, report.finished, report.aborted), (1, 0, 0));
}

/// A transport whose reads are always interrupted.
struct Interrupted(UnixStream);

impl Read for Interrupted {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::Interrupted.into())
    }
}

impl Write for Interrupted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Interrupted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Interrupted {}

#[test]
fn a_connection_that_could_not_be_read_again_is_not_evicted() {
    let mut manager = manager(Config::new().max_workers(1).overload(Overload::EvictIdle));
    manager.start().unwrap();
    let addr = manager.listen("127.0.0.1:0").unwrap();
    let (_peer, ours) = UnixStream::pair().unwrap();
    manager.put(Socket::boxed(Interrupted(ours))).unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(20) {
        manager.turn(Some(Duration::ZERO)).unwrap();
    }
    let _client = TcpStream::connect(addr).unwrap();
    while manager.stats().accepted == 0 {
        manager.turn(Some(Duration::ZERO)).unwrap();
    }
    assert_eq!(manager.stats().closed(CloseReason::Evicted), 0);
}

/// Records the reasons of closes, and the kinds of their errors.
#[derive(Clone, Default)]
struct Reasons(Rc<RefCell<Vec<End>>>);

type End = (CloseReason, Option<ErrorKind>);

impl Handler for Reasons {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

    fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn closed(&mut self, closed: &Closed, _: Option<()>, _: &mut Commands) {
        let kind = closed.error.as_ref().map(io::Error::kind);
        self.0.borrow_mut().push((closed.reason, kind));
    }
}

#[test]
fn a_queued_connect_that_fails_at_once_reports_its_kind() {
    let reasons = Reasons::default();
    let mut manager = Manager::with_handler(Config::new(), reasons.clone()).unwrap();
    manager.start().unwrap();
    let addr = "255.255.255.255:80".parse().unwrap();
    let Err(Error::Connect { source, .. }) = manager.connect(addr) else {
        panic!("the connection was started")
    };
    assert_ne!(source.kind(), ErrorKind::Other);
    manager.handle().connect(addr).unwrap();
    manager.turn(Some(Duration::ZERO)).unwrap();
    let expected = (CloseReason::Unreachable, Some(source.kind()));
    assert_eq!(*reasons.0.borrow(), [expected]);
}

#[test]
fn a_wake_of_an_earlier_start_does_not_end_a_wait_after_a_restart() {
    let mut manager = manager(Config::new());
    manager.start().unwrap();
    manager.handle().notify().unwrap();
    manager.stop().unwrap();
    manager.start().unwrap();
    let began = Instant::now();
    let turn = manager.turn(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(turn.events, 0);
    assert!(began.elapsed() >= Duration::from_millis(100));
}

#[cfg(not(mio_unsupported_force_poll_poll))]
#[test]
fn the_descriptor_is_not_readable_while_the_manager_is_stopped() {
    let (read, mut write) = UnixStream::pair().unwrap();
    let mut manager = manager(Config::new());
    manager.stop_on(read).unwrap();
    let mut outer = mio::Poll::new().unwrap();
    let raw = std::os::fd::AsRawFd::as_raw_fd(&manager.as_fd());
    for round in 0..2 {
        manager.start().unwrap();
        manager.handle().notify().unwrap();
        manager.stop().unwrap();
        write.write_all(&[15]).unwrap();
        // Registering reports the readiness that is there already.
        let mut source = mio::unix::SourceFd(&raw);
        let readable = mio::Interest::READABLE;
        outer.registry().register(&mut source, mio::Token(0), readable).unwrap();
        let mut events = mio::Events::with_capacity(4);
        outer.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty(), "after stop {round}");
        outer.registry().deregister(&mut source).unwrap();
        manager.start().unwrap();
        manager.run().unwrap();
    }
}
