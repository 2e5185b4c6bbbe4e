//! Timers with the standard library: a heap with lazy deletion, and an ordered set.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use crate::Timers;

/// A heap cannot remove entries. An entry is dead if its generation differs from the generation of
/// its index. Once most entries are dead, they are removed together.
pub(crate) struct Heap {
    entries: BinaryHeap<Reverse<(u64, usize, u32)>>,
    generations: Vec<u32>,
}

impl Timers for Heap {
    fn new(count: usize) -> Self {
        Self { entries: BinaryHeap::with_capacity(count), generations: vec![0; count] }
    }

    fn arm(&mut self, index: usize, deadline: u64) {
        if self.entries.len() > 2 * self.generations.len() {
            let generations = &self.generations;
            self.entries
                .retain(|Reverse((_, index, generation))| generations[*index] == *generation);
        }
        self.entries.push(Reverse((deadline, index, self.generations[index])));
    }

    fn cancel(&mut self, index: usize) {
        self.generations[index] += 1;
    }

    fn refresh(&mut self, index: usize, deadline: u64) {
        self.cancel(index);
        self.arm(index, deadline);
    }

    fn expire(&mut self, now: u64) -> usize {
        let mut expired = 0;
        while self.entries.peek().is_some_and(|Reverse((deadline, ..))| *deadline <= now) {
            if let Some(Reverse((_, index, generation))) = self.entries.pop() {
                expired += usize::from(self.generations[index] == generation);
            }
        }
        expired
    }
}

/// An ordered set of deadlines, with the deadline of each index for removal.
pub(crate) struct Tree {
    entries: BTreeSet<(u64, usize)>,
    deadlines: Vec<u64>,
}

impl Timers for Tree {
    fn new(count: usize) -> Self {
        Self { entries: BTreeSet::new(), deadlines: vec![0; count] }
    }

    fn arm(&mut self, index: usize, deadline: u64) {
        self.deadlines[index] = deadline;
        self.entries.insert((deadline, index));
    }

    fn cancel(&mut self, index: usize) {
        self.entries.remove(&(self.deadlines[index], index));
    }

    fn refresh(&mut self, index: usize, deadline: u64) {
        self.cancel(index);
        self.arm(index, deadline);
    }

    fn expire(&mut self, now: u64) -> usize {
        let mut expired = 0;
        while self.entries.first().is_some_and(|&(deadline, _)| deadline <= now) {
            self.entries.pop_first();
            expired += 1;
        }
        expired
    }
}
