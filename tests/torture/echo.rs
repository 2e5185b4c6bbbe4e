//! Injects faults into `reactor_echo`, from its first socket to its exit. If a call that the
//! program needs fails, the program prints one line and exits with code 1. It survives all other
//! faults.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::examples::directory;
use crate::judge::{expect, is_tidy, text};
use crate::peers::Peer;
use crate::program::PEER_FAILED;
use crate::shared::{Scenario, Shared};
use crate::support::{Dir, TIMEOUT};
use crate::trace::{Fault, LOG, Run, left, name, split_at, timeout_and_deadline};

/// Starts `reactor_echo` under strace, talks to it with two peers and ends it with a signal.
pub(crate) fn play(fault: Option<&Fault>) -> Run {
    let temp = Dir::new();
    let log = temp.path(LOG);
    // With `-D`, strace runs as a detached grandchild, and the traced program is the child of this
    // process.
    let mut strace = Command::new("strace");
    strace.arg("-D").arg("-o").arg(&log);
    if let Some(fault) = fault {
        strace.args(["-e", &format!("trace={},socket", fault.call), "-e", &fault.injection()]);
    }
    let (mut timeout, deadline) = timeout_and_deadline(fault);
    if fault.is_some_and(|fault| fault.call == "epoll_wait") {
        // After a failed wait, the program may have exited.
        timeout = Duration::from_secs(1);
    }
    strace.arg(directory().join("reactor_echo"));
    strace.args(["--listen", "127.0.0.1:0", "--unix"]).arg(temp.path("socket"));
    strace.args(["--deadline-ms", &deadline.as_millis().to_string()]);
    strace.env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(Stdio::piped());

    let mut program = strace.spawn().expect("strace runs");
    let mut stdout = BufReader::new(program.stdout.take().expect("piped")).lines();
    let mut lines: Vec<String> = Vec::new();
    // The program prints one line for each of its two listeners, and fewer if it exits early.
    lines.extend(stdout.by_ref().take(2).map_while(Result::ok));
    if let Some(addr) = lines.first().filter(|_| lines.len() == 2).and_then(|line| addr(line)) {
        let shared = Shared::new(Scenario::Tcp, temp.path("socket"), timeout, deadline);
        shared.with_state(|state| state.addr = Some(addr));
        lines.extend(visit(&shared).into_iter().map(|failure| format!("{PEER_FAILED}{failure}")));
        stop(&mut program);
    }
    lines.extend(stdout.map_while(Result::ok));
    let output = program.wait_with_output().expect("the program exits");
    lines.extend(String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned));
    await_end(&log);
    let (before, calls) = split_at(&log, |line| name(line) == "socket", |_| false);
    Run { code: output.status.code(), lines, left: left(&temp), before, calls }
}

/// Sends signals until the program exits. A fault in the call that writes or reads the byte of a
/// signal delays the stop until the next signal.
fn stop(program: &mut Child) {
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        // The program may already have exited.
        let id = program.id().to_string();
        let _ = Command::new("kill").arg(id).stderr(Stdio::null()).status();
        let next = Instant::now() + Duration::from_secs(1);
        while Instant::now() < next {
            if !matches!(program.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // The output then lacks the line about the stop.
    let _ = program.kill();
}

fn visit(shared: &Shared) -> Vec<String> {
    let (mut one, mut other) = (Peer::connect(shared, "one"), Peer::connect(shared, "other"));
    one.exchange(b"hello");
    other.exchange(b"hi");
    one.finish(b"bye");
    other.finish(b"bye");
    [one, other].into_iter().filter_map(Peer::failure).collect()
}

/// Returns the address in `listening on 127.0.0.1:6263; try: ...`.
fn addr(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("listening on ")?.split(';').next()?.parse().ok()
}

/// Waits for the last line of strace, which appears after the program has exited.
fn await_end(log: &Path) {
    let deadline = Instant::now() + TIMEOUT;
    while !fs::read_to_string(log).is_ok_and(|log| log.contains("+++ exited")) {
        assert!(Instant::now() < deadline, "strace does not exit");
        std::thread::yield_now();
    }
}

/// Checks a run. The error says which expectation failed.
pub(crate) fn judge(fault: Option<&Fault>, run: &Run) -> Result<(), String> {
    let (failures, injected) = (run.all(PEER_FAILED), run.injected());
    expect(!run.lines.iter().any(|line| line.contains("panicked")), "a panic")?;
    let stopped = run.lines.iter().any(|line| line.starts_with("stopped: "));
    let errors = run.all("reactor_echo: ");
    let Some((fault, first)) = fault.zip(injected.first()) else {
        expect(errors.is_empty() && failures.is_empty(), "an error without a fault")?;
        expect(run.left.is_empty(), "a path is left")?;
        return expect(run.code == Some(0) && stopped, "no regular exit");
    };
    expect(is_tidy(fault, run), "a path is left")?;
    if run.code == Some(0) {
        expect(errors.is_empty() && stopped, "exit code 0 without a regular stop")?;
    } else {
        expect(
            run.code == Some(1) && errors.len() == 1,
            "a failure without exit code 1 and one line",
        )?;
        // After `EEXIST` from `linkat`, the program checks the path and reports that the path is
        // missing.
        let indirect = first.starts_with("linkat(") && fault.error == "EEXIST";
        let names_error = errors[0].contains(text(first)) || errors[0].contains("in use");
        let names_error = names_error || indirect;
        expect(names_error, "the message does not contain the error")?;
        let spared = ["accept4", "recvfrom", "sendto", "shutdown", "close", "write"];
        expect(!spared.contains(&fault.call), "exit after a fault that it should survive")?;
    }
    let wait_failed = fault.call == "epoll_wait" && fault.error != "EINTR";
    expect(!wait_failed || run.code == Some(1), "no exit after a failed wait")?;
    expect(wait_failed || failures.len() <= 1, "one fault, several failures")
}
