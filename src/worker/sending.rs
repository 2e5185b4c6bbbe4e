//! Sending: replies go out once a visit, in order; what the socket does not take is owed.

use std::io::ErrorKind;

use super::{Kit, Verdict, Worker};
use crate::backend::Backend;
use crate::handler::Handler;
use crate::time::Tick;
use crate::vitals::{Cause, CloseReason, State};

/// Writes of one connection a visit.
const WRITES: u32 = 16;

/// How an attempt to write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    All,
    /// The socket is full; it will say when it is not.
    Blocked,
    /// There may be room for more.
    Some,
    Failed(CloseReason),
}

impl<S> Worker<S> {
    /// Writes what is owed from earlier turns; a verdict if there is no more to do until it is out.
    #[cold]
    pub(super) fn pay<H, B>(&mut self, kit: &mut Kit<H, B>) -> Option<Verdict>
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if self.vitals.is_connecting() {
            return self.arrive(kit);
        }
        if let Some(waiting) = self.send(kit) {
            return Some(waiting);
        }
        if self.vitals.state.leave(State::BLOCKED) {
            let held = !kit.spares.input.is_empty();
            self.vitals.since = if held { kit.now.stamp } else { Tick::NEVER };
            if !self.vitals.state.any(State::ENDING) {
                self.call(kit, Cause::Flushed, |handler, conn, session, _| {
                    handler.flushed(conn, session)
                });
            }
        }
        self.rests()
    }

    /// Sends the replies that have gathered; a verdict if not all went out.
    #[inline(always)]
    pub(super) fn send<H, B>(&mut self, kit: &mut Kit<H, B>) -> Option<Verdict>
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if kit.spares.output.is_empty() && !self.vitals.state.any(State::BOXED) {
            return None;
        }
        match self.write(kit) {
            Sent::All => None,
            sent => self.send_rest(kit, sent),
        }
    }

    /// Goes on after a first write that did not take all.
    #[cold]
    fn send_rest<H, B>(&mut self, kit: &mut Kit<H, B>, sent: Sent) -> Option<Verdict>
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let mut sent = sent;
        for _ in 1..WRITES {
            if sent == Sent::Some {
                sent = self.write(kit);
            }
        }
        match sent {
            Sent::All => None,
            Sent::Failed(reason) => Some(Verdict::Close(reason)),
            Sent::Blocked => Some(self.owe(kit, Verdict::Wait)),
            Sent::Some => Some(self.owe(kit, Verdict::Again)),
        }
    }

    /// From now on both deadlines are for the reply.
    fn owe<H, B>(&mut self, kit: &mut Kit<H, B>, verdict: Verdict) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        if !self.vitals.state.enter(State::BLOCKED) {
            return verdict;
        }
        self.vitals.since = kit.now.stamp;
        self.vitals.moved = kit.now.stamp;
        // Some of it is sent: what the hook writes has to be found again if it panics.
        kit.spares.output.settle();
        if !self.vitals.state.any(State::ENDING) {
            self.call(kit, Cause::Blocked, |handler, conn, session, _| {
                handler.blocked(conn, session)
            });
        }
        match self.vitals.ending().filter(|reason| !reason.is_polite()) {
            Some(reason) => Verdict::Close(reason),
            None => verdict,
        }
    }

    /// Writes once, or flushes what a transport has gathered if there is nothing to write.
    #[inline(always)]
    fn write<H, B: Backend>(&mut self, kit: &mut Kit<H, B>) -> Sent {
        let output = &mut kit.spares.output;
        let flushes = output.is_empty();
        let outcome = if flushes {
            kit.backend.flush(&mut self.socket).map(|()| 0)
        } else {
            kit.stats.writes += 1;
            kit.backend.write(&mut self.socket, output.unsent())
        };
        match outcome {
            Ok(0) if flushes => Sent::All,
            Ok(0) => Sent::Failed(CloseReason::Io(ErrorKind::WriteZero)),
            Ok(count) => {
                self.vitals.bytes_out += count as u64;
                self.vitals.moved = kit.now.stamp;
                kit.stats.bytes_out += count as u64;
                let all = output.advance(count) && !self.vitals.state.any(State::BOXED);
                if all { Sent::All } else { Sent::Some }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::Blocked,
            Err(error) if error.kind() == ErrorKind::Interrupted => Sent::Some,
            Err(error) => Sent::Failed(CloseReason::of(&error)),
        }
    }

    /// Sends what has gathered before a visit ends. A polite end waits until it is out.
    pub(super) fn conclude<H, B>(&mut self, kit: &mut Kit<H, B>, verdict: Verdict) -> Verdict
    where
        H: Handler<Session = S>,
        B: Backend,
    {
        let rude = matches!(verdict, Verdict::Close(reason) if !reason.is_polite());
        if rude || self.vitals.state.any(State::BLOCKED) {
            return verdict;
        }
        match self.send(kit) {
            None => verdict,
            Some(failed @ Verdict::Close(_)) => failed,
            Some(waiting) => {
                if let Verdict::Close(reason) = verdict {
                    self.vitals.end(reason);
                }
                waiting
            }
        }
    }
}
