# Sourced by scripts of clients: builds a program, starts it on a port of its own, ends it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CARGO_TERM_COLOR=never
quick=(--release --locked --config profile.release.lto=false
  --config profile.release.codegen-units=16)
built=${CARGO_TARGET_DIR:-target}/release
scratch=$(mktemp -d)
server=
trap 'kill -KILL $server 2>/dev/null || true; rm -rf "$scratch"' EXIT

# Debian packages that are not there yet.
packages() {
  dpkg-query -W "$@" >/dev/null 2>&1 && return
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

fail() { echo "$(basename "$0" .sh): $*" >&2; exit 1; }

# FILE OPTION...: sets `server`, the process, and `addr`, where it listens.
serve() {
  local program=$1
  shift
  : >"$scratch/out"
  : >"$scratch/log"
  # Appended, so that a script can empty the log in between.
  "$built/$program" --listen 127.0.0.1:0 "$@" >>"$scratch/out" 2>>"$scratch/log" &
  server=$!
  waits_for '^listening' "$scratch/out"
  addr=$(sed -n 's/^listening on \([0-9.:]*\);.*/\1/p' "$scratch/out")
}

# PATTERN FILE: until it is there.
waits_for() {
  for _ in $(seq 200); do grep -q -- "$1" "$2" 2>/dev/null && return; sleep 0.05; done
  fail "no '$1' in $(cat "$2")"
}

# Ends it gracefully, which it has to say.
end() {
  kill -TERM "$server"
  wait "$server" || fail "it ended with $?: $(cat "$scratch/log")"
  server=
  grep '^stopped: ' "$scratch/out"
}
