//! Models: a few threads and the loop, small enough to be run in every order.
//!
//! Nobody has a timeout: a wake that is lost leaves everybody waiting, which loom calls a
//! deadlock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loom::thread;

use super::command::Command;
use super::commands::Commands;
use super::id::ConnId;
use super::error::Error;
use super::mailbox::Mailbox;
use super::socket::Socket;
use super::stats::Stats;
use crate::world::Bell;

const BATCH: usize = 1024;

/// As much of a manager as other threads can meet.
struct Loop {
    commands: Commands,
    mailbox: Arc<Mailbox>,
    bell: Arc<Bell>,
}

impl Loop {
    fn new() -> Self {
        let mailbox = Arc::new(Mailbox::default());
        Self { commands: Commands::new(mailbox.clone()), mailbox, bell: Arc::default() }
    }

    /// With a bell of its own, as each start has a waker of its own.
    fn start(&mut self) {
        let bell = Arc::new(Bell::default());
        self.bell = bell.clone();
        self.mailbox.open(Arc::new(move || {
            bell.ring();
            Ok(())
        }));
    }

    /// Waits unless there is work, then takes at most a batch.
    fn turn(&mut self, batch: usize) -> Vec<Command> {
        if self.commands.has_work() { self.bell.glance() } else { self.bell.wait() }
        self.commands(batch)
    }

    fn commands(&mut self, batch: usize) -> Vec<Command> {
        self.commands.collect(batch);
        std::iter::from_fn(|| self.commands.next()).collect()
    }

    /// Turns until `count` commands were carried out.
    fn turns(&mut self, count: usize, batch: usize) -> Vec<u32> {
        let mut done = Vec::new();
        while done.len() < count {
            let commands = self.turn(batch);
            assert!(commands.len() <= batch);
            done.extend(commands.iter().map(number));
        }
        done
    }

    /// Whether a mark with nothing behind it, if there is one, is gone after one turn.
    fn comes_to_rest(&mut self) -> bool {
        !self.mailbox.is_pending()
            || (self.turn(BATCH).is_empty() && !self.mailbox.is_pending())
    }
}

fn started() -> Loop {
    let mut this = Loop::new();
    this.start();
    this
}

/// The number by which a model knows a command.
fn number(command: &Command) -> u32 {
    match command {
        Command::Put(socket) => socket.0,
        Command::Close(id) => id.0,
        _ => panic!("no command of this model"),
    }
}

fn command(number: u32) -> Command {
    Command::Close(ConnId(number))
}

/// Posts commands of these numbers from a thread of its own.
fn post<const N: usize>(mailbox: &Arc<Mailbox>, numbers: [u32; N]) -> thread::JoinHandle<()> {
    let mailbox = mailbox.clone();
    thread::spawn(move || {
        for number in numbers {
            mailbox.post(command(number)).expect("the loop is running");
        }
    })
}

/// Two handles post two commands each: all are carried out, in the order of each handle, and the
/// loop never sleeps while one waits.
pub(crate) fn two_handles_post() {
    let mut this = started();
    let handles = [post(&this.mailbox, [10, 11]), post(&this.mailbox, [20, 21])];
    let done = this.turns(4, BATCH);
    for handle in handles {
        handle.join().unwrap();
    }
    let of = |tens: u32| done.iter().copied().filter(move |number| number / 10 == tens);
    assert!(of(1).eq([10, 11]) && of(2).eq([20, 21]), "{done:?}");
    assert!(this.comes_to_rest(), "a mark with nothing behind it would be a spin");
}

/// The same, where a turn takes one command only: the rest stays marked.
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

/// Two handles put sockets, for which there is one place at a time, and one of them asks for a
/// stop: each socket is given back, served or given up, once, and all places are free in the end.
pub(crate) fn sockets_meet_a_stop() {
    let mut this = started();
    this.mailbox.permits.set_max(1);
    let putters = [1, 2].map(|number| {
        let mailbox = this.mailbox.clone();
        thread::spawn(move || {
            let refused = mailbox.post_put(Socket(number)).err();
            if number == 2 {
                mailbox.post(Command::Stop).expect("nobody else stops it");
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
                    this.mailbox.refuse_puts();
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
    assert_eq!(all, [Socket(1), Socket(2)], "each socket is in one place");
    assert_places_taken(&this.mailbox, 0);
}

fn assert_places_taken(mailbox: &Mailbox, taken: usize) {
    mailbox.permits.set_max(taken + 1);
    assert!(mailbox.permits.try_acquire(), "more places are taken than there are connections");
    assert!(!mailbox.permits.try_acquire(), "fewer places are taken than there are connections");
}

/// The loop takes a place for one it accepted while a handle takes one for a socket it puts, and
/// another connection gives its place back: there are never more than places.
pub(crate) fn the_loop_and_a_handle_take_places() {
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
    assert_eq!(this.mailbox.permits.refused(), refused, "each error is counted");
    assert_places_taken(&this.mailbox, 2 - usize::try_from(refused).unwrap());
}

/// Two places are wanted at once, and there is one.
pub(crate) fn one_place_is_taken_once() {
    let this = started();
    this.mailbox.permits.set_max(1);
    let putter = {
        let mailbox = this.mailbox.clone();
        thread::spawn(move || mailbox.post_put(Socket(1)).is_ok())
    };
    let accepted = this.mailbox.permits.try_acquire();
    let put = putter.join().unwrap();
    assert!(accepted != put, "one place, taken by both or by none");
}

/// Two threads ask for stats: each has those of a turn that came after it asked.
pub(crate) fn two_threads_wait_for_stats() {
    let mut this = started();
    let turns = Arc::new(AtomicUsize::new(0));
    let askers = [(); 2].map(|()| ask(&this.mailbox, &turns));
    let mut answered = 0;
    while answered < 2 {
        let commands = this.turn(BATCH);
        let now = Stats { turns: turns.fetch_add(1, Ordering::SeqCst) + 1 };
        for command in commands {
            answered += 1;
            this.mailbox.publish(question(&command), &now);
        }
    }
    for asker in askers {
        let (before, seen) = asker.join().unwrap();
        assert!(seen > before, "stats of turn {seen}, asked for after turn {before}");
    }
}

fn question(command: &Command) -> u64 {
    match command {
        Command::PublishStats(question) => *question,
        _ => 0,
    }
}

/// What turn it was when the stats were asked for, and what turn they are of.
fn ask(mailbox: &Arc<Mailbox>, turns: &Arc<AtomicUsize>) -> thread::JoinHandle<(usize, usize)> {
    let (mailbox, turns) = (mailbox.clone(), turns.clone());
    thread::spawn(move || {
        let before = turns.load(Ordering::SeqCst);
        (before, mailbox.stats(Duration::MAX).turns)
    })
}

/// Somebody asks for stats while another asks for a stop: he has an answer, the last one.
pub(crate) fn stats_are_asked_for_at_a_stop() {
    let mut this = started();
    let turns = Arc::new(AtomicUsize::new(0));
    let asker = ask(&this.mailbox, &turns);
    let stopper = {
        let mailbox = this.mailbox.clone();
        thread::spawn(move || mailbox.post(Command::Stop).expect("it is running"))
    };
    let mut stopped = false;
    while !stopped {
        for command in this.turn(BATCH) {
            match command {
                Command::Stop => stopped = true,
                asked => this.mailbox.publish(question(&asked), &Stats::default()),
            }
        }
    }
    let left = this.mailbox.close();
    let last_question = left.iter().map(question).max().unwrap_or(0);
    this.mailbox.publish(last_question, &Stats::default());
    asker.join().unwrap();
    stopper.join().unwrap();
}

/// A handle posts while the loop stops and starts again: what was let in is carried out or given
/// back, once, and the new loop hears of what is posted to it.
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
    let let_in = early.join().unwrap();
    seen.extend(this.mailbox.close().iter().map(number));
    this.mailbox.abandon();
    assert_eq!(this.mailbox.post(command(3)), Err(Error::Dropped));
    seen.sort_unstable();
    assert_eq!(seen, if let_in { vec![1, 2] } else { vec![2] });
}
