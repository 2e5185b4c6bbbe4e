#!/usr/bin/env bash
# The TLS echo with the clients of openssl, and with Python for cases that these cannot produce.
. "$(dirname "$0")/server.bash"
packages openssl python3
cargo build --quiet "${quick[@]}" -p tls_echo

pem=$scratch/pem
mkdir "$pem"
ec=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2)
for name in ca other; do
  openssl req -x509 "${ec[@]}" -subj "/CN=$name" -keyout "$pem/$name.key" -out "$pem/$name.pem" \
    2>"$scratch/openssl"
done
# NAME ISSUER: creates a certificate for localhost.
issue() {
  openssl req "${ec[@]}" -subj /CN=localhost -addext subjectAltName=DNS:localhost \
    -keyout "$pem/$1.key" -out "$pem/$1.csr" 2>"$scratch/openssl"
  openssl x509 -req -in "$pem/$1.csr" -CA "$pem/$2.pem" -CAkey "$pem/$2.key" -CAcreateserial \
    -copy_extensions copy -days 2 -out "$pem/$1.pem" 2>"$scratch/openssl"
}
issue server ca
issue client ca
issue untrusted other

identity=(--cert "$pem/server.pem" --key "$pem/server.key" --debug)
# The deadline is short, so that a client that waits for the end of the stream ends soon.
serve tls_echo "${identity[@]}" --alpn echo/2,echo/1 --deadline-ms 1000 --handshake-ms 1500
s_client() {
  timeout 30 openssl s_client -connect "$addr" -CAfile "$pem/ca.pem" -verify_return_error \
    -servername localhost "$@"
}

for version in 1.2 1.3; do
  output=$({ echo hello; sleep 0.3; } | s_client "-tls${version/./_}" -alpn echo/1 2>&1)
  for line in "^hello$" "^New, TLSv$version, Cipher" "^ALPN protocol: echo/1$" '^Verification: OK'; do
    grep -E -- "$line" <<<"$output" >/dev/null || fail "no '$line' in $output"
  done
  echo "openssl s_client, TLS $version: $(grep '^New' <<<"$output"), $(grep '^ALPN' <<<"$output")"
done
output=$(s_client -alpn h2 2>&1 </dev/null) && fail "connected without a common protocol: $output"
grep -q 'no application protocol' <<<"$output" || fail "$output"

# Both directions at once: s_client reads the echo while it sends. The server sends close_notify.
head -c 20971520 /dev/urandom >"$scratch/request"
for version in tls1_2 tls1_3; do
  s_client -quiet "-$version" <"$scratch/request" >"$scratch/reply" 2>"$scratch/err"
  cmp "$scratch/request" "$scratch/reply"
  ! grep -i 'unexpected eof' "$scratch/err" || fail 'no close_notify from the server'
  echo "openssl s_client, $version: $(stat -c %s "$scratch/reply") bytes echoed, intact"
done

# An end of the stream with close_notify, and one without.
: >"$scratch/log"
{ echo hello; sleep 0.3; } | s_client >"$scratch/closed" 2>&1
waits_for 'closed after .*: the peer closed' "$scratch/log"
mkfifo "$scratch/pipe"
openssl s_client -quiet -connect "$addr" <"$scratch/pipe" >"$scratch/truncated" 2>&1 &
client=$!
exec 3>"$scratch/pipe"
echo hello >&3
waits_for '^hello' "$scratch/truncated"
kill -KILL $client
wait $client 2>/dev/null || true
exec 3>&-
waits_for 'unexpected end of file' "$scratch/log"
grep -o 'closed after .*' "$scratch/log" | sed 's/^/s_client that ended, then was killed: /'

for how in -new -reuse; do
  timeout 30 openssl s_time -connect "$addr" -CAfile "$pem/ca.pem" "$how" -time 3 \
    >"$scratch/s_time" 2>&1 || fail "$(tail -3 "$scratch/s_time")"
  output=$(grep 'connections in .* real seconds' "$scratch/s_time")
  [ "${output%% *}" -gt 200 ] || fail "$output"
  echo "openssl s_time $how: $output"
done

python3 .ci/clients/tls_peers.py "$addr" "$pem/ca.pem"
end

# Client certificates are required.
serve tls_echo "${identity[@]}" --client-ca "$pem/ca.pem" --deadline-ms 1000
for name in client untrusted none; do
  options=(-cert "$pem/$name.pem" -key "$pem/$name.key")
  [ "$name" = none ] && options=()
  output=$({ echo hello; sleep 0.3; } | s_client "${options[@]}" 2>&1) || true
  echoed=$(grep -cx hello <<<"$output" || true)
  alert=$(grep -o 'alert .*' <<<"$output" | head -1 || true)
  [ "$echoed" = "$([ "$name" = client ] && echo 1 || echo 0)" ] || fail "$name: $output"
  echo "openssl s_client, client certificate $name: ${alert:-served}"
done

# A killed server sends no close_notify, and the client reports this.
end
serve tls_echo "${identity[@]}"
: >"$scratch/truncated"
openssl s_client -quiet -connect "$addr" <"$scratch/pipe" >"$scratch/truncated" 2>&1 &
client=$!
exec 3>"$scratch/pipe"
echo hello >&3
waits_for '^hello' "$scratch/truncated"
kill -KILL "$server"
wait "$server" 2>/dev/null || true
server=
wait $client && fail 's_client does not report the truncation'
exec 3>&-
grep -q 'unexpected eof' "$scratch/truncated" || fail "$(cat "$scratch/truncated")"
echo 'openssl s_client, server killed: unexpected eof while reading'
