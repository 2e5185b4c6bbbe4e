//! The `nested` example in each event loop. It serves connections, closes silent connections, uses
//! almost no processor time for idle connections, and stops.

#[path = "../../../tests/support/examples.rs"]
mod examples;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use examples::*;

const LOOPS: [&str; 2] = ["tokio", "calloop"];

fn nested(name: &str, args: &[&str]) -> (Program, SocketAddr) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nested"));
    command.env_remove("RUST_LOG").args(["--loop", name]).args(LOOPBACK).args(args);
    let program = Program::spawn(&mut command);
    let addr = program.addr();
    (program, addr)
}

/// Returns the processor time that all threads of a process have used.
fn processor_time(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the list of threads");
    let nanos = tasks.map(|task| {
        let times = fs::read_to_string(task.expect("a thread").path().join("schedstat"));
        let times = times.expect("the thread's times");
        times.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).expect("nanoseconds")
    });
    Duration::from_nanos(nanos.sum())
}

#[test]
fn an_idle_connection_costs_no_processor_time() {
    for name in LOOPS {
        let (program, addr) = nested(name, &["--deadline-ms", "60000"]);
        let mut idle = connect(addr);
        send(&mut idle, "hello");
        assert_eq!(receive(&mut idle, 5), "hello");
        thread::sleep(Duration::from_millis(300));
        let before = processor_time(program.child.id());
        thread::sleep(Duration::from_secs(2));
        let cost = processor_time(program.child.id()).saturating_sub(before);
        assert!(cost < Duration::from_millis(2), "{name}: {cost:?} in two idle seconds");
        send(&mut idle, "again");
        assert_eq!(receive(&mut idle, 5), "again");
    }
}

#[test]
fn a_silent_connection_is_closed_in_time_while_another_is_busy() {
    for name in LOOPS {
        let (_program, addr) = nested(name, &["--deadline-ms", "400"]);
        let mut busy = connect(addr);
        let mut silent = connect(addr);
        let began = Instant::now();
        silent.set_nonblocking(true).expect("non-blocking");
        while silent.read(&mut [0]).is_err() {
            send(&mut busy, "x");
            assert_eq!(receive(&mut busy, 1), "x");
            thread::sleep(Duration::from_millis(5));
            assert!(began.elapsed() < TIMEOUT, "{name}: it is not closed");
        }
        let took = began.elapsed();
        assert!((380..2_000).contains(&took.as_millis()), "{name}: closed after {took:?}");
        send(&mut busy, "x");
        assert_eq!(receive(&mut busy, 1), "x");
        // The deadline also passes while no other connection is active.
        let began = Instant::now();
        assert_eq!(receive_all(&mut busy), "");
        let took = began.elapsed();
        assert!((380..2_000).contains(&took.as_millis()), "{name}: closed after {took:?}");
    }
}

/// A turn reads a limited number of bytes. The event loop runs the next turn at once to serve the
/// rest, although no event follows.
#[test]
fn a_large_request_does_not_wait_for_a_timer() {
    for name in LOOPS {
        let (_program, addr) = nested(name, &["--deadline-ms", "60000"]);
        let mut client = connect(addr);
        send(&mut client, "x");
        assert_eq!(receive(&mut client, 1), "x");
        let (began, request) = (Instant::now(), "x".repeat(300_000));
        send(&mut client, &request);
        assert!(receive(&mut client, request.len()) == request, "{name}");
        assert!(began.elapsed() < Duration::from_secs(1), "{name}: {:?}", began.elapsed());
    }
}

/// More connections become readable than one wait of the pool returns. For all of these
/// connections, the event loop reports only one edge.
#[test]
fn all_of_3000_connections_that_become_readable_at_once_are_served() {
    for name in LOOPS {
        let (program, addr) = nested(name, &["--deadline-ms", "60000"]);
        let mut clients: Vec<_> = (0..3_000).map(|_| connect(addr)).collect();
        for client in &mut clients {
            send(client, "a");
            assert_eq!(receive(client, 1), "a");
        }
        program.signal("-STOP");
        for client in &mut clients {
            send(client, "b");
        }
        program.signal("-CONT");
        for client in &mut clients {
            assert_eq!(receive(client, 1), "b", "{name}");
        }
    }
}

#[test]
fn a_signal_stops_it_after_its_connections_have_ended() {
    for name in LOOPS {
        let (program, addr) = nested(name, &[]);
        let mut client = connect(addr);
        send(&mut client, "hello");
        assert_eq!(receive(&mut client, 5), "hello");
        program.signal("-TERM");
        assert_eq!(receive_all(&mut client), "");
        drop(client);
        let (status, stdout, _) = program.end();
        assert!(status.success(), "{name}: {status}");
        assert_eq!(stdout, ["stopped: 1 idle, 0 finished, 0 aborted, 0 bytes unsent"], "{name}");
    }
}

#[test]
fn a_second_signal_stops_it_at_once() {
    for name in LOOPS {
        let (program, addr) = nested(name, &["--deadline-ms", "60000"]);
        let mut client = connect(addr);
        // The client does not read, so a part of the reply stays unsent.
        client.set_nonblocking(true).expect("non-blocking");
        let (began, chunk) = (Instant::now(), vec![b'x'; 65_536]);
        while client.write(&chunk).is_ok() || began.elapsed().as_millis() < 300 {}
        program.signal("-TERM");
        program.stderr.find("stopping: 1 connections");
        program.signal("-TERM");
        let (status, _, stderr) = program.end();
        assert_eq!(status.code(), Some(1), "{name}");
        assert!(stderr.concat().contains("second signal: stopped at once"), "{name}: {stderr:?}");
    }
}

#[test]
fn an_unknown_loop_is_bad_usage() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nested"));
    let (status, _, stderr) = Program::spawn(command.args(["--loop", "libuv"])).end();
    assert_eq!(status.code(), Some(2));
    assert_eq!(stderr, ["nested: the loops are tokio and calloop; try --help"]);
}
