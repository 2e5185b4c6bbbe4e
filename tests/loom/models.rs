//! Models for loom. Each has the loop and a few other threads, and is small enough to run in every
//! interleaving.
//!
//! No wait has a timeout. A lost wake leaves all threads waiting, which loom reports as a deadlock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loom::thread;

use super::command::Command;
use super::commands::Commands;
use super::error::Error;
use super::id::ConnId;
use super::mailbox::Mailbox;
use super::socket::Socket;
use super::stats::Stats;
use crate::stubs::Waker;

const BATCH: usize = 1024;

/// The part of a manager that other threads use.
struct Loop {
    commands: Commands,
    mailbox: Arc<Mailbox>,
    waker: Arc<Waker>,
    /// Turns that found a notification.
    notified: u32,
}

impl Loop {
    fn new() -> Self {
        let mailbox = Arc::new(Mailbox::default());
        Self {
            commands: Commands::new(mailbox.clone()),
            mailbox,
            waker: Arc::default(),
            notified: 0,
        }
    }

    /// Starts the loop with a new waker, as a backend may do at each start.
    fn start(&mut self) {
        let waker = Arc::new(Waker::default());
        self.waker = waker.clone();
        self.mailbox.open(Arc::new(move || {
            waker.wake();
            Ok(())
        }));
    }

    /// Waits unless there is work. Then takes at most `batch` commands.
    fn turn(&mut self, batch: usize) -> Vec<Command> {
        if self.commands.has_work() {
            self.waker.poll()
        } else {
            self.waker.wait()
        }
        self.commands(batch)
    }

    fn commands(&mut self, batch: usize) -> Vec<Command> {
        self.notified += u32::from(self.commands.collect(batch));
        std::iter::from_fn(|| self.commands.next()).collect()
    }

    /// Runs turns until `count` commands were executed. Returns their numbers.
    fn turns(&mut self, count: usize, batch: usize) -> Vec<u32> {
        let mut done = Vec::new();
        while done.len() < count {
            let commands = self.turn(batch);
            assert!(commands.len() <= batch);
            done.extend(commands.iter().map(number));
        }
        done
    }

    /// Returns whether `pending` is clear, either now or after one turn that takes no command.
    fn becomes_idle(&mut self) -> bool {
        !self.mailbox.is_pending() || (self.turn(BATCH).is_empty() && !self.mailbox.is_pending())
    }
}

fn started() -> Loop {
    let mut this = Loop::new();
    this.start();
    this
}

/// Returns the number that identifies a command in a model.
fn number(command: &Command) -> u32 {
    match command {
        Command::Put(socket) => socket.0,
        Command::Close(id) => id.0,
        _ => panic!("a command that no model uses"),
    }
}

fn command(number: u32) -> Command {
    Command::Close(ConnId(number))
}

/// Posts commands with these numbers from a new thread.
fn post<const N: usize>(mailbox: &Arc<Mailbox>, numbers: [u32; N]) -> thread::JoinHandle<()> {
    let mailbox = mailbox.clone();
    thread::spawn(move || {
        for number in numbers {
            mailbox.post(command(number)).expect("the loop is running");
        }
    })
}

/// Two handles post two commands each. All commands are executed. The commands of one handle are
/// executed in the order in which it posted them. The loop never sleeps while a command is queued.
pub(crate) fn two_handles_post() {
    let mut this = started();
    let handles = [post(&this.mailbox, [10, 11]), post(&this.mailbox, [20, 21])];
    let done = this.turns(4, BATCH);
    for handle in handles {
        handle.join().unwrap();
    }
    let of = |tens: u32| done.iter().copied().filter(move |number| number / 10 == tens);
    assert!(of(1).eq([10, 11]) && of(2).eq([20, 21]), "{done:?}");
    assert!(this.becomes_idle(), "`pending` without a command makes the loop spin");
}

/// Two handles post commands, and each turn takes only one. `pending` stays set for the commands
/// that are left.
pub(crate) fn a_turn_takes_a_batch() {
    let mut this = started();
    let handles = [post(&this.mailbox, [10, 11]), post(&this.mailbox, [20])];
    let mut done = this.turns(3, 1);
    for handle in handles {
        handle.join().unwrap();
    }
    done.sort_unstable();
    assert_eq!(done, [10, 11, 20]);
}

/// Two handles put sockets while there is one permit, and one of the handles requests a stop. Each
/// socket has exactly one outcome: it is returned to the handle, served, or dropped by the loop. At
/// the end, all permits are free.
pub(crate) fn sockets_meet_a_stop() {
    let mut this = started();
    this.mailbox.permits.set_max(1);
    let putters = [1, 2].map(|number| {
        let mailbox = this.mailbox.clone();
        thread::spawn(move || {
            let refused = mailbox.post_put(Socket(number)).err();
            if number == 2 {
                mailbox.post(Command::Stop).expect("only this thread stops the loop");
            }
            refused
        })
    });
    let (mut served, mut given_up) = (Vec::new(), Vec::new());
    let mut stopping = false;
    while !stopping {
        for command in this.turn(BATCH) {
            match command {
                Command::Put(socket) if stopping => given_up.push(socket),
                Command::Put(socket) => {
                    served.push(socket);
                    this.mailbox.permits.release();
                }
                _ => {
                    this.mailbox.set_stopping();
                    let late = this.mailbox.post_put(Socket(3));
                    assert_eq!(late, Err((Socket(3), Error::NotRunning)));
                    stopping = true;
                }
            }
        }
    }
    for command in this.mailbox.close() {
        if let Command::Put(socket) = command {
            given_up.push(socket);
        }
    }
    for _ in &given_up {
        this.mailbox.permits.release();
    }
    let refused = putters.map(|putter| putter.join().unwrap());
    let given_back = refused.into_iter().flatten().map(|(socket, error)| {
        assert!(matches!(error, Error::Busy { .. } | Error::NotRunning));
        socket
    });
    let mut all: Vec<_> = served.into_iter().chain(given_up).chain(given_back).collect();
    all.sort_unstable();
    assert_eq!(all, [Socket(1), Socket(2)], "each socket has one outcome");
    assert_permits_taken(&this.mailbox, 0);
}

fn assert_permits_taken(mailbox: &Mailbox, taken: usize) {
    mailbox.permits.set_max(taken + 1);
    assert!(mailbox.permits.try_acquire(), "more permits are taken than there are connections");
    assert!(!mailbox.permits.try_acquire(), "fewer permits are taken than there are connections");
}

/// The loop takes a permit for an accepted connection while a handle takes a permit for a socket.
/// Meanwhile, another connection releases its permit. The number of permits that are taken never
/// exceeds the maximum.
pub(crate) fn the_loop_and_a_handle_take_permits() {
    let this = started();
    this.mailbox.permits.set_max(2);
    assert!(this.mailbox.permits.try_acquire());
    let putter = {
        let mailbox = this.mailbox.clone();
        thread::spawn(move || mailbox.post_put(Socket(1)).is_ok())
    };
    let accepted = this.mailbox.permits.try_acquire_or_count();
    this.mailbox.permits.release();
    let put = putter.join().unwrap();
    assert!(accepted || put);
    let refused = u64::from(!accepted) + u64::from(!put);
    assert_eq!(this.mailbox.permits.refused(), refused, "each refusal is counted");
    assert_permits_taken(&this.mailbox, 2 - usize::try_from(refused).unwrap());
}

/// Two threads try to take a permit at the same time, and only one permit is free. One thread gets
/// it.
pub(crate) fn one_permit_is_taken_once() {
    let this = started();
    this.mailbox.permits.set_max(1);
    let putter = {
        let mailbox = this.mailbox.clone();
        thread::spawn(move || mailbox.post_put(Socket(1)).is_ok())
    };
    let accepted = this.mailbox.permits.try_acquire();
    let put = putter.join().unwrap();
    assert!(accepted != put, "one permit, taken by both or by none");
}

/// Two threads request stats. Each receives stats that were published after its request.
pub(crate) fn two_threads_wait_for_stats() {
    let mut this = started();
    let turns = Arc::new(AtomicUsize::new(0));
    let requesters = [(); 2].map(|()| request_stats(&this.mailbox, &turns));
    let mut answered = 0;
    while answered < 2 {
        let commands = this.turn(BATCH);
        let now = Stats { turns: turns.fetch_add(1, Ordering::SeqCst) + 1 };
        for command in commands {
            answered += 1;
            this.mailbox.publish(stats_request(&command), &now);
        }
    }
    for requester in requesters {
        let (before, seen) = requester.join().unwrap();
        assert!(seen > before, "stats of turn {seen}, requested after turn {before}");
    }
}

fn stats_request(command: &Command) -> u64 {
    match command {
        Command::PublishStats(request) => *request,
        _ => 0,
    }
}

/// Requests stats from a new thread. The thread returns the number of turns at its request, and the
/// number of turns in the stats.
fn request_stats(
    mailbox: &Arc<Mailbox>,
    turns: &Arc<AtomicUsize>,
) -> thread::JoinHandle<(usize, usize)> {
    let (mailbox, turns) = (mailbox.clone(), turns.clone());
    thread::spawn(move || {
        let before = turns.load(Ordering::SeqCst);
        (before, mailbox.stats(Duration::MAX).turns)
    })
}

/// One thread requests stats while another requests a stop. The request is answered by a turn, or
/// with the last stats.
pub(crate) fn stats_are_requested_at_a_stop() {
    let mut this = started();
    let turns = Arc::new(AtomicUsize::new(0));
    let requester = request_stats(&this.mailbox, &turns);
    let stopper = {
        let mailbox = this.mailbox.clone();
        thread::spawn(move || mailbox.post(Command::Stop).expect("the loop is running"))
    };
    let mut stopped = false;
    while !stopped {
        for command in this.turn(BATCH) {
            match command {
                Command::Stop => stopped = true,
                command => this.mailbox.publish(stats_request(&command), &Stats::default()),
            }
        }
    }
    let left = this.mailbox.close();
    let last_request = left.iter().map(stats_request).max().unwrap_or(0);
    this.mailbox.publish(last_request, &Stats::default());
    requester.join().unwrap();
    stopper.join().unwrap();
}

/// A handle posts a command while the loop stops and starts again. If the command is accepted, it
/// is executed or returned exactly once. A command that is posted after the restart wakes the new
/// loop.
pub(crate) fn a_handle_posts_across_a_restart() {
    let mut this = started();
    let early = {
        let mailbox = this.mailbox.clone();
        thread::spawn(move || mailbox.post(command(1)).is_ok())
    };
    let mut seen: Vec<u32> = this.commands(BATCH).iter().map(number).collect();
    seen.extend(this.mailbox.close().iter().map(number));
    this.start();
    let late = post(&this.mailbox, [2]);
    while !seen.contains(&2) {
        seen.extend(this.turn(BATCH).iter().map(number));
    }
    late.join().unwrap();
    let accepted = early.join().unwrap();
    seen.extend(this.mailbox.close().iter().map(number));
    this.mailbox.mark_dropped();
    assert_eq!(this.mailbox.post(command(3)), Err(Error::Dropped));
    seen.sort_unstable();
    assert_eq!(seen, if accepted { vec![1, 2] } else { vec![2] });
}

/// Two threads notify the loop, each after it has sent a message. The loop never sleeps while a
/// message waits, and finds at most one notification for each call.
pub(crate) fn two_threads_notify() {
    let mut this = started();
    let sent = Arc::new(AtomicUsize::new(0));
    let threads = [(); 2].map(|()| {
        let (mailbox, sent) = (this.mailbox.clone(), sent.clone());
        thread::spawn(move || {
            sent.fetch_add(1, Ordering::SeqCst);
            mailbox.notify().expect("the loop is running");
        })
    });
    let mut received = 0;
    while received < 2 {
        let before = this.notified;
        assert!(this.turn(BATCH).is_empty());
        if this.notified > before {
            received = sent.load(Ordering::SeqCst);
        }
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(this.becomes_idle(), "`pending` without a notification makes the loop spin");
    assert!(this.notified <= 2, "{} notifications for two calls", this.notified);
}
