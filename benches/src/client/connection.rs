//! Connection: one stream of requests and of the replies to them. It keeps no bytes: what is sent
//! and what is expected follow from two positions in the same text.

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
    /// Requests that may be sent.
    queued: u64,
    /// Invariant: `received <= sent <= queued`.
    sent: Position,
    received: Position,
    /// When each request in flight was due: a ring.
    due: Box<[Nanos]>,
    /// Of `queued`, how many are from before the schedule began.
    unscheduled: u64,
    /// When a byte last moved, or began to be waited for.
    pub(super) moved: Nanos,
}

/// So many requests, and so many bytes of the next one.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    requests: u64,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Stage {
    /// Without a stream; will be connected when there is something to say.
    #[default]
    Vacant,
    Open,
    /// Everything was said and answered: the end of file is waited for.
    Closing,
    /// It failed, and is not connected again.
    Failed,
}

/// Why a connection ends before its time.
#[derive(Debug)]
pub(super) enum Fault {
    /// A reply was not what was sent.
    Wrong(String),
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What all connections use in turns.
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

    /// Requests without a complete reply.
    pub(super) fn in_flight(&self) -> usize {
        (self.queued - self.received.requests) as usize
    }

    /// If it has something to send or to wait for.
    pub(super) fn is_busy(&self) -> bool {
        match self.stage {
            Stage::Failed => false,
            Stage::Closing => true,
            Stage::Vacant | Stage::Open => self.in_flight() > 0,
        }
    }

    /// Requests that the schedule gave it.
    pub(super) fn given(&self) -> u64 {
        self.queued - self.unscheduled
    }

    /// One more request may be sent. At most as many may be in flight as the depth says.
    pub(super) fn queue(&mut self, due: Nanos) {
        let slot = self.queued % self.due.len() as u64;
        self.due[slot as usize] = due;
        self.queued += 1;
    }

    /// One more, which is not of the schedule.
    pub(super) fn greet(&mut self) {
        self.queue(0);
        self.unscheduled += 1;
    }

    /// Writes what may be sent, as far as the socket takes it. What it does not take waits for an
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
                    self.moved = now;
                }
                // Not yet connected, or the socket is full.
                Err(error) if would_block(&error) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads and checks what is there. True if it was the end of the stream.
    ///
    /// `to_the_end` says not to stop at a short read, because the end of the stream may be behind
    /// it in the same event.
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
                    self.moved = clock();
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
        let owed =
            (self.sent.requests - requests) * size as u64 + self.sent.bytes as u64 - offset as u64;
        let (bytes, surplus) = bytes.split_at(bytes.len().min(owed as usize));
        if let Some(at) = content.differs(self.index, requests, offset, bytes) {
            let at_all = offset + at;
            let (request, byte) = (requests + (at_all / size) as u64, at_all % size);
            return Err(Fault::Wrong(format!(
                "byte {byte} of reply {request} on connection {} is not what was sent (0x{:02x})",
                self.index, bytes[at]
            )));
        }
        self.received.advance(bytes.len(), size);
        for reply in requests..self.received.requests {
            let due = self.due[(reply % self.due.len() as u64) as usize];
            tally.answered(due, self.moved);
        }
        if surplus.is_empty() {
            return Ok(());
        }
        Err(Fault::Wrong(format!(
            "connection {} sent {} bytes more than it was asked for",
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
