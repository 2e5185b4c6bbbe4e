//! The memory of an idle connection.

use std::io;

use bench::client::{Load, Session, Target};

use crate::cases::SIZE;
use crate::child::Child;
use crate::figures::{Figure, Sample};

/// Connections opened and closed before the measurement, so that one-time allocations of the server
/// are not counted.
const WARM_UP: usize = 16;

/// Returns the resident memory per connection: the growth of the server's resident memory with
/// `connections` connections, each of which has received one reply.
pub(crate) fn sample(child: &Child, connections: usize) -> io::Result<Sample> {
    let load = |connections| Load { connections, size: SIZE, ..Load::new(Target::Tcp(child.addr)) };
    drop(Session::connect(&load(WARM_UP), &mut |_| ())?);
    let before = child.resident()?;
    let on_progress = &mut |_| ();
    let session = Session::connect(&load(connections), on_progress)?;
    let more = child.resident()?.saturating_sub(before);
    drop(session);
    Ok(Sample::default().with(Figure::Memory, more as f64 / connections as f64))
}
