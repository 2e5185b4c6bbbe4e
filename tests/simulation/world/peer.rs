//! Peers: who is at the other end, each with a habit.

use std::io::{ErrorKind, Read, Write};

use pool_manager::sim::{Rng, Stream};

use super::Shared;
use super::model::Account;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Writes a little, reads a little.
    Chatty,
    /// A byte now and then.
    Dripping,
    /// As much as there is room for.
    Flooding,
    /// Writes and never reads.
    Deaf,
    /// Says its piece, says that it is done, and reads.
    Closing,
    /// Goes with a reset when it has sent so many bytes.
    Resetting(usize),
    /// Says nothing.
    Silent,
}

/// A peer, and its end of the connection.
pub(crate) struct Peer {
    pub(crate) stream: Option<Stream>,
    pub(crate) number: usize,
    habit: Habit,
    sent: usize,
    /// A write has told it of a reset.
    told: bool,
    /// It saw the end.
    pub(crate) over: bool,
}

/// What peers say: letters, delimiters, lengths, and now and then what a framing cannot bear.
fn speech(rng: &mut Rng, max: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..=rng.below(max)).map(|_| b"\n\0abcdefg\x02\x01\x05\x06"[rng.below(11)]).collect();
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
        let habit = match rng.below(12) {
            0 => Habit::Dripping,
            1 => Habit::Flooding,
            2 => Habit::Deaf,
            3 => Habit::Closing,
            4 => Habit::Resetting(rng.below(300)),
            5 => Habit::Silent,
            _ => Habit::Chatty,
        };
        let number = stream.connection();
        Self { stream: Some(stream), number, habit, sent: 0, told: false, over: false }
    }

    /// One step: most write, most read, few leave.
    pub(crate) fn step(&mut self, rng: &mut Rng, world: &Shared) {
        let act = rng.below(24);
        // Who does not listen leaves some time after the end.
        let ended = world.model.borrow().accounts.get(&self.number).is_some_and(Account::is_over);
        if ended && matches!(self.habit, Habit::Deaf | Habit::Silent) && rng.permille(300) {
            self.stream = None;
            return;
        }
        match self.habit {
            Habit::Chatty | Habit::Closing | Habit::Resetting(_) if act < 9 => {
                let bytes = speech(rng, 120);
                self.say(&bytes, world);
            }
            Habit::Dripping if act < 9 => self.say(&speech(rng, 1)[..1], world),
            Habit::Flooding | Habit::Deaf if act < 9 => {
                let max = if rng.permille(50) { 30_000 } else { 3_000 };
                let bytes = speech(rng, max);
                self.say(&bytes, world);
            }
            Habit::Deaf | Habit::Silent if act < 20 => {}
            _ if act < 20 => {
                self.hear(1 + rng.below(400), world);
            }
            _ if act == 20 => self.finish(world),
            _ if act == 21 && rng.permille(200) => {
                if let Some(stream) = self.stream.take() {
                    stream.reset();
                }
            }
            _ if act == 22 && rng.permille(200) => self.stream = None,
            _ => {}
        }
        match self.habit {
            Habit::Closing if self.sent > 100 => self.finish(world),
            Habit::Resetting(after) if self.sent > after => {
                if let Some(stream) = self.stream.take() {
                    stream.reset();
                }
            }
            _ => {}
        }
    }

    fn say(&mut self, bytes: &[u8], world: &Shared) {
        let Some(stream) = &mut self.stream else { return };
        let mut model = world.model.borrow_mut();
        let account = model.accounts.entry(self.number).or_default();
        if account.shut {
            return;
        }
        match stream.write(bytes) {
            Ok(count) => {
                account.sent.extend(&bytes[..count]);
                self.sent += count;
                let (number, said) = (self.number, &bytes[..count]);
                model.note(&|| format!("connection {number} says {said:?}"), number, count as u64);
            }
            Err(error) => self.told |= error.kind() != ErrorKind::WouldBlock,
        }
    }

    /// Reads up to `max` bytes, and says whether there were some.
    pub(crate) fn hear(&mut self, max: usize, world: &Shared) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut bytes = [0; 512];
        let outcome = stream.read(&mut bytes[..max]);
        let mut model = world.model.borrow_mut();
        match outcome {
            Ok(count @ 1..) => {
                model.got(self.number, &bytes[..count]);
                let shut = model.accounts.get(&self.number).is_some_and(|known| known.shut);
                model.marks.hit_if("a reply after the peer's end of file", shut);
                return true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let account = model.accounts.get(&self.number);
                if account.is_some_and(|account| account.end.is_some()) {
                    model.complain(format!("{} has ended, and its peer waits", self.number));
                }
            }
            outcome => {
                if !std::mem::replace(&mut self.over, true) {
                    let unharmed = world.lossless.get() && world.sim.counters().broken == 0;
                    if outcome.is_ok() && !self.told && unharmed {
                        model.sent_away(self.number);
                    }
                    let reset = outcome.is_err() || self.told;
                    let (now, lossless) = (world.sim.now(), world.lossless.get());
                    model.ended_for_peer(self.number, reset, now, lossless);
                }
            }
        }
        false
    }

    /// Reads everything that is there.
    pub(crate) fn hear_all(&mut self, world: &Shared) {
        while self.hear(512, world) {}
    }

    /// Says that it will send no more.
    pub(crate) fn finish(&mut self, world: &Shared) {
        if let Some(stream) = &self.stream {
            world.model.borrow_mut().accounts.entry(self.number).or_default().shut = true;
            let _ = stream.shutdown_write();
        }
    }
}
