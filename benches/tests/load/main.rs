//! The load generator, run as a program against a correct server and against servers with faults.
//! It detects every fault.

mod client;
mod servers;
mod session;

use std::collections::HashSet;
use std::fmt::Display;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use self::servers::{Echo, lines, serve};

const LOAD: &str = env!("CARGO_BIN_EXE_load");

fn load(addr: impl Display, options: &str) -> Output {
    Command::new(LOAD).arg(format!("{addr}")).args(options.split_whitespace()).output().unwrap()
}

/// Returns a path that only this process uses.
fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()))
}

/// Asserts that the program ended with code 0. Returns its standard output.
#[track_caller]
fn assert_success(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Asserts that the program ended with code 1 and that a line on stderr contains `expected`.
#[track_caller]
fn assert_failure(output: &Output, expected: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.lines().all(|line| line.starts_with("load: ")), "{errors}");
    assert!(errors.lines().any(|line| line.contains(expected)), "{errors}");
}

#[test]
fn a_correct_server_yields_a_table_and_nothing_on_stderr() {
    let echo = Echo::new();
    let output = load(echo.addr, "--requests 3000 --connections 5 --depth 4 --size 100");
    let table = assert_success(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(table.contains("requests  3,000 in"), "{table}");
    for row in ["throughput", "p50", "p90", "p99", "p99.9", "p99.99", "max", "mean"] {
        let named = |line: &str| line.trim_start().starts_with(row);
        assert!(table.lines().any(named), "{row}: {table}");
    }
}

#[test]
fn requests_of_any_size_and_depth_are_answered_correctly() {
    let echo = Echo::new();
    for shape in ["--size 1 --depth 100", "--size 2", "--size 1000000 --depth 3", "--size 5121"] {
        let table =
            assert_success(&load(echo.addr, &format!("{shape} --requests 60 --connections 3")));
        assert!(table.contains("requests  60 in"), "{shape}: {table}");
    }
}

#[test]
fn replies_may_begin_before_their_requests_are_completely_sent() {
    let echo = Echo::new();
    // The requests exceed all buffers between client and server.
    let table =
        assert_success(&load(echo.addr, "--size 20000000 --depth 2 --requests 4 --connections 1"));
    assert!(table.contains("requests  4 in"), "{table}");
}

#[test]
fn a_server_that_echoes_lines_is_correct() {
    let addr = lines(|_, line| Some(line));
    assert_success(&load(addr, "--requests 500 --connections 3 --depth 7 --size 30"));
}

#[test]
fn unix_sockets_work_with_every_kind_of_load() {
    let path = scratch("unix");
    let _echo = Echo::on(&path);
    let addr = format!("unix:{}", path.display());
    assert_success(&load(&addr, "--requests 2000 --connections 300"));
    assert_success(&load(path.display(), "--requests 1000 --connections 9 --churn"));
    assert_success(&load(&addr, "--duration 0.3 --rate 2000 --connections 9"));
}

#[test]
fn unix_connections_retry_when_the_backlog_is_full() {
    let path = scratch("full");
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(2).unwrap();
    let listener = UnixListener::from(socket);
    thread::spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut &stream));
        }
    });
    assert_success(&load(path.display(), "--connections 100 --requests 400 --timeout 20"));
    fs::remove_file(path).unwrap();
}

#[test]
fn at_most_64_connections_wait_in_the_backlog() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let options = "--connections 200 --requests 400 --timeout 20";
    let loading = thread::spawn(move || load(addr, options));
    let first: Vec<_> = (0..64).map(|_| listener.accept().unwrap().0).collect();
    // A 65th connection would arrive within this time.
    thread::sleep(Duration::from_millis(100));
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    listener.set_nonblocking(false).unwrap();
    let rest = (first.len()..200).map(|_| listener.accept().unwrap().0);
    for stream in first.into_iter().chain(rest) {
        thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut &stream));
    }
    let table = assert_success(&loading.join().unwrap());
    assert!(table.contains("200 connections") && table.contains("400 in"), "{table}");
}

#[test]
fn an_open_loop_sends_exactly_the_requests_that_are_due() {
    let echo = Echo::new();
    let table = assert_success(&load(echo.addr, "--rate 2000 --duration 0.5 --warmup 0.1"));
    assert!(table.contains("requests  1,000 in"), "{table}");
}

#[test]
fn churn_opens_a_connection_per_request_from_many_addresses() {
    let peers = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&peers);
    let addr = serve(move |mut stream| {
        seen.lock().unwrap().push(stream.peer_addr().unwrap().ip());
        let mut reader = stream.try_clone().unwrap();
        let _ = io::copy(&mut reader, &mut stream);
    });
    let table = assert_success(&load(addr, "--churn --requests 300 --connections 8"));
    assert!(table.contains("requests  300 in"), "{table}");
    let peers = peers.lock().unwrap();
    let addresses = peers.iter().collect::<HashSet<_>>().len();
    let all = if cfg!(target_os = "linux") { 250 } else { 1 };
    assert_eq!((peers.len(), addresses), (300, all));
}

#[test]
fn churn_accepts_a_server_that_closes_after_its_reply() {
    let closing = serve(|mut stream| {
        let mut request = [0; 64];
        if stream.read_exact(&mut request).is_ok() {
            let _ = stream.write_all(&request);
        }
    });
    assert_success(&load(closing, "--churn --requests 300 --connections 8"));
}

#[test]
fn a_flipped_bit_is_detected() {
    let flipping = lines(|number, mut line| {
        line[7] ^= u8::from(number == 9);
        Some(line)
    });
    let output = load(flipping, "--connections 1 --requests 20");
    assert_failure(&output, "wrong replies: 1; the first: byte 7 of reply 9 on connection 0");
}

#[test]
fn a_dropped_reply_is_detected() {
    let dropping = lines(|number, line| Some(if number == 9 { Vec::new() } else { line }));
    let output = load(dropping, "--connections 1 --requests 20 --timeout 1");
    assert_failure(&output, "missing replies: 1");
    assert_failure(&output, "failed connections: 1: no byte was transferred within --timeout");
    let deep = load(dropping, "--connections 1 --requests 20 --depth 20 --timeout 1");
    assert_failure(&deep, "wrong replies: 1; the first: byte 0 of reply 9 on connection 0");
}

#[test]
fn a_repeated_reply_is_detected() {
    let doubling = lines(|number, line| Some(line.repeat(1 + usize::from(number == 9))));
    assert_failure(&load(doubling, "--connections 1 --requests 20"), "wrong replies: 1");
    let churning = lines(|_, line| Some(line.repeat(2)));
    assert_failure(&load(churning, "--connections 1 --requests 5 --churn"), "bytes more than");
}

#[test]
fn a_last_reply_that_is_repeated_after_the_run_is_detected() {
    let repeating = serve(|mut stream| {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).split(b'\n');
        let mut line = Vec::new();
        while let Some(Ok(next)) = lines.next() {
            line = [&next[..], b"\n"].concat();
            if stream.write_all(&line).is_err() {
                return;
            }
        }
        let _ = stream.write_all(&line);
    });
    let output = load(repeating, "--connections 1 --requests 20");
    assert_failure(&output, "connection 0 received 64 bytes more than expected");
}

#[test]
fn replies_in_the_wrong_order_are_detected() {
    let swapping = serve(|mut stream| {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).split(b'\n');
        let Some(Ok(alone)) = lines.next() else { return };
        let mut replies = [&alone[..], b"\n"].concat();
        while stream.write_all(&replies).is_ok() {
            let (Some(Ok(one)), Some(Ok(two))) = (lines.next(), lines.next()) else { return };
            replies = [&two[..], b"\n", &one[..], b"\n"].concat();
        }
    });
    let output = load(swapping, "--connections 1 --requests 20 --depth 2");
    assert_failure(&output, "byte 0 of reply 1 on connection 0");
}

#[test]
fn shifted_bytes_are_detected() {
    let shifting = lines(|number, mut line| {
        line.rotate_left(usize::from(number == 9));
        Some(line)
    });
    assert_failure(&load(shifting, "--connections 1 --requests 20"), "byte 0 of reply 9");
}

#[test]
fn a_reply_to_another_connection_is_detected() {
    let last = Arc::new(Mutex::new(Vec::new()));
    let mixing = lines(move |number, line| {
        let mut last = last.lock().unwrap();
        let other = std::mem::replace(&mut *last, line.clone());
        Some(if number == 5 { other } else { line })
    });
    assert_failure(&load(mixing, "--connections 2 --requests 40"), "wrong replies");
}

#[test]
fn a_server_that_closes_early_is_detected() {
    let closing = lines(|number, line| (number < 9).then_some(line));
    let output = load(closing, "--connections 2 --requests 100");
    assert_failure(&output, "failed connections: 2: ");
    assert_failure(&output, "missing replies: 2");
    let at_once = lines(|_, _| None);
    assert_eq!(load(at_once, "--connections 2").status.code(), Some(1));
}

#[test]
fn a_server_that_resets_is_detected() {
    let resetting = serve(|mut stream| {
        let mut request = [0; 64];
        while stream.read_exact(&mut request).is_ok() && stream.write_all(&request).is_ok() {
            // Closing with unread input sends a reset.
            if stream.peek(&mut request).is_ok_and(|held| held > 0) {
                return;
            }
        }
    });
    let output = load(resetting, "--connections 2 --requests 20");
    assert_failure(&output, "failed connections: 2: connection reset");
}

#[test]
fn a_server_that_never_answers_times_out() {
    let silent = lines(|_, _| Some(Vec::new()));
    assert_failure(&load(silent, "--timeout 1"), "no byte was transferred within --timeout");
}

#[test]
fn a_refused_connection_is_reported_in_one_line() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = load(free, "");
    assert_failure(&output, "efused");
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    assert_failure(&load("unix:/nowhere/at/all", ""), "/nowhere/at/all: ");
}

#[test]
fn invalid_arguments_are_one_line_and_code_2() {
    let output = load("127.0.0.1:1", "--rate fast");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), errors.lines().count()), (Some(2), 1), "{errors}");
    assert!(errors.contains("fast") && errors.contains("--help"), "{errors}");
    let help = load("--help", "");
    assert!(assert_success(&help).contains("Usage: load ADDR"));
}

#[test]
fn too_few_descriptors_are_reported() {
    let echo = Echo::new();
    let command = format!("ulimit -n 40; exec {LOAD} {} --connections 100", echo.addr);
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    assert_failure(&output, "no descriptors left after");
}

#[test]
fn a_plot_is_written_or_the_failure_is_reported() {
    let echo = Echo::new();
    let path = scratch("plot.svg");
    assert_success(&load(echo.addr, &format!("--requests 500 --svg {}", path.display())));
    let svg = fs::read_to_string(&path).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("<polyline"), "{svg}");
    fs::remove_file(path).unwrap();
    assert_failure(
        &load(echo.addr, "--requests 5 --svg /nowhere/at/all.svg"),
        "/nowhere/at/all.svg",
    );
}
