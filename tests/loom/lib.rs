//! Where other threads meet the loop, proved: loom runs every order of a few threads, with up to
//! three preemptions, over the very code of `src/mailbox.rs`, `places.rs` and `command.rs`.
//!
//! `cargo test -p pool-manager-loom`
//!
//! The build script breaks that code in several ways, the reversed order of taking and clearing
//! among them; each must be noticed.
#![cfg(test)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

mod world;

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
    println!("{} orders", orders.load(Ordering::Relaxed));
}

#[test]
fn no_wake_is_lost() {
    explore(whole::models::two_handles_post);
}

#[test]
fn what_a_batch_leaves_is_taken_by_the_next_turn() {
    explore(whole::models::a_turn_takes_a_batch);
}

#[test]
fn each_socket_is_in_one_place_when_a_stop_comes() {
    explore(whole::models::sockets_meet_a_stop);
}

#[test]
fn each_place_is_taken_once() {
    explore(whole::models::one_place_is_taken_once);
    explore(whole::models::the_loop_and_a_handle_take_places);
}

#[test]
fn who_asks_for_stats_gets_fresh_ones() {
    explore(whole::models::two_threads_wait_for_stats);
}

#[test]
fn who_asks_for_stats_at_a_stop_gets_an_answer() {
    explore(whole::models::stats_are_asked_for_at_a_stop);
}

#[test]
fn a_restart_loses_neither_wake_nor_command() {
    explore(whole::models::a_handle_posts_across_a_restart);
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_reversed_order_of_clearing_and_taking_loses_a_wake() {
    explore(cleared_after_taking::models::two_handles_post);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_mark_set_without_the_lock_loses_a_wake_across_a_restart() {
    explore(marked_without_the_lock::models::a_handle_posts_across_a_restart);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_wake_before_the_command_is_queued_is_lost() {
    explore(woken_before_it_is_queued::models::two_handles_post);
}

#[test]
#[should_panic(expected = "deadlock")]
fn what_a_batch_leaves_unmarked_is_never_taken() {
    explore(no_mark_for_what_is_left::models::a_turn_takes_a_batch);
}

#[test]
#[should_panic(expected = "each socket is in one place")]
fn a_socket_queued_after_the_door_was_shut_is_lost() {
    explore(queued_after_the_door_was_shut::models::sockets_meet_a_stop);
}

#[test]
#[should_panic(expected = "each socket is in one place")]
fn a_close_that_gives_nothing_back_loses_sockets() {
    explore(closed_without_giving_back::models::sockets_meet_a_stop);
}

#[test]
#[should_panic(expected = "deadlock")]
fn stats_published_in_silence_are_waited_for_in_vain() {
    explore(published_in_silence::models::two_threads_wait_for_stats);
}

#[test]
#[should_panic(expected = "stats of turn")]
fn an_answer_to_another_s_question_is_old() {
    explore(answered_by_any_answer::models::two_threads_wait_for_stats);
}

#[test]
#[should_panic(expected = "one place, taken by both")]
fn a_place_counted_before_it_is_taken_is_taken_twice() {
    explore(counted_before_it_is_taken::models::one_place_is_taken_once);
}
