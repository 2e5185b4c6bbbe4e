//! The example programs as their users see them: arguments, output, replies and exit. Each program
//! runs as a child process that is killed at the end of its test.

#[path = "support/examples.rs"]
mod examples;

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use examples::*;
use pool_manager::ERROR_SERVER_BUSY;

/// Programs that serve TCP and share the options for it.
const SERVERS: [&str; 3] = ["reactor_echo", "tcp_ok", "chat"];

/// A new temporary directory. It is removed on drop.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("programs-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path in UTF-8").into()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
fn assert_fails(name: &str, args: &[&str], code: i32) -> String {
    let (status, stdout, stderr) = Program::run(name, args).end();
    assert_eq!(status.code(), Some(code), "{name} {args:?}: {stderr:#?}");
    let last = stderr.last().expect("a line").clone();
    assert!(last.starts_with(&format!("{name}: ")), "{last}");
    assert!(!stderr.concat().contains("panicked"), "{stderr:#?}");
    if code == 2 {
        assert_eq!((stdout.len(), stderr.len()), (0, 1), "one line: {stdout:#?} {stderr:#?}");
    }
    last
}

#[test]
fn help_names_every_option() {
    let options = [
        ("reactor_echo", "--listen --unix --min --max --buffer-size --deadline-ms"),
        ("reactor_echo", "--request-deadline-ms --framing --stats-every --debug --help"),
        ("tcp_ok", "--listen --deadline-ms --help"),
        ("balanced", "--listen --agent --trust --max --deadline-ms --drain-ms --help"),
        ("metrics", "--listen --metrics --max --deadline-ms --help"),
        ("restart", "--listen --deadline-ms --help"),
        ("forward", "--to --listen --max --connect-ms --deadline-ms --debug --help"),
        ("chat", "--listen --max --deadline-ms --write-limit --debug --help"),
    ];
    for (name, options) in options {
        for help in ["--help", "-h"] {
            let (status, stdout, stderr) = Program::run(name, &[help]).end();
            assert_eq!((status.code(), stderr), (Some(0), Vec::new()));
            let words: Vec<&str> = stdout.iter().flat_map(|line| line.split(' ')).collect();
            for option in options.split(' ') {
                assert!(words.contains(&option), "{option} is missing: {stdout:#?}");
            }
        }
    }
}

#[test]
fn bad_usage_is_one_line_and_exit_code_2() {
    for name in SERVERS.iter().chain(&["restart", "balanced", "forward"]) {
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
            let line = assert_fails(name, args, 2);
            assert!(line.contains(named), "{args:?}: {line}");
            assert!(line.contains("--help"), "the line points to the help: {line}");
        }
    }
    for (args, named) in [
        (&["--framing", "odd"][..], "filled, drained and lines"),
        (&["--framing"], "--framing"),
        (&["--min", "5", "--max", "2"], "min_workers is 5 but max_workers is 2"),
        (&["--min", "many"], "many"),
        (&["--max", "1.5"], "1.5"),
        (&["--buffer-size", "99999999999"], "99999999999"),
        (&["--stats-every", "often"], "often"),
        (&["--debug=yes"], "--debug"),
        (&["--unix"], "--unix"),
    ] {
        let line = assert_fails("reactor_echo", args, 2);
        assert!(line.contains(named), "{args:?}: {line}");
    }
    for (name, args) in [
        ("chat", ["--write-limit", "131071"]),
        ("forward", ["--to", "nonsense"]),
        ("forward", ["--max", "5"]),
    ] {
        assert_fails(name, &args, 2);
    }
}

#[test]
fn an_unusable_listen_address_is_named_in_the_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("address").to_string();
    for name in SERVERS {
        let line = assert_fails(name, &["--listen", &addr], 1);
        assert!(line.contains(&addr) && line.ends_with("it is in use"), "{line}");
        for (invalid, code) in [("nonsense", 2), ("127.0.0.1:99999", 2), ("192.0.2.1:80", 1)] {
            let line = assert_fails(name, &["--listen", invalid], code);
            assert!(line.contains(invalid), "{line}");
        }
    }
}

#[test]
fn balanced_rejects_the_same_port_for_agent_and_clients() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.expect("a port").port();
    let addrs = [1, 2].map(|last| format!("127.0.0.{last}:{port}"));
    let line = assert_fails("balanced", &["--listen", &addrs[0], "--agent", &addrs[1]], 2);
    assert!(line.contains("another port"), "{line}");
}

#[test]
fn the_port_of_a_running_program_is_in_use() {
    let (_program, addr) = listening("reactor_echo", &[]);
    let line = assert_fails("reactor_echo", &["--listen", &addr.to_string()], 1);
    assert!(line.contains(&addr.port().to_string()) && line.ends_with("it is in use"), "{line}");
}

#[test]
fn the_first_line_shows_how_to_connect() {
    let program = Program::run("reactor_echo", &LOOPBACK);
    let line = program.stdout.next();
    let addr = addr(&line);
    assert!(line.ends_with(&format!("try: nc {} {}", addr.ip(), addr.port())), "{line}");
}

#[test]
fn drained_framing_answers_at_once() {
    let (_program, addr) = listening("reactor_echo", &[]);
    let mut client = connect(addr);
    for word in ["hello", "again"] {
        send(&mut client, word);
        assert_eq!(receive(&mut client, 5), word);
    }
    send(&mut client, "the end");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(receive_all(&mut client), "the end");
}

#[test]
fn filled_framing_answers_a_full_buffer_and_the_end_of_file() {
    let args = ["--framing", "filled", "--buffer-size", "4", "--deadline-ms", "60000"];
    let (program, addr) = listening("reactor_echo", &args);
    let mut client = connect(addr);
    send(&mut client, "abcdef");
    assert_eq!(receive(&mut client, 4), "abcd");
    send(&mut client, "g");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(receive_all(&mut client), "efg");
    program.signal("-TERM");
    let (_, stdout, _) = program.end();
    assert!(
        stdout[0].contains(" 2 requests, 7 bytes in"),
        "one partial request at the end: {stdout:#?}"
    );
}

#[test]
fn lines_are_echoed_with_their_newlines() {
    let (_program, addr) = listening("reactor_echo", &["--framing", "lines"]);
    let mut client = connect(addr);
    send(&mut client, "one\n\ntwo\nthr");
    assert_eq!(receive(&mut client, 9), "one\n\ntwo\n");
    send(&mut client, "ee\nrest");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(receive_all(&mut client), "three\n", "the rest is not a line");
}

#[test]
fn a_unix_socket_is_served_too_and_removed_at_exit() {
    let directory = Directory::new("unix");
    let path = directory.path("echo");
    let (program, addr) = listening("reactor_echo", &["--unix", &path]);
    assert_eq!(program.stdout.next(), format!("listening on {path}; try: nc -U {path}"));
    let mode = fs::metadata(&path).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = UnixStream::connect(&path).expect("connect");
    client.set_read_timeout(Some(TIMEOUT)).expect("read timeout");
    send(&mut client, "hello");
    assert_eq!(receive(&mut client, 5), "hello");
    let mut client = connect(addr);
    send(&mut client, "hello");
    assert_eq!(receive(&mut client, 5), "hello");
    let line = assert_fails("reactor_echo", &[&LOOPBACK[..], &["--unix", &path]].concat(), 1);
    assert!(line.contains(&path) && line.ends_with("it is in use"), "{line}");
    program.signal("-TERM");
    assert_eq!(program.end().0.code(), Some(0));
    assert!(!Path::new(&path).exists());
}

#[test]
fn a_unix_path_left_by_a_killed_program_is_reused() {
    let directory = Directory::new("stale");
    let path = directory.path("echo");
    let (program, _) = listening("reactor_echo", &["--unix", &path]);
    program.stdout.next();
    program.signal("-KILL");
    assert_eq!(program.end().0.code(), None);
    assert!(Path::new(&path).exists());
    let (program, _) = listening("reactor_echo", &["--unix", &path]);
    program.stdout.next();
    UnixStream::connect(&path).expect("connect");
}

#[test]
fn an_unusable_unix_path_is_named_in_the_error() {
    let directory = Directory::new("bad");
    let file = directory.path("file");
    fs::write(&file, "kept").expect("a file");
    for path in [&file, &directory.path("missing/echo"), &directory.path(&"long".repeat(30)), ""] {
        let line = assert_fails("reactor_echo", &[&LOOPBACK[..], &["--unix", path]].concat(), 1);
        assert!(line.contains("can't listen on") && line.contains(path), "{line}");
    }
    assert_eq!(fs::read_to_string(&file).expect("the file"), "kept");
}

#[test]
fn clients_above_the_maximum_are_refused() {
    let (_program, addr) = listening("reactor_echo", &["--max", "1"]);
    let mut first = connect(addr);
    send(&mut first, "hello");
    assert_eq!(receive(&mut first, 5), "hello");
    assert_eq!(receive_all(&mut connect(addr)), ERROR_SERVER_BUSY);
    send(&mut first, "still");
    assert_eq!(receive(&mut first, 5), "still");
    drop(first);
    wait_until_served(addr, "hello", "hello");
}

/// Retries until a worker is free. The loop may not have noticed yet that the last client left.
fn wait_until_served(addr: SocketAddr, request: &str, reply: &str) {
    let deadline = Instant::now() + TIMEOUT;
    let mut received = String::new();
    while received != reply {
        assert!(Instant::now() < deadline, "{received}");
        let mut client = connect(addr);
        send(&mut client, request);
        client.shutdown(Shutdown::Write).expect("shutdown");
        received = receive_all(&mut client);
    }
}

/// Checks that the deadline is the configured 150 ms, not the default of 3 s.
#[track_caller]
fn assert_configured_deadline(waited: Duration) {
    assert!(waited >= Duration::from_millis(150), "{waited:?}");
    assert!(waited < Duration::from_secs(3), "{waited:?}");
}

#[test]
fn a_silent_peer_is_closed_at_the_deadline() {
    let (_program, addr) = listening("reactor_echo", &["--deadline-ms", "150"]);
    let began = Instant::now();
    assert_eq!(receive_all(&mut connect(addr)), "");
    assert_configured_deadline(began.elapsed());
}

#[test]
fn at_the_request_deadline_bytes_are_a_request_but_half_a_line_is_not() {
    for (framing, reply) in [("filled", "no newline"), ("lines", "")] {
        let args = ["--framing", framing, "--deadline-ms", "60000", "--request-deadline-ms", "150"];
        let (_program, addr) = listening("reactor_echo", &args);
        let mut client = connect(addr);
        let began = Instant::now();
        send(&mut client, "no newline");
        assert_eq!(receive_all(&mut client), reply, "{framing}");
        assert_configured_deadline(began.elapsed());
    }
}

#[test]
fn stats_are_printed_at_the_given_interval() {
    let (program, addr) = listening("reactor_echo", &["--stats-every", "1"]);
    let mut client = connect(addr);
    send(&mut client, "hello");
    assert_eq!(receive(&mut client, 5), "hello");
    for _ in 0..2 {
        let line = program.stdout.next();
        assert!(line.starts_with("1 live, ") && line.contains("1 requests"), "{line}");
    }
}

#[test]
fn debug_logs_every_connection_without_its_bytes() {
    let mut command = program("reactor_echo");
    let program = Program::spawn(command.args(LOOPBACK).arg("--debug").env("RUST_LOG", "debug"));
    let addr = program.addr();
    let mut client = connect(addr);
    send(&mut client, "secret");
    assert_eq!(receive(&mut client, 6), "secret");
    drop(client);
    assert!(program.stderr.find("put").contains("0.1"));
    assert!(program.stderr.find("closed").contains("the peer closed"));
    program.signal("-TERM");
    assert!(!program.end().2.concat().contains("secret"));
}

#[test]
fn a_signal_stops_the_program_with_one_line_of_stats() {
    for name in ["reactor_echo", "tcp_ok"] {
        for kind in ["-TERM", "-INT"] {
            let (program, addr) = listening(name, &["--deadline-ms", "60000"]);
            let _idle = connect(addr);
            let mut client = connect(addr);
            send(&mut client, "hello");
            client.shutdown(Shutdown::Write).expect("shutdown");
            receive_all(&mut client);
            program.signal(kind);
            let (status, stdout, stderr) = program.end();
            assert_eq!(status.code(), Some(0), "{stderr:#?}");
            let [line] = &stdout[..] else { panic!("one line: {stdout:#?}") };
            assert!(line.starts_with("stopped: 1 idle, 0 finished, 0 aborted"), "{line}");
            assert!(line.contains("2 put") && line.contains("1 requests"), "{line}");
            let error = TcpStream::connect(addr).expect_err("the listener is closed");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    }
}

/// Starts a program and signals it in the middle of a request. Returns the program and the client.
fn draining() -> (Program, TcpStream) {
    let args = ["--framing", "lines", "--deadline-ms", "60000"];
    let (program, addr) = listening("reactor_echo", &args);
    let mut client = connect(addr);
    send(&mut client, "a line\nhalf a ");
    assert_eq!(receive(&mut client, 7), "a line\n");
    program.signal("-TERM");
    program.stderr.find("stopping: 1 connections");
    (program, client)
}

#[test]
fn a_request_in_progress_is_finished_before_the_stop() {
    let (program, mut client) = draining();
    send(&mut client, "line\n");
    assert_eq!(receive_all(&mut client), "half a line\n");
    drop(client);
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    assert!(stdout[0].starts_with("stopped: 0 idle, 1 finished, 0 aborted"), "{stdout:#?}");
}

#[test]
fn a_second_signal_completes_the_stop_at_once() {
    for kind in ["-TERM", "-INT"] {
        let (program, mut client) = draining();
        let began = Instant::now();
        program.signal(kind);
        let (status, stdout, stderr) = program.end();
        // With one signal, the stop waits 60 s for the request in progress.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(status.code(), Some(0), "{stderr:#?}");
        let [line] = &stdout[..] else { panic!("one line: {stdout:#?}") };
        assert!(line.starts_with("stopped: 0 idle, 0 finished, 1 aborted"), "{line}");
        assert_eq!(receive_all(&mut client), "");
    }
}

/// Redirections that make the output of a program fail.
const FAILING_OUTPUTS: [&str; 4] = ["2>&-", "2>/dev/full", ">&- 2>&-", ">/dev/full 2>/dev/full"];

/// Returns a free port for programs whose output the test cannot read. The port is below the range
/// from which the system assigns ports, so that no other socket takes it first.
fn free_port() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(61);
    let port = || first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000 + 10_000;
    std::iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], port() as u16)))
        .find(|&addr| is_free(addr))
        .expect("a port")
}

/// Returns whether `addr` can be bound. The socket does not listen, so that no client can connect
/// to it. This matters because a child that another test starts at this moment inherits the socket
/// until `exec`.
fn is_free(addr: SocketAddr) -> bool {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("socket");
    socket.set_reuse_address(true).expect("reuse");
    socket.bind(&addr.into()).is_ok()
}

fn connect_with_retry(addr: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match TcpStream::connect(addr) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::yield_now();
    }
}

/// Checks that the program serves a client and stops, although its output fails.
fn assert_serves(name: &str, command: &mut Command, addr: SocketAddr) {
    let child = command.spawn().expect("the program runs");
    let (stdout, stderr) = (Lines::of(None::<io::Empty>), Lines::of(None::<io::Empty>));
    let mut program = Program { child, stdout, stderr };
    let mut client = connect_with_retry(addr);
    client.set_read_timeout(Some(TIMEOUT)).expect("read timeout");
    send(&mut client, "hello");
    client.shutdown(Shutdown::Write).expect("shutdown");
    let reply = if name == "tcp_ok" { "OK" } else { "hello" };
    assert_eq!(receive_all(&mut client), reply, "{command:?}");
    program.signal("-TERM");
    assert_eq!(program.wait().code(), Some(0), "{command:?}");
}

#[test]
fn a_failing_output_neither_stops_nor_panics_the_program() {
    for name in ["reactor_echo", "tcp_ok"] {
        for redirection in FAILING_OUTPUTS {
            let addr = free_port();
            let script = format!("exec \"$0\" --listen {addr} {redirection}");
            let mut command = Command::new("sh");
            command.args(["-c", &script]).arg(directory().join(name));
            assert_serves(name, command.stderr(Stdio::null()).stdout(Stdio::null()), addr);
        }
    }
}

#[test]
fn a_broken_pipe_as_output_neither_stops_nor_panics_the_program() {
    for name in ["reactor_echo", "tcp_ok"] {
        let addr = free_port();
        let broken_pipe = || Stdio::from(OwnedFd::from(UnixStream::pair().expect("a pair").0));
        let mut command = program(name);
        command.args(["--listen", &addr.to_string()]).stdout(broken_pipe()).stderr(broken_pipe());
        assert_serves(name, &mut command, addr);
    }
}

#[test]
fn bad_usage_with_a_failing_output_still_has_exit_code_2() {
    for redirection in FAILING_OUTPUTS {
        let script = format!("exec \"$0\" --nonsense {redirection}");
        let program = directory().join("reactor_echo");
        let status = Command::new("sh").args(["-c", &script]).arg(program).status();
        assert_eq!(status.expect("the shell runs").code(), Some(2), "{redirection}");
    }
}

#[test]
fn tcp_ok_answers_ok_to_a_body_and_error_to_no_body() {
    let (_program, addr) = listening("tcp_ok", &["--deadline-ms", "150"]);
    let mut half_closed = connect(addr);
    send(&mut half_closed, "hello");
    half_closed.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(receive_all(&mut half_closed), "OK");
    for (body, reply) in [("hello", "OK"), ("", "ERROR")] {
        let began = Instant::now();
        let mut client = connect(addr);
        send(&mut client, body);
        assert_eq!(receive_all(&mut client), reply);
        assert_configured_deadline(began.elapsed());
    }
}

#[test]
fn tcp_ok_refuses_the_eleventh_client_until_the_others_leave() {
    let (_program, addr) = listening("tcp_ok", &["--deadline-ms", "60000"]);
    let mut ten: Vec<TcpStream> = (0..10).map(|_| connect(addr)).collect();
    assert_eq!(receive_all(&mut connect(addr)), ERROR_SERVER_BUSY);
    let mut sender = connect(addr);
    send(&mut sender, "hello");
    assert_eq!(receive_all(&mut sender), ERROR_SERVER_BUSY, "also after a request");
    for client in &mut ten {
        send(client, "hello");
        client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(receive_all(client), "OK");
    }
    wait_until_served(addr, "hello", "OK");
}

#[test]
fn tcp_ok_prints_the_number_of_refused_clients_at_exit() {
    let (program, addr) = listening("tcp_ok", &["--deadline-ms", "60000"]);
    let mut ten: Vec<TcpStream> = (0..10).map(|_| connect(addr)).collect();
    for _ in 0..2 {
        assert_eq!(receive_all(&mut connect(addr)), ERROR_SERVER_BUSY);
    }
    // The last client is served after all earlier ones were put, so no client is still queued.
    send(&mut ten[9], "hello");
    ten[9].shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(receive_all(&mut ten[9]), "OK");
    program.signal("-TERM");
    let (_, stdout, _) = program.end();
    assert!(stdout[0].contains("10 put, 2 busy"), "{stdout:#?}");
}

#[test]
fn balanced_reports_its_free_share_and_drains_before_it_stops() {
    let args = ["--agent", "127.0.0.1:0", "--max", "4", "--trust", "127.0.0.0/8"];
    let program =
        Program::run("balanced", &[&LOOPBACK, &args[..], &["--drain-ms", "600"]].concat());
    let line = program.stdout.next();
    let agent = line.split("agent on ").nth(1).and_then(|rest| rest.split(';').next());
    let agent: SocketAddr = agent.and_then(|addr| addr.parse().ok()).expect(&line);
    assert_eq!(receive_all(&mut connect(agent)), "ready up 100%\n");
    let mut client = connect(addr(&line));
    send(&mut client, "PROXY TCP4 192.0.2.7 192.0.2.8 4711 443\r\nwho\n");
    assert_eq!(receive(&mut client, 15), "192.0.2.7:4711\n");
    assert_eq!(receive_all(&mut connect(agent)), "ready up 75%\n");
    program.signal("-TERM");
    let deadline = Instant::now() + TIMEOUT;
    while receive_all(&mut connect(agent)) != "drain\n" {
        assert!(Instant::now() < deadline, "the agent does not report a drain");
    }
    send(&mut client, "still served\n");
    assert_eq!(receive(&mut client, 13), "still served\n");
    assert_eq!(program.end().0.code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_drain_of_balanced_and_completes_its_stop() {
    let args = ["--agent", "127.0.0.1:0", "--drain-ms", "600000", "--deadline-ms", "600000"];
    let (program, addr) = listening("balanced", &args);
    let mut client = connect(addr);
    send(&mut client, "a line\nhalf a ");
    assert_eq!(receive(&mut client, 7), "a line\n");
    program.signal("-TERM");
    program.signal("-TERM");
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    assert!(stdout[0].starts_with("stopped: 0 idle, 0 finished, 1 aborted"), "{stdout:#?}");
}

#[test]
fn restart_continues_to_serve_if_the_successor_fails() {
    let temp = Directory::new("restart");
    let path = temp.path("restart");
    fs::copy(directory().join("restart"), &path).expect("a copy");
    let program = Program::spawn(Command::new(&path).args(LOOPBACK).env_remove("RUST_LOG"));
    let addr = program.addr();
    let mut client = connect(addr);
    for successor in ["#!/bin/sh\nexit 3\n", "#!/nowhere\n"] {
        fs::write(temp.path("next"), successor).expect("a script");
        fs::set_permissions(temp.path("next"), fs::Permissions::from_mode(0o700)).expect("mode");
        fs::rename(temp.path("next"), &path).expect("replace the program");
        program.signal("-HUP");
        program.stderr.find("there is no successor, going on: ");
        for client in [&mut client, &mut connect(addr)] {
            send(client, "hello\n");
            assert_eq!(receive(client, 6), "hello\n");
        }
    }
    program.signal("-TERM");
    assert_eq!(program.end().0.code(), Some(0));
}

/// Programs that make no system call while they are idle, and the options that they need.
const SILENT: [(&str, &[&str]); 6] = [
    ("reactor_echo", &[]),
    ("tcp_ok", &[]),
    ("chat", &[]),
    ("sharded", &[]),
    ("restart", &[]),
    ("balanced", &["--agent", "127.0.0.1:0"]),
];

/// A program with strace attached to all of its threads.
struct Traced {
    name: &'static str,
    program: Program,
    strace: Program,
    log: String,
}

impl Traced {
    /// Returns an error if strace may not trace the program.
    fn start(name: &'static str, args: &[&str], directory: &Directory) -> Result<Self, String> {
        let (program, _) = listening(name, args);
        let log = directory.path(name);
        let pid = program.child.id().to_string();
        let strace = Program::spawn(Command::new("strace").args(["-f", "-o", &log, "-p"]).arg(pid));
        let line = strace.stderr.next();
        if line.contains(" attached") { Ok(Self { name, program, strace, log }) } else { Err(line) }
    }

    /// Returns the system calls since strace was attached.
    fn calls(&self) -> String {
        fs::read_to_string(&self.log).expect("the log of strace")
    }

    /// Returns the system calls until the program has nothing to do after its start.
    fn start_calls(&self) -> String {
        let deadline = Instant::now() + TIMEOUT;
        let mut before = String::new();
        loop {
            // A program that wakes regularly may pass this check; the caller then sees its calls.
            thread::sleep(Duration::from_millis(100));
            let calls = self.calls();
            if !calls.is_empty() && calls == before {
                return calls;
            }
            assert!(Instant::now() < deadline, "{} is not idle: {calls}", self.name);
            before = calls;
        }
    }

    /// Stops the program. If the exit of the program is not in the log, strace has not traced the
    /// program.
    fn end(mut self) {
        self.program.signal("-TERM");
        assert_eq!(self.program.end().0.code(), Some(0), "{}", self.name);
        assert!(self.strace.wait().success());
        let log = fs::read_to_string(&self.log).expect("the log of strace");
        assert!(log.contains("--- SIGTERM ") && log.contains("+++ exited with 0"), "{log}");
    }
}

/// Checks that idle programs make no system call for `time`. Prints a message and checks nothing if
/// strace cannot be used.
fn assert_silent_for(time: Duration) {
    let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("skipped: strace is missing or may not trace here");
        return;
    }
    let directory = Directory::new(&format!("silent-{}", time.as_secs()));
    let traced: Result<Vec<_>, _> =
        SILENT.iter().map(|(name, args)| Traced::start(name, args, &directory)).collect();
    let traced = match traced {
        Ok(traced) => traced,
        Err(error) => {
            eprintln!("skipped: strace may not be attached here: {error}");
            return;
        }
    };
    let before: Vec<_> = traced.iter().map(Traced::start_calls).collect();
    // The test has to wait for time to pass.
    thread::sleep(time);
    for (traced, before) in traced.into_iter().zip(before) {
        assert_eq!(traced.calls(), before, "{} makes a system call", traced.name);
        traced.end();
    }
}

#[test]
fn idle_programs_make_no_system_call() {
    assert_silent_for(Duration::from_secs(5));
}

#[test]
#[ignore = "takes one minute"]
fn idle_programs_make_no_system_call_for_a_minute() {
    assert_silent_for(Duration::from_secs(60));
}
