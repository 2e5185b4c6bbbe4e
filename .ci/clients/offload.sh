#!/usr/bin/env bash
# The offload example compared with factor of the coreutils, with nc and socat as clients.
. "$(dirname "$0")/server.bash"
packages netcat-openbsd socat

cargo build --quiet "${quick[@]}" -p offload
serve offload --threads 2
host=${addr%:*} port=${addr#*:}

# CLIENT FILE COMMAND...: checks that the replies are the output of `factor`, in the same order.
same() {
  local name=$1 file=$2
  shift 2
  "$@" <"$file" | cmp - <(factor <"$file") || fail "$name: the answers differ from those of factor"
  echo "$name: $(wc -l <"$file") answers are those of factor"
}
seq 0 9999 >"$scratch/small"
seq 9999999999999900 5 9999999999999995 >"$scratch/large"
same nc "$scratch/small" nc -N -w 30 "$host" "$port"
same socat "$scratch/small" socat -t 30 - "TCP:$addr"
same 'nc, large numbers' "$scratch/large" nc -N -w 30 "$host" "$port"

# Eight concurrent clients, each with its lines in a different order.
clients=()
for number in $(seq 8); do
  shuf -n 2000 -o "$scratch/$number" "$scratch/small"
  (nc -N -w 30 "$host" "$port" <"$scratch/$number" | cmp - <(factor <"$scratch/$number")) &
  clients+=($!)
done
for client in "${clients[@]}"; do wait "$client" || fail 'one of eight clients: the answers differ from those of factor'; done
echo 'nc, eight concurrent clients: 2000 answers each are those of factor'

# A client closes while much of its work is queued. The next answer makes the kernel report this, so
# the connection is closed and the threads skip the rest.
exec 3<>"/dev/tcp/$host/$port"
yes 9999999999999937 2>/dev/null | head -64 >&3 || true
read -r first <&3
exec 3>&-
[ "$first" = '9999999999999937: 9999999999999937' ] || fail "not an answer: $first"

end
grep -q '^stopped: .* 0 aborted' "$scratch/out" || fail 'the connection was not closed before the stop'
grep 'lines answered' "$scratch/out"
grep -qE ' [1-9][0-9]* skipped' "$scratch/out" || fail 'no work was skipped'
