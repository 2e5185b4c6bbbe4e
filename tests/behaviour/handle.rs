//! Commands that other threads and callbacks queue, and the time at which they are executed.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pool_manager::{
    Cause, CloseReason, Config, Conn, ConnId, ERROR_SERVER_BUSY, Error, Framing, Handle, Manager,
    Socket, StopReport, Transport,
};

use crate::support::{Seen, TIMEOUT, echo, pair, rig};

/// A deadline that no test reaches.
const LONG_DEADLINE: Duration = Duration::from_secs(600);

/// Maximum number of commands in the mailbox. The command queue of callbacks has the same maximum.
const COMMANDS_MAX: usize = 65_536;

/// A configuration with long deadlines, so that the loop is woken by commands and peers, and not by
/// deadlines.
fn long_deadlines() -> Config {
    Config::new()
        .framing(Framing::Drained)
        .clients_deadline(LONG_DEADLINE)
        .reap_interval(LONG_DEADLINE)
}

/// An echo manager that runs on another thread. `served` receives the connection id of each
/// request.
struct RunningManager {
    handle: Handle,
    served: Receiver<ConnId>,
    thread: JoinHandle<Result<StopReport, Error>>,
}

fn running(config: Config) -> RunningManager {
    let (sender, served) = channel();
    let mut manager = Manager::new(config, move |conn, body| {
        // The test may have dropped the receiver.
        let _ = sender.send(conn.id());
        conn.write_all(body)
    })
    .unwrap();
    manager.start().unwrap();
    let handle = manager.handle();
    RunningManager { handle, served, thread: thread::spawn(move || manager.run()) }
}

impl RunningManager {
    /// Puts a connection and waits until it has been served once. Returns the client and the id.
    fn connect(&self) -> (TcpStream, ConnId) {
        let (mut client, ours) = client_pair();
        self.handle.put(ours).unwrap();
        client.write_all(b"hello").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        (client, self.served.recv_timeout(TIMEOUT).unwrap())
    }

    fn stop(self) -> StopReport {
        self.handle.stop().unwrap();
        self.thread.join().unwrap().unwrap()
    }
}

/// Returns a pair whose client has a read timeout.
fn client_pair() -> (TcpStream, TcpStream) {
    let (client, ours) = pair();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    (client, ours)
}

/// A transport that counts how often it is dropped.
struct Counted(UnixStream, Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Counted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Counted {}

fn counted(drops: &Arc<AtomicUsize>) -> (UnixStream, Socket) {
    let (peer, ours) = UnixStream::pair().unwrap();
    (peer, Socket::Boxed(Box::new(Counted(ours, drops.clone()))))
}

#[test]
fn a_socket_put_from_another_thread_wakes_a_waiting_loop() {
    let pool = running(long_deadlines());
    for _ in 0..50 {
        pool.connect();
    }
    let report = pool.stop();
    assert_eq!(report.aborted, 0);
}

#[test]
fn threads_that_race_for_the_last_workers_get_max_workers_in_all() {
    for _ in 0..20 {
        let mut rig = echo(long_deadlines().max_workers(13));
        let (handle, start) = (rig.manager.handle(), Barrier::new(4));
        let race = |_| {
            start.wait();
            let sockets = (0..8).map(|_| UnixStream::pair().unwrap());
            sockets.filter_map(|(peer, ours)| handle.put(ours).ok().map(|()| peer)).count()
        };
        let taken: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || race(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 13, "the permits are taken before the first turn");
        rig.turn();
        assert_eq!((rig.manager.stats().put, rig.manager.stats().peak), (13, 13));
        rig.until(|rig| rig.manager.stats().live == 0);
        assert_eq!(
            (0..14).filter(|_| handle.put(pair().1).is_ok()).count(),
            13,
            "all workers are free again"
        );
    }
}

#[test]
fn busy_is_immediate_names_the_maximum_and_returns_the_socket() {
    let mut rig = echo(long_deadlines().max_workers(1));
    let _first = rig.connect();
    let (mut client, ours) = client_pair();
    client.write_all(b"unread").unwrap();
    let refused = rig.manager.handle().put(ours).unwrap_err();
    assert!(refused.is_busy());
    assert!(matches!(refused.error(), Error::Busy { max_workers: 1 }));
    let text = refused.to_string();
    assert!(text.starts_with("can't put, pool is busy") && text.contains("all 1 "), "{text}");
    let Socket::Tcp(mut ours) = refused.into_socket() else { panic!("not the TCP socket") };
    let mut got = [0; 6];
    ours.read_exact(&mut got).expect("the socket is unread and blocking");
    assert_eq!(&got, b"unread");
}

#[test]
fn refusals_of_manager_handle_and_callback_are_counted() {
    let refused_inside = Rc::new(Cell::new(false));
    let refused = refused_inside.clone();
    let mut rig = rig(long_deadlines().max_workers(1), move |conn, _| {
        refused.set(conn.commands().put(pair().1).is_err());
        Ok(())
    });
    let (mut client, _) = rig.connect();
    assert!(rig.manager.put(pair().1).is_err());
    assert_eq!(rig.manager.stats().busy, 1);
    assert!(rig.manager.handle().put(pair().1).is_err());
    assert_eq!(rig.manager.stats().busy, 2, "refused by a handle");
    client.write_all(b"go").unwrap();
    rig.requests(1);
    assert!(refused_inside.get());
    assert_eq!(rig.manager.stats().busy, 3, "refused in a callback");
}

#[test]
fn the_bytes_of_a_reject_arrive_despite_unread_input() {
    let pool = running(long_deadlines().max_workers(1));
    let first = pool.connect();
    for _ in 0..50 {
        let (mut client, ours) = client_pair();
        client.write_all(&vec![b'x'; 10_000]).unwrap();
        let refused = pool.handle.put(ours).unwrap_err().into_socket();
        pool.handle.reject(refused, ERROR_SERVER_BUSY.as_bytes()).unwrap();
        client.write_all(&vec![b'y'; 10_000]).unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).expect("no reset");
        assert_eq!(text, ERROR_SERVER_BUSY);
    }
    drop(first);
    pool.stop();
}

#[test]
fn commands_reach_the_connection_they_name_and_no_other() {
    let mut rig = echo(long_deadlines());
    let handle = rig.manager.handle();
    let (mut one, first) = rig.connect();
    let (mut other, second) = rig.connect();
    handle.send(second, b"for the second").unwrap();
    assert_eq!(rig.read_exact(&mut other, 14), b"for the second");
    handle.close(first).unwrap();
    assert_eq!(rig.read_to_end(&mut one).unwrap(), b"");
    assert_eq!(rig.record.closed(), [CloseReason::Requested]);
    other.write_all(b"alive").unwrap();
    assert_eq!(rig.read_exact(&mut other, 5), b"alive");
}

#[test]
fn commands_are_executed_in_the_order_of_their_calls() {
    let mut rig = echo(long_deadlines());
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    let mut expected = Vec::new();
    for number in 0..5_000_u32 {
        handle.send(id, number.to_be_bytes()).unwrap();
        expected.extend(number.to_be_bytes());
    }
    handle.close(id).unwrap();
    assert!(
        rig.read_to_end(&mut client).unwrap() == expected,
        "more commands than one turn executes"
    );
}

#[test]
fn bytes_sent_after_a_close_are_not_written() {
    let mut rig = echo(long_deadlines());
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    handle.send(id, b"in time").unwrap();
    handle.close(id).unwrap();
    handle.send(id, b", too late").unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"in time");
}

#[test]
fn a_send_larger_than_the_write_limit_closes_the_connection() {
    let mut rig = echo(long_deadlines().write_limit(100));
    let (_client, id) = rig.connect();
    rig.manager.handle().send(id, [0; 100]).unwrap();
    rig.turn();
    assert_eq!(rig.record.closed(), []);
    rig.manager.handle().send(id, [0; 101]).unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteLimit);
}

#[test]
fn a_paused_connection_is_not_served_until_it_is_resumed() {
    let mut rig = echo(long_deadlines());
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    handle.pause(id).unwrap();
    rig.turn();
    client.write_all(b"held back").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    rig.until(|rig| rig.manager.stats().events > 1);
    rig.turn();
    assert_eq!((rig.record.requests().len(), rig.manager.stats().bytes_in), (0, 0));
    handle.send(id, b"spoken to ").unwrap();
    assert_eq!(
        rig.read_exact(&mut client, 10),
        b"spoken to ",
        "a paused connection can still be written to"
    );
    assert_eq!(rig.record.requests(), [], "the write does not cause a read");
    handle.resume(id).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"held back", "read without a new event");
}

#[test]
fn a_paused_connection_can_be_closed() {
    let mut rig = echo(long_deadlines());
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    handle.pause(id).unwrap();
    handle.send(id, b"bye").unwrap();
    handle.close(id).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"bye");
}

#[test]
fn a_command_with_a_stale_id_is_counted_and_does_nothing() {
    let mut rig = echo(long_deadlines());
    let handle = rig.manager.handle();
    let (client, stale) = rig.connect();
    drop(client);
    rig.first_close();
    let (mut successor, _) = rig.connect();
    handle.send(stale, b"for the first").unwrap();
    handle.close(stale).unwrap();
    handle.pause(stale).unwrap();
    handle.resume(stale).unwrap();
    rig.turn();
    let stats = rig.manager.stats();
    assert_eq!((stats.commands, stats.stale_commands), (4, 4));
    successor.write_all(b"no harm!").unwrap();
    assert_eq!(rig.read_exact(&mut successor, 8), b"no harm!");
}

#[test]
fn no_wake_is_lost() {
    let pool = running(long_deadlines());
    let clients: Vec<(TcpStream, ConnId)> = (0..4).map(|_| pool.connect()).collect();
    thread::scope(|scope| {
        for (mut client, id) in clients {
            let handle = pool.handle.clone();
            scope.spawn(move || {
                for number in 0..2_000_u32 {
                    handle.send(id, number.to_be_bytes()).unwrap();
                    // After every eighth send, the thread does not wait for the bytes to arrive
                    // before it sends again. The loop must not sleep before it has executed both
                    // commands.
                    if number % 8 == 0 {
                        continue;
                    }
                    let mut got = vec![0; if number % 8 == 1 { 8 } else { 4 }];
                    client.read_exact(&mut got).expect("every command is executed");
                    assert!(got.ends_with(&number.to_be_bytes()));
                }
            });
        }
    });
    let stats = pool.handle.stats();
    assert!(stats.commands >= 8_000, "{stats}");
    assert_eq!(stats.stale_commands, 0);
    pool.stop();
}

#[cfg(not(mio_unsupported_force_poll_poll))]
#[test]
fn wakes_coalesce() {
    let mut rig = echo(long_deadlines());
    let (_client, id) = rig.connect();
    rig.turn();
    let handle = rig.manager.handle();
    for _ in 0..1_000 {
        handle.send(id, b"x").unwrap();
    }
    assert_eq!(rig.turn().events, 1, "the event of the waker");
    assert_eq!(rig.turn().events, 0);
    assert_eq!(rig.manager.stats().commands, 1_000);
}

#[test]
fn a_handle_outlives_its_manager() {
    let mut rig = echo(long_deadlines());
    let (handle, (_client, id)) = (rig.manager.handle(), rig.connect());
    rig.turn();
    drop(rig);
    for refused in [
        handle.send(id, b"x"),
        handle.close(id),
        handle.pause(id),
        handle.resume(id),
        handle.set_config(Config::new()),
        handle.stop(),
    ] {
        assert!(matches!(refused, Err(Error::Dropped)), "{refused:?}");
    }
    let (mut client, ours) = client_pair();
    let refused = handle.put(ours).unwrap_err();
    assert!(matches!(refused.error(), Error::Dropped));
    assert!(refused.to_string().contains("was dropped"), "{refused}");
    handle.reject(refused.into_socket(), b"not running").unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "not running");
    assert_eq!((handle.stats().put, handle.stats().live), (1, 0), "the last snapshot");
}

#[test]
fn sockets_queued_at_a_stop_are_closed_once_and_free_their_workers() {
    let drops = Arc::new(AtomicUsize::new(0));
    let mut rig = echo(long_deadlines().max_workers(3));
    let handle = rig.manager.handle();
    for round in 1..=3 {
        let peers: Vec<UnixStream> = (0..3)
            .map(|_| {
                let (peer, ours) = counted(&drops);
                handle.put(ours).expect("a worker is free");
                peer
            })
            .collect();
        assert!(handle.put(pair().1).is_err(), "all workers are taken");
        rig.manager.stop().unwrap();
        for mut peer in peers {
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        }
        assert_eq!(drops.load(Ordering::Relaxed), 3 * round);
        assert_eq!(rig.record.open_lives(), 0);
        rig.manager.start().unwrap();
    }
}

#[test]
fn a_socket_queued_behind_a_stop_is_closed() {
    let drops = Arc::new(AtomicUsize::new(0));
    let mut rig = echo(long_deadlines().max_workers(1));
    let handle = rig.manager.handle();
    handle.stop().unwrap();
    let (mut peer, ours) = counted(&drops);
    handle.put(ours).expect("the stop has not begun");
    rig.manager.run().unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    assert_eq!((drops.load(Ordering::Relaxed), rig.manager.stats().put), (1, 0));
    rig.manager.start().unwrap();
    rig.manager.put(pair().1).expect("the worker is free");
}

#[test]
fn a_full_mailbox_returns_an_error_and_the_socket() {
    let mut rig = echo(long_deadlines().max_workers(1));
    let (handle, (_client, id)) = (rig.manager.handle(), rig.connect());
    for _ in 0..COMMANDS_MAX {
        handle.resume(id).unwrap();
    }
    assert!(matches!(handle.resume(id), Err(Error::QueueFull)));
    drop(rig.manager.set_config(long_deadlines().max_workers(2)));
    let refused = handle.put(pair().1).unwrap_err();
    assert!(matches!(refused.error(), Error::QueueFull), "{refused}");
    rig.until(|rig| rig.manager.stats().commands == COMMANDS_MAX as u64);
    handle
        .put(refused.into_socket())
        .expect("the queue has space, and the refused put kept no permit");
}

#[test]
fn a_full_command_queue_returns_an_error_and_the_socket() {
    let refused = Rc::new(Cell::new(0));
    let count = refused.clone();
    let mut rig = rig(long_deadlines().max_workers(3), move |conn, body| {
        let id = conn.id();
        for _ in 0..COMMANDS_MAX {
            conn.commands().resume(id)?;
        }
        let full = matches!(conn.commands().resume(id), Err(Error::QueueFull));
        let put = conn.commands().put(pair().1).unwrap_err();
        let full = full && matches!(put.error(), Error::QueueFull);
        count.set(count.get() + u32::from(full && matches!(put.into_socket(), Socket::Tcp(_))));
        conn.write_all(body)
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"fill").unwrap();
    assert_eq!(rig.read_exact(&mut client, 4), b"fill");
    assert_eq!(refused.get(), 1);
    rig.until(|rig| rig.manager.stats().commands == COMMANDS_MAX as u64);
    rig.connect();
    rig.connect();
}

#[test]
fn a_reject_with_more_bytes_than_the_socket_takes_fails() {
    let mut rig = echo(long_deadlines().max_workers(1));
    let (_client, _) = rig.connect();
    let (peer, ours) = UnixStream::pair().unwrap();
    let refused = rig.manager.put(ours).unwrap_err();
    let handle = rig.manager.handle();
    let error = handle.reject(refused.into_socket(), &vec![b'x'; 16 << 20]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    drop(peer);
}

#[test]
fn the_number_of_waiting_commands_is_bounded() {
    let mut rig = echo(long_deadlines());
    let (handle, (_client, id)) = (rig.manager.handle(), rig.connect());
    let mut queued = 0;
    for _ in 0..5 {
        queued += (0..=COMMANDS_MAX).take_while(|_| handle.resume(id).is_ok()).count();
        let waiting = queued - rig.manager.stats().commands as usize;
        assert!(waiting <= 2 * COMMANDS_MAX, "{waiting} wait: more than both queues hold");
        rig.turn();
    }
    rig.until(|rig| rig.manager.stats().commands as usize == queued);
}

#[test]
fn callbacks_can_queue_commands_while_many_of_handles_wait() {
    let outcome = Rc::new(RefCell::new(None));
    let results = outcome.clone();
    let mut rig = rig(long_deadlines(), move |conn, _| {
        let id = conn.id();
        *results.borrow_mut() = Some(conn.commands().close(id));
        Ok(())
    });
    let (handle, (mut client, id)) = (rig.manager.handle(), rig.connect());
    for _ in 0..2 {
        while handle.pause(id).is_ok() && handle.resume(id).is_ok() {}
        rig.turn();
    }
    client.write_all(b"go").unwrap();
    rig.requests(1);
    assert!(matches!(*outcome.borrow(), Some(Ok(()))), "{outcome:?}");
}

#[test]
fn stats_are_current_while_running_and_the_last_ones_afterwards() {
    let pool = running(long_deadlines());
    let idle = pool.handle.stats();
    assert_eq!((idle.put, idle.live), (0, 0));
    let (client, _) = pool.connect();
    let busy = pool.handle.stats();
    assert_eq!((busy.put, busy.live, busy.bytes_in, busy.bytes_out), (1, 1, 5, 5));
    assert_eq!(busy.requests(Cause::Drained), 1);
    assert!(pool.handle.stats().turns > busy.turns, "each call takes a new snapshot");
    let handle = pool.handle.clone();
    pool.stop();
    let after = handle.stats();
    assert_eq!((after.put, after.live), (1, 0));
    assert_eq!(after.closed(CloseReason::Stopped), 1);
    assert_eq!(handle.stats(), after);
    drop(client);
}

#[test]
fn stats_are_taken_in_a_turn_after_the_call() {
    let pool = running(long_deadlines());
    let (client, gone) = pool.connect();
    drop(client);
    while pool.handle.stats().live > 0 {}
    let posted = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    pool.handle.close(gone).unwrap();
                    let before = posted.fetch_add(1, Ordering::SeqCst) as u64 + 1;
                    let counted = pool.handle.stats().stale_commands;
                    assert!(
                        counted >= before,
                        "{before} commands before the call, {counted} in the stats"
                    );
                }
            });
        }
    });
    pool.stop();
}

#[test]
fn a_handle_sets_a_configuration_and_refuses_an_invalid_one_at_once() {
    let mut rig = echo(long_deadlines().max_workers(1));
    let (handle, _first) = (rig.manager.handle(), rig.connect());
    let refused = handle.set_config(Config::new().min_workers(5).max_workers(3)).unwrap_err();
    assert!(matches!(refused, Error::Config(_)));
    assert!(refused.to_string().contains('5') && refused.to_string().contains('3'), "{refused}");
    rig.turn();
    assert_eq!((rig.manager.config().max_workers, rig.manager.stats().commands), (Some(1), 0));
    handle.set_config(long_deadlines().max_workers(2)).unwrap();
    assert!(handle.put(pair().1).is_err(), "not before the turn boundary");
    rig.turn();
    assert_eq!(rig.manager.config().max_workers, Some(2));
    handle.put(pair().1).unwrap();
}

/// Queues the command that the body names, for the connection `other`. Echoes any other body.
fn queue_command(conn: &mut Conn<'_>, body: &[u8], other: &Cell<Option<ConnId>>) -> io::Result<()> {
    let Some(other) = other.get() else { return Ok(()) };
    let commands = conn.commands();
    match body {
        b"send" => commands.send(other, b"from a callback")?,
        b"close" => commands.close(other)?,
        b"pause" => commands.pause(other)?,
        b"resume" => commands.resume(other)?,
        b"config" => commands.set_config(long_deadlines().max_workers(7))?,
        b"nonsense" => {
            let refused = commands.set_config(Config::new().min_workers(2).max_workers(1));
            assert!(matches!(refused, Err(Error::Config(_))));
        }
        b"stop" => commands.stop()?,
        body => conn.write_all(body)?,
    }
    Ok(())
}

#[test]
fn callbacks_can_queue_the_commands_that_handles_can() {
    let other = Rc::new(Cell::new(None));
    let target_id = other.clone();
    let mut rig = rig(long_deadlines(), move |conn, body| queue_command(conn, body, &target_id));
    let (mut controller, _) = rig.connect();
    let (mut target, id) = rig.connect();
    other.set(Some(id));
    let mut command = |name: &[u8]| controller.write_all(name).unwrap();
    command(b"send");
    assert_eq!(rig.read_exact(&mut target, 15), b"from a callback");
    command(b"pause");
    rig.until(|rig| rig.manager.stats().commands == 2);
    target.write_all(b"held back").unwrap();
    command(b"config");
    rig.until(|rig| rig.manager.config().max_workers == Some(7));
    command(b"nonsense");
    rig.requests(4);
    assert_eq!(rig.manager.config().max_workers, Some(7));
    assert_eq!(rig.record.requests().len(), 4, "the connection is paused");
    command(b"resume");
    assert_eq!(rig.read_exact(&mut target, 9), b"held back");
    command(b"close");
    assert_eq!(rig.read_to_end(&mut target).unwrap(), b"");
    drop(target);
    assert_eq!(rig.first_close(), CloseReason::Requested);
    command(b"send");
    rig.until(|rig| rig.manager.stats().stale_commands == 1);
    command(b"stop");
    assert_eq!(rig.manager.run().unwrap().idle, 1);
}

#[test]
fn a_socket_put_by_a_callback_is_not_served_inside_the_callback() {
    let (mut client, ours) = client_pair();
    client.write_all(b"early").unwrap();
    let (to_put, inside) = (RefCell::new(Some(ours)), Rc::new(Cell::new(false)));
    let entered = inside.clone();
    let mut rig = rig(long_deadlines(), move |conn, body| {
        assert!(!entered.replace(true), "a callback inside a callback");
        if let Some(socket) = to_put.take() {
            conn.commands().put(socket).unwrap();
        }
        entered.set(false);
        conn.write_all(body)
    });
    let (mut first, _) = rig.connect();
    first.write_all(b"put it").unwrap();
    rig.requests(1);
    assert_eq!(rig.manager.stats().put, 1, "the socket waited for the turn boundary");
    assert_eq!(rig.read_exact(&mut client, 5), b"early");
    assert_eq!(rig.record.open_lives(), 2);
}

#[test]
fn a_put_in_a_callback_is_refused_when_all_workers_are_taken() {
    let outcome = Rc::new(RefCell::new(Vec::new()));
    let results = outcome.clone();
    let mut rig = rig(long_deadlines().max_workers(2), move |conn, _| {
        for _ in 0..2 {
            results.borrow_mut().push(conn.commands().put(pair().1).is_ok());
        }
        Ok(())
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"go").unwrap();
    rig.requests(1);
    assert_eq!(*outcome.borrow(), [true, false]);
}

#[test]
fn a_connection_closed_by_another_callback_gets_no_later_hooks() {
    let other = Rc::new(Cell::new(None));
    let target = other.clone();
    let mut rig = rig(long_deadlines(), move |conn, body| {
        if let Some(target) = target.take() {
            conn.commands().close(target)?;
        }
        conn.write_all(body)
    });
    for _ in 0..20 {
        let ((mut one, _), (mut another, id)) = (rig.connect(), rig.connect());
        rig.turn();
        other.set(Some(id));
        // One batch of events may report both writes.
        one.write_all(b"close the other").unwrap();
        another.write_all(b"speak").unwrap();
        assert_eq!(rig.read_exact(&mut one, 15), b"close the other");
        rig.until(|rig| rig.record.all().contains(&Seen::Closed(id, CloseReason::Requested)));
        // This write may fail, because the other end may be closed.
        let _ = another.write_all(b"speak again");
        drop(one);
        rig.until(|rig| rig.manager.stats().live == 0);
        rig.record.open_lives();
    }
}

#[test]
fn an_abort_by_a_handle_drops_the_output() {
    let mut rig = echo(long_deadlines());
    let (mut client, id) = rig.connect();
    let handle = rig.manager.handle();
    handle.send(id, b"never sent").unwrap();
    handle.abort(id).unwrap();
    handle.send(id, b"returned").unwrap();
    assert_eq!(rig.first_close(), CloseReason::Aborted);
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"");
    let expected = [
        Seen::Opened(id),
        Seen::Undelivered(id, b"returned".to_vec()),
        Seen::Closed(id, CloseReason::Aborted),
    ];
    assert_eq!(rig.record.all(), expected);
    let stats = rig.manager.stats();
    assert_eq!((stats.bytes_out, stats.bytes_unsent, stats.lingering), (0, 10, 0));
}

#[test]
fn an_abort_does_not_wait_for_a_blocked_reply() {
    let mut rig = echo(long_deadlines().write_limit(64 << 20));
    let (_client, id) = rig.connect();
    let handle = rig.manager.handle();
    handle.send(id, vec![0; 32 << 20]).unwrap();
    handle.close(id).unwrap();
    rig.quiet();
    assert_eq!(rig.record.closed(), [], "the close waits until the output is sent");
    handle.abort(id).unwrap();
    assert_eq!(rig.first_close(), CloseReason::Aborted);
    let end = rig.record.ends().remove(0);
    assert_eq!(end.bytes_out + end.bytes_unsent, 32 << 20);
}

#[test]
fn a_callback_aborts_another_connection() {
    let mut first = None;
    let mut rig = rig(long_deadlines(), move |conn: &mut Conn<'_>, body: &[u8]| {
        if let Some(first) = first {
            conn.commands().send(first, b"never sent")?;
            conn.commands().abort(first)?;
        }
        first = first.or(Some(conn.id()));
        conn.write_all(body)
    });
    let [(mut first, id), (mut second, _)] = [(); 2].map(|()| rig.connect());
    first.write_all(b"one").unwrap();
    assert_eq!(rig.read_exact(&mut first, 3), b"one");
    second.write_all(b"two").unwrap();
    assert_eq!(rig.read_exact(&mut second, 3), b"two");
    assert_eq!(rig.first_close(), CloseReason::Aborted);
    let end = rig.record.ends().remove(0);
    assert_eq!((end.id, end.bytes_out, end.bytes_unsent), (id, 3, 10));
    assert_eq!(rig.read_to_end(&mut first).unwrap(), b"");
}
