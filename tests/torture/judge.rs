//! Checks of a run: the expectations that hold after every fault, and those for single faults.

use pool_manager::ERROR_SERVER_BUSY;

use crate::program::{CALL_FAILED, CLOSED, OPEN, PEER_FAILED, WARNED};
use crate::trace::{Fault, Run, name};

/// Maximum number of turns by which a run with a fault may exceed a run without a fault.
const TURNS: u64 = 150;

/// Checks a run. The error says which expectation failed. `clean` is a run without a fault.
pub(crate) fn judge(fault: Option<&Fault>, run: &Run, clean: &Run) -> Result<(), String> {
    let of = |kind| run.all(kind);
    expect(run.code == Some(0), "the exit code is not 0")?;
    expect(!run.lines.iter().any(|line| line.contains("panicked")), "a panic")?;
    let turns = run.count("turns");
    expect(turns > 0 && turns <= clean.count("turns") + TURNS, "too many turns")?;

    let (peer_failures, call_failures, warned) = (of(PEER_FAILED), of(CALL_FAILED), of(WARNED));
    let injected = run.injected();
    let Some((fault, first)) = fault.zip(injected.first()) else {
        let silent = [PEER_FAILED, CALL_FAILED, WARNED, CLOSED, OPEN].map(|kind| of(kind).len());
        expect(silent == [0; 5] && run.left.is_empty(), "an error without a fault")?;
        return expect(
            run.calls.iter().all(|line| cannot_signal(line)),
            "a call may raise SIGPIPE",
        );
    };
    // strace does not execute a `close` into which it injects an error, so the descriptor stays
    // open. Without strace, the kernel frees the descriptor even if `close` fails.
    let unclosed = injected.iter().filter(|line| name(line) == "close").count();
    let open = of(OPEN).first().map_or(0, |line| leading_number(line));
    expect(open == unclosed, "a descriptor is left")?;
    expect(is_tidy(fault, run), "a path is left")?;

    let text = text(first);
    expect(!text.is_empty(), "no error text from strace")?;
    let names_error = |line: &&str| line.contains(text) || line.contains("it is in use");
    expect(call_failures.iter().all(names_error), "a failed call does not report the error")?;
    if is_failed_wait(fault, first) {
        let any_starts_with =
            |lines: &[&str], what: &str| lines.iter().any(|line| line.starts_with(what));
        expect(
            any_starts_with(&call_failures, "can't wait for readiness, all connections are closed"),
            "no failure after a failed wait",
        )?;
        return expect(
            any_starts_with(&warned, "can't wait for readiness, closing all connections"),
            "not logged",
        );
    }
    expect(peer_failures.len() + call_failures.len() <= 1, "one fault, several failures")?;
    if is_invisible(fault, first) {
        expect(peer_failures.is_empty() && call_failures.is_empty(), "the fault is visible")?;
    }
    for (errors, warning) in WARNINGS {
        if fault.call == "accept4" && errors.contains(&fault.error) {
            expect(warned.iter().any(|line| line.contains(warning)), "no warning")?;
        }
    }
    let lost = warned.iter().any(|line| line.contains("could not be registered or wrapped"));
    expect(lost == (run.count("lost") > 0), "lost connections and warnings differ")?;
    let explained = lost || !of(CLOSED).is_empty() || is_lingering(first);
    expect(peer_failures.is_empty() || explained, "a peer was cut off without a log line")
}

/// Returns whether the fault makes a wait of a turn fail. A stop also calls `epoll_wait`, to take a
/// wake that no turn has taken. This call asks for one event. Its errors are ignored.
fn is_failed_wait(fault: &Fault, call: &str) -> bool {
    fault.call == "epoll_wait" && fault.error != "EINTR" && !takes_wake(call)
}

fn takes_wake(call: &str) -> bool {
    name(call) == "epoll_wait" && call.contains(", 1, 0)")
}

/// The warnings that must be logged when `accept4` fails, by error.
const WARNINGS: [(&[&str], &str); 2] = [
    (&["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"], "can't accept, will try again"),
    (&["EINVAL"], "no longer listens"),
];

/// Returns whether the fault may only cause a delay. Interrupted calls are repeated, and calls that
/// return `EAGAIN` are retried later. A connection that was not accepted waits for the next
/// attempt. A descriptor that is about to be closed does not have to be deregistered.
fn is_invisible(fault: &Fault, call: &str) -> bool {
    match fault.call {
        "accept4" | "read" | "write" => true,
        "epoll_wait" if takes_wake(call) => true,
        "epoll_ctl" => call.contains("EPOLL_CTL_DEL"),
        // The loop tries only once to send the message to a refused connection, because a new
        // socket has buffer space.
        "sendto" if fault.error == "EAGAIN" && call.contains(ERROR_SERVER_BUSY) => false,
        _ => ["EINTR", "EAGAIN"].contains(&fault.error) && SERVING.contains(&fault.call),
    }
}

/// The calls with which the loop waits, reads and writes.
const SERVING: [&str; 3] = ["epoll_wait", "recvfrom", "sendto"];

/// Returns whether the call concerns a lingering connection. Such a connection holds no worker, and
/// its errors are not logged. A lingering connection is recognized by its token, or by reads that
/// are longer than the buffer of a worker.
fn is_lingering(call: &str) -> bool {
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

/// Returns true if no path is left, or if the fault may have prevented the removal of a path.
pub(crate) fn is_tidy(fault: &Fault, run: &Run) -> bool {
    run.left.is_empty() || ["unlink", "rmdir", "statx"].contains(&fault.call)
}

/// Returns whether the call cannot raise `SIGPIPE`, even if the process does not ignore the signal.
/// Sockets are written to only with `MSG_NOSIGNAL`. The only other writes are the 8 bytes of the
/// waker.
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

/// Returns `Too many open files` in `= -1 EMFILE (Too many open files) (INJECTED)`.
pub(crate) fn text(line: &str) -> &str {
    let text = line.rsplit_once(" = -1 ").and_then(|(_, rest)| rest.split_once('('));
    text.and_then(|(_, text)| text.split_once(") (INJECTED)")).map_or("", |(text, _)| text)
}
