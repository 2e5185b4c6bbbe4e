//! Tests of the `http` example. Some tests call the message parser as a pure function. The others
//! run the program with well-behaved and hostile peers.

#[path = "../../../tests/support/examples.rs"]
mod examples;
// These tests use only a part of the module.
#[allow(dead_code)]
#[path = "../src/message.rs"]
mod message;
#[path = "../../../tests/support/usage.rs"]
mod usage;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use examples::*;
use message::{Request, parse};
use pool_manager::Frame;

const MAX_REQUEST: usize = 4096;

const REQUESTS: [&str; 7] = [
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "\r\nHEAD /size/3?x=1 HTTP/1.0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
    "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 00\r\nConnection: x, Close\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
     5\r\nhello\r\n006;a=\"b\";c\r\n world\r\n0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nSum: 1\r\nX: y\r\n\r\n",
    "GET http://a/size/1 HTTP/1.1\r\nHost: a\r\nX: a\tb\r\n\r\n",
];

fn parse_complete(text: &str) -> Request<'_> {
    parse(text.as_bytes(), MAX_REQUEST).expect(text).expect(text)
}

#[test]
fn a_request_is_complete_at_its_last_byte_and_not_before() {
    for request in REQUESTS {
        for length in 0..request.len() {
            let partial = parse(&request.as_bytes()[..length], MAX_REQUEST);
            assert!(matches!(partial, Ok(None)), "{length} of {request:?}: {partial:?}");
        }
        for next in REQUESTS {
            let both = request.to_owned() + next;
            assert_eq!(parse_complete(&both).length, request.len(), "{both:?}");
        }
    }
}

#[test]
fn a_request_is_parsed_into_its_parts() {
    let read = REQUESTS.map(|text| {
        let Request { method, path, minor, keep_alive, body, .. } = parse_complete(text);
        let body: Vec<u8> = body.pieces().flatten().copied().collect();
        (method, path, minor, keep_alive, String::from_utf8(body).expect("text"))
    });
    let expected = [
        ("GET", "/", 1, true, ""),
        ("HEAD", "/size/3", 0, false, ""),
        ("POST", "/echo", 1, true, "hello"),
        ("POST", "/echo", 1, false, ""),
        ("POST", "/echo", 1, true, "hello world"),
        ("POST", "/echo", 1, true, ""),
        ("GET", "/size/1", 1, true, ""),
    ];
    assert_eq!(read, expected.map(|(a, b, c, d, body)| (a, b, c, d, body.to_owned())));
    let kept_alive = "GET /?http://b/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    assert!(parse_complete(kept_alive).keep_alive && parse_complete(kept_alive).path == "/");
}

/// Malformed header sections and bodies after a valid request line, and the status of the reply.
const FAULTS: [(&str, u16); 32] = [
    ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    ("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400),
    ("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    ("Content-Length: 5, 5\r\n\r\nhello", 400),
    ("Content-Length: +5\r\n\r\nhello", 400),
    ("Content-Length: -1\r\n\r\n", 400),
    ("Content-Length: 0x5\r\n\r\nhello", 400),
    ("Content-Length:\r\n\r\n", 400),
    ("Content-Length: 99999999999999999999999\r\n\r\n", 400),
    ("Content-Length : 5\r\n\r\nhello", 400),
    ("X: a\r\n Content-Length: 5\r\n\r\nhello", 400),
    ("X: a\nContent-Length: 5\r\n\r\nhello", 400),
    ("X: a\rContent-Length: 5\r\n\r\nhello", 400),
    ("X: a\0b\r\n\r\n", 400),
    ("\x0bContent-Length: 5\r\n\r\nhello", 400),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501),
    ("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    ("Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", 501),
    ("Transfer-Encoding: chunked\r\n\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\nx\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\n000000005\r\nhello\r\n0\r\n\r\n", 400),
    ("Transfer-Encoding: chunked\r\n\r\n0\r\nX : y\r\n\r\n", 400),
];

#[test]
fn an_ambiguous_request_is_rejected() {
    for (rest, status) in FAULTS {
        let request = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{rest}");
        let parsed = parse(request.as_bytes(), MAX_REQUEST);
        assert_eq!(parsed.map(|_| ()).map_err(|fault| fault.0), Err(status), "{request:?}");
        let frame = message::frame(request.as_bytes(), MAX_REQUEST);
        assert_eq!(
            frame,
            Frame::Complete(request.len()),
            "the fault is delivered as a frame: {request:?}"
        );
    }
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("G\u{e9}T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03", 400),
    ] {
        let parsed = parse(request.as_bytes(), MAX_REQUEST);
        assert_eq!(parsed.map(|_| ()).map_err(|fault| fault.0), Err(status), "{request:?}");
    }
}

#[test]
fn a_body_that_is_too_long_is_rejected_before_it_arrives() {
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n";
    assert_eq!(parse(head.as_bytes(), MAX_REQUEST).unwrap_err().0, 413);
    let limit = head.len() + 9999;
    assert!(matches!(parse(head.as_bytes(), limit), Ok(None)), "a body that just fits is accepted");
    assert_eq!(parse(head.as_bytes(), limit - 1).unwrap_err().0, 413);
    let chunk = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n";
    assert_eq!(parse(chunk.as_bytes(), MAX_REQUEST).unwrap_err().0, 413);
}

#[test]
fn too_many_header_fields_are_rejected() {
    let fields = |count| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count));
    assert!(matches!(parse(fields(63).as_bytes(), MAX_REQUEST), Ok(Some(_))));
    assert_eq!(parse(fields(64).as_bytes(), MAX_REQUEST).unwrap_err().0, 431);
}

/// Parses requests with some bytes changed, inserted or removed. A request or a fault that the
/// parser finds in the first bytes does not change when more bytes follow.
#[test]
fn later_bytes_do_not_change_the_result_of_the_parser() {
    arbtest::arbtest(|u| {
        let mut bytes = Vec::new();
        for _ in 0..u.int_in_range(1..=3)? {
            bytes.extend(u.choose(&REQUESTS)?.bytes());
        }
        for _ in 0..u.int_in_range(0..=3)? {
            let at = u.int_in_range(0..=bytes.len() - 1)?;
            let byte = *u.choose(b"\r\n \t:;,0159afAF-+x\0\xff")?;
            match u.int_in_range(0..=2)? {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        let all = parse(&bytes, MAX_REQUEST).map(|request| request.map(|request| request.length));
        for length in 0..bytes.len() {
            match parse(&bytes[..length], MAX_REQUEST) {
                Ok(None) => {}
                Ok(Some(request)) => {
                    assert!(request.length <= length);
                    assert_eq!(Ok(Some(request.length)), all, "{}", bytes.escape_ascii());
                }
                Err(_) => assert!(all.is_err(), "{}", bytes.escape_ascii()),
            }
        }
        Ok(())
    })
    .budget_ms(1_500);
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_http"));
    command.env_remove("RUST_LOG").env_remove("RUST_LOG_STYLE");
    command
}

/// Starts the program on a free port. Returns the program and its address.
fn listening(args: &[&str]) -> (Program, SocketAddr) {
    let program = Program::spawn(program().args(LOOPBACK).args(args));
    let addr = program.addr();
    (program, addr)
}

fn sent(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut client = connect(addr);
    client.write_all(bytes.as_ref()).expect("send");
    client
}

/// Sends `bytes` and returns everything that the server sends until it closes.
fn exchange(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    receive_all(&mut sent(addr, bytes))
}

/// Returns the status codes of consecutive replies.
fn statuses(replies: &str) -> Vec<&str> {
    replies.split("HTTP/1.1 ").skip(1).map(|reply| &reply[..3]).collect()
}

/// A request that also asks the server to close the connection.
const LAST: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (_program, addr) = listening(&[]);
    let requests = "GET /size/3 HTTP/1.1\r\nHost: a\r\n\r\n\
                    HEAD /size/524288 HTTP/1.1\r\nHost: a\r\n\r\n\
                    POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                    2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n\
                    GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n\
                    GET /size/524289 HTTP/1.1\r\nHost: a\r\n\r\n\
                    PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    let replies = exchange(addr, requests.to_owned() + LAST);
    assert_eq!(statuses(&replies), ["200", "200", "200", "404", "404", "405", "200"]);
    let bodies: Vec<&str> = replies.split("\r\n\r\n").collect();
    assert!(bodies[1].starts_with("xxxHTTP/1.1 200"), "{replies}");
    assert!(bodies[1].contains("Content-Length: 524288"), "reply to HEAD: {replies}");
    assert!(bodies[2].starts_with("HTTP/1.1 200"), "no body after HEAD: {replies}");
    assert!(bodies[3].starts_with("helloHTTP/1.1 404"), "{replies}");
    assert!(bodies[5].contains("Allow: POST"), "{replies}");
    assert!(bodies[6].contains("Connection: close"), "{replies}");
}

#[test]
fn a_request_sent_byte_by_byte_is_one_request() {
    let (_program, addr) = listening(&[]);
    let mut client = connect(addr);
    client.set_nodelay(true).expect("no delay");
    for byte in REQUESTS[4].bytes().chain(LAST.bytes()) {
        client.write_all(&[byte]).expect("send");
    }
    let replies = receive_all(&mut client);
    assert_eq!(statuses(&replies), ["200", "200"]);
    assert!(replies.contains("\r\n\r\nhello worldHTTP"), "{replies}");
}

#[test]
fn an_http_1_0_peer_learns_whether_the_connection_stays_open() {
    let (_program, addr) = listening(&[]);
    let first = "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n";
    let replies = exchange(addr, first.to_owned() + "GET / HTTP/1.0\r\n\r\n");
    assert_eq!(statuses(&replies), ["200", "200"]);
    assert_eq!(replies.matches("Connection: keep-alive").count(), 1);
    assert_eq!(replies.matches("Connection: close").count(), 1);
}

#[test]
fn close_takes_precedence_over_keep_alive() {
    let (_program, addr) = listening(&[]);
    for options in ["Connection: close, keep-alive", "Connection: close\r\nConnection: keep-alive"]
    {
        let mut client = connect(addr);
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{options}\r\n\r\n");
        client.write_all(request.as_bytes()).expect("send");
        let reply = receive_all(&mut client);
        assert!(
            reply.starts_with("HTTP/1.1 200 ") && reply.contains("Connection: close"),
            "{reply}"
        );
    }
}

#[test]
fn a_reply_carries_the_current_date() {
    let (_program, addr) = listening(&[]);
    let reply = exchange(addr, LAST);
    let date = reply.lines().find_map(|line| line.strip_prefix("Date: ")).expect("a date");
    let date = httpdate::parse_http_date(date).expect("an HTTP date");
    let now = SystemTime::now();
    assert!(date <= now && now < date + TIMEOUT, "{date:?} is not {now:?}");
}

#[test]
fn bytes_after_a_malformed_request_are_not_parsed() {
    let (_program, addr) = listening(&[]);
    for (rest, status) in FAULTS {
        let request = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{rest}{LAST}");
        let replies = exchange(addr, &request);
        assert_eq!(statuses(&replies), [status.to_string()], "{request:?}: {replies}");
        assert!(replies.contains("Connection: close"), "{replies}");
    }
}

#[test]
fn a_slow_request_is_answered_with_408_and_an_idle_peer_is_not() {
    let args = ["--deadline-ms", "60000", "--request-deadline-ms", "200"];
    let (_program, addr) = listening(&args);
    assert_eq!(statuses(&exchange(addr, "GET / HTTP/1.1\r\nHo")), ["408"]);
    let (body, _) = REQUESTS[2].split_at(REQUESTS[2].len() - 1);
    assert_eq!(statuses(&exchange(addr, body)), ["408"]);
    let (_program, addr) = listening(&["--deadline-ms", "200"]);
    assert_eq!(exchange(addr, ""), "");
    let kept = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(statuses(&exchange(addr, kept)), ["200"], "no 408 on an idle connection");
}

#[test]
fn an_oversized_request_is_answered_with_431_or_413() {
    let (_program, addr) = listening(&["--max-request", "1000"]);
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\n";
    let fields = format!("{head}X: {}\r\n\r\n", "y".repeat(1000));
    assert_eq!(statuses(&exchange(addr, fields)), ["431"]);
    let plain = format!("{head}Content-Length: 1000\r\n\r\n{}", "y".repeat(1000));
    assert_eq!(statuses(&exchange(addr, plain)), ["413"]);
    let chunk = format!("100\r\n{}\r\n", "y".repeat(256));
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(4));
    assert_eq!(statuses(&exchange(addr, chunked)), ["413"]);
    // The upload is much longer than all buffers. A reset must not discard the reply.
    let long = format!("{head}Content-Length: 4000000\r\n\r\n{}", "y".repeat(4_000_000));
    assert_eq!(statuses(&exchange(addr, long)), ["413"]);
}

#[test]
fn a_request_cut_short_by_end_of_file_is_answered_with_400() {
    let (_program, addr) = listening(&[]);
    let mut client = sent(addr, "GET / HTTP/1.1\r\nHo");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(statuses(&receive_all(&mut client)), ["400"]);
    let mut client = sent(addr, REQUESTS[0]);
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(statuses(&receive_all(&mut client)), ["200"], "a complete request is answered");
}

#[test]
fn a_body_announced_as_too_long_is_rejected_before_it_is_sent() {
    let (_program, addr) = listening(&[]);
    let head = |length| {
        let fields = format!("Expect: 100-continue\r\nContent-Length: {length}");
        format!("POST /echo HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
    };
    assert_eq!(statuses(&exchange(addr, head(70_000))), ["413"]);
    let replies = exchange(addr, head(5) + "hello" + LAST);
    assert_eq!(
        statuses(&replies),
        ["200", "200"],
        "a peer that does not wait is answered: {replies}"
    );
}

#[test]
fn a_connection_above_the_maximum_receives_a_complete_503() {
    let (_program, addr) = listening(&["--max", "1"]);
    let mut first = sent(addr, REQUESTS[0]);
    assert!(receive(&mut first, 15).starts_with("HTTP/1.1 200 OK"));
    let refused = exchange(addr, LAST);
    let (head, body) = refused.split_once("\r\n\r\n").expect("a header section");
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Connection: close"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{refused}");
}

#[test]
fn a_peer_that_does_not_read_is_closed_and_delays_no_other() {
    let args = ["--deadline-ms", "60000", "--request-deadline-ms", "300", "--debug"];
    let (program, addr) = listening(&args);
    let want = "GET /size/524288 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
    let mut unread = sent(addr, want);
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(statuses(&exchange(addr, LAST)), ["200"]);
    }
    assert!(began.elapsed() < Duration::from_secs(2));
    program.stderr.find("the peer took no reply until its deadline");
    let mut got = Vec::new();
    // The connection ends with a reset or an end of file.
    let _ = unread.read_to_end(&mut got);
    assert!(got.len() < 100 * (512 << 10), "the replies were cut short");
}

#[test]
fn sigterm_closes_the_connection_after_the_request_in_progress() {
    let (program, addr) = listening(&[]);
    let mut client = sent(addr, REQUESTS[0].to_owned() + "GET / HT");
    assert!(receive(&mut client, 15).starts_with("HTTP/1.1 200 OK"));
    program.signal("-TERM");
    program.stderr.find("stopping: 1 connections");
    send(&mut client, "TP/1.1\r\nHost: a\r\n\r\n");
    let last = receive_all(&mut client);
    assert!(last.contains("Connection: close"), "{last}");
    drop(client);
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    assert!(stdout[0].starts_with("stopped: 0 idle, 1 finished, 0 aborted"), "{stdout:#?}");
}

#[test]
fn help_names_every_option() {
    usage::check_help(
        program,
        "--listen --max --max-request --deadline-ms --request-deadline-ms --debug --help",
    );
}

#[test]
fn bad_usage_is_one_line_and_exit_code_2() {
    usage::check_bad_usage("http", program);
    for max in ["0", "99999999999"] {
        usage::assert_fails("http", program().args(["--max-request", max]), 2);
    }
}

#[test]
fn an_unusable_listen_address_is_named_in_the_error() {
    usage::check_listen_address("http", program);
}
