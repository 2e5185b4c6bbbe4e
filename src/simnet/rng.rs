//! Rng: a small seeded generator (`SplitMix64`; Steele, Lea and Flood, OOPSLA 2014).
//!
//! The same seed throws the same numbers on every machine. Not for secrets.

/// A seeded source of numbers, for simulations that are to happen twice.
///
/// ```
/// use pool_manager::sim::Rng;
/// let (mut one, mut other) = (Rng::new(7), Rng::new(7));
/// assert_eq!(one.below(100), other.below(100));
/// ```
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Rng that will throw what all rng with this seed throw.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        // The bias of a remainder is far below what a simulation could notice.
        (self.number() % limit.max(1) as u64) as usize
    }

    /// True `permille` times of a thousand. Throws nothing for 0, so that a fault that is not
    /// drawn does not change the others.
    pub fn permille(&mut self, permille: u16) -> bool {
        permille > 0 && self.below(1000) < usize::from(permille)
    }

    /// Puts a slice in random order.
    pub fn shuffle<T>(&mut self, slice: &mut [T]) {
        for last in (1..slice.len()).rev() {
            slice.swap(last, self.below(last + 1));
        }
    }
}
