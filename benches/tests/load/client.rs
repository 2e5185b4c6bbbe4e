//! The client itself: whom a stall shows to, what adds up, what it costs.

use std::io::Write;
use std::thread;
use std::time::Duration;

use bench::client::{Length, Load, Outcome, Pace, Target, run};

use crate::servers::{Echo, lines};

/// An echo server that sleeps once for 300 ms, after it has echoed a while.
fn stalling() -> Echo {
    let mut requests = 0;
    Echo::with(None, move |conn, body| {
        requests += 1;
        if requests == 500 {
            thread::sleep(Duration::from_millis(300));
        }
        conn.write_all(body)
    })
}

mod stall {
    use super::*;

    fn millis(outcome: &Outcome, quantile: f64) -> u64 {
        outcome.latency.value_at_quantile(quantile) / 1_000_000
    }

    fn through_a_stall(pace: Pace) -> Outcome {
        let echo = stalling();
        let mut load = Load::new(Target::Tcp(echo.addr));
        (load.connections, load.pace, load.length) = (4, pace, Length::Requests(2_000));
        let outcome = run(&load, &mut |_| ()).unwrap();
        assert!(outcome.is_right() && outcome.requests == 2_000, "{outcome:?}");
        outcome
    }

    #[test]
    fn an_open_loop_shows_a_stall_to_all_who_would_have_waited() {
        // 600 of the 2,000 requests are due while the server sleeps: the slowest 30 % waited for
        // up to 300 ms, evenly.
        let outcome = through_a_stall(Pace::Open(2_000.0));
        assert!(outcome.latency.max() >= 290_000_000, "{outcome:?}");
        assert!(millis(&outcome, 0.99) >= 270, "{}", millis(&outcome, 0.99));
        assert!(millis(&outcome, 0.90) >= 180, "{}", millis(&outcome, 0.90));
        assert!(millis(&outcome, 0.75) >= 30, "{}", millis(&outcome, 0.75));
    }

    #[test]
    fn a_closed_loop_shows_it_to_one_request_a_connection() {
        let outcome = through_a_stall(Pace::Closed);
        assert!(outcome.latency.max() >= 290_000_000, "{outcome:?}");
        assert!(millis(&outcome, 0.99) < 270, "{}", millis(&outcome, 0.99));
    }
}

mod accounts {
    use super::*;

    #[test]
    fn what_an_overloaded_server_left_unsent_is_among_the_latencies() {
        let echo = Echo::with(None, |conn, body| {
            thread::sleep(Duration::from_millis(1));
            conn.write_all(body)
        });
        let mut load = Load::new(Target::Tcp(echo.addr));
        load.connections = 3;
        (load.pace, load.length) =
            (Pace::Open(100_000.0), Length::Time(Duration::from_millis(200)));
        let outcome = run(&load, &mut |_| ()).unwrap();
        assert!(outcome.is_right() && outcome.requests > 0 && outcome.unsent > 0, "{outcome:?}");
        assert_eq!(outcome.requests + outcome.unsent, 20_000);
        assert_eq!(outcome.latency.len(), 20_000);
        // Hardly one was answered: they waited from when they were due to the end, evenly.
        let median = outcome.latency.value_at_quantile(0.5) / 1_000_000;
        assert!((90..=120).contains(&median), "{median}");
    }

    #[test]
    fn progress_is_told_from_nothing_to_all() {
        let echo = Echo::new();
        let mut load = Load::new(Target::Tcp(echo.addr));
        (load.connections, load.length) = (5, Length::Time(Duration::from_millis(600)));
        let mut told = Vec::new();
        let outcome = run(&load, &mut |progress| told.push(progress)).unwrap();
        assert_eq!(outcome.bytes, outcome.requests * 64);
        assert!(outcome.elapsed >= Duration::from_millis(600), "{outcome:?}");
        assert!(told.is_sorted_by_key(|moment| (moment.elapsed, moment.requests)), "{told:?}");
        let middle = told.iter().find(|moment| moment.done > 0.2 && moment.done < 0.9).unwrap();
        let part = middle.elapsed.as_secs_f64() / 0.6;
        assert!((middle.done - part).abs() < 0.01 && middle.connections == 5, "{middle:?}");
    }

    #[test]
    fn what_a_failed_connection_would_have_sent_is_missing() {
        let closing = lines(|number, line| (number < 9).then_some(line));
        let mut load = Load::new(Target::Tcp(closing));
        (load.pace, load.length) = (Pace::Open(1_000.0), Length::Requests(100));
        let outcome = run(&load, &mut |_| ()).unwrap();
        assert_eq!((outcome.requests, outcome.missing, outcome.unsent), (8, 92, 0));
        assert!(!outcome.is_right());
    }
}

mod cost {
    use super::*;

    fn allocations(load: &Load, requests: u64) -> u64 {
        let load = Load { length: Length::Requests(requests), ..load.clone() };
        let counted = allocation_counter::measure(|| {
            assert_eq!(run(&load, &mut |_| ()).unwrap().requests, requests);
        });
        counted.count_total
    }

    #[test]
    fn a_request_allocates_nothing() {
        let echo = Echo::new();
        let closed = Load { connections: 8, depth: 4, ..Load::new(Target::Tcp(echo.addr)) };
        let open = Load { pace: Pace::Open(20_000.0), ..closed.clone() };
        for load in [closed, open] {
            let (few, many) = (allocations(&load, 100), allocations(&load, 5_000));
            assert!(few > 0 && many <= few, "{few} {many} {load:?}");
        }
    }
}
