//! The mailbox: the data that the loop shares with other threads.
//!
//! It contains the queue of commands from handles, the permits for connections, and the stats that
//! were published last. All other data belongs to the loop.
//!
//! # Why no wake is lost
//! A sender locks the queue, pushes its command, sets `pending`, and unlocks the queue. It then
//! wakes the loop, but only if `pending` was clear before. The loop first clears `pending`. It then
//! takes commands under the lock. If commands are left, it sets `pending` again. The loop never
//! waits while `pending` is set.
//!
//! The loop therefore misses no command. Either a command is in the queue when the loop takes
//! commands, or the sender of the command finds `pending` clear and wakes the loop. If the loop
//! cleared `pending` after it took commands, it would miss a command that arrives between the two
//! steps.
//!
//! The sender sets `pending` under the lock because of restarts. Without the lock, this could
//! happen: the sender pushes its command; the loop is stopped, is started again, and begins to
//! wait; then the sender sets `pending`. The sender calls the wake function of the previous start,
//! which need not wake the loop any more. The next sender finds `pending` set, and does not wake
//! the loop either.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::command::Command;
use crate::connect_options::ConnectRequest;
use crate::error::Error;
use crate::shared::permits::Permits;
use crate::socket::Socket;
use crate::stats::Stats;

/// Interrupts the backend's wait. It can be called from any thread.
pub type Wake = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Maximum number of commands in the queue of handles. The queue of callbacks has the same maximum.
pub(crate) const COMMANDS_MAX: usize = 65_536;

/// The life cycle of a manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum LifeCycle {
    Stopped,
    Running,
    Stopping,
    Dropped,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    /// Set by [`Mailbox::notify`]. Cleared when the loop takes commands.
    notified: bool,
    wake: Option<Wake>,
    /// Number of requests for stats so far.
    stats_requests: u64,
}

#[derive(Default)]
pub(crate) struct Mailbox {
    pub(crate) permits: Permits,
    /// A [`LifeCycle`]. Only the loop's thread changes it, with the queue locked.
    life_cycle: AtomicU8,
    pending: AtomicBool,
    queue: Mutex<Queue>,
    /// The stats that were published last, and the number of the last request that they answer.
    stats: Mutex<(u64, Stats)>,
    published: Condvar,
}

impl Mailbox {
    /// Queues a command and wakes the loop.
    pub(crate) fn post(&self, command: Command) -> Result<(), Error> {
        let mut queue = lock(&self.queue);
        self.admits(&queue)?;
        queue.commands.push_back(command);
        self.wake(queue);
        Ok(())
    }

    /// Sets `notified` and wakes the loop. Succeeds even if the queue is full.
    pub(crate) fn notify(&self) -> Result<(), Error> {
        let mut queue = lock(&self.queue);
        match self.life_cycle() {
            LifeCycle::Stopped => return Err(Error::NotRunning),
            LifeCycle::Dropped => return Err(Error::Dropped),
            LifeCycle::Running | LifeCycle::Stopping => queue.notified = true,
        }
        self.wake(queue);
        Ok(())
    }

    /// Takes a permit and queues `socket`. On failure, returns the socket.
    pub(crate) fn post_put(&self, socket: Socket) -> Result<(), (Socket, Error)> {
        let mut queue = match self.lock_with_permit() {
            Ok(queue) => queue,
            Err(error) => return Err((socket, error)),
        };
        queue.commands.push_back(Command::Put(socket));
        self.wake(queue);
        Ok(())
    }

    /// Takes a permit and queues a request to connect.
    pub(crate) fn post_connect(&self, request: ConnectRequest) -> Result<(), Error> {
        let mut queue = self.lock_with_permit()?;
        queue.commands.push_back(Command::Connect(Box::new(request)));
        self.wake(queue);
        Ok(())
    }

    /// Locks the queue, and takes a permit for the connection that the caller will queue. If this
    /// fails, no permit is taken.
    fn lock_with_permit(&self) -> Result<MutexGuard<'_, Queue>, Error> {
        let queue = lock(&self.queue);
        self.admits(&queue)?;
        self.check_running()?;
        self.take_permit()?;
        Ok(queue)
    }

    /// Returns an error if new connections are not allowed. New connections are allowed from a
    /// start until the next stop begins.
    pub(crate) fn check_running(&self) -> Result<(), Error> {
        if self.life_cycle() == LifeCycle::Running { Ok(()) } else { Err(Error::NotRunning) }
    }

    /// Takes a permit for a connection. If all permits are taken, counts a refusal and returns an
    /// error.
    pub(crate) fn take_permit(&self) -> Result<(), Error> {
        if self.permits.try_acquire_or_count() {
            Ok(())
        } else {
            Err(Error::Busy { max_workers: self.permits.max() })
        }
    }

    /// Sets `pending`. Wakes the loop if `pending` was clear before. A failed wake is not an error,
    /// because the loop checks `pending` before it waits. The command is then executed in the next
    /// turn.
    fn wake(&self, queue: MutexGuard<'_, Queue>) {
        let wake = queue.wake.clone();
        let first = !self.pending.swap(true, Ordering::AcqRel);
        drop(queue);
        if first {
            if let Some(Err(error)) = wake.map(|wake| wake()) {
                log::warn!(
                    "could not wake the loop, which will run the command in its next turn: {error}"
                );
            }
        }
    }

    /// Returns an error if no command may be queued.
    fn admits(&self, queue: &Queue) -> Result<(), Error> {
        match self.life_cycle() {
            LifeCycle::Stopped => Err(Error::NotRunning),
            LifeCycle::Dropped => Err(Error::Dropped),
            LifeCycle::Running | LifeCycle::Stopping => {
                if queue.commands.len() < COMMANDS_MAX {
                    Ok(())
                } else {
                    Err(Error::QueueFull)
                }
            }
        }
    }

    #[inline]
    pub(crate) fn life_cycle(&self) -> LifeCycle {
        match self.life_cycle.load(Ordering::Relaxed) {
            0 => LifeCycle::Stopped,
            1 => LifeCycle::Running,
            2 => LifeCycle::Stopping,
            _ => LifeCycle::Dropped,
        }
    }

    fn set_life_cycle(&self, life_cycle: LifeCycle) {
        self.life_cycle.store(life_cycle as u8, Ordering::Relaxed);
    }

    /// Returns whether there are commands or a notification to take.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Moves at most `max` queued commands to the back of `into`, and returns whether there was a
    /// notification. If commands are left, `pending` is set again.
    pub(crate) fn take(&self, into: &mut VecDeque<Command>, max: usize) -> bool {
        if !self.pending.swap(false, Ordering::AcqRel) {
            return false;
        }
        let queue = &mut *lock(&self.queue);
        let commands = &mut queue.commands;
        into.extend(commands.drain(..max.min(commands.len())));
        if !commands.is_empty() {
            self.pending.store(true, Ordering::Release);
        }
        mem::take(&mut queue.notified)
    }

    /// Accepts commands from now on. `wake` interrupts the wait of the loop.
    pub(crate) fn open(&self, wake: Wake) {
        let mut queue = lock(&self.queue);
        queue.wake = Some(wake);
        self.set_life_cycle(LifeCycle::Running);
    }

    /// Accepts no more connections. Other commands are still accepted.
    pub(crate) fn set_stopping(&self) {
        let _queue = lock(&self.queue);
        self.set_life_cycle(LifeCycle::Stopping);
    }

    /// Accepts no more commands until the mailbox is opened again. Returns the commands that were
    /// not executed.
    pub(crate) fn close(&self) -> VecDeque<Command> {
        self.close_with(LifeCycle::Stopped)
    }

    /// Accepts no more commands. The mailbox cannot be opened again. The mailbox was closed before,
    /// so no commands are left.
    pub(crate) fn mark_dropped(&self) {
        self.close_with(LifeCycle::Dropped);
    }

    fn close_with(&self, life_cycle: LifeCycle) -> VecDeque<Command> {
        let mut queue = lock(&self.queue);
        self.set_life_cycle(life_cycle);
        queue.wake = None;
        queue.notified = false;
        self.pending.store(false, Ordering::Release);
        mem::take(&mut queue.commands)
    }

    /// Publishes stats as the answer to all requests whose number is at most `request`.
    pub(crate) fn publish(&self, request: u64, stats: &Stats) {
        let mut latest = lock(&self.stats);
        *latest = (latest.0.max(request), *stats);
        self.published.notify_all();
    }

    /// Returns the stats of the loop's next turn. Returns the stats that were published last if no
    /// turn comes within `timeout`, or if the request cannot be queued.
    pub(crate) fn stats(&self, timeout: Duration) -> Stats {
        let request = self.request_stats();
        let latest = lock(&self.stats);
        let Ok(request) = request else { return latest.1 };
        self.published
            .wait_timeout_while(latest, timeout, |latest| latest.0 < request)
            .map_or_else(|poisoned| poisoned.into_inner().0.1, |(latest, _)| latest.1)
    }

    /// Queues a request for stats and returns its number. The number is needed because an answer to
    /// an earlier request may be older than this request.
    fn request_stats(&self) -> Result<u64, Error> {
        let mut queue = lock(&self.queue);
        self.admits(&queue)?;
        queue.stats_requests += 1;
        let request = queue.stats_requests;
        queue.commands.push_back(Command::PublishStats(request));
        self.wake(queue);
        Ok(request)
    }
}

/// Locks a mutex. No code that can panic runs under these locks, so the data of a poisoned mutex is
/// consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = lock(&self.queue);
        f.debug_struct("Mailbox")
            .field("life_cycle", &self.life_cycle())
            .field("commands", &queue.commands.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Instant;

    fn opened() -> (Mailbox, Arc<AtomicUsize>) {
        let (mailbox, wakes) = (Mailbox::default(), Arc::new(AtomicUsize::new(0)));
        let counter = wakes.clone();
        mailbox.open(Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }));
        (mailbox, wakes)
    }

    #[test]
    fn a_million_posts_between_two_turns_wake_the_loop_once() {
        let (mailbox, wakes) = opened();
        let mut taken = VecDeque::new();
        for turn in 1..=16 {
            for _ in 0..COMMANDS_MAX {
                mailbox.post(Command::Stop).unwrap();
            }
            assert!(matches!(mailbox.post(Command::Stop), Err(Error::QueueFull)));
            assert_eq!(wakes.load(Ordering::Relaxed), turn);
            mailbox.take(&mut taken, COMMANDS_MAX - 1);
            assert_eq!(taken.drain(..).count(), COMMANDS_MAX - 1);
            assert!(mailbox.is_pending(), "one command is left");
            mailbox.take(&mut taken, COMMANDS_MAX);
            assert_eq!(taken.drain(..).count(), 1);
            assert!(!mailbox.is_pending());
        }
    }

    #[test]
    fn stats_return_as_soon_as_they_are_published() {
        const TIMEOUT: Duration = Duration::from_secs(20);
        let (mailbox, _wakes) = opened();
        let mut latest = Stats::default();
        mailbox.publish(0, &latest);
        latest.turns = 2;
        let began = Instant::now();
        let stats = thread::scope(|scope| {
            scope.spawn(|| {
                while !mailbox.is_pending() {
                    thread::yield_now();
                }
                mailbox.publish(1, &latest);
            });
            mailbox.stats(TIMEOUT)
        });
        assert_eq!(stats.turns, 2);
        assert!(began.elapsed() < TIMEOUT);
        mailbox.close();
        assert_eq!(
            mailbox.stats(TIMEOUT).turns,
            2,
            "a closed mailbox returns the stats published last"
        );
        assert!(began.elapsed() < TIMEOUT);
    }

    #[test]
    fn a_failed_wake_loses_no_command() {
        let mailbox = Mailbox::default();
        mailbox.open(Arc::new(|| Err(io::ErrorKind::Other.into())));
        mailbox.post(Command::Stop).unwrap();
        assert!(mailbox.is_pending());
        let mut taken = VecDeque::new();
        mailbox.take(&mut taken, 8);
        assert_eq!(taken.len(), 1);
        assert!(!mailbox.is_pending());
    }

    #[test]
    fn close_returns_the_remaining_commands_once() {
        let (mailbox, _wakes) = opened();
        mailbox.post(Command::Stop).unwrap();
        assert_eq!(format!("{mailbox:?}"), "Mailbox { life_cycle: Running, commands: 1, .. }");
        assert_eq!(mailbox.close().len(), 1);
        assert!(matches!(mailbox.post(Command::Stop), Err(Error::NotRunning)));
        mailbox.mark_dropped();
        assert!(matches!(mailbox.post(Command::Stop), Err(Error::Dropped)));
    }
}
