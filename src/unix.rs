//! Unix domain listeners in the file system: bound without a moment in which anyone may connect
//! who should not, over a stale path but never over a live one, and removed at the end.
//!
//! It knows paths and permissions, and nothing of the loop.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// How many names for a temporary directory are tried.
const NAMES: u32 = 36 * 36;

/// A path that is ours: removed when this is dropped, if it is still the same socket.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    identity: (u64, u64),
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
/// then renamed to its place: at no moment can others connect. A umask would do the same for
/// every file that other threads create meanwhile.
pub(crate) fn bind(path: &Path) -> io::Result<(UnixListener, Claim)> {
    // The bound name is another one, so the length of this one is not checked there.
    SocketAddr::from_pathname(path)?;
    refuse_if_taken(path)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let room = Room::create(parent)?;
    let inside = room.0.join("s");
    let listener = UnixListener::bind(&inside)?;
    let moved = fs::set_permissions(&inside, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&inside, path))
        .and_then(|()| identity(path));
    if moved.is_err() {
        let _ = fs::remove_file(&inside);
    }
    Ok((listener, Claim { path: path.to_path_buf(), identity: moved? }))
}

/// A path is free if nothing is there, or a socket that nobody listens on. Links are not followed.
fn refuse_if_taken(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(
                ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            ));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => Err(ErrorKind::AddrInUse.into()),
    }
}

/// A fresh directory of mode 0700, removed when dropped.
struct Room(PathBuf);

impl Room {
    /// Its name is short, since a socket's path may have 107 bytes only.
    fn create(parent: &Path) -> io::Result<Self> {
        let seed = std::process::id();
        for name in (0..NAMES).map(|offset| seed.wrapping_add(offset) % NAMES) {
            let digit = |value: u32| char::from_digit(value % 36, 36).unwrap_or('0');
            let path = parent.join(format!(".{}{}", digit(name / 36), digit(name)));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, "no free name for a temporary directory"))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Left behind, it is empty and harmless.
        let _ = fs::remove_dir(&self.0);
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
