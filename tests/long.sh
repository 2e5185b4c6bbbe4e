#!/usr/bin/env bash
# What takes too long for every change: fuzzing, sanitizers, valgrind, mutants, coverage and long
# simulations. Installs what it needs, goes on where something fails, and prints its figures at the
# end.
#
#   bash tests/long.sh [fuzz|sanitizers|valgrind|mutants|coverage|simulation|all]...
#
# FUZZ_SECONDS (1800) is shared by all fuzz targets, JOBS (2) of which run at a time; SEEDS (20000)
# simulations of STEPS (10000) begin at seed SEED (the time); SHARD (as in 0/40) is that part of the
# mutants.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never

FUZZ_SECONDS=${FUZZ_SECONDS:-1800}
JOBS=${JOBS:-2}
SEEDS=${SEEDS:-20000}
STEPS=${STEPS:-10000}
SEED=${SEED:-$(date +%s)}

host=$(rustc -vV | sed -n 's/^host: //p')
modules=(src/framing.rs src/ds/buffer.rs src/ds/wheel.rs src/worker.rs src/worker/*.rs src/pool.rs
  src/listeners.rs)
logs=target/long
mkdir -p "$logs"

step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }
figure() { echo "$*" | tee -a "$logs/figures"; }

# nightly [COMPONENT]...
nightly() {
  rustup toolchain list | grep -q '^nightly' ||
    rustup toolchain install nightly --profile minimal --no-self-update
  for component; do
    rustup component add "$component" --toolchain nightly
  done
}

# tool NAME: a cargo subcommand.
tool() {
  command -v "$1" >/dev/null || cargo install "$1" --locked
}

# package COMMAND [PACKAGE]: Debian's.
package() {
  command -v "$1" >/dev/null && return
  apt-get update -qq
  apt-get install -y -qq "${2:-$1}" >/dev/null
}

# tests LOG: how many passed, by cargo's own account.
tests() { awk '/^test result:/ { passed += $4 } END { print passed }' "$1"; }

fuzz_target() {
  cargo +nightly fuzz run --fuzz-dir tests/fuzz "$1" -- -max_total_time="$2" -timeout=20 \
    -rss_limit_mb=2048 -max_len=8192 -len_control=10 >"$logs/fuzz-$1" 2>&1 || {
    tail -n 40 "$logs/fuzz-$1"
    return 1
  }
}

fuzz() {
  step "fuzzing, $FUZZ_SECONDS s in all"
  nightly
  package g++
  tool cargo-fuzz
  local targets each
  mapfile -t targets < <(cargo +nightly fuzz list --fuzz-dir tests/fuzz)
  each=$((FUZZ_SECONDS / ${#targets[@]}))
  # All of them at once: a job that builds keeps the others waiting.
  cargo +nightly fuzz build --fuzz-dir tests/fuzz
  export -f fuzz_target
  export logs
  printf '%s\n' "${targets[@]}" | xargs -P "$JOBS" -I '{}' bash -c "fuzz_target {} $each"
  for target in "${targets[@]}"; do
    figure "fuzz $target: $(sed -n 's/^Done //p' "$logs/fuzz-$target"), no crash," \
      "coverage $(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$logs/fuzz-$target" | tail -n 1)"
  done
}

# Without backtraces: to name the functions of one takes a sanitized program 12 s.
sanitized() {
  RUST_BACKTRACE=0 RUSTFLAGS=-Zsanitizer=$1 cargo +nightly test --locked --target "$host" \
    --target-dir "target-$1" "${@:2}"
}

sanitizers() {
  step 'AddressSanitizer and LeakSanitizer'
  nightly rust-src
  local deaf=peers_that_never_read_end_and_cost_those_that_do_nothing
  local restarts=two_thousand_restarts_under_traffic_leave_nothing_behind
  # A payload that panics when it is dropped cannot be freed: src/panics.rs forgets it on purpose.
  echo 'leak:Bomb as core::ops::drop::Drop' >"$logs/leaks"
  export LSAN_OPTIONS=suppressions=$PWD/$logs/leaks
  # Left out: LeakSanitizer cannot work where strace traces; memory that is not given back at once
  # looks like memory that grows, so the tests that bound it are run apart, where it is, or not at
  # all where each peer's share of it is counted; and libfaketime has to be the first library.
  sanitized address --features sim --lib --tests --no-fail-fast -- --skip traced:: \
    --skip "$deaf" --skip "$restarts" --skip reaped_at_the_idle_deadline_and_cost_little \
    --skip gone_at_their_deadline_and_cost_no_more --skip jumps_of_the_wall_clock \
    --skip a_jump_of_the_monotonic_clock | tee "$logs/address"
  ASAN_OPTIONS=quarantine_size_mb=1 sanitized address --test stress -- "$deaf" "$restarts" |
    tee -a "$logs/address"
  figure "AddressSanitizer and LeakSanitizer: $(tests "$logs/address") tests, no report"

  step 'ThreadSanitizer'
  sanitized thread -Zbuild-std --lib --test behaviour --test stress --no-fail-fast -- \
    --skip "$deaf" | tee "$logs/thread"
  figure "ThreadSanitizer: $(tests "$logs/thread") tests, no report"
}

# checked TEST FILTER: a test program of this package under memcheck.
checked() {
  local program log=$logs/valgrind-$1
  program=$(cargo test --locked --no-run --test "$1" 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
  # It runs one thread at a time: fairly, or one that waits for another waits long.
  valgrind --fair-sched=yes --leak-check=full --show-leak-kinds=definite,indirect \
    --errors-for-leak-kinds=definite,indirect --error-exitcode=9 --track-fds=yes \
    --log-file="$log" "$program" "$2" --test-threads 1
  # This version of valgrind lists open descriptors without calling them errors.
  local open
  open=$(grep -A 1 '^==[0-9]*== Open ' "$log" | grep -c -v -e '== Open ' -e 'inherited' -e '^--') ||
    true
  if [ "$open" -gt 0 ]; then
    cat "$log"
    return 1
  fi
  figure "valgrind $1 $2: $(sed -n 's/.*ERROR SUMMARY: //p' "$log"), no descriptor left open"
}

memcheck() {
  step 'valgrind'
  package valgrind
  checked stress of_twenty_thousand_connections_each_is_served_or_refused_and_counted
  checked behaviour uds::
  checked behaviour endings::
}

mutants() {
  step 'mutants'
  tool cargo-mutants
  local options=(--baseline skip --build-timeout 180 --features sim --no-times --jobs "$JOBS")
  options+=(--output "$logs" ${SHARD:+--shard "$SHARD"})
  for module in "${modules[@]}"; do options+=(--file "$module"); done
  export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0 SIM_SEED=1 SIM_COUNT=60
  # First what is quick, where a hang is a catch; what survives meets every behaviour. Survivors are
  # for a reader: some are the same program in other words.
  cargo mutants "${options[@]}" --timeout 20 -C=--lib -C=--test=simulation ||
    echo "cargo mutants: status $?"
  cat "$logs/mutants.out/timeout.txt" >>"$logs/mutants.out/caught.txt"
  cargo mutants "${options[@]}" --iterate --timeout 90 -C=--lib -C=--test=behaviour \
    -C=--test=allocation || echo "cargo mutants: status $?"
  for outcome in caught missed timeout unviable; do
    figure "mutants $outcome: $(wc -l <"$logs/mutants.out/$outcome.txt")"
  done
  sed 's/^/survived: /' "$logs/mutants.out/missed.txt"
}

coverage() {
  step 'coverage'
  nightly llvm-tools
  tool cargo-llvm-cov
  cargo +nightly llvm-cov --locked --features sim --branch --lib --tests >"$logs/coverage"
  local row
  for module in "${modules[@]}"; do
    row=$(awk -v module="${module#src/}" '$1 == module { print $10, "of lines,", $13, "of branches" }' \
      "$logs/coverage")
    figure "coverage $module: $row"
  done
}

simulation() {
  step "$SEEDS simulations of $STEPS steps from seed $SEED"
  cargo run --release --locked --features sim --example simulate -- \
    --seeds "$SEED..$((SEED + SEEDS))" --steps "$STEPS" --keep-going | tee "$logs/simulation"
  figure "simulation: $(tail -n 1 "$logs/simulation")"
}

sections=(fuzz sanitizers valgrind simulation coverage mutants)
if [ "${LONG_SECTION:-}" ]; then
  [ "$LONG_SECTION" = valgrind ] && LONG_SECTION=memcheck
  "$LONG_SECTION"
  exit
fi
wanted=("$@")
[ "${*:-all}" = all ] && wanted=("${sections[@]}")
for section in "${wanted[@]}"; do
  if [[ " ${sections[*]} " != *" $section "* ]]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
  fi
done
: >"$logs/figures"
failed=()
for section in "${wanted[@]}"; do
  # In a shell of its own, which an error ends, and nothing else.
  LONG_SECTION=$section bash "$0" || failed+=("$section")
done

step figures
cat "$logs/figures"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
