//! Sessions, as `versus` uses them: connections stay open between runs, and every fault is an
//! error.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bench::client::{Length, Load, Outcome, Session, Target};

use super::servers::{Echo, lines};

fn ok(outcome: std::io::Result<Outcome>) -> Outcome {
    outcome.and_then(Outcome::into_result).unwrap()
}

#[test]
fn runs_share_connections_and_nothing_else() {
    let opened = Arc::new(AtomicUsize::new(0));
    let seen = opened.clone();
    let addr = lines(move |number, line| {
        seen.fetch_add(usize::from(number == 0), Ordering::Relaxed);
        Some(line)
    });
    let load = Load { connections: 7, depth: 3, ..Load::new(Target::Tcp(addr)) };
    let on_progress = &mut |_| ();
    let mut session = Session::connect(&load, on_progress).unwrap();
    for requests in [210, 42] {
        let outcome = ok(session.run(Length::Requests(requests)));
        assert_eq!((outcome.requests, outcome.latency.len()), (requests, requests));
    }
    let timed = ok(session.run(Length::Time(Duration::from_millis(20))));
    assert!(timed.requests > 0 && timed.elapsed >= Duration::from_millis(15), "{timed:?}");
    assert_eq!(opened.load(Ordering::Relaxed), 7);
}

#[test]
fn a_session_with_churn_connects_in_each_run() {
    let echo = Echo::new();
    let load = Load { connections: 4, churn: true, ..Load::new(Target::Tcp(echo.addr)) };
    let on_progress = &mut |_| ();
    let mut session = Session::connect(&load, on_progress).unwrap();
    for _ in 0..2 {
        assert_eq!(ok(session.run(Length::Requests(100))).requests, 100);
    }
}

#[test]
fn a_wrong_byte_is_an_error_while_connecting_and_later() {
    for wrong in [0, 5] {
        let addr = lines(move |number, mut line| {
            line[3] ^= u8::from(number == wrong);
            Some(line)
        });
        let load = Load { connections: 2, ..Load::new(Target::Tcp(addr)) };
        let on_progress = &mut |_| ();
        let outcome = Session::connect(&load, on_progress)
            .and_then(|mut session| session.run(Length::Requests(100)))
            .and_then(Outcome::into_result);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::InvalidData, "{wrong}");
    }
}

#[test]
fn a_lost_connection_is_an_error_while_connecting_and_later() {
    for last in [0, 5] {
        let addr = lines(move |number, line| (number < last).then_some(line));
        let load = Load { connections: 2, ..Load::new(Target::Tcp(addr)) };
        let on_progress = &mut |_| ();
        let outcome = Session::connect(&load, on_progress)
            .and_then(|mut session| session.run(Length::Requests(100)))
            .and_then(Outcome::into_result);
        assert!(outcome.is_err(), "{last}");
    }
}
