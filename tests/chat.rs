//! The `chat` example as its members see it, with up to 1,000 members.

#[path = "support/examples.rs"]
mod examples;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use examples::*;

/// A member and the lines that it receives.
struct Member {
    lines: BufReader<TcpStream>,
    name: String,
}

impl Member {
    /// Connects and waits for the line that announces the member.
    fn join(addr: SocketAddr) -> Self {
        let mut lines = BufReader::new(connect(addr));
        let mut line = String::new();
        // Earlier lines may come first.
        while !line.ends_with(" joins\n") {
            line.clear();
            lines.read_line(&mut line).expect("a line");
        }
        let name = line.split(' ').nth(1).expect("a name").to_owned();
        Self { lines, name }
    }

    fn next(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        assert!(line.ends_with('\n'), "a complete line: {line:?}");
        line.trim_end().to_owned()
    }

    fn send_line(&mut self, line: &str) {
        send(self.lines.get_mut(), &format!("{line}\n"));
    }

    #[track_caller]
    fn expect_line(&mut self, line: &str) {
        assert_eq!(self.next(), line);
    }
}

#[test]
fn all_members_receive_lines_joins_and_leaves() {
    let (_program, addr) = listening("chat", &[]);
    let mut one = Member::join(addr);
    let mut other = Member::join(addr);
    let (first, second) = (one.name.clone(), other.name.clone());
    assert_ne!(first, second);
    one.expect_line(&format!("* {second} joins"));
    one.send_line("/name Ada");
    for member in [&mut one, &mut other] {
        member.expect_line(&format!("* {first} is now Ada"));
    }
    other.send_line("hello, \x1b[31mAda\x07\r");
    for member in [&mut one, &mut other] {
        member.expect_line(&format!("{second}: hello, [31mAda"));
    }
    one.send_line("/who");
    one.expect_line("* 2 here");
    one.send_line("/quit");
    other.expect_line("* Ada leaves");
    assert_eq!(receive_all(&mut one.lines), "");
    other.send_line("");
    other.send_line("hello?");
    other.expect_line(&format!("{second}: hello?"));
}

#[test]
fn names_are_unique_single_words() {
    let (_program, addr) = listening("chat", &[]);
    let mut one = Member::join(addr);
    let guest = one.name.clone();
    let long = "x".repeat(33);
    for name in ["", "two words", "a:b", "*", "bell\x07\x1b", "guest-7.7", &long] {
        one.send_line(&format!("/name {name}"));
        match name {
            // Control characters have already been removed.
            "bell\x07\x1b" => one.expect_line(&format!("* {guest} is now bell")),
            _ => one.expect_line("! a name is one word of at most 32 letters"),
        }
    }
    one.send_line("/name bell");
    one.expect_line("! bell is taken");
    one.send_line("/nonsense");
    one.expect_line("! the commands are /name NAME, /who and /quit");
    let mut other = Member::join(addr);
    other.send_line("/name Größe");
    let name = other.name.clone();
    other.expect_line(&format!("* {name} is now Größe"));
    drop(other);
    for line in [format!("* {name} joins"), format!("* {name} is now Größe")] {
        one.expect_line(&line);
    }
    one.expect_line("* Größe leaves");
    one.send_line("/name Größe");
    one.expect_line("* bell is now Größe");
}

#[test]
fn a_long_line_and_an_idle_member_are_answered_and_closed() {
    let (_program, addr) = listening("chat", &["--deadline-ms", "150"]);
    let mut long = Member::join(addr);
    send(long.lines.get_mut(), &"x".repeat(5_000));
    assert_eq!(receive_all(&mut long.lines), "! a line may be 1024 bytes long\n");
    let mut silent = Member::join(addr);
    assert_eq!(receive_all(&mut silent.lines), "! nothing was heard for too long\n");
    let mut silent_later = Member::join(addr);
    silent_later.send_line("/who");
    silent_later.expect_line("* 1 here");
    assert_eq!(receive_all(&mut silent_later.lines), "! nothing was heard for too long\n");
}

#[test]
fn half_a_line_before_the_end_of_file_is_not_sent_to_the_members() {
    let (_program, addr) = listening("chat", &[]);
    let mut one = Member::join(addr);
    let mut other = Member::join(addr);
    let name = other.name.clone();
    one.expect_line(&format!("* {name} joins"));
    send(other.lines.get_mut(), "a line\nhalf");
    other.lines.get_mut().shutdown(Shutdown::Write).expect("shutdown");
    one.expect_line(&format!("{name}: a line"));
    one.expect_line(&format!("* {name} leaves"));
}

/// The lines for all members need far more send commands than the queue holds.
#[test]
fn a_thousand_members_receive_all_lines_in_the_same_order() {
    const MEMBERS: usize = 1_000;
    let (program, addr) = listening("chat", &[]);
    let mut members: Vec<_> = (0..MEMBERS).map(|_| connect(addr)).map(BufReader::new).collect();
    let mut line = String::new();
    for member in &mut members {
        send(member.get_mut(), "/who\n");
    }
    // The first member repeats `/who` until all members have joined. Then it sends a line to all
    // members.
    let all = loop {
        line.clear();
        send(members[0].get_mut(), "/who\n");
        while !line.ends_with(" here\n") {
            line.clear();
            members[0].read_line(&mut line).expect("a line");
        }
        if line == format!("* {MEMBERS} here\n") {
            break "all here";
        }
    };
    send(members[0].get_mut(), &format!("{all}\n"));
    for member in &mut members {
        while !line.ends_with(": all here\n") {
            line.clear();
            member.read_line(&mut line).expect("a line");
        }
        line.clear();
    }
    for (number, member) in members.iter_mut().enumerate() {
        send(member.get_mut(), &format!("I am {number}\nand say twice that I am {number}\n"));
    }
    let mut first: Vec<String> = Vec::new();
    for member in &mut members {
        let received: Vec<String> =
            member.lines().take(2 * MEMBERS).map(|line| line.expect("a line")).collect();
        if first.is_empty() {
            first = received;
        } else {
            assert!(received == first, "all members receive the same lines");
        }
    }
    first.sort_unstable();
    first.dedup();
    assert_eq!(first.len(), 2 * MEMBERS, "no line is lost or repeated");
    program.signal("-TERM");
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    assert!(stdout[0].contains(" 0 busy"), "{stdout:#?}");
}

#[test]
fn a_member_that_does_not_read_is_closed_and_the_others_lose_nothing() {
    const LINES: usize = 8_000;
    let (program, addr) = listening("chat", &["--write-limit", "131072"]);
    let mut not_reading = Member::join(addr);
    not_reading.send_line("/name Sleeper");
    let mut reading: Vec<_> = (0..4).map(|_| Member::join(addr)).collect();
    let mut speaker = reading[0].lines.get_ref().try_clone().expect("a clone");
    reading[0].send_line("/name Speaker");
    let text = "x".repeat(200);
    let expected = format!("Speaker: {text}");
    let listeners: Vec<_> = reading
        .into_iter()
        .map(|mut member| {
            let expected = expected.clone();
            thread::spawn(move || {
                let (mut received, mut closed) = (0, false);
                while received < LINES || !closed {
                    let line = member.next();
                    received += usize::from(line == expected);
                    closed |= line == "* Sleeper leaves";
                }
                member
            })
        })
        .collect();
    let line = text + "\n";
    for _ in 0..LINES {
        speaker.write_all(line.as_bytes()).expect("the server reads from the speaker");
    }
    for listener in listeners {
        listener.join().expect("the listener received all lines");
    }
    drop(not_reading);
    program.signal("-TERM");
    assert_eq!(program.end().0.code(), Some(0));
}

#[test]
fn a_member_that_sends_too_fast_is_slowed_down() {
    check_rate_limit(&format!("{}\n", "x".repeat(1_000)));
}

#[test]
fn a_member_that_keeps_changing_its_name_is_slowed_down() {
    let names = ["\u{20000}", "\u{20001}"].map(|letter| letter.repeat(32));
    check_rate_limit(&format!("/name {}\n/name {}\n", names[0], names[1]).repeat(4));
}

/// Sends `lines` again and again, and checks that the server limits the rate.
#[track_caller]
fn check_rate_limit(lines: &str) {
    const MAX: usize = 8 << 20;
    let (_program, addr) = listening("chat", &[]);
    let mut speaker = connect(addr);
    socket2::SockRef::from(&speaker).set_send_buffer_size(64 << 10).expect("send buffer");
    // The speaker reads its own lines. Otherwise its unread lines would cause the back-pressure.
    let mut received = speaker.try_clone().expect("a clone");
    thread::spawn(move || std::io::copy(&mut received, &mut std::io::sink()));
    let lines = lines.repeat(16);
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(2) && sent < MAX {
        send(&mut speaker, &lines);
        sent += lines.len();
    }
    assert!(sent < MAX, "more bytes than the rate and the buffers of the kernel allow");
}

/// The member reads 1.3 MB per second: less than the speaker can send, but more than the server
/// forwards.
#[test]
fn a_slow_reader_receives_all_lines_of_a_fast_speaker() {
    let (_program, addr) = listening("chat", &["--write-limit", "131072"]);
    let mut slow = connect(addr);
    let speaker = connect(addr);
    let mut speaker_reader = speaker.try_clone().expect("a clone");
    thread::spawn(move || std::io::copy(&mut speaker_reader, &mut std::io::sink()));
    thread::spawn(move || {
        let mut speaker = speaker;
        send(&mut speaker, &format!("{}\n", "x".repeat(200)).repeat(10_000));
        send(&mut speaker, "the end\n");
    });
    let (mut received, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    while !received.ends_with(b": the end\n") {
        let count = slow.read(&mut chunk).expect("bytes");
        assert!(count > 0, "closed after {} bytes", received.len());
        received.extend_from_slice(&chunk[..count]);
        // This sleep limits the rate of reading. It does not wait for an event.
        thread::sleep(Duration::from_millis(50));
    }
    let lines = received.split(|&byte| byte == b'\n').filter(|line| line.ends_with(b"x"));
    assert_eq!(lines.count(), 10_000);
}
