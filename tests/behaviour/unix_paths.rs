//! Unix paths that somebody else uses, or wants, at the same moment; and the longest ones.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use pool_manager::{Config, Error, Framing, Manager};

use crate::support::{Dir, PATIENCE, alone, echo};

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(Duration::from_secs(600))
}

impl Dir {
    /// A path of exactly `length` bytes whose last part is `name`.
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

/// Whoever asks whether a path is taken leaves no trace in the one who has it.
#[test]
fn a_live_server_does_not_notice_that_somebody_tried_its_path() {
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

/// Each attempt needs a few descriptors, one after the other.
#[test]
fn an_attempt_that_runs_out_of_descriptors_leaves_nothing_behind() {
    alone("unix_paths::an_attempt_that_runs_out_of_descriptors_leaves_nothing_behind", 64, || {
        let dir = Dir::new();
        let path = dir.0.join("s");
        let mut rig = echo(drained());
        let mut failures = 0;
        for free in 0.. {
            let hog = || fs::File::open("/dev/null").ok();
            let mut hogs: Vec<fs::File> = std::iter::from_fn(hog).collect();
            hogs.truncate(hogs.len() - free);
            let outcome = rig.manager.listen_unix(&path);
            drop(hogs);
            if outcome.is_ok() {
                break;
            }
            failures += 1;
            assert_eq!(names(&dir.0), [""; 0], "with {free} descriptors");
        }
        assert!(failures >= 2, "the directory and the socket");
    });
}

/// Lets everybody go at the same moment; a [`std::sync::Barrier`] wakes one after the other.
fn gather(here: &AtomicU32, starters: u32) {
    here.fetch_add(1, Ordering::SeqCst);
    while here.load(Ordering::SeqCst) < starters {
        thread::yield_now();
    }
}

/// What one of the starters came to: whether it listens, and was then reached.
fn start_at(path: &Path, starters: u32, here: &AtomicU32) -> Option<bool> {
    let mut manager = Manager::new(drained(), |conn, body| conn.write_all(body)).unwrap();
    manager.start().unwrap();
    gather(here, starters);
    let listens = match manager.listen_unix(path) {
        Ok(()) => true,
        Err(Error::Listen { .. }) => false,
        Err(error) => panic!("{error}"),
    };
    gather(here, 2 * starters);
    let mut reached = false;
    if listens {
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(b"hello").unwrap();
        client.set_nonblocking(true).unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        while !reached && std::time::Instant::now() < deadline {
            manager.turn(Some(Duration::from_millis(1))).unwrap();
            reached = match client.read(&mut [0; 5]) {
                Ok(count) => count == 5,
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                Err(error) => panic!("{error}"),
            };
        }
    }
    gather(here, 3 * starters);
    listens.then_some(reached)
}

/// Lets so many start at once on each of 300 paths; how often none of them did in the end.
#[track_caller]
fn race(starters: u32, prepare: impl Fn(&Path)) -> usize {
    let dir = Dir::new();
    let mut none = 0;
    for lap in 0..300 {
        let path = dir.0.join(format!("s{lap}"));
        prepare(&path);
        let here = AtomicU32::new(0);
        let outcomes: Vec<Option<bool>> = thread::scope(|scope| {
            let all: Vec<_> =
                (0..starters).map(|_| scope.spawn(|| start_at(&path, starters, &here))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let listening: Vec<bool> = outcomes.into_iter().flatten().collect();
        assert!(listening.len() <= 1, "lap {lap}: {} believe that they listen", listening.len());
        assert!(listening.iter().all(|&reached| reached), "lap {lap}: it cannot be reached");
        none += usize::from(listening.is_empty());
        let left = names(&dir.0);
        assert!(left.iter().all(|name| !name.starts_with('.')), "lap {lap}: {left:?}");
    }
    none
}

#[test]
fn of_two_that_start_at_once_on_a_free_path_exactly_one_listens() {
    assert_eq!(race(2, |_| {}), 0);
}

#[test]
fn of_two_that_start_at_once_on_a_stale_path_at_most_one_listens() {
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
        assert!(refused.is_err(), "nobody could connect to it");
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
