//! The pool: the slab of workers, the ready list and the timer wheel.
//!
//! The pool does no I/O. It finds workers by `ConnId` and rejects stale ids. It finds the workers
//! that have work left, and the workers whose deadlines have passed. The manager decides what to do
//! with these workers.

use std::mem;

use slab::Slab;

use crate::conn_state::{Deadlines, Flags};
use crate::ds::wheel::Wheel;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::sys::Event;
use crate::time::{Now, Tick};
use crate::worker::Worker;

/// Invariant: a worker is on the ready list iff its `queued` is set. The timer of a worker is armed
/// iff `armed_at` of this worker is not `NEVER`. The ready list may contain ids of workers that no
/// longer exist.
pub(crate) struct Pool<H: Handler> {
    /// The workers by index. `None` marks an index that is retired because its generations are used
    /// up.
    workers: Slab<Option<Worker<H>>>,
    /// The generation that was used last at each index.
    generations: Vec<u32>,
    ready: Vec<ConnId>,
    wheel: Wheel,
    live: usize,
    /// The slot at which the last search for an idle worker ended.
    clock_hand: usize,
}

/// Maximum number of slots that one search for an idle worker reads. This many slots occupy tens of
/// kilobytes of contiguous memory.
const EVICTION_SCAN: usize = 256;

/// The meaning of a timer that fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The worker is not due yet. Its timer is armed again.
    Early,
    /// The rate limit allows the held request now. The timer is no longer armed.
    Held(ConnId),
    /// The deadline has passed. The timer is no longer armed.
    Expired(ConnId),
}

impl<H: Handler> Pool<H> {
    pub(crate) fn new() -> Self {
        Self {
            workers: Slab::new(),
            generations: Vec::new(),
            ready: Vec::new(),
            wheel: Wheel::new(Tick(0)),
            live: 0,
            clock_hand: 0,
        }
    }

    /// Reserves memory for `workers` workers, so that the pool does not allocate when they are
    /// inserted.
    pub(crate) fn reserve(&mut self, workers: usize) {
        self.workers.reserve(workers.saturating_sub(self.workers.len()));
        self.generations.reserve(workers.saturating_sub(self.generations.len()));
        self.ready.reserve(workers.saturating_sub(self.ready.len()));
        self.wheel.reserve(workers);
    }

    /// Empties the ready list. The caller must have removed all workers.
    pub(crate) fn clear_ready(&mut self) {
        self.ready.clear();
    }

    /// Returns the number of workers.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Returns the id of the next worker to insert.
    pub(crate) fn next_id(&self) -> ConnId {
        let index = self.workers.vacant_key();
        let used = self.generations.get(index).copied().unwrap_or(0);
        ConnId::new(index as u32, used + 1)
    }

    /// Takes the next id without inserting a worker, and returns it. No worker ever gets this id.
    pub(crate) fn use_up_id(&mut self) -> ConnId {
        let id = self.next_id();
        let index = self.workers.insert(None);
        if index == self.generations.len() {
            self.generations.push(0);
        }
        self.generations[index] = id.generation();
        if id.generation() < ConnId::LAST_GENERATION {
            self.workers.remove(index);
        }
        id
    }

    /// Inserts a worker with the id from [`Pool::next_id`], and arms its timer.
    pub(crate) fn insert(&mut self, worker: Worker<H>, deadlines: Deadlines) {
        let id = worker.state.id;
        let index = self.workers.insert(Some(worker));
        assert_eq!(index, id.index(), "a worker is inserted at the index of its id");
        if index == self.generations.len() {
            self.generations.push(0);
        }
        self.generations[index] = id.generation();
        self.live += 1;
        self.arm_timer(id, deadlines);
    }

    /// Removes a worker and its timer. The id of the worker is stale from now on.
    pub(crate) fn remove(&mut self, id: ConnId) -> Option<Worker<H>> {
        let slot = self.workers.get_mut(id.index())?;
        let worker = slot.take_if(|worker| worker.state.id == id)?;
        if id.generation() < ConnId::LAST_GENERATION {
            self.workers.remove(id.index());
        }
        self.wheel.cancel(id.index());
        self.live -= 1;
        Some(worker)
    }

    /// Returns the worker with this id, or `None` if the id is stale.
    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Worker<H>> {
        self.workers.get_mut(id.index())?.as_mut().filter(|worker| worker.state.id == id)
    }

    /// Returns the ids of all workers.
    pub(crate) fn ids(&self) -> Vec<ConnId> {
        self.workers.iter().filter_map(|(_, worker)| Some(worker.as_ref()?.state.id)).collect()
    }

    /// Returns the longest-idle worker among the next 256 slots, in round-robin order. Only workers
    /// whose last activity is before `ceil` are considered. The cost of a search does not depend on
    /// the number of workers. Requests have no extra cost for the search.
    pub(crate) fn longest_idle(&mut self, ceil: Tick) -> Option<ConnId> {
        let slots = self.generations.len();
        let (mut longest, mut since) = (None, ceil);
        for _ in 0..slots.min(EVICTION_SCAN) {
            self.clock_hand = (self.clock_hand + 1) % slots;
            let Some(Some(worker)) = self.workers.get(self.clock_hand) else { continue };
            if worker.is_idle() && worker.state.last_activity < since {
                (longest, since) = (Some(worker.state.id), worker.state.last_activity);
            }
        }
        longest
    }

    /// Returns the capacity in bytes of the buffers that workers keep.
    pub(crate) fn kept(&self) -> usize {
        let kept = |worker: &Option<Worker<H>>| worker.as_ref().map_or(0, |w| w.input.capacity());
        self.workers.iter().map(|(_, worker)| kept(worker)).sum()
    }

    /// Notes a readiness edge. Appends the worker to the ready list if the worker now has work.
    /// Returns false if the worker no longer exists.
    #[inline(always)]
    pub(crate) fn mark_ready(&mut self, id: ConnId, event: Event) -> bool {
        let Some(worker) = self.get_mut(id) else { return false };
        if worker.note_event(event) && !mem::replace(&mut worker.queued, true) {
            self.ready.push(id);
        }
        true
    }

    /// Appends a worker to the ready list, unless the worker is already there.
    pub(crate) fn enqueue(&mut self, id: ConnId) {
        let Some(worker) = self.get_mut(id) else { return };
        if !mem::replace(&mut worker.queued, true) {
            self.ready.push(id);
        }
    }

    /// Returns whether the ready list is not empty.
    pub(crate) fn any_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Moves the ready list to the end of `into`. The listed workers stay marked as queued until
    /// they are dequeued. The ids may be stale.
    pub(crate) fn take_ready(&mut self, into: &mut Vec<ConnId>) {
        if into.is_empty() {
            mem::swap(into, &mut self.ready);
        } else {
            into.append(&mut self.ready);
        }
    }

    /// Returns the worker with this id, and marks it as no longer on the ready list.
    pub(crate) fn dequeue(&mut self, id: ConnId) -> Option<&mut Worker<H>> {
        let worker = self.get_mut(id)?;
        worker.queued = false;
        Some(worker)
    }

    /// Ensures that the timer of a worker fires no later than the worker is due. A timer that is
    /// already armed for an earlier tick is not changed. Such a timer fires early and is then armed
    /// again.
    pub(crate) fn arm_timer(&mut self, id: ConnId, deadlines: Deadlines) {
        let Some(worker) = self.get_mut(id) else { return };
        worker.state.flags.remove(Flags::TIMER_STALE);
        let due = worker.state.due(deadlines);
        if due < worker.state.armed_at {
            worker.state.armed_at = due;
            self.wheel.arm(id.index(), due);
        }
    }

    /// Returns the tick at which [`Pool::pop_due`] has something to do, or `NEVER`.
    pub(crate) fn next_due(&self) -> Tick {
        self.wheel.next().unwrap_or(Tick::NEVER)
    }

    /// Disarms one timer that has fired. Returns the meaning of this timer. Returns `None` if no
    /// timer has fired. `deadlines` is passed by reference, because most calls return `None` and do
    /// not need a copy.
    pub(crate) fn pop_due(&mut self, now: Now, deadlines: &Deadlines) -> Option<Due> {
        let (index, at) = self.wheel.pop(now.floor)?;
        let worker = self.workers.get_mut(index)?.as_mut()?;
        let (id, due) = (worker.state.id, worker.state.due(*deadlines));
        worker.state.armed_at = Tick::NEVER;
        if due <= at {
            let deadline = worker.state.deadline(*deadlines);
            return Some(if deadline <= at { Due::Expired(id) } else { Due::Held(id) });
        }
        self.arm_timer(id, *deadlines);
        Some(Due::Early)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::conn::Conn;
    use crate::conn_state::ConnState;
    use crate::socket::Socket;
    use std::io;
    use std::os::unix::net::UnixStream;

    /// A handler without a session.
    type Ignore = fn(&mut Conn<'_>, &[u8]) -> io::Result<()>;

    fn now(millis: u64) -> Now {
        Now::new((millis, false))
    }

    fn deadlines() -> Deadlines {
        Deadlines::from(&Config::new())
    }

    fn insert(pool: &mut Pool<Ignore>) -> ConnId {
        let id = pool.next_id();
        let socket = Socket::from(UnixStream::pair().unwrap().0);
        pool.insert(Worker::new(ConnState::new(id, now(0)), socket), deadlines());
        id
    }

    /// Takes and returns the ready list.
    fn serve(pool: &mut Pool<Ignore>) -> Vec<ConnId> {
        let mut ready = Vec::new();
        pool.take_ready(&mut ready);
        for &id in &ready {
            assert!(pool.dequeue(id).is_some());
        }
        ready
    }

    fn event(readable: bool, writable: bool) -> Event {
        Event { token: 0, readable, writable, closed: false, hung_up: false, priority: false }
    }

    /// Adds up what the pool stores per connection: its slot, its generation, its entry on the
    /// ready list, and its links and its position in the wheel. An idle connection has no buffer.
    #[test]
    fn an_idle_connection_costs_less_than_200_bytes() {
        let worker = size_of::<Option<Worker<Ignore>>>() + size_of::<usize>();
        let extra =
            size_of::<u32>() + size_of::<ConnId>() + 2 * size_of::<u32>() + size_of::<u16>();
        assert!(worker + extra < 200, "{worker} and {extra} bytes");
    }

    #[test]
    fn an_event_of_a_removed_worker_does_not_reach_its_successor() {
        let mut pool = Pool::new();
        let first = insert(&mut pool);
        assert!(pool.remove(first).is_some());
        let second = insert(&mut pool);
        assert_eq!(first.index(), second.index(), "the slab reuses the index");
        assert!(!pool.mark_ready(first, event(true, true)));
        assert_eq!(pool.ready.len(), 0);
        assert!(pool.remove(first).is_none());
        assert_eq!(pool.live(), 1);
    }

    #[test]
    fn an_index_whose_generations_are_used_up_is_retired() {
        let mut pool = Pool::new();
        let id = insert(&mut pool);
        pool.remove(id);
        pool.generations[0] = ConnId::LAST_GENERATION - 1;
        let last = insert(&mut pool);
        assert_eq!((last.index(), last.generation()), (0, ConnId::LAST_GENERATION));
        assert!(pool.remove(last).is_some());
        let next = insert(&mut pool);
        assert_eq!((next.index(), next.generation()), (1, 1), "index 0 is not used again");
        assert!(pool.get_mut(last).is_none());
        assert_eq!(pool.ids(), [next]);
        assert_eq!(pool.live(), 1);
    }

    #[test]
    fn a_used_up_id_belongs_to_no_worker() {
        let mut pool = Pool::new();
        let before = insert(&mut pool);
        let ids = [(); 2].map(|()| pool.use_up_id());
        let after = insert(&mut pool);
        assert_eq!([ids[0], ids[1], after].map(ConnId::index), [1; 3]);
        assert_eq!([ids[0], ids[1], after].map(ConnId::generation), [1, 2, 3]);
        assert_eq!((pool.live(), pool.ids()), (2, vec![before, after]));
        pool.remove(after);
        pool.generations[1] = ConnId::LAST_GENERATION - 1;
        assert_eq!(pool.use_up_id().generation(), ConnId::LAST_GENERATION);
        assert_eq!(insert(&mut pool).index(), 2, "index 1 is not used again");
    }

    #[test]
    fn a_worker_is_on_the_ready_list_at_most_once() {
        let mut pool = Pool::new();
        let id = insert(&mut pool);
        assert!(pool.mark_ready(id, event(true, false)) && pool.mark_ready(id, event(true, true)));
        assert_eq!(pool.ready.len(), 1);
        assert_eq!(serve(&mut pool), [id]);
        pool.enqueue(id);
        assert_eq!(pool.ready.len(), 1, "a served worker can be enqueued again");
    }

    #[test]
    fn a_writable_event_enqueues_only_workers_with_unsent_output() {
        let mut pool = Pool::new();
        let id = insert(&mut pool);
        pool.mark_ready(id, event(false, true));
        assert_eq!(pool.ready.len(), 0);
        assert!(pool.get_mut(id).unwrap().queue_output(b"late", 9));
        pool.mark_ready(id, event(true, false));
        assert_eq!(pool.ready.len(), 0, "a worker with unsent output is not read");
        pool.mark_ready(id, event(false, true));
        assert_eq!(pool.ready.len(), 1);
        assert!(pool.get_mut(id).unwrap().readable, "the readable event is remembered");
        serve(&mut pool);
        pool.mark_ready(id, Event { closed: true, ..event(false, false) });
        assert_eq!(pool.ready.len(), 1, "the next write detects a reset");
    }

    /// Linux reports a reset socket as readable too. kqueue and poll(2) do not always do so.
    #[test]
    fn a_closed_or_priority_event_alone_enqueues_the_worker() {
        let mut pool = Pool::new();
        for (closed, priority) in [(true, false), (false, true)] {
            let id = insert(&mut pool);
            pool.mark_ready(id, Event { closed, priority, ..event(false, false) });
            assert_eq!(serve(&mut pool), [id]);
            let worker = pool.get_mut(id).unwrap();
            assert!(worker.readable && worker.must_drain);
        }
    }

    #[test]
    fn a_paused_worker_is_marked_readable_but_not_enqueued() {
        let mut pool = Pool::new();
        let id = insert(&mut pool);
        pool.get_mut(id).unwrap().state.flags.insert(Flags::PAUSED);
        pool.mark_ready(id, event(true, true));
        assert_eq!(pool.ready.len(), 0);
        assert!(pool.get_mut(id).unwrap().readable);
        pool.mark_ready(id, Event { hung_up: true, ..event(true, true) });
        assert_eq!(pool.ready, [id], "its peer has gone");
    }

    #[test]
    fn the_idle_search_scans_a_limited_number_of_slots_in_turn() {
        let mut pool = Pool::new();
        assert_eq!(pool.longest_idle(Tick::NEVER), None);
        let ids: Vec<ConnId> = (0..2 * EVICTION_SCAN).map(|_| insert(&mut pool)).collect();
        for (index, &id) in ids.iter().enumerate() {
            pool.get_mut(id).unwrap().state.last_activity = Tick(1_000 - index as u64);
        }
        let found = [(); 3].map(|()| pool.longest_idle(Tick::NEVER).unwrap().index());
        assert_eq!(
            found,
            [EVICTION_SCAN, 2 * EVICTION_SCAN - 1, EVICTION_SCAN],
            "each search scans half of the workers"
        );
        for &id in &ids[2..] {
            pool.remove(id);
        }
        pool.get_mut(ids[1]).unwrap().state.flags.insert(Flags::PAUSED);
        let found = [(); 2].map(|()| pool.longest_idle(Tick(1_001)));
        assert!(found.contains(&Some(ids[0])), "a paused worker is not idle");
        let found = [(); 2].map(|()| pool.longest_idle(Tick(1_000)));
        assert_eq!(found, [None; 2], "the worker has just moved a byte");
    }

    #[test]
    fn a_suspended_deadline_arms_no_timer() {
        let mut pool = Pool::new();
        let id = insert(&mut pool);
        let unlimited = Deadlines::from(&Config::new().paused_deadline(None));
        pool.get_mut(id).unwrap().state.flags.insert(Flags::PAUSED);
        while pool.pop_due(now(5_000), &unlimited).is_some() {}
        pool.arm_timer(id, unlimited);
        assert_eq!(pool.next_due(), Tick::NEVER);
    }

    #[test]
    fn traffic_moves_a_deadline_without_touching_the_wheel() {
        let mut pool = Pool::new();
        let id = insert(&mut pool);
        pool.get_mut(id).unwrap().state.last_activity = Tick(2_000);
        let due: Vec<Due> = std::iter::from_fn(|| pool.pop_due(now(4_999), &deadlines())).collect();
        assert!(due.iter().all(|&due| due == Due::Early), "{due:?}");
        assert!(pool.next_due() <= Tick(5_000));
        let due: Vec<Due> = std::iter::from_fn(|| pool.pop_due(now(5_000), &deadlines())).collect();
        assert_eq!(due.last(), Some(&Due::Expired(id)));
        assert_eq!(pool.next_due(), Tick::NEVER);
    }
}
