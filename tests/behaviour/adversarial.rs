//! Peers and sockets that misbehave, and regression tests for the faults of the Go package.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use pool_manager::{Cause, CloseReason, Config, Conn, ConnId, Framing, Prefix};

use crate::support::{Rig, Seen, TIMEOUT, echo, pair, reset, rig, shrink_buffers};

const LONG: Duration = Duration::from_secs(600);

fn drained() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(LONG)
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(LONG)
}

impl<F> Rig<F>
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
{
    /// Runs turns until a turn has nothing to do. Fails after 1,000 turns.
    #[track_caller]
    fn settle(&mut self) {
        for _ in 0..1_000 {
            let turn = self.turn();
            let idle = turn.events == 0 && turn.served == 0;
            if idle && self.manager.next_timeout() != Some(Duration::ZERO) {
                return;
            }
        }
        panic!("the loop does not come to rest: {}", self.manager.stats());
    }

    /// Asserts that the connection is still served: a line is echoed.
    #[track_caller]
    fn assert_echoes(&mut self, client: &mut TcpStream) {
        client.write_all(b"ping\n").unwrap();
        let got = self.read_exact(client, 4);
        assert_eq!(got, b"ping");
        self.settle();
    }
}

// Stale events, and clones of sockets.

#[test]
fn a_stale_event_does_not_reach_the_next_connection_at_its_index() {
    // Steps of the first connection's callback: the second client sends data, the second connection
    // is closed, and a third is put.
    type Steps = RefCell<Option<(TcpStream, ConnId, TcpStream)>>;
    let steps: Rc<Steps> = Rc::default();
    let next_steps = steps.clone();
    let mut rig = rig(drained().write_limit(100), move |conn, body| {
        if let Some((mut second, id, third)) = next_steps.take() {
            second.write_all(b"stale data")?;
            // These bytes exceed the write limit, so the connection is closed before the next
            // events are handled.
            conn.commands().send(id, [0; 101])?;
            conn.commands().put(third)?;
        }
        conn.write_all(body)
    });
    let (mut first, _) = rig.connect();
    let (second, id) = rig.connect();
    rig.settle();
    let (mut third, ours) = pair();
    steps.replace(Some((second.try_clone().unwrap(), id, ours)));
    first.write_all(b"go").unwrap();
    rig.until(|rig| rig.manager.stats().put == 3);
    rig.settle();
    let opened: Vec<ConnId> = rig.record.all().iter().filter_map(opened).collect();
    assert_ne!(opened[2], id);
    let index = |id: ConnId| id.to_string().split('.').next().map(str::to_owned);
    assert_eq!(index(opened[2]), index(id), "the third has the index of the closed one");
    assert!(rig.manager.stats().stale_events > 0, "the second connection's event was delivered");
    assert_eq!(rig.record.requests(), [(Cause::Drained, b"go".to_vec())]);
    third.write_all(b"mine").unwrap();
    assert_eq!(rig.read_exact(&mut third, 4), b"mine");
}

fn opened(seen: &Seen) -> Option<ConnId> {
    if let Seen::Opened(id) = seen { Some(*id) } else { None }
}

#[test]
fn a_clone_of_a_closed_socket_causes_no_events() {
    let mut rig = rig(drained().write_limit(10), |conn, body| match body {
        b"abort" => {
            conn.abort();
            Ok(())
        }
        b"panic" => panic!("requested by the test"),
        _ => conn.write_all(&[0; 11]),
    });
    // Nothing was written to these connections, so none of them lingers.
    for ending in [b"abort", b"panic", b"limit"] {
        let (mut client, ours) = pair();
        let mut clone = ours.try_clone().unwrap();
        rig.manager.put(ours).unwrap();
        client.write_all(ending).unwrap();
        rig.until(|rig| rig.manager.stats().live == 0);
        rig.settle();
        let (stale, events) = (rig.manager.stats().stale_events, rig.manager.stats().events);
        for _ in 0..3 {
            client.write_all(b"junk").unwrap();
            clone.read_exact(&mut [0; 4]).expect("the clone is still open");
            assert_eq!(rig.turn().events, 0);
        }
        client.shutdown(Shutdown::Both).unwrap();
        assert_eq!(rig.turn().events, 0);
        assert_eq!(rig.manager.stats().stale_events, stale);
        assert_eq!(rig.manager.stats().events, events);
    }
}

#[test]
fn a_clone_of_a_socket_that_lingered_causes_no_events() {
    let mut rig = rig(lines(), |conn, _| {
        conn.close();
        conn.write_all(b"bye")
    });
    // This is a Unix socket, because TCP reports no event after both sides have closed.
    let (mut client, ours) = UnixStream::pair().unwrap();
    let clone = ours.try_clone().unwrap();
    rig.manager.put(ours).unwrap();
    client.write_all(b"go\n").unwrap();
    rig.until(|rig| rig.manager.stats().lingering == 1);
    client.shutdown(Shutdown::Write).unwrap();
    rig.until(|rig| rig.manager.stats().lingering == 0);
    let events = rig.manager.stats().events;
    drop(client);
    assert_eq!((rig.turn().events, rig.manager.stats().events), (0, events));
    drop(clone);
}

#[test]
fn a_clone_of_a_registered_socket_can_be_put_too() {
    let mut rig = echo(drained());
    let (mut client, ours) = pair();
    let first = rig.manager.put(ours.try_clone().unwrap()).unwrap();
    let second = rig.manager.put(ours).unwrap();
    assert_ne!(first, second);
    for _ in 0..10 {
        client.write_all(b"to either").unwrap();
        assert_eq!(rig.read_exact(&mut client, 9), b"to either");
    }
    drop(client);
    rig.until(|rig| rig.manager.stats().live == 0);
    assert_eq!(rig.record.open_lives(), 0);
}

// Descriptors that are not sockets, and sockets that are not connected.

/// These tests are left out with poll(2), which accepts a file and reports it as always ready.
#[cfg(not(mio_unsupported_force_poll_poll))]
mod files {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use pool_manager::{Error, Socket};

    use super::*;

    #[test]
    fn a_file_passed_as_a_socket_is_returned_as_unsuitable() {
        let mut rig = echo(drained().max_workers(1));
        for path in ["/dev/null", "/proc/self/exe"] {
            let file = File::open(path).unwrap();
            let refused = rig.manager.put(TcpStream::from(OwnedFd::from(file))).unwrap_err();
            assert!(matches!(refused.error(), Error::Unsuitable(_)), "{refused}");
            assert!(!refused.is_busy() && refused.to_string().starts_with("can't put, the socket"));
            let Socket::Tcp(file) = refused.into_socket() else { panic!("not the TCP socket") };
            let mut file = File::from(OwnedFd::from(file));
            assert!(file.read(&mut [0]).is_ok(), "the file is still open");
            assert_eq!((rig.manager.stats().put, rig.manager.stats().live), (0, 0));
        }
        let (mut client, _) = rig.connect();
        rig.assert_echoes(&mut client);
    }

    #[test]
    fn a_file_put_by_a_handle_does_not_keep_its_permit() {
        let mut rig = echo(drained().max_workers(1));
        for _ in 0..3 {
            let file = File::open("/dev/null").unwrap();
            rig.manager
                .handle()
                .put(TcpStream::from(OwnedFd::from(file)))
                .expect("a worker is free");
            rig.turn();
        }
        assert_eq!(rig.manager.stats().put, 0);
        assert_eq!(rig.record.all(), []);
    }
}

#[test]
fn a_socket_that_was_never_connected_is_closed_once_without_a_request() {
    let mut rig = echo(drained());
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    rig.manager.put(TcpStream::from(socket)).unwrap();
    assert!(matches!(rig.first_close(), CloseReason::Io));
    rig.settle();
    assert_eq!((rig.record.requests(), rig.record.open_lives()), (vec![], 0));
}

// Resets.

#[test]
fn a_reset_drops_and_counts_held_bytes_without_a_request() {
    let mut rig = echo(lines());
    let (mut client, _) = rig.connect();
    client.write_all(b"unfinished").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 10);
    reset(client);
    assert_eq!(rig.first_close(), CloseReason::Reset);
    assert_eq!(rig.record.requests(), []);
    assert_eq!(rig.manager.stats().bytes_dropped, 10);
    rig.settle();
}

#[test]
fn a_reset_of_an_idle_connection_closes_it_without_spinning() {
    let mut rig = echo(drained());
    let (mut client, _) = rig.connect();
    rig.assert_echoes(&mut client);
    reset(client);
    assert_eq!(rig.first_close(), CloseReason::Reset);
    rig.settle();
    assert_eq!(rig.record.requests().len(), 1);
}

#[test]
fn a_reset_while_a_reply_is_blocked_counts_the_unsent_bytes() {
    let mut rig = rig(drained(), |conn, _| conn.write_all(&vec![0; 900_000]));
    let (mut client, ours) = pair();
    shrink_buffers(&client, &ours);
    rig.manager.put(ours).unwrap();
    client.write_all(b"go").unwrap();
    rig.requests(1);
    reset(client);
    assert_eq!(rig.first_close(), CloseReason::Reset);
    let stats = rig.manager.stats();
    assert_eq!(stats.bytes_unsent, 900_000 - stats.bytes_out);
    rig.settle();
}

#[test]
fn a_paused_connection_whose_peer_resets_does_not_spin() {
    let mut rig = echo(drained());
    let (client, id) = rig.connect();
    rig.manager.handle().pause(id).unwrap();
    rig.settle();
    reset(client);
    rig.until(|rig| rig.manager.stats().events > 1);
    rig.settle();
    rig.manager.handle().resume(id).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Reset);
}

// Spurious readiness, floods and urgent data.

#[test]
fn spurious_readiness_does_nothing_and_extends_no_deadline() {
    let deadline = Duration::from_millis(60);
    let mut rig = echo(drained().clients_deadline(deadline));
    let (mut client, ours) = pair();
    let mut other_reader = ours.try_clone().unwrap();
    other_reader.set_nonblocking(true).unwrap();
    let began = Instant::now();
    rig.manager.put(ours).unwrap();
    let mut taken = 0;
    while rig.record.closed().is_empty() {
        // The clone reads the byte, so the pool finds nothing to read.
        client.write_all(b"x").unwrap();
        other_reader.read_exact(&mut [0]).unwrap();
        taken += 1;
        rig.turn();
        assert!(began.elapsed() < TIMEOUT, "{taken} events kept the connection alive");
    }
    assert!(began.elapsed() >= deadline);
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    let requests = rig.record.requests();
    assert_eq!(requests, [(Cause::Expired, vec![])], "the pool received no byte");
}

#[test]
fn a_flooding_peer_does_not_keep_a_quiet_one_waiting() {
    let mut rig = rig(drained(), |conn, body| match body {
        b"ping" => conn.write_all(b"pong"),
        _ => Ok(()),
    });
    let (flooder, _) = rig.connect();
    let (mut quiet, _) = rig.connect();
    rig.turn();
    flooder.set_nonblocking(true).unwrap();
    let junk = vec![b'x'; 1 << 20];
    let flood = |mut flooder: &TcpStream| while flooder.write(&junk).is_ok() {};
    flood(&flooder);
    let mut total = 0;
    for _ in 0..50 {
        quiet.write_all(b"ping").unwrap();
        let mut turns = 0;
        quiet.set_nonblocking(true).unwrap();
        while quiet.read(&mut [0; 4]).is_err() {
            flood(&flooder);
            let before = rig.manager.stats().bytes_in;
            rig.turn();
            let read = rig.manager.stats().bytes_in - before;
            assert!(read <= (64 << 10) + 5120 + 4, "{read} bytes in one turn");
            turns += 1;
            assert!(turns <= 3, "the quiet peer waits");
        }
        total += turns;
    }
    assert!(rig.manager.stats().bytes_in > 50 * (16 << 10), "no flood in {total} turns");
}

#[test]
fn urgent_data_neither_spins_nor_hides_the_data_around_it() {
    let mut rig = echo(lines());
    let (mut client, _) = rig.connect();
    for _ in 0..30 {
        client.write_all(b"in ").unwrap();
        socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
        client.write_all(b"band\n").unwrap();
        assert_eq!(rig.read_exact(&mut client, 7), b"in band");
        rig.settle();
    }
    for _ in 0..100 {
        socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
    }
    rig.settle();
    for _ in 0..3 {
        let turn = rig.turn();
        assert_eq!((turn.events, turn.served), (0, 0), "the loop spins");
    }
    // Each urgent byte except the last became ordinary data when the next one was sent.
    client.write_all(b"\nping\n").unwrap();
    rig.until(|rig| rig.record.requests().last().is_some_and(|(_, body)| body == b"ping"));
}

#[test]
fn random_bytes_break_nothing() {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = |count: usize| -> Vec<u8> {
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 32) as u8
        };
        (0..count).map(|_| next()).collect()
    };
    let prefix = Framing::LengthPrefixed { prefix: Prefix::U16Be, limit: Framing::NO_LIMIT };
    for framing in [Framing::Filled, Framing::Drained, Framing::Delimited(0), prefix] {
        let mut rig = echo(Config::new().framing(framing).clients_deadline(LONG).buffer_size(512));
        let (mut neighbour, _) = rig.connect();
        for round in 1..=20 {
            let (mut client, _) = rig.connect();
            client.write_all(&bytes(round * 397)).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            rig.until(|rig| rig.record.closed().len() == round);
        }
        neighbour.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rig.read_to_end(&mut neighbour).unwrap(), b"");
        rig.until(|rig| rig.record.open_lives() == 0);
        let stats = rig.manager.stats();
        assert_eq!(stats.live, 0);
    }
}

// The last reply, and lingering.

/// Runs `clients` on another thread, and serves connections until `clients` returns. The argument
/// of `clients` is a function that opens a connection.
fn serve_clients<F, T>(rig: &mut Rig<F>, clients: T)
where
    F: FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>,
    T: FnOnce(&dyn Fn() -> TcpStream) + Send + 'static,
{
    let addr = rig.manager.listen("127.0.0.1:0").unwrap();
    let handle = rig.manager.handle();
    let clients = thread::spawn(move || {
        clients(&|| {
            let client = TcpStream::connect(addr).unwrap();
            client.set_nodelay(true).unwrap();
            client.set_read_timeout(Some(TIMEOUT)).unwrap();
            client
        });
        // The manager outlives this thread, so the call does not fail.
        let _ = handle.stop();
    });
    let outcome = rig.manager.run();
    clients.join().expect("the clients' assertions hold");
    outcome.unwrap();
}

#[test]
fn a_last_reply_survives_input_that_is_never_read() {
    let mut rig = rig(lines(), |conn, _| {
        conn.close();
        conn.write_all(&vec![b'x'; 900_000])
    });
    serve_clients(&mut rig, |connect| {
        for round in 0..50 {
            let mut client = connect();
            client.write_all(b"first\n").unwrap();
            client.write_all(&vec![b'y'; 100_000]).unwrap();
            let mut reply = Vec::new();
            client.read_exact(&mut [0; 1_000]).unwrap();
            // The client keeps sending while it receives the reply.
            client.write_all(b"and more\n").unwrap();
            client.read_to_end(&mut reply).unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert_eq!(reply.len(), 899_000, "round {round}");
        }
    });
    assert_eq!(rig.manager.stats().closed(CloseReason::Requested), 50);
    assert_eq!(rig.record.requests().len(), 50);
}

#[test]
fn the_reply_to_an_overlong_frame_survives_the_rest_of_it() {
    let mut rig = echo(lines().buffer_size(64)).on_incomplete(|conn, _| {
        assert_eq!(conn.cause(), Cause::Overlong);
        conn.write_all(b"too long")
    });
    serve_clients(&mut rig, |connect| {
        for round in 0..50 {
            let mut client = connect();
            client.write_all(&vec![b'y'; 50_000]).unwrap();
            let mut reply = [0; 8];
            client.read_exact(&mut reply).unwrap_or_else(|error| panic!("round {round}: {error}"));
            client.write_all(&vec![b'y'; 50_000]).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap_or_else(|error| panic!("{error}")), 0);
            assert_eq!(&reply, b"too long");
        }
    });
    assert_eq!(rig.record.incomplete(), vec![(Cause::Overlong, vec![b'y'; 64]); 50]);
    assert_eq!(rig.record.requests(), []);
}

#[test]
fn an_abort_does_not_linger() {
    let mut rig = rig(lines(), |conn, _| {
        if conn.bytes_out() > 0 {
            conn.write_all(b"never sent")?;
            conn.abort();
            return Ok(());
        }
        conn.write_all(b"sent")
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"one\n").unwrap();
    assert_eq!(rig.read_exact(&mut client, 4), b"sent");
    client.write_all(b"two\nunread").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Aborted);
    assert_eq!(rig.manager.stats().lingering, 0);
    assert_eq!(rig.manager.stats().bytes_unsent, 10);
    assert_eq!(rig.read_to_end(&mut client).unwrap_or_default(), b"");
    // The socket is closed, so the kernel answers further data with a reset.
    let deadline = Instant::now() + TIMEOUT;
    while client.write(b"x").is_ok() {
        assert!(Instant::now() < deadline, "the socket is still open");
    }
}

/// Returns a rig that closes each connection after its first line, so that the socket lingers.
fn closing_rig() -> Rig<impl FnMut(&mut Conn<'_>, &[u8]) -> io::Result<()>> {
    rig(lines().max_workers(1), |conn, _| {
        conn.close();
        conn.write_all(b"bye")
    })
}

#[test]
fn a_lingering_connection_has_freed_its_worker() {
    let mut rig = closing_rig();
    let clients: Vec<TcpStream> = (1..=5)
        .map(|count| {
            let (mut client, _) = rig.connect();
            assert!(rig.manager.put(pair().1).is_err());
            client.write_all(b"go\n").unwrap();
            rig.until(|rig| rig.manager.stats().lingering == count);
            client
        })
        .collect();
    assert_eq!((rig.manager.stats().live, rig.record.open_lives()), (0, 0));
    drop(clients);
    rig.until(|rig| rig.manager.stats().lingering == 0);
}

#[test]
fn at_most_256_sockets_linger_and_the_oldest_is_closed_first() {
    let mut rig = closing_rig();
    let began = Instant::now();
    let mut clients = Vec::new();
    for count in 1..=260 {
        let (mut client, ours) = UnixStream::pair().unwrap();
        rig.manager.put(ours).unwrap();
        client.write_all(b"go\n").unwrap();
        rig.until(|rig| rig.record.closed().len() == count);
        clients.push(client);
    }
    let lingering = rig.manager.stats().lingering;
    assert!(lingering <= 256, "{lingering}");
    // Writing to a socket fails once its peer has closed.
    let closed: Vec<bool> = clients.iter_mut().map(|client| client.write(b"x").is_err()).collect();
    assert!(closed[..4].iter().all(|&closed| closed), "the oldest still linger");
    if began.elapsed() < Duration::from_secs(4) {
        assert_eq!((lingering, closed[4..].contains(&true)), (256, false));
    }
}

#[test]
fn no_socket_lingers_for_more_than_five_seconds() {
    let mut rig = closing_rig();
    let (mut client, _) = rig.connect();
    client.write_all(b"go\n").unwrap();
    rig.until(|rig| rig.manager.stats().lingering == 1);
    rig.settle();
    rig.turn();
    let left = rig.manager.next_timeout().expect("a deadline is set");
    assert!(left <= Duration::from_millis(5_001) && left > Duration::from_secs(3), "{left:?}");
    client.write_all(b"still here").unwrap();
    rig.settle();
    rig.turn();
    let next = rig.manager.next_timeout();
    assert!(next.is_some_and(|next| next <= left), "traffic does not extend the deadline");
}

#[test]
fn no_socket_lingers_for_more_bytes_than_the_largest_buffer() {
    let mut rig = closing_rig();
    let (mut client, _) = rig.connect();
    client.write_all(b"go\n").unwrap();
    rig.until(|rig| rig.manager.stats().lingering == 1);
    client.set_nonblocking(true).unwrap();
    let (chunk, mut sent) = (vec![0; 1 << 20], 0);
    rig.until(|rig| {
        while let Ok(count @ 1..) = client.write(&chunk) {
            sent += count;
        }
        rig.manager.stats().lingering == 0
    });
    assert!(sent >= 16 << 20, "{sent}");
}

// The faults of the Go package. Each test is named after the fault that it rules out.

#[test]
fn go_fault_a_connection_dead_on_arrival_leaks_a_worker() {
    let mut rig = echo(Config::new().max_workers(1));
    for round in 1..=100 {
        let (client, ours) = pair();
        reset(client);
        rig.manager.put(ours).expect("the previous connection has freed its worker");
        rig.until(|rig| rig.record.closed().len() == round);
    }
    assert_eq!(rig.record.closed(), [CloseReason::Reset; 100]);
    assert_eq!(rig.record.requests(), []);
}

#[test]
fn go_fault_a_peer_that_fills_the_buffer_exactly_grows_memory() {
    let mut rig = rig(Config::new().buffer_size(1_000).clients_deadline(LONG), |_, _| Ok(()));
    let (mut client, _) = rig.connect();
    for count in 1..=200 {
        client.write_all(&[b'x'; 1_000]).unwrap();
        rig.requests(count);
    }
    assert!(rig.record.requests().iter().all(|(_, body)| body.len() == 1_000));
    assert!(
        rig.manager.stats().buffers_allocated <= 2,
        "{} buffers",
        rig.manager.stats().buffers_allocated
    );
}

#[test]
fn go_fault_the_deadline_is_rearmed_by_every_byte() {
    let total = Duration::from_millis(120);
    // The buffer must not fill in the meantime: a full buffer would be delivered as a request.
    let config = Config::new().buffer_size(1 << 20).request_deadline(total);
    let mut rig = echo(config.clients_deadline(Duration::from_secs(5)));
    let (mut client, _) = rig.connect();
    let began = Instant::now();
    rig.until(|rig| {
        // The connection may be closed by now.
        let _ = client.write(b"x");
        !rig.record.closed().is_empty()
    });
    let elapsed = began.elapsed();
    assert!(elapsed >= total, "{elapsed:?}");
    assert_eq!(rig.record.closed(), [CloseReason::Expired]);
    assert_eq!(rig.record.requests().len(), 1);
}

#[test]
fn go_fault_bytes_already_read_are_thrown_away_at_a_deadline_or_an_end() {
    let mut rig = echo(Config::new().clients_deadline(Duration::from_millis(50)));
    let (mut late, _) = rig.connect();
    late.write_all(b"too few").unwrap();
    assert_eq!(rig.read_exact(&mut late, 7), b"too few");
    let (mut ended, _) = rig.connect();
    ended.write_all(b"cut short").unwrap();
    ended.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.read_exact(&mut ended, 9), b"cut short");
    let expected = [(Cause::Expired, b"too few".to_vec()), (Cause::Eof, b"cut short".to_vec())];
    assert_eq!(rig.record.requests(), expected);
    assert_eq!(rig.manager.stats().bytes_dropped, 0);
}

#[test]
fn go_fault_put_races_with_the_busy_counter() {
    let mut rig = echo(Config::new().max_workers(5));
    let (handle, start) = (rig.manager.handle(), Barrier::new(3));
    let race = || {
        start.wait();
        (0..5).filter(|_| handle.put(pair().1).is_ok()).count()
    };
    let taken = thread::scope(|scope| {
        let others = [scope.spawn(race), scope.spawn(race)];
        start.wait();
        let mine = (0..5).filter(|_| rig.manager.put(pair().1).is_ok()).count();
        others.into_iter().map(|other| other.join().unwrap()).sum::<usize>() + mine
    });
    assert_eq!(taken, 5);
}

#[test]
fn go_fault_workers_are_counted_twice_at_start() {
    let mut rig = echo(Config::new().min_workers(5).max_workers(5));
    for _ in 0..3 {
        assert_eq!((rig.manager.stats().live, rig.manager.stats().spare), (0, 5));
        let free = (0..6).filter(|_| rig.manager.put(pair().1).is_ok()).count();
        assert_eq!(free, 5, "a warm worker does not count against the maximum");
        rig.manager.stop().unwrap();
        rig.manager.start().unwrap();
    }
}

#[test]
fn go_fault_stop_can_wait_for_ever() {
    let mut rig = echo(lines().stop_deadline(Duration::from_millis(50)));
    let (mut unfinished, _) = rig.connect();
    unfinished.write_all(b"never a newline").unwrap();
    rig.until(|rig| rig.manager.stats().bytes_in == 15);
    let report = rig.manager.stop().unwrap();
    assert_eq!((report.aborted, report.dropped_bytes), (1, 15));
}

#[test]
fn go_fault_a_callback_that_panics_ends_the_process() {
    let mut rig = rig(lines(), |conn, body| match body {
        b"panic" => panic!("requested by the test"),
        body => conn.write_all(body),
    });
    let (mut neighbour, _) = rig.connect();
    let (mut client, _) = rig.connect();
    client.write_all(b"panic\n").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Panicked);
    rig.assert_echoes(&mut neighbour);
}

#[test]
fn go_fault_an_exact_multiple_of_the_buffer_is_never_delivered() {
    let mut rig = rig(Config::new().buffer_size(100).clients_deadline(LONG), |_, _| Ok(()));
    let (mut client, _) = rig.connect();
    for multiple in 1..=5 {
        let before = rig.record.requests().len();
        client.write_all(&vec![b'x'; 100 * multiple]).unwrap();
        let requests = rig.requests(before + multiple);
        assert!(requests.iter().all(|(cause, body)| (*cause, body.len()) == (Cause::Full, 100)));
    }
}

// The fault "at EMFILE the accept loop uses a whole core" is tested in listener.rs, by
// `without_descriptors_connections_are_served_and_accept_retried`.

#[test]
fn go_fault_fifty_peers_that_never_read_grow_memory() {
    const REPLY: u64 = 10_000;
    let written = Rc::new(Cell::new(0));
    let count = written.clone();
    let mut rig = rig(lines(), move |conn, _| {
        count.set(count.get() + REPLY);
        conn.write_all(&[b'x'; REPLY as usize])
    });
    let clients: Vec<TcpStream> = (0..50)
        .map(|_| {
            let (client, ours) = pair();
            shrink_buffers(&client, &ours);
            client.set_nonblocking(true).unwrap();
            rig.manager.put(ours).unwrap();
            client
        })
        .collect();
    for _ in 0..20 {
        for mut client in &clients {
            // A partial write is enough for a flood.
            let _ = client.write(&b"more\n".repeat(1_000));
        }
        rig.turn();
    }
    rig.settle();
    let unsent = written.get() - rig.manager.stats().bytes_out;
    assert!(unsent > 0, "no peer stalled");
    let max = (64 << 10) + REPLY;
    assert!(unsent <= 50 * max, "{unsent} unsent bytes for 50 peers that never read");
    assert_eq!(rig.manager.stats().live, 50);
    assert!(matches!(clients[0].peek(&mut [0]), Ok(1)));
    assert!(
        !matches!(clients[0].take_error(), Ok(Some(error)) if error.kind() != ErrorKind::WouldBlock)
    );
}
