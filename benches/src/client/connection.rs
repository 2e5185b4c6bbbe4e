//! One connection of the client: a stream of requests and of their replies. It stores no bytes. It
//! stores two positions in the bytes of all its requests. It computes the bytes to send and the
//! expected bytes from these positions.

use std::io;

use super::content::Content;
use super::schedule::Nanos;
use super::stream::Stream;
use super::tally::Tally;

#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) index: usize,
    pub(super) stream: Option<Stream>,
    pub(super) stage: Stage,
    /// Requests queued so far, sent or not.
    queued: u64,
    /// The position after the last sent byte. Invariant: `received <= sent <= queued`.
    sent: Position,
    /// The position after the last received byte.
    received: Position,
    /// The due time of each request in flight, as a ring.
    due: Box<[Nanos]>,
    /// The number of queued requests that did not come from the schedule.
    unscheduled: u64,
    /// When a byte was last sent or received, or when the connection began to wait for one.
    pub(super) last_activity: Nanos,
}

/// A position in the bytes of all requests: after `requests` complete requests and `bytes` bytes of
/// the next request.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    requests: u64,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Stage {
    /// Has no stream. Connects when it has a request to send.
    #[default]
    Vacant,
    Open,
    /// The sending half is shut down. The connection waits for the end of the stream.
    Closing,
    /// Failed; does not connect again.
    Failed,
}

/// The reason why a connection failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// A reply differs from its request.
    Wrong(String),
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// State that all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) content: Content,
    pub(super) scratch: Box<[u8]>,
    pub(super) tally: Tally,
}

impl Connection {
    pub(super) fn new(index: usize, depth: usize) -> Self {
        Self { index, due: vec![0; depth].into(), ..Self::default() }
    }

    /// Returns the number of requests without a complete reply.
    pub(super) fn in_flight(&self) -> usize {
        (self.queued - self.received.requests) as usize
    }

    /// Returns true if the connection has something to send or to wait for.
    pub(super) fn is_busy(&self) -> bool {
        match self.stage {
            Stage::Failed => false,
            Stage::Closing => true,
            Stage::Vacant | Stage::Open => self.in_flight() > 0,
        }
    }

    /// Returns the number of requests that came from the schedule.
    pub(super) fn given(&self) -> u64 {
        self.queued - self.unscheduled
    }

    /// Queues one request. The number of requests in flight must not exceed the depth.
    pub(super) fn queue(&mut self, due: Nanos) {
        let slot = self.queued % self.due.len() as u64;
        self.due[slot as usize] = due;
        self.queued += 1;
    }

    /// Queues one request that does not come from the schedule.
    pub(super) fn queue_unscheduled(&mut self) {
        self.queue(0);
        self.unscheduled += 1;
    }

    /// Writes the queued requests until the socket would block. The rest is written at the next
    /// event.
    pub(super) fn flush(&mut self, shared: &mut Shared, now: Nanos) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let size = shared.content.size;
        while self.sent.requests < self.queued {
            let left = (self.queued - self.sent.requests) * size as u64 - self.sent.bytes as u64;
            let length = shared.scratch.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let batch = &mut shared.scratch[..length];
            shared.content.fill(self.index, self.sent.requests, self.sent.bytes, batch);
            match stream.write(batch) {
                Ok(n) => {
                    self.sent.advance(n, size);
                    self.last_activity = now;
                }
                // The socket is full or not yet connected.
                Err(error) if would_block(&error) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads and checks the available bytes. Returns true at the end of the stream.
    ///
    /// With `to_the_end`, a short read does not stop the loop, because the event may also have
    /// reported the end of the stream.
    pub(super) fn receive(
        &mut self,
        shared: &mut Shared,
        to_the_end: bool,
        clock: impl Fn() -> Nanos,
    ) -> Result<bool, Fault> {
        loop {
            let Some(stream) = &mut self.stream else { return Ok(false) };
            match stream.read(&mut shared.scratch) {
                Ok(0) => return Ok(true),
                Ok(n) => {
                    self.last_activity = clock();
                    self.check(&shared.content, &shared.scratch[..n], &mut shared.tally)?;
                    if n < shared.scratch.len() && !to_the_end {
                        return Ok(false);
                    }
                }
                Err(error) if would_block(&error) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn check(&mut self, content: &Content, bytes: &[u8], tally: &mut Tally) -> Result<(), Fault> {
        let Position { requests, bytes: offset } = self.received;
        let size = content.size;
        let expected =
            (self.sent.requests - requests) * size as u64 + self.sent.bytes as u64 - offset as u64;
        let (bytes, surplus) = bytes.split_at(bytes.len().min(expected as usize));
        if let Some(at) = content.first_difference(self.index, requests, offset, bytes) {
            let at_all = offset + at;
            let (request, byte) = (requests + (at_all / size) as u64, at_all % size);
            return Err(Fault::Wrong(format!(
                "byte {byte} of reply {request} on connection {} differs: received 0x{:02x}",
                self.index, bytes[at]
            )));
        }
        self.received.advance(bytes.len(), size);
        for reply in requests..self.received.requests {
            let due = self.due[(reply % self.due.len() as u64) as usize];
            tally.answered(due, self.last_activity);
        }
        if surplus.is_empty() {
            return Ok(());
        }
        Err(Fault::Wrong(format!(
            "connection {} received {} bytes more than expected",
            self.index,
            surplus.len()
        )))
    }
}

impl Position {
    fn advance(&mut self, bytes: usize, size: usize) {
        let bytes = self.bytes + bytes;
        self.requests += (bytes / size) as u64;
        self.bytes = bytes % size;
    }
}

pub(super) fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
