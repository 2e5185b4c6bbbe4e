#!/usr/bin/env bash
# A manager on every core. Clients (socat) are waiting to be accepted when all managers stop.
. "$(dirname "$0")/server.bash"
packages socat util-linux iproute2
cargo build --quiet "${quick[@]}" --example sharded

serve examples/sharded --shards 2 --max 2 --deadline-ms 20000
taskset -acp "$server" | sed 's/^/taskset: /'
# Each client sends hello, reports a reset (-d) and waits for the end of the stream. Four clients
# are served; the others wait to be accepted.
echo hello >"$scratch/hello"
clients=()
for client in $(seq 200); do
  timeout 60 socat -d -t 30 "OPEN:$scratch/hello,ignoreeof!!STDOUT" "TCP:$addr" \
    >"$scratch/reply.$client" 2>"$scratch/err.$client" &
  clients+=($!)
done
connected() { ss -Htn state established "dport = :${addr#*:}" | wc -l; }
for _ in $(seq 200); do [ "$(connected)" = 200 ] && break; sleep 0.05; done
[ "$(connected)" = 200 ] || fail "$(connected) clients are connected"
answered=$(cat "$scratch"/reply.* | grep -c hello || true)
[ "$answered" = 4 ] || fail "$answered clients are served"
end
for client in "${clients[@]}"; do wait "$client" || true; done
answered=$(cat "$scratch"/reply.* | grep -c '^hello$' || true)
resets=$(cat "$scratch"/err.* | grep -ci reset || true)
grep '^shard' "$scratch/out"
[ "$answered/$resets" = 200/0 ] || fail "$answered answered, $resets reset"
echo "socat: $answered of 200 answered, $resets reset; 196 of them waited to be accepted"

# All shards accept connections.
serve examples/sharded --shards 2
for _ in $(seq 50); do
  [ "$(echo hello | socat -t 5 - "TCP:$addr")" = hello ] || fail 'no reply'
done
end
awk '/^shard/ { if ($(NF - 1) == 0) exit 1 }' "$scratch/out" || fail "$(cat "$scratch/out")"
grep '^shard' "$scratch/out"
