#!/usr/bin/env python3
"""Instructions per command on the whole path, counted by callgrind: `benches/instructions.py [get set mget mset hit mhit]`.

Needs valgrind. `benches/path.rs` is run twice with different numbers of commands; the difference is the commands' own. The client's side in
the same process is in it (some ten instructions per command and a comparison of bytes); system calls count as nothing.
"""

import json
import re
import subprocess
import sys

FEW, MANY = 4_000, 24_000


def binary():
    built = subprocess.run(["cargo", "bench", "--bench", "path", "--no-run", "--message-format", "json"], check=True, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    return [message["executable"] for message in messages if message.get("executable") and message["target"]["name"] == "path"][-1]


def count(program, name, depth, commands):
    run = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, name, str(depth), str(commands)],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return int(re.search(r"Collected : (\d+)", run.stderr).group(1))


program = binary()
print("instructions per command")
for name in sys.argv[1:] or ["get", "set", "mget", "mset", "hit", "mhit"]:
    for depth in (1, 16, 200):
        each = (count(program, name, depth, MANY) - count(program, name, depth, FEW)) / (MANY - FEW)
        print(f"{name} pipeline {depth}: {each:.0f}", flush=True)
