#!/usr/bin/env bash
# The forward example between clients (curl, nc) and servers (python3, socat).
. "$(dirname "$0")/server.bash"
packages curl netcat-openbsd socat python3

cargo build --quiet "${quick[@]}" --example forward
others=()
trap 'kill -KILL $server "${others[@]}" 2>/dev/null || true; rm -rf "$scratch"' EXIT

# Python's web server, with a file of 32 MiB.
mkdir "$scratch/web"
head -c 33554432 /dev/urandom >"$scratch/web/large"
python3 -u -m http.server --bind 127.0.0.1 --directory "$scratch/web" 0 >"$scratch/python" 2>&1 &
others+=($!)
waits_for '^Serving HTTP' "$scratch/python"
web=127.0.0.1:$(sed -n 's/.*port \([0-9]*\) .*/\1/p' "$scratch/python")
serve examples/forward --to "$web"
sum=$(sha256sum <"$scratch/web/large")
for _ in 1 2 3; do
  [ "$(curl -sS -m 20 "http://$addr/large" | sha256sum)" = "$sum" ] || fail 'curl: the file differs'
done
echo 'curl: 3 times 32 MiB forwarded, intact'
for _ in $(seq 50); do curl -sS -m 20 "http://$addr/large" -o /dev/null -r 0-99 & others+=($!); done
for one in "${others[@]:1}"; do wait "$one" || fail 'one of 50 concurrent requests failed'; done
others=("${others[0]}")
echo 'curl: 50 concurrent requests'
# At 16 MiB per second the forwarder buffers little and the upstream waits.
resident() { awk '/VmRSS/ { print $2 }' "/proc/$server/status"; }
[ "$(curl -sS -m 20 --limit-rate 16M "http://$addr/large" | sha256sum)" = "$sum" ] ||
  fail 'curl --limit-rate: the file differs'
[ "$(resident)" -lt 65536 ] || fail "the forwarder has $(resident) KiB"
echo "curl --limit-rate: intact; the forwarder has $(resident) KiB"

# While the upstream is down, clients are closed. Once it is back, they are served again.
kill "${others[0]}"
wait "${others[0]}" 2>/dev/null || true
code=0
curl -sS -m 5 "http://$addr/" >/dev/null 2>"$scratch/curl" || code=$?
# The reply is empty (52) or the connection is reset (56), because the request was not read.
[ "$code" = 52 ] || [ "$code" = 56 ] || fail "curl without an upstream: $code $(cat "$scratch/curl")"
echo "curl: $(cat "$scratch/curl")"
python3 -u -m http.server --bind 127.0.0.1 --directory "$scratch/web" "${web#*:}" >"$scratch/python" 2>&1 &
others=($!)
waits_for '^Serving HTTP' "$scratch/python"
[ "$(curl -sS -m 20 "http://$addr/large" | sha256sum)" = "$sum" ] || fail 'curl is not served after the restart of the upstream'
end

# Upload and download at the same time, with socat as an echo server.
port=$((20000 + RANDOM % 10000))
socat "TCP-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork" EXEC:cat 2>"$scratch/socat" &
others+=($!)
for _ in $(seq 100); do nc -z 127.0.0.1 "$port" && break; sleep 0.05; done
serve examples/forward --to "127.0.0.1:$port"
head -c 8388608 "$scratch/web/large" >"$scratch/part"
# Keep the upload open until the reply is there, because nc may stop at the end of its input.
mkfifo "$scratch/in"
nc "${addr%:*}" "${addr#*:}" <"$scratch/in" >"$scratch/back" &
others+=($!)
exec 3>"$scratch/in"
cat "$scratch/part" >&3
for _ in $(seq 200); do [ "$(stat -c %s "$scratch/back")" = 8388608 ] && break; sleep 0.05; done
exec 3>&-
cmp "$scratch/part" "$scratch/back" || fail 'nc: the reply differs'
echo 'nc: 8 MiB to socat and back, intact'
end
