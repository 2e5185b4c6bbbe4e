//! Peers: the other ends of the connections, each with one behavior.

use std::io::{ErrorKind, Read, Write};

use pool_manager::sim::{Rng, Stream};

use super::Shared;
use super::model::ConnRecord;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behavior {
    /// Writes a few bytes and reads a few bytes.
    Normal,
    /// Writes single bytes.
    SlowWriter,
    /// Writes as much as the connection takes.
    FastWriter,
    /// Writes and never reads.
    NeverReads,
    /// Writes some bytes, shuts down its write side, and reads.
    HalfCloses,
    /// Resets the connection after this number of bytes.
    Resets(usize),
    /// Writes nothing and never reads.
    Silent,
}

/// A peer and its end of the connection.
pub(crate) struct Peer {
    pub(crate) stream: Option<Stream>,
    pub(crate) number: usize,
    behavior: Behavior,
    sent: usize,
    /// A write has failed, so a reset may have been reported already.
    write_failed: bool,
    /// A read has returned the end of file or an error.
    pub(crate) saw_end: bool,
}

/// Returns random bytes: letters, delimiters, length prefixes, and sometimes bytes that the framing
/// rejects.
fn random_bytes(rng: &mut Rng, max: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..=rng.below(max)).map(|_| b"\n\0abcdefg\x02\x01\x05\x06"[rng.below(11)]).collect();
    // One in four has no delimiter, so that some lines are longer than every buffer.
    if bytes.len() % 4 == 0 {
        bytes.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b'a');
    }
    if rng.permille(80) {
        bytes.push(b"\x05\x06"[rng.below(2)]);
    }
    if rng.permille(500) {
        bytes.push(b'\n');
    }
    bytes
}

impl Peer {
    pub(crate) fn new(stream: Stream, rng: &mut Rng) -> Self {
        let behavior = match rng.below(12) {
            0 => Behavior::SlowWriter,
            1 => Behavior::FastWriter,
            2 => Behavior::NeverReads,
            3 => Behavior::HalfCloses,
            4 => Behavior::Resets(rng.below(300)),
            5 => Behavior::Silent,
            _ => Behavior::Normal,
        };
        let number = stream.connection();
        Self {
            stream: Some(stream),
            number,
            behavior,
            sent: 0,
            write_failed: false,
            saw_end: false,
        }
    }

    /// Performs one step. Most steps write or read. A few close the connection.
    pub(crate) fn step(&mut self, rng: &mut Rng, harness: &Shared) {
        let action = rng.below(24);
        // A peer that does not read leaves at some time after the connection has ended.
        let ended =
            harness.model.borrow().records.get(&self.number).is_some_and(ConnRecord::is_over);
        if ended
            && matches!(self.behavior, Behavior::NeverReads | Behavior::Silent)
            && rng.permille(300)
        {
            self.stream = None;
            return;
        }
        match self.behavior {
            Behavior::Normal | Behavior::HalfCloses | Behavior::Resets(_) if action < 9 => {
                let bytes = random_bytes(rng, 120);
                self.write(&bytes, harness);
            }
            Behavior::SlowWriter if action < 9 => self.write(&random_bytes(rng, 1)[..1], harness),
            Behavior::FastWriter | Behavior::NeverReads if action < 9 => {
                let max = if rng.permille(50) { 30_000 } else { 3_000 };
                let bytes = random_bytes(rng, max);
                self.write(&bytes, harness);
            }
            Behavior::NeverReads | Behavior::Silent if action < 20 => {}
            _ if action < 20 => {
                self.read(1 + rng.below(400), harness);
            }
            _ if action == 20 => self.shutdown_write(harness),
            _ if action == 21 && rng.permille(200) => {
                if let Some(stream) = self.stream.take() {
                    stream.reset();
                }
            }
            _ if action == 22 && rng.permille(200) => self.stream = None,
            _ => {}
        }
        match self.behavior {
            Behavior::HalfCloses if self.sent > 100 => self.shutdown_write(harness),
            Behavior::Resets(after) if self.sent > after => {
                if let Some(stream) = self.stream.take() {
                    stream.reset();
                }
            }
            _ => {}
        }
    }

    fn write(&mut self, bytes: &[u8], harness: &Shared) {
        let Some(stream) = &mut self.stream else { return };
        let mut model = harness.model.borrow_mut();
        let record = model.records.entry(self.number).or_default();
        if record.write_closed {
            return;
        }
        match stream.write(bytes) {
            Ok(count) => {
                record.sent.extend(&bytes[..count]);
                self.sent += count;
                let (number, written) = (self.number, &bytes[..count]);
                model.note(
                    &|| format!("connection {number} writes {written:?}"),
                    number,
                    count as u64,
                );
            }
            Err(error) => self.write_failed |= error.kind() != ErrorKind::WouldBlock,
        }
    }

    /// Reads up to `max` bytes. Returns whether it read any.
    pub(crate) fn read(&mut self, max: usize, harness: &Shared) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut bytes = [0; 512];
        let outcome = stream.read(&mut bytes[..max]);
        let mut model = harness.model.borrow_mut();
        match outcome {
            Ok(count @ 1..) => {
                model.got(self.number, &bytes[..count]);
                let shut = model.records.get(&self.number).is_some_and(|known| known.write_closed);
                model.marks.hit_if("a reply after the peer's end of file", shut);
                return true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let record = model.records.get(&self.number);
                if record.is_some_and(|record| record.end.is_some()) {
                    model.fail(format!("{} has ended, but its peer sees no end", self.number));
                }
            }
            outcome => {
                if !std::mem::replace(&mut self.saw_end, true) {
                    let undamaged = harness.lossless.get() && harness.sim.counters().broken == 0;
                    if outcome.is_ok() && !self.write_failed && undamaged {
                        model.check_refused_reply(self.number);
                    }
                    let reset = outcome.is_err() || self.write_failed;
                    let (now, lossless) = (harness.sim.now(), harness.lossless.get());
                    model.peer_saw_end(self.number, reset, now, lossless);
                }
            }
        }
        false
    }

    /// Reads everything that has arrived.
    pub(crate) fn read_all(&mut self, harness: &Shared) {
        while self.read(512, harness) {}
    }

    /// Shuts down the write side.
    pub(crate) fn shutdown_write(&mut self, harness: &Shared) {
        if let Some(stream) = &self.stream {
            harness.model.borrow_mut().records.entry(self.number).or_default().write_closed = true;
            let _ = stream.shutdown_write();
        }
    }
}
