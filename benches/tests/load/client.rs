//! The client itself: latencies during a stall, the sums of its counters, and its allocations.

use std::io::Write;
use std::thread;
use std::time::Duration;

use bench::client::{Length, Load, Outcome, Pace, Target, run};

use crate::servers::{Echo, lines};

/// Starts an echo server that sleeps once for 300 ms, at its 500th request.
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
        assert!(outcome.is_correct() && outcome.requests == 2_000, "{outcome:?}");
        outcome
    }

    #[test]
    fn an_open_loop_shows_a_stall_in_all_requests_due_during_it() {
        // 600 of the 2,000 requests are due while the server sleeps. The latencies of the slowest
        // 30 % are therefore spread evenly up to 300 ms.
        let outcome = through_a_stall(Pace::Open(2_000.0));
        assert!(outcome.latency.max() >= 290_000_000, "{outcome:?}");
        assert!(millis(&outcome, 0.99) >= 270, "{}", millis(&outcome, 0.99));
        assert!(millis(&outcome, 0.90) >= 180, "{}", millis(&outcome, 0.90));
        assert!(millis(&outcome, 0.75) >= 30, "{}", millis(&outcome, 0.75));
    }

    #[test]
    fn a_closed_loop_shows_a_stall_in_one_request_per_connection() {
        let outcome = through_a_stall(Pace::Closed);
        assert!(outcome.latency.max() >= 290_000_000, "{outcome:?}");
        assert!(millis(&outcome, 0.99) < 270, "{}", millis(&outcome, 0.99));
    }
}

mod counters {
    use super::*;

    #[test]
    fn unsent_requests_are_included_in_the_latencies() {
        let echo = Echo::with(None, |conn, body| {
            thread::sleep(Duration::from_millis(1));
            conn.write_all(body)
        });
        let mut load = Load::new(Target::Tcp(echo.addr));
        load.connections = 3;
        (load.pace, load.length) =
            (Pace::Open(100_000.0), Length::Time(Duration::from_millis(200)));
        let outcome = run(&load, &mut |_| ()).unwrap();
        assert!(outcome.is_correct() && outcome.requests > 0 && outcome.unsent > 0, "{outcome:?}");
        assert_eq!(outcome.requests + outcome.unsent, 20_000);
        assert_eq!(outcome.latency.len(), 20_000);
        // Few requests were answered. The others waited until the end. Their due times are spread
        // evenly.
        let median = outcome.latency.value_at_quantile(0.5) / 1_000_000;
        assert!((90..=120).contains(&median), "{median}");
    }

    #[test]
    fn progress_is_reported_from_the_start_to_the_end() {
        let echo = Echo::new();
        let mut load = Load::new(Target::Tcp(echo.addr));
        (load.connections, load.length) = (5, Length::Time(Duration::from_millis(600)));
        let mut updates = Vec::new();
        let outcome = run(&load, &mut |progress| updates.push(progress)).unwrap();
        assert_eq!(outcome.bytes, outcome.requests * 64);
        assert!(outcome.elapsed >= Duration::from_millis(600), "{outcome:?}");
        assert!(
            updates.is_sorted_by_key(|update| (update.elapsed, update.requests)),
            "{updates:?}"
        );
        let middle = updates.iter().find(|update| update.done > 0.2 && update.done < 0.9).unwrap();
        let part = middle.elapsed.as_secs_f64() / 0.6;
        assert!((middle.done - part).abs() < 0.01 && middle.connections == 5, "{middle:?}");
    }

    #[test]
    fn unsent_requests_of_a_failed_connection_are_missing() {
        let closing = lines(|number, line| (number < 9).then_some(line));
        let mut load = Load::new(Target::Tcp(closing));
        (load.pace, load.length) = (Pace::Open(1_000.0), Length::Requests(100));
        let outcome = run(&load, &mut |_| ()).unwrap();
        assert_eq!((outcome.requests, outcome.missing, outcome.unsent), (8, 92, 0));
        assert!(!outcome.is_correct());
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
