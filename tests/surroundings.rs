//! Changes in the environment of a program: a suspension, a jump of the clock, a full stderr.
//!
//! `clock_gettime` makes no system call (vDSO), so strace cannot change its result. The tests use
//! libfaketime to make the clocks jump, if it is installed (Debian: `libfaketime`).

#![cfg(target_os = "linux")]

#[path = "support/examples.rs"]
mod examples;
mod support;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use examples::{
    LOOPBACK, Program, TIMEOUT, connect, listening, program, receive, receive_all, send,
};
use pool_manager::ERROR_SERVER_BUSY;
use support::{Dir, reset};

/// A deadline that does not expire during a test.
const LONG: [&str; 2] = ["--deadline-ms", "600000"];

/// Returns the state of a process as in `ps`: `T` if it is suspended.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    stat.rsplit(") ").next()?.chars().next()
}

fn suspend(program: &Program) {
    program.signal("-STOP");
    let deadline = Instant::now() + TIMEOUT;
    while state(program.child.id()) != Some('T') {
        assert!(Instant::now() < deadline, "the program is not suspended");
        thread::yield_now();
    }
}

#[test]
fn requests_sent_during_a_suspension_are_answered_after_it() {
    const DEADLINE: Duration = Duration::from_millis(700);
    let (program, addr) = listening("reactor_echo", &["--deadline-ms", "700"]);
    let mut clients: Vec<TcpStream> = (0..20).map(|_| connect(addr)).collect();
    for client in &mut clients {
        send(client, "hello");
        assert_eq!(receive(client, 5), "hello");
    }
    suspend(&program);
    let (speakers, silent) = clients.split_at_mut(10);
    for client in &mut *speakers {
        send(client, "still here");
    }
    let mut accepted_later = connect(addr);
    send(&mut accepted_later, "new here");
    // Let twice the deadline pass while the program is suspended.
    thread::sleep(2 * DEADLINE);
    program.signal("-CONT");
    for client in speakers {
        assert_eq!(receive(client, 10), "still here");
    }
    assert_eq!(receive(&mut accepted_later, 8), "new here");
    for client in silent {
        assert_eq!(receive_all(client), "");
    }
}

/// Each signal interrupts the wait of the program.
#[test]
fn repeated_suspensions_under_load_lose_no_request() {
    const SUSPENSIONS: u32 = 40;
    let (program, addr) = listening("reactor_echo", &LONG);
    let (done, exchanges) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = connect(addr);
                while !done.load(Ordering::Relaxed) {
                    send(&mut client, "hello");
                    assert_eq!(receive(&mut client, 5), "hello");
                    exchanges.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 1..=SUSPENSIONS {
            suspend(&program);
            program.signal("-CONT");
            // Some requests are answered between two suspensions.
            let deadline = Instant::now() + TIMEOUT;
            while exchanges.load(Ordering::Relaxed) < 20 * round {
                assert!(Instant::now() < deadline, "no request is answered");
                thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    program.signal("-TERM");
    let (status, stdout, stderr) = program.end();
    assert_eq!(status.code(), Some(0), "{stderr:#?}");
    assert!(stdout[0].contains("4 put, 0 busy, 4 closed"), "{stdout:#?}");
}

/// A clock that the test can set, for programs that are started with it.
struct Clock {
    library: PathBuf,
    offset: PathBuf,
    _directory: Dir,
}

impl Clock {
    /// Returns `None` and prints a message if libfaketime is missing.
    fn new() -> Option<Self> {
        let prefixes = ["x86_64-linux-gnu/", "aarch64-linux-gnu/", ""];
        let paths = prefixes.map(|prefix| format!("/usr/lib/{prefix}faketime/libfaketime.so.1"));
        let Some(library) = paths.into_iter().map(PathBuf::from).find(|path| path.exists()) else {
            eprintln!("skipped: libfaketime is missing");
            return None;
        };
        let directory = Dir::new();
        let clock = Self { library, offset: directory.path("offset"), _directory: directory };
        clock.turn("+0");
        Some(clock)
    }

    /// Sets the offset of the clock from the true time. The offset is a number of seconds, such as
    /// `+3600`. The file is replaced in one step, so that the program never reads an incomplete
    /// offset.
    fn turn(&self, offset: &str) {
        let next = self.offset.with_extension("next");
        fs::write(&next, offset).expect("a file");
        fs::rename(&next, &self.offset).expect("a file in its place");
    }

    /// Starts `reactor_echo` with this clock. If `monotonic` is 1, only the wall clock is faked.
    fn start(&self, deadline: &str, monotonic: &str) -> (Program, SocketAddr) {
        let mut command = program("reactor_echo");
        command.args(LOOPBACK).args(["--deadline-ms", deadline]);
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", &self.offset);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", monotonic);
        let program = Program::spawn(&mut command);
        let addr = program.addr();
        (program, addr)
    }
}

#[test]
fn a_jump_of_the_monotonic_clock_expires_only_idle_connections() {
    let Some(clock) = Clock::new() else { return };
    let (program, addr) = clock.start("600000", "0");
    let (mut silent, mut speaker) = (connect(addr), connect(addr));
    send(&mut silent, "hello");
    assert_eq!(receive(&mut silent, 5), "hello");
    // A connection that is served in the turn in which the clock jumps does not expire. These
    // exchanges make sure that `silent` is not served in that turn.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(20) {
        send(&mut speaker, "hello");
        assert_eq!(receive(&mut speaker, 5), "hello");
    }
    suspend(&program);
    send(&mut speaker, "before the jump");
    clock.turn("+3600");
    program.signal("-CONT");
    assert_eq!(receive(&mut speaker, 15), "before the jump");
    assert_eq!(receive_all(&mut silent), "", "its deadline has passed");
    send(&mut speaker, "behind the jump");
    assert_eq!(receive(&mut speaker, 15), "behind the jump");
    program.signal("-TERM");
    assert_eq!(program.end().0.code(), Some(0));
}

#[test]
fn jumps_of_the_wall_clock_have_no_effect() {
    let Some(clock) = Clock::new() else { return };
    let (program, addr) = clock.start("60000", "1");
    let (mut silent, mut speaker) = (connect(addr), connect(addr));
    send(&mut silent, "hello");
    assert_eq!(receive(&mut silent, 5), "hello");
    for offset in ["+3600", "-7200", "+360000"] {
        clock.turn(offset);
        for _ in 0..10 {
            send(&mut speaker, "hello");
            assert_eq!(receive(&mut speaker, 5), "hello");
        }
    }
    send(&mut silent, "still here");
    assert_eq!(receive(&mut silent, 10), "still here");
    program.signal("-TERM");
    assert_eq!(program.end().0.code(), Some(0));
}

/// A named pipe, open for reading and writing.
struct Pipe {
    file: File,
    path: PathBuf,
    _directory: Dir,
}

/// `O_NONBLOCK`. It applies only to the test's end of the pipe. The program's end is opened
/// separately.
const NONBLOCK: i32 = 0o4000;

impl Pipe {
    fn new() -> Self {
        let directory = Dir::new();
        let path = directory.path("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
        // Opening the pipe for reading and writing does not wait for another process.
        let options = File::options().read(true).write(true).custom_flags(NONBLOCK).open(&path);
        Self { file: options.expect("a pipe"), path, _directory: directory }
    }

    /// Writes until the pipe has no space for another byte.
    fn fill(&mut self) {
        for chunk in [4096, 1] {
            while self.file.write(&vec![b'.'; chunk]).is_ok() {}
        }
    }

    fn drain(&mut self) -> String {
        let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            match self.file.read(&mut chunk) {
                Ok(count) => text.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Reads until the text contains `part`.
    fn await_line(&mut self, part: &str) {
        let (deadline, mut text) = (Instant::now() + TIMEOUT, String::new());
        while !text.contains(part) {
            assert!(Instant::now() < deadline, "{text}");
            text += &self.drain();
        }
    }

    fn start(&self, args: &[&str]) -> Program {
        let mut command = program("reactor_echo");
        command.args(LOOPBACK).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let end = File::options().write(true).open(&self.path).expect("the writing end");
        Program::spawn_with_stderr(&mut command, end.into())
    }
}

/// Waits until the program is blocked in a system call on its stderr. `/proc/PID/syscall` lists the
/// number of the call and its arguments.
fn wait_until_blocked(program: &Program) {
    let path = format!("/proc/{}/syscall", program.child.id());
    let deadline = Instant::now() + TIMEOUT;
    while fs::read_to_string(&path).is_ok_and(|call| call.split(' ').nth(1) != Some("0x2")) {
        assert!(Instant::now() < deadline, "the program is not blocked on its stderr");
        thread::yield_now();
    }
}

/// At the default level the program logs nothing per connection or request, so echo, refusals,
/// resets and deadlines do not block on the pipe.
#[test]
fn a_full_stderr_blocks_only_the_log_line_of_the_stop() {
    let mut pipe = Pipe::new();
    let program = pipe.start(&["--max", "8", "--deadline-ms", "1000"]);
    let addr = program.addr();
    pipe.await_line("a peer that is silent");
    pipe.fill();
    for _ in 0..50 {
        let mut clients: Vec<TcpStream> = (0..4).map(|_| connect(addr)).collect();
        for client in &mut clients {
            send(client, "hello");
            assert_eq!(receive(client, 5), "hello");
        }
        for client in &mut clients {
            client.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!(receive_all(client), "");
        }
        reset(connect(addr));
    }
    let mut silent = connect(addr);
    send(&mut silent, "hello");
    assert_eq!(receive(&mut silent, 5), "hello");
    assert_eq!(receive_all(&mut silent), "", "closed by its deadline");
    let _eight: Vec<TcpStream> = (0..8).map(|_| connect(addr)).collect();
    assert_eq!(receive_all(&mut connect(addr)), ERROR_SERVER_BUSY);
    program.signal("-TERM");
    wait_until_blocked(&program);
    pipe.await_line("stopping: ");
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    assert!(stdout[0].starts_with("stopped: "), "{stdout:#?}");
}

/// `env_logger` blocks while stderr is full. A program therefore needs a reader for the lines that
/// it logs at the start. With `--debug`, the program also needs a reader for the lines about each
/// connection.
#[test]
fn a_stderr_that_is_full_from_the_start_blocks_the_program() {
    let mut pipe = Pipe::new();
    pipe.fill();
    let program = pipe.start(&[]);
    wait_until_blocked(&program);
    pipe.drain();
    let addr = program.addr();
    let mut client = connect(addr);
    send(&mut client, "hello");
    assert_eq!(receive(&mut client, 5), "hello");
}
