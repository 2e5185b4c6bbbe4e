//! Helpers for tests that run the example programs. They build and start a program, read its
//! output, and send it signals. There is also a minimal client.

// Each test binary uses only a part of this module.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Time limit for any single wait in a test.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) const LOOPBACK: [&str; 2] = ["--listen", "127.0.0.1:0"];

/// Returns the directory of the programs, `target/PROFILE/examples`. Builds the programs if one is
/// missing or older than the sources. This can happen under `cargo test --test programs`, which
/// does not build them.
pub(crate) fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let test = std::env::current_exe().expect("this program");
        let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/NAME");
        let directory = profile.join("examples");
        let built = [
            "reactor_echo",
            "tcp_ok",
            "chat",
            "sharded",
            "restart",
            "balanced",
            "metrics",
            "forward",
        ]
        .map(|name| modified(&directory.join(name)));
        if built.into_iter().min().flatten() < newest(Path::new(env!("CARGO_MANIFEST_DIR"))) {
            build(profile);
        }
        directory
    })
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// Returns the time of the latest change of a source file.
fn newest(root: &Path) -> Option<SystemTime> {
    let mut newest = modified(&root.join("Cargo.toml"));
    let mut unseen = vec![root.join("src"), root.join("examples")];
    while let Some(directory) = unseen.pop() {
        for entry in fs::read_dir(directory).expect("a directory of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                unseen.push(path);
            } else {
                newest = newest.max(modified(&path));
            }
        }
    }
    newest
}

fn build(profile: &Path) {
    let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--examples", "--profile"])
        .arg(if name == "debug" { "dev" } else { name })
        .arg("--target-dir")
        .arg(profile.parent().expect("a target directory"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(status.expect("cargo runs").success(), "the examples can't be built");
}

/// A running program, killed on drop.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

/// Returns a command that runs the program without the environment variables of the logger.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(directory().join(name));
    command.env_remove("RUST_LOG").env_remove("RUST_LOG_STYLE");
    command
}

/// The lines that a child prints. They end when the child exits.
pub(crate) struct Lines(Receiver<String>);

impl Lines {
    pub(crate) fn of(stream: Option<impl Read + Send + 'static>) -> Self {
        let (sender, lines) = channel();
        if let Some(stream) = stream {
            thread::spawn(move || {
                let lines = BufReader::new(stream).lines().map_while(Result::ok);
                lines.for_each(|line| drop(sender.send(line)));
            });
        }
        Self(lines)
    }

    pub(crate) fn next(&self) -> String {
        self.0.recv_timeout(TIMEOUT).expect("a line")
    }

    /// Returns the first line that contains `part`, and discards the lines before it.
    pub(crate) fn find(&self, part: &str) -> String {
        std::iter::repeat_with(|| self.next()).find(|line| line.contains(part)).expect("a line")
    }

    /// Returns the remaining lines until the child exits.
    pub(crate) fn rest(&self) -> Vec<String> {
        let deadline = Instant::now() + TIMEOUT;
        let mut lines = Vec::new();
        while let Ok(line) = self.0.recv_timeout(deadline - Instant::now()) {
            lines.push(line);
        }
        assert!(Instant::now() < deadline, "the program does not exit: {lines:#?}");
        lines
    }
}

impl Program {
    pub(crate) fn run(name: &str, args: &[&str]) -> Self {
        Self::spawn(program(name).args(args))
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self::spawn_with_stderr(command, Stdio::piped())
    }

    pub(crate) fn spawn_with_stderr(command: &mut Command, stderr: Stdio) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().expect("the program runs");
        let (stdout, stderr) = (Lines::of(child.stdout.take()), Lines::of(child.stderr.take()));
        Self { child, stdout, stderr }
    }

    /// Returns the address that the program prints when it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        addr(&self.stdout.next())
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits until the program exits. Returns its status and the remaining lines of both streams.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>, Vec<String>) {
        let (stdout, stderr) = (self.stdout.rest(), self.stderr.rest());
        (self.wait(), stdout, stderr)
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < deadline, "the program does not exit");
            thread::yield_now();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the address in `listening on 127.0.0.1:6263; try: ...`.
pub(crate) fn addr(line: &str) -> SocketAddr {
    let rest = line.strip_prefix("listening on ").expect(line);
    rest.split(';').next().and_then(|addr| addr.parse().ok()).expect(line)
}

pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

/// Starts a program that listens on a free port. Returns the program and the address.
pub(crate) fn listening(name: &str, args: &[&str]) -> (Program, SocketAddr) {
    let program = Program::run(name, &[&LOOPBACK, args].concat());
    let addr = program.addr();
    (program, addr)
}

pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(addr).expect("connect");
    client.set_read_timeout(Some(TIMEOUT)).expect("read timeout");
    client
}

pub(crate) fn send(client: &mut impl Write, text: &str) {
    client.write_all(text.as_bytes()).expect("send");
}

pub(crate) fn receive(client: &mut impl Read, count: usize) -> String {
    let mut reply = vec![0; count];
    client.read_exact(&mut reply).expect("a reply");
    String::from_utf8(reply).expect("text")
}

/// Reads until the end of file. Fails on a reset.
pub(crate) fn receive_all(client: &mut impl Read) -> String {
    let mut reply = String::new();
    client.read_to_string(&mut reply).expect("a reply and an end of file");
    reply
}
