# Sourced by the scripts of clients: builds an example, starts it on a port of its own, ends it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CARGO_TERM_COLOR=never

# Debian packages that are not there yet.
packages() {
  dpkg-query -W "$@" >/dev/null 2>&1 && return
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

# EXAMPLE OPTION...: sets `server`, the process, `addr`, where it listens, and `output`, a file.
start() {
  local example=$1
  shift
  cargo build --quiet --release --locked --config profile.release.lto=false \
    --config profile.release.codegen-units=16 --example "$example"
  output=$(mktemp)
  "${CARGO_TARGET_DIR:-target}/release/examples/$example" --listen 127.0.0.1:0 "$@" \
    >"$output" 2>&1 &
  server=$!
  trap '[ -z "$server" ] || kill -KILL "$server"; rm -f "$output"' EXIT
  for _ in $(seq 200); do grep -q '^listening' "$output" && break; sleep 0.05; done
  addr=$(sed -n 's/^listening on \([0-9.:]*\);.*/\1/p' "$output")
  test -n "$addr"
}

# Ends it gracefully, which it has to say.
stop() {
  kill -TERM "$server"
  wait "$server"
  server=
  grep '^stopped: ' "$output"
}
