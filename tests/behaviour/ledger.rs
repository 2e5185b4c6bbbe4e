//! What is taken is given back, and what is counted is counted once.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pool_manager::{
    CloseReason, Closed, Commands, Config, Conn, Error, Frame, Framing, Handler, Manager, PutError,
    Socket, Transport,
};

use crate::support::{Seen, echo, rig, unix_pair, write_behind};

const LONG: Duration = Duration::from_secs(600);

/// A transport that takes no byte and does not say why.
struct Deaf(UnixStream);

impl Read for Deaf {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Deaf {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Deaf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Deaf {}

#[test]
fn a_transport_that_takes_nothing_and_does_not_say_why_has_failed() {
    let mut rig = echo(Config::new().framing(Framing::Drained).clients_deadline(LONG));
    let (mut client, stream) = UnixStream::pair().unwrap();
    rig.manager.put(Socket::Boxed(Box::new(Deaf(stream)))).unwrap();
    client.write_all(b"hello").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Io(ErrorKind::WriteZero));
    assert_eq!(rig.record.ends()[0].bytes_unsent, 5);
}

/// A transport of which every other call is interrupted by a signal.
struct Signalled {
    stream: UnixStream,
    calls: Arc<AtomicU32>,
}

impl Signalled {
    fn call(&self) -> io::Result<()> {
        let before = self.calls.fetch_add(1, Ordering::Relaxed);
        if before % 2 == 0 { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

impl Read for Signalled {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.call()?;
        self.stream.read(into)
    }
}

impl Write for Signalled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.call()?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.call()
    }
}

impl AsFd for Signalled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Transport for Signalled {}

#[test]
fn a_call_that_a_signal_interrupts_is_made_again() {
    let config = Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG);
    let mut rig = rig(config, |conn: &mut Conn<'_>, body: &[u8]| {
        if body == b"quit" {
            conn.close();
        }
        conn.write_all(body)
    });
    let (mut client, stream) = UnixStream::pair().unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    rig.manager.put(Socket::boxed(Signalled { stream, calls: calls.clone() })).unwrap();
    for (said, count) in [(b"some", 4), (b"more", 8), (b"quit", 12)] {
        client.write_all(&[&said[..], b"\n"].concat()).unwrap();
        rig.until(|rig| rig.manager.stats().bytes_out == count);
        let mut reply = [0; 4];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, said);
    }
    assert_eq!(rig.first_close(), CloseReason::Requested);
    let before = calls.load(Ordering::Relaxed);
    client.write_all(b"to be discarded").unwrap();
    rig.until(|_| calls.load(Ordering::Relaxed) >= before + 4);
    assert_eq!(rig.manager.stats().lingering, 1, "nor does it end a goodbye");
    drop(client);
    rig.until(|rig| rig.manager.stats().lingering == 0);
}

/// With `TCP_NODELAY` and one request at a time, a read that fills no buffer has got it all.
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
#[test]
fn a_read_of_tcp_that_comes_back_short_is_the_last() {
    let mut rig = echo(Config::new().framing(Framing::Drained).clients_deadline(LONG));
    let (mut client, _) = rig.connect();
    for lap in 1..=5 {
        client.write_all(b"hello").unwrap();
        assert_eq!(rig.read_exact(&mut client, 5), b"hello");
        rig.quiet();
        assert_eq!(rig.manager.stats().reads, lap);
    }
}

/// The socket is full from the beginning, so all that gathers before the first write is owed.
#[test]
fn replies_gather_up_to_half_of_what_may_be_unsent() {
    let config = Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG);
    let mut rig = rig(config.write_limit(1_000), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.write_all(&[b'x'; 100])
    });
    let (mut client, ours) = unix_pair();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[b'y'; 4096]).is_ok() {}
    let id = rig.manager.put(ours).unwrap();
    client.write_all(&[b'\n'; 50]).unwrap();
    rig.quiet();
    assert_eq!(rig.record.requests().len(), 5);
    rig.manager.handle().send(id, [b'z'; 501]).unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteLimit);
    assert_eq!(rig.record.ends()[0].bytes_unsent, 500);
}

/// It is large enough to be sent before the visit ends.
#[test]
fn a_last_reply_that_had_to_wait_is_not_followed_by_a_flushed() {
    const REPLY: usize = 1 << 20;
    let config = Config::new().clients_deadline(LONG).write_limit(2 * REPLY);
    let mut rig = rig(config, |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&vec![7; REPLY]));
    let (mut client, ours) = unix_pair();
    rig.manager.put(ours).unwrap();
    client.write_all(b"all of it").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap().len(), REPLY);
    assert_eq!(rig.first_close(), CloseReason::Eof);
    let flushed = |seen: &Seen| matches!(seen, Seen::Flushed(_));
    assert!(!rig.record.all().iter().any(flushed));
}

/// It has to wait at the end of the visit only: what is longer is sent before the panic.
/// The framing is not asked again once the reply that had to wait is out.
#[test]
fn a_panic_in_a_custom_framing_is_counted_once_though_an_earlier_reply_has_to_wait() {
    const REPLY: usize = 60_000;
    let framing = Framing::custom(|held| match held {
        [b'!', ..] => panic!("a panic that a test provokes"),
        [_, ..] => Frame::Complete(1),
        [] => Frame::Partial,
    });
    let config = Config::new().framing(framing).clients_deadline(LONG).write_limit(1 << 20);
    let mut rig = rig(config, |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&b"x".repeat(REPLY)));
    let (mut client, ours) = unix_pair();
    socket2::SockRef::from(&ours).set_send_buffer_size(1).unwrap();
    rig.manager.put(ours).unwrap();
    client.write_all(b"a!").unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap().len(), REPLY);
    assert_eq!(rig.first_close(), CloseReason::Panicked);
    assert_eq!(rig.manager.stats().panics, 1);
    let flushed = |seen: &Seen| matches!(seen, Seen::Flushed(_));
    assert!(!rig.record.all().iter().any(flushed), "it was ending");
}

#[test]
fn however_small_its_reads_a_connection_has_sixteen_a_turn() {
    let mut rig = echo(Config::new().buffer_size(16).clients_deadline(LONG));
    let (mut client, ours) = unix_pair();
    rig.manager.put(ours).unwrap();
    client.write_all(&[b'x'; 16 * 100]).unwrap();
    rig.until(|rig| {
        let before = rig.manager.stats().reads;
        rig.turn();
        let stats = rig.manager.stats();
        assert!(stats.reads - before <= 16, "{stats}");
        stats.bytes_in == 1_600
    });
}

#[test]
fn who_fills_the_whole_budget_with_one_read_has_no_other_that_turn() {
    const BUDGET: u64 = 64 << 10;
    let config = Config::new().framing(Framing::Drained).buffer_size(BUDGET as usize);
    let mut rig = rig(config.clients_deadline(LONG), |_: &mut Conn<'_>, _: &[u8]| Ok(()));
    let (client, ours) = unix_pair();
    let all = vec![b'x'; 5 * BUDGET as usize];
    let writer = write_behind(&client, all.clone());
    rig.manager.put(ours).unwrap();
    rig.until(|rig| {
        let before = rig.manager.stats();
        rig.turn();
        let after = rig.manager.stats();
        let read = after.bytes_in - before.bytes_in;
        // What is short of the budget leaves room for another.
        assert!(read < 2 * BUDGET, "{read} bytes in {} reads", after.reads - before.reads);
        after.bytes_in == all.len() as u64
    });
    writer.join().unwrap().unwrap();
}

/// Puts a socket when a connection closes, and notes whether it is told that nothing runs.
struct Phoenix(Rc<RefCell<Vec<bool>>>);

impl Handler for Phoenix {
    type Session = ();

    fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn closed(&mut self, _: &Closed, (): (), commands: &mut Commands) {
        let outcome = commands.put(UnixStream::pair().unwrap().0);
        let refused = |error: &PutError| matches!(error.error(), Error::NotRunning);
        self.0.borrow_mut().push(outcome.as_ref().is_err_and(refused));
    }
}

#[test]
fn a_put_while_the_manager_is_dropped_is_refused() {
    let told = Rc::new(RefCell::new(Vec::new()));
    let mut manager = Manager::with_handler(Config::new(), Phoenix(told.clone())).unwrap();
    manager.start().unwrap();
    manager.put(UnixStream::pair().unwrap().0).unwrap();
    drop(manager);
    assert_eq!(*told.borrow(), [true]);
}

#[test]
fn a_report_counts_what_is_dropped_from_the_beginning_of_its_own_stop() {
    let config = Config::new().clients_deadline(LONG).stop_deadline(Duration::from_nanos(1));
    let mut rig = echo(config.min_workers(3));
    for round in 1..=2 {
        let (mut client, _) = rig.connect();
        client.write_all(b"part").unwrap();
        rig.bytes_in(4 * round);
        assert_eq!(rig.manager.stop().unwrap().dropped_bytes, 4);
        assert_eq!(rig.manager.stats().spare, 0, "what is stopped holds no buffer");
        rig.manager.start().unwrap();
    }
}

/// A descriptor that names a directory and can do nothing cannot be made non-blocking.
#[cfg(target_os = "linux")]
#[test]
fn a_socket_that_cannot_be_made_non_blocking_leaves_its_place_free() {
    use std::os::unix::fs::OpenOptionsExt;
    const O_PATH: i32 = 0x20_0000;
    let mut rig = echo(Config::new().min_workers(1).max_workers(1));
    let name = std::fs::OpenOptions::new().read(true).custom_flags(O_PATH).open("/").unwrap();
    let error = rig.manager.put(UnixStream::from(std::os::fd::OwnedFd::from(name))).unwrap_err();
    assert!(matches!(error.error(), Error::Unsuitable(_)), "{error}");
    rig.connect();
}

#[test]
fn who_lingers_is_let_go_of_once_its_peer_has_closed() {
    let config = Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG);
    let mut rig = rig(config, |conn: &mut Conn<'_>, _: &[u8]| {
        conn.write_all(b"bye")?;
        conn.close();
        Ok(())
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"go\n").unwrap();
    rig.until(|rig| rig.manager.stats().lingering == 1);
    drop(client);
    rig.quiet();
    assert_eq!(rig.manager.stats().lingering, 0, "not only when its time is up");
}
