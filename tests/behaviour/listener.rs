//! Listeners: batches of accepts, refusals, pauses, lack of descriptors, stop and handover.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use pool_manager::{
    CloseReason, Config, Conn, ConnId, ERROR_SERVER_BUSY, Error, Framing, ListenSocket, Manager,
    Overload, Socket,
};

use crate::support::{
    Rig, Seen, TIMEOUT, alone, connect, deep_listener, echo, logged, remember_log, reset, rig,
};

const LONG: Duration = Duration::from_secs(600);

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(LONG)
}

/// Asserts that the client is served: its bytes are echoed.
#[track_caller]
fn assert_served<F>(rig: &mut Rig<F>, client: &mut TcpStream)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()>,
{
    client.write_all(b"ping").unwrap();
    assert_eq!(rig.read_exact(client, 4), b"ping");
}

fn last_opened<F>(rig: &Rig<F>) -> ConnId
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> std::io::Result<()>,
{
    let opened = |seen| if let Seen::Opened(id) = seen { Some(id) } else { None };
    rig.record.all().into_iter().filter_map(opened).next_back().expect("an opened connection")
}

#[test]
fn listening_on_port_zero_returns_the_port() {
    let mut rig = echo(drained());
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    assert_ne!(addr.port(), 0);
    let another = rig.manager.listen("localhost:0").unwrap();
    assert_ne!(addr, another);
    for addr in [addr, another] {
        assert_served(&mut rig, &mut connect(addr));
    }
    assert_eq!((rig.manager.stats().accepted, rig.manager.stats().put), (2, 2));
}

#[test]
fn a_listener_bound_elsewhere_is_taken_over() {
    let mut rig = echo(drained());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut early = connect(addr);
    rig.manager.listen_on(listener).unwrap();
    assert_served(&mut rig, &mut early);
    assert_served(&mut rig, &mut connect(addr));
}

#[test]
fn a_unix_listener_bound_elsewhere_is_taken_over_without_its_path() {
    let path = std::env::temp_dir().join(format!("pool-manager-on-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let mut rig = echo(drained());
    rig.manager.listen_on(listener).unwrap();
    let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    client.write_all(b"ping").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_out == 4);
    client.read_exact(&mut [0; 4]).unwrap();
    rig.manager.stop().unwrap();
    std::fs::remove_file(&path).expect("the manager did not remove it");
}

#[test]
fn a_queue_longer_than_a_batch_is_accepted_without_another_edge() {
    let pause = drained().overload(Overload::Pause);
    for config in [drained(), pause.clone(), pause.max_workers(101)] {
        let mut rig = echo(config);
        let addr = rig.manager.listen("127.0.0.1:0").unwrap();
        let mut clients: Vec<TcpStream> = (0..100).map(|_| connect(addr)).collect();
        let first = rig.turn();
        assert_eq!((first.accepted, rig.manager.next_timeout()), (64, Some(Duration::ZERO)));
        assert_eq!(rig.turn().accepted, 36);
        assert_eq!(rig.turn().accepted, 0);
        assert_eq!(rig.manager.stats().accepts, 101, "the last accept finds the queue empty");
        assert_served(&mut rig, &mut clients[99]);
    }
}

#[test]
fn a_second_listener_is_not_starved_by_the_first() {
    let mut rig = echo(drained());
    let addrs = [(); 2].map(|()| rig.manager.listen("127.0.0.1:0").unwrap());
    let _many: Vec<TcpStream> = (0..100).map(|_| connect(addrs[0])).collect();
    let _one = connect(addrs[1]);
    assert_eq!(rig.turn().accepted, 65);
}

#[test]
fn a_refused_client_gets_the_reply_though_its_input_is_unread() {
    let mut rig = echo(drained().max_workers(1));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut first = connect(addr);
    assert_served(&mut rig, &mut first);
    for round in 1..=50 {
        let mut client = connect(addr);
        client.write_all(&vec![b'x'; 20_000]).unwrap();
        rig.until(|rig| rig.manager.stats().busy == round);
        client.write_all(&vec![b'y'; 20_000]).unwrap();
        rig.turn();
        client.write_all(b"and more").unwrap();
        let reply = rig.read_to_end(&mut client).expect("no reset");
        assert_eq!(reply, ERROR_SERVER_BUSY.as_bytes(), "round {round}");
    }
    assert_served(&mut rig, &mut first);
    assert_eq!(rig.record.open_lives(), 1);
    assert_eq!(rig.record.closed(), [], "no callback is called for a refused client");
    assert_eq!(rig.manager.stats().accepted, 51);
}

#[test]
fn refused_clients_get_the_configured_reply() {
    let mut rig = echo(drained().max_workers(1).overload(Overload::Reject(b"503".into())));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut first = connect(addr);
    assert_served(&mut rig, &mut first);
    assert_eq!(rig.read_to_end(&mut connect(addr)).unwrap(), b"503");
    drop(first);
    rig.first_close();
    assert_served(&mut rig, &mut connect(addr));
}

#[test]
fn a_paused_listener_leaves_clients_in_the_backlog_without_spinning() {
    let mut rig = echo(drained().max_workers(1).overload(Overload::Pause));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut first = connect(addr);
    assert_served(&mut rig, &mut first);
    let mut waiting = connect(addr);
    waiting.write_all(b"waiting").unwrap();
    rig.until(|rig| rig.turn().events == 0);
    let accepts = rig.manager.stats().accepts;
    for _ in 0..10 {
        let turn = rig.turn();
        assert_eq!((turn.events, turn.accepted), (0, 0));
        assert_ne!(rig.manager.next_timeout(), Some(Duration::ZERO), "the loop would spin");
    }
    assert_eq!(rig.manager.stats().accepts, accepts);
    assert_eq!(rig.manager.stats().busy, 0, "no client was refused");
    drop(first);
    assert_eq!(rig.read_exact(&mut waiting, 7), b"waiting");
}

#[test]
fn a_paused_listener_resumes_when_a_worker_becomes_free_in_any_way() {
    let config = drained().max_workers(1).overload(Overload::Pause);
    let mut rig = rig(config.clone(), |conn, body| {
        if body == b"quit" {
            conn.close();
        }
        conn.write_all(body)
    });
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut served = connect(addr);
    assert_served(&mut rig, &mut served);
    for way in ["client", "callback", "handle", "refused put", "maximum"] {
        let mut waiting = connect(addr);
        waiting.write_all(b"next").unwrap();
        rig.until(|rig| rig.turn().events == 0);
        let mut clients = vec![served];
        match way {
            "client" => clients.clear(),
            "callback" => clients[0].write_all(b"quit").unwrap(),
            "handle" => rig.manager.handle().close(last_opened(&rig)).unwrap(),
            "refused put" => {
                clients.clear();
                rig.first_close();
                drop(rig.manager.put(crate::support::pair().1));
            }
            _ => drop(rig.manager.set_config(config.clone().max_workers(2)).unwrap()),
        }
        assert_eq!(rig.read_exact(&mut waiting, 4), b"next", "{way}");
        served = waiting;
    }
}

#[test]
fn a_paused_listener_resumes_when_a_handle_changes_limit_or_policy() {
    let config = drained().max_workers(1).overload(Overload::Pause);
    let mut rig = echo(config.clone());
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut first = connect(addr);
    assert_served(&mut rig, &mut first);
    let mut waiting = connect(addr);
    waiting.write_all(b"next").unwrap();
    rig.until(|rig| rig.turn().events == 0);
    rig.manager.handle().set_config(config.max_workers(2)).unwrap();
    assert_eq!(rig.read_exact(&mut waiting, 4), b"next");
    let mut last = connect(addr);
    rig.until(|rig| rig.turn().events == 0);
    rig.manager.handle().set_config(drained().max_workers(2)).unwrap();
    assert_eq!(rig.read_to_end(&mut last).unwrap(), ERROR_SERVER_BUSY.as_bytes());
}

#[test]
fn accepted_connections_have_nodelay_set() {
    let mut rig = rig(drained(), |conn, _| {
        let Socket::Tcp(stream) = conn.socket() else { panic!("accepted as TCP") };
        let nodelay = stream.nodelay()?;
        assert!(conn.peer_addr().is_some());
        write!(conn, "{nodelay}")
    });
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let addrs = [addr, elsewhere.local_addr().unwrap()];
    rig.manager.listen_on(elsewhere).unwrap();
    for addr in addrs {
        let mut client = connect(addr);
        client.write_all(b"?").unwrap();
        assert_eq!(rig.read_exact(&mut client, 4), b"true");
    }
}

#[test]
fn an_occupied_port_is_an_error_that_names_the_address() {
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = occupied.local_addr().unwrap();
    let mut rig = echo(drained());
    let error = rig.manager.listen(addr).unwrap_err();
    assert!(matches!(error, Error::Listen { .. }));
    let message = error.to_string();
    assert!(message.contains(&addr.to_string()) && message.contains("in use"), "{message}");
    assert_eq!(message.lines().count(), 1);
    drop(occupied);
    rig.manager.listen(addr).expect("the failed attempt left nothing open");
}

#[test]
fn an_invalid_or_empty_address_is_an_error() {
    let mut rig = echo(drained());
    let error = rig.manager.listen("no port here").unwrap_err();
    assert!(matches!(error, Error::Listen { .. }) && !error.to_string().is_empty(), "{error}");
    let error = rig.manager.listen(&[][..] as &[SocketAddr]).unwrap_err();
    assert!(error.to_string().starts_with("can't listen on no address: "), "{error}");
}

#[test]
fn listening_before_the_start_is_refused() {
    let mut manager = Manager::new(drained(), |_, _| Ok(())).unwrap();
    assert!(matches!(manager.listen("127.0.0.1:0"), Err(Error::NotRunning)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(matches!(manager.listen_on(listener), Err(Error::NotRunning)));
    assert!(matches!(manager.listen_unix("/nowhere"), Err(Error::NotRunning)));
}

#[test]
fn without_descriptors_connections_are_served_and_accept_retried() {
    alone("listener::without_descriptors_connections_are_served_and_accept_retried", 40, || {
        remember_log();
        let mut rig = echo(drained());
        let addr = rig.manager.listen("127.0.0.1:0").unwrap();
        let mut served = connect(addr);
        assert_served(&mut rig, &mut served);
        let stream = || {
            let domain = socket2::Domain::IPV4;
            socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket")
        };
        let mut clients: Vec<socket2::Socket> = (0..3).map(|_| stream()).collect();
        let mut files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        for client in &clients {
            client.connect(&addr.into()).unwrap();
        }
        rig.until(|rig| rig.manager.stats().fd_exhausted > 0);

        let (began, before) = (Instant::now(), rig.manager.stats());
        let (mut exchanges, mut attempts) = (0, 0);
        while began.elapsed() < Duration::from_millis(400) || exchanges < 10 || attempts < 3 {
            assert!(began.elapsed() < TIMEOUT, "{exchanges} exchanges, {attempts} attempts");
            assert_served(&mut rig, &mut served);
            exchanges += 1;
            attempts = rig.manager.stats().accepts - before.accepts;
        }
        let max = began.elapsed().as_millis().div_ceil(50) as u64 + 1;
        assert!(attempts <= max, "{attempts} attempts in {:?}", began.elapsed());
        assert_eq!(rig.manager.stats().accepted, before.accepted);
        assert_eq!(logged(log::Level::Warn).len(), 1, "{:?}", logged(log::Level::Warn));

        // An idle loop waits, but only for a short time, so that it does not miss a freed
        // descriptor.
        rig.turn();
        let next = rig.manager.next_timeout().expect("a retry is due");
        assert!(next <= Duration::from_millis(100), "{next:?}");
        rig.until(|rig| rig.turn().events == 0);
        let waits = rig.manager.stats().waits;
        let idle = Instant::now();
        while idle.elapsed() < Duration::from_millis(200) {
            rig.manager.turn(Some(Duration::from_millis(200))).unwrap();
        }
        let waits = rig.manager.stats().waits - waits;
        assert!(waits <= 8, "{waits} waits in {:?}: the loop spins", idle.elapsed());

        files.truncate(files.len() - 3);
        rig.until(|rig| rig.manager.stats().accepted == before.accepted + 3);
        let mut client = TcpStream::from(clients.pop().unwrap());
        assert_served(&mut rig, &mut client);
        assert_eq!(logged(log::Level::Warn).len(), 1);
    });
}

#[test]
fn a_connection_that_closes_frees_the_descriptor_for_the_next() {
    alone("listener::a_connection_that_closes_frees_the_descriptor_for_the_next", 40, || {
        let mut rig = echo(drained().max_workers(5));
        let addr = rig.manager.listen("127.0.0.1:0").unwrap();
        let mut served = connect(addr);
        assert_served(&mut rig, &mut served);
        let waiting = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let waiting = waiting.unwrap();
        let files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        waiting.connect(&addr.into()).unwrap();
        rig.until(|rig| rig.manager.stats().fd_exhausted > 2);
        served.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(rig.read_to_end(&mut served).unwrap(), b"");
        rig.until(|rig| rig.manager.stats().accepted == 2);
        assert_served(&mut rig, &mut TcpStream::from(waiting));
        drop(files);
        let free = (0..5).filter(|_| rig.manager.put(crate::support::pair().1).is_ok()).count();
        assert_eq!(free, 4, "a failed attempt kept its permit");
    });
}

#[test]
fn health_checks_reach_no_request_callback() {
    let mut rig = echo(drained().max_workers(4));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    for round in 1..=50 {
        drop(connect(addr));
        rig.until(|rig| rig.record.closed().len() == round);
    }
    assert_eq!(rig.record.closed(), [CloseReason::Eof; 50]);
    assert_eq!(rig.record.requests(), []);
    assert_eq!((rig.manager.stats().live, rig.record.open_lives()), (0, 0));
}

#[test]
fn a_thousand_connections_reset_before_accept_leave_no_worker() {
    let mut rig = echo(drained().max_workers(100));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    for round in 1..=10 {
        for _ in 0..100 {
            reset(connect(addr));
        }
        rig.until(|rig| rig.manager.stats().closed_total() == 100 * round);
    }
    assert_eq!(rig.manager.stats().closed(CloseReason::Reset), 1_000);
    assert_eq!((rig.manager.stats().live, rig.record.open_lives()), (0, 0));
    assert_eq!(rig.record.requests(), []);
    for _ in 0..100 {
        rig.manager.put(crate::support::pair().1).expect("every worker is free");
    }
    assert!(rig.manager.put(crate::support::pair().1).unwrap_err().is_busy());
}

#[test]
fn a_stop_answers_every_client_in_the_accept_queue() {
    let mut rig = echo(drained().stop_deadline(TIMEOUT));
    let listener = deep_listener(Ipv4Addr::LOCALHOST);
    let addr = listener.local_addr().unwrap();
    rig.manager.listen_on(listener).unwrap();
    let mut clients: Vec<TcpStream> = (0..200).map(|_| connect(addr)).collect();
    let (early, late) = clients.split_at_mut(100);
    for client in early {
        client.write_all(b"ping").unwrap();
    }
    rig.manager.handle().stop().unwrap();
    rig.turn();
    assert_eq!(rig.manager.stats().accepted, 64, "one batch per turn");
    for client in late {
        client.write_all(b"pong").unwrap();
    }
    let report = rig.manager.run().unwrap();
    assert_eq!((report.finished, report.aborted), (200, 0), "{report}");
    for (client, word) in clients.iter_mut().zip([b"ping"; 100].into_iter().chain([b"pong"; 100])) {
        let mut all = Vec::new();
        client.read_to_end(&mut all).expect("no reset");
        assert_eq!(all, word);
    }
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn closing_one_of_two_listeners_on_a_port_resets_no_client() {
    let shared = |addr: &str| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&addr.parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(4096).unwrap();
        TcpListener::from(socket)
    };
    let (mut closing, mut staying) = (echo(drained()), echo(drained()));
    let listener = shared("127.0.0.1:0");
    let addr = listener.local_addr().unwrap();
    closing.manager.listen_on(listener).unwrap();
    staying.manager.listen_on(shared(&addr.to_string())).unwrap();
    let mut clients: Vec<TcpStream> = (0..200).map(|_| connect(addr)).collect();
    for client in &mut clients {
        client.write_all(b"ping").unwrap();
    }
    let report = closing.manager.stop().unwrap();
    assert_eq!(report.aborted, 0, "{report}");
    clients.push(connect(addr));
    clients[200].write_all(b"ping").unwrap();
    let left = 201 - report.finished;
    assert!((2..200).contains(&left), "the kernel distributes the clients: {report}");
    staying.until(|rig| rig.manager.stats().bytes_out == 4 * left as u64);
    for mut client in clients {
        client.read_exact(&mut [0; 4]).expect("a reply and no reset");
    }
}

#[test]
fn a_silent_client_accepted_in_a_stop_is_closed_at_its_deadline() {
    let deadline = Duration::from_millis(100);
    let mut rig = echo(drained().max_workers(1).overload(Overload::Pause).stop_deadline(deadline));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut first = connect(addr);
    assert_served(&mut rig, &mut first);
    let mut silent = connect(addr);
    let mut unaccepted = connect(addr);
    let began = Instant::now();
    let report = rig.manager.stop().unwrap();
    assert!(began.elapsed() >= deadline);
    assert_eq!((report.idle, report.finished, report.aborted), (1, 0, 1), "{report}");
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert_eq!(unaccepted.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_stop_with_a_deadline_of_zero_accepts_no_client() {
    let mut rig = echo(drained().stop_deadline(Duration::ZERO));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut waiting = connect(addr);
    assert_eq!(rig.manager.stop().unwrap().aborted, 0);
    assert_eq!(waiting.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(rig.manager.stats().accepts, 0);
}

/// A datagram socket becomes readable, but `accept(2)` on it always fails with `EOPNOTSUPP`.
#[test]
fn a_listener_whose_accepts_always_fail_does_not_spin() {
    let (sender, datagrams) = UnixDatagram::pair().unwrap();
    let mut rig = echo(drained());
    rig.manager.listen_on(UnixListener::from(OwnedFd::from(datagrams))).unwrap();
    let good = rig.manager.listen("127.0.0.1:0").unwrap();
    sender.send(b"hello").unwrap();
    rig.until(|rig| rig.manager.stats().accept_errors > 0);
    let turns = rig.turns_in(Duration::from_millis(500));
    assert!(turns < 20, "{turns} turns");
    assert!(rig.manager.stats().accept_errors < 2_000, "{}", rig.manager.stats().accept_errors);
    assert_served(&mut rig, &mut connect(good));
}

#[test]
fn taking_listeners_loses_no_client() {
    let mut old = echo(drained());
    let addr = old.manager.listen("127.0.0.1:0").unwrap();
    let mut served = connect(addr);
    assert_served(&mut old, &mut served);
    let mut waiting = connect(addr);
    let taken = old.manager.take_listeners();
    assert!(
        matches!(&taken[..], [ListenSocket::Tcp(listener)] if listener.local_addr().unwrap() == addr)
    );
    assert!(old.manager.take_listeners().is_empty());
    let mut late = connect(addr);
    assert_eq!(old.turn().accepted, 0);
    assert_served(&mut old, &mut served);

    let mut new = echo(drained());
    for listener in taken {
        new.manager.listen_on(listener).unwrap();
    }
    old.manager.stop().unwrap();
    for client in [&mut waiting, &mut late, &mut connect(addr)] {
        assert_served(&mut new, client);
    }
    assert_eq!(new.manager.stats().accepted, 3);
}

#[test]
fn a_listener_that_was_taken_can_be_returned() {
    let mut rig = echo(drained());
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    for _ in 0..3 {
        let mut client = connect(addr);
        let taken = rig.manager.take_listeners();
        rig.turn();
        for listener in taken {
            rig.manager.listen_on(listener).unwrap();
        }
        assert_served(&mut rig, &mut client);
    }
    rig.manager.stop().unwrap();
    assert!(rig.manager.take_listeners().is_empty());
    TcpStream::connect(addr).expect_err("the stop closed the listener");
}

#[test]
fn the_path_of_a_taken_unix_listener_is_not_removed() {
    let path = std::env::temp_dir().join(format!("pool-manager-taken-{}", std::process::id()));
    let mut rig = echo(drained());
    rig.manager.listen_unix(&path).unwrap();
    let taken = rig.manager.take_listeners();
    rig.manager.stop().unwrap();
    assert!(matches!(&taken[..], [ListenSocket::Unix(_)]));
    std::os::unix::net::UnixStream::connect(&path).expect("the socket still listens");
    std::fs::remove_file(&path).expect("the path stays");
}

#[test]
fn a_stopping_manager_keeps_its_listeners_for_queued_clients() {
    let config = Config::new().framing(Framing::Delimited(b'\n')).max_workers(1);
    let mut rig = echo(config.overload(Overload::Pause));
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let mut first = connect(addr);
    first.write_all(b"half a ").unwrap();
    rig.bytes_in(7);
    let mut second = connect(addr);
    second.write_all(b"waits\n").unwrap();
    rig.manager.handle().stop().unwrap();
    rig.turn();
    assert!(rig.manager.take_listeners().is_empty());
    first.write_all(b"line\n").unwrap();
    assert_eq!(rig.read_exact(&mut first, 11), b"half a line");
    assert_eq!(rig.read_exact(&mut second, 5), b"waits");
}
