#!/usr/bin/env bash
# The offload example against the coreutils' factor, with nc and socat for clients.
. "$(dirname "$0")/server.bash"
packages netcat-openbsd socat

cargo build --quiet "${quick[@]}" --example offload
serve examples/offload --threads 2
host=${addr%:*} port=${addr#*:}

# CLIENT FILE COMMAND...: what it gets has to be what `factor` says, line by line.
same() {
  local name=$1 file=$2
  shift 2
  "$@" <"$file" | cmp - <(factor <"$file") || fail "$name: other answers than factor's"
  echo "$name: $(wc -l <"$file") lines answered as factor does"
}
seq 0 9999 >"$scratch/small"
seq 9999999999999900 5 9999999999999995 >"$scratch/large"
same nc "$scratch/small" nc -N -w 30 "$host" "$port"
same socat "$scratch/small" socat -t 30 - "TCP:$addr"
same 'nc, slow ones' "$scratch/large" nc -N -w 30 "$host" "$port"

# Eight clients at a time, each in its own order.
clients=()
for number in $(seq 8); do
  shuf -n 2000 -o "$scratch/$number" "$scratch/small"
  (nc -N -w 30 "$host" "$port" <"$scratch/$number" | cmp - <(factor <"$scratch/$number")) &
  clients+=($!)
done
for client in "${clients[@]}"; do wait "$client" || fail 'one of eight got other answers'; done
echo 'nc, eight at a time: 2000 lines each answered as factor does'

# One that goes away with much still to do: the threads are told, and spared the rest.
exec 3<>"/dev/tcp/$host/$port"
yes 9999999999999937 2>/dev/null | head -64 >&3 || true
read -r first <&3
exec 3>&-
[ "$first" = '9999999999999937: 9999999999999937' ] || fail "not an answer: $first"
waits_for 'an answer is lost' "$scratch/log"
grep -m1 'an answer is lost' "$scratch/log"

end
grep 'lines answered' "$scratch/out"
grep -qE ' [1-9][0-9]* spared, [1-9][0-9]* answers lost' "$scratch/out" || fail 'no work was spared'
