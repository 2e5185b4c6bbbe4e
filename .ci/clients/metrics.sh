#!/usr/bin/env bash
# The counters of examples/metrics, read with curl while the service is idle, busy and full.
set -euo pipefail
cd "$(dirname "$0")/../.."
apt-get install -y -qq curl netcat-openbsd python3-prometheus-client >/dev/null
quick=(--config profile.release.lto=false --config profile.release.codegen-units=16)
cargo build --quiet --release --locked "${quick[@]}" --example metrics
output=$(mktemp)
"${CARGO_TARGET_DIR:-target}/release/examples/metrics" \
  --listen 127.0.0.1:0 --metrics 127.0.0.1:0 --max 1 >"$output" 2>/dev/null &
server=$!
trap 'kill $server 2>/dev/null || true; rm -f "$output"' EXIT
for _ in $(seq 100); do grep -q 'metrics on' "$output" && break; sleep 0.05; done
port=$(sed -n 's/^listening on 127.0.0.1:\([0-9]*\);.*/\1/p' "$output")
url=$(sed -n 's/.*try: curl \(.*\)/\1/p' "$output")

value() { curl -sS --fail --max-time 5 "$url" | awk -v name="$1" '$1 == name { print $2 }'; }
expect() { test "$(value "$1")" = "$2" || { echo "$1 is $(value "$1"), not $2" >&2; exit 1; }; }

expect pool_manager_connections 0
test "$(echo hello | nc -N -w 5 127.0.0.1 "$port")" = hello
expect pool_manager_put_total 1
expect pool_manager_read_bytes_total 6
expect 'pool_manager_closed_total{reason="eof"}' 1
# The counters are available while the service is full and refuses connections.
exec 3<>"/dev/tcp/127.0.0.1/$port"
echo hello >&3 && read -r -t 5 <&3
test "$(nc -w 5 127.0.0.1 "$port" </dev/null)" = ERROR_SERVER_BUSY
expect pool_manager_connections 1
expect pool_manager_busy_total 1
exec 3>&-
head=$(curl -sS --max-time 5 -D - -o /dev/null "$url")
grep -q '^Content-Type: text/plain; version=0.0.4' <<<"$head"
for wrong in "404 ${url%/metrics}/other" "405 -X DELETE $url"; do
  read -r code arguments <<<"$wrong"
  # shellcheck disable=SC2086
  test "$(curl -sS --max-time 5 -o /dev/null -w '%{http_code}' $arguments)" = "$code"
done
text=$(curl -sS --max-time 5 "$url")
parsed=$(/usr/bin/python3 -c 'import sys
from prometheus_client.parser import text_string_to_metric_families as families
found = list(families(sys.stdin.read()))
assert all(family.documentation and family.type in ("counter", "gauge") for family in found)
print(len(found), "families,", sum(len(family.samples) for family in found), "samples")' <<<"$text")
kill -TERM $server
wait $server
echo "curl: $(wc -l <<<"$text") lines; prometheus_client: $parsed; metrics: $(tail -n 1 "$output")"
