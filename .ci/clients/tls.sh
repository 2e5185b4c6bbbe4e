#!/usr/bin/env bash
# The TLS echo, with openssl's clients and python's for what openssl's cannot be told to do.
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
# NAME ISSUER: a certificate for localhost.
issue() {
  openssl req "${ec[@]}" -subj /CN=localhost -addext subjectAltName=DNS:localhost \
    -keyout "$pem/$1.key" -out "$pem/$1.csr" 2>"$scratch/openssl"
  openssl x509 -req -in "$pem/$1.csr" -CA "$pem/$2.pem" -CAkey "$pem/$2.key" -CAcreateserial \
    -copy_extensions copy -days 2 -out "$pem/$1.pem" 2>"$scratch/openssl"
}
issue server ca
issue client ca
issue stranger other

identity=(--cert "$pem/server.pem" --key "$pem/server.key" --debug)
# Silence is short, so that a client that waits for our end sees it soon.
serve tls_echo "${identity[@]}" --alpn echo/2,echo/1 --deadline-ms 1000 --handshake-ms 1500
s_client() {
  timeout 30 openssl s_client -connect "$addr" -CAfile "$pem/ca.pem" -verify_return_error \
    -servername localhost "$@"
}

for version in 1.2 1.3; do
  told=$({ echo hello; sleep 0.3; } | s_client "-tls${version/./_}" -alpn echo/1 2>&1)
  for line in "^hello$" "^New, TLSv$version, Cipher" "^ALPN protocol: echo/1$" '^Verification: OK'; do
    grep -E -- "$line" <<<"$told" >/dev/null || fail "no '$line' in $told"
  done
  echo "openssl s_client, TLS $version: $(grep '^New' <<<"$told"), $(grep '^ALPN' <<<"$told")"
done
told=$(s_client -alpn h2 2>&1 </dev/null) && fail "no protocol in common, and yet: $told"
grep -q 'no application protocol' <<<"$told" || fail "$told"

# Both ways at once: s_client reads what comes back while it sends. Ours ends it, with a goodbye.
head -c 20971520 /dev/urandom >"$scratch/much"
for version in tls1_2 tls1_3; do
  s_client -quiet "-$version" <"$scratch/much" >"$scratch/back" 2>"$scratch/err"
  cmp "$scratch/much" "$scratch/back"
  ! grep -i 'unexpected eof' "$scratch/err" || fail 'our end looks like a cut'
  echo "openssl s_client, $version: $(stat -c %s "$scratch/back") bytes came back as they went"
done

# An end that is said, and one that is not.
: >"$scratch/log"
{ echo hello; sleep 0.3; } | s_client >"$scratch/said" 2>&1
waits_for 'closed after .*: the peer closed' "$scratch/log"
mkfifo "$scratch/pipe"
openssl s_client -quiet -connect "$addr" <"$scratch/pipe" >"$scratch/cut" 2>&1 &
client=$!
exec 3>"$scratch/pipe"
echo hello >&3
waits_for '^hello' "$scratch/cut"
kill -KILL $client
wait $client 2>/dev/null || true
exec 3>&-
waits_for 'unexpected end of file' "$scratch/log"
grep -o 'closed after .*' "$scratch/log" | sed 's/^/of s_client that ended, and that was killed: /'

for how in -new -reuse; do
  timeout 30 openssl s_time -connect "$addr" -CAfile "$pem/ca.pem" "$how" -time 3 \
    >"$scratch/s_time" 2>&1 || fail "$(tail -3 "$scratch/s_time")"
  told=$(grep 'connections in .* real seconds' "$scratch/s_time")
  [ "${told%% *}" -gt 200 ] || fail "$told"
  echo "openssl s_time $how: $told"
done

python3 .ci/clients/tls_peers.py "$addr" "$pem/ca.pem"
end

# Who has to have a certificate.
serve tls_echo "${identity[@]}" --client-ca "$pem/ca.pem" --deadline-ms 1000
for name in client stranger none; do
  options=(-cert "$pem/$name.pem" -key "$pem/$name.key")
  [ "$name" = none ] && options=()
  told=$({ echo hello; sleep 0.3; } | s_client "${options[@]}" 2>&1) || true
  heard=$(grep -cx hello <<<"$told" || true)
  alert=$(grep -o 'alert .*' <<<"$told" | head -1 || true)
  [ "$heard" = "$([ "$name" = client ] && echo 1 || echo 0)" ] || fail "$name: $told"
  echo "openssl s_client with the certificate of $name: ${alert:-served}"
done

# A server that is killed says no goodbye, and its client can tell.
end
serve tls_echo "${identity[@]}"
: >"$scratch/cut"
openssl s_client -quiet -connect "$addr" <"$scratch/pipe" >"$scratch/cut" 2>&1 &
client=$!
exec 3>"$scratch/pipe"
echo hello >&3
waits_for '^hello' "$scratch/cut"
kill -KILL "$server"
wait "$server" 2>/dev/null || true
server=
wait $client && fail 'it takes a cut for an end'
exec 3>&-
grep -q 'unexpected eof' "$scratch/cut" || fail "$(cat "$scratch/cut")"
echo 'openssl s_client of a server that was killed: unexpected eof while reading'
