#!/usr/bin/env bash
# Sees to it that a Chromium is on PATH, in which the status page is tested: nothing to do, or the system's package manager installs one.
# What drives it comes with the client libraries (ensure-clients.sh), and downloads no browser of its own.
set -euo pipefail

# The names that tests/clients/page/browser.mjs looks for.
found() {
  command -v chromium || command -v chromium-browser || command -v google-chrome
}

if found >/dev/null; then
  exit 0
fi

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "ensure-browser: this needs root and there is no sudo: $*" >&2
    exit 1
  fi
}

echo "ensure-browser: no chromium on PATH; installing one with its libraries, which may take 700 MB of disk" >&2
if command -v apt-get >/dev/null; then
  as_root apt-get update -qq
  # Without recommended packages (a sandbox that headless tests do not use, a notification daemon), and without questions.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >&2
elif command -v dnf >/dev/null; then
  as_root dnf install -y chromium
else
  echo "ensure-browser: found neither apt-get nor dnf; put a chromium or google-chrome on PATH by hand" >&2
  exit 1
fi

if ! browser="$(found)"; then
  echo "ensure-browser: installed, but none of chromium, chromium-browser and google-chrome is on PATH" >&2
  exit 1
fi
# One that cannot start is none: Ubuntu's package, for example, is a note that there is a snap.
"$browser" --version >&2 || { echo "ensure-browser: $browser does not start" >&2; exit 1; }
