//! Fuzz driver: a byte stream, cut anywhere, through the real manager. The bodies that the callback
//! gets, and the replies that come back, are those of a naive framing of the whole stream.

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

/// Rounds in which no byte moves before one is lost, or the loop spins.
const PATIENCE: usize = 1_000;

const LONG: Duration = Duration::from_secs(3_600);

/// Over the kernel's Unix sockets, bare or as a transport of one's own.
pub(crate) fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let case = Case::any(u)?;
    let boxed = u.arbitrary()?;
    let (client, ours) = UnixStream::pair().expect("pair");
    client.set_nonblocking(true).expect("non-blocking");
    let ours = if boxed { Socket::Boxed(Box::new(Plain(ours))) } else { ours.into() };
    let handler = Echo::default();
    let seen = handler.0.clone();
    let manager = Manager::with_handler(case.config(), handler).expect("a valid configuration");
    case.play(u, manager, client, ours, &seen)
}

/// Over the simulated network, with tiny buffers, short reads and writes, and events that come
/// apart, late, or for nothing.
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
    case.play(u, manager, client, ours.into(), &seen)?;
    assert_eq!(sim.violations(), [""; 0]);
    Ok(())
}

/// What the handler was given.
#[derive(Debug, Default)]
struct Seen {
    bodies: Vec<(Cause, Vec<u8>)>,
    ends: Vec<Closed>,
}

/// Replies with each body, and how long it is, so that empty ones and borders show.
#[derive(Default)]
struct Echo(Rc<RefCell<Seen>>);

impl Handler for Echo {
    type Session = ();

    fn request(&mut self, conn: &mut Conn<'_>, (): &mut (), body: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().bodies.push((conn.cause(), body.to_vec()));
        conn.write_all(&reply(body))
    }

    fn closed(&mut self, end: &Closed, (): (), _desk: &mut Commands) {
        self.0.borrow_mut().ends.push(*end);
    }
}

fn reply(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes(), body].concat()
}

/// A connection's other end. Never blocks.
trait Client: Read + Write {
    /// Says that nothing more will be sent.
    fn finish(&mut self);
}

impl Client for UnixStream {
    fn finish(&mut self) {
        // The other end may be gone.
        let _ = self.shutdown(Shutdown::Write);
    }
}

#[cfg(feature = "sim")]
impl Client for Stream {
    fn finish(&mut self) {
        let _ = self.shutdown_write();
    }
}

/// How many bytes an attempt moved; `None` if nothing ever will.
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

    fn play<B: Backend>(
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
        let replies = self.converse(&mut manager, &mut client, &stream);
        self.compare(&stream, &seen.borrow(), &replies);
        let stats = manager.stats();
        assert_eq!((stats.live, stats.bytes_unsent), (0, 0), "{stats}");
        assert_eq!(stats.bytes_out, replies.len() as u64);
        drop(client);
        manager.stop().expect("stop");
        Ok(())
    }

    /// Sends all of `stream` and reads all that comes back.
    fn converse<B: Backend>(
        &mut self,
        manager: &mut Manager<Echo, B>,
        client: &mut impl Client,
        stream: &[u8],
    ) -> Vec<u8> {
        let (mut unsent, mut replies, mut chunk) = (stream, Vec::new(), [0; 4096]);
        let (mut finished, mut ended, mut progress, mut idle) = (false, false, 0, 0);
        while !ended || manager.stats().live > 0 {
            // The low bits of a cut are its size, the high ones say what happens before the next.
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
            let so_far = stats.bytes_in
                + stats.bytes_out
                + (stream.len() - unsent.len() + replies.len()) as u64;
            idle = if so_far > progress { 0 } else { idle + 1 };
            progress = so_far;
            assert!(idle < PATIENCE, "something is lost: {} unsent, {stats}", unsent.len());
        }
        replies
    }

    fn compare(&self, stream: &[u8], seen: &Seen, replies: &[u8]) {
        let bodies: Vec<&[u8]> = seen.bodies.iter().map(|(_, body)| &body[..]).collect();
        let echoed: Vec<u8> = bodies.iter().flat_map(|body| reply(body)).collect();
        assert_eq!(replies, echoed, "what was answered comes back");
        let [end] = seen.ends[..] else { panic!("it ends once: {:?}", seen.ends) };
        if self.rules == Rules::Drained {
            assert!(bodies.iter().all(|body| (1..=self.capacity).contains(&body.len())));
            assert_eq!((bodies.concat(), end.reason), (stream.to_vec(), CloseReason::Eof));
            return;
        }
        let outcome = self.rules.outcome(stream, self.capacity);
        let complete = outcome.bodies.len();
        assert!(complete <= bodies.len(), "{complete} expected, {} came", bodies.len());
        for (number, body) in outcome.bodies.iter().enumerate() {
            let cause = if self.rules == Rules::Filled { Cause::Full } else { Cause::Framed };
            assert_eq!((cause, body), (seen.bodies[number].0, &seen.bodies[number].1));
        }
        let rest = &stream[outcome.rest..];
        let last = rest.get(self.rules.prefix()..).unwrap_or(&[]);
        match (outcome.ending, &seen.bodies[complete..]) {
            (Ending::Partial, []) => assert!(rest.is_empty(), "{} bytes are lost", rest.len()),
            (Ending::Partial, [(Cause::Eof, body)]) => assert_eq!(body, last),
            (Ending::Overlong, [(Cause::Overlong, body)]) => assert!(last.starts_with(body)),
            (Ending::Invalid, []) => {}
            (ending, tail) => panic!("{ending:?}, but {tail:?} came"),
        }
        let reason = match outcome.ending {
            Ending::Partial => CloseReason::Eof,
            Ending::Overlong => CloseReason::Overlong,
            Ending::Invalid => CloseReason::Invalid,
        };
        assert_eq!(end.reason, reason);
    }
}
