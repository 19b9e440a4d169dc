#!/usr/bin/env python3
"""The in-process tier under load, next to a direct Redis: what a hit costs, what writes pay for it, how old an answer may be, how much memory it takes.

    cargo build --release && benches/tier.py [hot|writes|stale|memory]…

Needs redis-server, redis-benchmark and a built target/release/keyfence (or KEYFENCE_BINARY). Prints figures and asserts nothing. Linux only.
"""

import multiprocessing
import statistics
import subprocess
import sys
import threading
import time

from load import World, command, connect, lines

ON = ("--tier", "256MiB")


def info(port, section="keyfence"):
    stream = connect(port)
    stream.sendall(command("INFO", section))
    data = b""
    while not data.endswith(b"\r\n\r\n") and b"tier_entries" not in data and b"tier:off" not in data:
        data += stream.recv(65536)
    stream.close()
    return {name: value for name, _, value in (line.partition(":") for line in data.decode().split("\r\n"))}


def until_live(world):
    while info(world.port).get("tier_live") != "1":
        time.sleep(0.05)


def benchmark(port, clients, pipeline, count, *words):
    report = subprocess.run(
        ["redis-benchmark", "-p", str(port), "-c", str(clients), "-P", str(pipeline), "-n", str(count), "-r", "1000", "--csv", *words],
        capture_output=True, text=True, check=True).stdout
    row = report.strip().splitlines()[-1].replace('"', "").split(",")
    return float(row[1]), float(row[6])


def hot():
    print("64-byte values, 1 worker, all hits: processor time per command, of keyfence beside what Redis itself spends on the same from direct clients")
    print("clients  pipeline  command   keyfence us    redis us   ratio     keyfence/s      redis/s")
    mget = ["MGET", *(f"key:{i:012}" for i in range(10))]
    with World(*ON) as world:
        until_live(world)
        benchmark(world.port, 1, 16, 20_000, "SET", "key:__rand_int__", "v" * 64)
        benchmark(world.redis_port, 1, 16, 20_000, "SET", "key:__rand_int__", "v" * 64)
        for words, name in ((["GET", "key:__rand_int__"], "GET"), (mget, "MGET 10")):
            benchmark(world.port, 1, 16, 20_000, *words)
            for clients, pipeline, count in ((50, 1, 300_000), (50, 16, 3_000_000 if name == "GET" else 600_000)):
                rounds = []
                for _ in range(3):
                    figures = []
                    for port, process in ((world.port, world.fence), (world.redis_port, world.redis)):
                        before = world.cpu(process)
                        rate, _ = benchmark(port, clients, pipeline, count, *words)
                        figures += [(world.cpu(process) - before) / count * 1e6, rate]
                    rounds.append(figures)
                ours, our_rate, theirs, their_rate = (statistics.median(column) for column in zip(*rounds))
                print(f"{clients:7}  {pipeline:8}  {name:7}  {ours:12.3f}  {theirs:10.3f}  {ours / theirs:6.2f}   {our_rate:12,.0f} {their_rate:12,.0f}", flush=True)
        counts = info(world.port)
        print(f"hits {counts['tier_hits']}, misses {counts['tier_misses']}")


def writes():
    print("45 clients that SET and 5 that GET among 1,000 keys, pipelines of 16, 1 worker: commands per second together, processor time per command.")
    print("With the tier first while it answers, then when it rests, which it does after four seconds of this")
    rounds = {"off": [], "answers": [], "rests": []}

    def measure(world, what):
        start, before, before_redis = time.perf_counter(), world.cpu(), world.cpu(world.redis)
        loads = ((45, 900_000, "SET", "key:__rand_int__", "v" * 64), (5, 100_000, "GET", "key:__rand_int__"))
        threads = [threading.Thread(target=benchmark, args=(world.port, clients, 16, count, *words)) for clients, count, *words in loads]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - start
        figures = (1_000_000 / took, world.cpu() - before, world.cpu(world.redis) - before_redis)
        rounds[what].append(figures)
        print(f"  {what:8} {figures[0]:10,.0f}/s   keyfence {figures[1]:.3f} us   redis {figures[2]:.3f} us", flush=True)

    for _ in range(5):
        with World() as world:
            benchmark(world.port, 50, 16, 100_000, "SET", "key:__rand_int__", "v" * 64)
            measure(world, "off")
        with World(*ON) as world:
            until_live(world)
            benchmark(world.port, 50, 16, 100_000, "SET", "key:__rand_int__", "v" * 64)
            measure(world, "answers")
            if info(world.port)["tier_resting"] == "1":
                rounds["answers"].pop()
                print("  it came to rest meanwhile: this one does not count", flush=True)
            while info(world.port)["tier_resting"] != "1":
                benchmark(world.port, 50, 16, 200_000, "SET", "key:__rand_int__", "v" * 64)
            measure(world, "rests")
    medians = {what: [statistics.median(column) for column in zip(*figures)] for what, figures in rounds.items()}
    for what in ("answers", "rests"):
        if not rounds[what]:
            continue
        ratios = [now / off - 1 for now, off in zip(medians[what], medians["off"])]
        print(f"median, {what}: {ratios[0]:+.1%} commands per second, {ratios[1]:+.1%} processor time of keyfence, {ratios[2]:+.1%} of redis")


def stale():
    with World(*ON) as world:
        until_live(world)
        for load in (False, True):
            stop = threading.Event()

            def others():
                while not stop.is_set():
                    benchmark(world.port, 50, 16, 200_000, "GET", "key:__rand_int__")

            worker = threading.Thread(target=others)
            if load:
                worker.start()
                time.sleep(0.5)
            reader, writer = connect(world.port), connect(world.redis_port)
            get, ages = command("GET", "k"), []
            for i in range(2000):
                value = f"{i:08}".encode()
                for _ in range(3):
                    reader.sendall(get)
                    lines(reader, 1 if i == 0 else 2)
                writer.sendall(command("SET", "keyfence:k", value))
                lines(writer)
                written = last = time.perf_counter()
                while True:
                    sent = time.perf_counter()
                    reader.sendall(get)
                    if value in lines(reader, 2 if i else 1):
                        break
                    last = sent
                ages.append(last - written)
            if load:
                stop.set()
                worker.join()
            ages.sort()
            old = sum(age > 0 for age in ages)
            print(f"{'under load' if load else 'idle      '}: 2,000 direct writes, {old} were followed by a read of the value before; the last such read was sent after"
                  f" p50 {ages[1000] * 1e6:.0f} us, p99 {ages[1980] * 1e6:.0f} us, max {ages[-1] * 1e6:.0f} us", flush=True)


def watch(port, done, results):
    stream, ping, times = connect(port), command("PING"), []
    while not done.is_set():
        start = time.perf_counter()
        stream.sendall(ping)
        stream.recv(64)
        times.append(time.perf_counter() - start)
        time.sleep(0.0005)
    results.send(times)


def memory():
    count, batch = 10_000_000, 1000
    for further in ((), ("--tier", "64MiB")):
        with World(*further) as world:
            if further:
                until_live(world)
            direct = connect(world.redis_port, 600)
            for first in range(0, count, 100_000):
                direct.sendall(command("EVAL", "for i = ARGV[1], ARGV[1] + 99999 do redis.call('SET', 'keyfence:key:' .. string.format('%d', i), ARGV[2]) end", 0,
                                       first, "v" * 64))
                lines(direct)
            stream = connect(world.port)
            stream.sendall(command("GET", "key:0"))
            stream.recv(65536)
            base, done = world.memory("VmRSS"), multiprocessing.Event()
            ours, theirs = multiprocessing.Pipe(False)
            # A process of its own: in this one it would wait for the other thread's turn to end.
            watcher = multiprocessing.Process(target=watch, args=(world.port, done, theirs))
            watcher.start()
            start = time.perf_counter()
            for first in range(0, count, batch):
                stream.sendall(b"".join(command("GET", f"key:{i}") for i in range(first, first + batch)))
                ends = 0
                while ends < 2 * batch:
                    ends += stream.recv(1 << 20).count(b"\n")
            took = time.perf_counter() - start
            done.set()
            worst = sorted(ours.recv())
            watcher.join()
            grown = world.memory("VmHWM") - base
            print(f"tier {'64 MiB' if further else 'off   '}: {count:,} keys of 64 bytes read in {took:.0f} s; resident {base:,} KiB, at most {grown:,} KiB more;"
                  f" a PING meanwhile p99 {worst[len(worst) * 99 // 100] * 1e3:.2f} ms, max {worst[-1] * 1e3:.2f} ms"
                  f"{'; ' + str({k: v for k, v in info(world.port).items() if k.startswith('tier_')}) if further else ''}", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or ["hot", "writes", "stale", "memory"]:
        {"hot": hot, "writes": writes, "stale": stale, "memory": memory}[name]()
