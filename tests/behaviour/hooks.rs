//! The hooks that are not about a request: what comes back undelivered, the end of a turn, and a
//! reply that has to wait.

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

#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Request(Vec<u8>),
    Closed(ConnId),
    Undelivered(ConnId, Vec<u8>),
    Turned,
}

use Told::{Closed, Request, Turned, Undelivered};

#[derive(Clone, Default)]
struct Witness {
    told: Rc<RefCell<Vec<Told>>>,
    /// Said to this connection at the end of the turn that comes next.
    to_say: Rc<RefCell<Option<(ConnId, usize)>>>,
    panics: bool,
}

impl Witness {
    fn note(&self, told: Told) {
        self.told.borrow_mut().push(told);
    }

    /// All but the ends of turns.
    fn of_connections(&self) -> Vec<Told> {
        self.told.borrow().iter().filter(|told| **told != Turned).cloned().collect()
    }
}

impl Handler for Witness {
    type Session = ();

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self.note(Request(body.into()));
        conn.write_all(body)
    }

    fn closed(&mut self, end: &pool_manager::Closed, (): (), _: &mut Commands) {
        self.note(Closed(end.id));
    }

    fn undelivered(&mut self, id: ConnId, bytes: Vec<u8>, _: &mut Commands) {
        self.note(Undelivered(id, bytes));
        assert!(!self.panics, "a test");
    }

    fn turn_ended(&mut self, commands: &mut Commands) {
        self.note(Turned);
        if let Some((id, times)) = self.to_say.take() {
            let before = commands.queued();
            (0..times).for_each(|_| commands.send(id, b"!").unwrap());
            assert_eq!(commands.queued(), before + times);
        }
        assert!(!self.panics, "a test");
    }
}

fn started(witness: &Witness, config: Config) -> (Manager<Witness>, Handle) {
    let mut manager = Manager::with_handler(config, witness.clone()).unwrap();
    manager.start().unwrap();
    let handle = manager.handle();
    (manager, handle)
}

fn put(manager: &mut Manager<Witness>) -> (TcpStream, ConnId) {
    let (client, ours) = pair();
    (client, manager.put(ours).unwrap())
}

fn lines() -> Config {
    Config::new().framing(Framing::Delimited(b'\n'))
}

#[test]
fn what_is_sent_to_one_that_is_gone_comes_back() {
    let witness = Witness::default();
    let (mut manager, handle) = started(&witness, lines());
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
    assert_eq!(witness.of_connections(), expected);
    assert_eq!((manager.stats().bytes_out, manager.stats().bytes_unsent), (7, 0));
}

#[test]
fn what_would_be_more_than_the_write_limit_comes_back() {
    let witness = Witness::default();
    let (mut manager, handle) = started(&witness, lines().write_limit(100));
    let (_client, id) = put(&mut manager);
    handle.send(id, [0; 60]).unwrap();
    handle.send(id, [1; 60]).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    assert_eq!(witness.of_connections(), [Undelivered(id, vec![1; 60]), Closed(id)]);
    assert_eq!(manager.stats().closed(CloseReason::WriteLimit), 1);
    assert_eq!(manager.stats().bytes_unsent, 60, "the first is accounted for as well");
}

#[test]
fn what_was_sent_and_not_looked_at_before_a_stop_comes_back() {
    let witness = Witness::default();
    let (mut manager, handle) = started(&witness, lines().stop_deadline(Duration::ZERO));
    let (_client, id) = put(&mut manager);
    handle.send(id, b"too late").unwrap();
    manager.stop().unwrap();
    assert_eq!(witness.of_connections(), [Closed(id), Undelivered(id, b"too late".into())]);
    drop(manager);
    assert_eq!(witness.of_connections().len(), 2, "once");
}

#[test]
fn the_end_of_a_turn_is_told_after_all_requests_and_once() {
    let witness = Witness::default();
    let (mut manager, _) = started(&witness, lines());
    let mut peers: Vec<_> = (0..3).map(|_| put(&mut manager)).collect();
    for (client, _) in &mut peers {
        client.write_all(b"one\ntwo\n").unwrap();
    }
    turn_until(&mut manager, |manager| manager.stats().requests_total() == 6);
    let told = witness.told.borrow();
    assert_eq!(told.iter().filter(|told| **told == Turned).count() as u64, manager.stats().turns);
    assert_eq!(told.last(), Some(&Turned));
    let together = told.split(|told| *told == Turned).map(<[Told]>::len).max();
    assert!(together >= Some(2), "requests that come together are not told apart: {told:?}");
}

#[test]
fn what_is_asked_for_at_the_end_of_a_turn_is_done_in_the_next_without_a_wait() {
    let witness = Witness::default();
    let (mut manager, _) = started(&witness, lines());
    let (_client, id) = put(&mut manager);
    *witness.to_say.borrow_mut() = Some((id, 1_500));
    manager.turn(Some(Duration::ZERO)).unwrap();
    for sent in [1_024, 1_500] {
        manager.turn(None).unwrap();
        assert_eq!(manager.stats().bytes_out, sent, "as many as a turn does");
        assert_eq!(manager.next_timeout() == Some(Duration::ZERO), sent < 1_500);
    }
}

#[test]
fn panics_in_these_hooks_end_nobody() {
    let witness = Witness { panics: true, ..Witness::default() };
    let (mut manager, handle) = started(&witness, lines());
    let (_client, gone) = put(&mut manager);
    handle.close(gone).unwrap();
    turn_until(&mut manager, |manager| manager.stats().live == 0);
    let (mut client, _) = put(&mut manager);
    handle.send(gone, b"too late").unwrap();
    client.write_all(b"hello\n").unwrap();
    turn_until(&mut manager, |manager| manager.stats().bytes_out == 5);
    let stats = manager.stats();
    assert_eq!((stats.live, stats.panics), (1, stats.turns + 1));
    assert_eq!(stats.closed_total(), 1);
}

/// What a hook does besides.
type Then = fn(&mut Conn<'_>) -> io::Result<()>;

/// More than a Unix socket takes, and less than twice that.
const MORE: usize = 256 << 10;

/// Answers with much more than a socket takes, and notes what it is told of it.
#[derive(Default)]
struct Lavish {
    told: Rc<RefCell<Vec<Cause>>>,
    on_blocked: Option<Then>,
}

impl Handler for Lavish {
    type Session = ();

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        let length = match body {
            b"much" => 32 << 20,
            b"more" => MORE,
            _ => 3,
        };
        conn.write_all(&vec![b'x'; length])
    }

    fn blocked(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.told.borrow_mut().push(conn.cause());
        self.on_blocked.map_or(Ok(()), |then| then(conn))
    }

    fn flushed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.told.borrow_mut().push(conn.cause());
        Ok(())
    }
}

fn lavish(lavish: Lavish) -> (Manager<Lavish>, TcpStream) {
    let long = Duration::from_secs(600);
    let config =
        Config::new().framing(Framing::Drained).write_limit(64 << 20).clients_deadline(long);
    let mut manager = Manager::with_handler(config, lavish).unwrap();
    manager.start().unwrap();
    let (client, ours) = pair();
    manager.put(ours).unwrap();
    (manager, client)
}

#[test]
fn a_handler_is_told_once_that_a_reply_has_to_wait_and_once_that_it_has_gone_out() {
    let told = Rc::<RefCell<Vec<Cause>>>::default();
    let (mut manager, mut client) = lavish(Lavish { told: told.clone(), on_blocked: None });
    client.write_all(b"few").unwrap();
    turn_until(&mut manager, |manager| manager.stats().bytes_out == 3);
    assert_eq!(*told.borrow(), [], "what goes out at once has not waited");
    for round in 1..=2 {
        client.write_all(b"much").unwrap();
        turn_until(&mut manager, |_| told.borrow().len() == 2 * round - 1);
        for _ in 0..5 {
            manager.turn(Some(Duration::from_millis(1))).unwrap();
        }
        assert_eq!(told.borrow().len(), 2 * round - 1, "once");
        client.set_nonblocking(true).unwrap();
        let mut waste = vec![0; 1 << 20];
        turn_until(&mut manager, |_| {
            while matches!(io::Read::read(&mut client, &mut waste), Ok(1..)) {}
            told.borrow().len() == 2 * round
        });
        client.set_nonblocking(false).unwrap();
    }
    assert_eq!(*told.borrow(), [Cause::Blocked, Cause::Flushed].repeat(2));
}

#[test]
fn what_is_decided_when_a_reply_has_to_wait_counts() {
    let cases: [(Then, CloseReason); 4] = [
        (
            |conn| {
                conn.abort();
                Ok(())
            },
            CloseReason::Aborted,
        ),
        (|_| Err(io::ErrorKind::Other.into()), CloseReason::Failed),
        (|_| panic!("a test"), CloseReason::Panicked),
        // No more than write_limit is unsent, whatever it is that wants to write.
        (|conn| conn.write_all(&vec![b'y'; 60 << 20]), CloseReason::WriteLimit),
    ];
    for (then, reason) in cases {
        let told = Rc::<RefCell<Vec<Cause>>>::default();
        let (mut manager, mut client) =
            lavish(Lavish { told: told.clone(), on_blocked: Some(then) });
        client.write_all(b"much").unwrap();
        turn_until(&mut manager, |_| !told.borrow().is_empty());
        // What is cut off waits for nobody; the others go once what was written is out.
        let waits = matches!(reason, CloseReason::Failed | CloseReason::Panicked);
        assert_eq!(manager.stats().live, usize::from(waits) as u64, "{reason}, in that very turn");
        client.set_nonblocking(true).unwrap();
        let mut waste = vec![0; 1 << 20];
        turn_until(&mut manager, |manager| {
            while waits && matches!(io::Read::read(&mut client, &mut waste), Ok(1..)) {}
            manager.stats().live == 0
        });
        assert_eq!(manager.stats().closed(reason), 1, "{reason}: {}", manager.stats());
    }
}

/// What has gone out is forgotten once it is most of it, and that is when more is written.
#[test]
fn what_a_panic_wrote_is_taken_back_though_most_of_the_reply_has_gone_out() {
    let panics: Then = |conn| {
        conn.write_all(&[b'y'; 1_000])?;
        panic!("a test")
    };
    let (mut manager, _) = lavish(Lavish { on_blocked: Some(panics), ..Lavish::default() });
    let (mut client, ours) = UnixStream::pair().unwrap();
    manager.put(ours).unwrap();
    client.write_all(b"more").unwrap();
    turn_until(&mut manager, |manager| manager.stats().panics == 1);
    let sent = manager.stats().bytes_out;
    assert!((MORE as u64 / 2 + 1..MORE as u64).contains(&sent), "{sent} bytes went out at once");
    client.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    turn_until(&mut manager, |manager| {
        let _ = io::Read::read_to_end(&mut client, &mut got);
        manager.stats().closed(CloseReason::Panicked) == 1
    });
    let _ = io::Read::read_to_end(&mut client, &mut got);
    assert_eq!(got.len(), MORE, "{}", manager.stats());
    assert!(got.iter().all(|&byte| byte == b'x'), "what the panicking hook wrote went out");
}
