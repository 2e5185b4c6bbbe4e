//! Pool: the slab of workers with its wheel and its ready list; who is served, and when.
//!
//! All policy and no I/O: it hands out workers by `ConnId`, refuses stale ones, and remembers
//! which have work left and whose time is up. What is done with them is the manager's affair.

use std::mem;

use slab::Slab;

use crate::conn_state::{Deadlines, Flags};
use crate::ds::wheel::Wheel;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::sys::Event;
use crate::time::{Now, Tick};
use crate::worker::Worker;

/// Invariant: a worker is on the ready list iff its `listed` is set, and armed in the wheel iff
/// its `filed` is not `NEVER`. The ready list may hold ids of workers that are gone; they name
/// nobody.
pub(crate) struct Pool<H: Handler> {
    /// By index; `None` marks an index that is retired because its generations are used up.
    workers: Slab<Option<Worker<H>>>,
    /// By index, the generation used last.
    generations: Vec<u32>,
    ready: Vec<ConnId>,
    wheel: Wheel,
    live: usize,
    /// The slot at which the last search for an idle worker ended.
    hand: usize,
}

/// Slots that a search for an idle worker looks at: some ten kilobytes that lie together.
const EVICTION_SCAN: usize = 256;

/// What a timer turn_ended out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Its deadline had moved; it is armed again.
    Early,
    /// The time of the request that it holds has come; it is no longer armed.
    Held(ConnId),
    /// Its deadline has passed, and it is no longer armed.
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
            hand: 0,
        }
    }

    /// Makes room for `workers` at a time, so that serving that many allocates nothing.
    pub(crate) fn reserve(&mut self, workers: usize) {
        self.workers.reserve(workers.saturating_sub(self.workers.len()));
        self.generations.reserve(workers.saturating_sub(self.generations.len()));
        self.ready.reserve(workers.saturating_sub(self.ready.len()));
        self.wheel.reserve(workers);
    }

    /// Forgets who was ready, when nobody is left.
    pub(crate) fn clear_ready(&mut self) {
        self.ready.clear();
    }

    /// How many workers are busy.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// The id that the next worker inserted will have.
    pub(crate) fn next_id(&self) -> ConnId {
        let index = self.workers.vacant_key();
        let used = self.generations.get(index).copied().unwrap_or(0);
        ConnId::new(index as u32, used + 1)
    }

    /// The id that the next worker would have had, and which no worker will.
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

    /// Inserts a worker that was made for [`Pool::next_id`] and arms its deadline.
    pub(crate) fn insert(&mut self, worker: Worker<H>, deadlines: Deadlines) {
        let id = worker.state.id;
        let index = self.workers.insert(Some(worker));
        assert_eq!(index, id.index(), "a worker goes where its id says");
        if index == self.generations.len() {
            self.generations.push(0);
        }
        self.generations[index] = id.generation();
        self.live += 1;
        self.arm_timer(id, deadlines);
    }

    /// Takes a worker out, with its timer; its id names nobody from now on.
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

    /// The worker with this id, and no other that has its index now.
    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Worker<H>> {
        self.workers.get_mut(id.index())?.as_mut().filter(|worker| worker.state.id == id)
    }

    /// The ids of all workers.
    pub(crate) fn ids(&self) -> Vec<ConnId> {
        self.workers.iter().filter_map(|(_, worker)| Some(worker.as_ref()?.state.id)).collect()
    }

    /// The worker that has been idle longest, since before `ceil`, of those in the next 256 slots,
    /// going round: so it costs the requests nothing, and a newcomer no more among many.
    pub(crate) fn longest_idle(&mut self, ceil: Tick) -> Option<ConnId> {
        let slots = self.generations.len();
        let (mut longest, mut since) = (None, ceil);
        for _ in 0..slots.min(EVICTION_SCAN) {
            self.hand = (self.hand + 1) % slots;
            let Some(Some(worker)) = self.workers.get(self.hand) else { continue };
            if worker.is_idle() && worker.state.last_activity < since {
                (longest, since) = (Some(worker.state.id), worker.state.last_activity);
            }
        }
        longest
    }

    /// How many bytes the buffers have that workers keep.
    pub(crate) fn kept(&self) -> usize {
        let kept = |worker: &Option<Worker<H>>| worker.as_ref().map_or(0, |w| w.input.capacity());
        self.workers.iter().map(|(_, worker)| kept(worker)).sum()
    }

    /// Notes an edge of readiness. False if it is for a worker that is gone.
    #[inline(always)]
    pub(crate) fn mark_ready(&mut self, id: ConnId, event: Event) -> bool {
        let Some(worker) = self.get_mut(id) else { return false };
        if worker.note_event(event) && !mem::replace(&mut worker.state.queued, true) {
            self.ready.push(id);
        }
        true
    }

    /// Puts a worker at the end of the ready list, unless it is there already.
    pub(crate) fn enqueue(&mut self, id: ConnId) {
        let Some(worker) = self.get_mut(id) else { return };
        if !mem::replace(&mut worker.state.queued, true) {
            self.ready.push(id);
        }
    }

    /// Whether somebody is on the ready list.
    pub(crate) fn any_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Moves the ready list to the end of `into`. A worker on it stays listed until it is
    /// unlisted; the ids may be stale.
    pub(crate) fn take_ready(&mut self, into: &mut Vec<ConnId>) {
        if into.is_empty() {
            mem::swap(into, &mut self.ready);
        } else {
            into.append(&mut self.ready);
        }
    }

    /// The worker with this id, whose entry of the ready list is used up now.
    pub(crate) fn dequeue(&mut self, id: ConnId) -> Option<&mut Worker<H>> {
        let worker = self.get_mut(id)?;
        worker.state.queued = false;
        Some(worker)
    }

    /// Makes sure that a worker is armed not later than its deadline. Traffic moves deadlines
    /// away, which costs nothing here: the timer comes early and is armed again then.
    pub(crate) fn arm_timer(&mut self, id: ConnId, deadlines: Deadlines) {
        let Some(worker) = self.get_mut(id) else { return };
        worker.state.flags.remove(Flags::TIMER_STALE);
        let due = worker.state.due(deadlines);
        if due < worker.state.armed_at {
            worker.state.armed_at = due;
            self.wheel.arm(id.index(), due);
        }
    }

    /// The tick at which [`Pool::pop_due`] has something to do; `NEVER` if there is none.
    pub(crate) fn next_due(&self) -> Tick {
        self.wheel.next().unwrap_or(Tick::NEVER)
    }

    /// Takes one timer that has come, if there is one. Mostly there is none, so that nothing is
    /// copied to ask.
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
    use crate::conn_state::ConnState;
    use crate::handler::Conn;
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
        pool.insert(Worker::new(ConnState::new(id, now(0)), socket, ()), deadlines());
        id
    }

    /// Who was on the ready list.
    fn serve(pool: &mut Pool<Ignore>) -> Vec<ConnId> {
        let mut ready = Vec::new();
        pool.take_ready(&mut ready);
        for &id in &ready {
            assert!(pool.dequeue(id).is_some());
        }
        ready
    }

    fn event(readable: bool, writable: bool) -> Event {
        Event { token: 0, readable, writable, closed: false, priority: false }
    }

    /// What the pool keeps for one: its slot, its generation, its place on the ready list, its
    /// links in the wheel and where it is filed. A buffer is none of it.
    #[test]
    fn an_idle_connection_costs_less_than_200_bytes() {
        let worker = size_of::<Option<Worker<Ignore>>>() + size_of::<usize>();
        let extra =
            size_of::<u32>() + size_of::<ConnId>() + 2 * size_of::<u32>() + size_of::<u16>();
        assert!(worker + extra < 200, "{worker} and {extra} bytes");
    }

    #[test]
    fn an_event_of_a_dead_worker_does_not_reach_its_successor() {
        let mut pool = Pool::new();
        let first = insert(&mut pool);
        assert!(pool.remove(first).is_some());
        let second = insert(&mut pool);
        assert_eq!(first.index(), second.index(), "slab hands out the index again");
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
    fn an_id_that_is_used_up_is_no_worker_s_before_or_after() {
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
    fn a_worker_is_listed_once_however_many_events_come() {
        let mut pool = Pool::new();
        let id = insert(&mut pool);
        assert!(pool.mark_ready(id, event(true, false)) && pool.mark_ready(id, event(true, true)));
        assert_eq!(pool.ready.len(), 1);
        assert_eq!(serve(&mut pool), [id]);
        pool.enqueue(id);
        assert_eq!(pool.ready.len(), 1, "served, it can be listed again");
    }

    #[test]
    fn a_writable_event_lists_only_who_owes() {
        let mut pool = Pool::new();
        let id = insert(&mut pool);
        pool.mark_ready(id, event(false, true));
        assert_eq!(pool.ready.len(), 0);
        assert!(pool.get_mut(id).unwrap().queue_output(b"owed", 9));
        pool.mark_ready(id, event(true, false));
        assert_eq!(pool.ready.len(), 0, "one that owes is not read");
        pool.mark_ready(id, event(false, true));
        assert_eq!(pool.ready.len(), 1);
        assert!(pool.get_mut(id).unwrap().state.readable, "what is there to read is remembered");
        serve(&mut pool);
        pool.mark_ready(id, Event { closed: true, ..event(false, false) });
        assert_eq!(pool.ready.len(), 1, "a reset is found by the next write");
    }

    /// Linux says that a reset socket is readable as well; kqueue and poll need not.
    #[test]
    fn an_end_or_urgent_data_alone_is_something_to_read() {
        let mut pool = Pool::new();
        for (closed, priority) in [(true, false), (false, true)] {
            let id = insert(&mut pool);
            pool.mark_ready(id, Event { closed, priority, ..event(false, false) });
            assert_eq!(serve(&mut pool), [id]);
            let state = &pool.get_mut(id).unwrap().state;
            assert!(state.readable && state.must_drain);
        }
    }

    #[test]
    fn a_paused_worker_is_remembered_as_readable_but_not_served() {
        let mut pool = Pool::new();
        let id = insert(&mut pool);
        pool.get_mut(id).unwrap().state.flags.insert(Flags::PAUSED);
        pool.mark_ready(id, event(true, true));
        assert_eq!(pool.ready.len(), 0);
        assert!(pool.get_mut(id).unwrap().state.readable);
    }

    #[test]
    fn the_longest_idle_is_found_among_a_bounded_number_going_round() {
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
            "half of them at a time"
        );
        for &id in &ids[2..] {
            pool.remove(id);
        }
        pool.get_mut(ids[1]).unwrap().state.flags.insert(Flags::PAUSED);
        let found = [(); 2].map(|()| pool.longest_idle(Tick(1_001)));
        assert!(found.contains(&Some(ids[0])), "a paused one is not idle");
        let found = [(); 2].map(|()| pool.longest_idle(Tick(1_000)));
        assert_eq!(found, [None; 2], "it has just moved");
    }

    #[test]
    fn a_clock_that_stands_still_arms_no_timer() {
        let mut pool = Pool::new();
        let id = insert(&mut pool);
        pool.get_mut(id).unwrap().state.flags.insert(Flags::PAUSED);
        while pool.pop_due(now(5_000), &deadlines()).is_some() {}
        pool.arm_timer(id, deadlines());
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
