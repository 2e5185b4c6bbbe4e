//! What a silent connection costs in memory.

use std::io;

use bench::client::{Load, Session, Target};

use crate::cases::SIZE;
use crate::child::Child;
use crate::figures::{Figure, Sample};

/// Connections that come and go first, so that what a server allocates once is not counted.
const FIRST: usize = 16;

/// What the server has resident with `connections` that have each been answered once, less what
/// it had with none, a connection.
pub(crate) fn sample(child: &Child, connections: usize) -> io::Result<Sample> {
    let load = |connections| Load { connections, size: SIZE, ..Load::new(Target::Tcp(child.addr)) };
    drop(Session::connect(&load(FIRST), &mut |_| ())?);
    let before = child.resident()?;
    let tell = &mut |_| ();
    let session = Session::connect(&load(connections), tell)?;
    let more = child.resident()?.saturating_sub(before);
    drop(session);
    Ok(Sample::default().with(Figure::Memory, more as f64 / connections as f64))
}
