#!/usr/bin/env bash
# HAProxy in front of two processes: client addresses, drain, a rolling restart, a killed process.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TERM_COLOR=never

if ! command -v haproxy >/dev/null || ! command -v nc >/dev/null || ! command -v socat >/dev/null; then
  apt-get update -qq
  apt-get install -y -qq haproxy netcat-openbsd socat >/dev/null
fi
quick=(--release --locked --config profile.release.lto=false --config profile.release.codegen-units=16)
cargo build -q "${quick[@]}" --example balanced
cargo build -q "${quick[@]}" -p bench --bin load
release=${CARGO_TARGET_DIR:-target}/release

home=$(mktemp -d)
declare -A process
others=()
end() {
  for pid in "${process[@]}" "${others[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$home"
}
trap end EXIT
until_true() { # WHAT COMMAND...
  local what=$1
  shift
  for _ in $(seq 200); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.05
  done
  echo "timed out: $what" >&2
  cat "$home"/*.err >&2
  return 1
}

base=$((20000 + RANDOM % 10000))
export BIND=127.0.0.1:$base ONE=127.0.0.1:$((base + 1)) TWO=127.0.0.1:$((base + 2))
export ONE_AGENT=$((base + 3)) TWO_AGENT=$((base + 4))
start() { # NAME ADDR AGENT
  : >"$home/$1.out"
  "$release/examples/balanced" --listen "$2" --agent "127.0.0.1:$3" --trust 127.0.0.0/8 \
    --drain-ms 1000 >"$home/$1.out" 2>>"$home/$1.err" &
  process[$1]=$!
  until_true "$1 listens" grep -q listening "$home/$1.out"
}
status() { # NAME: prints the status that HAProxy reports
  echo 'show stat' | socat - "UNIX-CONNECT:$home/stats" | awk -F, -v name="$1" '$2 == name { print $18, $19 }'
}
is() { # NAME STATUS
  [[ $(status "$1") == "$2"* ]]
}

start one "$ONE" "$ONE_AGENT"
start two "$TWO" "$TWO_AGENT"
printf 'global\n    stats socket %s/stats\n' "$home" >"$home/stats.cfg"
haproxy -c -q -f examples/haproxy/haproxy.cfg
haproxy -db -f examples/haproxy/haproxy.cfg -f "$home/stats.cfg" >"$home/haproxy.out" 2>"$home/haproxy.err" &
others+=($!)
until_true 'HAProxy serves' is one UP
until_true 'HAProxy serves' is two UP
haproxy -v | sed -n 1p

echo '-- client address and agent report'
# HAProxy itself connects from 127.0.0.1, the client from 127.0.0.77.
answer=$(echo who | nc -N -w 5 -s 127.0.0.77 127.0.0.1 "$base")
echo "client $answer, agent: $(nc -w 5 127.0.0.1 "$ONE_AGENT")"
[[ $answer == 127.0.0.77:* ]]

echo '-- health checks and agent checks cause no request'
sleep 1
kill -TERM "${process[two]}"
until_true 'two drains' is two DRAIN
wait "${process[two]}"
tail -1 "$home/two.out"
grep -Eq ' [01] requests,' "$home/two.out"
start two "$TWO" "$TWO_AGENT"
until_true 'two is back' is two UP

echo '-- a rolling restart under load'
timeout 60 "$release/load" "$BIND" --churn --connections 16 --duration 12 >"$home/load" 2>&1 &
load=$!
others+=("$load")
for name in one two; do
  sleep 0.5
  kill -TERM "${process[$name]}"
  until_true "$name drains" is "$name" DRAIN
  wait "${process[$name]}"
  tail -1 "$home/$name.out" | cut -d';' -f1-4
  if [ $name = one ]; then start one "$ONE" "$ONE_AGENT"; else start two "$TWO" "$TWO_AGENT"; fi
  until_true "$name is back" is "$name" UP
done
if ! wait "$load"; then
  cat "$home/load" "$home"/*.err
  exit 1
fi
grep -E 'requests|throughput' "$home/load"

echo '-- a process is killed: its clients retry and are served'
for client in 1 2 3 4; do
  (
    again=0
    for number in $(seq 60); do
      until [ "$(echo "$client.$number" | nc -N -w 2 127.0.0.1 "$base")" = "$client.$number" ]; do
        again=$((again + 1))
        [ $again -lt 50 ]
      done
    done
    echo "client $client: 60 replies, $again retries" >>"$home/clients"
  ) &
  others+=($!)
  clients+=($!)
done
sleep 0.3
kill -KILL "${process[one]}"
wait "${process[one]}" 2>/dev/null || true
for pid in "${clients[@]}"; do wait "$pid"; done
cat "$home/clients"
until_true 'one is down' is one DOWN
for name in one two; do echo "$name: $(status $name)"; done
