//! Chat server: a line from one member goes to all members, in the same order for each.
//!
//! `cargo run --release --example chat`, then `nc 127.0.0.1 6264` in a few terminals.
//!
//! A line for 1,000 members needs 1,000 send commands, and the command queue is limited. The room
//! therefore collects lines and sends them to each member in one batch at the end of a turn. While
//! send commands of a batch still have to be queued, the room collects lines for the next batch. If
//! too many bytes are collected, a member that sends another line is paused. It is resumed when a
//! later batch has taken enough of the collected lines. A minimum time between batches lets members
//! keep up with a fast sender. The connection of a member that reads too slowly exceeds
//! `write_limit` and is closed. This does not affect the other members.
//!
//! Uses `main`, `say`, `log_from`, `number`, `millis`, `signals`, `bind_with` and `usage` of
//! `examples/common`: start, output, options, signals and the listener.

mod common;

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{Result, bind_with, log_from, millis, number, say, signals, usage};
use lexopt::{Arg, ValueExt};
use pool_manager::{Cause, Closed, Commands, Config, Conn, ConnId, Framing, Handler, Manager};

const HELP: &str = "\
A chat room: each line goes to all members. Commands: /name NAME, /who and /quit.

Usage: chat [OPTIONS]

  --listen ADDR        address to listen on [127.0.0.1:6264]
  --max N              members at a time; further ones get ERROR_SERVER_BUSY [10000]
  --deadline-ms MS     how long a member may neither send nor receive anything [600000]
  --write-limit BYTES  close a member when more than this is unsent to it; at least 131072 [524288]
  --debug              log every connection
  --help               print this text

SIGINT or SIGTERM stops gracefully; a second one completes the stop at once.";

/// Maximum size of a line, including its newline.
const LINE_MAX: usize = 1 << 10;
const NAME_MAX: usize = 32;
/// Maximum size of a batch in bytes.
const BATCH: usize = 64 << 10;
/// Minimum time between two batches. A member must be able to read 640 KiB per second.
const BATCH_INTERVAL: Duration = Duration::from_millis(100);
/// If this many bytes are collected, a member that sends a line is paused.
const COLLECTED_MAX: usize = 64 << 10;
/// Maximum number of queued send commands. Each command holds a copy of the batch. A turn executes
/// at most 1,024 commands.
const SENDS_MAX: usize = 2048;
/// Kernel send buffer of a member. By default it grows to 4 MiB for a member that does not read.
const SEND_BUFFER: usize = 64 << 10;

/// The name of a member.
#[derive(Default)]
struct Member(String);

#[derive(Default)]
struct Room {
    /// All members by name. Names are unique.
    members: HashMap<String, ConnId>,
    /// Lines for the next batch.
    collected: Vec<u8>,
    /// Members that are paused because they sent a line while too many bytes were collected.
    paused: Vec<ConnId>,
    /// The current batch.
    batch: Vec<u8>,
    /// Members for which no send command with the current batch has been queued yet.
    recipients: Vec<ConnId>,
    /// The time at which the current batch was started.
    batch_started: Option<Instant>,
}

impl Handler for Room {
    type Session = Member;

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<Member> {
        let member = Member(format!("guest-{}", conn.id()));
        self.members.insert(member.0.clone(), conn.id());
        self.broadcast(format_args!("* {} joins", member.0));
        Ok(member)
    }

    fn request(&mut self, conn: &mut Conn<'_>, member: &mut Member, line: &[u8]) -> io::Result<()> {
        let line = printable(line);
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("", "") => {}
            ("/name", name) => self.rename(conn, member, name)?,
            ("/who", "") => writeln!(conn, "* {} here", self.members.len())?,
            ("/quit", "") => conn.close(),
            (command, _) if command.starts_with('/') => {
                writeln!(conn, "! the commands are /name NAME, /who and /quit")?;
            }
            _ => self.broadcast(format_args!("{}: {line}", member.0)),
        }
        if self.collected.len() >= COLLECTED_MAX {
            conn.pause();
            self.paused.push(conn.id());
        }
        Ok(())
    }

    fn incomplete(&mut self, conn: &mut Conn<'_>, _: &mut Member, _: &[u8]) -> io::Result<()> {
        match conn.cause() {
            Cause::Expired => writeln!(conn, "! nothing was heard for too long"),
            Cause::Overlong => writeln!(conn, "! a line may be {LINE_MAX} bytes long"),
            _ => Ok(()),
        }
    }

    fn closed(&mut self, _: &Closed, member: Option<Member>, _: &mut Commands) {
        let Some(member) = member else { return };
        self.members.remove(&member.0);
        self.broadcast(format_args!("* {} leaves", member.0));
    }

    fn turn_ended(&mut self, commands: &mut Commands) {
        if self.recipients.is_empty() && !self.collected.is_empty() {
            let now = Instant::now();
            if self.batch_started.is_none_or(|started| now - started >= BATCH_INTERVAL) {
                self.batch_started = Some(now);
                self.begin_batch();
            }
        }
        while commands.queued() < SENDS_MAX {
            let Some(&id) = self.recipients.last() else { break };
            // If the command queue is full, the room continues to queue commands at the end of the
            // next turn.
            if commands.send(id, self.batch.as_slice()).is_err() {
                return;
            }
            self.recipients.pop();
        }
        if self.collected.len() < COLLECTED_MAX {
            while let Some(id) = self.paused.pop() {
                if commands.resume(id).is_err() {
                    return self.paused.push(id);
                }
            }
        }
    }
}

impl Room {
    /// Adds a line to the next batch.
    fn broadcast(&mut self, line: impl std::fmt::Display) {
        // Writing to a vector cannot fail.
        let _ = writeln!(self.collected, "{line}");
    }

    /// Returns the time until the next batch can begin, or `None` if no lines are collected.
    fn time_to_batch(&self) -> Option<Duration> {
        if self.collected.is_empty() {
            return None;
        }
        self.batch_started.map(|started| BATCH_INTERVAL.saturating_sub(started.elapsed()))
    }

    /// Takes as many whole lines as fit into a batch. The recipients are the current members.
    fn begin_batch(&mut self) {
        let max = self.collected.len().min(BATCH);
        let end = self.collected[..max].iter().rposition(|&byte| byte == b'\n');
        let rest = self.collected.split_off(end.map_or(max, |end| end + 1));
        self.batch = std::mem::replace(&mut self.collected, rest);
        self.recipients.extend(self.members.values());
    }

    fn rename(&mut self, conn: &mut Conn<'_>, member: &mut Member, name: &str) -> io::Result<()> {
        // A guest's name contains a dot, so that no member can take the name of a later guest.
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
        self.broadcast(format_args!("* {before} is now {name}"));
        Ok(())
    }
}

/// Removes control characters, which could do harm on the terminals of other members.
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

/// Parses the arguments. Returns `None` for `--help`.
fn options() -> Result<Option<Options>, lexopt::Error> {
    let config = Config::new()
        .max_workers(10_000)
        .buffer_size(LINE_MAX)
        .framing(Framing::Delimited(b'\n'))
        .clients_deadline(Duration::from_secs(600))
        .write_limit(512 << 10)
        // No request is in progress that a stop would have to wait for.
        .stop_deadline(Duration::from_secs(1));
    let mut options = Options { listen: "127.0.0.1:6264".into(), config };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        let config = options.config.clone();
        options.config = match arg {
            Arg::Long("max") => config.max_workers(number::<usize>(&mut parser, "--max")?),
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
            unknown => return Err(unknown.unexpected()),
        };
    }
    if options.config.write_limit < 2 * BATCH {
        return Err("--write-limit: must be at least 131072".into());
    }
    Ok(Some(options))
}

fn serve(options: Options) -> Result<()> {
    let debug = options.config.debug;
    // An invalid configuration comes from the arguments.
    let mut manager = Manager::with_handler(options.config, Room::default()).map_err(usage)?;
    // Accepted connections inherit the size of the send buffer.
    let listener = bind_with(&options.listen, |socket| socket.set_send_buffer_size(SEND_BUFFER))?;
    let addr = listener.local_addr()?;
    log_from(if debug { "debug" } else { "info" });
    manager.stop_on(signals()?)?;
    manager.start()?;
    manager.listen_on(listener)?;
    say(format_args!("listening on {addr}; try: nc {} {}", addr.ip(), addr.port()));
    let report = loop {
        // A turn must not wait longer, because that would delay the next batch.
        let timeout = manager.handler().time_to_batch();
        if let Some(report) = manager.turn(timeout)?.stopped {
            break report;
        }
    };
    say(format_args!("stopped: {report}; {}", manager.stats()));
    Ok(())
}
