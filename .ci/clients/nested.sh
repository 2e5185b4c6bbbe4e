#!/usr/bin/env bash
# The pool within tokio and within calloop, with nc and socat as clients. Also measures the
# processor time while all connections are silent.
. "$(dirname "$0")/server.bash"
packages netcat-openbsd socat
cargo build --quiet "${quick[@]}" -p nested

# Prints the processor time of all threads of the server, in nanoseconds.
used() { cat /proc/"$server"/task/*/schedstat | awk '{ sum += $1 } END { print sum }'; }
millis() { date +%s%3N; }

head -c 8388608 /dev/urandom >"$scratch/much"
for loop in tokio calloop; do
  serve nested --loop "$loop" --deadline-ms 1000
  host=${addr%:*} port=${addr#*:}
  reply=$(echo 'hello, pool' | nc -N -w 5 "$host" "$port")
  [ "$reply" = 'hello, pool' ] || fail "$loop: $reply"
  timeout 30 socat -t 10 - "TCP:$addr" <"$scratch/much" >"$scratch/back"
  cmp "$scratch/much" "$scratch/back"
  # A silent client is closed at its deadline.
  began=$(millis)
  timeout 10 nc -d "$host" "$port" >/dev/null
  took=$(($(millis) - began))
  [ "$took" -ge 1000 ] && [ "$took" -lt 2500 ] || fail "$loop: closed after $took ms"
  sleep 0.3
  before=$(used)
  sleep 2
  cost=$((($(used) - before) / 1000))
  [ "$cost" -lt 2000 ] || fail "$loop: $cost us of processor time in two idle seconds"
  echo "$loop: nc received '$reply'; socat received 8388608 bytes; silent nc was closed after" \
    "$took ms; $cost us of processor time in 2 idle seconds"
  end
done
