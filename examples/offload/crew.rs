//! Crew: threads that do what would take the loop too long, and answer in the order of the requests.
//!
//! It knows a connection by its id alone, and reaches it through a handle. That a connection is
//! gone it learns in two ways: a flag that the loop sets spares it work nobody waits for, and what
//! it answered too late is handed back to it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pool_manager::{ConnId, Error, Handle};

use crate::factor::factor;

/// Lines that may wait for a thread, of all connections together.
const LINES_MAX: usize = 10_000;
/// The first number that would take too long.
const NUMBER_END: u64 = 10_000_000_000_000_000;
/// How long to wait for a loop that has too many commands waiting.
const PAUSE: Duration = Duration::from_millis(1);

/// Lines of one connection that came together. It is paused until all are answered, so there is
/// one at a time for each.
#[derive(Debug)]
pub(crate) struct Batch {
    id: ConnId,
    /// Nobody waits for an answer any more.
    gone: AtomicBool,
    replies: Mutex<Replies>,
}

#[derive(Debug)]
struct Replies {
    /// Those that are there and could not be sent yet, for one before them is not.
    all: Vec<Option<String>>,
    sent: usize,
}

enum Job {
    Line {
        batch: Arc<Batch>,
        number: usize,
        line: String,
    },
    /// So many bytes of an answer will not reach this connection.
    Lost(ConnId, usize),
}

/// Where the loop leaves work. The threads end once it is dropped.
pub(crate) struct Jobs {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
}

/// Where the threads take it from.
pub(crate) struct Work {
    jobs: Mutex<Receiver<Job>>,
    waiting: Arc<AtomicUsize>,
}

pub(crate) fn jobs() -> (Jobs, Work) {
    let (sender, receiver) = channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let work = Work { jobs: Mutex::new(receiver), waiting: waiting.clone() };
    (Jobs { jobs: sender, waiting }, work)
}

/// What threads did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answered: u64,
    /// Lines that nobody waited for any more.
    pub(crate) spared: u64,
    /// Answers that were told to be lost.
    pub(crate) lost: u64,
}

pub(crate) struct Crew(Vec<JoinHandle<Tally>>);

impl Batch {
    /// Tells those who work on it that they need not.
    pub(crate) fn abandon(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    fn is_abandoned(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Files an answer, and sends all for which those before them were sent. After the last one
    /// the connection goes on.
    fn answer(&self, number: usize, reply: String, handle: &Handle) -> Result<(), Error> {
        // Held while sending, or a later answer could overtake.
        let mut replies = lock(&self.replies);
        replies.all[number] = Some(reply);
        let mut ready = String::new();
        while let Some(reply) = replies.next() {
            ready += &reply;
            ready += "\n";
        }
        if !ready.is_empty() {
            insist(|| handle.send(self.id, ready.as_bytes()))?;
        }
        if replies.sent == replies.all.len() {
            insist(|| handle.resume(self.id))?;
        }
        Ok(())
    }
}

impl Replies {
    fn next(&mut self) -> Option<String> {
        let reply = self.all.get_mut(self.sent)?.take()?;
        self.sent += 1;
        Some(reply)
    }
}

impl Jobs {
    /// Hands over lines to be answered in this order; `None` if there is no room for them.
    pub(crate) fn hand_over(&self, id: ConnId, lines: Vec<String>) -> Option<Arc<Batch>> {
        // Only this thread adds to it, so there is room until it has.
        if self.waiting.load(Ordering::Relaxed) + lines.len() > LINES_MAX {
            return None;
        }
        self.waiting.fetch_add(lines.len(), Ordering::Relaxed);
        let replies = Mutex::new(Replies { all: vec![None; lines.len()], sent: 0 });
        let batch = Arc::new(Batch { id, gone: AtomicBool::new(false), replies });
        for (number, line) in lines.into_iter().enumerate() {
            self.post(Job::Line { batch: batch.clone(), number, line });
        }
        Some(batch)
    }

    /// Tells the threads that an answer is lost.
    pub(crate) fn lost(&self, id: ConnId, bytes: usize) {
        self.post(Job::Lost(id, bytes));
    }

    fn post(&self, job: Job) {
        // It fails only if all threads have panicked.
        if self.jobs.send(job).is_err() {
            log::error!("nobody is there to do the work");
        }
    }
}

impl Crew {
    pub(crate) fn start(threads: usize, work: Work, handle: &Handle) -> Self {
        let work = Arc::new(work);
        let start = |_| {
            let (work, handle) = (work.clone(), handle.clone());
            thread::spawn(move || toil(&work, &handle))
        };
        Self((0..threads).map(start).collect())
    }

    /// Waits for the threads, which do what is left; [`Jobs`] has to be dropped before.
    pub(crate) fn finish(self) -> Tally {
        let tallies = self.0.into_iter().filter_map(|thread| thread.join().ok());
        tallies.fold(Tally::default(), |all, one| Tally {
            answered: all.answered + one.answered,
            spared: all.spared + one.spared,
            lost: all.lost + one.lost,
        })
    }
}

/// What one thread does until there is nobody who could leave it more.
fn toil(work: &Work, handle: &Handle) -> Tally {
    let mut tally = Tally::default();
    loop {
        // The lock is held while it waits: one waits for work, the others for the lock.
        let job = lock(&work.jobs).recv();
        match job {
            Ok(Job::Line { batch, number, line }) => {
                work.waiting.fetch_sub(1, Ordering::Relaxed);
                let Some(reply) = reply(&line, &|| batch.is_abandoned()) else {
                    tally.spared += 1;
                    continue;
                };
                match batch.answer(number, reply, handle) {
                    Ok(()) => tally.answered += 1,
                    Err(error) => {
                        tally.lost += 1;
                        log::info!("{}: an answer is lost: {error}", batch.id);
                    }
                }
            }
            Ok(Job::Lost(id, bytes)) => {
                tally.lost += 1;
                log::info!("{id}: an answer is lost, of {bytes} bytes: nobody was there any more");
            }
            Err(_) => return tally,
        }
    }
}

/// The answer to a line, unless nobody waits for it any more.
fn reply(line: &str, is_abandoned: &dyn Fn() -> bool) -> Option<String> {
    match line.parse() {
        _ if is_abandoned() => None,
        Ok(number @ ..NUMBER_END) => factor(number, is_abandoned),
        _ => Some(format!("! a line is a whole number below {NUMBER_END}")),
    }
}

/// Tries again while the loop has too many commands waiting, which passes.
fn insist(command: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
    loop {
        match command() {
            Err(Error::QueueFull) => thread::sleep(PAUSE),
            done => return done,
        }
    }
}

/// Nothing is half done under these locks, so a poisoned one is whole all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
