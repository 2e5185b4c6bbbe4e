//! Who runs where: servers on one core, their client on another, each with a core to itself.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The two cores used, if there are two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) server: usize,
    pub(crate) client: usize,
}

impl Cores {
    /// The first two cores that this process may use.
    pub(crate) fn choose() -> io::Result<Option<Self>> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        Ok(cores.next().zip(cores.next()).map(|(server, client)| Self { server, client }))
    }
}

/// Keeps this thread, and those it will start, on a core.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    if core >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    only.set(core);
    sched_setaffinity(None, &only)?;
    Ok(())
}
