#!/usr/bin/env python3
"""Instructions per command on the whole path, counted by callgrind: `benches/instructions.py [--uncounted] [get set mget mset hit mhit]`.

Needs valgrind. `benches/path.rs` is run twice with different numbers of commands; the difference is the commands' own. The client's side in
the same process is in it (some ten instructions per command and a comparison of bytes); system calls count as nothing.
With `--uncounted` the same without any counting for metrics, from a second build (`target/uncounted`), and what counting adds.
"""

import json
import os
import re
import subprocess
import sys

FEW, MANY = 4_000, 24_000


def binary(counting):
    build = ["cargo", "bench", "--bench", "path", "--no-run", "--message-format", "json"]
    flags = os.environ.get("RUSTFLAGS", "")
    if not counting:
        build += ["--target-dir", "target/uncounted"]
        flags += " --cfg keyfence_uncounted"
    built = subprocess.run(build, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "RUSTFLAGS": flags})
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    return [message["executable"] for message in messages if message.get("executable") and message["target"]["name"] == "path"][-1]


def count(program, name, depth, commands):
    run = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, name, str(depth), str(commands)],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return int(re.search(r"Collected : (\d+)", run.stderr).group(1))


def each(program, name, depth):
    return (count(program, name, depth, MANY) - count(program, name, depth, FEW)) / (MANY - FEW)


names = [name for name in sys.argv[1:] if name != "--uncounted"]
program = binary(counting=True)
other = binary(counting=False) if "--uncounted" in sys.argv else None
print("instructions per command")
for name in names or ["get", "set", "mget", "mset", "hit", "mhit"]:
    for depth in (1, 16, 200):
        line = f"{name} pipeline {depth}: {(mine := each(program, name, depth)):.0f}"
        if other:
            line += f", without counting {(without := each(other, name, depth)):.0f}: counting is {(mine - without) / mine:.1%}"
        print(line, flush=True)
