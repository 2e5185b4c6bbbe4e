//! The `resp` example as a Redis client sees it: exact replies, fragmented and pipelined requests,
//! and the limits.

#[path = "../../../tests/support/examples.rs"]
mod examples;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use examples::*;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_resp"));
    command.env_remove("RUST_LOG").env_remove("RUST_LOG_STYLE");
    command
}

/// Starts the program on a free port. Returns the program and its address.
fn listening(args: &[&str]) -> (Program, SocketAddr) {
    let program = Program::spawn(program().args(LOOPBACK).args(args));
    let addr = program.addr();
    (program, addr)
}

/// Encodes a request as clients do: an array of bulk strings.
fn request(args: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend(format!("${}\r\n", arg.len()).bytes());
        bytes.extend(*arg);
        bytes.extend(b"\r\n");
    }
    bytes
}

/// Sends `bytes` and a QUIT, and returns all replies except the one to QUIT.
fn answers(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut client = connect(addr);
    client.write_all(bytes).expect("send");
    client.write_all(b"QUIT\r\n").expect("send");
    let answers = receive_all(&mut client);
    answers.strip_suffix("+OK\r\n").expect(&answers).into()
}

/// Sends each line on a connection of its own and checks the reply to it.
fn assert_answers(addr: SocketAddr, lines: &[(&str, &str)]) {
    for (line, expected) in lines {
        assert_eq!(answers(addr, format!("{line}\r\n").as_bytes()), *expected, "{line}");
    }
}

fn expect_reply(client: &mut TcpStream, expected: &[u8]) {
    let mut reply = vec![0; expected.len()];
    client.read_exact(&mut reply).expect("a reply");
    assert!(reply == expected, "{} bytes that differ", reply.len());
}

#[test]
fn strings_are_set_counted_and_deleted() {
    let (_program, addr) = listening(&[]);
    assert_answers(
        addr,
        &[
            ("PING", "+PONG\r\n"),
            ("ping \"two words\"", "$9\r\ntwo words\r\n"),
            ("echo \"\\x41\\n\"", "$2\r\nA\n\r\n"),
            ("echo two' words'", "$9\r\ntwo words\r\n"),
            ("GET a", "$-1\r\n"),
            ("SET a 1", "+OK\r\n"),
            ("GET a", "$1\r\n1\r\n"),
            ("INCR a", ":2\r\n"),
            ("INCR new", ":1\r\n"),
            ("MSET a x b y", "+OK\r\n"),
            ("MGET a nothing b", "*3\r\n$1\r\nx\r\n$-1\r\n$1\r\ny\r\n"),
            ("EXISTS a a nothing", ":2\r\n"),
            ("DBSIZE", ":3\r\n"),
            ("DEL a b nothing", ":2\r\n"),
            ("GET a", "$-1\r\n"),
            ("SET a \"\"", "+OK\r\n"),
            ("GET a", "$0\r\n\r\n"),
            ("FLUSHALL", "+OK\r\n"),
            ("DBSIZE", ":0\r\n"),
        ],
    );
}

#[test]
fn errors_are_reported_with_the_messages_of_redis() {
    let (_program, addr) = listening(&[]);
    let integer = "-ERR value is not an integer or out of range\r\n";
    let arity = |name: &str| format!("-ERR wrong number of arguments for '{name}' command\r\n");
    assert_answers(
        addr,
        &[
            ("GET", &arity("get")),
            ("set a", &arity("set")),
            ("PING a b", &arity("ping")),
            ("MSET a 1 b", &arity("mset")),
            ("CLIENT SETNAME", &arity("client|setname")),
            ("SET a text", "+OK\r\n"),
            ("INCR a", integer),
            ("SET a 01", "+OK\r\n"),
            ("INCR a", integer),
            ("SET a 9223372036854775807", "+OK\r\n"),
            ("INCR a", "-ERR increment or decrement would overflow\r\n"),
            ("SET a -9223372036854775808", "+OK\r\n"),
            ("INCR a", ":-9223372036854775807\r\n"),
            ("SET a b NX XX", "-ERR syntax error\r\n"),
            ("SET a b EX", "-ERR syntax error\r\n"),
            ("SET a b EX 0", "-ERR invalid expire time in 'set' command\r\n"),
            ("SET a b PX 9223372036854775807", "-ERR invalid expire time in 'set' command\r\n"),
            ("EXPIRE a 9223372036854775807", "-ERR invalid expire time in 'expire' command\r\n"),
            ("EXPIRE a -9223372036854776", "-ERR invalid expire time in 'expire' command\r\n"),
            ("EXPIRE a soon", integer),
            ("SET a b EX 0 EX soon", integer),
            ("SET a b EX soon PX", "-ERR syntax error\r\n"),
            ("SET a b EX 1 PX 1", "-ERR syntax error\r\n"),
            ("FLUSHALL now", "-ERR syntax error\r\n"),
            ("SELECT 1", "-ERR DB index is out of range\r\n"),
            ("nonsense", "-ERR unknown command 'nonsense', with args beginning with: \r\n"),
            ("no 'a b' c", "-ERR unknown command 'no', with args beginning with: 'a b' 'c' \r\n"),
            ("CONFIG SET", "-ERR unknown subcommand 'SET'. Try CONFIG HELP.\r\n"),
        ],
    );
    // The error quotes the command, but its line breaks cannot forge a second reply.
    let forged = request(&[b"a\r\n+OK"]);
    let expected = "-ERR unknown command 'a  +OK', with args beginning with: \r\n";
    assert_eq!(answers(addr, &forged), expected);
}

#[test]
fn keys_expire_after_their_time_to_live() {
    let (_program, addr) = listening(&[]);
    assert_answers(
        addr,
        &[
            ("TTL a", ":-2\r\n"),
            ("SET a 1 XX", "$-1\r\n"),
            ("SET a 1 NX EX 100", "+OK\r\n"),
            ("SET a 2 NX", "$-1\r\n"),
            ("TTL a", ":100\r\n"),
            ("INCR a", ":2\r\n"),
            ("TTL a", ":100\r\n"),
            ("SET a 1", "+OK\r\n"),
            ("TTL a", ":-1\r\n"),
            ("PTTL a", ":-1\r\n"),
            ("EXPIRE a 50", ":1\r\n"),
            ("TTL a", ":50\r\n"),
            ("EXPIRE nothing 50", ":0\r\n"),
            ("SET a 1 EX 1 EX 9223370000000000", "+OK\r\n"),
            ("EXPIRE a 9223370000000000", ":1\r\n"),
            ("EXPIRE a -9223372036854775", ":1\r\n"),
            ("SET a 1 PX 100000 px 5000", "+OK\r\n"),
            ("TTL a", ":5\r\n"),
            ("EXPIRE a 0", ":1\r\n"),
            ("EXISTS a", ":0\r\n"),
            ("SET a 1 PX 20", "+OK\r\n"),
        ],
    );
    while answers(addr, b"GET a\r\n") != "$-1\r\n" {
        thread::sleep(Duration::from_millis(5));
    }
    assert_answers(addr, &[("DEL a", ":0\r\n"), ("DBSIZE", ":0\r\n")]);
}

#[test]
fn queries_that_clients_send_on_startup_are_answered() {
    let (_program, addr) = listening(&[]);
    assert_answers(
        addr,
        &[
            ("CONFIG GET save", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
            ("CONFIG GET appendonly", "*2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n"),
            ("CONFIG GET nothing", "*0\r\n"),
            ("COMMAND DOCS", "*0\r\n"),
            ("CLIENT SETNAME me\r\nCLIENT GETNAME", "+OK\r\n$2\r\nme\r\n"),
            ("CLIENT GETNAME", "$-1\r\n"),
            ("SELECT 0", "+OK\r\n"),
        ],
    );
    let count = answers(addr, b"COMMAND COUNT\r\n");
    let all = answers(addr, b"COMMAND\r\n");
    assert_eq!(all.split("\r\n").next(), count.replace(':', "*").split("\r\n").next());
    assert!(all.contains("*6\r\n$3\r\nget\r\n:2\r\n*0\r\n:0\r\n:0\r\n:0\r\n"), "{all}");
}

/// A web page can make the user's browser send a form to any port of the user's machine.
#[test]
fn an_http_request_from_a_browser_runs_no_command() {
    let (_program, addr) = listening(&[]);
    for head in ["POST / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut browser = connect(addr);
        browser.write_all(head.as_bytes()).expect("send");
        browser.write_all(b"SET a taken\r\n").expect("send");
        assert!(!receive_all(&mut browser).contains('+'), "{head}");
        assert_answers(addr, &[("GET a", "$-1\r\n")]);
    }
}

#[test]
fn a_protocol_error_is_answered_and_closes_the_connection() {
    let (_program, addr) = listening(&[]);
    let long_count = b"*1\r\n$".iter().chain(&[b'1'; 40]).copied().collect::<Vec<u8>>();
    for (bytes, error) in [
        (&b"*x\r\n"[..], "invalid multibulk length"),
        (b"*16385\r\n", "invalid multibulk length"),
        (b"*99999999999999999999\r\n", "invalid multibulk length"),
        (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
        (b"*1\r\n\x07\r\n", "expected '$', got '?'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*01\r\n$4\r\nPING\r\n", "invalid multibulk length"),
        (b"*1\r\n$04\r\nPING\r\n", "invalid bulk length"),
        (b"*1\r\n$-0\r\n", "invalid bulk length"),
        (b"*2\r\n$3\r\nGET\r\n$524289\r\n", "invalid bulk length"),
        (&long_count, "too big bulk count string"),
        (b"say \"unbalanced\r\n", "unbalanced quotes in request"),
        (b"'a'b\r\n", "unbalanced quotes in request"),
        (b"ECHO a\"b\"c\r\n", "unbalanced quotes in request"),
        (b"ECHO a'b\r\n", "unbalanced quotes in request"),
        (&vec![b'x'; 64 << 10], "too big inline request"),
    ] {
        let mut client = connect(addr);
        client.write_all(b"SET a 1\r\n").expect("send");
        client.write_all(bytes).expect("send");
        assert_eq!(receive_all(&mut client), format!("+OK\r\n-ERR Protocol error: {error}\r\n"));
    }
    // A request with a protocol error at its end has no effect.
    let mut client = connect(addr);
    client.write_all(b"*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$1\r\n2\r\n$1\r\nb\r\nx").expect("send");
    let answer = receive_all(&mut client);
    assert_eq!(answer, "-ERR Protocol error: expected '$', got 'x'\r\n");
    assert_answers(addr, &[("GET a", "$1\r\n1\r\n")]);
}

#[test]
fn fragmented_and_pipelined_requests_are_answered_in_order() {
    let (_program, addr) = listening(&[]);
    let mut stream = request(&[b"SET", b"key", b"line\r\nline"]);
    stream.extend(b"\r\n*0\r\n*-1\r\nGET key\r\n");
    stream.extend(request(&[b"MGET", b"key", b"", b"nothing"]));
    stream.extend(request(&[b"SET", b"", b""]));
    stream.extend(request(&[b"GET", b""]));
    let expected = "+OK\r\n$10\r\nline\r\nline\r\n\
                    *3\r\n$10\r\nline\r\nline\r\n$-1\r\n$-1\r\n+OK\r\n$0\r\n\r\n";
    for fragment in [1, 2, 7, stream.len()] {
        let mut client = connect(addr);
        client.set_nodelay(true).expect("no delay");
        for part in stream.chunks(fragment) {
            client.write_all(part).expect("send");
        }
        assert_eq!(receive(&mut client, expected.len()), expected, "in {fragment}s");
        client.write_all(b"FLUSHALL\r\n").expect("send");
        assert_eq!(receive(&mut client, 5), "+OK\r\n");
    }
    let pipeline: Vec<u8> = (0..10_000).flat_map(|_| request(&[b"INCR", b"n"])).collect();
    let answers = answers(addr, &pipeline);
    let counted: Vec<i64> = answers.lines().map(|line| line[1..].parse().expect(line)).collect();
    assert!(counted.into_iter().eq(1..=10_000), "{} bytes", answers.len());
}

/// Sets and gets the longest value. The first and last bytes of the SET request are sent one by
/// one. Then the same requests are pipelined.
#[test]
fn values_of_512_kib_are_stored_and_returned_unchanged() {
    let (program, addr) = listening(&[]);
    let value: Vec<u8> = (0..512 << 10).map(|n: u32| ((n * 31) >> 3) as u8).collect();
    let set = request(&[b"SET", b"large", &value]);
    let mut reply = b"$524288\r\n".to_vec();
    reply.extend(&value);
    reply.extend(b"\r\n");
    let mut client = connect(addr);
    client.set_nodelay(true).expect("no delay");
    for edge in [b"SET".len(), 40] {
        let (first, rest) = set.split_at(edge);
        let (middle, last) = rest.split_at(rest.len() - edge);
        for part in first.chunks(1).chain([middle]).chain(last.chunks(1)) {
            client.write_all(part).expect("send");
        }
        expect_reply(&mut client, b"+OK\r\n");
        client.write_all(&request(&[b"GET", b"large"])).expect("send");
        expect_reply(&mut client, &reply);
    }
    let pipeline = [&set[..], &request(&[b"GET", b"large"])].concat().repeat(8);
    let mut writer = client.try_clone().expect("clone");
    let writer = thread::spawn(move || writer.write_all(&pipeline));
    for _ in 0..8 {
        expect_reply(&mut client, b"+OK\r\n");
        expect_reply(&mut client, &reply);
    }
    writer.join().expect("no panic").expect("send");
    drop(client);
    program.signal("-TERM");
    let (status, stdout, _) = program.end();
    assert_eq!((status.code(), stdout.len()), (Some(0), 1), "{stdout:#?}");
}

#[test]
fn a_request_above_a_limit_is_rejected_and_others_are_served() {
    let (_program, addr) = listening(&["--max-request", "100000", "--memory-limit", "140000"]);
    let value = vec![b'x'; 60_000];
    let mut large = connect(addr);
    large.write_all(&request(&[b"MSET", b"a", &value, b"b", &value])).expect("send");
    assert_eq!(receive_all(&mut large), "-ERR Protocol error: too big request\r\n");
    // While one large request is incomplete, a second large request exceeds the memory limit. Small
    // requests are still served.
    let mut partial = connect(addr);
    let set = request(&[b"SET", b"a", &vec![b'x'; 90_000]]);
    partial.write_all(&set[..80_000]).expect("send");
    let refused = "-OOM too many large requests at a time\r\n";
    let mut second = connect(addr);
    second.write_all(b"PING\r\n").expect("send");
    assert_eq!(receive(&mut second, 7), "+PONG\r\n");
    second.write_all(&set[..80_000]).expect("send");
    assert_eq!(receive_all(&mut second), refused);
    assert_answers(addr, &[("PING", "+PONG\r\n")]);
    partial.write_all(&set[80_000..]).expect("send");
    assert_eq!(receive(&mut partial, 5), "+OK\r\n");
    assert_eq!(answers(addr, &set), "+OK\r\n", "the memory is free again");
}

#[test]
fn a_request_cut_short_by_end_of_file_is_neither_executed_nor_answered() {
    let (_program, addr) = listening(&[]);
    for cut_short in [&b"SET a 1"[..], b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r"] {
        let mut client = connect(addr);
        client.write_all(b"PING\r\n").expect("send");
        client.write_all(cut_short).expect("send");
        client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(receive_all(&mut client), "+PONG\r\n");
        assert_answers(addr, &[("GET a", "$-1\r\n")]);
    }
}

#[test]
fn a_connection_above_the_maximum_receives_an_error() {
    let (_program, addr) = listening(&["--max", "1"]);
    let mut first = connect(addr);
    send(&mut first, "PING\r\n");
    assert_eq!(receive(&mut first, 7), "+PONG\r\n");
    assert_eq!(receive_all(&mut connect(addr)), "-ERR max number of clients reached\r\n");
}

#[test]
fn an_idle_client_is_closed_after_the_deadline_or_never() {
    let (_program, addr) = listening(&["--deadline-ms", "50"]);
    assert_eq!(receive_all(&mut connect(addr)), "");
    let (_program, addr) = listening(&["--deadline-ms", "0"]);
    let mut client = connect(addr);
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
    assert!(client.read(&mut [0]).is_err(), "it is still open");
    send(&mut client, "PING\r\n");
    assert_eq!(receive(&mut client, 7), "+PONG\r\n");
}

#[test]
fn bad_usage_is_one_line_and_help_names_every_option() {
    for (args, named) in [
        (&["--max-request", "1"][..], "max_request is 1 but buffer_size is 32768"),
        (&["--memory-limit", "40000"], "memory_limit is 40000 but max_request is 1048576"),
        (&["--nonsense"], "--nonsense"),
    ] {
        let (status, stdout, stderr) = Program::spawn(program().args(args)).end();
        assert_eq!((status.code(), stdout.len(), stderr.len()), (Some(2), 0, 1), "{stderr:?}");
        assert!(stderr[0].starts_with("resp: ") && stderr[0].contains(named), "{stderr:?}");
    }
    let (status, stdout, _) = Program::spawn(program().arg("--help")).end();
    assert_eq!(status.code(), Some(0));
    let words: Vec<&str> = stdout.iter().flat_map(|line| line.split(' ')).collect();
    for option in ["--listen", "--max", "--max-request", "--memory-limit", "--deadline-ms"] {
        assert!(words.contains(&option), "{option} is missing");
    }
}
