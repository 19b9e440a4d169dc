#!/usr/bin/env bash
# Installs the client libraries that tests/clients/ drives and the applications of tests/apps/: Python's into .venv, Node's into
# node_modules of either folder. All are pinned, and left alone while what pins them has not changed.
set -euo pipefail
cd "$(dirname "$0")/.."
clients=tests/clients
apps=tests/apps

# As root or through sudo, for the one package of Debian's that a Python without venv needs.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

if ! cat "$clients/requirements.txt" "$apps/requirements.txt" | cmp -s - .venv/installed.txt; then
  rm -rf .venv
  if ! python3 -m venv .venv 2>/dev/null; then
    rm -rf .venv
    if command -v apt-get >/dev/null; then
      as_root apt-get update -qq
      as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv
    fi
    python3 -m venv .venv
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
    -r "$clients/requirements.txt" -r "$apps/requirements.txt"
  cat "$clients/requirements.txt" "$apps/requirements.txt" >.venv/installed.txt
fi

for folder in "$clients" "$apps"; do
  if ! cmp -s "$folder/package-lock.json" "$folder/node_modules/installed.json"; then
    npm ci --prefix "$folder" --no-audit --no-fund --loglevel=error
    cp "$folder/package-lock.json" "$folder/node_modules/installed.json"
  fi
done
