//! Server: the measured program. It runs one round after the other on one thread. In each round it
//! asks the driver for an action on standard output, waits on standard input until the action is
//! done, and then runs turns until all requests are served. The number of turns and all counts are
//! therefore the same in each run.

use std::cell::Cell;
use std::error::Error;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::rc::Rc;

use pool_manager::{Closed, Commands, Config, Conn, Framing, Handler, Manager};

use crate::cases::{BATCH, Case, Kind};
use crate::clock::Clocked;
use crate::lockstep::Action;

/// The function in which callgrind counts instructions.
pub(crate) const COLLECTED: &str = "*measured_turns*";

type Server = Manager<Echo, Clocked>;
type Turns = fn(&mut Server, &Cell<u64>, u64) -> Result<(), pool_manager::Error>;

/// Echoes requests, and counts requests and closed connections.
struct Echo {
    newline: bool,
    served: Rc<Cell<u64>>,
    closed: Rc<Cell<u64>>,
}

impl Handler for Echo {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self.served.set(self.served.get() + 1);
        conn.write_all(body)?;
        if self.newline {
            conn.write_all(b"\n")?;
        }
        Ok(())
    }

    fn closed(&mut self, _closed: &Closed, _: Option<()>, _commands: &mut Commands) {
        self.closed.set(self.closed.get() + 1);
    }
}

struct Measured<'a> {
    case: &'a Case,
    manager: Server,
    served: Rc<Cell<u64>>,
    closed: Rc<Cell<u64>>,
}

/// Serves `rounds` rounds of `case` after the warm-up. Prints three numbers: the turns before these
/// rounds, the turns in these rounds, and the allocations in these rounds.
pub(crate) fn serve(case: &Case, rounds: u64) -> Result<(), Box<dyn Error>> {
    let (served, closed) = (Rc::default(), Rc::default());
    let lines = case.kind == Kind::Lines;
    let framing = if lines { Framing::Delimited(b'\n') } else { Framing::Drained };
    let handler = Echo { newline: lines, served: Rc::clone(&served), closed: Rc::clone(&closed) };
    let config = Config::new().framing(framing);
    let mut manager = Manager::with_backend(config, handler, Clocked::new())?;
    manager.start()?;
    let addr = manager.listen("127.0.0.1:0")?;
    println!("{addr}");
    let mut measured = Measured { case, manager, served, closed };
    measured.connect()?;
    for _ in 0..case.warm_up() {
        measured.round(turn_until)?;
    }
    let before = measured.manager.stats().turns;
    let mut allocations = 0;
    for _ in 0..rounds {
        allocations += measured.round(measured_turns)?;
    }
    let turns = measured.manager.stats().turns - before;
    ask(Action::End)?;
    println!("{before}\n{turns}\n{allocations}");
    Ok(())
}

impl Measured<'_> {
    fn connect(&mut self) -> Result<(), Box<dyn Error>> {
        let mut live = 0;
        while live < self.case.live {
            live += BATCH.min(self.case.live - live);
            ask(Action::Connect)?;
            while self.manager.stats().live < live as u64 {
                self.manager.turn(None)?;
            }
        }
        Ok(())
    }

    /// Runs one round. Returns its number of allocations.
    fn round(&mut self, turn: Turns) -> Result<u64, Box<dyn Error>> {
        let all = self.case.requests();
        let goal = self.served.get() + all;
        ask(Action::Send)?;
        let mut allocations = counted(|| turn(&mut self.manager, &self.served, goal))?;
        if self.case.kind == Kind::Churn {
            let goal = self.closed.get() + all;
            ask(Action::Close)?;
            allocations += counted(|| turn(&mut self.manager, &self.closed, goal))?;
        }
        Ok(allocations)
    }
}

/// Returns the number of allocations in `turns`.
fn counted(
    turns: impl FnOnce() -> Result<(), pool_manager::Error>,
) -> Result<u64, pool_manager::Error> {
    let mut outcome = Ok(());
    let counted = allocation_counter::measure(|| outcome = turns());
    outcome.map(|()| counted.count_total)
}

/// Runs turns until `count` reaches `goal`. All measured turns are called from this one place, as
/// in a service.
#[inline(never)]
fn turn_until(
    server: &mut Server,
    count: &Cell<u64>,
    goal: u64,
) -> Result<(), pool_manager::Error> {
    while count.get() < goal {
        server.turn(None)?;
    }
    Ok(())
}

/// As [`turn_until`], but under a separate name, because callgrind counts instructions only while
/// this function runs.
#[inline(never)]
fn measured_turns(
    server: &mut Server,
    count: &Cell<u64>,
    goal: u64,
) -> Result<(), pool_manager::Error> {
    // Passing the result to `black_box` prevents a tail call.
    black_box(turn_until(server, count, goal))
}

/// Asks the driver for an action and waits until it is done. This costs one write and one read.
fn ask(action: Action) -> io::Result<()> {
    io::stdout().write_all(&[action as u8, b'\n'])?;
    io::stdin().read_exact(&mut [0])
}
