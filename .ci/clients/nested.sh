#!/usr/bin/env bash
# The pool within tokio and within calloop: nc and socat as clients, the kernel as the judge of
# what it costs while nobody speaks.
. "$(dirname "$0")/server.bash"
packages netcat-openbsd socat
cargo build --quiet "${quick[@]}" -p nested

# Nanoseconds of processor time that all threads of the server have used.
used() { cat /proc/"$server"/task/*/schedstat | awk '{ sum += $1 } END { print sum }'; }
millis() { date +%s%3N; }

head -c 8388608 /dev/urandom >"$scratch/much"
for loop in tokio calloop; do
  serve nested --loop "$loop" --deadline-ms 1000
  host=${addr%:*} port=${addr#*:}
  heard=$(echo 'hello, pool' | nc -N -w 5 "$host" "$port")
  [ "$heard" = 'hello, pool' ] || fail "$loop: $heard"
  timeout 30 socat -t 10 - "TCP:$addr" <"$scratch/much" >"$scratch/back"
  cmp "$scratch/much" "$scratch/back"
  # Who is silent is closed, whatever else goes on in the loop.
  began=$(millis)
  timeout 10 nc -d "$host" "$port" >/dev/null
  took=$(($(millis) - began))
  [ "$took" -ge 1000 ] && [ "$took" -lt 2500 ] || fail "$loop: reaped after $took ms"
  sleep 0.3
  before=$(used)
  sleep 2
  cost=$((($(used) - before) / 1000))
  [ "$cost" -lt 2000 ] || fail "$loop: $cost us of processor time in two idle seconds"
  echo "$loop: nc heard '$heard'; socat got 8388608 bytes back; silent nc was closed after" \
    "$took ms; $cost us of processor time in 2 idle seconds"
  end
done
