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
        "manager/turn.rs",
        "self.pool.next_due().min(self.tick_at);",
        "self.pool.next_due().min(if PLANTED { Tick::NEVER } else { self.tick_at });",
    ),
    canary(
        "listeners_that_are_taken_are_closed",
        "sys/sim.rs",
        "lock(&self.net).release_listener(listener.index);",
        "if PLANTED { self.close_listener(listener.clone()) } else { lock(&self.net).release_listener(listener.index) }",
    ),
    canary(
        "written_to_before_it_is_there",
        "worker/write.rs",
        "if self.state.stage() == Stage::Connecting {\n            return self.finish_connect(cx);",
        "if self.state.stage() == Stage::Connecting && !PLANTED {\n            return self.finish_connect(cx);",
    ),
    canary(
        "connecting_past_its_deadline",
        "conn_state.rs",
        "self.flags.insert(Flags::BLOCKED);\n        self.set_idle_deadline(deadline);",
        "self.flags.insert(Flags::BLOCKED);\n        if !PLANTED { self.set_idle_deadline(deadline); }",
    ),
    canary(
        "a_connect_deadline_that_outlives_the_connect",
        "conn_state.rs",
        "self.set_idle_deadline(Duration::ZERO);",
        "if !PLANTED { self.set_idle_deadline(Duration::ZERO); }",
    ),
    canary(
        "a_place_kept_by_what_cannot_begin",
        "manager/connect.rs",
        "            Err(error) => {\n                self.mailbox.permits.release();",
        "            Err(error) => {\n                if !PLANTED { self.mailbox.permits.release(); }",
    ),
    canary(
        "not_told_of_a_connect_in_vain",
        "manager/connections.rs",
        "if state.stage() == Stage::AwaitingHeader {",
        "if !opened && (PLANTED || state.stage() == Stage::AwaitingHeader) {",
    ),
    canary(
        "connecting_during_a_stop",
        "manager/stop.rs",
        "if worker.state.stage() == Stage::Connecting {\n                self.close",
        "if worker.state.stage() == Stage::Connecting && !PLANTED {\n                self.close",
    ),
    canary(
        "a_mark_that_moves_with_what_is_forgotten",
        "worker/write.rs",
        "cx.buffers.output.drop_sent();",
        "if !PLANTED { cx.buffers.output.drop_sent(); }",
    ),
    canary(
        "not_told_that_a_reply_waits",
        "worker/write.rs",
        "        if !self.state.flags.intersects(Flags::CLOSING) {\n            self.run_callback(cx, Cause::Blocked",
        "        if !self.state.flags.intersects(Flags::CLOSING) && !PLANTED {\n            self.run_callback(cx, Cause::Blocked",
    ),
    canary(
        "no_generation_check",
        "pool.rs",
        ".as_mut().filter(|worker| worker.state.id == id)",
        ".as_mut().filter(|worker| PLANTED || worker.state.id == id)",
    ),
    canary(
        "short_read_ends_despite_read_closed",
        "worker/read.rs",
        "let short = count < room && !state.must_drain;",
        "let short = count < room && (PLANTED || !state.must_drain);",
    ),
    canary(
        "ready_list_forgotten_after_the_budget",
        "manager/connections.rs",
        "Verdict::Again => self.pool.enqueue(id),",
        "Verdict::Again => if !PLANTED { self.pool.enqueue(id) },",
    ),
    canary(
        "events_refresh_the_deadline",
        "worker/visit.rs",
        "if !self.state.flags.is_empty() {\n            self.prepare",
        "if PLANTED { self.state.last_activity = cx.now.ceil; }\n        if !self.state.flags.is_empty() {\n            self.prepare",
    ),
    canary(
        "bytes_refresh_the_total_deadline",
        "worker/visit.rs",
        "&& self.state.total_from == Tick::NEVER {",
        "&& (self.state.total_from == Tick::NEVER || PLANTED) {",
    ),
    canary(
        "timers_before_io",
        "manager/turn.rs",
        "let served = self.serve_ready();\n        let expired = self.expire_due();",
        "let early = if PLANTED { self.expire_due() } else { 0 };
         let served = self.serve_ready();
         let expired = if PLANTED { early } else { self.expire_due() };",
    ),
    canary(
        "timers_before_io",
        "manager/connections.rs",
        "self.read_once_more(id);\n        let (now",
        "if !PLANTED { self.read_once_more(id); }\n        let (now",
    ),
    canary(
        "starved_listener_not_retried",
        "listeners.rs",
        "=> until.max(self.starved_until),",
        "=> if !PLANTED || self.starved_until == Tick(0) { until.max(self.starved_until) }
             else { Tick::NEVER },",
    ),
    canary(
        "paused_listener_forgotten",
        "listeners.rs",
        "Some(until) if !is_paused(permits, overload)",
        "Some(until) if !PLANTED && !is_paused(permits, overload)",
    ),
    canary(
        "closed_without_deregister",
        "manager/connections.rs",
        "self.cx.backend.deregister(&socket);",
        "if !PLANTED { self.cx.backend.deregister(&socket); }",
    ),
    canary(
        "place_leaked_when_register_fails",
        "manager/connections.rs",
        "            Err(error) => {\n                self.mailbox.permits.release();",
        "            Err(error) => {\n                if !PLANTED { self.mailbox.permits.release(); }",
    ),
    canary(
        "one_place_too_many",
        "shared/permits.rs",
        "(max == 0 || taken < max).then_some(taken + 1)",
        "(max == 0 || taken < max || PLANTED && taken == max).then_some(taken + 1)",
    ),
    canary(
        "drain_forgets_unsent_bytes",
        "manager/connections.rs",
        "filter(|worker| worker.is_idle()) else {",
        "filter(|worker| worker.is_idle() || PLANTED) else {",
    ),
    canary(
        "wheel_off_by_one_at_a_level_boundary",
        "ds/wheel.rs",
        "let slot = (deadline >> (level * BITS)) as usize % SLOTS;",
        "let late = u64::from(PLANTED && level > 0);
         let slot = ((deadline >> (level * BITS)) + late) as usize % SLOTS;",
    ),
    canary(
        "pending_cleared_after_taking",
        "shared/mailbox.rs",
        "                self.pending.store(true, Ordering::Release);\n            }",
        "                self.pending.store(!PLANTED, Ordering::Release);\n            }",
    ),
    canary(
        "desk_left_out_of_due",
        "manager/turn.rs",
        "|| self.cx.commands.has_work()",
        "|| !PLANTED && self.cx.commands.has_work()",
    ),
    canary(
        "lingering_left_out_of_due",
        "manager/turn.rs",
        "let mut due = self.lingering.next_due();",
        "let mut due = if PLANTED { Tick::NEVER } else { self.lingering.next_due() };",
    ),
    canary(
        "spares_left_out_of_due",
        "manager/turn.rs",
        "        if self.cx.buffers.can_reap() {\n            due",
        "        if self.cx.buffers.can_reap() && !PLANTED {\n            due",
    ),
    canary(
        "held_bytes_lost_at_the_end_of_file",
        "worker/visit.rs",
        "while !cx.buffers.input.is_empty() {",
        "while !cx.buffers.input.is_empty() && !(PLANTED && self.state.eof) {",
    ),
    canary(
        "delimiter_sought_too_far_on",
        "ds/buffer.rs",
        "self.scanned = self.scanned.saturating_sub(count as u32);",
        "if !PLANTED { self.scanned = self.scanned.saturating_sub(count as u32); }
         self.scanned = self.scanned.min(self.end - self.start);",
    ),
    canary(
        "bytes_moved_to_the_wrong_place",
        "ds/buffer.rs",
        "self.end -= self.start;\n        self.start = 0;\n        self.behind(max)",
        "self.end -= self.start - u32::from(PLANTED && self.start > 1);
         self.start = 0;\n        self.behind(max)",
    ),
    canary(
        "bytes_lost_when_a_buffer_grows",
        "ds/buffer.rs",
        "(0, self.len() as u32, self.scanned);",
        "(0, self.len() as u32 - u32::from(PLANTED && !self.is_empty()), self.scanned);
         other.scanned = other.scanned.min(other.end);",
    ),
    canary(
        "grown_beyond_max_request",
        "buffers.rs",
        "self.input.capacity().saturating_mul(2).min(max);",
        "self.input.capacity().saturating_mul(2).min(if PLANTED { usize::MAX } else { max });",
    ),
    canary(
        "memory_limit_ignored",
        "buffers.rs",
        "self.memory_limit == 0 || self.kept",
        "PLANTED || self.memory_limit == 0 || self.kept",
    ),
    canary(
        "memory_not_given_back",
        "buffers.rs",
        "self.kept -= buffer.capacity();",
        "if !PLANTED || buffer.capacity() <= self.buffer_size { self.kept -= buffer.capacity(); }",
    ),
    canary(
        "a_panicking_callback_s_reply_is_sent",
        "worker/callback.rs",
        "cx.buffers.output.rewind(mark);",
        "if !PLANTED { cx.buffers.output.rewind(mark); }",
    ),
    canary(
        "writable_event_ignored",
        "worker.rs",
        "event.writable || event.closed;",
        "event.writable && !PLANTED || event.closed;",
    ),
    canary(
        "pause_ignored",
        "worker/visit.rs",
        "if !self.state.flags.intersects(Flags::CLOSING | Flags::PAUSED) {",
        "if !self.state.flags.intersects(Flags::CLOSING) && (PLANTED || !self.state.flags.intersects(Flags::PAUSED)) {",
    ),
    canary(
        "no_lingering",
        "manager/connections.rs",
        "wanted && recent && state.bytes_out > 0",
        "wanted && recent && !PLANTED && state.bytes_out > 0",
    ),
    canary(
        "rate_limit_ignored",
        "conn_state.rs",
        "deadlines.rate.due(self.tat()) <= now.floor",
        "deadlines.rate.due(self.tat()) <= now.floor || PLANTED",
    ),
    canary(
        "held_back_for_ever",
        "conn_state.rs",
        "        }\n        deadlines.rate.due(self.tat())",
        "        }\n        if PLANTED { Tick::NEVER } else { deadlines.rate.due(self.tat()) }",
    ),
    canary(
        "a_peer_s_end_is_not_counted",
        "manager/connections.rs",
        "self.peer_counts.remove(id.index());",
        "if !PLANTED { self.peer_counts.remove(id.index()); }",
    ),
    canary(
        "a_place_lost_with_a_peer_too_many",
        "manager/connections.rs",
        "            if promised {\n                self.mailbox.permits.release();",
        "            if promised && !PLANTED {\n                self.mailbox.permits.release();",
    ),
    canary(
        "a_peer_too_many",
        "peer_counts.rs",
        "is_none_or(|&count| count < max)",
        "is_none_or(|&count| count < max || PLANTED)",
    ),
    canary(
        "the_newest_idle_one_evicted",
        "pool.rs",
        "worker.state.last_activity < since {",
        "(worker.state.last_activity < since || PLANTED && worker.state.last_activity < ceil) {",
    ),
    canary(
        "write_limit_ignored",
        "ds/output.rs",
        "let fits = bytes.len() <= limit.saturating_sub(self.len());",
        "let fits = PLANTED || bytes.len() <= limit.saturating_sub(self.len());",
    ),
    canary(
        "queue_reset_by_a_stop",
        "manager/stop.rs",
        "if patience.is_zero() {\n            self.listeners",
        "if PLANTED || patience.is_zero() {\n            self.listeners",
    ),
    canary(
        "newcomer_in_a_stop_closed_unheard",
        "manager/connections.rs",
        "if worker.state.accepted_in_stop && worker",
        "if !PLANTED && worker.state.accepted_in_stop && worker",
    ),
    canary(
        "what_was_sent_to_nobody_is_lost",
        "manager/execute.rs",
        "        if !taken {\n            self.give_back(id, bytes);",
        "        if !taken && !PLANTED {\n            self.give_back(id, bytes);",
    ),
    canary(
        "what_was_sent_before_a_stop_is_lost",
        "manager/stop.rs",
        "Command::Send(id, bytes) => self.give_back(id, bytes),",
        "Command::Send(id, bytes) => if !PLANTED { self.give_back(id, bytes) },",
    ),
    canary(
        "not_told_of_an_idle_turn",
        "manager/turn.rs",
        "self.cx.run_hook(H::turn_ended);",
        "if !PLANTED || events > 0 { self.cx.run_hook(H::turn_ended); }",
    ),
];
