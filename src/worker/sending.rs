//! Sending: replies go out once a visit, in order; what the socket does not take is owed.

use std::io::ErrorKind;
use std::mem;

use super::{Verdict, Visit, Worker};
use crate::backend::Backend;
use crate::output::Output;
use crate::time::{Now, Tick};
use crate::vitals::CloseReason;

/// Writes of one connection a visit.
const WRITES: u32 = 16;

/// How an attempt to write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    All,
    /// The socket is full; it will say when it is not.
    Blocked,
    /// The budget is used up.
    Some,
    Failed(CloseReason),
}

impl<S> Worker<S> {
    /// Writes what is owed from earlier turns; a verdict if there is no more to do until it is out.
    pub(super) fn pay<H, B: Backend>(&mut self, visit: &mut Visit<'_, H, B>) -> Option<Verdict> {
        if !self.owes() && !self.socket.is_boxed() {
            return None;
        }
        let mut output = mem::take(&mut self.output);
        match self.write(&mut output, visit) {
            Sent::All => {
                visit.spares.give_back_output(output);
                if mem::take(&mut self.vitals.blocked) {
                    let held = !self.input.is_empty();
                    self.vitals.since = if held { visit.now.stamp } else { Tick::NEVER };
                }
                None
            }
            short => Some(self.owe(output, short, visit.now)),
        }
    }

    /// Sends the replies that have gathered; a verdict if not all went out.
    pub(super) fn send<H, B: Backend>(&mut self, visit: &mut Visit<'_, H, B>) -> Option<Verdict> {
        let nothing = visit.spares.output.is_empty() && !self.socket.is_boxed();
        if nothing || self.owes() {
            return None;
        }
        let mut output = mem::take(&mut visit.spares.output);
        let sent = self.write(&mut output, visit);
        if sent == Sent::All {
            visit.spares.output = output;
            return None;
        }
        Some(self.owe(output, sent, visit.now))
    }

    /// Keeps what could not be sent. From now on both deadlines are for the reply.
    fn owe(&mut self, output: Output, sent: Sent, now: Now) -> Verdict {
        self.output = output;
        match sent {
            Sent::Failed(reason) => Verdict::Close(reason),
            Sent::All | Sent::Blocked | Sent::Some => {
                if !mem::replace(&mut self.vitals.blocked, true) {
                    self.vitals.since = now.stamp;
                    self.vitals.moved = now.stamp;
                }
                if sent == Sent::Blocked { Verdict::Wait } else { Verdict::Again }
            }
        }
    }

    fn write<H, B: Backend>(&mut self, output: &mut Output, visit: &mut Visit<'_, H, B>) -> Sent {
        for _ in 0..WRITES {
            let outcome = if output.is_empty() {
                if !self.socket.is_boxed() {
                    return Sent::All;
                }
                visit.backend.flush(&mut self.socket).map(|()| 0)
            } else {
                visit.stats.writes += 1;
                visit.backend.write(&mut self.socket, output.unsent())
            };
            match outcome {
                Ok(0) if output.is_empty() => return Sent::All,
                Ok(0) => return Sent::Failed(CloseReason::Io(ErrorKind::WriteZero)),
                Ok(count) => {
                    output.advance(count);
                    self.vitals.bytes_out += count as u64;
                    self.vitals.moved = visit.now.stamp;
                    visit.stats.bytes_out += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Sent::Blocked,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Sent::Failed(CloseReason::of(&error)),
            }
        }
        Sent::Some
    }

    /// Sends what has gathered before a visit ends. A polite end waits until it is out.
    pub(super) fn conclude<H, B: Backend>(
        &mut self,
        visit: &mut Visit<'_, H, B>,
        verdict: Verdict,
    ) -> Verdict {
        match verdict {
            Verdict::Close(reason) if !reason.is_polite() => {
                if !visit.spares.output.is_empty() {
                    self.output = mem::take(&mut visit.spares.output);
                }
                verdict
            }
            Verdict::Close(reason) => match self.send(visit) {
                None => verdict,
                Some(failed @ Verdict::Close(_)) => failed,
                Some(waiting) => {
                    self.vitals.ending = Some(reason);
                    waiting
                }
            },
            Verdict::Again | Verdict::Wait => self.send(visit).unwrap_or(verdict),
        }
    }
}
