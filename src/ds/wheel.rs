//! A hierarchical timer wheel over slot indices (Varghese and Lauck, SOSP 1987).
//!
//! Eleven levels of 64 slots cover every 64-bit tick. No deadline is therefore too far away, and
//! the wheel never wraps around. An entry of an upper level is handed out when its slot *begins*.
//! The owner of the entry knows the deadline. If the deadline is later, the owner arms the entry
//! again. The wheel therefore needs no cascade between levels. For the same reason, a timer need
//! not be moved each time activity extends its deadline.

use crate::ds::index_list::{Links, List};
use crate::time::Tick;

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 64_usize.div_ceil(BITS as usize);

/// Invariant: the deadline of an entry at level `k` agrees with `elapsed` in all base-64 digits
/// above digit `k`. For `k = 0`, digit `k` of the deadline is not less than digit `k` of `elapsed`.
/// For `k > 0`, it is greater, except for entries in the slot that is being drained. If no slot is
/// being drained, the lowest level that is not empty therefore holds the earliest entries. If the
/// deadline of an entry had already passed when the entry was armed, the value that `elapsed` had
/// at that moment counts as the deadline.
#[derive(Debug)]
pub(crate) struct Wheel {
    elapsed: u64,
    links: Links,
    /// The position in `slots` of each armed index: `level * SLOTS + slot`.
    place_of: Vec<u16>,
    slots: [List; LEVELS * SLOTS],
    /// The position of the slot that is being drained. This slot began last, and is not empty yet.
    /// Its entries are handed out before the entries of all other slots. `None` if no slot is being
    /// drained.
    draining: Option<usize>,
    /// For each level, one bit per slot that is not empty.
    occupied: [u64; LEVELS],
    /// One bit per level that is not empty.
    levels: u16,
    /// The earliest tick at which [`Wheel::pop`] hands out an index. It is stored because every
    /// turn reads it. `None` if no index is armed.
    next: Option<Tick>,
}

impl Wheel {
    /// Creates an empty wheel whose current time is `start`.
    pub(crate) fn new(start: Tick) -> Self {
        Self {
            elapsed: start.0,
            links: Links::default(),
            place_of: Vec::new(),
            slots: [List::EMPTY; LEVELS * SLOTS],
            draining: None,
            occupied: [0; LEVELS],
            levels: 0,
            next: None,
        }
    }

    pub(crate) fn reserve(&mut self, indices: usize) {
        self.links.reserve(indices);
        self.place_of.reserve(indices.saturating_sub(self.place_of.len()));
    }

    /// Arms `index` to be handed out at or before `deadline`. This replaces the previous deadline
    /// of `index`. O(1).
    pub(crate) fn arm(&mut self, index: usize, deadline: Tick) {
        self.cancel(index);
        if index >= self.place_of.len() {
            self.place_of.resize(index + 1, 0);
        }
        let (level, slot) = self.place(deadline.0);
        let place = level * SLOTS + slot;
        self.place_of[index] = place as u16;
        self.links.push_back(&mut self.slots[place], index);
        self.occupied[level] |= 1 << slot;
        self.levels |= 1 << level;
        let begins = self.begin(level, slot);
        self.next = Some(self.next.map_or(begins, |next| next.min(begins)));
    }

    /// Disarms `index`. Does nothing if it is not armed. O(1).
    pub(crate) fn cancel(&mut self, index: usize) {
        if !self.links.contains(index) {
            return;
        }
        let place = usize::from(self.place_of[index]);
        self.links.remove(&mut self.slots[place], index);
        if self.slots[place].is_empty() {
            self.draining = self.draining.filter(|&draining| draining != place);
            let (level, slot) = (place / SLOTS, place % SLOTS);
            self.occupied[level] &= !(1 << slot);
            if self.occupied[level] == 0 {
                self.levels &= !(1 << level);
            }
            self.next = match self.draining {
                Some(_) => Some(Tick(self.elapsed)),
                None => self.first().map(|(_, begins)| begins),
            };
        }
    }

    /// Returns the next tick at which [`Wheel::pop`] hands out an index, or `None` if no index is
    /// armed. The tick is not later than the earliest deadline, unless that deadline had already
    /// passed when its index was armed. O(1).
    pub(crate) fn next(&self) -> Option<Tick> {
        self.next
    }

    /// Disarms one index whose slot has begun by `now`. Returns the index and the tick at which its
    /// slot began, or `None` if there is no such index.
    ///
    /// If the deadline of the index is after that tick, the owner arms the index again, and a later
    /// call returns it in time. The returned ticks never decrease, so the indices expire in the
    /// order of their deadlines. O(1).
    #[inline]
    pub(crate) fn pop(&mut self, now: Tick) -> Option<(usize, Tick)> {
        if self.next.is_none_or(|next| next > now) {
            self.elapsed = self.elapsed.max(now.0);
            return None;
        }
        self.hand_out()
    }

    #[inline(never)]
    fn hand_out(&mut self) -> Option<(usize, Tick)> {
        if self.draining.is_none() {
            let (place, begins) = self.first()?;
            self.elapsed = begins.0;
            self.draining = Some(place);
        }
        let place = self.draining?;
        let index = self.slots[place].front()?;
        self.cancel(index);
        Some((index, Tick(self.elapsed)))
    }

    /// Returns the earliest slot that is not empty, and the tick at which it begins.
    fn first(&self) -> Option<(usize, Tick)> {
        if self.levels == 0 {
            return None;
        }
        let level = self.levels.trailing_zeros();
        let slot = self.occupied[level as usize].trailing_zeros();
        let (level, slot) = (level as usize, slot as usize);
        Some((level * SLOTS + slot, self.begin(level, slot)))
    }

    /// Returns the tick at which a slot begins.
    fn begin(&self, level: usize, slot: usize) -> Tick {
        let shift = level as u32 * BITS;
        let above = self.elapsed.checked_shr(shift + BITS).unwrap_or(0);
        Tick(above.checked_shl(shift + BITS).unwrap_or(0) | (slot as u64) << shift)
    }

    /// Returns the level and the slot for a deadline. The level is the highest base-64 digit in
    /// which the deadline differs from `elapsed`, and the slot is the value of that digit. A
    /// deadline that has passed is treated as `elapsed`.
    fn place(&self, deadline: u64) -> (usize, usize) {
        let deadline = deadline.max(self.elapsed);
        let level = (deadline ^ self.elapsed).checked_ilog2().unwrap_or(0) / BITS;
        let slot = (deadline >> (level * BITS)) as usize % SLOTS;
        (level as usize, slot)
    }
}

#[cfg(test)]
#[path = "../../tests/drivers/wheel.rs"]
mod driver;

#[cfg(test)]
mod tests {
    use super::driver::{Owner, drive, epochs};
    use super::*;

    #[test]
    fn random_operations_agree_with_an_ordered_map() {
        arbtest::arbtest(drive).budget_ms(2_000);
    }

    #[test]
    fn deadlines_at_any_distance_fire_on_their_tick() {
        for epoch in epochs() {
            let shifts = (0..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1]);
            for deadline in shifts.filter_map(|span| epoch.checked_add(span)) {
                let mut owner = Owner::new(epoch);
                owner.arm(0, deadline);
                let mut polls = 0;
                while let Some(next) = owner.next() {
                    assert!(next <= deadline, "{deadline} from {epoch} would be late");
                    assert_eq!(owner.advance(next).is_empty(), next < deadline);
                    polls += 1;
                }
                assert!(polls <= LEVELS + 1, "one deadline took {polls} wakes");
            }
        }
    }

    #[test]
    fn equal_deadlines_fire_in_the_order_they_were_armed() {
        let mut owner = Owner::new(0);
        for index in [3, 1, 2, 0] {
            owner.arm(index, 5_000);
        }
        let order: Vec<usize> = owner.advance(9_000).into_iter().map(|(_, index)| index).collect();
        assert_eq!(order, [3, 1, 2, 0]);
    }

    #[test]
    fn a_deadline_armed_again_for_now_goes_behind_the_others() {
        let mut wheel = Wheel::new(Tick(100));
        wheel.arm(0, Tick(100));
        wheel.arm(1, Tick(3));
        assert_eq!(wheel.next(), Some(Tick(100)));
        assert_eq!(wheel.pop(Tick(100)), Some((0, Tick(100))));
        wheel.arm(0, Tick(100));
        assert_eq!(
            wheel.pop(Tick(100)),
            Some((1, Tick(100))),
            "the index that was armed again comes last"
        );
    }
}
