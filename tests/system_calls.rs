//! The cost of a request in system calls: one read, one write, a share of one wait, and no change
//! of a registration.
//!
//! mio's poll(2) backend reports a descriptor again only after a `WouldBlock`. With it, each
//! request is read until `WouldBlock`, and the descriptor is registered again.

mod support;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pool_manager::{Config, Conn, Framing, Handler, Manager, Stats};
use support::{TIMEOUT, pair};

/// The number of reads per request on TCP if the request does not fill the buffer.
const READS: u64 = if cfg!(mio_unsupported_force_poll_poll) { 2 } else { 1 };

fn echo(config: Config) -> Manager<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    let mut manager = Manager::new(config, |conn, body| conn.write_all(body)).expect("a manager");
    manager.start().expect("start");
    manager
}

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(Duration::from_secs(60))
}

fn until<H: Handler>(manager: &mut Manager<H>, mut done: impl FnMut(Stats) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !done(manager.stats()) {
        assert!(Instant::now() < deadline, "timed out: {}", manager.stats());
        manager.turn(Some(TIMEOUT)).expect("turn");
    }
}

/// Puts TCP connections and waits for the first event of each, which reports it as writable.
fn connections<H: Handler>(manager: &mut Manager<H>, count: usize) -> Vec<TcpStream> {
    let put = |_| {
        let (client, ours) = pair();
        manager.put(ours).expect("put");
        client
    };
    let clients = (0..count).map(put).collect();
    until(manager, |stats| stats.events >= count as u64);
    clients
}

/// In each of `rounds` rounds, all clients send `request`, the manager serves them, and all clients
/// read their reply. Returns the system calls of the manager.
fn cost<H: Handler, S: Read + Write>(
    manager: &mut Manager<H>,
    clients: &mut [S],
    request: &[u8],
    reply: usize,
    rounds: u64,
) -> Cost {
    let before = manager.stats();
    let mut into = vec![0; reply];
    for _ in 0..rounds {
        let sent = manager.stats().bytes_out + (reply * clients.len()) as u64;
        for client in &mut *clients {
            client.write_all(request).expect("send");
        }
        until(manager, |stats| stats.bytes_out == sent);
        for client in &mut *clients {
            client.read_exact(&mut into).expect("a reply");
        }
    }
    let after = manager.stats();
    assert_eq!(after.turns - before.turns, after.waits - before.waits, "one wait per turn");
    Cost {
        reads: after.reads - before.reads,
        writes: after.writes - before.writes,
        waits: after.waits - before.waits,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Cost {
    reads: u64,
    writes: u64,
    waits: u64,
}

#[test]
fn a_request_costs_one_read_one_write_and_one_wait() {
    let mut manager = echo(drained());
    let mut clients = connections(&mut manager, 1);
    let cost = cost(&mut manager, &mut clients, &[b'a'; 100], 100, 1_000);
    assert_eq!((cost.reads, cost.writes), (1_000 * READS, 1_000), "no read after a short one");
    assert!((1_000..=1_100).contains(&cost.waits), "{cost:?}");
}

#[test]
fn sixty_four_connections_share_one_wait() {
    const CONNECTIONS: u64 = 64;
    const ROUNDS: u64 = 100;
    let mut manager = echo(drained());
    let mut clients = connections(&mut manager, CONNECTIONS as usize);
    let cost = cost(&mut manager, &mut clients, &[b'a'; 100], 100, ROUNDS);
    assert_eq!((cost.reads, cost.writes), (CONNECTIONS * ROUNDS * READS, CONNECTIONS * ROUNDS));
    assert!((ROUNDS..=2 * ROUNDS).contains(&cost.waits), "{cost:?}");
}

#[test]
fn a_burst_of_lines_costs_one_read_and_one_write() {
    let mut manager = echo(drained().framing(Framing::Delimited(b'\n')));
    let mut clients = connections(&mut manager, 1);
    let burst = b"a line\n".repeat(16);
    let cost = cost(&mut manager, &mut clients, &burst, 6 * 16, 100);
    assert_eq!((cost.reads, cost.writes), (100 * READS, 100));
    assert_eq!(manager.stats().requests_total(), 1_600);
}

/// A visit makes at most 256 callbacks. The remaining requests have already been read.
#[test]
fn a_burst_beyond_the_budget_of_a_visit_costs_no_more_reads() {
    let mut manager = echo(drained().framing(Framing::Delimited(b'\n')));
    let mut clients = connections(&mut manager, 1);
    let cost = cost(&mut manager, &mut clients, &b"a\n".repeat(300), 300, 10);
    assert_eq!((cost.reads, cost.writes), (10 * READS, 20));
}

/// A body of the size of the buffer fills the read. Only another read shows that no bytes are
/// left.
#[test]
fn a_read_that_fills_the_buffer_costs_one_more_read() {
    let mut manager = echo(drained().buffer_size(100));
    let mut clients = connections(&mut manager, 1);
    let cost = cost(&mut manager, &mut clients, &[b'a'; 100], 100, 100);
    assert_eq!((cost.reads, cost.writes), (200, 100));
}

/// On a Unix socket, passed descriptors also cut a read short. A short read therefore does not show
/// that no bytes are left.
#[test]
fn a_unix_socket_costs_one_more_read() {
    let mut manager = echo(drained());
    let (client, ours) = UnixStream::pair().expect("a pair");
    manager.put(ours).expect("put");
    until(&mut manager, |stats| stats.events > 0);
    let cost = cost(&mut manager, &mut [client], &[b'a'; 100], 100, 100);
    assert_eq!((cost.reads, cost.writes), (200, 100));
}

#[test]
fn a_connection_that_sends_nothing_is_not_read() {
    let mut manager = echo(drained());
    let _clients = connections(&mut manager, 64);
    let stats = manager.stats();
    assert_eq!((stats.reads, stats.writes), (0, 0));
}

#[test]
fn an_idle_manager_makes_no_turns() {
    const STEP: Duration = Duration::from_millis(100);
    let mut manager = echo(drained().clients_deadline(Duration::from_secs(10)));
    let _clients = connections(&mut manager, 100);
    let before = manager.stats();
    let began = Instant::now();
    while began.elapsed() < 3 * STEP {
        manager.turn(Some(STEP)).expect("turn");
    }
    let after = manager.stats();
    assert!((1..=4).contains(&(after.waits - before.waits)), "{before}; {after}");
    assert_eq!((after.reads, after.events), (before.reads, before.events));
    let next = manager.next_timeout().expect("a deadline");
    assert!(next > Duration::from_secs(1), "an idle manager waits for long, not {next:?}");
}

#[cfg(not(mio_unsupported_force_poll_poll))]
mod traced {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// Environment variable of the traced process: the number of requests.
    const TRACED: &str = "POOL_MANAGER_TRACED_REQUESTS";

    /// Compares the counts of strace for two processes that differ only in the number of requests.
    #[test]
    fn strace_confirms_the_counters_and_sees_no_registration() {
        if let Ok(requests) = std::env::var(TRACED) {
            let mut manager = echo(drained());
            let mut clients = connections(&mut manager, 1);
            cost(
                &mut manager,
                &mut clients,
                &[b'a'; 100],
                100,
                requests.parse().expect("a number"),
            );
            return;
        }
        let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
        if !probe.is_ok_and(|probe| probe.status.success()) {
            eprintln!("skipped: strace is missing or may not trace here");
            return;
        }
        let (few, many) = (trace(10), trace(1_010));
        let difference = |call| many.calls(call) - few.calls(call);
        assert_eq!(difference("epoll_ctl"), 0);
        assert!(few.calls("epoll_ctl") > 0, "strace counts the call:\n{}", few.0);
        // The client also reads and writes once per request.
        assert_eq!(difference("recvfrom") + difference("read"), 2_000);
        assert_eq!(difference("sendto") + difference("write"), 2_000);
        let waits = difference("epoll_wait") + difference("epoll_pwait");
        assert!((990..=1_100).contains(&waits), "{waits} waits");
    }

    /// The table that `strace -c` prints.
    struct Table(String);

    impl Table {
        fn calls(&self, name: &str) -> i64 {
            let row = |line: &&str| line.split_whitespace().last() == Some(name);
            let calls = |line: &str| line.split_whitespace().nth(3)?.parse().ok();
            self.0.lines().find(row).and_then(calls).unwrap_or(0)
        }
    }

    /// Runs this test in a traced process with this number of requests.
    fn trace(requests: u32) -> Table {
        let file =
            File(std::env::temp_dir().join(format!("trace-{}-{requests}", std::process::id())));
        let traced = Command::new("strace")
            .args(["-f", "-c", "-e"])
            .arg("trace=epoll_ctl,read,write,recvfrom,sendto,epoll_wait,epoll_pwait")
            .arg("-o")
            .arg(&file.0)
            .arg(std::env::current_exe().expect("this program"))
            .args(["--exact", "traced::strace_confirms_the_counters_and_sees_no_registration"])
            .env(TRACED, requests.to_string())
            .output()
            .expect("strace runs");
        assert!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stdout));
        Table(fs::read_to_string(&file.0).expect("a table"))
    }

    /// A file that is removed on drop.
    struct File(PathBuf);

    impl Drop for File {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }
}
