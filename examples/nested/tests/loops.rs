//! The pool within each of the loops: it serves, it reaps who is silent, it costs nothing when
//! nobody speaks, and it stops.

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

/// The processor time that all threads of a process have used.
fn used(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let nanos = tasks.map(|task| {
        let told = fs::read_to_string(task.expect("a thread").path().join("schedstat"));
        let told = told.expect("its times");
        told.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).expect("nanoseconds")
    });
    Duration::from_nanos(nanos.sum())
}

#[test]
fn it_costs_nothing_while_nobody_speaks() {
    for name in LOOPS {
        let (program, addr) = nested(name, &["--deadline-ms", "60000"]);
        let mut idle = connect(addr);
        say(&mut idle, "hello");
        assert_eq!(hear(&mut idle, 5), "hello");
        thread::sleep(Duration::from_millis(300));
        let before = used(program.child.id());
        thread::sleep(Duration::from_secs(2));
        let cost = used(program.child.id()).saturating_sub(before);
        assert!(cost < Duration::from_millis(2), "{name}: {cost:?} in two idle seconds");
        say(&mut idle, "again");
        assert_eq!(hear(&mut idle, 5), "again");
    }
}

#[test]
fn who_is_silent_is_reaped_in_time_though_others_speak() {
    for name in LOOPS {
        let (_program, addr) = nested(name, &["--deadline-ms", "400"]);
        let mut busy = connect(addr);
        let mut silent = connect(addr);
        let began = Instant::now();
        silent.set_nonblocking(true).expect("non-blocking");
        while silent.read(&mut [0]).is_err() {
            say(&mut busy, "x");
            assert_eq!(hear(&mut busy, 1), "x");
            thread::sleep(Duration::from_millis(5));
            assert!(began.elapsed() < PATIENCE, "{name}: it is never reaped");
        }
        let took = began.elapsed();
        assert!((380..2_000).contains(&took.as_millis()), "{name}: reaped after {took:?}");
        say(&mut busy, "x");
        assert_eq!(hear(&mut busy, 1), "x");
        // And while nobody speaks.
        let began = Instant::now();
        assert_eq!(hear_all(&mut busy), "");
        let took = began.elapsed();
        assert!((380..2_000).contains(&took.as_millis()), "{name}: reaped after {took:?}");
    }
}

/// What is left of a turn's work is done at once, though no event will come.
#[test]
fn who_sends_much_waits_for_no_timer() {
    for name in LOOPS {
        let (_program, addr) = nested(name, &["--deadline-ms", "60000"]);
        let mut client = connect(addr);
        say(&mut client, "x");
        assert_eq!(hear(&mut client, 1), "x");
        let (began, much) = (Instant::now(), "x".repeat(300_000));
        say(&mut client, &much);
        assert!(hear(&mut client, much.len()) == much, "{name}");
        assert!(began.elapsed() < Duration::from_secs(1), "{name}: {:?}", began.elapsed());
    }
}

/// More than one wait of the pool returns: the loops are told of one edge for all.
#[test]
fn who_comes_in_a_crowd_is_served() {
    for name in LOOPS {
        let (program, addr) = nested(name, &["--deadline-ms", "60000"]);
        let mut clients: Vec<_> = (0..3_000).map(|_| connect(addr)).collect();
        for client in &mut clients {
            say(client, "a");
            assert_eq!(hear(client, 1), "a");
        }
        program.signal("-STOP");
        for client in &mut clients {
            say(client, "b");
        }
        program.signal("-CONT");
        for client in &mut clients {
            assert_eq!(hear(client, 1), "b", "{name}");
        }
    }
}

#[test]
fn a_signal_stops_it_and_who_is_served_is_waited_for() {
    for name in LOOPS {
        let (program, addr) = nested(name, &[]);
        let mut client = connect(addr);
        say(&mut client, "hello");
        assert_eq!(hear(&mut client, 5), "hello");
        program.signal("-TERM");
        assert_eq!(hear_all(&mut client), "");
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
        // So much that some of the reply has to wait for a peer that does not take it.
        client.set_nonblocking(true).expect("non-blocking");
        let (began, some) = (Instant::now(), vec![b'x'; 65_536]);
        while client.write(&some).is_ok() || began.elapsed().as_millis() < 300 {}
        program.signal("-TERM");
        program.stderr.find("stopping: 1 connections");
        program.signal("-TERM");
        let (status, _, stderr) = program.end();
        assert_eq!(status.code(), Some(1), "{name}");
        assert!(stderr.concat().contains("told to stop twice"), "{name}: {stderr:?}");
    }
}

#[test]
fn an_unknown_loop_is_bad_usage() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nested"));
    let (status, _, stderr) = Program::spawn(command.args(["--loop", "libuv"])).end();
    assert_eq!(status.code(), Some(2));
    assert_eq!(stderr, ["nested: the loops are tokio and calloop; try --help"]);
}
