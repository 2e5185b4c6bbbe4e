//! The `offload` example as its peers see it: answers of other threads, in order, and what becomes
//! of work that nobody waits for any more.

#[path = "support/examples.rs"]
mod examples;
#[path = "../examples/offload/factor.rs"]
mod factor;

use std::io::{BufRead, BufReader};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use examples::*;
use factor::factor;

/// A prime that takes a while, and the answer to it.
const LONG: &str = "9999999999999937\n";
const LONG_ANSWER: &str = "9999999999999937: 9999999999999937\n";

fn answer(number: u64) -> String {
    factor(number, &|| false).expect("it is not given up") + "\n"
}

#[test]
fn factors_are_primes_that_multiply_to_the_number() {
    let is_prime = |number: u64| (2..number).all(|divisor| number % divisor != 0);
    for number in 2..2_000 {
        let text = answer(number);
        let (same, factors) = text.trim().split_once(": ").expect("factors");
        assert_eq!(same, number.to_string());
        let factors: Vec<u64> = factors.split(' ').map(|text| text.parse().unwrap()).collect();
        assert_eq!(factors.iter().product::<u64>(), number);
        assert!(factors.iter().all(|&factor| is_prime(factor)) && factors.is_sorted(), "{text}");
    }
    assert_eq!((answer(0), answer(1)), ("0:\n".into(), "1:\n".into()));
    assert_eq!(factor(9_999_999_999_999_937, &|| true), None, "it can be given up");
}

#[test]
fn quick_answers_wait_for_slow_ones_before_them() {
    let (_program, addr) = listening("offload", &["--threads", "4"]);
    let mut client = connect(addr);
    say(&mut client, &format!("1000003\n{LONG}12\nnonsense\n10000000000000000\n{LONG}7"));
    client.shutdown(Shutdown::Write).expect("shutdown");
    let odd = "! a line is a whole number below 10000000000000000\n";
    let expected =
        format!("1000003: 1000003\n{LONG_ANSWER}12: 2 2 3\n{odd}{odd}{LONG_ANSWER}7: 7\n");
    assert_eq!(hear_all(&mut client), expected);
}

#[test]
fn all_that_came_before_the_end_of_file_is_answered() {
    let (program, addr) = listening("offload", &[]);
    let clients: Vec<_> = (0..20)
        .map(|client| {
            thread::spawn(move || {
                let numbers = (0..500).map(|number| 100_000 * client + number);
                let said: Vec<_> = numbers.clone().map(|number| number.to_string()).collect();
                let mut client = connect(addr);
                say(&mut client, &said.join("\r\n"));
                client.shutdown(Shutdown::Write).expect("shutdown");
                assert_eq!(hear_all(&mut client), numbers.map(answer).collect::<String>());
            })
        })
        .collect();
    for client in clients {
        client.join().expect("all answers");
    }
    program.signal("-TERM");
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    assert_eq!(stdout[1], "10000 lines answered, 0 spared, 0 answers lost");
}

#[test]
fn long_work_for_one_holds_up_nobody_else() {
    let (_program, addr) = listening("offload", &["--threads", "2", "--deadline-ms", "500"]);
    let mut patient = connect(addr);
    say(&mut patient, LONG);
    let mut other = connect(addr);
    for number in 0..100 {
        say(&mut other, &format!("{number}\n"));
        let expected = answer(number);
        assert_eq!(hear(&mut other, expected.len()), expected);
    }
    // It is not taken for idle while it waits.
    assert_eq!(hear(&mut patient, LONG_ANSWER.len()), LONG_ANSWER);
}

/// Says so much that it takes long, and hears the first answer.
fn busy(addr: std::net::SocketAddr, lines: usize) -> TcpStream {
    let mut client = connect(addr);
    say(&mut client, &("2\n".to_owned() + &LONG.repeat(lines)));
    assert_eq!(hear(&mut client, 5), "2: 2\n");
    client
}

/// How many lines were answered, how many were spared, and how many answers were lost.
fn tally(line: &str) -> [u64; 3] {
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().expect(line)
}

#[test]
fn threads_are_told_that_an_answer_is_lost_and_spared_the_rest() {
    let (program, addr) = listening("offload", &["--threads", "1"]);
    drop(busy(addr, 63));
    // Two answers are made for nobody before the kernel says so, of sixty-three.
    program.stderr.find("an answer is lost, of 35 bytes: nobody was there any more");
    program.signal("-TERM");
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    let [answered, spared, lost] = tally(&stdout[1]);
    assert_eq!(answered + spared, 64, "{stdout:#?}");
    assert!(spared >= 60 && lost == 1, "{stdout:#?}");
}

#[test]
fn a_stop_waits_for_answers_but_not_for_ever() {
    for (args, gets) in [(&["--threads", "1"][..], true), (&["--drain-ms", "0"], false)] {
        let (program, addr) = listening("offload", args);
        let mut client = busy(addr, 1);
        program.signal("-TERM");
        let mut heard = String::new();
        let _ = BufReader::new(&mut client).read_line(&mut heard);
        assert_eq!(heard, if gets { LONG_ANSWER } else { "" });
        drop(client);
        let (status, stdout, _) = program.end();
        assert_eq!(status.code(), Some(0));
        let expected = if gets { [2, 0, 0] } else { [1, 1, 0] };
        assert_eq!(tally(&stdout[1]), expected, "{stdout:#?}");
    }
}

#[test]
fn what_there_is_no_room_for_is_answered_at_once() {
    let (program, addr) = listening("offload", &["--drain-ms", "0", "--threads", "1"]);
    let _busy: Vec<_> = (0..156)
        .map(|_| {
            let mut client = connect(addr);
            say(&mut client, &LONG.repeat(64));
            client
        })
        .collect();
    let began = Instant::now();
    let mut heard = String::new();
    while !heard.starts_with("! too busy, try again later\n") {
        assert!(began.elapsed() < PATIENCE, "{heard}");
        let mut late = connect(addr);
        say(&mut late, &"2\n".repeat(64));
        late.shutdown(Shutdown::Write).expect("shutdown");
        late.set_read_timeout(Some(Duration::from_millis(200))).expect("read timeout");
        heard.clear();
        // If there is room still, the answer does not come soon.
        let _ = BufReader::new(&mut late).read_line(&mut heard);
    }
    program.signal("-TERM");
    assert_eq!(program.end().0.code(), Some(0));
}
