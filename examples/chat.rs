//! Chat: what one says, all get, in the same order.
//!
//! `cargo run --release --example chat`, then `nc 127.0.0.1 6264` in a few terminals.
//!
//! A line for 1,000 members is 1,000 sends, and the commands where callbacks leave them has an end. So
//! lines are gathered, and what a turn gathered is sent at its end, to each member once. While
//! sends of the batch before still wait, lines go on being gathered; and when those are many, who
//! speaks next is paused until they are on their way. Batches keep a pace that members can follow,
//! however fast one speaks. A member that cannot, or does not read at all, is closed by
//! `write_limit`, and the others do not notice.

mod common;

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{
    Failure, TURN, bind_with, log_from, millis, number, run_error, say, stop_flag, usage_error,
};
use lexopt::{Arg, ValueExt};
use pool_manager::{Cause, Closed, Commands, Config, Conn, ConnId, Framing, Handler, Manager};

const HELP: &str = "\
A room where all hear what one says. Say /name NAME, /who or /quit, or anything else.

Usage: chat [OPTIONS]

  --listen ADDR        address to listen on [127.0.0.1:6264]
  --max N              members at a time; more are told ERROR_SERVER_BUSY [10000]
  --deadline-ms MS     how long a member may neither speak nor hear anything [600000]
  --write-limit BYTES  how far a member may be behind with reading before it is closed; at least
                       131072 [524288]
  --debug              log every connection
  --help               this text

SIGINT or SIGTERM stops gracefully; a second one at once.";

/// The longest line, with its end.
const LINE_MAX: usize = 1 << 10;
const NAME_MAX: usize = 32;
/// The most that is sent to a member at once.
const BATCH: usize = 64 << 10;
/// The least time between two batches: 640 KiB a second is what a member has to be able to read.
const PACE: Duration = Duration::from_millis(100);
/// Who speaks when this much is gathered is paused until it is on its way.
const GATHERED_MAX: usize = 64 << 10;
/// Sends that may wait at a time, each with a copy of its batch: a turn carries out half of them.
const SENDS_MAX: usize = 2048;
/// What the kernel holds for a member that does not read; left to itself it takes 4 MiB.
const SEND_BUFFER: usize = 64 << 10;

/// A member's name, once it has one.
#[derive(Default)]
struct Member(String);

#[derive(Default)]
struct Room {
    /// Everybody, by the one name of each.
    members: HashMap<String, ConnId>,
    /// Lines for all.
    gathered: Vec<u8>,
    /// Those that spoke when too much was gathered.
    paused: Vec<ConnId>,
    /// Lines on their way, and who has yet to get them.
    batch: Vec<u8>,
    untold: Vec<ConnId>,
    /// When the last batch began.
    began: Option<Instant>,
}

impl Handler for Room {
    type Session = Member;

    fn opened(&mut self, conn: &mut Conn<'_>, member: &mut Member) -> io::Result<()> {
        member.0 = format!("guest-{}", conn.id());
        self.members.insert(member.0.clone(), conn.id());
        self.tell(format_args!("* {} joins", member.0));
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, member: &mut Member, line: &[u8]) -> io::Result<()> {
        match conn.cause() {
            Cause::Expired => return writeln!(conn, "! nothing was heard for too long"),
            Cause::Overlong => return writeln!(conn, "! a line may be {LINE_MAX} bytes long"),
            _ => {}
        }
        let line = printable(line);
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("", "") => {}
            ("/name", name) => self.rename(conn, member, name)?,
            ("/who", "") => writeln!(conn, "* {} here", self.members.len())?,
            ("/quit", "") => conn.close(),
            (command, _) if command.starts_with('/') => {
                writeln!(conn, "! the commands are /name NAME, /who and /quit")?;
            }
            _ => self.tell(format_args!("{}: {line}", member.0)),
        }
        if self.gathered.len() >= GATHERED_MAX {
            conn.pause();
            self.paused.push(conn.id());
        }
        Ok(())
    }

    fn closed(&mut self, _: &Closed, member: Member, _: &mut Commands) {
        self.members.remove(&member.0);
        self.tell(format_args!("* {} leaves", member.0));
    }

    fn turn_ended(&mut self, commands: &mut Commands) {
        if self.untold.is_empty() && !self.gathered.is_empty() {
            let now = Instant::now();
            if self.began.is_none_or(|began| now - began >= PACE) {
                self.began = Some(now);
                self.begin_batch();
            }
        }
        while commands.queued() < SENDS_MAX {
            let Some(&id) = self.untold.last() else { break };
            // A commands that is full is tried again at the end of the next turn.
            if commands.send(id, self.batch.as_slice()).is_err() {
                return;
            }
            self.untold.pop();
        }
        if self.gathered.len() < GATHERED_MAX {
            while let Some(id) = self.paused.pop() {
                if commands.resume(id).is_err() {
                    return self.paused.push(id);
                }
            }
        }
    }
}

impl Room {
    /// Adds a line for everybody.
    fn tell(&mut self, line: impl std::fmt::Display) {
        // Writing to a vector cannot fail.
        let _ = writeln!(self.gathered, "{line}");
    }

    /// Takes as many whole lines as one send may have, for all who are here now.
    fn begin_batch(&mut self) {
        let max = self.gathered.len().min(BATCH);
        let end = self.gathered[..max].iter().rposition(|&byte| byte == b'\n');
        let rest = self.gathered.split_off(end.map_or(max, |end| end + 1));
        self.batch = std::mem::replace(&mut self.gathered, rest);
        self.untold.extend(self.members.values());
    }

    fn rename(&mut self, conn: &mut Conn<'_>, member: &mut Member, name: &str) -> io::Result<()> {
        // Those of guests have a dot, so nobody takes one that is to come.
        let fits = (1..=NAME_MAX).contains(&name.chars().count());
        if !fits || !name.chars().all(|letter| letter.is_alphanumeric() || letter == '-') {
            return writeln!(conn, "! a name is one word of at most {NAME_MAX} letters");
        }
        if self.members.contains_key(name) {
            return writeln!(conn, "! {name} is taken");
        }
        self.members.remove(&member.0);
        self.members.insert(name.to_owned(), conn.id());
        let before = std::mem::replace(&mut member.0, name.to_owned());
        self.tell(format_args!("* {before} is now {name}"));
        Ok(())
    }
}

/// What may be shown on the terminals of others: text, without control characters.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim().chars().filter(|letter| !letter.is_control()).collect()
}

struct Options {
    listen: String,
    config: Config,
}

fn main() -> ExitCode {
    common::main("chat", HELP, options, serve)
}

/// The options as given; `None` if the help is wanted.
fn options() -> Result<Option<Options>, Failure> {
    let config = Config::new()
        .max_workers(10_000)
        .buffer_size(LINE_MAX)
        .framing(Framing::Delimited(b'\n'))
        .clients_deadline(Duration::from_secs(600))
        .write_limit(512 << 10)
        // There is nothing to finish.
        .stop_deadline(Duration::from_secs(1));
    let mut options = Options { listen: "127.0.0.1:6264".into(), config };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        options.config = match arg {
            Arg::Long("max") => config.max_workers(number(&mut parser, "--max")?),
            Arg::Long("deadline-ms") => {
                config.clients_deadline(millis(&mut parser, "--deadline-ms")?)
            }
            Arg::Long("write-limit") => config.write_limit(number(&mut parser, "--write-limit")?),
            Arg::Long("debug") => config.debug(true),
            Arg::Long("listen") => {
                options.listen = parser.value()?.string()?;
                config
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            unknown => return Err(unknown.unexpected().into()),
        };
    }
    if options.config.write_limit < 2 * BATCH {
        return Err(usage_error("--write-limit: must be at least 131072"));
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<(), Failure> {
    let debug = options.config.debug;
    // What is wrong with the configuration is wrong with the arguments.
    let mut manager =
        Manager::with_handler(options.config, Room::default()).map_err(usage_error)?;
    // What is accepted inherits it.
    let listener = bind_with(&options.listen, |socket| socket.set_send_buffer_size(SEND_BUFFER))?;
    let addr = listener.local_addr().map_err(run_error)?;
    log_from(if debug { "debug" } else { "info" });
    let stop = stop_flag().map_err(run_error)?;
    manager.start().map_err(run_error)?;
    manager.listen_on(listener).map_err(run_error)?;
    say(format_args!("listening on {addr}; try: nc {} {}", addr.ip(), addr.port()));
    while !stop.load(Ordering::Relaxed) {
        // What is gathered in a hurry is looked at again in time.
        manager.turn(Some(TURN.min(PACE))).map_err(run_error)?;
    }
    let report = manager.stop().map_err(run_error)?;
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}
