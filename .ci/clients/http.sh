#!/usr/bin/env bash
# The http example with curl, wrk, ab, h2load and slowhttptest.
. "$(dirname "$0")/server.bash"
packages curl wrk apache2-utils nghttp2-client slowhttptest

# WHAT EXPECTED ACTUAL
same() { [ "$2" = "$3" ] || fail "$1: expected '$2', got '$3'"; echo "curl, $1: $3"; }

cargo build --quiet "${quick[@]}" -p http
serve http --request-deadline-ms 4000 --max-request 4194304
url=http://$addr

code='%{http_code}'
same 'GET' 'pool-manager: a connection pool on one thread' "$(curl -sS "$url/")"
same 'HEAD' 'Content-Length: 5' "$(curl -sSI "$url/size/5" | tr -d '\r' | grep Content-Length)"
same 'HTTP/1.0' 'Connection: close' "$(curl -sSI0 "$url/" | tr -d '\r' | grep Connection)"
same 'POST' hello "$(curl -sS -d hello "$url/echo")"
same 'chunked' hello "$(curl -sS -H 'Transfer-Encoding: chunked' -d hello "$url/echo")"
same 'unknown path' 404 "$(curl -sS -o /dev/null -w "$code" "$url/nowhere")"
same 'DELETE' 405 "$(curl -sS -o /dev/null -w "$code" -X DELETE "$url/echo")"
same 'two different lengths' 400 "$(curl -sS -o /dev/null -w "$code" -H 'Content-Length: 4' \
  -H 'Content-Length: 5' -d hello "$url/echo" || true)"
same 'length and chunked' 400 "$(curl -sS -o /dev/null -w "$code" -H 'Content-Length: 5' \
  -H 'Transfer-Encoding: chunked' -d hello "$url/echo" || true)"
same 'three requests on one connection' '1 0 0' "$(curl -sS -o /dev/null -w '%{num_connects} ' \
  "$url/size/524288" -o /dev/null "$url/" -o /dev/null "$url/size/0" | xargs)"
upload=$(mktemp)
head -c 2000000 /dev/urandom >"$upload"
# For more than 1 MB curl sends `Expect: 100-continue` and waits a second for an answer.
curl -sS --data-binary "@$upload" "$url/echo" | cmp - "$upload" || fail 'curl: the reply to 2 MB differs'
echo 'curl, 2 MB echoed: intact'
head -c 5000000 /dev/zero >"$upload"
same '5 MB' 413 "$(curl -sS -o /dev/null -w "$code" --data-binary "@$upload" "$url/echo" || true)"
rm -f "$upload"

out=$(wrk -t1 -c64 -d3 "$url/")
grep -q 'Socket errors\|Non-2xx' <<<"$out" && fail "wrk: $out"
grep -E 'requests in|Requests/sec' <<<"$out" | sed 's/^ */wrk: /'

for keep in -k ''; do
  out=$(ab -q $keep -n 20000 -c 50 "$url/size/1000" 2>&1)
  grep -Eq 'Complete requests: +20000' <<<"$out" || fail "ab $keep: $out"
  grep -Eq 'Failed requests: +0$' <<<"$out" || fail "ab $keep: $out"
  grep -q 'Non-2xx' <<<"$out" && fail "ab $keep: $out"
  grep -E 'Failed|Keep-Alive requests|Requests per' <<<"$out" | sed "s/^/ab $keep: /"
done

out=$(h2load --h1 -n 100000 -c 50 -m 10 "$url/")
grep -q '100000 succeeded, 0 failed, 0 errored, 0 timeout' <<<"$out" || fail "h2load: $out"
grep -q 'status codes: 100000 2xx' <<<"$out" || fail "h2load: $out"
grep -E '^finished|^requests' <<<"$out" | sed 's/^/h2load: /'

# With 1,000 slow peers, other clients must still be answered within half a second.
slow() {
  local name=$1 slowest=0 count=0 time
  shift
  out=$(mktemp)
  slowhttptest -c 1000 -r 500 -l 10 -i 2 -p 3 "$@" >"$out" 2>&1 &
  local attack=$!
  while kill -0 $attack 2>/dev/null; do
    time=$(curl -sS -o /dev/null -m 5 -w '%{time_total}' "$url/") || fail "$name: denied"
    slowest=$(printf '%s\n%s\n' "$time" "$slowest" | sort -g | tail -1)
    count=$((count + 1))
    sleep 0.1
  done
  wait $attack || true
  sed 's/\x1b\[[0-9;]*m//g' "$out" | grep -q 'service available: *YES' || fail "$name: $(cat "$out")"
  sed 's/\x1b\[[0-9;]*m//g' "$out" | grep -q 'service available: *NO' && fail "$name: denied"
  [ "$count" -gt 20 ] || fail "$name: only $count other requests during the attack"
  awk "BEGIN { exit !($slowest < 0.5) }" || fail "$name: the slowest request took $slowest s"
  sed 's/\x1b\[[0-9;]*m//g' "$out" | grep -E '^(closed|connected|pending):' | tail -3 | xargs \
    | sed "s/^/slowhttptest, $name: /"
  echo "slowhttptest, $name: always available, slowest of $count other requests $slowest s"
  rm -f "$out"
}
slow 'slow headers' -H -t GET -u "$url/" -x 24
slow 'slow body' -B -t POST -u "$url/echo" -s 8192 -x 10
slow 'slow read' -X -t GET -u "$url/size/524288" -w 512 -y 1024 -n 5 -z 32 -k 3

same 'GET after the attacks' 200 "$(curl -sS -o /dev/null -w "$code" "$url/")"
end
