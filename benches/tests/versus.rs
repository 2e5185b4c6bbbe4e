//! The servers that `versus` compares echo every byte, and no server outlives its parent process.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const VERSUS: &str = env!("CARGO_BIN_EXE_versus");
const SERVERS: [&str; 5] = ["pool-manager", "epoll", "mio", "tokio", "threads"];
const MODES: [&str; 3] = ["echo", "lines", "idle"];

/// Timeout of every wait in these tests.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A process that is killed when it is dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes that should end by themselves. They are killed on drop if they still run.
struct Orphans(Vec<u32>);

impl Orphans {
    fn any_is_running(&self) -> bool {
        self.0.iter().any(|pid| is_running(*pid))
    }
}

impl Drop for Orphans {
    fn drop(&mut self) {
        for pid in self.0.iter().filter(|pid| is_running(**pid)) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }
}

fn start(command: &mut Command) -> (Started, impl Iterator<Item = String> + use<>) {
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    (Started(child), lines)
}

fn connect(port: &str) -> TcpStream {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse().unwrap())).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

fn wait_until(failure: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < TIMEOUT, "{failure}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the state and the parent of a process, or `None` if the process does not exist.
fn status(pid: u32) -> Option<(char, u32)> {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = status.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Returns true if the process runs. A zombie does not count as running, because its new parent may
/// reap it late.
fn is_running(pid: u32) -> bool {
    status(pid).is_some_and(|(state, _)| state != 'Z')
}

fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| status(*pid).is_some_and(|(_, of_pid)| of_pid == parent)).collect()
}

#[test]
fn every_server_echoes_in_every_mode() {
    for (server, mode) in SERVERS.iter().flat_map(|server| MODES.map(|mode| (server, mode))) {
        let (_server, mut lines) = start(Command::new(VERSUS).args(["serve", server, mode]));
        let port = lines.next().unwrap();
        let mut peers: Vec<TcpStream> = (0..10).map(|_| connect(&port)).collect();
        for round in 0..3 {
            let line = |peer, line| format!("{server} {mode}: {round} {peer} {line}\n");
            let text = |peer: usize| (0..16).map(|n| line(peer, n)).collect::<Vec<_>>().concat();
            for (peer, socket) in peers.iter_mut().enumerate() {
                // Write in two pieces, so that a line is split.
                let text = text(peer);
                let (first, rest) = text.split_at(text.len() / 3);
                socket.write_all(first.as_bytes()).unwrap();
                socket.write_all(rest.as_bytes()).unwrap();
            }
            for (peer, socket) in peers.iter_mut().enumerate() {
                let mut reply = vec![0; text(peer).len()];
                socket.read_exact(&mut reply).unwrap();
                assert_eq!(String::from_utf8(reply).unwrap(), text(peer));
            }
        }
        for mut socket in peers {
            socket.shutdown(Shutdown::Write).unwrap();
            assert_eq!(socket.read(&mut [0]).unwrap(), 0, "{server} {mode}");
        }
    }
}

#[test]
fn no_server_outlives_its_parent() {
    for server in SERVERS {
        // The shell is the parent; it prints the process id of the server.
        let script = r#""$0" serve "$1" echo & echo "pid $!"; wait"#;
        let (mut shell, lines) = start(Command::new("sh").args(["-c", script, VERSUS, server]));
        let mut lines: Vec<String> = lines.take(2).collect();
        lines.sort();
        let [port, pid] = &lines[..] else { panic!("{server}: {lines:?}") };
        let orphan = Orphans(vec![pid.strip_prefix("pid ").unwrap().parse().unwrap()]);
        let mut socket = connect(port);
        socket.write_all(b".").unwrap();
        socket.read_exact(&mut [0]).unwrap();
        assert!(orphan.any_is_running(), "{server}");
        shell.0.kill().unwrap();
        wait_until(&format!("{server} still runs"), || !orphan.any_is_running());
    }
}

#[test]
fn a_server_continues_after_sigstop_and_sigcont() {
    for server in SERVERS {
        let (process, mut lines) = start(Command::new(VERSUS).args(["serve", server, "echo"]));
        let mut socket = connect(&lines.next().unwrap());
        for signal in ["-STOP", "-CONT"] {
            let pid = process.0.id().to_string();
            assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        }
        socket.write_all(b".").unwrap();
        socket.read_exact(&mut [0]).unwrap_or_else(|error| panic!("{server}: {error}"));
    }
}

#[test]
fn only_the_threads_server_has_more_than_one_thread() {
    for server in SERVERS {
        let (process, mut lines) = start(Command::new(VERSUS).args(["serve", server, "echo"]));
        let mut socket = connect(&lines.next().unwrap());
        socket.write_all(b".").unwrap();
        socket.read_exact(&mut [0]).unwrap();
        let tasks = fs::read_dir(format!("/proc/{}/task", process.0.id())).unwrap().count();
        assert_eq!(tasks, if server == "threads" { 2 } else { 1 }, "{server}");
    }
}

#[test]
fn a_killed_measurement_leaves_no_server() {
    let (mut versus, _) = start(Command::new(VERSUS).args(["--quick", "--only", "echo-64"]));
    let id = versus.0.id();
    wait_until("no server was started", || !children(id).is_empty());
    let servers = Orphans(children(id));
    versus.0.kill().unwrap();
    versus.0.wait().unwrap();
    wait_until("a server still runs", || !servers.any_is_running());
}

#[test]
fn a_measurement_prints_a_line_per_server_and_writes_plots() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("versus");
    let mut versus = Command::new(VERSUS);
    versus.args(["--quick", "--only", "echo-1", "--out"]).arg(&out);
    let (mut versus, lines) = start(&mut versus);
    let lines: Vec<String> = lines.collect();
    assert!(versus.0.wait().unwrap().success(), "{lines:?}");
    for server in SERVERS {
        let line = lines.iter().find(|line| line.trim_start().starts_with(server)).unwrap();
        let figures: Vec<&str> = line.split_whitespace().skip(1).collect();
        assert_eq!(figures.len(), 9, "{line}");
        assert!(figures.iter().filter(|figure| **figure != "-").count() == 8, "{line}");
        assert!(fs::read_to_string(out.join("cpu.svg")).unwrap().contains(server));
    }
}

#[test]
fn invalid_arguments_are_refused_in_one_line() {
    for args in [&["--only", "nothing"][..], &["serve", "nobody", "echo"], &["--twice"]] {
        let output = Command::new(VERSUS).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "{args:?}");
    }
}
