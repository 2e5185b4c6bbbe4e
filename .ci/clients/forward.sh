#!/usr/bin/env bash
# The forward example between curl, nc, socat and servers that they talk to.
. "$(dirname "$0")/server.bash"
packages curl netcat-openbsd socat python3

cargo build --quiet "${quick[@]}" --example forward
others=()
trap 'kill -KILL $server "${others[@]}" 2>/dev/null || true; rm -rf "$scratch"' EXIT

# A web server that others wrote, with 32 MiB to fetch.
mkdir "$scratch/web"
head -c 33554432 /dev/urandom >"$scratch/web/large"
python3 -u -m http.server --bind 127.0.0.1 --directory "$scratch/web" 0 >"$scratch/python" 2>&1 &
others+=($!)
waits_for '^Serving HTTP' "$scratch/python"
web=127.0.0.1:$(sed -n 's/.*port \([0-9]*\) .*/\1/p' "$scratch/python")
serve examples/forward --to "$web"
sum=$(sha256sum <"$scratch/web/large")
for _ in 1 2 3; do
  [ "$(curl -sS -m 20 "http://$addr/large" | sha256sum)" = "$sum" ] || fail 'curl got something else'
done
echo 'curl: 3 times 32 MiB through it, intact'
for _ in $(seq 50); do curl -sS -m 20 "http://$addr/large" -o /dev/null -r 0-99 & others+=($!); done
for one in "${others[@]:1}"; do wait "$one" || fail 'one of 50 at a time failed'; done
others=("${others[0]}")
echo 'curl: 50 at a time'
# At 16 MiB a second, with little between: the upstream waits.
resident() { awk '/VmRSS/ { print $2 }' "/proc/$server/status"; }
[ "$(curl -sS -m 20 --limit-rate 16M "http://$addr/large" | sha256sum)" = "$sum" ] ||
  fail 'a slow curl got something else'
[ "$(resident)" -lt 65536 ] || fail "it holds $(resident) KiB"
echo "curl --limit-rate: intact; the forwarder has $(resident) KiB"

# Its upstream goes away: whoever comes is closed, and served again once it is back.
kill "${others[0]}"
wait "${others[0]}" 2>/dev/null || true
code=0
curl -sS -m 5 "http://$addr/" >/dev/null 2>"$scratch/curl" || code=$?
# Empty, or reset: its request was not read.
[ "$code" = 52 ] || [ "$code" = 56 ] || fail "curl without an upstream: $code $(cat "$scratch/curl")"
echo "curl: $(cat "$scratch/curl")"
python3 -u -m http.server --bind 127.0.0.1 --directory "$scratch/web" "${web#*:}" >"$scratch/python" 2>&1 &
others=($!)
waits_for '^Serving HTTP' "$scratch/python"
[ "$(curl -sS -m 20 "http://$addr/large" | sha256sum)" = "$sum" ] || fail 'not served again'
end

# Upload, and both ways at once: an echo that others wrote.
port=$((20000 + RANDOM % 10000))
socat "TCP-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork" EXEC:cat 2>"$scratch/socat" &
others+=($!)
for _ in $(seq 100); do nc -z 127.0.0.1 "$port" && break; sleep 0.05; done
serve examples/forward --to "127.0.0.1:$port"
head -c 8388608 "$scratch/web/large" >"$scratch/part"
# Who says that it is done ends the other side: the answer is awaited before.
mkfifo "$scratch/in"
nc "${addr%:*}" "${addr#*:}" <"$scratch/in" >"$scratch/back" &
others+=($!)
exec 3>"$scratch/in"
cat "$scratch/part" >&3
for _ in $(seq 200); do [ "$(stat -c %s "$scratch/back")" = 8388608 ] && break; sleep 0.05; done
exec 3>&-
cmp "$scratch/part" "$scratch/back" || fail 'nc got something else back'
echo 'nc to socat and back: 8 MiB intact'
end
