//! Canaries: known bugs that the simulation must find.
//!
//! The source of the library does not contain them. `simulate --canary` copies the crate and
//! inserts each bug beside the code that it replaces. In the copy, `PLANTED` becomes a call that
//! returns whether this bug is selected. No other build contains a canary.

/// A known bug. `was` is the code that it replaces, which occurs once in `file`. `becomes` is the
/// replacement.
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

/// A name occurs several times in a row if its bug needs several changes.
pub(crate) const ALL: &[Canary] = &[
    canary(
        "tick_ignored_by_next_timeout",
        "manager/turn.rs",
        "self.pool.next_due().min(self.tick_at);",
        "self.pool.next_due().min(if PLANTED { Tick::NEVER } else { self.tick_at });",
    ),
    canary(
        "taken_listeners_are_closed",
        "sys/sim.rs",
        "lock(&self.net).release_listener(listener.index);",
        "if PLANTED { self.close_listener(listener.clone()) } else { lock(&self.net).release_listener(listener.index) }",
    ),
    canary(
        "written_before_it_is_connected",
        "worker/write.rs",
        "if self.state.stage() == Stage::Connecting {\n            return self.finish_connect(cx);",
        "if self.state.stage() == Stage::Connecting && !PLANTED {\n            return self.finish_connect(cx);",
    ),
    canary(
        "connect_deadline_ignored",
        "conn_state.rs",
        "self.flags.insert(Flags::BLOCKED);\n        self.set_idle_deadline(Some(deadline));",
        "self.flags.insert(Flags::BLOCKED);\n        if !PLANTED { self.set_idle_deadline(Some(deadline)); }",
    ),
    canary(
        "connect_deadline_kept_after_the_connect",
        "conn_state.rs",
        "self.set_idle_deadline(None);",
        "if !PLANTED { self.set_idle_deadline(None); }",
    ),
    canary(
        "permit_leaked_when_a_connect_fails_to_begin",
        "manager/connect.rs",
        "            Err(error) => {\n                self.mailbox.permits.release();",
        "            Err(error) => {\n                if !PLANTED { self.mailbox.permits.release(); }",
    ),
    canary(
        "closed_not_called_for_a_failed_connect",
        "manager/connections.rs",
        "if state.stage() != Stage::AwaitingHeader {",
        "if opened || !(PLANTED || state.stage() == Stage::AwaitingHeader) {",
    ),
    canary(
        "connect_continues_during_a_stop",
        "manager/stop.rs",
        "if worker.state.stage() == Stage::Connecting {\n                self.close",
        "if worker.state.stage() == Stage::Connecting && !PLANTED {\n                self.close",
    ),
    canary(
        "sent_bytes_not_dropped_before_blocked_is_called",
        "worker/write.rs",
        "cx.buffers.output.drop_sent();",
        "if !PLANTED { cx.buffers.output.drop_sent(); }",
    ),
    canary(
        "blocked_not_called",
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
        "short_read_ends_reading_despite_read_closed",
        "worker/read.rs",
        "let short = count < room && !self.must_drain;",
        "let short = count < room && (PLANTED || !self.must_drain);",
    ),
    canary(
        "not_queued_again_after_the_budget",
        "manager/connections.rs",
        "Verdict::Again => self.pool.enqueue(id),",
        "Verdict::Again => if !PLANTED { self.pool.enqueue(id) },",
    ),
    canary(
        "any_event_restarts_the_idle_deadline",
        "worker/visit.rs",
        "if !self.state.flags.is_empty() {\n            self.prepare",
        "if PLANTED { self.state.last_activity = cx.now.ceil; }\n        if !self.state.flags.is_empty() {\n            self.prepare",
    ),
    canary(
        "bytes_restart_the_request_deadline",
        "worker/visit.rs",
        "&& self.state.total_from == Tick::NEVER {",
        "&& (self.state.total_from == Tick::NEVER || PLANTED) {",
    ),
    canary(
        "timers_run_before_io",
        "manager/turn.rs",
        "let served = self.serve_ready();\n        let expired = self.expire_due();",
        "let early = if PLANTED { self.expire_due() } else { 0 };
         let served = self.serve_ready();
         let expired = if PLANTED { early } else { self.expire_due() };",
    ),
    canary(
        "timers_run_before_io",
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
        "paused_listener_not_resumed",
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
        "permit_leaked_when_register_fails",
        "manager/connections.rs",
        "id.token()) {\n            self.mailbox.permits.release();",
        "id.token()) {\n            if !PLANTED { self.mailbox.permits.release(); }",
    ),
    canary(
        "one_permit_too_many",
        "shared/permits.rs",
        "(taken < max).then_some(taken + 1)",
        "(taken < max || PLANTED && taken == max).then_some(taken + 1)",
    ),
    canary(
        "stop_drops_unsent_bytes",
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
        "pending_not_set_for_the_remaining_commands",
        "shared/mailbox.rs",
        "            self.pending.store(true, Ordering::Release);\n        }",
        "            self.pending.store(!PLANTED, Ordering::Release);\n        }",
    ),
    canary(
        "commands_ignored_by_next_timeout",
        "manager/turn.rs",
        "|| self.cx.commands.has_work()",
        "|| !PLANTED && self.cx.commands.has_work()",
    ),
    canary(
        "lingering_ignored_by_next_timeout",
        "manager/turn.rs",
        "let mut due = self.lingering.next_due();",
        "let mut due = if PLANTED { Tick::NEVER } else { self.lingering.next_due() };",
    ),
    canary(
        "spare_buffers_ignored_by_next_timeout",
        "manager/turn.rs",
        "        if self.cx.buffers.can_reap() {\n            due",
        "        if self.cx.buffers.can_reap() && !PLANTED {\n            due",
    ),
    canary(
        "held_bytes_lost_at_end_of_file",
        "worker/visit.rs",
        "while !cx.buffers.input.is_empty() {",
        "while !cx.buffers.input.is_empty() && !(PLANTED && self.eof) {",
    ),
    canary(
        "delimiter_search_skips_bytes",
        "ds/buffer.rs",
        "self.scanned = self.scanned.saturating_sub(count as u32);",
        "if !PLANTED { self.scanned = self.scanned.saturating_sub(count as u32); }
         self.scanned = self.scanned.min(self.end - self.start);",
    ),
    canary(
        "bytes_moved_to_the_wrong_offset",
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
        "buffer_grows_beyond_max_request",
        "buffers.rs",
        "self.input.capacity().saturating_mul(2).min(max);",
        "self.input.capacity().saturating_mul(2).min(if PLANTED { usize::MAX } else { max });",
    ),
    canary(
        "memory_limit_ignored",
        "buffers.rs",
        "self.kept.saturating_add(more) <= self.memory_limit",
        "PLANTED || self.kept.saturating_add(more) <= self.memory_limit",
    ),
    canary(
        "freed_memory_not_subtracted",
        "buffers.rs",
        "self.kept -= buffer.capacity();",
        "if !PLANTED || buffer.capacity() <= self.buffer_size { self.kept -= buffer.capacity(); }",
    ),
    canary(
        "reply_of_a_panicking_callback_is_sent",
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
        "paused_deadline_ignored",
        "conn_state.rs",
        "Tick(self.last_activity.0.saturating_add(deadlines.paused))",
        "Tick(self.last_activity.0.saturating_add(if PLANTED { u64::MAX } else { deadlines.paused }))",
    ),
    canary(
        "pause_deadline_counts_from_before_the_pause",
        "conn_state.rs",
        "if !closing && self.flags.insert(Flags::PAUSED) && !self.flags.intersects(Flags::BLOCKED) {",
        "if !closing && self.flags.insert(Flags::PAUSED) && !PLANTED && !self.flags.intersects(Flags::BLOCKED) {",
    ),
    canary(
        "hang_up_ignored_while_paused",
        "worker.rs",
        "Awaits::Nothing => event.hung_up,",
        "Awaits::Nothing => event.hung_up && !PLANTED,",
    ),
    canary(
        "bytes_before_a_hang_up_not_delivered_after_a_pause",
        "worker/end_of_file.rs",
        "if self.state.stage() != Stage::Open || !cx.buffers.input.is_empty() {",
        "if self.state.stage() != Stage::Open || !PLANTED && !cx.buffers.input.is_empty() {",
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
        "rate_limited_connection_never_resumed",
        "conn_state.rs",
        "        }\n        deadlines.rate.due(self.tat())",
        "        }\n        if PLANTED { Tick::NEVER } else { deadlines.rate.due(self.tat()) }",
    ),
    canary(
        "peer_count_not_decremented",
        "manager/connections.rs",
        "self.peer_counts.remove(id.index());",
        "if !PLANTED { self.peer_counts.remove(id.index()); }",
    ),
    canary(
        "permit_leaked_when_max_per_peer_refuses",
        "manager/connections.rs",
        "            if has_permit {\n                self.mailbox.permits.release();",
        "            if has_permit && !PLANTED {\n                self.mailbox.permits.release();",
    ),
    canary(
        "max_per_peer_ignored",
        "peer_counts.rs",
        "is_none_or(|&count| count < max)",
        "is_none_or(|&count| count < max || PLANTED)",
    ),
    canary(
        "newest_idle_connection_evicted",
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
        "accept_queue_reset_by_a_stop",
        "manager/stop.rs",
        "if limit.is_zero() {\n            self.listeners",
        "if PLANTED || limit.is_zero() {\n            self.listeners",
    ),
    canary(
        "accepted_in_a_stop_and_closed_before_its_first_read",
        "manager/connections.rs",
        "if worker.accepted_in_stop && worker",
        "if !PLANTED && worker.accepted_in_stop && worker",
    ),
    canary(
        "send_to_an_unknown_connection_is_lost",
        "manager/execute.rs",
        "        if !taken {\n            self.return_undelivered(id, bytes);",
        "        if !taken && !PLANTED {\n            self.return_undelivered(id, bytes);",
    ),
    canary(
        "send_queued_before_a_stop_is_lost",
        "manager/stop.rs",
        "Command::Send(id, bytes) => self.return_undelivered(id, bytes),",
        "Command::Send(id, bytes) => if !PLANTED { self.return_undelivered(id, bytes) },",
    ),
    canary(
        "turn_ended_not_called_after_an_idle_turn",
        "manager/turn.rs",
        "self.cx.run_hook(H::turn_ended);",
        "if !PLANTED || events > 0 { self.cx.run_hook(H::turn_ended); }",
    ),
    canary(
        "a_notification_beside_commands_is_lost",
        "commands.rs",
        "self.mailbox.is_pending() && self.mailbox.take(&mut self.waiting.0, room)",
        "self.mailbox.is_pending()
            && self.mailbox.take(&mut self.waiting.0, room)
            && !(PLANTED && !self.waiting.0.is_empty())",
    ),
    canary(
        "stopping_called_for_every_request_to_stop",
        "manager/stop.rs",
        "        if !self.is_running() {\n            return;",
        "        if !self.is_running() {\n            if PLANTED { self.run_stopping_hook(); }\n            return;",
    ),
    canary(
        "a_stop_report_begun_after_the_commands_before_it",
        "manager/stop.rs",
        "        let (now, stats) = (self.cx.now, &self.cx.stats);",
        "        while PLANTED && self.cx.commands.queued() > 0 {
            if let Some(command) = self.cx.commands.next() { self.execute(command); }
        }
        let (now, stats) = (self.cx.now, &self.cx.stats);",
    ),
    canary(
        "read_closed_called_at_every_visit",
        "worker/end_of_file.rs",
        "if self.state.flags.insert(Flags::READ_CLOSED) {",
        "if self.state.flags.insert(Flags::READ_CLOSED) || PLANTED {",
    ),
    canary(
        "half_request_at_the_end_of_file_is_a_request",
        "worker.rs",
        "Found::Partial if self.eof => Step::Incomplete(Cause::Eof),",
        "Found::Partial if self.eof => if PLANTED {
            Step::Deliver(Bounds::all(input.len()), Cause::Eof)
        } else { Step::Incomplete(Cause::Eof) },",
    ),
    canary(
        "write_side_closed_before_the_output_is_sent",
        "worker/end_of_file.rs",
        "!flags.intersects(Flags::WRITE_CLOSED | Flags::BLOCKED)",
        "!flags.intersects(Flags::WRITE_CLOSED | if PLANTED { Flags::WRITE_CLOSED } else { Flags::BLOCKED })",
    ),
    canary(
        "write_side_closed_before_the_output_is_sent",
        "worker/end_of_file.rs",
        "&& cx.buffers.output.is_empty();",
        "&& (PLANTED || cx.buffers.output.is_empty());",
    ),
    canary(
        "write_side_never_closed",
        "worker/end_of_file.rs",
        "        if !due {\n",
        "        if !due || PLANTED {\n",
    ),
    canary(
        "half_open_connection_counts_as_idle",
        "worker.rs",
        "let busy = Flags::PAUSED | Flags::READ_CLOSED | Flags::FINISHED;",
        "let busy = if PLANTED { Flags::PAUSED } else {
            Flags::PAUSED | Flags::READ_CLOSED | Flags::FINISHED
        };",
    ),
    canary(
        "discarded_output_not_counted",
        "manager/connections.rs",
        "output.len() as u64 + state.discarded(),",
        "output.len() as u64 + if PLANTED { 0 } else { state.discarded() },",
    ),
    canary(
        "output_after_finish_is_sent",
        "worker/callback.rs",
        "if self.state.flags.intersects(Flags::FINISHED) && cause != Cause::Opened",
        "if !PLANTED && self.state.flags.intersects(Flags::FINISHED) && cause != Cause::Opened",
    ),
    canary(
        "silence_after_a_request_ends_without_a_callback",
        "worker/end_of_file.rs",
        "        } else {\n            self.call_incomplete(cx, cause);",
        "        } else if !PLANTED || held > 0 {\n            self.call_incomplete(cx, cause);",
    ),
    canary(
        "silent_peer_of_an_outgoing_connection_makes_a_request",
        "worker/end_of_file.rs",
        "&& !self.state.is_outgoing()",
        "&& (PLANTED || !self.state.is_outgoing())",
    ),
    canary(
        "failure_of_opened_ignored",
        "worker/callback.rs",
        "*session = Some(handler.opened(conn)?);\n            Ok(())",
        "let opened = handler.opened(conn);
            if PLANTED && opened.is_err() { return Ok(()); }
            *session = Some(opened?);\n            Ok(())",
    ),
    canary(
        "error_of_a_socket_not_reported",
        "conn_state.rs",
        "        self.set_error(error);\n        reason",
        "        if !PLANTED { self.set_error(error); }\n        reason",
    ),
];
