//! Fuzz driver: the wheel against an ordered map. Whatever is armed, cancelled, put off and handed
//! out in whatever portions, nothing is early, late or lost.

use std::collections::BTreeMap;

use arbtest::arbitrary::{Result, Unstructured};

use crate::ds::wheel::Wheel;
use crate::time::Tick;

/// Digits of a tick in base 64: the wheel's levels.
const LEVELS: u32 = 11;

/// Starts just before every level boundary and before the end of time.
pub(crate) fn epochs() -> Vec<u64> {
    let boundaries = (1..LEVELS).map(|level| 1_u64 << (level * 6));
    let mut epochs = vec![0];
    for boundary in boundaries.chain([u64::MAX]) {
        epochs.extend([70, 2, 1, 0].map(|before| boundary.saturating_sub(before)));
    }
    epochs
}

/// An entry as its owner knows it.
#[derive(Clone, Copy, Debug)]
struct Armed {
    deadline: u64,
    /// The wheel's time when it was armed: what was overdue then is handed out at that tick.
    from: u64,
}

/// The owner's part of the contract: true deadlines, and arming again what came early.
pub(crate) struct Owner {
    wheel: Wheel,
    armed: BTreeMap<usize, Armed>,
    /// The present.
    now: u64,
    /// How far the wheel was told to go.
    reached: u64,
}

impl Owner {
    pub(crate) fn new(start: u64) -> Self {
        let wheel = Wheel::new(Tick(start));
        Self { wheel, armed: BTreeMap::new(), now: start, reached: start }
    }

    pub(crate) fn next(&self) -> Option<u64> {
        self.wheel.next().map(|next| next.0)
    }

    pub(crate) fn arm(&mut self, index: usize, deadline: u64) {
        self.armed.insert(index, Armed { deadline, from: self.reached });
        self.wheel.arm(index, Tick(deadline));
    }

    fn cancel(&mut self, index: usize) {
        self.armed.remove(&index);
        self.wheel.cancel(index);
    }

    /// Moves a deadline away without telling the wheel, as traffic does.
    fn put_off(&mut self, index: usize, by: u64) {
        if let Some(armed) = self.armed.get_mut(&index) {
            armed.deadline = armed.deadline.saturating_add(by);
        }
    }

    /// Lets time come to `now`, and takes all that is due.
    pub(crate) fn advance(&mut self, now: u64) -> Vec<(u64, usize)> {
        self.now = now;
        self.take(usize::MAX)
    }

    /// Takes at most `max` of what is due, and arms again what came early. Returns the ticks and
    /// indices that fired, in order.
    fn take(&mut self, max: usize) -> Vec<(u64, usize)> {
        let mut fired = Vec::new();
        // An early entry goes down one level at least each time; one that was put off, twice.
        let mut early = 2 * LEVELS as usize * (1 + self.armed.len());
        while fired.len() < max {
            let Some((index, Tick(at))) = self.wheel.pop(Tick(self.now)) else {
                self.reached = self.now;
                self.check_nothing_is_due();
                break;
            };
            assert!(at <= self.now, "handed out before its slot began");
            assert!(at >= self.reached, "time went back");
            self.reached = at;
            let armed = *self.armed.get(&index).expect("only what is armed is handed out");
            if armed.deadline > at {
                early = early.checked_sub(1).expect("it comes to an end");
                self.arm(index, armed.deadline);
                continue;
            }
            assert_eq!(at, armed.deadline.max(armed.from), "fires on its tick");
            self.armed.remove(&index);
            fired.push((at, index));
        }
        fired
    }

    fn check_nothing_is_due(&self) {
        for (index, armed) in &self.armed {
            assert!(armed.deadline > self.now, "{index} is late: {armed:?} at {}", self.now);
        }
    }

    /// The next wake is not later than the earliest deadline, and there is one iff there is a
    /// deadline.
    fn check_next(&self) {
        let earliest = self.armed.values().map(|armed| armed.deadline).min();
        assert_eq!(self.next().is_some(), earliest.is_some());
        if let (Some(next), Some(earliest)) = (self.next(), earliest) {
            assert!(next <= earliest.max(self.reached), "{earliest} would be late: {next}");
            assert!(next >= self.reached, "{next} is over");
        }
    }
}

pub(crate) fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let epochs = epochs();
    let mut owner = Owner::new(*u.choose(&epochs)?);
    while !u.is_empty() {
        let index = u.int_in_range(0..=15)?;
        let span = u.arbitrary::<u64>()? >> u.int_in_range(0..=63)?;
        match u.int_in_range(0..=7)? {
            0 | 1 => owner.arm(index, owner.now.saturating_add(span)),
            // What is overdue is due at once.
            2 => owner.arm(index, owner.now.saturating_sub(span)),
            3 => owner.cancel(index),
            4 => owner.put_off(index, span),
            5 => {
                owner.now = owner.now.max(owner.next().unwrap_or(0));
                owner.take(index);
            }
            6 => {
                owner.now = owner.now.saturating_add(span);
                owner.take(index);
            }
            _ => {
                owner.advance(owner.now.saturating_add(span));
            }
        }
        owner.check_next();
    }
    owner.advance(u64::MAX);
    assert!(owner.armed.is_empty() && owner.next().is_none(), "all of it comes in the end");
    Ok(())
}
