//! The `offload` example as its peers see it. Answers that other threads compute arrive in order.
//! Work for closed connections is cancelled.

#[path = "../../../tests/support/examples.rs"]
mod examples;
#[path = "../src/factor.rs"]
mod factor;
#[path = "../../../tests/support/usage.rs"]
mod usage;

use std::io::{BufRead, BufReader};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use examples::*;
use factor::factor;

/// A prime that takes a while to factor, and the answer to it.
const LONG: &str = "9999999999999937\n";
const LONG_ANSWER: &str = "9999999999999937: 9999999999999937\n";

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offload"));
    command.env_remove("RUST_LOG").env_remove("RUST_LOG_STYLE");
    command
}

/// Starts the program on a free port. Returns the program and its address.
fn listening(args: &[&str]) -> (Program, SocketAddr) {
    let program = Program::spawn(program().args(LOOPBACK).args(args));
    let addr = program.addr();
    (program, addr)
}

fn answer(number: u64) -> String {
    factor(number, &|| false).expect("the work is not cancelled") + "\n"
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
    assert_eq!(factor(9_999_999_999_999_937, &|| true), None, "the work can be cancelled");
}

#[test]
fn a_quick_answer_is_sent_after_earlier_slow_ones() {
    let (_program, addr) = listening(&["--threads", "4"]);
    let mut client = connect(addr);
    send(&mut client, &format!("1000003\n{LONG}12\nnonsense\n10000000000000000\n{LONG}7"));
    client.shutdown(Shutdown::Write).expect("shutdown");
    let error = "! a line is a whole number below 10000000000000000\n";
    let expected =
        format!("1000003: 1000003\n{LONG_ANSWER}12: 2 2 3\n{error}{error}{LONG_ANSWER}7: 7\n");
    assert_eq!(receive_all(&mut client), expected);
}

#[test]
fn all_lines_before_the_end_of_file_are_answered() {
    let (program, addr) = listening(&[]);
    let clients: Vec<_> = (0..20)
        .map(|client| {
            thread::spawn(move || {
                let numbers = (0..500).map(|number| 100_000 * client + number);
                let lines: Vec<_> = numbers.clone().map(|number| number.to_string()).collect();
                let mut client = connect(addr);
                send(&mut client, &lines.join("\r\n"));
                client.shutdown(Shutdown::Write).expect("shutdown");
                assert_eq!(receive_all(&mut client), numbers.map(answer).collect::<String>());
            })
        })
        .collect();
    for client in clients {
        client.join().expect("all answers");
    }
    program.signal("-TERM");
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    assert_eq!(stdout[1], "10000 lines answered, 0 skipped, 0 answers lost");
}

#[test]
fn long_work_for_one_connection_does_not_delay_others() {
    let (_program, addr) = listening(&["--threads", "2", "--deadline-ms", "500"]);
    let mut waiting = connect(addr);
    send(&mut waiting, LONG);
    let mut other = connect(addr);
    for number in 0..100 {
        send(&mut other, &format!("{number}\n"));
        let expected = answer(number);
        assert_eq!(receive(&mut other, expected.len()), expected);
    }
    // A connection that waits for an answer is not idle.
    assert_eq!(receive(&mut waiting, LONG_ANSWER.len()), LONG_ANSWER);
}

/// Sends `lines` lines of long work after a short one, and receives the first answer.
fn busy(addr: SocketAddr, lines: usize) -> TcpStream {
    let mut client = connect(addr);
    send(&mut client, &("2\n".to_owned() + &LONG.repeat(lines)));
    assert_eq!(receive(&mut client, 5), "2: 2\n");
    client
}

/// Parses the number of lines answered, lines skipped and answers lost.
fn counts(line: &str) -> [u64; 3] {
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().expect(line)
}

#[test]
fn work_for_a_peer_that_has_gone_is_skipped() {
    let (program, addr) = listening(&["--threads", "1"]);
    drop(busy(addr, 63));
    // The first answer that is sent to the peer makes the kernel report that it has gone. The
    // connection is closed then. If it was not, this stop would abort it after ten seconds.
    program.signal("-TERM");
    let (status, stdout, _) = program.end();
    assert_eq!(status.code(), Some(0));
    let [answered, skipped, lost] = counts(&stdout[1]);
    assert_eq!(answered + skipped, 64, "{stdout:#?}");
    // The thread may have computed more answers before the connection was closed.
    assert!(skipped >= 60 && lost <= 1, "{stdout:#?}");
}

#[test]
fn stop_waits_for_answers_until_its_deadline() {
    for (args, completes) in [(&["--threads", "1"][..], true), (&["--drain-ms", "0"], false)] {
        let (program, addr) = listening(args);
        let mut client = busy(addr, 1);
        program.signal("-TERM");
        let mut reply = String::new();
        let _ = BufReader::new(&mut client).read_line(&mut reply);
        assert_eq!(reply, if completes { LONG_ANSWER } else { "" });
        drop(client);
        let (status, stdout, _) = program.end();
        assert_eq!(status.code(), Some(0));
        let expected = if completes { [2, 0, 0] } else { [1, 1, 0] };
        assert_eq!(counts(&stdout[1]), expected, "{stdout:#?}");
    }
}

#[test]
fn a_line_that_is_too_long_is_answered_and_ends_the_connection() {
    let (_program, addr) = listening(&[]);
    let mut client = connect(addr);
    send(&mut client, &format!("12\n{}", "1".repeat(10_000)));
    assert_eq!(receive_all(&mut client), "12: 2 2 3\n! the line is too long\n");
}

#[test]
fn a_full_job_queue_is_answered_at_once() {
    let (program, addr) = listening(&["--drain-ms", "0", "--threads", "1"]);
    let _busy: Vec<_> = (0..156)
        .map(|_| {
            let mut client = connect(addr);
            send(&mut client, &LONG.repeat(64));
            client
        })
        .collect();
    let began = Instant::now();
    let mut reply = String::new();
    while !reply.starts_with("! too busy, try again later\n") {
        assert!(began.elapsed() < TIMEOUT, "{reply}");
        let mut late = connect(addr);
        send(&mut late, &"2\n".repeat(64));
        late.shutdown(Shutdown::Write).expect("shutdown");
        late.set_read_timeout(Some(Duration::from_millis(200))).expect("read timeout");
        reply.clear();
        // While the queue has room, no answer arrives within the timeout.
        let _ = BufReader::new(&mut late).read_line(&mut reply);
    }
    program.signal("-TERM");
    assert_eq!(program.end().0.code(), Some(0));
}

#[test]
fn help_names_every_option() {
    usage::check_help(program, "--listen --threads --max --deadline-ms --drain-ms --debug --help");
}

#[test]
fn bad_usage_is_one_line_and_exit_code_2() {
    usage::check_bad_usage("offload", program);
    usage::assert_fails("offload", program().args(["--threads", "0"]), 2);
}

#[test]
fn an_unusable_listen_address_is_named_in_the_error() {
    usage::check_listen_address("offload", program);
}
