//! Boxed transports: output buffers, idle and lingering transports, and the failures of user code.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_manager::{
    Cause, CloseReason, Config, Conn, Framing, Handler, Manager, Socket, Transport,
};

use crate::support::{Rig, connect, echo, pair, rig, turn_until};

const LONG: Duration = Duration::from_secs(600);
/// The reason for which a connection with a failed transport is closed.
const BROKEN: CloseReason = CloseReason::Io;

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Read,
    Write,
    Flush,
    Shutdown,
    Drop,
}

/// The calls that a [`Wire`] received, and the faults that it has.
#[derive(Debug, Default)]
struct Script {
    calls: Vec<Call>,
    panics: Option<Call>,
    miscounts: Option<Call>,
    /// If true, `flush` sends nothing and returns `WouldBlock`.
    stuck: bool,
    /// The number of writes that are still to be interrupted.
    interruptions: u32,
}

/// A transport with an output buffer, as a TLS transport has.
struct Wire {
    stream: UnixStream,
    held: Vec<u8>,
    closing_message: &'static [u8],
    script: Arc<Mutex<Script>>,
}

impl Wire {
    const CAPACITY: usize = 16 << 10;

    /// Records a call, and panics if the script says so. Returns whether the call must return a
    /// wrong count.
    fn called(&self, call: Call) -> bool {
        let mut script = self.script.lock().unwrap();
        script.calls.push(call);
        let (panics, miscounts) = (script.panics == Some(call), script.miscounts == Some(call));
        drop(script);
        assert!(!panics || std::thread::panicking(), "{call:?} panics");
        miscounts
    }

    fn drain(&mut self) -> io::Result<()> {
        if self.script.lock().unwrap().stuck && !self.held.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        while !self.held.is_empty() {
            let count = self.stream.write(&self.held)?;
            self.held.drain(..count);
        }
        Ok(())
    }
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let miscounts = self.called(Call::Read);
        let count = self.stream.read(into)?;
        Ok(if miscounts { into.len() + 1 } else { count })
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.called(Call::Write) {
            return Ok(bytes.len() + 1);
        }
        let left = self.script.lock().unwrap().interruptions;
        if left > 0 {
            self.script.lock().unwrap().interruptions = left - 1;
            return Err(ErrorKind::Interrupted.into());
        }
        if self.held.len() == Self::CAPACITY {
            self.drain()?;
        }
        let count = bytes.len().min(Self::CAPACITY - self.held.len());
        self.held.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.called(Call::Flush);
        self.drain()
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Transport for Wire {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.called(Call::Shutdown);
        self.held.extend(self.closing_message);
        if self.closing_message.is_empty() { self.stream.shutdown(Shutdown::Write) } else { Ok(()) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.called(Call::Drop);
    }
}

fn wire() -> (UnixStream, Socket, Arc<Mutex<Script>>) {
    wire_with(b"")
}

/// Returns a transport whose `shutdown_write` sends `closing_message` instead of shutting down.
fn wire_with(closing_message: &'static [u8]) -> (UnixStream, Socket, Arc<Mutex<Script>>) {
    let (client, stream) = UnixStream::pair().unwrap();
    let script = Arc::new(Mutex::new(Script::default()));
    let wire = Wire { stream, held: Vec::new(), closing_message, script: script.clone() };
    (client, Socket::Boxed(Box::new(wire)), script)
}

impl<F> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// Runs turns until the client has read `count` bytes.
    #[track_caller]
    fn read_wire(&mut self, client: &mut UnixStream, count: usize) -> Vec<u8> {
        client.set_nonblocking(true).unwrap();
        let (mut got, mut have) = (vec![0; count], 0);
        self.until(|rig| {
            match client.read(&mut got[have..]) {
                Ok(0) => panic!("end of file after {have}: {:?}", rig.record.closed()),
                Ok(n) => have += n,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            have == count
        });
        got
    }

    /// Asserts that a new connection is served.
    #[track_caller]
    fn assert_serves_new(&mut self) {
        let (mut client, _) = self.connect();
        client.write_all(b"hello\n").unwrap();
        assert_eq!(self.read_exact(&mut client, 5), b"hello");
    }
}

#[test]
fn a_boxed_transport_loses_no_reply() {
    const REPLY: usize = 20 << 10;
    let mut count = 0;
    let mut rig = rig(lines().write_limit(4 << 20), move |conn: &mut Conn<'_>, _: &[u8]| {
        count += 1;
        conn.write_all(&vec![count; REPLY])
    });
    let (mut peer, socket, _) = wire();
    rig.manager.put(socket).unwrap();
    peer.write_all(&[b'\n'; 50]).unwrap();
    for _ in 0..20 {
        rig.turn();
    }
    let got = rig.read_wire(&mut peer, 50 * REPLY);
    let wanted: Vec<u8> = (1..=50).flat_map(|count| vec![count; REPLY]).collect();
    assert!(got == wanted, "bytes are missing or out of order");
    assert_eq!(rig.record.closed(), []);
}

#[test]
fn an_idle_boxed_transport_does_not_spin() {
    let mut rig = echo(lines());
    let (mut peer, socket, script) = wire();
    rig.manager.put(socket).unwrap();
    peer.write_all(b"some\nand more").unwrap();
    assert_eq!(rig.read_wire(&mut peer, 4), b"some");
    rig.quiet();
    script.lock().unwrap().calls.clear();
    let turns = rig.turns_in(Duration::from_millis(100));
    assert!(turns < 5, "{turns} turns with nothing to do");
    assert!(script.lock().unwrap().calls.is_empty());
}

/// A transport may have data to send that no handler wrote, as in a TLS handshake. A read may add
/// more such data.
#[test]
fn a_boxed_transport_is_flushed_before_and_after_it_is_read() {
    let mut rig = rig(lines(), |_: &mut Conn<'_>, _: &[u8]| Ok(()));
    let (mut peer, socket, script) = wire();
    rig.manager.put(socket).unwrap();
    rig.quiet();
    for part in [&b"half a"[..], b" line\n"] {
        script.lock().unwrap().calls.clear();
        peer.write_all(part).unwrap();
        rig.quiet();
        let calls = script.lock().unwrap().calls.clone();
        assert_eq!(calls, [Call::Flush, Call::Read, Call::Read, Call::Flush]);
    }
}

/// A transport whose first read succeeds, and whose later reads fail.
struct FailsLater(UnixStream, bool);

impl Read for FailsLater {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let broken = std::mem::replace(&mut self.1, true);
        if broken { Err(ErrorKind::Other.into()) } else { self.0.read(into) }
    }
}

impl Write for FailsLater {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for FailsLater {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for FailsLater {}

#[test]
fn replies_above_the_flush_threshold_are_sent_before_a_failing_read() {
    const REPLY: u64 = 70 << 10;
    let mut rig =
        rig(lines(), |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&vec![b'x'; REPLY as usize]));
    let (mut peer, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    peer.write_all(b"one\n").unwrap();
    rig.manager.put(Socket::Boxed(Box::new(FailsLater(ours, false)))).unwrap();
    assert_eq!(rig.first_close(), BROKEN);
    assert_eq!(rig.record.ends()[0].bytes_out, REPLY);
}

/// A transport that always has more to read, without an event from the kernel.
struct Endless(UnixStream);

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        into.fill(b'\n');
        Ok(into.len())
    }
}

impl Write for Endless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Endless {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Endless {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_lingering_socket_with_more_to_read_is_read_without_an_event() {
    let mut rig = rig(lines(), |conn: &mut Conn<'_>, _: &[u8]| {
        conn.close();
        conn.write_all(b"bye")
    });
    let (_peer, stream) = UnixStream::pair().unwrap();
    rig.manager.put(Socket::Boxed(Box::new(Endless(stream)))).unwrap();
    rig.until(|rig| rig.manager.stats().lingering == 1);
    rig.turn();
    let mut turns = 0;
    while rig.manager.stats().lingering == 1 {
        assert_eq!(rig.manager.next_timeout(), Some(Duration::ZERO), "after {turns} turns");
        rig.turn();
        turns += 1;
    }
    assert!(turns > 1, "each turn reads a limited amount");
}

/// A transport may be unable to read until it can write, as in a TLS handshake. This test is left
/// out with poll(2), where the backend waits for writability only after a write that would block.
#[cfg(not(mio_unsupported_force_poll_poll))]
#[test]
fn a_boxed_transport_that_becomes_writable_is_also_read() {
    let mut rig = echo(lines());
    let (mut peer, socket, script) = wire();
    rig.manager.put(socket).unwrap();
    peer.write_all(b"some\n").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_out == 4);
    rig.quiet();
    script.lock().unwrap().calls.clear();
    // A Unix socket becomes writable again when its peer reads.
    peer.read_exact(&mut [0; 4]).unwrap();
    rig.until(|_| !script.lock().unwrap().calls.is_empty());
    rig.quiet();
    assert_eq!(script.lock().unwrap().calls, [Call::Flush, Call::Read, Call::Flush]);
}

#[test]
fn a_boxed_transport_with_an_unsent_reply_does_not_spin() {
    let mut rig = rig(lines(), |conn: &mut Conn<'_>, _: &[u8]| conn.write_all(&vec![7; 900 << 10]));
    let (mut peer, socket, _) = wire();
    rig.manager.put(socket).unwrap();
    peer.write_all(b"\n").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    rig.requests(1);
    rig.quiet();
    let turns = rig.turns_in(Duration::from_millis(100));
    assert!(turns < 5, "{turns} turns with nothing to do");
    assert!(rig.read_wire(&mut peer, 900 << 10) == vec![7; 900 << 10]);
    assert_eq!(rig.first_close(), CloseReason::Eof);
}

/// Breaks one of two transports that hold half a line. Asserts that the other is unaffected.
fn break_one(broken: impl Fn(&mut Script)) {
    let mut rig = echo(lines().max_workers(3));
    let (mut neighbour, socket, _) = wire();
    rig.manager.put(socket).unwrap();
    neighbour.write_all(b"half a ").unwrap();
    let (mut peer, socket, script) = wire();
    let id = rig.manager.put(socket).unwrap();
    peer.write_all(b"password=").unwrap();
    rig.bytes_in(16);
    rig.quiet();
    broken(&mut script.lock().unwrap());
    peer.write_all(b"secret\nand ").unwrap();
    assert_eq!(rig.first_close(), BROKEN);
    assert_eq!((rig.record.ends()[0].id, rig.record.closed().len()), (id, 1));
    assert_eq!(Arc::strong_count(&script), 1, "the transport is dropped");
    rig.assert_serves_new();
    neighbour.write_all(b"line\n").unwrap();
    assert_eq!(rig.read_wire(&mut neighbour, 11), b"half a line");
    let others = rig.record.of_others(id);
    assert_eq!(others, b"hellohalf a line", "no bytes of the broken connection");
    let end = rig.record.ends().remove(0);
    let delivered: usize = rig.record.requests().iter().map(|(_, body)| body.len() + 1).sum();
    let seen = delivered - b"hello\nhalf a line\n".len();
    assert_eq!(end.bytes_in, seen as u64 + end.bytes_dropped);
}

#[test]
fn a_transport_that_panics_ends_only_its_own_connection() {
    for call in [Call::Read, Call::Write, Call::Flush] {
        break_one(|script| script.panics = Some(call));
    }
}

#[test]
fn a_transport_that_miscounts_ends_only_its_own_connection() {
    for call in [Call::Read, Call::Write] {
        break_one(|script| script.miscounts = Some(call));
    }
}

/// The way in which a connection ends.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The peer closes.
    Eof,
    /// The manager closes. The connection lingers until the peer closes.
    Lingering,
    /// The connection lingers, and the manager is stopped at once.
    Stopped,
    /// The manager is dropped.
    Dropped,
}

/// Ends a connection whose transport panics in `call`. Asserts that a new connection is served.
#[track_caller]
fn panic_at_the_end(call: Call, way: Way) {
    let mut rig = echo(lines().max_workers(1).stop_deadline(Duration::ZERO));
    let record = rig.record.clone();
    let (mut peer, socket, script) = wire();
    let id = rig.manager.put(socket).unwrap();
    peer.write_all(b"hello\n").unwrap();
    assert_eq!(rig.read_wire(&mut peer, 5), b"hello");
    script.lock().unwrap().panics = Some(call);
    if let Way::Dropped = way {
        drop(rig);
        assert_eq!(record.closed(), [CloseReason::Stopped]);
        return;
    }
    if let Way::Eof = way {
        drop(peer);
        rig.first_close();
    } else {
        rig.manager.handle().close(id).unwrap();
        rig.first_close();
        if let Way::Stopped = way {
            rig.manager.stop().unwrap();
            rig.manager.start().unwrap();
        }
        drop(peer);
    }
    rig.until(|rig| rig.manager.stats().lingering == 0);
    rig.assert_serves_new();
    rig.until(|rig| rig.manager.stats().live == 0);
    assert_eq!((record.closed().len(), record.open_lives()), (2, 0), "{way:?}");
}

#[test]
fn a_transport_that_panics_when_dropped_frees_its_worker() {
    panic_at_the_end(Call::Drop, Way::Eof);
}

#[test]
fn a_lingering_transport_that_panics_when_dropped_is_contained() {
    panic_at_the_end(Call::Drop, Way::Lingering);
}

#[test]
fn a_transport_that_panics_when_dropped_does_not_break_a_stop() {
    panic_at_the_end(Call::Drop, Way::Stopped);
    panic_at_the_end(Call::Drop, Way::Dropped);
}

/// The first transport is queued, but cannot be registered, because epoll refuses directories.
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
#[test]
fn a_queued_transport_that_panics_when_dropped_is_contained() {
    let mut rig = echo(lines().max_workers(1).stop_deadline(Duration::ZERO));
    let file = UnixStream::from(std::os::fd::OwnedFd::from(std::fs::File::open("/").unwrap()));
    let panics_when_dropped = |stream| {
        let script = Arc::new(Mutex::new(Script { panics: Some(Call::Drop), ..Script::default() }));
        Socket::boxed(Wire { stream, held: Vec::new(), closing_message: b"", script })
    };
    let handle = rig.manager.handle();
    handle.put(panics_when_dropped(file)).unwrap();
    rig.until(|rig| rig.manager.stats().admit_failures == 1);
    rig.assert_serves_new();
    rig.until(|rig| rig.manager.stats().live == 0);
    handle.put(panics_when_dropped(UnixStream::pair().unwrap().0)).unwrap();
    let (_peer, late) = UnixStream::pair().unwrap();
    let refused = handle.put(panics_when_dropped(late)).unwrap_err().into_socket();
    handle.reject(refused, b"busy").unwrap();
    rig.manager.stop().unwrap();
    rig.manager.start().unwrap();
    rig.assert_serves_new();
}

#[test]
fn a_transport_that_panics_in_shutdown_write_frees_its_worker() {
    panic_at_the_end(Call::Shutdown, Way::Lingering);
}

#[test]
fn output_of_shutdown_write_is_sent_while_the_socket_lingers() {
    let mut rig = rig(lines(), |conn: &mut Conn<'_>, body: &[u8]| {
        conn.close();
        conn.write_all(body)
    });
    let (mut peer, socket, script) = wire_with(b"goodbye!");
    rig.manager.put(socket).unwrap();
    peer.write_all(b"bye\n").unwrap();
    assert_eq!(rig.read_wire(&mut peer, 3), b"bye");
    rig.until(|rig| rig.manager.stats().lingering == 1);
    let calls = script.lock().unwrap().calls.clone();
    assert_eq!(calls.iter().filter(|&&call| call == Call::Shutdown).count(), 1, "{calls:?}");
    assert_eq!(rig.read_wire(&mut peer, 8), b"goodbye!");
}

#[test]
fn blocked_output_of_shutdown_write_is_sent_when_ready_again() {
    let mut rig = echo(lines());
    let (mut peer, socket, script) = wire_with(b"goodbye!");
    let id = rig.manager.put(socket).unwrap();
    peer.write_all(b"hello\n").unwrap();
    assert_eq!(rig.read_wire(&mut peer, 5), b"hello");
    script.lock().unwrap().stuck = true;
    rig.manager.handle().close(id).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Requested);
    script.lock().unwrap().stuck = false;
    peer.write_all(b"too late").unwrap();
    assert_eq!(rig.read_wire(&mut peer, 8), b"goodbye!");
    assert_eq!(rig.record.requests().len(), 1, "input after the close is discarded");
    drop(peer);
    rig.until(|rig| rig.manager.stats().lingering == 0);
    assert_eq!(Arc::strong_count(&script), 1);
}

#[test]
fn a_refused_transport_that_panics_makes_reject_return_an_error() {
    let mut rig = echo(lines().max_workers(1));
    let (_client, ours) = pair();
    rig.manager.put(ours).unwrap();
    let (_peer, socket, script) = wire();
    script.lock().unwrap().panics = Some(Call::Write);
    let refused = rig.manager.put(socket).unwrap_err();
    assert!(refused.is_busy());
    let outcome = rig.manager.handle().reject(refused.into_socket(), b"busy");
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Other);
    assert_eq!(rig.manager.stats().live, 1);
    assert_eq!(rig.record.requests(), [] as [(Cause, Vec<u8>); 0]);
}

#[test]
fn reject_repeats_interrupted_writes() {
    let mut rig = echo(lines().max_workers(1));
    let (_client, ours) = pair();
    rig.manager.put(ours).unwrap();
    let (mut peer, socket, script) = wire();
    script.lock().unwrap().interruptions = 3;
    let refused = rig.manager.put(socket).unwrap_err().into_socket();
    rig.manager.handle().reject(refused, b"busy").unwrap();
    assert_eq!(rig.read_wire(&mut peer, 4), b"busy");
    assert_eq!(script.lock().unwrap().interruptions, 0);
}

#[test]
fn shutdown_write_is_called_only_if_everything_was_sent() {
    for (input, shutdowns) in [(&b"hello\n"[..], 1), (b"", 1), (b"abort\n", 0), (b"broken\n", 0)] {
        let mut rig = rig(lines(), |conn: &mut Conn<'_>, line: &[u8]| {
            if line == b"abort" {
                conn.abort();
                return Ok(());
            }
            conn.write_all(line)
        });
        let (mut peer, socket, script) = wire();
        if input == b"broken\n" {
            script.lock().unwrap().miscounts = Some(Call::Write);
        }
        rig.manager.put(socket).unwrap();
        peer.write_all(input).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        rig.until(|rig| rig.manager.stats().live + rig.manager.stats().lingering == 0);
        let calls = &script.lock().unwrap().calls;
        let called = calls.iter().filter(|&&call| call == Call::Shutdown).count();
        assert_eq!(called, shutdowns, "{}: {calls:?}", input.escape_ascii());
    }
}

/// Returns a rig that echoes each line and then finishes the connection.
fn finishing() -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    rig(lines(), |conn: &mut Conn<'_>, line: &[u8]| {
        conn.write_all(line)?;
        conn.finish();
        Ok(())
    })
}

#[test]
fn shutdown_write_is_called_once_for_a_finished_connection() {
    let mut rig = finishing();
    let (mut peer, socket, script) = wire();
    rig.manager.put(socket).unwrap();
    peer.write_all(b"hello\n").unwrap();
    assert_eq!(rig.read_wire(&mut peer, 5), b"hello");
    rig.quiet();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the end of file");
    peer.write_all(b"more\n").unwrap();
    rig.requests(2);
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Eof);
    let calls = &script.lock().unwrap().calls;
    assert_eq!(calls.iter().filter(|&&call| call == Call::Shutdown).count(), 1, "{calls:?}");
}

#[test]
fn output_of_shutdown_write_is_sent_when_a_connection_is_finished() {
    let mut rig = finishing();
    let (mut peer, socket, _) = wire_with(b"goodbye!");
    rig.manager.put(socket).unwrap();
    peer.write_all(b"hello\n").unwrap();
    rig.requests(1);
    rig.quiet();
    // The peer has read nothing so far. A read would cause an event.
    let mut got = [0; 13];
    assert_eq!(peer.read(&mut got).unwrap(), 13, "{}", got.escape_ascii());
    assert_eq!(&got, b"hellogoodbye!");
    assert_eq!(rig.record.closed(), []);
}

#[test]
fn a_transport_that_panics_when_it_is_finished_ends_its_connection() {
    let mut rig = finishing();
    let (mut peer, socket, script) = wire();
    script.lock().unwrap().panics = Some(Call::Shutdown);
    rig.manager.put(socket).unwrap();
    peer.write_all(b"hello\n").unwrap();
    assert_eq!(rig.first_close(), BROKEN);
    assert_eq!(rig.read_wire(&mut peer, 5), b"hello");
    rig.assert_serves_new();
}

#[test]
fn shutdown_write_is_not_called_if_a_stop_cuts_off_a_reply() {
    for (reply, shutdowns) in [(5, 1), (Wire::CAPACITY + 1, 0)] {
        let mut rig =
            rig(lines().stop_deadline(Duration::ZERO), move |conn: &mut Conn<'_>, _: &[u8]| {
                conn.write_all(&vec![b'x'; reply])
            });
        let (mut peer, socket, script) = wire();
        script.lock().unwrap().stuck = true;
        rig.manager.put(socket).unwrap();
        peer.write_all(b"hello\n").unwrap();
        rig.requests(1);
        rig.manager.stop().unwrap();
        let calls = &script.lock().unwrap().calls;
        let called = calls.iter().filter(|&&call| call == Call::Shutdown).count();
        assert_eq!(called, shutdowns, "{calls:?}");
    }
}

/// A handler that wraps accepted sockets. `wrap` returns an error if the first byte is `!`, and
/// panics if it is `?`.
struct Wrapping;

impl Handler for Wrapping {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

    fn wrap(&mut self, socket: Socket) -> io::Result<Socket> {
        let Socket::Tcp(stream) = socket else { return Err(ErrorKind::Unsupported.into()) };
        let mut first = [0];
        stream.peek(&mut first)?;
        assert!(first != [b'?'], "requested by the test");
        if first == [b'!'] {
            Err(ErrorKind::InvalidData.into())
        } else {
            Ok(Socket::boxed(Uppercase(stream)))
        }
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        conn.write_all(body)
    }
}

/// A transport that converts its input to upper case.
struct Uppercase(TcpStream);

impl Read for Uppercase {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(into)?;
        into[..count].make_ascii_uppercase();
        Ok(count)
    }
}

impl Write for Uppercase {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Uppercase {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Uppercase {}

#[test]
fn accepted_sockets_can_be_wrapped_and_a_failed_wrap_frees_its_worker() {
    let mut manager = Manager::with_handler(lines().max_workers(1), Wrapping).unwrap();
    manager.start().unwrap();
    let addr = manager.listen("127.0.0.1:0").unwrap();
    for (count, input) in (1..).zip([b"!\n", b"?\n", b"!\n", b"a\n"]) {
        let mut client = connect(addr);
        client.write_all(input).unwrap();
        if input == b"a\n" {
            turn_until(&mut manager, |manager| manager.stats().bytes_out == 1);
            let mut reply = [0];
            client.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"A");
        } else {
            turn_until(&mut manager, |manager| manager.stats().admit_failures == count);
            assert!(!matches!(client.read(&mut [0]), Ok(1..)));
        }
    }
    let stats = manager.stats();
    assert_eq!((stats.accepted, stats.put, stats.admit_failures, stats.panics), (4, 1, 3, 1));
}
