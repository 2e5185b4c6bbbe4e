//! Fuzz driver: compares the wheel with an ordered map. Entries are armed, cancelled, postponed and
//! popped in any order. No entry may fire early or late, and none may be lost.

use std::collections::BTreeMap;

use arbtest::arbitrary::{Result, Unstructured};

use crate::ds::wheel::Wheel;
use crate::time::Tick;

/// Number of digits of a tick in base 64, which is the number of levels of the wheel.
const LEVELS: u32 = 11;

/// Returns start times just before every level boundary and before the largest tick.
pub(crate) fn epochs() -> Vec<u64> {
    let boundaries = (1..LEVELS).map(|level| 1_u64 << (level * 6));
    let mut epochs = vec![0];
    for boundary in boundaries.chain([u64::MAX]) {
        epochs.extend([70, 2, 1, 0].map(|before| boundary.saturating_sub(before)));
    }
    epochs
}

/// An entry, as its owner stores it.
#[derive(Clone, Copy, Debug)]
struct Armed {
    deadline: u64,
    /// The time of the wheel when the entry was armed. If the deadline had passed by then, the
    /// entry fires at this tick.
    from: u64,
}

/// The owner of the entries. It knows their true deadlines, and arms an entry again if the wheel
/// pops it early.
pub(crate) struct Owner {
    wheel: Wheel,
    armed: BTreeMap<usize, Armed>,
    /// The current time.
    now: u64,
    /// The time that the wheel has reached.
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

    /// Postpones a deadline without a call to the wheel, as traffic on a connection does.
    fn postpone(&mut self, index: usize, by: u64) {
        if let Some(armed) = self.armed.get_mut(&index) {
            armed.deadline = armed.deadline.saturating_add(by);
        }
    }

    /// Advances the time to `now` and pops all due entries.
    pub(crate) fn advance(&mut self, now: u64) -> Vec<(u64, usize)> {
        self.now = now;
        self.take(usize::MAX)
    }

    /// Pops due entries until `max` have fired, and arms early ones again. Returns the ticks and
    /// indices of the fired entries, in order.
    fn take(&mut self, max: usize) -> Vec<(u64, usize)> {
        let mut fired = Vec::new();
        // Each time that an entry is popped early, it is armed again at a lower level. An entry
        // that is postponed may descend through all levels twice.
        let mut early = 2 * LEVELS as usize * (1 + self.armed.len());
        while fired.len() < max {
            let Some((index, Tick(at))) = self.wheel.pop(Tick(self.now)) else {
                self.reached = self.now;
                self.check_nothing_is_due();
                break;
            };
            assert!(at <= self.now, "popped before its slot began");
            assert!(at >= self.reached, "the time went back");
            self.reached = at;
            let armed = *self.armed.get(&index).expect("only armed entries are popped");
            if armed.deadline > at {
                early = early.checked_sub(1).expect("early entries fire eventually");
                self.arm(index, armed.deadline);
                continue;
            }
            assert_eq!(at, armed.deadline.max(armed.from), "the tick at which the entry fires");
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

    /// Checks that there is a next wake if and only if there is a deadline, and that the wake is no
    /// later than the earliest deadline.
    fn check_next(&self) {
        let earliest = self.armed.values().map(|armed| armed.deadline).min();
        assert_eq!(self.next().is_some(), earliest.is_some());
        if let (Some(next), Some(earliest)) = (self.next(), earliest) {
            assert!(
                next <= earliest.max(self.reached),
                "the deadline {earliest} is before the next wake {next}"
            );
            assert!(next >= self.reached, "the next wake {next} has passed");
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
            // An overdue entry is due at once.
            2 => owner.arm(index, owner.now.saturating_sub(span)),
            3 => owner.cancel(index),
            4 => owner.postpone(index, span),
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
    assert!(owner.armed.is_empty() && owner.next().is_none(), "entries remain after the last tick");
    Ok(())
}
