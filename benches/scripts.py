#!/usr/bin/env python3
"""What the prelude before each script costs the upstream: CPU time of Redis per EVALSHA, straight and through keyfence.

    cargo build --release && benches/scripts.py [rounds, default 5]

Needs redis-server, redis-benchmark and redis-cli. It prints the median ratio of each script and pipeline, taken within rounds in which both
run one after the other.
"""

import statistics
import subprocess
import sys

from load import World

ONE = "return redis.call('GET', KEYS[1])"
MANY = "local n = 0 for i = 1, 30 do n = n + #redis.call('GET', KEYS[1]) end return n"


def cpu(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def say(port, *words):
    return subprocess.run(["redis-cli", "-p", str(port), *words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def ticks(world, port, sha, pipeline, count):
    before = cpu(world.redis.pid)
    subprocess.run(
        ["redis-benchmark", "-p", str(port), "-c", "20", "-P", str(pipeline), "-n", str(count), "-q", "EVALSHA", sha, "1", "key"],
        check=True, stdout=subprocess.DEVNULL)
    return cpu(world.redis.pid) - before


rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
with World() as world:
    # Each side under its own name for the same value.
    say(world.redis_port, "SET", "key", "v" * 64)
    say(world.port, "SET", "key", "v" * 64)
    for name, script, count in (("one GET", ONE, 100_000), ("30 GETs", MANY, 40_000)):
        for pipeline in (1, 16):
            shas = [say(port, "SCRIPT", "LOAD", script) for port in (world.redis_port, world.port)]
            ratios = []
            for _ in range(rounds):
                straight, through = (ticks(world, port, sha, pipeline, count) for port, sha in zip((world.redis_port, world.port), shas))
                ratios.append(through / straight)
            print(f"{name}, pipeline {pipeline}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
