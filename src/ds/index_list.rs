//! Intrusive doubly linked lists over slot indices. Appending and removing are O(1). Appending
//! allocates only if the index is larger than all indices that were appended before.
//!
//! An index is in at most one list at a time. The timer wheel and the lingering sockets use these
//! lists.

/// Stands for no index. A `front` of `NONE` means that the list is empty. A `next` of `NONE` means
/// that the index is in no list.
const NONE: u32 = u32::MAX;

/// One list, stored as the index at its front.
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
/// Invariant: an index is in no list iff its `next` is `NONE`. The links of a list form a ring, so
/// the front's `prev` is the back.
#[derive(Debug, Default)]
pub(crate) struct Links {
    links: Vec<Link>,
}

impl Links {
    pub(crate) fn reserve(&mut self, indices: usize) {
        self.links.reserve(indices.saturating_sub(self.links.len()));
    }

    /// Returns whether `index` is in a list.
    pub(crate) fn contains(&self, index: usize) -> bool {
        self.links.get(index).is_some_and(|link| link.next != NONE)
    }

    /// Appends `index`, which must not be in a list.
    pub(crate) fn push_back(&mut self, list: &mut List, index: usize) {
        debug_assert!(!self.contains(index), "{index} is already in a list");
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

    /// Removes `index`, which must be in `list`.
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

    /// Runs all sequences of six operations on three indices, and compares the list with a deque.
    #[test]
    fn all_short_sequences_of_operations_agree_with_a_deque() {
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
