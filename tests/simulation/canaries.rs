//! Canaries: known bugs that the simulation must find.
//!
//! They are not in the source. `simulate --canary` makes a copy of it in which each stands beside
//! the right code, and there `PLANTED` becomes the one function that decides which of the two
//! runs; so no build that is shipped or tested otherwise has ever seen them.

/// A known bug: where it goes, the text that stands there once, and what it becomes.
pub(crate) struct Canary {
    pub(crate) name: &'static str,
    pub(crate) file: &'static str,
    pub(crate) was: &'static str,
    pub(crate) becomes: &'static str,
}

const fn canary(
    name: &'static str,
    file: &'static str,
    was: &'static str,
    becomes: &'static str,
) -> Canary {
    Canary { name, file, was, becomes }
}

/// A name may stand more than once: the bug then takes more than one change.
pub(crate) const ALL: &[Canary] = &[
    canary(
        "a_tick_left_out_of_due",
        "manager/waiting.rs",
        "self.pool.next_due().min(self.tick_at);",
        "self.pool.next_due().min(if PLANTED { Tick::NEVER } else { self.tick_at });",
    ),
    canary(
        "listeners_that_are_taken_are_closed",
        "backend/sim.rs",
        "lock(&self.net).release_listener(listener.index);",
        "if PLANTED { self.close_listener(listener.clone()) } else { lock(&self.net).release_listener(listener.index) }",
    ),
    canary(
        "written_to_before_it_is_there",
        "worker/sending.rs",
        "if self.vitals.is_connecting() {\n            return self.arrive(kit);",
        "if self.vitals.is_connecting() && !PLANTED {\n            return self.arrive(kit);",
    ),
    canary(
        "connecting_past_its_deadline",
        "vitals.rs",
        "self.state.enter(State::BLOCKED);\n        self.set_patience(deadline);",
        "self.state.enter(State::BLOCKED);\n        if !PLANTED { self.set_patience(deadline); }",
    ),
    canary(
        "a_connect_deadline_that_outlives_the_connect",
        "vitals.rs",
        "self.set_patience(Duration::ZERO);",
        "if !PLANTED { self.set_patience(Duration::ZERO); }",
    ),
    canary(
        "a_place_kept_by_what_cannot_begin",
        "manager/connecting.rs",
        "            Err(error) => {\n                self.mailbox.places.release();",
        "            Err(error) => {\n                if !PLANTED { self.mailbox.places.release(); }",
    ),
    canary(
        "not_told_of_a_connect_in_vain",
        "manager/connection.rs",
        "if unknown && !vitals.is_connecting() {",
        "if unknown && (PLANTED || !vitals.is_connecting()) {",
    ),
    canary(
        "connecting_during_a_stop",
        "manager/stopping.rs",
        "if worker.vitals.is_connecting() {\n                self.close",
        "if worker.vitals.is_connecting() && !PLANTED {\n                self.close",
    ),
    canary(
        "a_mark_that_moves_with_what_is_forgotten",
        "worker/sending.rs",
        "kit.spares.output.settle();",
        "if !PLANTED { kit.spares.output.settle(); }",
    ),
    canary(
        "not_told_that_a_reply_waits",
        "worker/sending.rs",
        "        if !self.vitals.state.any(State::ENDING) {\n            self.call(kit, Cause::Blocked",
        "        if !self.vitals.state.any(State::ENDING) && !PLANTED {\n            self.call(kit, Cause::Blocked",
    ),
    canary(
        "no_generation_check",
        "pool.rs",
        ".as_mut().filter(|worker| worker.vitals.id == id)",
        ".as_mut().filter(|worker| PLANTED || worker.vitals.id == id)",
    ),
    canary(
        "short_read_ends_despite_read_closed",
        "worker/reading.rs",
        "let short = count < room && !vitals.insistent;",
        "let short = count < room && (PLANTED || !vitals.insistent);",
    ),
    canary(
        "ready_list_forgotten_after_the_budget",
        "manager/connection.rs",
        "Verdict::Again => self.pool.list(id),",
        "Verdict::Again => if !PLANTED { self.pool.list(id) },",
    ),
    canary(
        "events_refresh_the_deadline",
        "worker/visiting.rs",
        "let held_up = if self",
        "if PLANTED { self.vitals.moved = kit.now.stamp; }\n        let held_up = if self",
    ),
    canary(
        "bytes_refresh_the_total_deadline",
        "worker/visiting.rs",
        "&& self.vitals.since == Tick::NEVER {",
        "&& (self.vitals.since == Tick::NEVER || PLANTED) {",
    ),
    canary(
        "timers_before_io",
        "manager.rs",
        "let served = self.serve_ready();\n        let expired = self.expire_due();",
        "let early = if PLANTED { self.expire_due() } else { 0 };
         let served = self.serve_ready();
         let expired = if PLANTED { early } else { self.expire_due() };",
    ),
    canary(
        "timers_before_io",
        "manager/connection.rs",
        "self.hear(id);\n        let (now",
        "if !PLANTED { self.hear(id); }\n        let (now",
    ),
    canary(
        "starved_listener_not_retried",
        "listener.rs",
        "=> until.max(self.starved_until),",
        "=> if !PLANTED || self.starved_until == Tick(0) { until.max(self.starved_until) }
             else { Tick::NEVER },",
    ),
    canary(
        "paused_listener_forgotten",
        "listener.rs",
        "Some(until) if !is_paused(places, overload)",
        "Some(until) if !PLANTED && !is_paused(places, overload)",
    ),
    canary(
        "closed_without_deregister",
        "manager/connection.rs",
        "self.kit.backend.deregister(&socket);",
        "if !PLANTED { self.kit.backend.deregister(&socket); }",
    ),
    canary(
        "place_leaked_when_register_fails",
        "manager/connection.rs",
        "            Err(error) => {\n                self.mailbox.places.release();",
        "            Err(error) => {\n                if !PLANTED { self.mailbox.places.release(); }",
    ),
    canary(
        "one_place_too_many",
        "places.rs",
        "(most == 0 || taken < most).then_some(taken + 1)",
        "(most == 0 || taken < most || PLANTED && taken == most).then_some(taken + 1)",
    ),
    canary(
        "drain_forgets_unsent_bytes",
        "manager/connection.rs",
        "filter(|worker| worker.is_idle()) else {",
        "filter(|worker| worker.is_idle() || PLANTED) else {",
    ),
    canary(
        "wheel_off_by_one_at_a_level_boundary",
        "wheel.rs",
        "let slot = (deadline >> (level * BITS)) as usize % SLOTS;",
        "let late = u64::from(PLANTED && level > 0);
         let slot = ((deadline >> (level * BITS)) + late) as usize % SLOTS;",
    ),
    canary(
        "pending_cleared_after_taking",
        "mailbox.rs",
        "                self.pending.store(true, Ordering::Release);\n            }",
        "                self.pending.store(!PLANTED, Ordering::Release);\n            }",
    ),
    canary(
        "desk_left_out_of_due",
        "manager/waiting.rs",
        "|| self.kit.commands.has_work()",
        "|| !PLANTED && self.kit.commands.has_work()",
    ),
    canary(
        "lingering_left_out_of_due",
        "manager/waiting.rs",
        "let mut due = self.lingering.next_due();",
        "let mut due = if PLANTED { Tick::NEVER } else { self.lingering.next_due() };",
    ),
    canary(
        "spares_left_out_of_due",
        "manager/waiting.rs",
        "        if self.kit.spares.can_reap() {\n            due",
        "        if self.kit.spares.can_reap() && !PLANTED {\n            due",
    ),
    canary(
        "held_bytes_lost_at_the_end_of_file",
        "worker/visiting.rs",
        "while !kit.spares.input.is_empty() {",
        "while !kit.spares.input.is_empty() && !(PLANTED && self.vitals.eof) {",
    ),
    canary(
        "delimiter_sought_too_far_on",
        "buffer.rs",
        "self.scanned = self.scanned.saturating_sub(count as u32);",
        "if !PLANTED { self.scanned = self.scanned.saturating_sub(count as u32); }
         self.scanned = self.scanned.min(self.end - self.start);",
    ),
    canary(
        "bytes_moved_to_the_wrong_place",
        "buffer.rs",
        "self.end -= self.start;\n        self.start = 0;\n        self.behind(most)",
        "self.end -= self.start - u32::from(PLANTED && self.start > 1);
         self.start = 0;\n        self.behind(most)",
    ),
    canary(
        "bytes_lost_when_a_buffer_grows",
        "buffer.rs",
        "(0, self.len() as u32, self.scanned);",
        "(0, self.len() as u32 - u32::from(PLANTED && !self.is_empty()), self.scanned);
         other.scanned = other.scanned.min(other.end);",
    ),
    canary(
        "grown_beyond_max_request",
        "spares.rs",
        "self.input.capacity().saturating_mul(2).min(most);",
        "self.input.capacity().saturating_mul(2).min(if PLANTED { usize::MAX } else { most });",
    ),
    canary(
        "memory_limit_ignored",
        "spares.rs",
        "self.memory_limit == 0 || self.kept",
        "PLANTED || self.memory_limit == 0 || self.kept",
    ),
    canary(
        "memory_not_given_back",
        "spares.rs",
        "self.kept -= buffer.capacity();",
        "if !PLANTED || buffer.capacity() <= self.buffer_size { self.kept -= buffer.capacity(); }",
    ),
    canary(
        "a_panicking_callback_s_reply_is_sent",
        "worker/calling.rs",
        "kit.spares.output.rewind(mark);",
        "if !PLANTED { kit.spares.output.rewind(mark); }",
    ),
    canary(
        "writable_event_ignored",
        "worker.rs",
        "event.writable || event.closed;",
        "event.writable && !PLANTED || event.closed;",
    ),
    canary(
        "pause_ignored",
        "worker/visiting.rs",
        "if !self.vitals.state.any(State::ENDING | State::PAUSED) {",
        "if !self.vitals.state.any(State::ENDING) && (PLANTED || !self.vitals.state.any(State::PAUSED)) {",
    ),
    canary(
        "no_lingering",
        "manager/connection.rs",
        "wanted && recent && vitals.bytes_out > 0",
        "wanted && recent && !PLANTED && vitals.bytes_out > 0",
    ),
    canary(
        "rate_limit_ignored",
        "vitals.rs",
        "deadlines.pace.due(self.evenly()) <= now.tick",
        "deadlines.pace.due(self.evenly()) <= now.tick || PLANTED",
    ),
    canary(
        "held_back_for_ever",
        "vitals.rs",
        "        }\n        deadlines.pace.due(self.evenly())",
        "        }\n        if PLANTED { Tick::NEVER } else { deadlines.pace.due(self.evenly()) }",
    ),
    canary(
        "a_peer_s_end_is_not_counted",
        "manager/connection.rs",
        "self.peers.remove(id.index());",
        "if !PLANTED { self.peers.remove(id.index()); }",
    ),
    canary(
        "a_place_lost_with_a_peer_too_many",
        "manager/connection.rs",
        "            if promised {\n                self.mailbox.places.release();",
        "            if promised && !PLANTED {\n                self.mailbox.places.release();",
    ),
    canary(
        "a_peer_too_many",
        "peers.rs",
        "is_none_or(|&count| count < most)",
        "is_none_or(|&count| count < most || PLANTED)",
    ),
    canary(
        "the_newest_idle_one_evicted",
        "pool.rs",
        "worker.vitals.moved < since {",
        "(worker.vitals.moved < since || PLANTED && worker.vitals.moved < stamp) {",
    ),
    canary(
        "write_limit_ignored",
        "output.rs",
        "let fits = bytes.len() <= limit.saturating_sub(self.len());",
        "let fits = PLANTED || bytes.len() <= limit.saturating_sub(self.len());",
    ),
    canary(
        "queue_reset_by_a_stop",
        "manager/stopping.rs",
        "if patience.is_zero() {\n            self.listeners",
        "if PLANTED || patience.is_zero() {\n            self.listeners",
    ),
    canary(
        "newcomer_in_a_stop_closed_unheard",
        "manager/connection.rs",
        "if worker.vitals.newcomer && worker",
        "if !PLANTED && worker.vitals.newcomer && worker",
    ),
    canary(
        "what_was_sent_to_nobody_is_lost",
        "manager/control.rs",
        "        if !taken {\n            self.give_back(id, bytes);",
        "        if !taken && !PLANTED {\n            self.give_back(id, bytes);",
    ),
    canary(
        "what_was_sent_before_a_stop_is_lost",
        "manager/stopping.rs",
        "Command::Send(id, bytes) => self.give_back(id, bytes),",
        "Command::Send(id, bytes) => if !PLANTED { self.give_back(id, bytes) },",
    ),
    canary(
        "not_told_of_an_idle_turn",
        "manager.rs",
        "self.kit.tell(H::turn_ended);",
        "if !PLANTED || events > 0 { self.kit.tell(H::turn_ended); }",
    ),
];
