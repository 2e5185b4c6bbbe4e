//! In tokio: its reactor watches the descriptor of the pool, its timer the next deadline.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use pool_manager::{Handler, Manager, StopReport};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::{TWICE, descriptor};

/// Turns the manager until a signal has stopped it.
pub(crate) fn run<H: Handler>(
    manager: &mut Manager<H>,
    ready: impl FnOnce(),
) -> Result<StopReport, Box<dyn Error>> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(turn_until_stopped(manager, ready))
}

async fn turn_until_stopped<H: Handler>(
    manager: &mut Manager<H>,
    ready: impl FnOnce(),
) -> Result<StopReport, Box<dyn Error>> {
    let descriptor = watched(descriptor(manager)?)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut stopping = false;
    ready();
    loop {
        let due = manager.next_timeout();
        tokio::select! {
            readable = descriptor.readable() => readable?.clear_ready(),
            () = after(due) => {}
            _ = terminate.recv() => stop(manager, &mut stopping)?,
            _ = interrupt.recv() => stop(manager, &mut stopping)?,
        }
        // tokio tells of an edge once, and one turn may not take all that is behind it.
        loop {
            let turn = manager.turn(Some(Duration::ZERO))?;
            if let Some(report) = turn.stopped {
                return Ok(report);
            }
            if turn.events == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// What tokio now recommends in place of `new` is unsafe, for descriptors that are closed behind
/// its back. This one it owns.
#[allow(deprecated)]
fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

/// `Manager::stop` would keep everybody else on this thread waiting until all are served.
fn stop<H: Handler>(manager: &Manager<H>, stopping: &mut bool) -> Result<(), Box<dyn Error>> {
    if std::mem::replace(stopping, true) {
        return Err(TWICE.into());
    }
    Ok(manager.handle().stop()?)
}

/// For ever, if nothing is planned.
async fn after(due: Option<Duration>) {
    match due {
        Some(due) => sleep(due).await,
        None => std::future::pending().await,
    }
}
