//! A small seeded random number generator (`SplitMix64`; Steele, Lea and Flood, OOPSLA 2014).
//!
//! The same seed gives the same numbers on every machine. It is not suited for secrets.

/// A seeded random number generator, for reproducible simulations.
///
/// ```
/// use pool_manager::sim::Rng;
/// let (mut one, mut other) = (Rng::new(7), Rng::new(7));
/// assert_eq!(one.below(100), other.below(100));
/// ```
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Creates a generator. Generators with the same seed return the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a random number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Returns a random number below `limit`, or 0 if `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        // The bias of the remainder is too small to matter in a simulation.
        (self.number() % limit.max(1) as u64) as usize
    }

    /// Returns true with a probability of `permille` in a thousand. If `permille` is 0, no random
    /// number is used up. A fault that is off therefore does not change the other random decisions.
    pub fn permille(&mut self, permille: u16) -> bool {
        permille > 0 && self.below(1000) < usize::from(permille)
    }

    /// Shuffles a slice.
    pub fn shuffle<T>(&mut self, slice: &mut [T]) {
        for last in (1..slice.len()).rev() {
            slice.swap(last, self.below(last + 1));
        }
    }
}
