#!/usr/bin/env bash
# Inherited sockets: from systemd, and from the previous process under load.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TERM_COLOR=never

if ! command -v nc systemd-socket-activate >/dev/null; then
  apt-get update -qq
  apt-get install -y -qq systemd netcat-openbsd >/dev/null
fi
quick=(--release --locked --config profile.release.lto=false --config profile.release.codegen-units=16)
cargo build -q "${quick[@]}" --example restart
cargo build -q "${quick[@]}" -p bench --bin load
release=${CARGO_TARGET_DIR:-target}/release

home=$(mktemp -d)
pids=()
end() {
  # A successor is not a child of this shell. It prints its process id.
  for pid in "${pids[@]}" $(sed -n 's/.*; process \([0-9]*\);.*/\1/p' "$home"/out* 2>/dev/null); do
    kill "$pid" 2>/dev/null || true
  done
  rm -rf "$home"
}
trap end EXIT
until_contains() { # FILE TEXT COUNT
  for _ in $(seq 200); do
    [ "$(grep -c "$2" "$1" || true)" -ge "$3" ] && return
    sleep 0.05
  done
  echo "timed out: $2" >&2
  cat "$1" >&2
  return 1
}
last_process() { sed -n 's/.*; process \([0-9]*\);.*/\1/p' "$1" | tail -1; }

echo '-- systemd-socket-activate'
port=$((20000 + RANDOM % 10000))
systemd-socket-activate -l "127.0.0.1:$port" "$release/examples/restart" >"$home/out1" 2>"$home/err1" &
pids+=($!)
until_contains "$home/err1" 'Listening on' 1
for word in first second; do
  answer=$(echo "$word" | nc -N -w 5 127.0.0.1 "$port")
  test "$answer" = "$word"
done
grep '; inherited;' "$home/out1"
kill -TERM "$(last_process "$home/out1")"
until_contains "$home/out1" stopped 1
grep stopped "$home/out1"

echo '-- a successor inherits the socket, five times under load'
"$release/examples/restart" --listen 127.0.0.1:0 >"$home/out2" 2>"$home/err2" &
pids+=($!)
until_contains "$home/out2" listening 1
port=$(sed -n 's/^listening on 127.0.0.1:\([0-9]*\);.*/\1/p' "$home/out2")
timeout 60 "$release/load" "127.0.0.1:$port" --churn --connections 32 --duration 6 >"$home/load" 2>&1 &
load=$!
pids+=("$load")
for restart in 1 2 3 4 5; do
  sleep 0.8
  kill -HUP "$(last_process "$home/out2")"
  until_contains "$home/out2" listening $((restart + 1))
done
if ! wait "$load"; then
  cat "$home/load" "$home/out2" "$home/err2"
  exit 1
fi
cat "$home/load"
until_contains "$home/out2" stopped 5
kill -TERM "$(last_process "$home/out2")"
until_contains "$home/out2" stopped 6
grep stopped "$home/out2"
