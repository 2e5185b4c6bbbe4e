//! Unix domain sockets: paths and their modes, streams, passed descriptors, boxed transports.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_manager::{Cause, CloseReason, Config, Conn, Error, Framing, Manager, Socket, Transport};

use crate::support::{
    Dir, PATIENCE, Rig, alone, descriptors, echo, logged, pass, remember_log, rig,
};

const LONG: Duration = Duration::from_secs(600);

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(LONG)
}

fn connect(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn refusal(outcome: Result<(), Error>) -> String {
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Listen { .. }), "{error}");
    error.to_string()
}

impl<F> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// A Unix connection: the client's end of a pair whose other end was put.
    fn connect_unix(&mut self) -> UnixStream {
        let (client, ours) = UnixStream::pair().unwrap();
        self.manager.put(ours).unwrap();
        client
    }

    /// Turns until the client has read `count` bytes.
    #[track_caller]
    fn read_unix(&mut self, client: &mut UnixStream, count: usize) -> Vec<u8> {
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

    #[track_caller]
    fn assert_serves(&mut self, path: &Path) {
        let mut client = connect(path);
        client.write_all(b"ping").unwrap();
        assert_eq!(self.read_unix(&mut client, 4), b"ping");
    }
}

#[test]
fn a_unix_listener_serves_and_only_its_owner_may_connect() {
    let dir = Dir::new();
    let path = dir.path("socket");
    let mut rig = echo(drained());
    rig.manager.listen_unix(&path).unwrap();
    let metadata = fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert_eq!(dir.names(), ["socket"], "no temporary directory is left");
    rig.assert_serves(&path);
}

#[test]
fn it_is_never_there_with_another_mode() {
    let dir = Dir::new();
    let path = dir.path("socket");
    let (seen, (done, over)) = (path.clone(), channel::<()>());
    let watcher = std::thread::spawn(move || {
        let mut modes = std::collections::BTreeSet::new();
        while over.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            if let Ok(metadata) = fs::symlink_metadata(&seen) {
                modes.insert(metadata.permissions().mode() & 0o7777);
            }
        }
        modes
    });
    let mut rig = echo(drained());
    for _ in 0..1_000 {
        rig.manager.listen_unix(&path).unwrap();
        rig.manager.stop().unwrap();
        rig.manager.start().unwrap();
    }
    rig.manager.listen_unix(&path).unwrap();
    drop(done);
    let modes = watcher.join().unwrap();
    assert!(modes.iter().all(|&mode| mode == 0o600), "{modes:?}");
}

#[test]
fn a_stale_path_is_replaced() {
    let dir = Dir::new();
    let path = dir.path("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(dir.names(), ["socket"], "std leaves it");
    let mut rig = echo(drained());
    rig.manager.listen_unix(&path).unwrap();
    rig.assert_serves(&path);
}

#[test]
fn a_live_path_is_refused_as_in_use_and_left_alone() {
    let dir = Dir::new();
    let path = dir.path("socket");
    let owner = UnixListener::bind(&path).unwrap();
    let mut rig = echo(drained());
    let said = refusal(rig.manager.listen_unix(&path));
    assert!(said.contains("in use") && said.contains(path.to_str().unwrap()), "{said}");
    assert_eq!(dir.names(), ["socket"]);
    let _client = connect(&path);
    owner.accept().unwrap();
    let mut second = echo(drained());
    let other = dir.path("ours");
    rig.manager.listen_unix(&other).unwrap();
    assert!(refusal(second.manager.listen_unix(&other)).contains("in use"));
    rig.assert_serves(&other);
}

#[test]
fn a_live_path_whose_backlog_is_full_is_in_use_too() {
    let dir = Dir::new();
    let path = dir.path("socket");
    let address = socket2::SockAddr::unix(&path).unwrap();
    let stream = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
    let owner = stream().unwrap();
    owner.bind(&address).unwrap();
    owner.listen(0).unwrap();
    let mut crowd = Vec::new();
    loop {
        let client = stream().unwrap();
        client.set_nonblocking(true).unwrap();
        let full = client.connect(&address).is_err();
        crowd.push(client);
        if full {
            break;
        }
    }
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut manager = Manager::new(drained(), |_, _| Ok(())).unwrap();
        manager.start().unwrap();
        tell.send(refusal(manager.listen_unix(&path)))
    });
    let said = told.recv_timeout(Duration::from_secs(5)).expect("it waits for the owner to accept");
    assert!(said.contains("in use"), "{said}");
}

#[test]
fn a_file_or_a_link_in_the_way_is_refused_and_left_alone() {
    let dir = Dir::new();
    fs::write(dir.path("file"), "precious").unwrap();
    drop(UnixListener::bind(dir.path("stale")).unwrap());
    symlink(dir.path("stale"), dir.path("link")).unwrap();
    symlink(dir.path("nowhere"), dir.path("dangling")).unwrap();
    fs::create_dir(dir.path("directory")).unwrap();
    let before = dir.names();
    let mut rig = echo(drained());
    for name in ["file", "link", "dangling", "directory"] {
        let said = refusal(rig.manager.listen_unix(dir.path(name)));
        assert!(said.contains("no socket"), "{name}: {said}");
    }
    assert_eq!(dir.names(), before);
    assert_eq!(fs::read(dir.path("file")).unwrap(), b"precious");
    assert!(fs::symlink_metadata(dir.path("link")).unwrap().file_type().is_symlink());
}

#[test]
fn a_path_in_no_directory_is_an_error() {
    let dir = Dir::new();
    let mut rig = echo(drained());
    assert!(!refusal(rig.manager.listen_unix(dir.path("none/socket"))).is_empty());
    assert!(!refusal(rig.manager.listen_unix("")).is_empty());
    assert!(dir.names().is_empty());
}

#[test]
fn its_path_is_removed_at_stop_and_when_it_is_dropped() {
    let dir = Dir::new();
    let mut rig = echo(drained());
    rig.manager.listen_unix(dir.path("stopped")).unwrap();
    rig.manager.stop().unwrap();
    assert!(dir.names().is_empty(), "{:?}", dir.names());
    rig.manager.start().unwrap();
    rig.manager.listen_unix(dir.path("dropped")).unwrap();
    drop(rig);
    assert!(dir.names().is_empty(), "{:?}", dir.names());
}

#[test]
fn a_path_that_somebody_has_replaced_is_not_removed() {
    let dir = Dir::new();
    let path = dir.path("socket");
    let mut rig = echo(drained());
    rig.manager.listen_unix(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    let inode = fs::symlink_metadata(&path).unwrap().ino();
    rig.manager.stop().unwrap();
    assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), inode);
    connect(&path);
}

#[test]
fn a_restarted_manager_listens_on_the_same_path() {
    let dir = Dir::new();
    let path = dir.path("socket");
    let mut rig = echo(drained());
    for _ in 0..3 {
        rig.manager.listen_unix(&path).unwrap();
        rig.assert_serves(&path);
        rig.manager.stop().unwrap();
        rig.manager.start().unwrap();
    }
}

/// A path of `length` bytes in `dir`, whose last part is `name` long.
fn path_of(dir: &Dir, length: usize, name: usize) -> PathBuf {
    let fill = length - dir.0.as_os_str().len() - 1 - name;
    let parent = if fill == 0 { dir.0.clone() } else { dir.0.join("d".repeat(fill - 1)) };
    fs::create_dir_all(&parent).unwrap();
    let path = parent.join("n".repeat(name));
    assert_eq!(path.as_os_str().len(), length);
    path
}

#[test]
fn a_path_may_be_as_long_as_the_system_s_longest() {
    for name in [40, 5, 1] {
        let dir = Dir::new();
        let mut rig = echo(drained());
        let longest = path_of(&dir, 107, name);
        rig.manager.listen_unix(&longest).unwrap_or_else(|error| panic!("{name}: {error}"));
        rig.assert_serves(&longest);
        let said = refusal(rig.manager.listen_unix(path_of(&dir, 108, name)));
        assert_eq!(said.lines().count(), 1);
    }
}

#[test]
fn half_closing_is_answered() {
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
fn a_peer_that_closes_with_our_reply_unread_is_nothing_to_warn_of() {
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
fn a_write_to_a_peer_that_is_gone_finds_a_reset() {
    let mut rig = echo(drained());
    let (client, ours) = UnixStream::pair().unwrap();
    let id = rig.manager.put(ours).unwrap();
    let handle = rig.manager.handle();
    // Paused, it is not read, so the write is the first to notice.
    handle.pause(id).unwrap();
    rig.turn();
    drop(client);
    handle.send(id, b"anybody?").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Reset);
    assert_eq!(rig.manager.stats().bytes_unsent, 8);
}

#[cfg(target_os = "linux")]
#[test]
fn passed_descriptors_do_not_leak() {
    alone("uds::passed_descriptors_do_not_leak", 64, || {
        let mut rig = echo(drained());
        let mut client = rig.connect_unix();
        let gift = File::open("/dev/null").unwrap();
        let before = descriptors();
        for _ in 0..500 {
            pass(&client, b"gift", &[gift.as_fd()]).unwrap();
            assert_eq!(rig.read_unix(&mut client, 4), b"gift");
        }
        assert_eq!(descriptors(), before);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn bytes_behind_a_passed_descriptor_need_no_further_edge() {
    let config = Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG);
    // Without a reply the client has nothing to read, and so causes no edge.
    let mut rig = rig(config, |_, _| Ok(()));
    let mut client = rig.connect_unix();
    let gift = File::open("/dev/null").unwrap();
    client.write_all(b"in front\n").unwrap();
    pass(&client, b"beside\n", &[gift.as_fd()]).unwrap();
    client.write_all(b"behind\n").unwrap();
    let bodies: Vec<Vec<u8>> = rig.requests(3).into_iter().map(|(_, body)| body).collect();
    assert_eq!(bodies, [&b"in front"[..], b"beside", b"behind"]);
}

/// What a [`Wire`] does and was asked to do.
#[derive(Default)]
struct Script {
    calls: Vec<&'static str>,
    /// How often `flush` still says that it would block.
    stuck: u32,
    /// Bytes that `write` has taken and `flush` has yet to send.
    held: Vec<u8>,
    read: usize,
}

/// A transport over a Unix socket that gathers writes until it is flushed, as TLS does.
struct Wire(UnixStream, Arc<Mutex<Script>>);

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        assert!(!into.is_empty(), "its 0 would look like an end of file");
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
fn what_a_transport_could_not_flush_is_owed_and_flushed_when_it_is_ready_again() {
    let mut rig = echo(drained());
    let (mut client, socket, script) = wire();
    rig.manager.put(socket).unwrap();
    rig.turn();
    script.lock().unwrap().stuck = 1;
    client.write_all(b"first").unwrap();
    rig.requests(1);
    rig.until(|_| script.lock().unwrap().stuck == 0);
    // It owes a reply: it is not read, but any readiness has it flushed first.
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
fn a_transport_s_goodbye_is_said_before_it_closes() {
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
    let shutdown = calls.iter().position(|&call| call == "shutdown").expect("a goodbye");
    assert!(calls[..shutdown].contains(&"flush"), "{calls:?}");
    client.set_nonblocking(false).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(rig.manager.stats().lingering, 1, "until the peer has closed, too");
    drop(client);
    rig.until(|rig| rig.manager.stats().lingering == 0);
    assert_eq!(Arc::strong_count(&script), 1, "the transport is gone");
}

#[test]
fn a_transport_refused_comes_back_as_it_was() {
    let mut manager = Manager::new(drained(), |_, _| Ok(())).unwrap();
    let (mut client, socket, script) = wire();
    let refused = manager.put(socket).unwrap_err();
    assert!(matches!(refused.error(), Error::NotRunning));
    assert!(script.lock().unwrap().calls.is_empty());
    manager.handle().reject(refused.into_socket(), b"closed today").unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert_eq!(said, "closed today");
    assert_eq!(script.lock().unwrap().calls.last(), Some(&"shutdown"));
}
