//! Unix domain listeners in the file system.
//!
//! A listener's path has mode 0600 from the moment at which it exists. Binding replaces a stale
//! socket, but never a socket that is in use. The path is removed when the listener closes.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

/// Number of possible names for a temporary directory.
const NAMES: u32 = 36 * 36;

/// A bound path. Dropping this value removes the path if the same socket is still there.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    identity: (u64, u64),
}

impl Claim {
    /// Gives up the path without removing it.
    pub(crate) fn abandon(mut self) {
        self.path.clear();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // This call fails, for example, if the directory has become read-only. The path then
            // stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds `path` with mode 0600.
///
/// The socket is bound in a new directory that only this user may enter. It gets its mode there,
/// and is then linked to `path`. Other users can therefore never connect, and an existing file is
/// never replaced by accident. A umask would also set the mode, but it would apply to files that
/// other threads create at the same time.
pub(crate) fn bind(path: &Path) -> io::Result<(UnixListener, Claim)> {
    // Check the length of `path` here. The kernel does not check it, because the socket is bound
    // under another name.
    SocketAddr::from_pathname(path)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let dir = PrivateDir::create(parent)?;
    let (inside, aside) = (dir.name("s"), dir.name("t"));
    let placed = UnixListener::bind(&inside).and_then(|listener| {
        fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
        place(&inside, path, &aside)?;
        Ok((listener, Claim { path: path.to_path_buf(), identity: identity(&inside)? }))
    });
    // Remove the temporary name. Either the socket is linked to `path`, or it is not needed.
    let _ = fs::remove_file(&inside);
    placed
}

/// Links the socket `inside` to `path`. A stale socket at `path` is replaced. Any other file at
/// `path` causes an error. The stale socket is first renamed to `aside`. It is then checked again,
/// because another process may have replaced it in between.
fn place(inside: &Path, path: &Path, aside: &Path) -> io::Result<()> {
    match fs::hard_link(inside, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        placed => return placed,
    }
    refuse_if_taken(path)?;
    fs::rename(path, aside)?;
    let placed = refuse_if_taken(aside).and_then(|()| fs::hard_link(inside, path));
    if placed.is_err() {
        // Restore the socket, unless another process has created the path again.
        let _ = fs::hard_link(aside, path);
    }
    fs::remove_file(aside)?;
    placed.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => ErrorKind::AddrInUse.into(),
        _ => error,
    })
}

/// Returns an error if `path` is not a socket, or if a process listens on it. Symbolic links are
/// not followed.
///
/// The check uses a datagram socket, which cannot connect to a stream listener. The error of the
/// attempt shows whether a listener exists. A live listener therefore sees no connection, and a
/// full backlog does not block the check.
fn refuse_if_taken(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "the path exists and is not a socket",
        ));
    }
    match UnixDatagram::unbound()?.connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => Err(ErrorKind::AddrInUse.into()),
    }
}

/// A new directory of mode 0700. It is removed when dropped.
struct PrivateDir {
    path: PathBuf,
    open: File,
}

impl PrivateDir {
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
                // Opening fails, for example, if no descriptor is left. The caller may try again,
                // so remove the directory.
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    /// Returns the path of a socket in this directory. If that path is too long for a socket
    /// address, returns a path that refers to the open directory by its descriptor. Linux supports
    /// such paths.
    fn name(&self, name: &str) -> PathBuf {
        let direct = self.path.join(name);
        match SocketAddr::from_pathname(&direct) {
            Ok(_) => direct,
            Err(_) => format!("/proc/self/fd/{}/{name}", self.open.as_raw_fd()).into(),
        }
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // If this fails, an empty directory stays, which is harmless.
        let _ = fs::remove_dir(&self.path);
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
