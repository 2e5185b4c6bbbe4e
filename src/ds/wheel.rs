//! Wheel: a hierarchical timer wheel over slot indices (Varghese and Lauck, SOSP 1987).
//!
//! Eleven levels of 64 slots cover every 64-bit tick, so no deadline is too far and nothing
//! wraps. An entry of an upper level is handed out when its slot *begins*, which may be before
//! its deadline: the owner, who knows the true deadline, arms it again. That one rule is both
//! the cascade of the classic wheel and the lazy refresh of a deadline that traffic moved.
//! The wheel knows no I/O, no clock, and not what an index stands for.

use crate::ds::index_list::{Links, List};
use crate::time::Tick;

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 64_usize.div_ceil(BITS as usize);

/// Invariant: an entry at level `k` agrees with `elapsed` in all digits above `k` and, unless its
/// slot is the one being drained, has a digit `k` not below that of `elapsed` (above it for
/// `k > 0`); so the lowest occupied level holds the earliest entries.
#[derive(Debug)]
pub(crate) struct Wheel {
    elapsed: u64,
    links: Links,
    /// Where an armed index is filed: `level * SLOTS + slot`.
    filed: Vec<u16>,
    slots: [List; LEVELS * SLOTS],
    /// The slot that began last, until it is empty: its entries go before all others.
    draining: Option<usize>,
    /// Per level, a bit for each slot that is not empty.
    occupied: [u64; LEVELS],
    /// A bit for each level that is not empty.
    levels: u16,
    /// When [`Wheel::pop`] has something to hand out: asked each turn, so kept at hand.
    next: Option<Tick>,
}

impl Wheel {
    /// An empty wheel whose time stands at `start`.
    pub(crate) fn new(start: Tick) -> Self {
        Self {
            elapsed: start.0,
            links: Links::default(),
            filed: Vec::new(),
            slots: [List::EMPTY; LEVELS * SLOTS],
            draining: None,
            occupied: [0; LEVELS],
            levels: 0,
            next: None,
        }
    }

    pub(crate) fn reserve(&mut self, indices: usize) {
        self.links.reserve(indices);
        self.filed.reserve(indices.saturating_sub(self.filed.len()));
    }

    /// Arms `index` to be handed out at or before `deadline`, in place of what it was armed to.
    /// O(1).
    pub(crate) fn arm(&mut self, index: usize, deadline: Tick) {
        self.cancel(index);
        if index >= self.filed.len() {
            self.filed.resize(index + 1, 0);
        }
        let (level, slot) = self.place(deadline.0);
        let place = level * SLOTS + slot;
        self.filed[index] = place as u16;
        self.links.push_back(&mut self.slots[place], index);
        self.occupied[level] |= 1 << slot;
        self.levels |= 1 << level;
        let begins = self.begin(level, slot);
        self.next = Some(self.next.map_or(begins, |next| next.min(begins)));
    }

    /// Disarms `index`; nothing happens if it is not armed. O(1).
    pub(crate) fn cancel(&mut self, index: usize) {
        if !self.links.contains(index) {
            return;
        }
        let place = usize::from(self.filed[index]);
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

    /// The next tick at which [`Wheel::pop`] has something to hand out; not later than the
    /// earliest deadline. O(1).
    pub(crate) fn next(&self) -> Option<Tick> {
        self.next
    }

    /// Hands out one index whose slot has begun by `now`, with the tick it was handed out for;
    /// it is no longer armed. If its true deadline is after that tick, its owner arms it again
    /// and it comes back in time. Indices come in the order of their deadlines. O(1).
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

    /// The earliest slot that is not empty, and the tick at which it begins.
    fn first(&self) -> Option<(usize, Tick)> {
        if self.levels == 0 {
            return None;
        }
        let level = self.levels.trailing_zeros();
        let slot = self.occupied[level as usize].trailing_zeros();
        let (level, slot) = (level as usize, slot as usize);
        Some((level * SLOTS + slot, self.begin(level, slot)))
    }

    /// The tick at which a slot begins.
    fn begin(&self, level: usize, slot: usize) -> Tick {
        let shift = level as u32 * BITS;
        let above = self.elapsed.checked_shr(shift + BITS).unwrap_or(0);
        Tick(above.checked_shl(shift + BITS).unwrap_or(0) | (slot as u64) << shift)
    }

    /// The level of the highest digit in which `deadline` differs from `elapsed`, and that
    /// digit. What is overdue goes to the slot of `elapsed` itself.
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
    fn any_use_agrees_with_an_ordered_map() {
        arbtest::arbtest(drive).budget_ms(2_000);
    }

    #[test]
    fn every_distance_fires_on_its_tick_from_every_epoch() {
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
                assert!(polls <= LEVELS + 1, "{polls} wakes for one deadline");
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
    fn a_deadline_of_now_comes_back_at_once_and_starves_nobody() {
        let mut wheel = Wheel::new(Tick(100));
        wheel.arm(0, Tick(100));
        wheel.arm(1, Tick(3));
        assert_eq!(wheel.next(), Some(Tick(100)));
        assert_eq!(wheel.pop(Tick(100)), Some((0, Tick(100))));
        wheel.arm(0, Tick(100));
        assert_eq!(wheel.pop(Tick(100)), Some((1, Tick(100))), "the one armed again goes last");
    }
}
