# Sourced by the client scripts: starts a program on a free port, and stops it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CARGO_TERM_COLOR=never
quick=(--release --locked --config profile.release.lto=false
  --config profile.release.codegen-units=16)
built=${CARGO_TARGET_DIR:-target}/release
scratch=$(mktemp -d)
server=
trap 'kill -KILL $server 2>/dev/null || true; rm -rf "$scratch"' EXIT

# PACKAGE...: installs the Debian packages that are missing.
packages() {
  dpkg-query -W "$@" >/dev/null 2>&1 && return
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

fail() { echo "$(basename "$0" .sh): $*" >&2; exit 1; }

# PROGRAM OPTION...: starts the program. Sets `server` to its process id and `addr` to its address.
serve() {
  local program=$1
  shift
  : >"$scratch/out"
  : >"$scratch/log"
  # Append, so that a script can empty the log while the program runs.
  "$built/$program" --listen 127.0.0.1:0 "$@" >>"$scratch/out" 2>>"$scratch/log" &
  server=$!
  waits_for '^listening' "$scratch/out"
  addr=$(sed -n 's/^listening on \([0-9.:]*\);.*/\1/p' "$scratch/out")
}

# PATTERN FILE: waits until the file contains the pattern.
waits_for() {
  for _ in $(seq 200); do grep -q -- "$1" "$2" 2>/dev/null && return; sleep 0.05; done
  fail "no '$1' in $(cat "$2")"
}

# Stops the program gracefully. Its output must confirm the stop.
end() {
  kill -TERM "$server"
  wait "$server" || fail "the program ended with $?: $(cat "$scratch/log")"
  server=
  grep '^stopped: ' "$scratch/out"
}
