//! What must hold after a fault, whichever it was, and what this one may not be noticed by.

use pool_manager::ERROR_SERVER_BUSY;

use crate::program::{CLOSED, FAILED, MISSED, OPEN, WARNED};
use crate::trace::{Fault, Run, name};

/// More turns than this, on top of those of a run without faults, are no longer a retry.
const TURNS: u64 = 150;

/// What is wrong, if something is. `clean` is the same scenario without a fault.
pub(crate) fn judge(fault: Option<&Fault>, run: &Run, clean: &Run) -> Result<(), String> {
    let of = |kind| run.all(kind);
    expect(run.code == Some(0), "it does not end well")?;
    expect(!run.said.iter().any(|line| line.contains("panicked")), "a panic")?;
    let turns = run.count("turns");
    expect(turns > 0 && turns <= clean.count("turns") + TURNS, "it spins")?;

    let (missed, failed, warned) = (of(MISSED), of(FAILED), of(WARNED));
    let injected = run.injected();
    let Some((fault, first)) = fault.zip(injected.first()) else {
        let silent = [MISSED, FAILED, WARNED, CLOSED, OPEN].map(|kind| of(kind).len());
        expect(silent == [0; 5] && run.left.is_empty(), "something went wrong without a fault")?;
        return expect(run.calls.iter().all(|line| cannot_signal(line)), "SIGPIPE may come");
    };
    // strace lets it fail without doing it, which the kernel never would.
    let unclosed = injected.iter().filter(|line| name(line) == "close").count();
    let open = of(OPEN).first().map_or(0, |line| leading_number(line));
    expect(open == unclosed, "a descriptor is left")?;
    expect(is_tidy(fault, run), "a path is left")?;

    let text = text(first);
    expect(!text.is_empty(), "strace does not say what it did")?;
    let names_it = |line: &&str| line.contains(text) || line.contains("it is in use");
    expect(failed.iter().all(names_it), "a call that failed does not say why")?;
    if fault.call == "epoll_wait" && fault.error != "EINTR" {
        let said = |lines: &[&str], what: &str| lines.iter().any(|line| line.starts_with(what));
        expect(said(&failed, "can't wait for readiness, all is closed"), "the wait went on")?;
        return expect(said(&warned, "can't wait for readiness, closing everything"), "not logged");
    }
    expect(missed.len() + failed.len() <= 1, "one fault, more than one victim")?;
    if is_invisible(fault, first) {
        expect(missed.is_empty() && failed.is_empty(), "somebody noticed")?;
    }
    for (errors, warning) in WARNINGS {
        if fault.call == "accept4" && errors.contains(&fault.error) {
            expect(warned.iter().any(|line| line.contains(warning)), "no warning")?;
        }
    }
    let lost = warned.iter().any(|line| line.contains("could not be registered or wrapped"));
    expect(lost == (run.count("lost") > 0), "a loss without a warning")?;
    let told = lost || !of(CLOSED).is_empty() || is_farewell(first);
    expect(missed.is_empty() || told, "somebody was cut off without a word")
}

/// What an operator has to hear of when accepting fails.
const WARNINGS: [(&[&str], &str); 2] = [
    (&["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"], "can't accept, will try again"),
    (&["EINVAL"], "no longer listens"),
];

/// Whether neither a peer nor the program may notice the fault, but for a delay: what is
/// interrupted is done again, what was to come later comes later, who could not be accepted waits
/// for the next attempt, and what is about to be closed need not be taken off the list.
fn is_invisible(fault: &Fault, call: &str) -> bool {
    match fault.call {
        "accept4" | "read" | "write" => true,
        "epoll_ctl" => call.contains("EPOLL_CTL_DEL"),
        // The last word of a listener that refuses is said once: who was just accepted has room.
        "sendto" if fault.error == "EAGAIN" && call.contains(ERROR_SERVER_BUSY) => false,
        _ => ["EINTR", "EAGAIN"].contains(&fault.error) && SERVING.contains(&fault.call),
    }
}

/// The calls of a loop that serves.
const SERVING: [&str; 3] = ["epoll_wait", "recvfrom", "sendto"];

/// Whether the call concerns a connection that has given its worker back, or never had one, and
/// lingers for its last word: of that no more is said. Its reads are longer than the buffer of a
/// worker, and its token is of a kind of its own.
fn is_farewell(call: &str) -> bool {
    match name(call) {
        "shutdown" | "close" => true,
        "sendto" => call.contains(ERROR_SERVER_BUSY),
        "recvfrom" => call.contains(", 8192, "),
        "epoll_ctl" => call.contains("u64=18446744060824649"),
        _ => false,
    }
}

pub(crate) fn expect(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// Whether nothing is left in the file system, but for what could not be removed or looked at.
pub(crate) fn is_tidy(fault: &Fault, run: &Run) -> bool {
    run.left.is_empty() || ["unlink", "rmdir", "statx"].contains(&fault.call)
}

/// Whether the call cannot raise `SIGPIPE`, whatever the process does about that signal: sockets
/// are written to only with `MSG_NOSIGNAL`, and else there is only the waker, with its 8 bytes.
fn cannot_signal(line: &str) -> bool {
    match name(line) {
        "sendto" => line.contains("MSG_NOSIGNAL"),
        "write" => line.contains(", 8)"),
        "writev" | "sendmsg" | "sendmmsg" | "splice" | "sendfile" => false,
        _ => true,
    }
}

fn leading_number(line: &str) -> usize {
    line.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// `Too many open files` in `= -1 EMFILE (Too many open files) (INJECTED)`.
pub(crate) fn text(line: &str) -> &str {
    let text = line.rsplit_once(" = -1 ").and_then(|(_, rest)| rest.split_once('('));
    text.and_then(|(_, text)| text.split_once(") (INJECTED)")).map_or("", |(text, _)| text)
}
