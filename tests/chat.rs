//! The `chat` example as its members see it, a thousand of them too.

#[path = "support/examples.rs"]
mod examples;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use examples::*;

/// A member, with the lines it hears.
struct Member {
    lines: BufReader<TcpStream>,
    name: String,
}

impl Member {
    /// Joins, and hears that it did.
    fn join(addr: SocketAddr) -> Self {
        let mut lines = BufReader::new(connect(addr));
        let mut line = String::new();
        // What was said just before comes in the same breath.
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
        assert!(line.ends_with('\n'), "a whole one: {line:?}");
        line.trim_end().to_owned()
    }

    fn say(&mut self, line: &str) {
        say(self.lines.get_mut(), &format!("{line}\n"));
    }

    #[track_caller]
    fn hears(&mut self, line: &str) {
        assert_eq!(self.next(), line);
    }
}

#[test]
fn all_hear_what_one_says_and_who_comes_and_goes() {
    let (_program, addr) = listening("chat", &[]);
    let mut one = Member::join(addr);
    let mut other = Member::join(addr);
    let (first, second) = (one.name.clone(), other.name.clone());
    assert_ne!(first, second);
    one.hears(&format!("* {second} joins"));
    one.say("/name Ada");
    for member in [&mut one, &mut other] {
        member.hears(&format!("* {first} is now Ada"));
    }
    other.say("hello, \x1b[31mAda\x07\r");
    for member in [&mut one, &mut other] {
        member.hears(&format!("{second}: hello, [31mAda"));
    }
    one.say("/who");
    one.hears("* 2 here");
    one.say("/quit");
    other.hears("* Ada leaves");
    assert_eq!(hear_all(&mut one.lines), "");
    other.say("");
    other.say("anybody?");
    other.hears(&format!("{second}: anybody?"));
}

#[test]
fn names_are_words_of_their_own() {
    let (_program, addr) = listening("chat", &[]);
    let mut one = Member::join(addr);
    let guest = one.name.clone();
    let long = "x".repeat(33);
    for odd in ["", "two words", "a:b", "*", "bell\x07\x1b", "guest-7.7", &long] {
        one.say(&format!("/name {odd}"));
        match odd {
            // What is not printed has gone before.
            "bell\x07\x1b" => one.hears(&format!("* {guest} is now bell")),
            _ => one.hears("! a name is one word of at most 32 letters"),
        }
    }
    one.say("/name bell");
    one.hears("! bell is taken");
    one.say("/nonsense");
    one.hears("! the commands are /name NAME, /who and /quit");
    let mut other = Member::join(addr);
    other.say("/name Größe");
    let name = other.name.clone();
    other.hears(&format!("* {name} is now Größe"));
    drop(other);
    for line in [format!("* {name} joins"), format!("* {name} is now Größe")] {
        one.hears(&line);
    }
    one.hears("* Größe leaves");
    one.say("/name Größe");
    one.hears("* bell is now Größe");
}

#[test]
fn who_says_too_much_at_once_or_nothing_is_told_so() {
    let (_program, addr) = listening("chat", &["--deadline-ms", "150"]);
    let mut long = Member::join(addr);
    say(long.lines.get_mut(), &"x".repeat(5_000));
    assert_eq!(hear_all(&mut long.lines), "! a line may be 1024 bytes long\n");
    let mut silent = Member::join(addr);
    assert_eq!(hear_all(&mut silent.lines), "! nothing was heard for too long\n");
}

/// Sends of so many lines to so many are far more than the commands holds at a time.
#[test]
fn a_thousand_members_hear_all_that_each_says_in_the_same_order() {
    const MEMBERS: usize = 1_000;
    let (program, addr) = listening("chat", &[]);
    let mut members: Vec<_> = (0..MEMBERS).map(|_| connect(addr)).map(BufReader::new).collect();
    let mut line = String::new();
    for member in &mut members {
        say(member.get_mut(), "/who\n");
    }
    // Once all are here, the last of them says so to everybody.
    let all = loop {
        line.clear();
        say(members[0].get_mut(), "/who\n");
        while !line.ends_with(" here\n") {
            line.clear();
            members[0].read_line(&mut line).expect("a line");
        }
        if line == format!("* {MEMBERS} here\n") {
            break "all here";
        }
    };
    say(members[0].get_mut(), &format!("{all}\n"));
    for member in &mut members {
        while !line.ends_with(": all here\n") {
            line.clear();
            member.read_line(&mut line).expect("a line");
        }
        line.clear();
    }
    for (number, member) in members.iter_mut().enumerate() {
        say(member.get_mut(), &format!("I am {number}\nand say twice that I am {number}\n"));
    }
    let mut first: Vec<String> = Vec::new();
    for member in &mut members {
        let heard: Vec<String> =
            member.lines().take(2 * MEMBERS).map(|line| line.expect("a line")).collect();
        if first.is_empty() {
            first = heard;
        } else {
            assert!(heard == first, "all hear the same");
        }
    }
    first.sort_unstable();
    first.dedup();
    assert_eq!(first.len(), 2 * MEMBERS, "nothing is lost or said twice");
    program.signal("-TERM");
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    assert!(stdout[0].contains(" 0 busy"), "{stdout:#?}");
}

#[test]
fn one_that_does_not_read_is_closed_and_the_others_hear_everything() {
    const LINES: usize = 8_000;
    let (program, addr) = listening("chat", &["--write-limit", "131072"]);
    let mut asleep = Member::join(addr);
    asleep.say("/name Sleeper");
    let mut awake: Vec<_> = (0..4).map(|_| Member::join(addr)).collect();
    let mut speaker = awake[0].lines.get_ref().try_clone().expect("a clone");
    awake[0].say("/name Speaker");
    let text = "x".repeat(200);
    let spoken = format!("Speaker: {text}");
    let listeners: Vec<_> = awake
        .into_iter()
        .map(|mut member| {
            let spoken = spoken.clone();
            thread::spawn(move || {
                let (mut heard, mut gone) = (0, false);
                while heard < LINES || !gone {
                    let line = member.next();
                    heard += usize::from(line == spoken);
                    gone |= line == "* Sleeper leaves";
                }
                member
            })
        })
        .collect();
    let line = text + "\n";
    for _ in 0..LINES {
        speaker.write_all(line.as_bytes()).expect("the speaker is read from");
    }
    for listener in listeners {
        listener.join().expect("a listener heard everything");
    }
    drop(asleep);
    program.signal("-TERM");
    assert_eq!(program.end().0.code(), Some(0));
}

#[test]
fn one_that_says_more_than_can_be_passed_on_has_to_wait() {
    has_to_wait(&format!("{}\n", "x".repeat(1_000)));
}

#[test]
fn one_that_changes_its_name_all_the_time_has_to_wait() {
    let names = ["\u{20000}", "\u{20001}"].map(|letter| letter.repeat(32));
    has_to_wait(&format!("/name {}\n/name {}\n", names[0], names[1]).repeat(4));
}

/// Who says this again and again is not read as fast as it can say it.
#[track_caller]
fn has_to_wait(lines: &str) {
    const MOST: usize = 8 << 20;
    let (_program, addr) = listening("chat", &[]);
    let mut speaker = connect(addr);
    socket2::SockRef::from(&speaker).set_send_buffer_size(64 << 10).expect("send buffer");
    // It does read: or that would be why it is not read.
    let mut heard = speaker.try_clone().expect("a clone");
    thread::spawn(move || std::io::copy(&mut heard, &mut std::io::sink()));
    let lines = lines.repeat(16);
    let (began, mut taken) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(2) && taken < MOST {
        say(&mut speaker, &lines);
        taken += lines.len();
    }
    assert!(taken < MOST, "the pace and the kernel's buffers account for less");
}

/// It reads 1.3 MB a second: less than one can say, but more than the room's pace.
#[test]
fn one_that_reads_at_a_modest_pace_hears_everything_that_a_quick_one_says() {
    let (_program, addr) = listening("chat", &["--write-limit", "131072"]);
    let mut modest = connect(addr);
    let speaker = connect(addr);
    let mut heard_by_speaker = speaker.try_clone().expect("a clone");
    thread::spawn(move || std::io::copy(&mut heard_by_speaker, &mut std::io::sink()));
    thread::spawn(move || {
        let mut speaker = speaker;
        say(&mut speaker, &format!("{}\n", "x".repeat(200)).repeat(10_000));
        say(&mut speaker, "the end\n");
    });
    let (mut heard, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    while !heard.ends_with(b": the end\n") {
        let count = modest.read(&mut chunk).expect("bytes");
        assert!(count > 0, "it was closed after {} bytes", heard.len());
        heard.extend_from_slice(&chunk[..count]);
        // This is what makes it slow; nothing is waited for.
        thread::sleep(Duration::from_millis(50));
    }
    let lines = heard.split(|&byte| byte == b'\n').filter(|line| line.ends_with(b"x"));
    assert_eq!(lines.count(), 10_000);
}
