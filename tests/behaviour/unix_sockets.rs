//! Unix domain sockets: streams, passed descriptors, and boxed transports over them.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_manager::{Cause, CloseReason, Config, Conn, Error, Framing, Manager, Socket, Transport};

use crate::support::{Rig, alone, descriptors, echo, logged, pass, remember_log, rig};

const LONG: Duration = Duration::from_secs(600);

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(LONG)
}

impl<F> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// Puts a Unix connection, and returns the client's end.
    fn connect_unix(&mut self) -> UnixStream {
        let (client, ours) = UnixStream::pair().unwrap();
        self.manager.put(ours).unwrap();
        client
    }

    /// Runs turns until the client has read `count` bytes.
    #[track_caller]
    pub(super) fn read_unix(&mut self, client: &mut UnixStream, count: usize) -> Vec<u8> {
        client.set_nonblocking(true).unwrap();
        let mut got = vec![0; count];
        let mut have = 0;
        self.until(|_| {
            match client.read(&mut got[have..]) {
                Ok(0) => panic!("end of file after {have} of {count} bytes"),
                Ok(n) => have += n,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            have == count
        });
        got
    }
}

#[test]
fn a_request_that_ends_with_a_half_close_is_answered() {
    let mut rig = echo(Config::new().clients_deadline(LONG));
    let mut client = rig.connect_unix();
    client.write_all(b"upload").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.read_unix(&mut client, 6), b"upload");
    assert_eq!(rig.record.requests(), [(Cause::Eof, b"upload".to_vec())]);
    assert_eq!(rig.first_close(), CloseReason::Eof);
}

#[test]
fn a_reply_larger_than_the_kernel_s_buffer_arrives() {
    let mut rig = rig(drained(), |conn, _| {
        assert_eq!(conn.peer_addr(), None);
        conn.write_all(&vec![b'x'; 900_000])
    });
    let mut client = rig.connect_unix();
    for _ in 0..3 {
        client.write_all(b"go").unwrap();
        assert_eq!(rig.read_unix(&mut client, 900_000).len(), 900_000);
    }
}

#[test]
fn a_peer_that_closes_with_the_reply_unread_causes_no_warning() {
    remember_log();
    let mut rig = echo(drained());
    let mut client = rig.connect_unix();
    client.write_all(b"and gone").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_out == 8);
    drop(client);
    assert_eq!(rig.first_close(), CloseReason::Reset);
    assert_eq!(logged(log::Level::Error), Vec::<String>::new());
    assert_eq!(logged(log::Level::Warn), Vec::<String>::new());
}

#[test]
fn a_write_to_a_peer_that_has_closed_is_a_reset() {
    let mut rig = echo(drained());
    let (client, ours) = UnixStream::pair().unwrap();
    let id = rig.manager.put(ours).unwrap();
    let handle = rig.manager.handle();
    // A paused connection is not read, so the write detects the close first.
    handle.pause(id).unwrap();
    rig.turn();
    drop(client);
    handle.send(id, b"too late").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Reset);
    assert_eq!(rig.manager.stats().bytes_unsent, 8);
}

#[cfg(target_os = "linux")]
#[test]
fn passed_descriptors_do_not_leak() {
    alone("unix_sockets::passed_descriptors_do_not_leak", 64, || {
        let mut rig = echo(drained());
        let mut client = rig.connect_unix();
        let file = File::open("/dev/null").unwrap();
        let before = descriptors();
        for _ in 0..500 {
            pass(&client, b"data", &[file.as_fd()]).unwrap();
            assert_eq!(rig.read_unix(&mut client, 4), b"data");
        }
        assert_eq!(descriptors(), before);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn bytes_behind_a_passed_descriptor_need_no_further_edge() {
    let config = Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG);
    // The handler does not reply, so the client reads nothing, and no event reports the socket as
    // writable.
    let mut rig = rig(config, |_, _| Ok(()));
    let mut client = rig.connect_unix();
    let file = File::open("/dev/null").unwrap();
    client.write_all(b"in front\n").unwrap();
    pass(&client, b"beside\n", &[file.as_fd()]).unwrap();
    client.write_all(b"behind\n").unwrap();
    let bodies: Vec<Vec<u8>> = rig.requests(3).into_iter().map(|(_, body)| body).collect();
    assert_eq!(bodies, [&b"in front"[..], b"beside", b"behind"]);
}

/// The behaviour of a [`Wire`], and a record of the calls it received.
#[derive(Default)]
struct Script {
    calls: Vec<&'static str>,
    /// The number of `flush` calls that will still return `WouldBlock`.
    stuck: u32,
    /// The bytes that `write` has taken and `flush` has not sent.
    held: Vec<u8>,
    /// The number of bytes read.
    read: usize,
}

/// A transport over a Unix socket that collects writes until it is flushed, as a TLS transport
/// does.
struct Wire(UnixStream, Arc<Mutex<Script>>);

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        assert!(!into.is_empty(), "the result 0 would look like an end of file");
        let count = self.0.read(into)?;
        self.1.lock().unwrap().read += count;
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut script = self.1.lock().unwrap();
        script.calls.push("write");
        script.held.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut script = self.1.lock().unwrap();
        script.calls.push("flush");
        if script.held.is_empty() {
            return Ok(());
        }
        if script.stuck > 0 {
            script.stuck -= 1;
            return Err(ErrorKind::WouldBlock.into());
        }
        let held = std::mem::take(&mut script.held);
        self.0.write_all(&held)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Wire {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.1.lock().unwrap().calls.push("shutdown");
        self.0.shutdown(Shutdown::Write)
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 1, 2, 3], 4)))
    }
}

fn wire() -> (UnixStream, Socket, Arc<Mutex<Script>>) {
    let (client, ours) = UnixStream::pair().unwrap();
    let script = Arc::new(Mutex::new(Script::default()));
    (client, Socket::Boxed(Box::new(Wire(ours, script.clone()))), script)
}

#[test]
fn a_boxed_transport_is_served_and_flushed() {
    let addr = Rc::new(Cell::new(None));
    let seen = addr.clone();
    let mut rig = rig(drained(), move |conn, body| {
        seen.set(conn.peer_addr());
        conn.write_all(body)
    });
    let (mut client, socket, script) = wire();
    rig.manager.put(socket).unwrap();
    for _ in 0..3 {
        client.write_all(b"over the wire").unwrap();
        assert_eq!(rig.read_unix(&mut client, 13), b"over the wire");
    }
    assert_eq!(addr.get(), Some(SocketAddr::from(([10, 1, 2, 3], 4))));
    let calls = script.lock().unwrap().calls.clone();
    assert_eq!(calls.iter().filter(|&&call| call == "write").count(), 3, "{calls:?}");
}

#[test]
fn bytes_that_a_transport_could_not_flush_are_flushed_when_ready_again() {
    let mut rig = echo(drained());
    let (mut client, socket, script) = wire();
    rig.manager.put(socket).unwrap();
    rig.turn();
    script.lock().unwrap().stuck = 1;
    client.write_all(b"first").unwrap();
    rig.requests(1);
    rig.until(|_| script.lock().unwrap().stuck == 0);
    // While a reply is unsent, the transport is not read. At the next event, of any kind, the
    // transport is flushed first.
    let read = script.lock().unwrap().read;
    assert_eq!((read, rig.record.requests().len()), (5, 1));
    client.write_all(b"second").unwrap();
    assert_eq!(rig.read_unix(&mut client, 11), b"firstsecond");
    let flushed = |seen: &crate::support::Seen| matches!(seen, crate::support::Seen::Flushed(_));
    assert_eq!(rig.record.all().iter().filter(|&seen| flushed(seen)).count(), 1);
}

#[test]
fn a_transport_that_never_flushes_is_closed_as_stalled() {
    let mut rig = echo(drained().clients_deadline(Duration::from_millis(60)));
    let (mut client, socket, script) = wire();
    script.lock().unwrap().stuck = u32::MAX;
    rig.manager.put(socket).unwrap();
    client.write_all(b"never answered").unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteStalled);
}

#[test]
fn shutdown_write_is_called_before_a_transport_is_closed() {
    let mut rig = rig(drained(), |conn, body| {
        conn.close();
        conn.write_all(body)
    });
    let (mut client, socket, script) = wire();
    rig.manager.put(socket).unwrap();
    client.write_all(b"bye").unwrap();
    assert_eq!(rig.read_unix(&mut client, 3), b"bye");
    rig.first_close();
    let calls = script.lock().unwrap().calls.clone();
    let shutdown = calls.iter().position(|&call| call == "shutdown").expect("a shutdown");
    assert!(calls[..shutdown].contains(&"flush"), "{calls:?}");
    client.set_nonblocking(false).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(rig.manager.stats().lingering, 1, "it lingers until the peer closes");
    drop(client);
    rig.until(|rig| rig.manager.stats().lingering == 0);
    assert_eq!(Arc::strong_count(&script), 1, "the transport is dropped");
}

#[test]
fn a_refused_transport_is_returned_unchanged() {
    let mut manager = Manager::new(drained(), |_, _| Ok(())).unwrap();
    let (mut client, socket, script) = wire();
    let refused = manager.put(socket).unwrap_err();
    assert!(matches!(refused.error(), Error::NotRunning));
    assert!(script.lock().unwrap().calls.is_empty());
    manager.handle().reject(refused.into_socket(), b"unavailable").unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "unavailable");
    assert_eq!(script.lock().unwrap().calls.last(), Some(&"shutdown"));
}
