//! Mailbox: the one place where other threads meet the loop.
//!
//! It holds the commands that handles queue, the places they take, and the stats they read; the
//! loop owns everything else. It knows what a command is, not what it does.
//!
//! # Why no wake is lost
//! A sender pushes the command, *then* sets `pending`, both under the lock, and wakes the loop only
//! if `pending` was clear. The loop clears `pending`, *then* takes from the queue under the lock,
//! sets `pending` again if it leaves some, and never waits while `pending` is set. So a command is
//! either in the queue when the loop takes from it, or its sender finds `pending` clear and wakes
//! the loop. The other order would lose the command that arrives between taking and clearing. And
//! a sender that set `pending` after the lock could do so when the loop has been stopped, started
//! again and gone to wait: it would wake the loop that was, and the next sender none.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::command::Command;
use crate::connect_options::ConnectRequest;
use crate::error::Error;
use crate::shared::permits::Permits;
use crate::socket::Socket;
use crate::stats::Stats;

/// Interrupts the backend's wait, from any thread.
pub type Wake = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Commands that may be queued at a time, by handles and by callbacks each.
pub(crate) const COMMANDS_MAX: usize = 65_536;

/// Where a manager is in its life.
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
    wake: Option<Wake>,
    /// How often stats were asked for.
    questions: u64,
}

#[derive(Default)]
pub(crate) struct Mailbox {
    pub(crate) permits: Permits,
    /// A [`LifeCycle`]. Only the loop's thread changes it, with the queue locked.
    life_cycle: AtomicU8,
    pending: AtomicBool,
    queue: Mutex<Queue>,
    /// The last stats published, and the number of the last question they answer.
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

    /// Takes a place for `socket` and queues it, or gives it back.
    pub(crate) fn post_put(&self, socket: Socket) -> Result<(), (Socket, Error)> {
        let mut queue = match self.take_place() {
            Ok(queue) => queue,
            Err(error) => return Err((socket, error)),
        };
        queue.commands.push_back(Command::Put(socket));
        self.wake(queue);
        Ok(())
    }

    /// Takes a place for a connection that is to begin, and queues it.
    pub(crate) fn post_connect(&self, call: ConnectRequest) -> Result<(), Error> {
        let mut queue = self.take_place()?;
        queue.commands.push_back(Command::Connect(Box::new(call)));
        self.wake(queue);
        Ok(())
    }

    /// The queue, once a place is taken for what is to be queued.
    fn take_place(&self) -> Result<MutexGuard<'_, Queue>, Error> {
        let queue = lock(&self.queue);
        self.admits(&queue)?;
        self.check_running()?;
        self.take_permit()?;
        Ok(queue)
    }

    /// Fails unless connections may begin: not before a start, nor after a stop has begun.
    pub(crate) fn check_running(&self) -> Result<(), Error> {
        if self.life_cycle() == LifeCycle::Running { Ok(()) } else { Err(Error::NotRunning) }
    }

    /// Takes a permit for a connection. Counts a refusal if all are taken.
    pub(crate) fn take_permit(&self) -> Result<(), Error> {
        if self.permits.try_acquire_or_count() {
            Ok(())
        } else {
            Err(Error::Busy { max_workers: self.permits.max() })
        }
    }

    /// A wake that fails is not an error: the loop looks at `pending` before it waits, so the
    /// command is done at the next turn in any case.
    fn wake(&self, queue: MutexGuard<'_, Queue>) {
        let wake = queue.wake.clone();
        let first = !self.pending.swap(true, Ordering::AcqRel);
        drop(queue);
        if first {
            if let Some(Err(error)) = wake.map(|wake| wake()) {
                log::warn!(
                    "could not wake the loop, which will see to it at its next turn: {error}"
                );
            }
        }
    }

    /// Whether a command may be queued.
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

    /// Whether there is something to take.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Moves at most `max` queued commands to the back of `into`; what is left stays pending.
    pub(crate) fn take(&self, into: &mut VecDeque<Command>, max: usize) {
        if self.pending.swap(false, Ordering::AcqRel) {
            let commands = &mut lock(&self.queue).commands;
            into.extend(commands.drain(..max.min(commands.len())));
            if !commands.is_empty() {
                self.pending.store(true, Ordering::Release);
            }
        }
    }

    /// Lets commands in, from a loop that `wake` interrupts.
    pub(crate) fn open(&self, wake: Wake) {
        let mut queue = lock(&self.queue);
        queue.wake = Some(wake);
        self.set_life_cycle(LifeCycle::Running);
    }

    /// Lets no more sockets in.
    pub(crate) fn refuse_puts(&self) {
        let _queue = lock(&self.queue);
        self.set_life_cycle(LifeCycle::Stopping);
    }

    /// Lets no more commands in, until it is opened again, and gives back those that are left.
    pub(crate) fn close(&self) -> VecDeque<Command> {
        self.shut(LifeCycle::Stopped)
    }

    /// Lets nothing in any more, for good; it was closed before, so nothing is left.
    pub(crate) fn abandon(&self) {
        self.shut(LifeCycle::Dropped);
    }

    fn shut(&self, life_cycle: LifeCycle) -> VecDeque<Command> {
        let mut queue = lock(&self.queue);
        self.set_life_cycle(life_cycle);
        queue.wake = None;
        self.pending.store(false, Ordering::Release);
        std::mem::take(&mut queue.commands)
    }

    /// Answers all questions up to this one.
    pub(crate) fn publish(&self, question: u64, stats: &Stats) {
        let mut latest = lock(&self.stats);
        *latest = (latest.0.max(question), *stats);
        self.published.notify_all();
    }

    /// The stats as of the loop's next turn, or as last published if none comes within `patience`.
    pub(crate) fn stats(&self, patience: Duration) -> Stats {
        let question = self.ask();
        let latest = lock(&self.stats);
        let Ok(question) = question else { return latest.1 };
        self.published
            .wait_timeout_while(latest, patience, |latest| latest.0 < question)
            .map_or_else(|poisoned| poisoned.into_inner().0.1, |(latest, _)| latest.1)
    }

    /// Numbered, or an answer to somebody else, made before this question, could be taken for
    /// the answer to it.
    fn ask(&self) -> Result<u64, Error> {
        let mut queue = lock(&self.queue);
        self.admits(&queue)?;
        queue.questions += 1;
        let question = queue.questions;
        queue.commands.push_back(Command::PublishStats(question));
        self.wake(queue);
        Ok(question)
    }
}

/// No code that can panic runs under these locks, so a poisoned one is whole all the same.
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
            assert!(mailbox.is_pending(), "one is left");
            mailbox.take(&mut taken, COMMANDS_MAX);
            assert_eq!(taken.drain(..).count(), 1);
            assert!(!mailbox.is_pending());
        }
    }

    #[test]
    fn who_waits_for_stats_has_them_as_soon_as_they_are_published() {
        const PATIENCE: Duration = Duration::from_secs(20);
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
            mailbox.stats(PATIENCE)
        });
        assert_eq!(stats.turns, 2);
        assert!(began.elapsed() < PATIENCE);
        mailbox.close();
        assert_eq!(mailbox.stats(PATIENCE).turns, 2, "the last ones, when nobody is asked");
        assert!(began.elapsed() < PATIENCE);
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
    fn commands_left_at_the_end_are_given_back_once() {
        let (mailbox, _wakes) = opened();
        mailbox.post(Command::Stop).unwrap();
        assert_eq!(format!("{mailbox:?}"), "Mailbox { life_cycle: Running, commands: 1, .. }");
        assert_eq!(mailbox.close().len(), 1);
        assert!(matches!(mailbox.post(Command::Stop), Err(Error::NotRunning)));
        mailbox.abandon();
        assert!(matches!(mailbox.post(Command::Stop), Err(Error::Dropped)));
    }
}
