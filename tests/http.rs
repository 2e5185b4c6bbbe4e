//! The `http` example: its message boundaries as a pure function, and the program as its peers
//! see it, those that mean harm too.

#[path = "support/examples.rs"]
mod examples;
// The program uses more of it than these tests do.
#[allow(dead_code)]
#[path = "../examples/http/message.rs"]
mod message;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use examples::*;
use message::{Request, parse};
use pool_manager::Frame;

const MOST: usize = 4096;

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

fn whole(text: &str) -> Request<'_> {
    parse(text.as_bytes(), MOST).expect(text).expect(text)
}

#[test]
fn a_request_is_complete_at_its_last_byte_and_not_before() {
    for request in REQUESTS {
        for length in 0..request.len() {
            let partial = parse(&request.as_bytes()[..length], MOST);
            assert!(matches!(partial, Ok(None)), "{length} of {request:?}: {partial:?}");
        }
        for next in REQUESTS {
            let both = request.to_owned() + next;
            assert_eq!(whole(&both).length, request.len(), "{both:?}");
        }
    }
}

#[test]
fn a_request_is_read_for_what_it_says() {
    let read = REQUESTS.map(|text| {
        let Request { method, path, minor, keep_alive, body, .. } = whole(text);
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
    let lasting = "GET /?http://b/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    assert!(whole(lasting).keep_alive && whole(lasting).path == "/");
}

/// What stands between a request line and the body, or all of it, and how it is refused.
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
fn what_two_readers_could_take_for_different_things_is_refused() {
    for (rest, status) in FAULTS {
        let request = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{rest}");
        let parsed = parse(request.as_bytes(), MOST);
        assert_eq!(parsed.map(|_| ()).map_err(|fault| fault.0), Err(status), "{request:?}");
        let frame = message::frame(request.as_bytes(), MOST);
        assert_eq!(frame, Frame::Complete(request.len()), "it is told: {request:?}");
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
        let parsed = parse(request.as_bytes(), MOST);
        assert_eq!(parsed.map(|_| ()).map_err(|fault| fault.0), Err(status), "{request:?}");
    }
}

#[test]
fn a_length_that_will_not_fit_is_refused_before_it_comes() {
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n";
    assert_eq!(parse(head.as_bytes(), MOST).unwrap_err().0, 413);
    let room = head.len() + 9999;
    assert!(matches!(parse(head.as_bytes(), room), Ok(None)), "one that just fits is awaited");
    assert_eq!(parse(head.as_bytes(), room - 1).unwrap_err().0, 413);
    let chunk = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n";
    assert_eq!(parse(chunk.as_bytes(), MOST).unwrap_err().0, 413);
}

#[test]
fn too_many_fields_are_refused() {
    let fields = |count| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count));
    assert!(matches!(parse(fields(63).as_bytes(), MOST), Ok(Some(_))));
    assert_eq!(parse(fields(64).as_bytes(), MOST).unwrap_err().0, 431);
}

/// Requests with some bytes changed, put in or left out: whatever comes of it, it is decided by
/// the first bytes, and not changed by those that follow.
#[test]
fn later_bytes_change_no_decision() {
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
        let all = parse(&bytes, MOST).map(|request| request.map(|request| request.length));
        for length in 0..bytes.len() {
            match parse(&bytes[..length], MOST) {
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

fn sent(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut client = connect(addr);
    client.write_all(bytes.as_ref()).expect("send");
    client
}

/// All that is answered to these bytes until the server closes.
fn told(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    hear_all(&mut sent(addr, bytes))
}

/// The status codes of replies that stand behind each other.
fn statuses(replies: &str) -> Vec<&str> {
    replies.split("HTTP/1.1 ").skip(1).map(|reply| &reply[..3]).collect()
}

/// Asks for the end of the connection as well.
const LAST: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[test]
fn requests_that_come_together_are_answered_in_order() {
    let (_program, addr) = listening("http", &[]);
    let requests = "GET /size/3 HTTP/1.1\r\nHost: a\r\n\r\n\
                    HEAD /size/524288 HTTP/1.1\r\nHost: a\r\n\r\n\
                    POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                    2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n\
                    GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n\
                    GET /size/524289 HTTP/1.1\r\nHost: a\r\n\r\n\
                    PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    let replies = told(addr, requests.to_owned() + LAST);
    assert_eq!(statuses(&replies), ["200", "200", "200", "404", "404", "405", "200"]);
    let bodies: Vec<&str> = replies.split("\r\n\r\n").collect();
    assert!(bodies[1].starts_with("xxxHTTP/1.1 200"), "{replies}");
    assert!(bodies[1].contains("Content-Length: 524288"), "of the HEAD: {replies}");
    assert!(bodies[2].starts_with("HTTP/1.1 200"), "which has no body: {replies}");
    assert!(bodies[3].starts_with("helloHTTP/1.1 404"), "{replies}");
    assert!(bodies[5].contains("Allow: POST"), "{replies}");
    assert!(bodies[6].contains("Connection: close"), "{replies}");
}

#[test]
fn a_request_byte_by_byte_is_one_request() {
    let (_program, addr) = listening("http", &[]);
    let mut client = connect(addr);
    client.set_nodelay(true).expect("no delay");
    for byte in REQUESTS[4].bytes().chain(LAST.bytes()) {
        client.write_all(&[byte]).expect("send");
    }
    let replies = hear_all(&mut client);
    assert_eq!(statuses(&replies), ["200", "200"]);
    assert!(replies.contains("\r\n\r\nhello worldHTTP"), "{replies}");
}

#[test]
fn a_peer_of_the_older_version_is_told_whether_it_may_stay() {
    let (_program, addr) = listening("http", &[]);
    let stays = "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n";
    let replies = told(addr, stays.to_owned() + "GET / HTTP/1.0\r\n\r\n");
    assert_eq!(statuses(&replies), ["200", "200"]);
    assert_eq!(replies.matches("Connection: keep-alive").count(), 1);
    assert_eq!(replies.matches("Connection: close").count(), 1);
}

#[test]
fn who_wants_to_close_and_to_stay_is_closed() {
    let (_program, addr) = listening("http", &[]);
    for wishes in ["Connection: close, keep-alive", "Connection: close\r\nConnection: keep-alive"] {
        let mut client = connect(addr);
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{wishes}\r\n\r\n");
        client.write_all(request.as_bytes()).expect("send");
        let reply = hear_all(&mut client);
        assert!(
            reply.starts_with("HTTP/1.1 200 ") && reply.contains("Connection: close"),
            "{reply}"
        );
    }
}

#[test]
fn it_says_what_time_it_is() {
    let (_program, addr) = listening("http", &[]);
    let reply = told(addr, LAST);
    let date = reply.lines().find_map(|line| line.strip_prefix("Date: ")).expect("a date");
    let date = httpdate::parse_http_date(date).expect("a date of HTTP");
    let now = SystemTime::now();
    assert!(date <= now && now < date + PATIENCE, "{date:?} is not {now:?}");
}

#[test]
fn nothing_behind_a_fault_is_taken_for_a_request() {
    let (_program, addr) = listening("http", &[]);
    for (rest, status) in FAULTS {
        let request = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{rest}{LAST}");
        let replies = told(addr, &request);
        assert_eq!(statuses(&replies), [status.to_string()], "{request:?}: {replies}");
        assert!(replies.contains("Connection: close"), "{replies}");
    }
}

#[test]
fn who_takes_too_long_is_told_so_and_who_is_silent_is_not() {
    let args = ["--deadline-ms", "60000", "--request-deadline-ms", "200"];
    let (_program, addr) = listening("http", &args);
    assert_eq!(statuses(&told(addr, "GET / HTTP/1.1\r\nHo")), ["408"]);
    let (body, _) = REQUESTS[2].split_at(REQUESTS[2].len() - 1);
    assert_eq!(statuses(&told(addr, body)), ["408"]);
    let (_program, addr) = listening("http", &["--deadline-ms", "200"]);
    assert_eq!(told(addr, ""), "");
    let kept = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(statuses(&told(addr, kept)), ["200"], "nothing more than the answer");
}

#[test]
fn who_sends_too_much_is_told_what_was_too_much() {
    let (_program, addr) = listening("http", &["--max-request", "1000"]);
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\n";
    let fields = format!("{head}X: {}\r\n\r\n", "y".repeat(1000));
    assert_eq!(statuses(&told(addr, fields)), ["431"]);
    let plain = format!("{head}Content-Length: 1000\r\n\r\n{}", "y".repeat(1000));
    assert_eq!(statuses(&told(addr, plain)), ["413"]);
    let chunk = format!("100\r\n{}\r\n", "y".repeat(256));
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(4));
    assert_eq!(statuses(&told(addr, chunked)), ["413"]);
    // An upload that is much longer than all buffers: the answer must not be lost to a reset.
    let long = format!("{head}Content-Length: 4000000\r\n\r\n{}", "y".repeat(4_000_000));
    assert_eq!(statuses(&told(addr, long)), ["413"]);
}

#[test]
fn who_stops_in_the_middle_is_told_that_this_is_no_request() {
    let (_program, addr) = listening("http", &[]);
    let mut client = sent(addr, "GET / HTTP/1.1\r\nHo");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(statuses(&hear_all(&mut client)), ["400"]);
    let mut client = sent(addr, REQUESTS[0]);
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(statuses(&hear_all(&mut client)), ["200"], "one that is whole is answered");
}

#[test]
fn who_expects_a_word_before_the_body_hears_at_once_that_it_is_too_long() {
    let (_program, addr) = listening("http", &[]);
    let head = |length| {
        let fields = format!("Expect: 100-continue\r\nContent-Length: {length}");
        format!("POST /echo HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
    };
    assert_eq!(statuses(&told(addr, head(70_000))), ["413"]);
    let replies = told(addr, head(5) + "hello" + LAST);
    assert_eq!(statuses(&replies), ["200", "200"], "who does not wait is answered: {replies}");
}

#[test]
fn one_too_many_is_told_in_a_whole_response() {
    let (_program, addr) = listening("http", &["--max", "1"]);
    let mut first = sent(addr, REQUESTS[0]);
    assert!(hear(&mut first, 15).starts_with("HTTP/1.1 200 OK"));
    let refused = told(addr, LAST);
    let (head, body) = refused.split_once("\r\n\r\n").expect("a header section");
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Connection: close"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{refused}");
}

#[test]
fn who_reads_nothing_is_closed_and_holds_up_nobody() {
    let args = ["--deadline-ms", "60000", "--request-deadline-ms", "300", "--debug"];
    let (program, addr) = listening("http", &args);
    let want = "GET /size/524288 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
    let mut greedy = sent(addr, want);
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(statuses(&told(addr, LAST)), ["200"]);
    }
    assert!(began.elapsed() < Duration::from_secs(2));
    program.stderr.find("the peer took no reply until its deadline");
    let mut got = Vec::new();
    // With a reset or an end of file.
    let _ = greedy.read_to_end(&mut got);
    assert!(got.len() < 100 * (512 << 10), "not all of it");
}

#[test]
fn a_signal_ends_it_between_requests() {
    let (program, addr) = listening("http", &[]);
    let mut client = sent(addr, REQUESTS[0].to_owned() + "GET / HT");
    assert!(hear(&mut client, 15).starts_with("HTTP/1.1 200 OK"));
    program.signal("-TERM");
    program.stderr.find("stopping: 1 connections");
    say(&mut client, "TP/1.1\r\nHost: a\r\n\r\n");
    let last = hear_all(&mut client);
    assert!(last.contains("Connection: close"), "{last}");
    drop(client);
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    assert!(stdout[0].starts_with("stopped: 0 idle, 1 finished, 0 aborted"), "{stdout:#?}");
}
