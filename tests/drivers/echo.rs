//! Fuzz driver: sends a byte stream in pieces through the real manager. The handler must receive
//! the bodies that a naive framing finds in the whole stream, and then the bytes of an incomplete
//! frame. The replies must match these bytes.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use arbtest::arbitrary::{Result, Unstructured};
#[cfg(feature = "sim")]
use pool_manager::sim::{Faults, Sim, Stream};
use pool_manager::sys::Backend;
use pool_manager::{
    Cause, CloseReason, Closed, Commands, Config, Conn, Frame, Framing, Handler, Manager, Prefix,
    Socket,
};

#[path = "reference.rs"]
mod reference;

#[path = "../support/plain.rs"]
mod plain;

use plain::Plain;
use reference::{Cuts, Ending, Rules};

/// Number of rounds without progress after which bytes count as lost.
const MAX_IDLE_ROUNDS: usize = 1_000;

const LONG: Duration = Duration::from_secs(3_600);

/// Runs a case over a Unix socket, which is given to the manager either directly or as a custom
/// transport.
pub(crate) fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let case = Case::any(u)?;
    let boxed = u.arbitrary()?;
    let (client, ours) = UnixStream::pair().expect("pair");
    client.set_nonblocking(true).expect("non-blocking");
    let ours = if boxed { Socket::Boxed(Box::new(Plain(ours))) } else { ours.into() };
    let handler = Echo::default();
    let seen = handler.0.clone();
    let manager = Manager::with_handler(case.config(), handler).expect("a valid configuration");
    case.run(u, manager, client, ours, &seen)
}

/// Runs a case over the simulated network. Buffers may be small, reads and writes may be short, and
/// events may be split, late or spurious.
#[cfg(feature = "sim")]
pub(crate) fn drive_simulated(u: &mut Unstructured<'_>) -> Result<()> {
    let case = Case::any(u)?;
    let mut faults = Faults::none();
    let often = [0, 0, 100, 900];
    faults.short_reads = *u.choose(&often)?;
    faults.short_writes = *u.choose(&often)?;
    faults.interrupts = *u.choose(&often)?;
    faults.spurious_events = *u.choose(&often)?;
    faults.truncated_waits = *u.choose(&often)?;
    faults.split_events = u.arbitrary()?;
    let sim = Sim::with_faults(u.arbitrary()?, faults);
    let sizes = [1, 5, 64, 5_000];
    let (client, ours) = sim.pair_with(*u.choose(&sizes)?, *u.choose(&sizes)?);
    let handler = Echo::default();
    let seen = handler.0.clone();
    let manager = Manager::with_backend(case.config(), handler, sim.clone()).expect("valid");
    case.run(u, manager, client, ours.into(), &seen)?;
    assert_eq!(sim.violations(), [""; 0]);
    Ok(())
}

/// The callbacks that the handler has received.
#[derive(Debug, Default)]
struct Seen {
    bodies: Vec<(Cause, Vec<u8>)>,
    incomplete: Vec<(Cause, Vec<u8>)>,
    read_closed: usize,
    closed: Vec<Closed>,
}

/// Replies to each body with its length, followed by the body. This makes empty bodies and the
/// boundaries between bodies visible. Replies to an incomplete frame in the same way.
#[derive(Default)]
struct Echo(Rc<RefCell<Seen>>);

impl Handler for Echo {
    type Session = ();

    fn opened(&mut self, _: &mut Conn<'_>) -> io::Result<()> {
        Ok(())
    }

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().bodies.push((conn.cause(), body.to_vec()));
        assert_eq!(self.0.borrow().incomplete, [], "no request follows an incomplete one");
        conn.write_all(&reply(body))
    }

    fn incomplete(&mut self, conn: &mut Conn<'_>, (): &mut (), held: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().incomplete.push((conn.cause(), held.to_vec()));
        conn.write_all(&reply(held))
    }

    fn read_closed(&mut self, conn: &mut Conn<'_>, (): &mut ()) -> io::Result<()> {
        self.0.borrow_mut().read_closed += 1;
        conn.finish();
        Ok(())
    }

    fn closed(&mut self, end: &Closed, _: Option<()>, _commands: &mut Commands) {
        self.0.borrow_mut().closed.push(end.clone());
    }
}

fn reply(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes(), body].concat()
}

/// The other end of a connection. It never blocks.
trait Client: Read + Write {
    /// Shuts down the write side.
    fn finish(&mut self);
}

impl Client for UnixStream {
    fn finish(&mut self) {
        // The other end may be closed.
        let _ = self.shutdown(Shutdown::Write);
    }
}

#[cfg(feature = "sim")]
impl Client for Stream {
    fn finish(&mut self) {
        let _ = self.shutdown_write();
    }
}

/// Returns the number of bytes moved, or `None` if no more bytes can be moved.
fn moved(outcome: io::Result<usize>) -> Option<usize> {
    match outcome {
        Ok(0) => None,
        Ok(count) => Some(count),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Some(0),
            _ => None,
        },
    }
}

struct Case {
    rules: Rules,
    capacity: usize,
    cuts: Cuts,
}

impl Case {
    fn any(u: &mut Unstructured<'_>) -> Result<Self> {
        let rules = Rules::any(u)?;
        let capacity = *u.choose(&[1, 2, 5, 16, 64, 300, 5_120, 5_120])?;
        Ok(Self { rules, capacity, cuts: Cuts::any(u)? })
    }

    fn config(&self) -> Config {
        Config::new()
            .framing(self.rules.framing())
            .buffer_size(self.capacity)
            .write_limit(1 << 24)
            .clients_deadline(LONG)
            .request_deadline(LONG)
    }

    fn run<B: Backend>(
        mut self,
        u: &mut Unstructured<'_>,
        mut manager: Manager<Echo, B>,
        mut client: impl Client,
        ours: Socket,
        seen: &Rc<RefCell<Seen>>,
    ) -> Result<()> {
        let stream = self.rules.stream(u, self.capacity, 8192)?;
        manager.start().expect("start");
        manager.put(ours).expect("put");
        let replies = self.exchange(&mut manager, &mut client, &stream);
        self.compare(&stream, &seen.borrow(), &replies);
        let stats = manager.stats();
        assert_eq!((stats.live, stats.bytes_unsent), (0, 0), "{stats}");
        assert_eq!(stats.bytes_out, replies.len() as u64);
        drop(client);
        manager.stop().expect("stop");
        Ok(())
    }

    /// Sends all of `stream` and returns all replies.
    fn exchange<B: Backend>(
        &mut self,
        manager: &mut Manager<Echo, B>,
        client: &mut impl Client,
        stream: &[u8],
    ) -> Vec<u8> {
        let (mut unsent, mut replies, mut chunk) = (stream, Vec::new(), [0; 4096]);
        let (mut finished, mut ended, mut progress, mut idle) = (false, false, 0, 0);
        while !ended || manager.stats().live > 0 {
            // The low six bits of a cut say how many bytes to write. The high two bits decide
            // whether the manager runs a turn and whether the client reads before the next cut.
            let cut = self.cuts.next();
            let size = if cut & 0x3f < 8 { 4096 } else { usize::from(cut & 0x3f) };
            if !unsent.is_empty() {
                let sent = moved(client.write(&unsent[..size.min(unsent.len())]));
                unsent = sent.map_or(&[], |count| &unsent[count..]);
            } else if !finished {
                client.finish();
                finished = true;
            }
            if cut & 0x40 == 0 || finished || idle > 0 {
                manager.turn(Some(Duration::ZERO)).expect("turn");
            }
            if !ended && (cut & 0x80 == 0 || finished || idle > 0) {
                let got = moved(client.read(&mut chunk));
                replies.extend_from_slice(&chunk[..got.unwrap_or(0)]);
                ended = got.is_none();
            }
            let stats = manager.stats();
            let total = stats.bytes_in
                + stats.bytes_out
                + (stream.len() - unsent.len() + replies.len()) as u64;
            idle = if total > progress { 0 } else { idle + 1 };
            progress = total;
            assert!(idle < MAX_IDLE_ROUNDS, "bytes are lost: {} unsent, {stats}", unsent.len());
        }
        replies
    }

    fn compare(&self, stream: &[u8], seen: &Seen, replies: &[u8]) {
        let bodies: Vec<&[u8]> = seen.bodies.iter().map(|(_, body)| &body[..]).collect();
        let incomplete = seen.incomplete.iter().map(|(_, held)| &held[..]);
        let echoed: Vec<u8> = bodies.iter().copied().chain(incomplete).flat_map(reply).collect();
        assert_eq!(replies, echoed, "the replies that the client received");
        let [end] = &seen.closed[..] else {
            panic!("`closed` was not called exactly once: {:?}", seen.closed)
        };
        assert_eq!(seen.read_closed, usize::from(end.reason == CloseReason::Eof), "{end:?}");
        if self.rules == Rules::Drained {
            assert!(bodies.iter().all(|body| (1..=self.capacity).contains(&body.len())));
            assert_eq!((bodies.concat(), end.reason), (stream.to_vec(), CloseReason::Eof));
            assert_eq!(seen.incomplete, []);
            return;
        }
        let outcome = self.rules.outcome(stream, self.capacity);
        let complete = outcome.bodies.len();
        assert!(complete <= bodies.len(), "{complete} bodies expected, {} delivered", bodies.len());
        for (number, body) in outcome.bodies.iter().enumerate() {
            let cause = if self.rules == Rules::Filled { Cause::Full } else { Cause::Framed };
            assert_eq!((cause, body), (seen.bodies[number].0, &seen.bodies[number].1));
        }
        self.compare_last(&stream[outcome.rest..], outcome.ending, &seen.bodies[complete..], seen);
        let reason = match outcome.ending {
            Ending::Partial => CloseReason::Eof,
            Ending::Overlong => CloseReason::Overlong,
            Ending::Invalid => CloseReason::Invalid,
        };
        assert_eq!(end.reason, reason);
    }

    /// Compares the calls that follow the complete bodies. `rest` is the rest of the stream.
    fn compare_last(&self, rest: &[u8], ending: Ending, bodies: &[(Cause, Vec<u8>)], seen: &Seen) {
        match (ending, bodies, &seen.incomplete[..]) {
            (Ending::Partial, [], []) => assert!(rest.is_empty(), "{} bytes are lost", rest.len()),
            (Ending::Partial, [(Cause::Eof, last)], []) if self.rules == Rules::Filled => {
                assert!(!last.is_empty() && last == rest, "{last:?} delivered of {rest:?}");
            }
            (Ending::Partial, [], [(Cause::Eof, held)]) if self.rules != Rules::Filled => {
                assert!(!held.is_empty() && held == rest, "{held:?} delivered of {rest:?}");
            }
            (Ending::Overlong, [], [(Cause::Overlong, held)]) => {
                assert!(!held.is_empty() && rest.starts_with(held));
            }
            (Ending::Invalid, [], []) => {}
            (ending, bodies, incomplete) => {
                panic!("{ending:?} expected, but {bodies:?} and {incomplete:?} delivered")
            }
        }
    }
}
