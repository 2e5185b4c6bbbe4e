#!/usr/bin/env bash
# The resp example with redis-cli and redis-benchmark. Compares the processor time of a request with
# that of redis-server.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TERM_COLOR=never
requests=${REQUESTS:-20000} rounds=${ROUNDS:-3}

if ! command -v redis-benchmark >/dev/null || ! command -v redis-server >/dev/null; then
  apt-get update -qq && apt-get install -y -qq redis-tools redis-server >/dev/null
fi
quick=(--release --config profile.release.lto=false --config profile.release.codegen-units=16)
cargo build --quiet --locked "${quick[@]}" -p resp
program=${CARGO_TARGET_DIR:-target}/release/resp

scratch=$(mktemp -d)
servers=()
trap 'kill "${servers[@]}" 2>/dev/null || true; rm -rf "$scratch"' EXIT
taskset -c 0 "$program" --listen 127.0.0.1:0 >"$scratch/out" 2>"$scratch/log" &
servers+=($!)
for _ in $(seq 100); do grep -q listening "$scratch/out" && break; sleep 0.05; done
port=$(sed -n 's/.*listening on 127.0.0.1:\([0-9]*\);.*/\1/p' "$scratch/out")
cli() { timeout 20 redis-cli -p "$port" "$@"; }
fail() { echo "resp: $*" >&2; exit 1; }
expect() { # REPLY COMMAND...
  local reply
  reply=$(cli "${@:2}") || true
  [ "$reply" = "$1" ] || fail "redis-cli ${*:2}: $reply"
}

expect PONG ping
expect OK set greeting 'hello, pool'
expect 'hello, pool' get greeting
expect OK set short-lived x ex 100
expect 100 ttl short-lived
expect 1 incr count
expect $'hello, pool\n\n1' mget greeting nothing count
expect "ERR wrong number of arguments for 'get' command" get
expect 'ERR value is not an integer or out of range' incr greeting
expect 3 del greeting count short-lived
head -c 393216 /dev/urandom | base64 -w 0 >"$scratch/value" # 524288 bytes
[ "$(cli -x set large <"$scratch/value")" = OK ] || fail 'a value of 512 KiB is refused'
cli get large | head -c 524288 | cmp - "$scratch/value" || fail 'the value differs'
echo . >>"$scratch/value"
cli -x set large <"$scratch/value" 2>&1 | grep -q 'invalid bulk length' || fail 'a longer value is accepted'
for n in $(seq 10000); do echo "SET key:$n $n"; done >"$scratch/commands"
cli --pipe <"$scratch/commands" | tail -n 1 | tee "$scratch/piped"
grep -q '^errors: 0, replies: 10000$' "$scratch/piped" || fail 'redis-cli --pipe reports errors'
printf 'get key:77\nconfig get save\ncommand docs\n' | cli >"$scratch/typed"
head -n 1 "$scratch/typed" | grep -qx 77 || fail "commands from a pipe: $(cat "$scratch/typed")"
expect 10001 dbsize
echo 'redis-cli: all replies as expected'

# PID: prints the processor time of a process in nanoseconds.
spent() { awk '{sum += $1} END {printf "%.0f\n", sum}' /proc/"$1"/task/*/schedstat; }
bench() { # PORT PIPELINE
  timeout 60 taskset -c 1 redis-benchmark -p "$1" -t ping,set,get,incr,mset \
    -n "$(($2 == 1 ? requests : 5 * requests))" -P "$2" --csv
}
for pipeline in 1 16 64; do
  bench "$port" "$pipeline" >"$scratch/bench" 2>"$scratch/errors" || fail 'redis-benchmark failed'
  [ "$(tail -n +2 "$scratch/bench" | wc -l)" = 6 ] || fail "$(cat "$scratch/bench")"
  [ ! -s "$scratch/errors" ] || fail "redis-benchmark: $(cat "$scratch/errors")"
  echo "redis-benchmark -P $pipeline, requests per second:" \
    "$(tail -n +2 "$scratch/bench" | cut -d, -f1,2 | tr -d '"' | tr ',\n' '  ')"
done

theirs=
for candidate in $(shuf -i 20000-29999 -n 5); do
  taskset -c 0 redis-server --port "$candidate" --save '' --appendonly no >"$scratch/redis" &
  servers+=($!)
  for _ in $(seq 50); do
    [ "$(redis-cli -p "$candidate" ping 2>/dev/null)" = PONG ] && theirs=$candidate && break 2
    kill -0 "${servers[-1]}" 2>/dev/null || break
    sleep 0.05
  done
done
[ -n "$theirs" ] || fail 'redis-server did not start'
for pipeline in 1 16 64; do
  for _ in $(seq "$rounds"); do
    for which in "0 $port" "-1 $theirs"; do
      read -r index at <<<"$which"
      before=$(spent "${servers[$index]}")
      count=$(($(bench "$at" "$pipeline" | tail -n +2 | wc -l) * (pipeline == 1 ? requests : 5 * requests)))
      echo "$index $((($(spent "${servers[$index]}") - before) / count))"
    done
  done | sort -k 1,1n -k 2,2n | awk -v pipeline="$pipeline" '
    { all[$1, ++count[$1]] = $2 }
    END {
      ours = all["0", int((count["0"] + 1) / 2)]; theirs = all["-1", int((count["-1"] + 1) / 2)]
      printf "-P %d: %d ns of CPU per request, redis-server %d: %.2f x\n", pipeline, ours, theirs, ours / theirs
    }'
done

kill -TERM "${servers[0]}"
wait "${servers[0]}" || fail 'resp did not stop'
tail -n 1 "$scratch/out"
if grep -q -e WARN -e ERROR "$scratch/log"; then fail "$(cat "$scratch/log")"; fi
