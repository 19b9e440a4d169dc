#!/usr/bin/env python3
"""What a command costs keyfence as workers, tenants, connections, pipelines, keys and prefixes grow.

    cargo build --release && benches/scale.py [--rounds 3] [--quick] [--only connections]…

Needs redis-server 7, keyfence and nothing else. A whole run writes the part "Scale" of docs/performance.md, and docs/scale.svg. Nothing may
grow faster than its input: the exit status is 1 when CPU per command grows from one step to a later
one by more than what grew did, or when a measurement failed. Linux only, as it reads /proc.
"""

import argparse
import os
import resource
import select
import statistics
import sys
import time
from dataclasses import dataclass

from comparison import contenders, report
from comparison.contenders import HOST, Keyfence, Stage, password
from comparison.picture import picture
from comparison.processes import TIMEOUT, Client, Failed, Processes, command, cpu

BINARY = os.environ.get("KEYFENCE_BINARY", os.path.join(contenders.ROOT, "target", "release", "keyfence"))
PICTURE = os.path.join(contenders.ROOT, "docs", "scale.svg")
VALUE = b"v" * 64


@dataclass
class Step:
    """`commands` GETs (SETs with `sets`) in all, by turns `pipeline` of them on each of `clients` connections, shared among `tenants`
    tenants, with keys of `key` bytes behind a prefix of `prefix` bytes."""

    at: int
    commands: int
    workers: int = 1
    tenants: int = 0
    clients: int = 50
    pipeline: int = 16
    key: int = 16
    prefix: int = 9


@dataclass
class Series:
    name: str
    title: str
    steps: list


def all_series():
    return [
        Series("workers", "workers (50 clients, P16)", [Step(n, 1_000_000, workers=n) for n in (1, 2)]),
        Series("tenants", "tenants (1,000 clients among them, P1)", [Step(n, 60_000, tenants=n, clients=1000, pipeline=1) for n in (1, 10, 100, 1000)]),
        Series("connections", "connections (P1, all ask, then all are answered)",
               [Step(n, max(5 * n, 10_000), clients=n, pipeline=1) for n in (1, 10, 100, 1000, 10_000)]),
        Series("pipeline", "commands in one pipeline of one client",
               [Step(n, max(n, 20_000 if n < 10 else 1_000_000), clients=1, pipeline=n) for n in (1, 10, 100, 1000, 10_000, 100_000, 1_000_000)]),
        Series("keys", "bytes of key (50 clients, P4)", [Step(n, 400_000 if n <= 1024 else 20_000, pipeline=4, key=n) for n in (1, 16, 256, 1024, 4096, 16_384, 65_536)]),
        Series("prefixes", "bytes of prefix (50 clients, P16)", [Step(n, 1_000_000, prefix=n) for n in (1, 9, 32, 64, 128)]),
    ]


class Connections:
    """Clients of one keyfence, each with the same request to send, `pipeline` times, and the same reply to get."""

    def __init__(self, stage, step, tenants):
        self.poller, self.streams = select.epoll(), {}
        self.request = command("GET", key_of(step)) * step.pipeline
        self.due = (len(VALUE) + len(b"$64\r\n\r\n")) * step.pipeline
        self.reply = b"$64\r\n" + VALUE + b"\r\n"
        for i in range(step.clients):
            client = Client(stage.port)
            if tenants and client.ask("AUTH", tenants[i % len(tenants)], password(tenants[i % len(tenants)])) != b"+OK\r\n":
                raise Failed("a tenant could not log in")
            client.stream.setblocking(False)
            self.streams[client.stream.fileno()] = client.stream
            self.poller.register(client.stream.fileno(), select.EPOLLIN)

    def turn(self):
        """All ask; all are answered."""
        unsent = {}
        for fd, stream in self.streams.items():
            unsent[fd] = self.send(fd, stream, memoryview(self.request))
        left = {fd: self.due for fd in self.streams}
        deadline = time.monotonic() + TIMEOUT
        while left:
            if time.monotonic() > deadline:
                raise Failed(f"{len(left)} clients wait for replies")
            for fd, event in self.poller.poll(1):
                stream = self.streams[fd]
                if event & select.EPOLLOUT:
                    unsent[fd] = self.send(fd, stream, unsent[fd])
                if event & ~select.EPOLLOUT:
                    data = stream.recv(1 << 20)
                    if not data or data[:1] == b"-" or len(data) > left.get(fd, 0):
                        raise Failed(f"answered {data[:80]!r}")
                    if len(data) == self.due and data != self.reply * (self.due // len(self.reply)):
                        raise Failed("answered something else")
                    left[fd] -= len(data)
                    if not left[fd]:
                        del left[fd]

    def send(self, fd, stream, rest):
        try:
            rest = rest[stream.send(rest):]
        except BlockingIOError:
            pass
        # Short requests leave in one piece and need no looking after.
        if rest or len(self.request) > 65_536:
            self.poller.modify(fd, select.EPOLLIN | (select.EPOLLOUT if rest else 0))
        return rest

    def close(self):
        self.poller.close()
        for stream in self.streams.values():
            stream.close()


def key_of(step):
    return b"k" * step.key


def measure(processes, direct, binary, step, quick):
    """CPU microseconds per command of keyfence, and of the Redis behind."""
    tenants = [f"t{i}" for i in range(step.tenants)]
    prefix = "p" * (step.prefix - 1) + ":"
    contender = Keyfence(binary, prefix=prefix, workers=step.workers)
    with Stage(processes, direct, contender, 0, 64, tenants=tenants) as stage:
        setup = Client(stage.redis_port)
        for name in [tenant + ":" for tenant in tenants] or [prefix]:
            setup.ask("SET", name.encode() + key_of(step), VALUE)
        setup.close()
        load = Connections(stage, step, tenants)
        try:
            load.turn()
            turns = 1 if quick else max(1, step.commands // (step.clients * step.pipeline))
            before = cpu(stage.server), cpu(stage.upstream)
            for _ in range(turns):
                load.turn()
            after = cpu(stage.server), cpu(stage.upstream)
        finally:
            load.close()
        count = turns * step.clients * step.pipeline
        return tuple((b - a) / count * 1e6 for a, b in zip(before, after))


def grown(series, medians):
    """The steps whose cost grew by more than what grew did, since any step before; 1.1 times: the noise of the measurement."""
    found = []
    for i, (step, cost) in enumerate(zip(series.steps, medians)):
        for before, earlier in list(zip(series.steps, medians))[:i]:
            if cost > earlier * step.at / before.at * 1.1:
                found.append(f"{series.title}: from {before.at:,} to {step.at:,} the cost grew from {earlier:.2f} to {cost:.2f} us")
    return found


def section(results, command_line, rounds):
    parts = []
    for series, samples in results:
        lines = []
        first = statistics.median(mine for mine, _ in samples[0])
        for step, figures in zip(series.steps, samples):
            mine, upstream = (statistics.median(column) for column in zip(*figures))
            lines.append([f"{step.at:,}", report.number(mine), report.number(upstream), f"{mine / first:.2f}x" if first else ""])
        parts.append(f"### By {series.title}\n\n" + report.table([series.name, "keyfence, us per command", "Redis behind it", "keyfence, of the first"], lines))
    return f"""## Scale

Written by `{command_line}`: CPU time per GET of a 64 byte value, of keyfence and of the Redis behind it, medians of {rounds} rounds. Unlike
above, the load is all clients asking at once and then waiting until all are answered, by a single thread, so that a figure here compares
with figures here alone. Each step has a fresh keyfence and a fresh Redis. Nothing grows faster than its input; keys pass at the cost of
their copies.

![CPU per command as the load grows](scale.svg)

""" + "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", default=BINARY, help="keyfence; default: KEYFENCE_BINARY, or target/release/keyfence")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few commands, to try the harness: the figures mean nothing")
    parser.add_argument("--only", metavar="SERIES", action="append", help="only this series; may be repeated; nothing is written")
    args = parser.parse_args()
    chosen = [series for series in all_series() if not args.only or series.name in args.only]
    if not chosen:
        parser.error("there are: " + " ".join(series.name for series in all_series()))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results = [(series, [[] for _ in series.steps]) for series in chosen]
    failures = []
    with Processes() as processes:
        direct = contenders.found(args.binary, processes)[0]
        for turn in range(args.rounds):
            for series, samples in results:
                for step, into in zip(series.steps, samples):
                    into.append(measure(processes, direct, args.binary, step, args.quick))
                print(f"round {turn + 1} of {args.rounds}  {series.name}", file=sys.stderr)
    for series, samples in results:
        failures += [] if args.quick else grown(series, [statistics.median(mine for mine, _ in figures) for figures in samples])
    text = section(results, f"python3 benches/scale.py --rounds {args.rounds}", args.rounds)
    print(text)
    if not args.only and not args.quick:
        report.write(contenders.ROOT, scale=text)
        with open(PICTURE, "w") as file:
            file.write(picture(results))
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
