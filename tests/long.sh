#!/usr/bin/env bash
# Checks that take too long for every change: fuzzing, sanitizers, valgrind, mutants, coverage and
# long simulations. Installs its tools, continues after a failed section, and prints the figures at
# the end.
#
#   bash tests/long.sh [fuzz|sanitizers|valgrind|mutants|coverage|simulation|all]...
#
# Variables, with their defaults: FUZZ_SECONDS (1800), the time for all fuzz targets together; JOBS
# (2), parallel jobs; SEEDS (20000), SEED (the time) and STEPS (10000), the number, first seed and
# length of the simulations; SHARD (none), the part of the mutants to test, such as 0/40.
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

# nightly [COMPONENT]...: installs the nightly toolchain with these components.
nightly() {
  rustup toolchain list | grep -q '^nightly' ||
    rustup toolchain install nightly --profile minimal --no-self-update
  for component; do
    rustup component add "$component" --toolchain nightly
  done
}

# tool NAME: installs a cargo subcommand.
tool() {
  command -v "$1" >/dev/null || cargo install "$1" --locked
}

# package COMMAND [PACKAGE]: installs a Debian package if the command is missing.
package() {
  command -v "$1" >/dev/null && return
  apt-get update -qq
  apt-get install -y -qq "${2:-$1}" >/dev/null
}

# tests LOG: prints the number of passed tests in the output of cargo.
tests() { awk '/^test result:/ { passed += $4 } END { print passed }' "$1"; }

fuzz_target() {
  cargo +nightly fuzz run --fuzz-dir tests/fuzz "$1" -- -max_total_time="$2" -timeout=20 \
    -rss_limit_mb=2048 -max_len=8192 -len_control=10 >"$logs/fuzz-$1" 2>&1 || {
    tail -n 40 "$logs/fuzz-$1"
    return 1
  }
}

fuzz() {
  step "fuzzing, $FUZZ_SECONDS s in total"
  nightly
  package g++
  tool cargo-fuzz
  local targets each
  mapfile -t targets < <(cargo +nightly fuzz list --fuzz-dir tests/fuzz)
  each=$((FUZZ_SECONDS / ${#targets[@]}))
  # Build all targets first, since a job that builds blocks the others.
  cargo +nightly fuzz build --fuzz-dir tests/fuzz
  export -f fuzz_target
  export logs
  printf '%s\n' "${targets[@]}" | xargs -P "$JOBS" -I '{}' bash -c "fuzz_target {} $each"
  for target in "${targets[@]}"; do
    figure "fuzz $target: $(sed -n 's/^Done //p' "$logs/fuzz-$target"), no crash," \
      "coverage $(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$logs/fuzz-$target" | tail -n 1)"
  done
}

# sanitized SANITIZER ARGUMENT...: runs cargo test with a sanitizer. Without backtraces: resolving
# the symbols of one takes a sanitized program 12 s.
sanitized() {
  RUST_BACKTRACE=0 RUSTFLAGS=-Zsanitizer=$1 cargo +nightly test --locked --target "$host" \
    --target-dir "target-$1" "${@:2}"
}

sanitizers() {
  step 'AddressSanitizer and LeakSanitizer'
  nightly rust-src
  local non_readers=peers_that_never_read_are_closed_and_do_not_affect_readers
  local restarts=two_thousand_restarts_under_traffic_leak_nothing
  # A payload that panics on drop cannot be freed. src/panics.rs leaks it on purpose.
  echo 'leak:Bomb as core::ops::drop::Drop' >"$logs/leaks"
  export LSAN_OPTIONS=suppressions=$PWD/$logs/leaks
  # Skipped tests: LeakSanitizer does not work under strace. AddressSanitizer keeps freed memory in
  # a quarantine, which looks like growth: tests that limit the growth run below with a small
  # quarantine, and tests that limit the memory per peer are skipped. libfaketime must be the first
  # library.
  sanitized address --features sim --lib --tests --no-fail-fast -- --skip traced:: \
    --skip "$non_readers" --skip "$restarts" --skip silent_peers_expire_and_use_little_memory \
    --skip peers_that_never_read_are_closed_within_their_limit --skip jumps_of_the_wall_clock \
    --skip a_jump_of_the_monotonic_clock | tee "$logs/address"
  ASAN_OPTIONS=quarantine_size_mb=1 sanitized address --test stress -- "$non_readers" "$restarts" |
    tee -a "$logs/address"
  figure "AddressSanitizer and LeakSanitizer: $(tests "$logs/address") tests, no report"

  step 'ThreadSanitizer'
  sanitized thread -Zbuild-std --lib --test behaviour --test stress --no-fail-fast -- \
    --skip "$non_readers" | tee "$logs/thread"
  figure "ThreadSanitizer: $(tests "$logs/thread") tests, no report"
}

# checked TEST FILTER: runs a test program of this package under memcheck.
checked() {
  local program log=$logs/valgrind-$1
  program=$(cargo test --locked --no-run --test "$1" 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
  # valgrind runs one thread at a time. Fair scheduling keeps threads from waiting long for others.
  valgrind --fair-sched=yes --leak-check=full --show-leak-kinds=definite,indirect \
    --errors-for-leak-kinds=definite,indirect --error-exitcode=9 --track-fds=yes \
    --log-file="$log" "$program" "$2" --test-threads 1
  # valgrind lists open descriptors but does not count them as errors.
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
  checked stress each_of_twenty_thousand_connections_is_served_or_refused
  checked behaviour unix_paths::
  checked behaviour unix_sockets::
  checked behaviour endings::
}

mutants() {
  step 'mutants'
  tool cargo-mutants
  local options=(--baseline skip --build-timeout 180 --features sim --no-times --jobs "$JOBS")
  options+=(--output "$logs" ${SHARD:+--shard "$SHARD"})
  for module in "${modules[@]}"; do options+=(--file "$module"); done
  export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0 SIM_SEED=1 SIM_COUNT=60
  # First the quick tests, where a timeout counts as caught. Then the survivors run against the
  # behaviour and allocation tests. A reader has to judge the rest: some mutants are equivalent to
  # the original.
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
  # In a separate shell, so that an error ends only this section.
  LONG_SECTION=$section bash "$0" || failed+=("$section")
done

step figures
cat "$logs/figures"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
