#!/usr/bin/env bash
# Builds keyfence with profile-guided optimisation: target/pgo/release/keyfence. Once more for the profile, once more for the result.
#
#     rustup component add llvm-tools && tools/pgo.sh
#
# The profile is of GET, SET, MGET, MSET, INCR and hash commands, with and without pipelines, on a Redis of this machine; code that they do not
# reach is laid out for size. Needs redis-server and redis-benchmark.
set -euo pipefail
cd "$(dirname "$0")/.."

profdata=$(find "$(rustc --print sysroot)" -name llvm-profdata -type f | head -n 1)
[ -n "$profdata" ] || { echo "llvm-profdata is missing: rustup component add llvm-tools" >&2; exit 1; }
raw=$PWD/target/pgo/raw
rm -rf "$raw"
mkdir -p "$raw"

RUSTFLAGS="-Cprofile-generate=$raw" cargo build --release --locked --target-dir target/pgo/profiled

redis=$((20000 + RANDOM % 5000)) port=$((26000 + RANDOM % 5000))
redis-server --port "$redis" --bind 127.0.0.1 --save '' > target/pgo/redis.log 2>&1 &
upstream=$!
trap 'kill $upstream ${proxy:-} 2> /dev/null || true' EXIT
target/pgo/profiled/release/keyfence run --listen "127.0.0.1:$port" --upstream "redis://127.0.0.1:$redis" --workers 1 --admin "" --prefix app: > target/pgo/keyfence.log 2>&1 &
proxy=$!
# It listens before its wall upstream stands, and refuses commands until then.
for _ in $(seq 100); do redis-cli -e -p "$port" GET none > target/pgo/first.log 2>&1 && break; sleep 0.1; done
keys=() pairs=()
for _ in $(seq 10); do keys+=(key:__rand_int__); pairs+=(key:__rand_int__ value); done
for pipeline in 1 16; do
    count=$((50000 * pipeline))
    redis-benchmark -p "$port" -c 50 -P "$pipeline" -n "$count" -r 10000 -d 64 -t set,get,incr,hset,lpush,lpop -q
    redis-benchmark -p "$port" -c 50 -P "$pipeline" -n $((count / 5)) -r 10000 -q MGET "${keys[@]}"
    redis-benchmark -p "$port" -c 50 -P "$pipeline" -n $((count / 5)) -r 10000 -q MSET "${pairs[@]}"
done > target/pgo/load.log 2>&1
# The profile is written as it ends of itself.
kill "$proxy"
wait "$proxy"

"$profdata" merge -o target/pgo/keyfence.profdata "$raw"
RUSTFLAGS="-Cprofile-use=$PWD/target/pgo/keyfence.profdata" cargo build --release --locked --target-dir target/pgo
ls -l target/pgo/release/keyfence
