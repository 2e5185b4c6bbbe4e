//! The hooks `undelivered`, `turn_ended`, `blocked` and `flushed`.

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use pool_manager::{
    Cause, CloseReason, Commands, Config, Conn, ConnId, Framing, Handle, Handler, Manager,
};

use crate::support::{pair, turn_until};

/// A hook call that a handler has recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Request(Vec<u8>),
    Closed(ConnId),
    Undelivered(ConnId, Vec<u8>),
    TurnEnded,
}

use Call::{Closed, Request, TurnEnded, Undelivered};

#[derive(Clone, Default)]
struct Recorder {
    calls: Rc<RefCell<Vec<Call>>>,
    /// The next `turn_ended` sends this many single bytes to this connection.
    to_send: Rc<RefCell<Option<(ConnId, usize)>>>,
    panics: bool,
}

impl Recorder {
    fn record(&self, call: Call) {
        self.calls.borrow_mut().push(call);
    }

    /// Returns all calls but those of `turn_ended`.
    fn connection_calls(&self) -> Vec<Call> {
        self.calls.borrow().iter().filter(|call| **call != TurnEnded).cloned().collect()
    }
}

impl Handler for Recorder {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self.record(Request(body.into()));
        conn.write_all(body)
    }

    fn closed(&mut self, closed: &pool_manager::Closed, _: Option<()>, _: &mut Commands) {
        self.record(Closed(closed.id));
    }

    fn undelivered(&mut self, id: ConnId, bytes: Vec<u8>, _: &mut Commands) {
        self.record(Undelivered(id, bytes));
        assert!(!self.panics, "a test panic");
    }

    fn turn_ended(&mut self, commands: &mut Commands) {
        self.record(TurnEnded);
        if let Some((id, times)) = self.to_send.take() {
            let before = commands.queued();
            (0..times).for_each(|_| commands.send(id, b"!").unwrap());
            assert_eq!(commands.queued(), before + times);
        }
        assert!(!self.panics, "a test panic");
    }
}

fn started(recorder: &Recorder, config: Config) -> (Manager<Recorder>, Handle) {
    let mut manager = Manager::with_handler(config, recorder.clone()).unwrap();
    manager.start().unwrap();
    let handle = manager.handle();
    (manager, handle)
}

fn put(manager: &mut Manager<Recorder>) -> (TcpStream, ConnId) {
    let (client, ours) = pair();
    (client, manager.put(ours).unwrap())
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n'))
}

#[test]
fn bytes_sent_to_a_closed_connection_are_returned() {
    let recorder = Recorder::default();
    let (mut manager, handle) = started(&recorder, lines());
    let (_client, id) = put(&mut manager);
    handle.send(id, b"in time").unwrap();
    handle.close(id).unwrap();
    handle.send(id, b"behind a close").unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    handle.send(id, b"too late").unwrap();
    turn_until(&mut manager, |manager| manager.stats().stale_commands == 1);
    let expected = [
        Undelivered(id, b"behind a close".into()),
        Closed(id),
        Undelivered(id, b"too late".into()),
    ];
    assert_eq!(recorder.connection_calls(), expected);
    assert_eq!((manager.stats().bytes_out, manager.stats().bytes_unsent), (7, 0));
}

#[test]
fn bytes_beyond_the_write_limit_are_returned() {
    let recorder = Recorder::default();
    let (mut manager, handle) = started(&recorder, lines().write_limit(100));
    let (_client, id) = put(&mut manager);
    handle.send(id, [0; 60]).unwrap();
    handle.send(id, [1; 60]).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert_eq!(recorder.connection_calls(), [Undelivered(id, vec![1; 60]), Closed(id)]);
    assert_eq!(manager.stats().closed(CloseReason::WriteLimit), 1);
    assert_eq!(
        manager.stats().bytes_unsent,
        60,
        "the bytes of the first send are counted as unsent"
    );
}

#[test]
fn bytes_still_queued_at_a_stop_are_returned() {
    let recorder = Recorder::default();
    let (mut manager, handle) = started(&recorder, lines().stop_deadline(Duration::ZERO));
    let (_client, id) = put(&mut manager);
    handle.send(id, b"too late").unwrap();
    manager.stop().unwrap();
    assert_eq!(recorder.connection_calls(), [Closed(id), Undelivered(id, b"too late".into())]);
    drop(manager);
    assert_eq!(recorder.connection_calls().len(), 2, "returned once");
}

#[test]
fn turn_ended_runs_once_per_turn_after_all_requests() {
    let recorder = Recorder::default();
    let (mut manager, _) = started(&recorder, lines());
    let mut peers: Vec<_> = (0..3).map(|_| put(&mut manager)).collect();
    for (client, _) in &mut peers {
        client.write_all(b"one\ntwo\n").unwrap();
    }
    turn_until(&mut manager, |manager| manager.stats().requests_total() == 6);
    let calls = recorder.calls.borrow();
    assert_eq!(
        calls.iter().filter(|call| **call == TurnEnded).count() as u64,
        manager.stats().turns
    );
    assert_eq!(calls.last(), Some(&TurnEnded));
    let together = calls.split(|call| *call == TurnEnded).map(<[Call]>::len).max();
    assert!(together >= Some(2), "a turn serves several requests: {calls:?}");
}

#[test]
fn commands_of_turn_ended_run_in_the_next_turn_without_a_wait() {
    let recorder = Recorder::default();
    let (mut manager, _) = started(&recorder, lines());
    let (_client, id) = put(&mut manager);
    *recorder.to_send.borrow_mut() = Some((id, 1_500));
    manager.turn(Some(Duration::ZERO)).unwrap();
    for sent in [1_024, 1_500] {
        manager.turn(None).unwrap();
        assert_eq!(manager.stats().bytes_out, sent, "1,024 commands per turn");
        assert_eq!(manager.next_timeout() == Some(Duration::ZERO), sent < 1_500);
    }
}

#[test]
fn panics_in_these_hooks_close_no_connection() {
    let recorder = Recorder { panics: true, ..Recorder::default() };
    let (mut manager, handle) = started(&recorder, lines());
    let (_client, closed_id) = put(&mut manager);
    handle.close(closed_id).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let (mut client, _) = put(&mut manager);
    handle.send(closed_id, b"too late").unwrap();
    client.write_all(b"hello\n").unwrap();
    turn_until(&mut manager, |manager| manager.stats().bytes_out == 5);
    let stats = manager.stats();
    assert_eq!((stats.live, stats.panics), (1, stats.turns + 1));
    assert_eq!(stats.closed_total(), 1);
}

/// An action that the `blocked` hook takes.
type Action = fn(&mut Conn<'_>) -> io::Result<()>;

/// Length of a reply that is larger than the buffer of a Unix socket, but smaller than two such
/// buffers.
const MORE: usize = 256 << 10;

/// Replies with more bytes than a socket buffer holds. Records the causes of `blocked` and
/// `flushed`.
#[derive(Default)]
struct LongReplies {
    causes: Rc<RefCell<Vec<Cause>>>,
    on_blocked: Option<Action>,
}

impl Handler for LongReplies {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        let length = match body {
            b"much" => 32 << 20,
            b"more" => MORE,
            _ => 3,
        };
        conn.write_all(&vec![b'x'; length])
    }

    fn blocked(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.causes.borrow_mut().push(conn.cause());
        self.on_blocked.map_or(Ok(()), |action| action(conn))
    }

    fn flushed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.causes.borrow_mut().push(conn.cause());
        Ok(())
    }
}

fn start_long_replies(handler: LongReplies) -> (Manager<LongReplies>, TcpStream) {
    let long = Duration::from_secs(600);
    let config =
        Config::new().framing(Framing::Drained).write_limit(64 << 20).clients_deadline(long);
    let mut manager = Manager::with_handler(config, handler).unwrap();
    manager.start().unwrap();
    let (client, ours) = pair();
    manager.put(ours).unwrap();
    (manager, client)
}

#[test]
fn blocked_and_flushed_run_once_for_each_reply_that_has_to_wait() {
    let causes = Rc::<RefCell<Vec<Cause>>>::default();
    let (mut manager, mut client) =
        start_long_replies(LongReplies { causes: causes.clone(), on_blocked: None });
    client.write_all(b"few").unwrap();
    turn_until(&mut manager, |manager| manager.stats().bytes_out == 3);
    assert_eq!(*causes.borrow(), [], "no hook for a reply that is sent at once");
    for round in 1..=2 {
        client.write_all(b"much").unwrap();
        turn_until(&mut manager, |_| causes.borrow().len() == 2 * round - 1);
        for _ in 0..5 {
            manager.turn(Some(Duration::from_millis(1))).unwrap();
        }
        assert_eq!(causes.borrow().len(), 2 * round - 1, "called once");
        client.set_nonblocking(true).unwrap();
        let mut discarded = vec![0; 1 << 20];
        turn_until(&mut manager, |_| {
            while matches!(io::Read::read(&mut client, &mut discarded), Ok(1..)) {}
            causes.borrow().len() == 2 * round
        });
        client.set_nonblocking(false).unwrap();
    }
    assert_eq!(*causes.borrow(), [Cause::Blocked, Cause::Flushed].repeat(2));
}

#[test]
fn an_abort_an_error_or_a_panic_in_blocked_takes_effect() {
    let cases: [(Action, CloseReason); 4] = [
        (
            |conn| {
                conn.abort();
                Ok(())
            },
            CloseReason::Aborted,
        ),
        (|_| Err(io::ErrorKind::Other.into()), CloseReason::Failed),
        (|_| panic!("a test panic"), CloseReason::Panicked),
        // `write_limit` applies in this hook as well.
        (|conn| conn.write_all(&vec![b'y'; 60 << 20]), CloseReason::WriteLimit),
    ];
    for (action, reason) in cases {
        let seen = Rc::<RefCell<Vec<Cause>>>::default();
        let (mut manager, mut client) =
            start_long_replies(LongReplies { causes: seen.clone(), on_blocked: Some(action) });
        client.write_all(b"much").unwrap();
        turn_until(&mut manager, |_| !seen.borrow().is_empty());
        // `abort` and the write limit close at once. An error and a panic close after the reply is
        // sent.
        let waits = matches!(reason, CloseReason::Failed | CloseReason::Panicked);
        assert_eq!(
            manager.stats().live,
            usize::from(waits) as u64,
            "{reason}: closed in the same turn unless the reply is sent first"
        );
        client.set_nonblocking(true).unwrap();
        let mut discarded = vec![0; 1 << 20];
        turn_until(&mut manager, |manager| {
            while waits && matches!(io::Read::read(&mut client, &mut discarded), Ok(1..)) {}
            manager.stats().live == 0
        });
        assert_eq!(manager.stats().closed(reason), 1, "{reason}: {}", manager.stats());
    }
}

/// More than half of the reply is sent, so the next write drops the sent part of the output. This
/// removal must not change which bytes are dropped after the panic.
#[test]
fn output_of_a_panicking_hook_is_dropped_after_most_of_a_reply_is_sent() {
    let panics: Action = |conn| {
        conn.write_all(&[b'y'; 1_000])?;
        panic!("a test panic")
    };
    let (mut manager, _) =
        start_long_replies(LongReplies { on_blocked: Some(panics), ..LongReplies::default() });
    let (mut client, ours) = UnixStream::pair().unwrap();
    manager.put(ours).unwrap();
    client.write_all(b"more").unwrap();
    turn_until(&mut manager, |manager| manager.stats().panics == 1);
    let sent = manager.stats().bytes_out;
    assert!((MORE as u64 / 2 + 1..MORE as u64).contains(&sent), "{sent} bytes were sent at once");
    client.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    turn_until(&mut manager, |manager| {
        let _ = io::Read::read_to_end(&mut client, &mut got);
        manager.stats().closed(CloseReason::Panicked) == 1
    });
    let _ = io::Read::read_to_end(&mut client, &mut got);
    assert_eq!(got.len(), MORE, "{}", manager.stats());
    assert!(got.iter().all(|&byte| byte == b'x'), "the output of the panicking hook was sent");
}
