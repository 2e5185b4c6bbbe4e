//! What happens around a program: it is suspended, the clock jumps, nobody reads its stderr.
//!
//! `clock_gettime` is no system call that could be made to lie, so clocks jump by libfaketime, if
//! it is installed (Debian: `libfaketime`).

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

use examples::{LOOPBACK, PATIENCE, Program, connect, hear, hear_all, listening, program, say};
use pool_manager::ERROR_SERVER_BUSY;
use support::{Dir, reset};

/// How long peers may be silent where that is not to matter.
const LONG: [&str; 2] = ["--deadline-ms", "600000"];

/// The state of a process, as in `ps`: `T` if it is suspended.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    stat.rsplit(") ").next()?.chars().next()
}

fn suspend(program: &Program) {
    program.signal("-STOP");
    let deadline = Instant::now() + PATIENCE;
    while state(program.child.id()) != Some('T') {
        assert!(Instant::now() < deadline, "it is not suspended");
        thread::yield_now();
    }
}

#[test]
fn who_spoke_to_a_suspended_process_is_answered_and_who_was_silent_is_not() {
    const DEADLINE: Duration = Duration::from_millis(700);
    let (program, addr) = listening("reactor_echo", &["--deadline-ms", "700"]);
    let mut clients: Vec<TcpStream> = (0..20).map(|_| connect(addr)).collect();
    for client in &mut clients {
        say(client, "hello");
        assert_eq!(hear(client, 5), "hello");
    }
    suspend(&program);
    let (speakers, silent) = clients.split_at_mut(10);
    for client in &mut *speakers {
        say(client, "still here");
    }
    let mut late = connect(addr);
    say(&mut late, "new here");
    // The one thing to wait for here is time: twice what a peer may be silent.
    thread::sleep(2 * DEADLINE);
    program.signal("-CONT");
    for client in speakers {
        assert_eq!(hear(client, 10), "still here");
    }
    assert_eq!(hear(&mut late, 8), "new here");
    for client in silent {
        assert_eq!(hear_all(client), "");
    }
}

/// Each signal interrupts what the program waits in.
#[test]
fn suspended_again_and_again_under_load_it_loses_nothing() {
    const SUSPENSIONS: u32 = 40;
    let (program, addr) = listening("reactor_echo", &LONG);
    let (over, exchanges) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = connect(addr);
                while !over.load(Ordering::Relaxed) {
                    say(&mut client, "hello");
                    assert_eq!(hear(&mut client, 5), "hello");
                    exchanges.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 1..=SUSPENSIONS {
            suspend(&program);
            program.signal("-CONT");
            // Some are served between two suspensions.
            let deadline = Instant::now() + PATIENCE;
            while exchanges.load(Ordering::Relaxed) < 20 * round {
                assert!(Instant::now() < deadline, "nobody is served");
                thread::yield_now();
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    program.signal("-TERM");
    let (status, stdout, stderr) = program.end();
    assert_eq!(status.code(), Some(0), "{stderr:#?}");
    assert!(stdout[0].contains("4 put, 0 busy, 4 closed"), "{stdout:#?}");
}

/// A clock that a test can turn, for programs started with it.
struct Clock {
    library: PathBuf,
    offset: PathBuf,
    _directory: Dir,
}

impl Clock {
    /// `None`, which is said, if libfaketime is missing.
    fn new() -> Option<Self> {
        let folders = ["x86_64-linux-gnu/", "aarch64-linux-gnu/", ""];
        let paths = folders.map(|folder| format!("/usr/lib/{folder}faketime/libfaketime.so.1"));
        let Some(library) = paths.into_iter().map(PathBuf::from).find(|path| path.exists()) else {
            eprintln!("libfaketime is missing: no clock jumps");
            return None;
        };
        let directory = Dir::new();
        let clock = Self { library, offset: directory.path("offset"), _directory: directory };
        clock.turn("+0");
        Some(clock)
    }

    /// Sets it so many seconds before or behind the true time, in one step.
    fn turn(&self, offset: &str) {
        let next = self.offset.with_extension("next");
        fs::write(&next, offset).expect("a file");
        fs::rename(&next, &self.offset).expect("a file in its place");
    }

    /// `reactor_echo` with this clock. With `monotonic` 1, its monotonic clock stays the true one.
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
fn a_jump_of_the_monotonic_clock_ends_the_silent_and_answers_who_spoke() {
    let Some(clock) = Clock::new() else { return };
    let (program, addr) = clock.start("600000", "0");
    let (mut silent, mut speaker) = (connect(addr), connect(addr));
    say(&mut silent, "hello");
    assert_eq!(hear(&mut silent, 5), "hello");
    // Who is served in the very turn that the jump prolongs has not been silent since it began.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(20) {
        say(&mut speaker, "hello");
        assert_eq!(hear(&mut speaker, 5), "hello");
    }
    suspend(&program);
    say(&mut speaker, "before the jump");
    clock.turn("+3600");
    program.signal("-CONT");
    assert_eq!(hear(&mut speaker, 15), "before the jump");
    assert_eq!(hear_all(&mut silent), "", "an hour has passed for it");
    say(&mut speaker, "behind the jump");
    assert_eq!(hear(&mut speaker, 15), "behind the jump");
    program.signal("-TERM");
    assert_eq!(program.end().0.code(), Some(0));
}

#[test]
fn jumps_of_the_wall_clock_are_not_noticed() {
    let Some(clock) = Clock::new() else { return };
    let (program, addr) = clock.start("60000", "1");
    let (mut silent, mut speaker) = (connect(addr), connect(addr));
    say(&mut silent, "hello");
    assert_eq!(hear(&mut silent, 5), "hello");
    for offset in ["+3600", "-7200", "+360000"] {
        clock.turn(offset);
        for _ in 0..10 {
            say(&mut speaker, "hello");
            assert_eq!(hear(&mut speaker, 5), "hello");
        }
    }
    say(&mut silent, "still here");
    assert_eq!(hear(&mut silent, 10), "still here");
    program.signal("-TERM");
    assert_eq!(program.end().0.code(), Some(0));
}

/// A pipe in the file system, of which this is both ends.
struct Pipe {
    file: File,
    path: PathBuf,
    _directory: Dir,
}

/// `O_NONBLOCK`, which concerns the test's end only: the program opens the pipe by itself.
const NONBLOCK: i32 = 0o4000;

impl Pipe {
    fn new() -> Self {
        let directory = Dir::new();
        let path = directory.path("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
        // Reading and writing, it waits for no other end.
        let options = File::options().read(true).write(true).custom_flags(NONBLOCK).open(&path);
        Self { file: options.expect("a pipe"), path, _directory: directory }
    }

    /// Leaves room for not a byte more.
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

    /// Reads until this was said.
    fn await_line(&mut self, part: &str) {
        let (deadline, mut said) = (Instant::now() + PATIENCE, String::new());
        while !said.contains(part) {
            assert!(Instant::now() < deadline, "{said}");
            said += &self.drain();
        }
    }

    fn start(&self, args: &[&str]) -> Program {
        let mut command = program("reactor_echo");
        command.args(LOOPBACK).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let end = File::options().write(true).open(&self.path).expect("the writing end");
        Program::spawn_with_stderr(&mut command, end.into())
    }
}

/// Waits until a program waits in a call on its stderr, as `/proc/PID/syscall` has it: the call's
/// number and its arguments.
fn await_stuck(program: &Program) {
    let path = format!("/proc/{}/syscall", program.child.id());
    let deadline = Instant::now() + PATIENCE;
    while fs::read_to_string(&path).is_ok_and(|call| call.split(' ').nth(1) != Some("0x2")) {
        assert!(Instant::now() < deadline, "it does not wait for its stderr");
        thread::yield_now();
    }
}

/// Per connection and per request nothing is logged at the default level, so nothing waits for
/// the pipe: not in echo, not in refusals, resets and deadlines.
#[test]
fn with_its_stderr_full_it_goes_on_serving_and_only_its_last_words_wait() {
    let mut pipe = Pipe::new();
    let program = pipe.start(&["--max", "8", "--deadline-ms", "1000"]);
    let addr = program.addr();
    pipe.await_line("a peer that is silent");
    pipe.fill();
    for _ in 0..50 {
        let mut clients: Vec<TcpStream> = (0..4).map(|_| connect(addr)).collect();
        for client in &mut clients {
            say(client, "hello");
            assert_eq!(hear(client, 5), "hello");
        }
        for client in &mut clients {
            client.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!(hear_all(client), "");
        }
        reset(connect(addr));
    }
    let mut silent = connect(addr);
    say(&mut silent, "hello");
    assert_eq!(hear(&mut silent, 5), "hello");
    assert_eq!(hear_all(&mut silent), "", "its deadline comes");
    let _eight: Vec<TcpStream> = (0..8).map(|_| connect(addr)).collect();
    assert_eq!(hear_all(&mut connect(addr)), ERROR_SERVER_BUSY);
    program.signal("-TERM");
    await_stuck(&program);
    pipe.await_line("stopping: ");
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    assert!(stdout[0].starts_with("stopped: "), "{stdout:#?}");
}

/// `env_logger` waits for its reader. So what is said at the start, or about each connection with
/// `--debug`, has to be read.
#[test]
fn with_its_stderr_full_from_the_start_it_waits_for_a_reader() {
    let mut pipe = Pipe::new();
    pipe.fill();
    let program = pipe.start(&[]);
    await_stuck(&program);
    pipe.drain();
    let addr = program.addr();
    let mut client = connect(addr);
    say(&mut client, "hello");
    assert_eq!(hear(&mut client, 5), "hello");
}
