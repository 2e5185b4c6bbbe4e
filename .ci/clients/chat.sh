#!/usr/bin/env bash
# The chat example, with nc and socat as members.
. "$(dirname "$0")/server.bash"
packages netcat-openbsd socat

cargo build --quiet "${quick[@]}" --example chat
serve examples/chat --write-limit 131072
host=${addr%:*} port=${addr#*:}
# Each member reads its input from a pipe that stays open, so it receives until the pipe is closed.
mkfifo "$scratch/ada" "$scratch/bob"
nc "$host" "$port" <"$scratch/ada" >"$scratch/nc" &
exec 3>"$scratch/ada"
socat - "TCP:$addr" <"$scratch/bob" >"$scratch/socat" &
exec 4>"$scratch/bob"

# MEMBER LINE: waits until the member has received the line.
receives() {
  for _ in $(seq 200); do grep -qxF -- "$2" "$scratch/$1" && return; sleep 0.05; done
  fail "$1 did not receive '$2': $(tail -3 "$scratch/$1")"
}
for member in nc socat; do
  for _ in $(seq 200); do grep -q ' joins$' "$scratch/$member" && break; sleep 0.05; done
done
echo '/name Ada' >&3
echo '/name Bob' >&4
for _ in $(seq 200); do grep -q 'is now Bob' "$scratch/nc" && break; sleep 0.05; done
echo 'hello, Bob' >&3
receives socat 'Ada: hello, Bob'
receives nc 'Ada: hello, Bob'
echo 'hello, Ada' >&4
receives nc 'Bob: hello, Ada'

# One member never reads while Ada sends 4 MB as fast as possible.
exec 5<>"/dev/tcp/$host/$port"
line=$(printf 'x%.0s' $(seq 200))
{ yes "$line" || true; } | head -20000 >&3
echo 'the end' >&3
for _ in $(seq 400); do grep -qx 'Ada: the end' "$scratch/socat" && break; sleep 0.05; done
for member in nc socat; do
  count=$(grep -cx "Ada: $line" "$scratch/$member")
  [ "$count" = 20000 ] || fail "$member received $count of 20000 lines"
done
grep -q '^\* guest-.* leaves' "$scratch/nc" || fail 'the member that does not read was not closed'
echo 'nc and socat received all 20000 lines; the member that does not read was closed'
exec 5>&-

echo '/quit' >&4
receives nc '* Bob leaves'
exec 3>&- 4>&-
grep -v "^Ada: x" "$scratch/nc" | sed 's/^/nc: /'
end
