//! Runs the manager in a tokio runtime. Its reactor watches the manager's descriptor, and its timer
//! waits for the next deadline.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use pool_manager::{Handler, Manager, StopReport};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::{SECOND_SIGNAL, descriptor};

/// Turns the manager until a signal has stopped it. Calls `ready` before the first turn.
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
    let descriptor = watch(descriptor(manager)?)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut stopping = false;
    ready();
    loop {
        let due = manager.next_timeout();
        tokio::select! {
            readable = descriptor.readable() => readable?.clear_ready(),
            () = sleep_or_pend(due) => {}
            _ = terminate.recv() => stop(manager, &mut stopping)?,
            _ = interrupt.recv() => stop(manager, &mut stopping)?,
        }
        // tokio reports an edge only once. The edge may stand for more events than one turn
        // handles.
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

/// Registers the descriptor with the reactor. tokio recommends an unsafe function instead of
/// `AsyncFd::new`, because some types may close their descriptor while it is registered. `OwnedFd`
/// never does this.
#[allow(deprecated)]
fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

/// Begins a graceful stop. `Manager::stop` would block the other tasks of this thread until all
/// connections have been served.
///
/// # Errors
/// A second call fails, which ends the program.
fn stop<H: Handler>(manager: &Manager<H>, stopping: &mut bool) -> Result<(), Box<dyn Error>> {
    if std::mem::replace(stopping, true) {
        return Err(SECOND_SIGNAL.into());
    }
    Ok(manager.handle().stop()?)
}

/// Waits for `due`, or forever if there is no deadline.
async fn sleep_or_pend(due: Option<Duration>) {
    match due {
        Some(due) => sleep(due).await,
        None => std::future::pending().await,
    }
}
