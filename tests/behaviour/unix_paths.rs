//! Unix socket paths: modes, stale and live paths, long paths, and managers that race for a path.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use pool_manager::{Config, Conn, Error, Framing, Manager};

use crate::support::{Dir, Rig, TIMEOUT, alone, echo};

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(Duration::from_secs(600))
}

impl Dir {
    /// Returns a path of exactly `length` bytes whose last component is `name`. Creates its parent.
    fn long_path(&self, length: usize, name: &str) -> PathBuf {
        let fill = length - self.0.as_os_str().len() - name.len() - 2;
        let parent = self.0.join("d".repeat(fill));
        fs::create_dir_all(&parent).unwrap();
        let path = parent.join(name);
        assert_eq!(path.as_os_str().len(), length);
        path
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn connect(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client
}

/// Returns the message of a refused `listen_unix`.
fn refusal(outcome: Result<(), Error>) -> String {
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Listen { .. }), "{error}");
    error.to_string()
}

impl<F> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// Asserts that a client that connects to `path` is served.
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
fn a_unix_socket_never_has_a_mode_other_than_0600() {
    let dir = Dir::new();
    let path = dir.path("socket");
    let (socket, (done, done_receiver)) = (path.clone(), channel::<()>());
    let watcher = thread::spawn(move || {
        let mut modes = std::collections::BTreeSet::new();
        while done_receiver.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            if let Ok(metadata) = fs::symlink_metadata(&socket) {
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
    assert_eq!(dir.names(), ["socket"], "the standard library does not remove it");
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
    let message = refusal(rig.manager.listen_unix(&path));
    assert!(message.contains("in use") && message.contains(path.to_str().unwrap()), "{message}");
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
    let mut clients = Vec::new();
    loop {
        let client = stream().unwrap();
        client.set_nonblocking(true).unwrap();
        let full = client.connect(&address).is_err();
        clients.push(client);
        if full {
            break;
        }
    }
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut manager = Manager::new(drained(), |_, _| Ok(())).unwrap();
        manager.start().unwrap();
        sender.send(refusal(manager.listen_unix(&path)))
    });
    let message =
        receiver.recv_timeout(Duration::from_secs(5)).expect("listen_unix does not block");
    assert!(message.contains("in use"), "{message}");
}

#[test]
fn a_path_that_is_not_a_socket_is_refused_and_left_alone() {
    let dir = Dir::new();
    fs::write(dir.path("file"), "precious").unwrap();
    drop(UnixListener::bind(dir.path("stale")).unwrap());
    symlink(dir.path("stale"), dir.path("link")).unwrap();
    symlink(dir.path("nowhere"), dir.path("dangling")).unwrap();
    fs::create_dir(dir.path("directory")).unwrap();
    let before = dir.names();
    let mut rig = echo(drained());
    for name in ["file", "link", "dangling", "directory"] {
        let message = refusal(rig.manager.listen_unix(dir.path(name)));
        assert!(message.contains("is not a socket"), "{name}: {message}");
    }
    assert_eq!(dir.names(), before);
    assert_eq!(fs::read(dir.path("file")).unwrap(), b"precious");
    assert!(fs::symlink_metadata(dir.path("link")).unwrap().file_type().is_symlink());
}

#[test]
fn a_path_in_a_missing_directory_is_an_error() {
    let dir = Dir::new();
    let mut rig = echo(drained());
    assert!(!refusal(rig.manager.listen_unix(dir.path("none/socket"))).is_empty());
    assert!(!refusal(rig.manager.listen_unix("")).is_empty());
    assert!(dir.names().is_empty());
}

#[test]
fn the_path_is_removed_at_stop_and_on_drop() {
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
fn a_path_that_was_replaced_by_another_socket_is_not_removed() {
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

#[test]
fn a_path_of_107_bytes_is_served_and_a_longer_one_refused() {
    for name in [40, 5, 1] {
        let dir = Dir::new();
        let mut rig = echo(drained());
        let longest = dir.long_path(107, &"n".repeat(name));
        rig.manager.listen_unix(&longest).unwrap_or_else(|error| panic!("{name}: {error}"));
        rig.assert_serves(&longest);
        let message = refusal(rig.manager.listen_unix(dir.long_path(108, &"n".repeat(name))));
        assert_eq!(message.lines().count(), 1);
    }
}

/// If a manager checks whether a path is in use, the manager that listens on the path must not get
/// an event.
#[test]
fn a_live_server_gets_no_event_from_attempts_to_use_its_path() {
    let dir = Dir::new();
    let path = dir.0.join("s");
    let mut rig = echo(drained());
    rig.manager.listen_unix(&path).unwrap();
    let mut other = echo(drained());
    for _ in 0..3 {
        assert!(rig.manager.listen_unix(&path).is_err());
        assert!(other.manager.listen_unix(&path).is_err());
    }
    rig.quiet();
    assert_eq!((rig.manager.stats().accepts, rig.manager.stats().events), (0, 0));
    assert_eq!(names(&dir.0), ["s"]);
}

/// A call of `listen_unix` needs several descriptors. Each round leaves one more descriptor free
/// than the round before, until the call succeeds.
#[test]
fn listen_unix_without_descriptors_leaves_nothing_behind() {
    alone("unix_paths::listen_unix_without_descriptors_leaves_nothing_behind", 64, || {
        let dir = Dir::new();
        let path = dir.0.join("s");
        let mut rig = echo(drained());
        let mut failures = 0;
        for free in 0.. {
            let next_file = || fs::File::open("/dev/null").ok();
            let mut open: Vec<fs::File> = std::iter::from_fn(next_file).collect();
            open.truncate(open.len() - free);
            let outcome = rig.manager.listen_unix(&path);
            drop(open);
            if outcome.is_ok() {
                break;
            }
            failures += 1;
            assert_eq!(names(&dir.0), [""; 0], "with {free} descriptors");
        }
        assert!(failures >= 2, "no descriptor for the directory, then none for the socket");
    });
}

/// Waits until `threads` threads have arrived. A [`std::sync::Barrier`] would wake the threads one
/// after the other. Here, all threads continue at the same moment.
fn wait_for_all(arrived: &AtomicU32, threads: u32) {
    arrived.fetch_add(1, Ordering::SeqCst);
    while arrived.load(Ordering::SeqCst) < threads {
        thread::yield_now();
    }
}

/// Starts a manager, and listens on `path` at the same moment as the other threads. Returns `None`
/// if the manager does not listen. Otherwise returns whether a client received a reply.
fn start_at(path: &Path, threads: u32, arrived: &AtomicU32) -> Option<bool> {
    let mut manager = Manager::new(drained(), |conn, body| conn.write_all(body)).unwrap();
    manager.start().unwrap();
    wait_for_all(arrived, threads);
    let listens = match manager.listen_unix(path) {
        Ok(()) => true,
        Err(Error::Listen { .. }) => false,
        Err(error) => panic!("{error}"),
    };
    wait_for_all(arrived, 2 * threads);
    let mut reached = false;
    if listens {
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(b"hello").unwrap();
        client.set_nonblocking(true).unwrap();
        let deadline = std::time::Instant::now() + TIMEOUT;
        while !reached && std::time::Instant::now() < deadline {
            manager.turn(Some(Duration::from_millis(1))).unwrap();
            reached = match client.read(&mut [0; 5]) {
                Ok(count) => count == 5,
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                Err(error) => panic!("{error}"),
            };
        }
    }
    wait_for_all(arrived, 3 * threads);
    listens.then_some(reached)
}

/// Runs 300 rounds, each on a new path. In each round, `threads` threads each start a manager, and
/// all managers try to listen on the path at the same moment. Returns the number of rounds in which
/// no manager listens.
#[track_caller]
fn race(threads: u32, prepare: impl Fn(&Path)) -> usize {
    let dir = Dir::new();
    let mut none = 0;
    for round in 0..300 {
        let path = dir.0.join(format!("s{round}"));
        prepare(&path);
        let arrived = AtomicU32::new(0);
        let outcomes: Vec<Option<bool>> = thread::scope(|scope| {
            let all: Vec<_> =
                (0..threads).map(|_| scope.spawn(|| start_at(&path, threads, &arrived))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let listening: Vec<bool> = outcomes.into_iter().flatten().collect();
        assert!(listening.len() <= 1, "round {round}: {} listen", listening.len());
        assert!(listening.iter().all(|&reached| reached), "round {round}: not reached");
        none += usize::from(listening.is_empty());
        let left = names(&dir.0);
        assert!(left.iter().all(|name| !name.starts_with('.')), "round {round}: {left:?}");
    }
    none
}

#[test]
fn exactly_one_of_two_managers_started_at_once_on_a_free_path_listens() {
    assert_eq!(race(2, |_| {}), 0);
}

#[test]
fn at_most_one_of_two_managers_started_at_once_on_a_stale_path_listens() {
    race(2, |path| drop(UnixListener::bind(path).unwrap()));
}

#[test]
fn the_longest_path_can_be_used_again_and_again() {
    let dir = Dir::new();
    for name in ["s", "socket"] {
        let path = dir.long_path(107, name);
        for _ in 0..2 {
            let mut rig = echo(drained());
            rig.manager.listen_unix(&path).unwrap();
            let mut other = echo(drained());
            let refused = other.manager.listen_unix(&path).unwrap_err();
            assert!(refused.to_string().contains("in use"), "{refused}");
            let _client = UnixStream::connect(&path).unwrap();
            rig.until(|rig| rig.manager.stats().accepted == 1);
            drop(rig);
            assert!(names(path.parent().unwrap()).is_empty());
        }
        let refused = echo(drained()).manager.listen_unix(dir.long_path(108, name));
        assert!(refused.is_err(), "a client could not connect to it");
    }
}

#[test]
fn the_longest_path_is_replaced_if_it_is_stale() {
    let dir = Dir::new();
    for name in ["socket", "s"] {
        let path = dir.long_path(107, name);
        drop(UnixListener::bind(&path).unwrap());
        let mut rig = echo(drained());
        rig.manager.listen_unix(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let _client = UnixStream::connect(&path).unwrap();
        rig.until(|rig| rig.manager.stats().accepted == 1);
        assert_eq!(names(path.parent().unwrap()), [name]);
    }
}
