//! Checks of a program's command line: help, bad usage and the listen address. The examples that
//! are packages use them. `tests/programs.rs` checks the other examples.

use std::net::TcpListener;
use std::process::Command;

use crate::examples::Program;

/// Checks that the program fails with one line on stderr, and returns the line.
#[track_caller]
pub(crate) fn assert_fails(name: &str, command: &mut Command, code: i32) -> String {
    let (status, stdout, stderr) = Program::spawn(command).end();
    assert_eq!(status.code(), Some(code), "{command:?}: {stderr:#?}");
    let last = stderr.last().expect("a line").clone();
    assert!(last.starts_with(&format!("{name}: ")), "{last}");
    assert!(!stderr.concat().contains("panicked"), "{stderr:#?}");
    if code == 2 {
        assert_eq!((stdout.len(), stderr.len()), (0, 1), "one line: {stdout:#?} {stderr:#?}");
    }
    last
}

/// Checks that the help contains each of `options`, which are separated by spaces.
pub(crate) fn check_help(program: fn() -> Command, options: &str) {
    for help in ["--help", "-h"] {
        let (status, stdout, stderr) = Program::spawn(program().arg(help)).end();
        assert_eq!((status.code(), stderr), (Some(0), Vec::new()));
        let words: Vec<&str> = stdout.iter().flat_map(|line| line.split(' ')).collect();
        for option in options.split(' ') {
            assert!(words.contains(&option), "{option} is missing: {stdout:#?}");
        }
    }
}

/// Checks the errors that all programs report for invalid arguments.
pub(crate) fn check_bad_usage(name: &str, program: fn() -> Command) {
    for (args, named) in [
        (&["--nonsense"][..], "--nonsense"),
        (&["nonsense"], "nonsense"),
        (&["-x"], "-x"),
        (&["--listen"], "--listen"),
        (&["--deadline-ms"], "--deadline-ms"),
        (&["--deadline-ms", "soon"], "soon"),
        (&["--deadline-ms", "-1"], "-1"),
        (&["--deadline-ms", "99999999999999999999"], "99999999999999999999"),
    ] {
        let line = assert_fails(name, program().args(args), 2);
        assert!(line.contains(named), "{args:?}: {line}");
        assert!(line.contains("--help"), "the line points to the help: {line}");
    }
}

/// Checks that the error for an address that cannot be used names the address.
pub(crate) fn check_listen_address(name: &str, program: fn() -> Command) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("address").to_string();
    let line = assert_fails(name, program().args(["--listen", &addr]), 1);
    assert!(line.contains(&addr) && line.ends_with("it is in use"), "{line}");
    for (invalid, code) in [("nonsense", 2), ("127.0.0.1:99999", 2), ("192.0.2.1:80", 1)] {
        let line = assert_fails(name, program().args(["--listen", invalid]), code);
        assert!(line.contains(invalid), "{line}");
    }
}
