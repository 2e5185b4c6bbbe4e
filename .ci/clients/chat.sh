#!/usr/bin/env bash
# The chat example, with nc and socat for members.
. "$(dirname "$0")/start.bash"
packages netcat-openbsd socat

fail() { echo "chat: $*" >&2; exit 1; }
start chat --write-limit 131072
host=${addr%:*} port=${addr#*:}
heard=$(mktemp -d)
# What a member says comes from a pipe that stays open: it hears on until it is told to go.
mkfifo "$heard/ada" "$heard/bob"
nc "$host" "$port" <"$heard/ada" >"$heard/nc" &
exec 3>"$heard/ada"
socat - "TCP:$addr" <"$heard/bob" >"$heard/socat" &
exec 4>"$heard/bob"

# WHO LINE: waits until it was heard.
hears() {
  for _ in $(seq 200); do grep -qxF -- "$2" "$heard/$1" && return; sleep 0.05; done
  fail "$1 did not hear '$2': $(tail -3 "$heard/$1")"
}
for member in nc socat; do
  for _ in $(seq 200); do grep -q ' joins$' "$heard/$member" && break; sleep 0.05; done
done
echo '/name Ada' >&3
echo '/name Bob' >&4
for _ in $(seq 200); do grep -q 'is now Bob' "$heard/nc" && break; sleep 0.05; done
echo 'hello, Bob' >&3
hears socat 'Ada: hello, Bob'
hears nc 'Ada: hello, Bob'
echo 'hello, Ada' >&4
hears nc 'Bob: hello, Ada'

# One who never reads, while Ada says 4 MB as fast as she can.
exec 5<>"/dev/tcp/$host/$port"
line=$(printf 'x%.0s' $(seq 200))
{ yes "$line" || true; } | head -20000 >&3
echo 'that was all' >&3
for _ in $(seq 400); do grep -qx 'Ada: that was all' "$heard/socat" && break; sleep 0.05; done
for member in nc socat; do
  count=$(grep -cx "Ada: $line" "$heard/$member")
  [ "$count" = 20000 ] || fail "$member heard $count of 20000 lines"
done
grep -q '^\* guest-.* leaves' "$heard/nc" || fail 'who did not read is still there'
echo 'nc and socat: each heard all of 20000 lines; one that did not read was closed'
exec 5>&-

echo '/quit' >&4
hears nc '* Bob leaves'
exec 3>&- 4>&-
grep -v "^Ada: x" "$heard/nc" | sed 's/^/nc: /'
stop
rm -rf "$heard"
