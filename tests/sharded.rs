//! Tests of the `sharded` example, which runs one manager per core. The managers share a port, stop
//! together, and their counters are summed.

#[path = "support/examples.rs"]
mod examples;

use std::thread;

use examples::*;

fn sharded(args: &[&str]) -> (Program, std::net::SocketAddr) {
    let program = Program::run("sharded", &[&LOOPBACK, args].concat());
    let addr = addr(&program.stdout.next());
    (program, addr)
}

/// Returns the number before `word`.
fn count(line: &str, word: &str) -> u64 {
    let (before, _) = line.split_once(word).expect(line);
    let number = before.rsplit(|letter: char| !letter.is_ascii_digit()).next();
    number.and_then(|number| number.parse().ok()).expect(line)
}

#[test]
fn one_stop_ends_all_shards_and_serves_connections_in_the_backlog() {
    let (program, addr) = sharded(&["--shards", "2", "--max", "2"]);
    let mut clients: Vec<_> = (0..200).map(|_| connect(addr)).collect();
    for client in &mut clients {
        send(client, "hello");
    }
    program.signal("-TERM");
    for mut client in clients {
        assert_eq!(receive_all(&mut client), "hello");
    }
    let (status, stdout, _) = program.end();
    assert!(status.success(), "{stdout:#?}");
    let accepted: Vec<u64> = stdout[..2].iter().map(|line| count(line, " accepted")).collect();
    assert!(accepted.iter().all(|&count| count > 0), "both shards accept: {stdout:#?}");
    assert_eq!(accepted.iter().sum::<u64>(), 200);
    let sum = &stdout[2];
    assert_eq!(count(sum, " idle") + count(sum, " finished"), 200, "{sum}");
    assert!(sum.contains(" 0 aborted") && sum.contains(" 4 peak; 200 accepted"), "{sum}");
}

#[test]
fn the_counters_of_all_shards_are_summed() {
    let (program, addr) = sharded(&["--shards", "3", "--stats-every", "1"]);
    let mut clients: Vec<_> = (0..60).map(|_| connect(addr)).collect();
    for client in &mut clients {
        send(client, "hello");
        assert_eq!(receive(client, 5), "hello");
    }
    let line = program.stdout.find("60 accepted");
    assert_eq!((count(&line, " live"), count(&line, " requests")), (60, 60), "{line}");
}

/// Each shard has its own core if the machine has enough cores.
#[test]
#[cfg(target_os = "linux")]
fn each_shard_is_pinned_to_a_core() {
    let (program, _) = sharded(&["--shards", "2"]);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", program.child.id())).expect("threads");
    let status = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.expect("a thread").path().join("status")).expect("its status")
    };
    let mut cores: Vec<String> = tasks
        .map(status)
        .filter(|status| status.starts_with("Name:\tshard-"))
        .map(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"));
            line.expect("its cores").to_owned()
        })
        .collect();
    assert_eq!(cores.len(), 2);
    assert!(cores.iter().all(|core| core.parse::<u32>().is_ok()), "one core each: {cores:?}");
    cores.dedup();
    let enough = thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    assert!(!enough || cores.len() == 2, "different cores: {cores:?}");
}

#[test]
fn a_port_in_use_and_invalid_options_are_reported_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = taken.local_addr().map(|addr| addr.to_string()).map(|addr| (addr, taken));
    let (addr, _taken) = taken.expect("address");
    for (args, code, message) in [
        (&["--listen", &addr][..], 1, "it is in use"),
        (&["--shards", "0"], 2, "1 to 1024"),
        (&["--shards", "2", "--listen", "nonsense"], 2, "HOST:PORT"),
    ] {
        let (status, _, stderr) = Program::run("sharded", args).end();
        assert_eq!(status.code(), Some(code), "{stderr:?}");
        assert_eq!(stderr.len(), 1, "{stderr:?}");
        assert!(stderr[0].starts_with("sharded: ") && stderr[0].contains(message), "{stderr:?}");
    }
}
