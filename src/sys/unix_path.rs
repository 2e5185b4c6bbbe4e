//! Unix domain listeners in the file system: bound without a moment in which anyone may connect
//! who should not, over a stale path but never over a live one, and removed at the end.
//!
//! It knows paths and permissions, and nothing of the loop.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

/// How many names for a temporary directory are tried.
const NAMES: u32 = 36 * 36;

/// A path that is ours: removed when this is dropped, if it is still the same socket.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    identity: (u64, u64),
}

impl Claim {
    /// Leaves the path to somebody else.
    pub(crate) fn abandon(mut self) {
        self.path.clear();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // Nothing can be done about a directory that has become read-only.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds `path` with mode 0600.
///
/// The socket is bound in a fresh directory that only we may enter, given its mode there, and
/// then linked to its place: at no moment can others connect, and what is there already is never
/// replaced unseen. A umask would do the first for every file that other threads create meanwhile.
pub(crate) fn bind(path: &Path) -> io::Result<(UnixListener, Claim)> {
    // The bound name is another one, so the length of this one is not checked there.
    SocketAddr::from_pathname(path)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let room = Room::create(parent)?;
    let (inside, aside) = (room.name("s"), room.name("t"));
    let placed = UnixListener::bind(&inside).and_then(|listener| {
        fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
        place(&inside, path, &aside)?;
        Ok((listener, Claim { path: path.to_path_buf(), identity: identity(&inside)? }))
    });
    // Linked to its place, or of no use any more.
    let _ = fs::remove_file(&inside);
    placed
}

/// Links the socket `inside` to `path`, in place of a stale socket but of nothing else. A stale
/// one is first moved to `aside`, where a second look shows that it was not somebody's who came
/// between.
fn place(inside: &Path, path: &Path, aside: &Path) -> io::Result<()> {
    match fs::hard_link(inside, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        placed => return placed,
    }
    refuse_if_taken(path)?;
    fs::rename(path, aside)?;
    let placed = refuse_if_taken(aside).and_then(|()| fs::hard_link(inside, path));
    if placed.is_err() {
        // Back to where it was, unless somebody else is there by now.
        let _ = fs::hard_link(aside, path);
    }
    fs::remove_file(aside)?;
    placed.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => ErrorKind::AddrInUse.into(),
        _ => error,
    })
}

/// A path may be taken if a socket is there that nobody listens on. Links are not followed.
///
/// A datagram socket cannot connect to a stream listener, and the error tells the two cases
/// apart: so a live one is neither bothered by a connection nor waited for if its backlog is full.
fn refuse_if_taken(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "a file is there that is no socket"));
    }
    match UnixDatagram::unbound()?.connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => Err(ErrorKind::AddrInUse.into()),
    }
}

/// A fresh directory of mode 0700, removed when dropped.
struct Room {
    path: PathBuf,
    open: File,
}

impl Room {
    fn create(parent: &Path) -> io::Result<Self> {
        let seed = std::process::id();
        for name in (0..NAMES).map(|offset| seed.wrapping_add(offset) % NAMES) {
            let digit = |value: u32| char::from_digit(value % 36, 36).unwrap_or('0');
            let path = parent.join(format!(".{}{}", digit(name / 36), digit(name)));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Self::enter(path),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, "no free name for a temporary directory"))
    }

    fn enter(path: PathBuf) -> io::Result<Self> {
        match File::open(&path) {
            Ok(open) => Ok(Self { path, open }),
            Err(error) => {
                // Out of descriptors, for one; it may be tried again and again.
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    /// The path of a socket in it: by way of the open directory if it is too long otherwise,
    /// which Linux can do.
    fn name(&self, name: &str) -> PathBuf {
        let direct = self.path.join(name);
        match SocketAddr::from_pathname(&direct) {
            Ok(_) => direct,
            Err(_) => format!("/proc/self/fd/{}/{name}", self.open.as_raw_fd()).into(),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Left behind, it is empty and harmless.
        let _ = fs::remove_dir(&self.path);
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
