//! Control of a running manager: access to the handler between turns, notifications, the hook
//! `stopping`, and stops by a signal.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use pool_manager::{Commands, Config, Conn, ConnId, Error, Framing, Handler, Manager};

use crate::support::{TIMEOUT, pair, turn_until};

/// A handler that counts the calls of its hooks. When a stop begins, it sends a last line to every
/// connection that it has opened.
#[derive(Default)]
struct Counter {
    open: Vec<ConnId>,
    requests: usize,
    notified: usize,
    stopping: usize,
    /// For each call of `request`, the time that `Conn` reports and the time that `Commands`
    /// reports.
    times: Vec<(Duration, Duration)>,
}

impl Handler for Counter {
    type Session = ();

    fn opened(&mut self, conn: &mut Conn<'_>) -> io::Result<()> {
        self.open.push(conn.id());
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self.requests += 1;
        self.times.push((conn.now(), conn.commands().now()));
        conn.write_all(body)
    }

    fn notified(&mut self, _: &mut Commands) {
        self.notified += 1;
    }

    fn stopping(&mut self, commands: &mut Commands) {
        self.stopping += 1;
        for &id in &self.open {
            commands.send(id, "goodbye\n").expect("the queue is not full");
        }
    }
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n')).clients_deadline(TIMEOUT)
}

fn started(config: Config) -> Manager<Counter> {
    let mut manager = Manager::with_handler(config, Counter::default()).unwrap();
    manager.start().unwrap();
    manager
}

fn turn(manager: &mut Manager<Counter>) {
    manager.turn(Some(Duration::ZERO)).unwrap();
}

#[test]
fn the_handler_can_be_read_and_changed_between_turns() {
    let mut manager = started(lines());
    manager.handler_mut().requests = 41;
    let (mut client, ours) = pair();
    manager.put(ours).unwrap();
    client.write_all(b"one\n").unwrap();
    turn_until(&mut manager, |manager| manager.handler().requests == 42);
}

#[test]
fn many_notifications_call_the_hook_once() {
    let mut manager = started(lines());
    let handle = manager.handle();
    for _ in 0..1_000 {
        handle.notify().unwrap();
    }
    assert_eq!(manager.next_timeout(), Some(Duration::ZERO));
    turn(&mut manager);
    assert_eq!(manager.handler().notified, 1);
    turn(&mut manager);
    assert_eq!(manager.handler().notified, 1, "one call for all notifications");
    handle.notify().unwrap();
    turn(&mut manager);
    assert_eq!(manager.handler().notified, 2);
}

#[test]
fn a_notification_wakes_a_loop_that_waits() {
    let mut manager = started(lines());
    let handle = manager.handle();
    let waiting = manager.handle();
    let sender = thread::spawn(move || {
        // This call returns after a turn has published the stats. When the notification is sent,
        // the loop therefore waits in its next turn or is about to wait.
        let _ = waiting.stats();
        handle.notify().unwrap();
    });
    while manager.handler().notified == 0 {
        manager.turn(Some(TIMEOUT)).unwrap();
    }
    sender.join().unwrap();
}

#[test]
fn a_notification_takes_no_room_in_the_command_queue() {
    let mut manager = started(lines());
    let handle = manager.handle();
    let closed = closed_id(&mut manager);
    while handle.send(closed, "x").is_ok() {}
    handle.notify().unwrap();
    turn(&mut manager);
    assert_eq!(manager.handler().notified, 1);
}

/// Returns the id of a connection whose client has closed.
fn closed_id(manager: &mut Manager<Counter>) -> ConnId {
    let (client, ours) = pair();
    let id = manager.put(ours).unwrap();
    drop(client);
    id
}

#[test]
fn a_notification_needs_a_manager_that_runs() {
    let mut manager = Manager::with_handler(lines(), Counter::default()).unwrap();
    let handle = manager.handle();
    assert!(matches!(handle.notify(), Err(Error::NotRunning)));
    manager.start().unwrap();
    handle.notify().unwrap();
    manager.stop().unwrap();
    assert!(matches!(handle.notify(), Err(Error::NotRunning)));
    manager.start().unwrap();
    turn(&mut manager);
    assert_eq!(manager.handler().notified, 0, "a stop discards notifications");
    drop(manager);
    assert!(matches!(handle.notify(), Err(Error::Dropped)));
}

#[test]
fn all_callbacks_of_a_turn_see_the_same_time() {
    let mut manager = started(lines());
    let (mut client, ours) = pair();
    manager.put(ours).unwrap();
    client.write_all(b"one\ntwo\n").unwrap();
    turn_until(&mut manager, |manager| manager.handler().requests == 2);
    let first = manager.handler().times.clone();
    assert!(first[0].0 == first[0].1 && first[0] == first[1], "{first:?}");
    thread::sleep(Duration::from_millis(5));
    client.write_all(b"three\n").unwrap();
    turn_until(&mut manager, |manager| manager.handler().requests == 3);
    let third = manager.handler().times[2];
    assert!(third.0 >= first[0].0 + Duration::from_millis(4), "{third:?} after {first:?}");
}

#[test]
fn idle_clients_get_a_last_message_when_the_manager_stops() {
    let mut manager = started(lines());
    let mut clients: Vec<_> = (0..3)
        .map(|_| {
            let (client, ours) = pair();
            manager.put(ours).unwrap();
            client
        })
        .collect();
    let report = manager.stop().unwrap();
    assert_eq!((report.aborted, report.unsent_bytes), (0, 0), "{report}");
    assert_eq!(manager.handler().stopping, 1);
    for client in &mut clients {
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert_eq!(said, "goodbye\n");
    }
}

#[test]
fn stopping_is_called_once_for_each_stop() {
    let mut manager = started(lines());
    let (_client, ours) = pair();
    manager.put(ours).unwrap();
    let handle = manager.handle();
    handle.stop().unwrap();
    handle.stop().unwrap();
    manager.run().unwrap();
    assert_eq!(manager.handler().stopping, 1);
    manager.handler_mut().open.clear();
    manager.start().unwrap();
    manager.stop().unwrap();
    assert_eq!(manager.handler().stopping, 2);
    manager.start().unwrap();
    drop(manager);
}

#[test]
fn a_signal_begins_a_graceful_stop() {
    for before_start in [false, true] {
        let (read, mut write) = UnixStream::pair().unwrap();
        let mut manager = Manager::with_handler(lines(), Counter::default()).unwrap();
        if before_start {
            manager.stop_on(read).unwrap();
            manager.start().unwrap();
        } else {
            manager.start().unwrap();
            manager.stop_on(read).unwrap();
        }
        let (mut client, ours) = pair();
        manager.put(ours).unwrap();
        turn(&mut manager);
        write.write_all(&[15, 15]).unwrap();
        let report = manager.run().unwrap();
        assert_eq!((report.aborted, manager.handler().stopping), (0, 1), "{report}");
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert_eq!(said, "goodbye\n");
    }
}

/// Returns a manager that holds half a request, the client, and the write end of a signal source.
fn with_half_a_request() -> (Manager<Counter>, TcpStream, UnixStream) {
    let mut manager = started(lines());
    let (read, write) = UnixStream::pair().unwrap();
    manager.stop_on(read).unwrap();
    let (mut client, ours) = pair();
    manager.put(ours).unwrap();
    client.write_all(b"half a request").unwrap();
    turn_until(&mut manager, |manager| manager.stats().bytes_in == 14);
    (manager, client, write)
}

#[test]
fn a_second_signal_in_a_later_turn_completes_the_stop_at_once() {
    let (mut manager, _client, mut write) = with_half_a_request();
    write.write_all(&[15]).unwrap();
    turn_until(&mut manager, |manager| manager.handler().stopping == 1);
    assert_eq!(manager.stats().live, 1, "the stop waits for the unfinished request");
    write.write_all(&[15]).unwrap();
    let report = manager.run().unwrap();
    assert_eq!((report.aborted, report.dropped_bytes), (1, 14), "{report}");
}

#[test]
fn a_signal_in_the_turn_in_which_a_command_begins_a_stop_is_the_same_stop() {
    let (mut manager, mut client, mut write) = with_half_a_request();
    write.write_all(&[15]).unwrap();
    manager.handle().stop().unwrap();
    turn_until(&mut manager, |manager| manager.handler().stopping == 1);
    assert_eq!(manager.stats().live, 1, "the request in progress may finish");
    client.write_all(b" and the rest\n").unwrap();
    let report = manager.run().unwrap();
    assert_eq!((report.finished, report.aborted), (1, 0), "{report}");
}

#[test]
fn the_end_of_file_of_a_signal_source_stops_nothing() {
    let mut manager = started(lines());
    let (read, mut write) = UnixStream::pair().unwrap();
    manager.stop_on(read).unwrap();
    write.shutdown(Shutdown::Write).unwrap();
    write.set_nonblocking(true).unwrap();
    turn_until(&mut manager, |_| write.read(&mut [0]).is_ok_and(|count| count == 0));
    for _ in 0..3 {
        assert!(manager.turn(Some(Duration::ZERO)).unwrap().stopped.is_none());
        assert_eq!(manager.next_timeout(), None, "no timer is armed");
    }
    assert_eq!(manager.handler().stopping, 0);
}

#[test]
fn a_signal_source_outlives_a_stop_and_listeners_that_are_taken() {
    let mut manager = started(lines());
    let (read, mut write) = UnixStream::pair().unwrap();
    manager.stop_on(read).unwrap();
    for round in 1..=3 {
        manager.listen("127.0.0.1:0").unwrap();
        assert_eq!(manager.take_listeners().len(), 1);
        manager.listen("127.0.0.1:0").unwrap();
        write.write_all(&[15]).unwrap();
        manager.run().unwrap();
        assert_eq!(manager.handler().stopping, round);
        manager.start().unwrap();
    }
}

#[test]
fn a_signal_that_came_while_stopped_counts_for_the_next_start() {
    let mut manager = started(lines());
    let (read, mut write) = UnixStream::pair().unwrap();
    manager.stop_on(read).unwrap();
    manager.stop().unwrap();
    write.write_all(&[15]).unwrap();
    manager.start().unwrap();
    manager.run().unwrap();
    assert_eq!(manager.handler().stopping, 2);
}
