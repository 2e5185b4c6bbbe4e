//! The table of commands and their implementations. Error messages are those of Redis 7.0.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

use pool_manager::Conn;

use super::protocol::{BULK_MAX, Reply, digits};
use super::store::Store;

const SYNTAX: &str = "ERR syntax error";
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";

/// The arguments of one request. The first is the name of the command.
#[derive(Clone, Copy)]
pub(crate) struct Args<'a> {
    pub(crate) request: &'a [u8],
    pub(crate) spans: &'a [Range<usize>],
}

impl<'a> Args<'a> {
    fn len(self) -> usize {
        self.spans.len()
    }

    /// Returns an argument. The arity check of the command ensures that it exists.
    fn at(self, index: usize) -> &'a [u8] {
        &self.request[self.spans[index].clone()]
    }

    /// Returns the arguments from `index` on.
    fn from(self, index: usize) -> impl Iterator<Item = &'a [u8]> {
        self.spans[index..].iter().map(move |span| &self.request[span.clone()])
    }

    /// Parses an argument as an integer.
    fn integer(self, index: usize) -> Option<i64> {
        integer(self.at(index))
    }
}

/// Parses an integer as Redis does: no plus sign, no leading zeros.
fn integer(text: &[u8]) -> Option<i64> {
    let value = std::str::from_utf8(text).ok()?.parse().ok()?;
    let (digits, from) = digits(value);
    (&digits[from..] == text).then_some(value)
}

/// The state of a connection.
#[derive(Default)]
pub(crate) struct Client {
    name: Vec<u8>,
}

/// The data that a command can access.
pub(crate) struct Context<'a, 'c> {
    pub(crate) store: &'a mut Store,
    pub(crate) client: &'a mut Client,
    pub(crate) conn: &'a mut Conn<'c>,
}

type Run = fn(&mut Context<'_, '_>, Args<'_>) -> io::Result<()>;

/// Name, arity and function of a command. The arity includes the name. A negative arity is a
/// minimum.
type Command = (&'static str, isize, Run);

/// All commands. The table is searched from the start, so frequent commands come first.
const COMMANDS: [Command; 19] = [
    ("get", 2, get),
    ("set", -3, set),
    ("ping", -1, ping),
    ("incr", 2, incr),
    ("mset", -3, mset),
    ("mget", -2, mget),
    ("del", -2, del),
    ("exists", -2, exists),
    ("expire", -3, expire),
    ("ttl", 2, ttl),
    ("pttl", 2, pttl),
    ("echo", 2, echo),
    ("client", -2, client),
    ("command", -1, command),
    ("config", -2, config),
    ("select", 2, select),
    ("dbsize", 1, dbsize),
    ("flushall", -1, flushall),
    ("quit", -1, quit),
];

/// Executes one command and writes its reply.
pub(crate) fn run(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    if [&b"post"[..], b"host:"].iter().any(|word| args.at(0).eq_ignore_ascii_case(word)) {
        // The client is a browser. A web page may have made the browser send commands in the lines
        // that follow.
        context.conn.close();
        return Ok(());
    }
    let named = |command: &&Command| command.0.as_bytes().eq_ignore_ascii_case(args.at(0));
    let Some(&(name, arity, run)) = COMMANDS.iter().find(named) else {
        return context.conn.error(&unknown(args));
    };
    let (count, min) = (args.len(), arity.unsigned_abs());
    if count < min || arity > 0 && count > min {
        return context.conn.error(&wrong_arity(name));
    }
    run(context, args)
}

fn wrong_arity(name: &str) -> String {
    format!("ERR wrong number of arguments for '{name}' command")
}

fn unknown(args: Args<'_>) -> String {
    let mut shown = String::new();
    for arg in args.from(1) {
        let room = 128_usize.saturating_sub(shown.len());
        if room > 0 {
            shown.extend(["'", &text(arg, room), "' "]);
        }
    }
    format!("ERR unknown command '{}', with args beginning with: {shown}", text(args.at(0), 128))
}

/// Converts the first `max` bytes to text.
fn text(bytes: &[u8], max: usize) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(max)]).into_owned()
}

fn unknown_subcommand(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    let (command, name) = (text(args.at(0), 128).to_uppercase(), text(args.at(1), 128));
    context.conn.error(&format!("ERR unknown subcommand '{name}'. Try {command} HELP."))
}

fn get(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    match context.store.get(args.at(1)) {
        Some(value) => context.conn.bulk(value),
        None => context.conn.null(),
    }
}

/// Returns the instant that is `count` times `unit` milliseconds from now. Returns the current
/// instant if `count` is negative. Returns `None` if the Unix time of the result, in milliseconds,
/// does not fit into 64 bits.
fn from_now(count: i64, unit: i64) -> Option<Instant> {
    let millis = count.checked_mul(unit)?;
    let today = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    millis.checked_add(i64::try_from(today).ok()?)?;
    Instant::now().checked_add(Duration::from_millis(millis.try_into().unwrap_or(0)))
}

fn set(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    let (mut expires, mut only_if) = (None, None);
    let mut index = 3;
    while index < args.len() {
        let option = args.at(index).to_ascii_uppercase();
        match &option[..] {
            b"NX" if only_if != Some(true) => only_if = Some(false),
            b"XX" if only_if != Some(false) => only_if = Some(true),
            b"EX" | b"PX" if index + 1 < args.len() => {
                let unit = if option == b"EX" { 1_000 } else { 1 };
                index += 1;
                if expires.replace((index, unit)).is_some_and(|(_, before)| before != unit) {
                    return context.conn.error(SYNTAX);
                }
            }
            _ => return context.conn.error(SYNTAX),
        }
        index += 1;
    }
    let mut until = None;
    if let Some((index, unit)) = expires {
        let Some(count) = args.integer(index) else {
            return context.conn.error(NOT_AN_INTEGER);
        };
        until = from_now(count, unit).filter(|_| count > 0);
        if until.is_none() {
            return context.conn.error("ERR invalid expire time in 'set' command");
        }
    }
    if only_if.is_some_and(|exists| exists != context.store.get(args.at(1)).is_some()) {
        return context.conn.null();
    }
    context.store.set(args.at(1), args.at(2), until);
    context.conn.simple("OK")
}

fn ping(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    match args.len() {
        1 => context.conn.simple("PONG"),
        2 => context.conn.bulk(args.at(1)),
        _ => context.conn.error(&wrong_arity("ping")),
    }
}

fn incr(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    let Some(value) = context.store.get(args.at(1)).map_or(Some(0), integer) else {
        return context.conn.error(NOT_AN_INTEGER);
    };
    let Some(value) = value.checked_add(1) else {
        return context.conn.error("ERR increment or decrement would overflow");
    };
    let (digits, from) = digits(value);
    context.store.update(args.at(1), &digits[from..]);
    context.conn.integer(value)
}

fn mset(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    if args.len() % 2 == 0 {
        return context.conn.error(&wrong_arity("mset"));
    }
    for index in (1..args.len()).step_by(2) {
        context.store.set(args.at(index), args.at(index + 1), None);
    }
    context.conn.simple("OK")
}

fn mget(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    context.conn.array(args.len() - 1)?;
    for key in args.from(1) {
        match context.store.get(key) {
            Some(value) => context.conn.bulk(value)?,
            None => context.conn.null()?,
        }
    }
    Ok(())
}

fn del(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    let removed = args.from(1).filter(|key| context.store.remove(key)).count();
    context.conn.integer(removed)
}

fn exists(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    let found = args.from(1).filter(|key| context.store.get(key).is_some()).count();
    context.conn.integer(found)
}

fn expire(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    if args.len() > 3 {
        return context.conn.error(&format!("ERR Unsupported option {}", text(args.at(3), 128)));
    }
    let key = args.at(1);
    let Some(seconds) = args.integer(2) else {
        return context.conn.error(NOT_AN_INTEGER);
    };
    let Some(expires) = from_now(seconds, 1_000) else {
        return context.conn.error("ERR invalid expire time in 'expire' command");
    };
    let exists = context.store.get(key).is_some();
    if seconds > 0 {
        context.store.expire(key, Some(expires));
    } else {
        context.store.remove(key);
    }
    context.conn.integer(u8::from(exists))
}

/// Returns the time to live of a key in milliseconds. Returns -1 if the key does not expire, and -2
/// if the key does not exist.
fn millis_left(context: &mut Context<'_, '_>, key: &[u8]) -> i64 {
    if context.store.get(key).is_none() {
        return -2;
    }
    let left = context.store.time_left(key);
    // The time is rounded up, so that right after `SET` it equals the time that was set.
    left.map_or(-1, |left| left.as_micros().div_ceil(1_000).try_into().unwrap_or(i64::MAX))
}

fn ttl(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    let left = millis_left(context, args.at(1));
    context.conn.integer(if left < 0 { left } else { left.saturating_add(500) / 1_000 })
}

fn pttl(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    let left = millis_left(context, args.at(1));
    context.conn.integer(left)
}

fn echo(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    context.conn.bulk(args.at(1))
}

fn client(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    match (&args.at(1).to_ascii_uppercase()[..], args.len()) {
        (b"ID", 2) => {
            let id = context.conn.id().as_u64();
            context.conn.integer(id)
        }
        (b"GETNAME", 2) if context.client.name.is_empty() => context.conn.null(),
        (b"GETNAME", 2) => context.conn.bulk(&context.client.name),
        (b"SETNAME", 3) if args.at(2).iter().all(u8::is_ascii_graphic) => {
            context.client.name = args.at(2).to_vec();
            context.conn.simple("OK")
        }
        (b"SETNAME", 3) => context
            .conn
            .error("ERR Client names cannot contain spaces, newlines or special characters."),
        (b"ID" | b"GETNAME" | b"SETNAME", _) => {
            let name = format!("client|{}", text(args.at(1), 128).to_lowercase());
            context.conn.error(&wrong_arity(&name))
        }
        _ => unknown_subcommand(context, args),
    }
}

fn command(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    if args.len() == 1 {
        context.conn.array(COMMANDS.len())?;
        return COMMANDS.iter().try_for_each(|(name, arity, _)| {
            context.conn.array(6)?;
            context.conn.bulk(name.as_bytes())?;
            context.conn.integer(*arity)?;
            // The reply contains no flags. It also contains no positions of keys, because only a
            // cluster needs them.
            context.conn.array(0)?;
            [0; 3].into_iter().try_for_each(|none| context.conn.integer(none))
        });
    }
    match &args.at(1).to_ascii_uppercase()[..] {
        b"COUNT" => context.conn.integer(COMMANDS.len()),
        b"DOCS" => context.conn.array(0),
        b"LIST" => {
            context.conn.array(COMMANDS.len())?;
            COMMANDS.iter().try_for_each(|(name, ..)| context.conn.bulk(name.as_bytes()))
        }
        _ => unknown_subcommand(context, args),
    }
}

/// Answers `CONFIG GET` for the settings that clients query when they connect.
fn config(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    if !args.at(1).eq_ignore_ascii_case(b"get") {
        return unknown_subcommand(context, args);
    }
    if args.len() == 2 {
        return context.conn.error(&wrong_arity("config|get"));
    }
    let bulk_max = BULK_MAX.to_string();
    let settings = [("appendonly", "no"), ("proto-max-bulk-len", &bulk_max), ("save", "")];
    let matches = |name: &str| {
        args.from(2).any(|arg| arg == b"*" || arg.eq_ignore_ascii_case(name.as_bytes()))
    };
    let found: Vec<_> = settings.into_iter().filter(|(name, _)| matches(name)).collect();
    context.conn.array(found.len() * 2)?;
    found.into_iter().try_for_each(|(name, value)| {
        context.conn.bulk(name.as_bytes())?;
        context.conn.bulk(value.as_bytes())
    })
}

fn select(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    match args.integer(1) {
        Some(0) => context.conn.simple("OK"),
        Some(index) if i32::try_from(index).is_err() => context
            .conn
            .error("ERR value is out of range, value must between -2147483648 and 2147483647"),
        Some(_) => context.conn.error("ERR DB index is out of range"),
        None => context.conn.error(NOT_AN_INTEGER),
    }
}

fn dbsize(context: &mut Context<'_, '_>, _args: Args<'_>) -> io::Result<()> {
    context.conn.integer(context.store.len())
}

fn flushall(context: &mut Context<'_, '_>, args: Args<'_>) -> io::Result<()> {
    // Both modes clear the store at once.
    let known =
        |arg: &[u8]| arg.eq_ignore_ascii_case(b"sync") || arg.eq_ignore_ascii_case(b"async");
    if args.len() > 2 || !args.from(1).all(known) {
        return context.conn.error(SYNTAX);
    }
    context.store.clear();
    context.conn.simple("OK")
}

fn quit(context: &mut Context<'_, '_>, _args: Args<'_>) -> io::Result<()> {
    context.conn.close();
    context.conn.simple("OK")
}
