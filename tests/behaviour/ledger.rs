//! Accounting: interrupted and short calls, budgets of a turn, and counters that count each event
//! once.

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

/// A transport whose writes take no byte and return no error.
struct WritesNothing(UnixStream);

impl Read for WritesNothing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for WritesNothing {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for WritesNothing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for WritesNothing {}

#[test]
fn a_transport_that_writes_nothing_without_an_error_has_failed() {
    let mut rig = echo(Config::new().framing(Framing::Drained).clients_deadline(LONG));
    let (mut client, stream) = UnixStream::pair().unwrap();
    rig.manager.put(Socket::Boxed(Box::new(WritesNothing(stream)))).unwrap();
    client.write_all(b"hello").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Io);
    assert_eq!(rig.record.ends()[0].bytes_unsent, 5);
}

/// A transport in which every other call returns `Interrupted`, as after a signal.
struct Interrupted {
    stream: UnixStream,
    calls: Arc<AtomicU32>,
}

impl Interrupted {
    fn call(&self) -> io::Result<()> {
        let before = self.calls.fetch_add(1, Ordering::Relaxed);
        if before % 2 == 0 { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

impl Read for Interrupted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.call()?;
        self.stream.read(into)
    }
}

impl Write for Interrupted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.call()?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.call()
    }
}

impl AsFd for Interrupted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Transport for Interrupted {}

#[test]
fn a_call_interrupted_by_a_signal_is_repeated() {
    let config = Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG);
    let mut rig = rig(config, |conn: &mut Conn<'_>, body: &[u8]| {
        if body == b"quit" {
            conn.close();
        }
        conn.write_all(body)
    });
    let (mut client, stream) = UnixStream::pair().unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    rig.manager.put(Socket::boxed(Interrupted { stream, calls: calls.clone() })).unwrap();
    for (line, count) in [(b"some", 4), (b"more", 8), (b"quit", 12)] {
        client.write_all(&[&line[..], b"\n"].concat()).unwrap();
        rig.until(|rig| rig.manager.stats().bytes_out == count);
        let mut reply = [0; 4];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, line);
    }
    assert_eq!(rig.first_close(), CloseReason::Requested);
    let before = calls.load(Ordering::Relaxed);
    client.write_all(b"to be discarded").unwrap();
    rig.until(|_| calls.load(Ordering::Relaxed) >= before + 4);
    assert_eq!(rig.manager.stats().lingering, 1, "an interrupted call does not end lingering");
    drop(client);
    rig.until(|rig| rig.manager.stats().lingering == 0);
}

/// A TCP read that does not fill the buffer has taken all bytes. The next byte causes a new edge.
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
#[test]
fn a_short_read_from_tcp_is_the_last_of_its_visit() {
    let mut rig = echo(Config::new().framing(Framing::Drained).clients_deadline(LONG));
    let (mut client, _) = rig.connect();
    for count in 1..=5 {
        client.write_all(b"hello").unwrap();
        assert_eq!(rig.read_exact(&mut client, 5), b"hello");
        rig.quiet();
        assert_eq!(rig.manager.stats().reads, count);
    }
}

/// The socket is full from the start, so the replies that are queued before the first write stay
/// unsent.
#[test]
fn replies_gather_up_to_half_of_the_write_limit() {
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

/// The reply is large enough to be sent before the visit ends.
#[test]
fn a_last_reply_that_was_blocked_is_not_followed_by_flushed() {
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

/// The framing panics on the second request while the reply to the first is held. That reply is
/// smaller than the output that a visit sends before its end, so the first attempt to send it comes
/// after the panic. When the rest of the reply has been sent, the framing is not called again.
#[test]
fn a_framing_panic_is_counted_once_though_an_earlier_reply_waits() {
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
    assert!(!rig.record.all().iter().any(flushed), "the connection was closing");
}

#[test]
fn a_connection_is_read_at_most_sixteen_times_a_turn() {
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
fn a_read_that_uses_the_whole_budget_is_the_last_of_its_turn() {
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
        // If a read stays below the budget, one more read is allowed.
        assert!(read < 2 * BUDGET, "{read} bytes in {} reads", after.reads - before.reads);
        after.bytes_in == all.len() as u64
    });
    writer.join().unwrap().unwrap();
}

/// Puts a socket in `closed`, and records whether that fails with [`Error::NotRunning`].
struct PutsInClosed(Rc<RefCell<Vec<bool>>>);

impl Handler for PutsInClosed {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

    fn request(&mut self, _: &mut Conn<'_>, (): &mut (), _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn closed(&mut self, _: &Closed, _: Option<()>, commands: &mut Commands) {
        let outcome = commands.put(UnixStream::pair().unwrap().0);
        let refused = |error: &PutError| matches!(error.error(), Error::NotRunning);
        self.0.borrow_mut().push(outcome.as_ref().is_err_and(refused));
    }
}

#[test]
fn a_put_while_the_manager_is_dropped_is_refused() {
    let refused = Rc::new(RefCell::new(Vec::new()));
    let mut manager = Manager::with_handler(Config::new(), PutsInClosed(refused.clone())).unwrap();
    manager.start().unwrap();
    manager.put(UnixStream::pair().unwrap().0).unwrap();
    drop(manager);
    assert_eq!(*refused.borrow(), [true]);
}

#[test]
fn a_report_counts_bytes_dropped_since_its_own_stop_began() {
    let config = Config::new().clients_deadline(LONG).stop_deadline(Duration::from_nanos(1));
    let mut rig = echo(config.min_workers(3));
    for round in 1..=2 {
        let (mut client, _) = rig.connect();
        client.write_all(b"part").unwrap();
        rig.bytes_in(4 * round);
        assert_eq!(rig.manager.stop().unwrap().dropped_bytes, 4);
        assert_eq!(rig.manager.stats().spare, 0, "a stopped manager holds no buffer");
        rig.manager.start().unwrap();
    }
}

/// A descriptor opened with `O_PATH` cannot be made non-blocking.
#[cfg(target_os = "linux")]
#[test]
fn a_socket_that_cannot_be_made_non_blocking_takes_no_worker() {
    use std::os::unix::fs::OpenOptionsExt;
    const O_PATH: i32 = 0x20_0000;
    let mut rig = echo(Config::new().min_workers(1).max_workers(1));
    let dir = std::fs::OpenOptions::new().read(true).custom_flags(O_PATH).open("/").unwrap();
    let error = rig.manager.put(UnixStream::from(std::os::fd::OwnedFd::from(dir))).unwrap_err();
    assert!(matches!(error.error(), Error::Unsuitable(_)), "{error}");
    rig.connect();
}

#[test]
fn a_lingering_socket_is_closed_once_its_peer_has_closed() {
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
    assert_eq!(rig.manager.stats().lingering, 0, "before its deadline");
}
