//! loom tests of the code that other threads share with the loop: `src/shared/mailbox.rs`,
//! `src/shared/permits.rs`, `src/command.rs` and `src/commands.rs`. A few threads run this code,
//! and loom tries every interleaving that has at most three preemptions.
//!
//! `cargo test -p pool-manager-loom`
//!
//! The build script also writes variants of that code with a deliberate bug. For example, one
//! variant clears `pending` after it takes commands. The tests must detect each bug.
#![cfg(test)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

mod stubs;

include!(concat!(env!("OUT_DIR"), "/variants.rs"));

const PREEMPTIONS: usize = 3;

fn explore(model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_permutations = None;
    builder.max_duration = None;
    let orders = Arc::new(AtomicUsize::new(0));
    let count = orders.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{} interleavings", orders.load(Ordering::Relaxed));
}

#[test]
fn no_wake_is_lost() {
    explore(original::models::two_handles_post);
}

#[test]
fn the_next_turn_takes_the_commands_that_a_batch_leaves() {
    explore(original::models::a_turn_takes_a_batch);
}

#[test]
fn each_socket_has_one_outcome_when_a_stop_comes() {
    explore(original::models::sockets_meet_a_stop);
}

#[test]
fn each_permit_is_taken_once() {
    explore(original::models::one_permit_is_taken_once);
    explore(original::models::the_loop_and_a_handle_take_permits);
}

#[test]
fn a_request_for_stats_gets_fresh_stats() {
    explore(original::models::two_threads_wait_for_stats);
}

#[test]
fn a_request_for_stats_during_a_stop_is_answered() {
    explore(original::models::stats_are_requested_at_a_stop);
}

#[test]
fn no_notification_is_lost() {
    explore(original::models::two_threads_notify);
}

#[test]
#[should_panic(expected = "deadlock")]
fn noting_a_notification_after_the_wake_loses_it() {
    explore(notified_after_the_wake::models::two_threads_notify);
}

#[test]
fn a_restart_loses_neither_a_wake_nor_a_command() {
    explore(original::models::a_handle_posts_across_a_restart);
}

#[test]
#[should_panic(expected = "deadlock")]
fn clearing_pending_after_taking_commands_loses_a_wake() {
    explore(pending_cleared_after_taking::models::two_handles_post);
}

#[test]
#[should_panic(expected = "deadlock")]
fn setting_pending_without_the_lock_loses_a_wake_across_a_restart() {
    explore(pending_set_without_the_lock::models::a_handle_posts_across_a_restart);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_wake_before_the_command_is_queued_is_lost() {
    explore(woken_before_the_command_is_queued::models::two_handles_post);
}

#[test]
#[should_panic(expected = "deadlock")]
fn commands_left_without_setting_pending_are_never_taken() {
    explore(pending_not_set_for_the_rest::models::a_turn_takes_a_batch);
}

#[test]
#[should_panic(expected = "each socket has one outcome")]
fn a_socket_queued_after_puts_are_refused_is_lost() {
    explore(queued_after_puts_were_refused::models::sockets_meet_a_stop);
}

#[test]
#[should_panic(expected = "each socket has one outcome")]
fn a_close_that_returns_no_commands_loses_sockets() {
    explore(closed_without_returning_commands::models::sockets_meet_a_stop);
}

#[test]
#[should_panic(expected = "deadlock")]
fn stats_published_without_a_notification_are_never_received() {
    explore(published_without_notify::models::two_threads_wait_for_stats);
}

#[test]
#[should_panic(expected = "stats of turn")]
fn an_answer_to_an_earlier_request_is_outdated() {
    explore(stats_request_number_not_increased::models::two_threads_wait_for_stats);
}

#[test]
#[should_panic(expected = "one permit, taken by both")]
fn a_permit_checked_before_it_is_taken_is_taken_twice() {
    explore(permit_checked_before_it_is_taken::models::one_permit_is_taken_once);
}
