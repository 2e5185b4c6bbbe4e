//! `reactor_echo` itself under torture, from its first socket to its exit: what it cannot do
//! without is one line and exit code 1, and everything else it survives.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::examples::directory;
use crate::judge::{expect, is_tidy, text};
use crate::peers::Peer;
use crate::program::MISSED;
use crate::scene::{Scenario, Scene};
use crate::support::{Dir, PATIENCE};
use crate::trace::{Fault, LOG, Run, left, name, patience_and_deadline, split_at};

/// Serves two peers between its start and a signal.
pub(crate) fn play(fault: Option<&Fault>) -> Run {
    let own = Dir::new();
    let log = own.path(LOG);
    // strace steps behind the program, which is our own child then.
    let mut strace = Command::new("strace");
    strace.arg("-D").arg("-o").arg(&log);
    if let Some(fault) = fault {
        strace.args(["-e", &format!("trace={},socket", fault.call), "-e", &fault.injection()]);
    }
    let (mut patience, deadline) = patience_and_deadline(fault);
    if fault.is_some_and(|fault| fault.call == "epoll_wait") {
        // It may be gone.
        patience = Duration::from_secs(1);
    }
    strace.arg(directory().join("reactor_echo"));
    strace.args(["--listen", "127.0.0.1:0", "--unix"]).arg(own.path("socket"));
    strace.args(["--deadline-ms", &deadline.as_millis().to_string()]);
    strace.env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(Stdio::piped());

    let mut program = strace.spawn().expect("strace runs");
    let mut stdout = BufReader::new(program.stdout.take().expect("its output")).lines();
    let mut said: Vec<String> = Vec::new();
    // Two listeners, two lines; fewer if it ends before.
    said.extend(stdout.by_ref().take(2).map_while(Result::ok));
    if let Some(addr) = said.first().filter(|_| said.len() == 2).and_then(|line| addr(line)) {
        let scene = Scene::new(Scenario::Tcp, own.path("socket"), patience, deadline);
        scene.tell(|news| news.addr = Some(addr));
        said.extend(visit(&scene).into_iter().map(|missed| format!("{MISSED}{missed}")));
        // It may have ended by itself.
        let _ = Command::new("kill").arg(program.id().to_string()).stderr(Stdio::null()).status();
    }
    said.extend(stdout.map_while(Result::ok));
    let output = program.wait_with_output().expect("it ends");
    said.extend(String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned));
    await_end(&log);
    let (before, calls) = split_at(&log, |line| name(line) == "socket", |_| false);
    Run { code: output.status.code(), said, left: left(&own), before, calls }
}

fn visit(scene: &Scene) -> Vec<String> {
    let (mut one, mut other) = (Peer::connect(scene, "one"), Peer::connect(scene, "other"));
    one.exchange(b"hello");
    other.exchange(b"hi");
    one.finish(b"bye");
    other.finish(b"bye");
    [one, other].into_iter().filter_map(Peer::missed).collect()
}

/// The address in `listening on 127.0.0.1:6263; try: ...`.
fn addr(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("listening on ")?.split(';').next()?.parse().ok()
}

/// strace writes its last line after the program has ended.
fn await_end(log: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(log).is_ok_and(|log| log.contains("+++ exited")) {
        assert!(Instant::now() < deadline, "strace does not end");
        std::thread::yield_now();
    }
}

/// What is wrong, if something is.
pub(crate) fn judge(fault: Option<&Fault>, run: &Run) -> Result<(), String> {
    let (missed, injected) = (run.all(MISSED), run.injected());
    expect(!run.said.iter().any(|line| line.contains("panicked")), "a panic")?;
    let stopped = run.said.iter().any(|line| line.starts_with("stopped: "));
    let complaints = run.all("reactor_echo: ");
    let Some((fault, first)) = fault.zip(injected.first()) else {
        expect(complaints.is_empty() && missed.is_empty(), "something went wrong without a fault")?;
        expect(run.left.is_empty(), "a path is left")?;
        return expect(run.code == Some(0) && stopped, "it does not end well");
    };
    expect(is_tidy(fault, run), "a path is left")?;
    if run.code == Some(0) {
        expect(complaints.is_empty() && stopped, "it ends well, but does not say so")?;
    } else {
        expect(run.code == Some(1) && complaints.len() == 1, "its end is not one line and a 1")?;
        // A path that is there when it is bound but not when it is looked at is reported as such.
        let indirect = first.starts_with("linkat(") && fault.error == "EEXIST";
        let names_it = complaints[0].contains(text(first)) || complaints[0].contains("in use");
        let names_it = names_it || indirect;
        expect(names_it, "it does not say why")?;
        let spared = ["accept4", "recvfrom", "sendto", "shutdown", "close", "write"];
        expect(!spared.contains(&fault.call), "it ended for something it can do without")?;
    }
    let blind = fault.call == "epoll_wait" && fault.error != "EINTR";
    expect(!blind || run.code == Some(1), "the wait went on")?;
    expect(blind || missed.len() <= 1, "one fault, more than one victim")
}
