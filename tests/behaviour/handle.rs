//! What other threads and callbacks can ask for, and when it is done.

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

use crate::support::{PATIENCE, Seen, echo, pair, rig};

const LONG: Duration = Duration::from_secs(600);
const MOST: usize = 65_536;

/// Nothing but commands and peers can wake a loop with this: no deadline comes soon enough.
fn patient() -> Config {
    Config::new().framing(Framing::Drained).clients_deadline(LONG).reap_interval(LONG)
}

/// A manager that runs on a thread of its own, echoes, and tells who spoke first.
struct Loop {
    handle: Handle,
    spoke: Receiver<ConnId>,
    thread: JoinHandle<Result<StopReport, Error>>,
}

fn running(config: Config) -> Loop {
    let (tell, spoke) = channel();
    let mut manager = Manager::new(config, move |conn, body| {
        // The test may have stopped listening.
        let _ = tell.send(conn.id());
        conn.write_all(body)
    })
    .unwrap();
    manager.start().unwrap();
    let handle = manager.handle();
    Loop { handle, spoke, thread: thread::spawn(move || manager.run()) }
}

impl Loop {
    /// A connection that has been served once, with its id.
    fn connect(&self) -> (TcpStream, ConnId) {
        let (mut client, ours) = client_pair();
        self.handle.put(ours).unwrap();
        client.write_all(b"hello").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        (client, self.spoke.recv_timeout(PATIENCE).unwrap())
    }

    fn stop(self) -> StopReport {
        self.handle.stop().unwrap();
        self.thread.join().unwrap().unwrap()
    }
}

/// A pair whose client gives up after a while.
fn client_pair() -> (TcpStream, TcpStream) {
    let (client, ours) = pair();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
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
fn a_socket_put_from_another_thread_is_served_by_a_loop_that_waits() {
    let pool = running(patient());
    for _ in 0..50 {
        pool.connect();
    }
    let report = pool.stop();
    assert_eq!(report.aborted, 0);
}

#[test]
fn threads_that_race_for_the_last_places_get_exactly_as_many_as_there_are() {
    for _ in 0..20 {
        let mut rig = echo(patient().max_workers(13));
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
        assert_eq!(taken, 13, "before the loop has turn_ended once");
        rig.turn();
        assert_eq!((rig.manager.stats().put, rig.manager.stats().peak), (13, 13));
        rig.until(|rig| rig.manager.stats().live == 0);
        assert_eq!((0..14).filter(|_| handle.put(pair().1).is_ok()).count(), 13, "all free again");
    }
}

#[test]
fn busy_is_said_at_once_names_the_maximum_and_gives_the_socket_back() {
    let mut rig = echo(patient().max_workers(1));
    let _first = rig.connect();
    let (mut client, ours) = client_pair();
    client.write_all(b"unread").unwrap();
    let refused = rig.manager.handle().put(ours).unwrap_err();
    assert!(refused.is_busy());
    assert!(matches!(refused.error(), Error::Busy { max_workers: 1 }));
    let said = refused.to_string();
    assert!(said.starts_with("can't put, pool is busy") && said.contains("all 1 "), "{said}");
    let Socket::Tcp(mut ours) = refused.into_socket() else { panic!("it was put as TCP") };
    let mut got = [0; 6];
    ours.read_exact(&mut got).expect("nothing was read from it, and it blocks");
    assert_eq!(&got, b"unread");
}

#[test]
fn every_refusal_is_counted_whoever_was_refused() {
    let refused_inside = Rc::new(Cell::new(false));
    let refused = refused_inside.clone();
    let mut rig = rig(patient().max_workers(1), move |conn, _| {
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
fn the_last_word_of_a_refusal_survives_unread_input() {
    let pool = running(patient().max_workers(1));
    let first = pool.connect();
    for _ in 0..50 {
        let (mut client, ours) = client_pair();
        client.write_all(&vec![b'x'; 10_000]).unwrap();
        let refused = pool.handle.put(ours).unwrap_err().into_socket();
        pool.handle.reject(refused, ERROR_SERVER_BUSY.as_bytes()).unwrap();
        client.write_all(&vec![b'y'; 10_000]).unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).expect("no reset");
        assert_eq!(said, ERROR_SERVER_BUSY);
    }
    drop(first);
    pool.stop();
}

#[test]
fn commands_reach_the_connection_they_name_and_no_other() {
    let mut rig = echo(patient());
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
fn commands_are_carried_out_in_the_order_they_were_given() {
    let mut rig = echo(patient());
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    let mut expected = Vec::new();
    for number in 0..5_000_u32 {
        handle.send(id, number.to_be_bytes()).unwrap();
        expected.extend(number.to_be_bytes());
    }
    handle.close(id).unwrap();
    assert!(rig.read_to_end(&mut client).unwrap() == expected, "more commands than a turn does");
}

#[test]
fn what_is_sent_behind_a_close_does_not_go_out() {
    let mut rig = echo(patient());
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    handle.send(id, b"in time").unwrap();
    handle.close(id).unwrap();
    handle.send(id, b", too late").unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"in time");
}

#[test]
fn a_send_larger_than_the_write_limit_closes_the_connection() {
    let mut rig = echo(patient().write_limit(100));
    let (_client, id) = rig.connect();
    rig.manager.handle().send(id, [0; 100]).unwrap();
    rig.turn();
    assert_eq!(rig.record.closed(), []);
    rig.manager.handle().send(id, [0; 101]).unwrap();
    assert_eq!(rig.first_close(), CloseReason::WriteLimit);
}

#[test]
fn a_paused_connection_is_not_served_until_it_is_resumed() {
    let mut rig = echo(patient());
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
    assert_eq!(rig.read_exact(&mut client, 10), b"spoken to ", "it can still be written to");
    assert_eq!(rig.record.requests(), [], "but that does not have it read");
    handle.resume(id).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"held back", "no further byte woke it");
}

#[test]
fn a_paused_connection_can_be_closed() {
    let mut rig = echo(patient());
    let handle = rig.manager.handle();
    let (mut client, id) = rig.connect();
    handle.pause(id).unwrap();
    handle.send(id, b"bye").unwrap();
    handle.close(id).unwrap();
    assert_eq!(rig.read_to_end(&mut client).unwrap(), b"bye");
}

#[test]
fn a_stale_id_is_a_counted_no_op() {
    let mut rig = echo(patient());
    let handle = rig.manager.handle();
    let (client, stale) = rig.connect();
    drop(client);
    rig.first_close();
    let (mut successor, _) = rig.connect();
    handle.send(stale, b"for the dead").unwrap();
    handle.close(stale).unwrap();
    handle.pause(stale).unwrap();
    handle.resume(stale).unwrap();
    rig.turn();
    let stats = rig.manager.stats();
    assert_eq!((stats.commands, stats.stale_commands), (4, 4));
    successor.write_all(b"unharmed").unwrap();
    assert_eq!(rig.read_exact(&mut successor, 8), b"unharmed");
}

#[test]
fn no_wake_is_lost() {
    let pool = running(patient());
    let clients: Vec<(TcpStream, ConnId)> = (0..4).map(|_| pool.connect()).collect();
    thread::scope(|scope| {
        for (mut client, id) in clients {
            let handle = pool.handle.clone();
            scope.spawn(move || {
                for number in 0..2_000_u32 {
                    handle.send(id, number.to_be_bytes()).unwrap();
                    // Now and then the loop falls asleep between two commands, else not.
                    if number % 8 == 0 {
                        continue;
                    }
                    let mut got = vec![0; if number % 8 == 1 { 8 } else { 4 }];
                    client.read_exact(&mut got).expect("every command is carried out");
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
    let mut rig = echo(patient());
    let (_client, id) = rig.connect();
    rig.turn();
    let handle = rig.manager.handle();
    for _ in 0..1_000 {
        handle.send(id, b"x").unwrap();
    }
    assert_eq!(rig.turn().events, 1, "the waker's");
    assert_eq!(rig.turn().events, 0);
    assert_eq!(rig.manager.stats().commands, 1_000);
}

#[test]
fn a_handle_outlives_its_manager() {
    let mut rig = echo(patient());
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
    handle.reject(refused.into_socket(), b"nobody home").unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert_eq!(said, "nobody home");
    assert_eq!((handle.stats().put, handle.stats().live), (1, 0), "the last snapshot");
}

#[test]
fn sockets_still_queued_at_a_stop_are_closed_once_and_their_places_are_free_again() {
    let drops = Arc::new(AtomicUsize::new(0));
    let mut rig = echo(patient().max_workers(3));
    let handle = rig.manager.handle();
    for lap in 1..=3 {
        let peers: Vec<UnixStream> = (0..3)
            .map(|_| {
                let (peer, ours) = counted(&drops);
                handle.put(ours).expect("a place is free");
                peer
            })
            .collect();
        assert!(handle.put(pair().1).is_err(), "all taken");
        rig.manager.stop().unwrap();
        for mut peer in peers {
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        }
        assert_eq!(drops.load(Ordering::Relaxed), 3 * lap);
        assert_eq!(rig.record.open_lives(), 0);
        rig.manager.start().unwrap();
    }
}

#[test]
fn a_socket_queued_behind_a_stop_is_closed() {
    let drops = Arc::new(AtomicUsize::new(0));
    let mut rig = echo(patient().max_workers(1));
    let handle = rig.manager.handle();
    handle.stop().unwrap();
    let (mut peer, ours) = counted(&drops);
    handle.put(ours).expect("the stop has not begun");
    rig.manager.run().unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    assert_eq!((drops.load(Ordering::Relaxed), rig.manager.stats().put), (1, 0));
    rig.manager.start().unwrap();
    rig.manager.put(pair().1).expect("its place is free");
}

#[test]
fn a_queue_that_is_full_says_so_and_gives_sockets_back() {
    let mut rig = echo(patient().max_workers(1));
    let (handle, (_client, id)) = (rig.manager.handle(), rig.connect());
    for _ in 0..MOST {
        handle.resume(id).unwrap();
    }
    assert!(matches!(handle.resume(id), Err(Error::QueueFull)));
    drop(rig.manager.set_config(patient().max_workers(2)));
    let refused = handle.put(pair().1).unwrap_err();
    assert!(matches!(refused.error(), Error::QueueFull), "{refused}");
    rig.until(|rig| rig.manager.stats().commands == MOST as u64);
    handle.put(refused.into_socket()).expect("there is room, and the place was not kept");
}

#[test]
fn a_callback_s_queue_that_is_full_says_so_and_gives_sockets_back() {
    let refused = Rc::new(Cell::new(0));
    let count = refused.clone();
    let mut rig = rig(patient().max_workers(3), move |conn, body| {
        let id = conn.id();
        for _ in 0..MOST {
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
    rig.until(|rig| rig.manager.stats().commands == MOST as u64);
    rig.connect();
    rig.connect();
}

#[test]
fn a_last_word_that_does_not_fit_says_so() {
    let mut rig = echo(patient().max_workers(1));
    let (_client, _) = rig.connect();
    let (peer, ours) = UnixStream::pair().unwrap();
    let refused = rig.manager.put(ours).unwrap_err();
    let handle = rig.manager.handle();
    let error = handle.reject(refused.into_socket(), &vec![b'x'; 16 << 20]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    drop(peer);
}

#[test]
fn however_fast_commands_come_the_number_that_waits_is_bounded() {
    let mut rig = echo(patient());
    let (handle, (_client, id)) = (rig.manager.handle(), rig.connect());
    let mut queued = 0;
    for _ in 0..5 {
        queued += (0..=MOST).take_while(|_| handle.resume(id).is_ok()).count();
        let waiting = queued - rig.manager.stats().commands as usize;
        assert!(waiting <= 2 * MOST, "{waiting}: more than are in hand and in the queue");
        rig.turn();
    }
    rig.until(|rig| rig.manager.stats().commands as usize == queued);
}

#[test]
fn callbacks_can_give_commands_however_many_of_others_wait() {
    let outcome = Rc::new(RefCell::new(None));
    let told = outcome.clone();
    let mut rig = rig(patient(), move |conn, _| {
        let id = conn.id();
        *told.borrow_mut() = Some(conn.commands().close(id));
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
fn stats_are_fresh_while_it_runs_and_the_last_ones_after() {
    let pool = running(patient());
    let idle = pool.handle.stats();
    assert_eq!((idle.put, idle.live), (0, 0));
    let (client, _) = pool.connect();
    let busy = pool.handle.stats();
    assert_eq!((busy.put, busy.live, busy.bytes_in, busy.bytes_out), (1, 1, 5, 5));
    assert_eq!(busy.requests(Cause::Drained), 1);
    assert!(pool.handle.stats().turns > busy.turns, "each is a new one");
    let handle = pool.handle.clone();
    pool.stop();
    let after = handle.stats();
    assert_eq!((after.put, after.live), (1, 0));
    assert_eq!(after.closed(CloseReason::Stopped), 1);
    assert_eq!(handle.stats(), after);
    drop(client);
}

#[test]
fn stats_are_those_of_a_turn_after_they_were_asked_for() {
    let pool = running(patient());
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
                    assert!(counted >= before, "{before} commands, and then the stats: {counted}");
                }
            });
        }
    });
    pool.stop();
}

#[test]
fn a_configuration_set_by_a_handle_takes_effect_and_an_invalid_one_is_refused_at_once() {
    let mut rig = echo(patient().max_workers(1));
    let (handle, _first) = (rig.manager.handle(), rig.connect());
    let refused = handle.set_config(Config::new().min_workers(5).max_workers(3)).unwrap_err();
    assert!(matches!(refused, Error::Config(_)));
    assert!(refused.to_string().contains('5') && refused.to_string().contains('3'), "{refused}");
    rig.turn();
    assert_eq!((rig.manager.config().max_workers, rig.manager.stats().commands), (1, 0));
    handle.set_config(patient().max_workers(2)).unwrap();
    assert!(handle.put(pair().1).is_err(), "not before the turn boundary");
    rig.turn();
    assert_eq!(rig.manager.config().max_workers, 2);
    handle.put(pair().1).unwrap();
}

/// What a connection's callback asks the commands for is asked for by what its peer sends.
fn desk_clerk(conn: &mut Conn<'_>, body: &[u8], other: &Cell<Option<ConnId>>) -> io::Result<()> {
    let Some(other) = other.get() else { return Ok(()) };
    let commands = conn.commands();
    match body {
        b"send" => commands.send(other, b"from a callback")?,
        b"close" => commands.close(other)?,
        b"pause" => commands.pause(other)?,
        b"resume" => commands.resume(other)?,
        b"config" => commands.set_config(patient().max_workers(7))?,
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
fn callbacks_can_ask_for_what_handles_can() {
    let other = Rc::new(Cell::new(None));
    let of = other.clone();
    let mut rig = rig(patient(), move |conn, body| desk_clerk(conn, body, &of));
    let (mut boss, _) = rig.connect();
    let (mut clerk, id) = rig.connect();
    other.set(Some(id));
    let mut ask = |what: &[u8]| boss.write_all(what).unwrap();
    ask(b"send");
    assert_eq!(rig.read_exact(&mut clerk, 15), b"from a callback");
    ask(b"pause");
    rig.until(|rig| rig.manager.stats().commands == 2);
    clerk.write_all(b"held back").unwrap();
    ask(b"config");
    rig.until(|rig| rig.manager.config().max_workers == 7);
    ask(b"nonsense");
    rig.requests(4);
    assert_eq!(rig.manager.config().max_workers, 7);
    assert_eq!(rig.record.requests().len(), 4, "paused");
    ask(b"resume");
    assert_eq!(rig.read_exact(&mut clerk, 9), b"held back");
    ask(b"close");
    assert_eq!(rig.read_to_end(&mut clerk).unwrap(), b"");
    drop(clerk);
    assert_eq!(rig.first_close(), CloseReason::Requested);
    ask(b"send");
    rig.until(|rig| rig.manager.stats().stale_commands == 1);
    ask(b"stop");
    assert_eq!(rig.manager.run().unwrap().idle, 1);
}

#[test]
fn a_socket_put_by_a_callback_is_not_served_inside_it() {
    let (mut client, ours) = client_pair();
    client.write_all(b"early").unwrap();
    let (given, inside) = (RefCell::new(Some(ours)), Rc::new(Cell::new(false)));
    let entered = inside.clone();
    let mut rig = rig(patient(), move |conn, body| {
        assert!(!entered.replace(true), "a callback inside a callback");
        if let Some(socket) = given.take() {
            conn.commands().put(socket).unwrap();
        }
        entered.set(false);
        conn.write_all(body)
    });
    let (mut first, _) = rig.connect();
    first.write_all(b"put it").unwrap();
    rig.requests(1);
    assert_eq!(rig.manager.stats().put, 1, "it waits for the turn boundary");
    assert_eq!(rig.read_exact(&mut client, 5), b"early");
    assert_eq!(rig.record.open_lives(), 2);
}

#[test]
fn a_callback_s_put_is_refused_when_all_places_are_taken_its_own_included() {
    let outcome = Rc::new(RefCell::new(Vec::new()));
    let told = outcome.clone();
    let mut rig = rig(patient().max_workers(2), move |conn, _| {
        for _ in 0..2 {
            told.borrow_mut().push(conn.commands().put(pair().1).is_ok());
        }
        Ok(())
    });
    let (mut client, _) = rig.connect();
    client.write_all(b"go").unwrap();
    rig.requests(1);
    assert_eq!(*outcome.borrow(), [true, false]);
}

#[test]
fn a_connection_closed_by_another_s_callback_is_not_heard_of_after_it() {
    let other = Rc::new(Cell::new(None));
    let victim = other.clone();
    let mut rig = rig(patient(), move |conn, body| {
        if let Some(victim) = victim.take() {
            conn.commands().close(victim)?;
        }
        conn.write_all(body)
    });
    for _ in 0..20 {
        let ((mut one, _), (mut another, id)) = (rig.connect(), rig.connect());
        rig.turn();
        other.set(Some(id));
        // Both are in the same batch of events.
        one.write_all(b"close the other").unwrap();
        another.write_all(b"speak").unwrap();
        assert_eq!(rig.read_exact(&mut one, 15), b"close the other");
        rig.until(|rig| rig.record.all().contains(&Seen::Closed(id, CloseReason::Requested)));
        // It cannot be told whether it fails: the other end may be gone.
        let _ = another.write_all(b"speak again");
        drop(one);
        rig.until(|rig| rig.manager.stats().live == 0);
        rig.record.open_lives();
    }
}
