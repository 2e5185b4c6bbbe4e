//! Intrusive doubly linked lists over slot indices: O(1) append and removal, no allocation
//! once an index has been seen.
//!
//! An index is in at most one list at a time. This room knows neither time nor what an index
//! stands for; the wheel and the lingering set build on it.

/// No index: the end of a list, or not in one.
const NONE: u32 = u32::MAX;

/// The front of one list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    front: u32,
}

impl List {
    pub(crate) const EMPTY: Self = Self { front: NONE };

    pub(crate) fn is_empty(self) -> bool {
        self.front == NONE
    }

    pub(crate) fn front(self) -> Option<usize> {
        (self.front != NONE).then_some(self.front as usize)
    }
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    prev: u32,
}

/// The links of all lists, by index.
///
/// Invariant: an index is in no list iff its `next` is `NONE`; the links of one list are a ring,
/// so that the front's `prev` is the back.
#[derive(Debug, Default)]
pub(crate) struct Links {
    links: Vec<Link>,
}

impl Links {
    pub(crate) fn reserve(&mut self, indices: usize) {
        self.links.reserve(indices.saturating_sub(self.links.len()));
    }

    /// Whether `index` is in a list.
    pub(crate) fn contains(&self, index: usize) -> bool {
        self.links.get(index).is_some_and(|link| link.next != NONE)
    }

    /// Appends `index`, which must be in no list.
    pub(crate) fn push_back(&mut self, list: &mut List, index: usize) {
        debug_assert!(!self.contains(index), "{index} is in a list already");
        if index >= self.links.len() {
            self.links.resize(index + 1, Link { next: NONE, prev: NONE });
        }
        let me = index as u32;
        if list.is_empty() {
            self.links[index] = Link { next: me, prev: me };
            list.front = me;
            return;
        }
        let back = self.links[list.front as usize].prev;
        self.links[index] = Link { next: list.front, prev: back };
        self.links[back as usize].next = me;
        self.links[list.front as usize].prev = me;
    }

    /// Takes `index` out of `list`, where it must be.
    pub(crate) fn remove(&mut self, list: &mut List, index: usize) {
        debug_assert!(self.contains(index), "{index} is in no list");
        let me = index as u32;
        let Link { next, prev } = self.links[index];
        if next == me {
            list.front = NONE;
        } else {
            self.links[prev as usize].next = next;
            self.links[next as usize].prev = prev;
            if list.front == me {
                list.front = next;
            }
        }
        self.links[index] = Link { next: NONE, prev: NONE };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// All strings of six operations over three indices, against a deque.
    #[test]
    fn every_short_string_of_operations_agrees_with_a_deque() {
        const OPERATIONS: usize = 6;
        for string in 0..OPERATIONS.pow(6) {
            let (mut links, mut list, mut model) = (Links::default(), List::EMPTY, VecDeque::new());
            let mut rest = string;
            for _ in 0..6 {
                let (operation, index) = (rest % OPERATIONS, rest % OPERATIONS % 3);
                rest /= OPERATIONS;
                let listed = model.contains(&index);
                assert_eq!(links.contains(index), listed);
                match operation {
                    0..3 if !listed => {
                        links.push_back(&mut list, index);
                        model.push_back(index);
                    }
                    3..6 if listed => {
                        links.remove(&mut list, index);
                        model.retain(|&other| other != index);
                    }
                    _ => {}
                }
                assert_eq!(list.front(), model.front().copied());
                assert_eq!(list.is_empty(), model.is_empty());
            }
        }
    }
}
