#!/usr/bin/env bash
# Sees to it that a redis-server or valkey-server is on PATH: nothing to do, or the system's package manager installs one.
set -euo pipefail

if command -v redis-server >/dev/null || command -v valkey-server >/dev/null; then
  exit 0
fi

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "ensure-redis: this needs root and there is no sudo: $*" >&2
    exit 1
  fi
}

echo "ensure-redis: no redis-server or valkey-server on PATH; installing one" >&2
if command -v apt-get >/dev/null; then
  as_root apt-get update -qq
  # Only the program is wanted: without recommended packages, and without questions.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server redis-tools
elif command -v dnf >/dev/null; then
  as_root dnf install -y valkey || as_root dnf install -y redis
elif command -v brew >/dev/null; then
  brew install redis
else
  echo "ensure-redis: found none of apt-get, dnf, brew; install redis-server or valkey-server by hand" >&2
  exit 1
fi

if ! command -v redis-server >/dev/null && ! command -v valkey-server >/dev/null; then
  echo "ensure-redis: installed, but neither redis-server nor valkey-server is on PATH" >&2
  exit 1
fi
