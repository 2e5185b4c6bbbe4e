//! Threads that do long work and send the answers in the order of the requests.
//!
//! This module knows a connection only by its ID and reaches it through a handle. The handler tells
//! this module in two ways that a connection has closed. It cancels the batch, so that the threads
//! skip the rest of the batch. It also reports answers that were sent too late.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pool_manager::{ConnId, Error, Handle};

use crate::factor::factor;

/// Maximum number of queued lines of all connections together.
const LINES_MAX: usize = 10_000;
/// Numbers from here on are rejected, because factoring them would take too long.
const NUMBER_END: u64 = 10_000_000_000_000_000;
/// Delay between two attempts while the manager's command queue is full.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// The lines of one request. Its connection is paused until all of them are answered, so a
/// connection has at most one batch.
#[derive(Debug)]
pub(crate) struct Batch {
    id: ConnId,
    /// True if the connection has closed.
    cancelled: AtomicBool,
    replies: Mutex<Replies>,
}

#[derive(Debug)]
struct Replies {
    /// One entry per line. A reply is kept here until all earlier replies have been sent.
    all: Vec<Option<String>>,
    /// Number of replies that have been sent.
    sent: usize,
}

enum Job {
    Line {
        batch: Arc<Batch>,
        number: usize,
        line: String,
    },
    /// This many bytes of an answer were not sent to this connection.
    Lost(ConnId, usize),
}

/// The sending half of the job queue. The threads end after it is dropped.
pub(crate) struct Jobs {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
}

/// The receiving half of the job queue, shared by the threads.
pub(crate) struct Work {
    jobs: Mutex<Receiver<Job>>,
    waiting: Arc<AtomicUsize>,
}

/// Creates the job queue.
pub(crate) fn jobs() -> (Jobs, Work) {
    let (sender, receiver) = channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let work = Work { jobs: Mutex::new(receiver), waiting: waiting.clone() };
    (Jobs { jobs: sender, waiting }, work)
}

/// The work of the threads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Lines whose answer was computed.
    pub(crate) answered: u64,
    /// Lines that were skipped because their connection had closed.
    pub(crate) skipped: u64,
    /// Answers that were not sent because their connection had closed.
    pub(crate) lost: u64,
}

pub(crate) struct Threads(Vec<JoinHandle<Counts>>);

impl Batch {
    /// Makes the threads skip the rest of the batch.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Stores the reply to line `number`. Then sends all replies that are next in order. Resumes
    /// the connection after the last one.
    fn answer(&self, number: usize, reply: String, handle: &Handle) -> Result<(), Error> {
        // The lock is held while sending, so that a later reply cannot overtake.
        let mut replies = lock(&self.replies);
        replies.all[number] = Some(reply);
        let mut ready = String::new();
        while let Some(reply) = replies.next() {
            ready += &reply;
            ready += "\n";
        }
        if !ready.is_empty() {
            retry(|| handle.send(self.id, ready.as_bytes()))?;
        }
        if replies.sent == replies.all.len() {
            retry(|| handle.resume(self.id))?;
        }
        Ok(())
    }
}

impl Replies {
    /// Takes the reply that is next in order, if it is complete.
    fn next(&mut self) -> Option<String> {
        let reply = self.all.get_mut(self.sent)?.take()?;
        self.sent += 1;
        Some(reply)
    }
}

impl Jobs {
    /// Queues the lines of a request. Returns `None` if the queue is full.
    pub(crate) fn submit(&self, id: ConnId, lines: Vec<String>) -> Option<Arc<Batch>> {
        // Only this thread increases the count, so checking first and adding later is safe.
        if self.waiting.load(Ordering::Relaxed) + lines.len() > LINES_MAX {
            return None;
        }
        self.waiting.fetch_add(lines.len(), Ordering::Relaxed);
        let replies = Mutex::new(Replies { all: vec![None; lines.len()], sent: 0 });
        let batch = Arc::new(Batch { id, cancelled: AtomicBool::new(false), replies });
        for (number, line) in lines.into_iter().enumerate() {
            self.post(Job::Line { batch: batch.clone(), number, line });
        }
        Some(batch)
    }

    /// Counts and logs an answer that was not sent.
    pub(crate) fn lost(&self, id: ConnId, bytes: usize) {
        self.post(Job::Lost(id, bytes));
    }

    fn post(&self, job: Job) {
        // Fails only if all threads have panicked.
        if self.jobs.send(job).is_err() {
            log::error!("no thread is left to do the work");
        }
    }
}

impl Threads {
    pub(crate) fn start(threads: usize, work: Work, handle: &Handle) -> Self {
        let work = Arc::new(work);
        let start = |_| {
            let (work, handle) = (work.clone(), handle.clone());
            thread::spawn(move || run(&work, &handle))
        };
        Self((0..threads).map(start).collect())
    }

    /// Waits until the threads have done the remaining jobs. [`Jobs`] must be dropped before.
    pub(crate) fn finish(self) -> Counts {
        let counts = self.0.into_iter().filter_map(|thread| thread.join().ok());
        counts.fold(Counts::default(), |all, one| Counts {
            answered: all.answered + one.answered,
            skipped: all.skipped + one.skipped,
            lost: all.lost + one.lost,
        })
    }
}

/// Does jobs until the sending half of the queue is dropped.
fn run(work: &Work, handle: &Handle) -> Counts {
    let mut counts = Counts::default();
    loop {
        // One thread holds the lock while it waits for a job; the others wait for the lock.
        let job = lock(&work.jobs).recv();
        match job {
            Ok(Job::Line { batch, number, line }) => {
                work.waiting.fetch_sub(1, Ordering::Relaxed);
                let Some(reply) = reply(&line, &|| batch.is_cancelled()) else {
                    counts.skipped += 1;
                    continue;
                };
                match batch.answer(number, reply, handle) {
                    Ok(()) => counts.answered += 1,
                    Err(error) => {
                        counts.lost += 1;
                        log::info!("{}: an answer is lost: {error}", batch.id);
                    }
                }
            }
            Ok(Job::Lost(id, bytes)) => {
                counts.lost += 1;
                log::info!("{id}: an answer of {bytes} bytes is lost: the connection has closed");
            }
            Err(_) => return counts,
        }
    }
}

/// Returns the answer to a line, or `None` if it is cancelled.
fn reply(line: &str, is_cancelled: &dyn Fn() -> bool) -> Option<String> {
    match line.parse() {
        _ if is_cancelled() => None,
        Ok(number @ ..NUMBER_END) => factor(number, is_cancelled),
        _ => Some(format!("! a line is a whole number below {NUMBER_END}")),
    }
}

/// Repeats a command while the manager's command queue is full.
fn retry(command: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
    loop {
        match command() {
            Err(Error::QueueFull) => thread::sleep(RETRY_INTERVAL),
            done => return done,
        }
    }
}

/// Locks a mutex, even if it is poisoned. This is correct because the code that holds these locks
/// leaves the data valid at each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
