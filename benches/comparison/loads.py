"""What is measured: the rows of the comparison, and how one contender is put under the load of one."""

import csv
import gc
import resource
import statistics
import subprocess
import time
from dataclasses import dataclass, field

from .contenders import KEYS, TENANTS, Stage, password
from .processes import HOST, TIMEOUT, Client, Failed, command, cpu, forget_peak, log_of, peak, resident

MIB = 1 << 20
SIZES = {"64": 64, "1k": 1024}
SHAPES = [(50, 1, 150_000), (50, 16, 1_000_000), (500, 1, 150_000), (1, 1, 30_000)]


@dataclass
class Load:
    """`count` requests of `test` by `clients` with `pipeline` requests at once. `users`: tenants that share them, each with a process of
    its own, ten in all."""

    name: str
    label: str
    test: str
    size: int = 64
    clients: int = 50
    pipeline: int = 1
    count: int = 150_000
    resp3: bool = False
    users: list = field(default_factory=list)
    keys: int = KEYS


@dataclass
class Row:
    """What `--only` names: loads that are measured right after each other. `contenders`: all of them, or those named."""

    name: str
    loads: list
    contenders: tuple = ()


@dataclass
class Sample:
    """One measurement. Rate: requests/s. Latencies: ms. CPU: microseconds per request, of the contender and of the Redis behind it.
    Memory: bytes, of the contender (of Redis for a direct one), fresh and at most under the load; `each`: per idle connection."""

    rate: float = 0
    p50: float = 0
    p99: float = 0
    proxy: float | None = None
    upstream: float | None = None
    base: int = 0
    peak: int = 0
    each: float | None = None


def rows():
    all_rows = []
    for size, shown in (("64", "64 B"), ("1k", "1 KiB")):
        for clients, pipeline, count in SHAPES:
            for test in ("get", "set"):
                name = f"{test}-{size}-c{clients}-p{pipeline}"
                label = f"{test.upper()} {shown} c{clients} P{pipeline}"
                all_rows.append(Row(name, [Load(name, label, test, SIZES[size], clients, pipeline, count)]))
    for pipeline, count in ((1, 100_000), (16, 300_000)):
        for test in ("mget", "mset"):
            name = f"{test}-c50-p{pipeline}"
            all_rows.append(Row(name, [Load(name, f"{test.upper()} of 10 c50 P{pipeline}", test, 64, 50, pipeline, count)]))
    for test in ("get", "set"):
        name = f"1mib-{test}"
        all_rows.append(Row(name, [Load(name, f"{test.upper()} 1 MiB c8 P1", test, MIB, 8, 1, 3000, keys=8)]))
    all_rows.append(Row("idle", [Load("idle", "5,000 idle connections", "idle", clients=5000)]))
    all_rows.append(Row("tenants", [
        Load("tenants-1", "GET 64 B c500 P1, one tenant", "get", clients=500, users=TENANTS[:1]),
        Load("tenants-10", "GET 64 B c500 P1, ten tenants", "get", clients=500, users=TENANTS),
    ], ("keyfence",)))
    for clients, pipeline, count in SHAPES[:2]:
        name = f"resp3-c{clients}-p{pipeline}"
        label = f"GET 64 B c{clients} P{pipeline}, RESP"
        all_rows.append(Row(name, [
            Load(name + "-2", label + "2", "get", 64, clients, pipeline, count),
            Load(name + "-3", label + "3", "get", 64, clients, pipeline, count, resp3=True),
        ], ("direct", "HAProxy", "keyfence")))
    return all_rows


def measure(processes, direct, contender, load, quick):
    """One Sample. Servers are fresh, warmed up by a tenth of the load, and gone afterwards."""
    count = max(load.count // (100 if load.size == MIB else 20), load.clients * load.pipeline * 2) if quick else load.count
    with Stage(processes, direct, contender, load.keys, load.size, tenants=TENANTS if load.users else ()) as stage:
        if load.test == "idle":
            return idle(stage, min(load.clients, 500) if quick else load.clients)
        forget_peak(stage.server)
        run = alone if load.clients == 1 else benchmark
        run(processes, stage, load, max(count // 10, load.clients))
        hits, commands = stage.upstream_info("keyspace_hits"), stage.upstream_info("total_commands_processed")
        before = cpu(stage.server), cpu(stage.upstream)
        sample = run(processes, stage, load, count)
        after = cpu(stage.server), cpu(stage.upstream)
        # Every request must have reached Redis, and found its keys: a proxy that answers errors is fast.
        done = stage.upstream_info("total_commands_processed") - commands
        found = stage.upstream_info("keyspace_hits") - hits
        if done < count or load.test in ("get", "mget") and found < count * (10 if load.test == "mget" else 1):
            raise Failed(f"{count} requests came to {done} commands and {found} keys found upstream")
        if contender is not direct:
            sample.proxy = (after[0] - before[0]) / count * 1e6
        sample.upstream = (after[1] - before[1]) / count * 1e6
        sample.base, sample.peak = stage.base, peak(stage.server)
        return sample


def benchmark(processes, stage, load, count):
    """By redis-benchmark; with tenants by ten of them."""
    args = ["redis-benchmark", "-h", HOST, "-p", stage.port, "-P", load.pipeline, "-d", load.size, "-r", load.keys, "--csv"]
    args += ["-3"] if load.resp3 else []
    what = ["MGET"] + ["key:__rand_int__"] * 10 if load.test == "mget" else ["-t", load.test]
    if not load.users:
        return report([processes.output([*args, "-c", load.clients, "-n", count, *what])])
    started, texts = [], []
    try:
        for i in range(10):
            user = load.users[i % len(load.users)]
            login = ["--user", user, "-a", password(user)]
            # What is left over by the division is the first one's, so that the sum is what is counted.
            share = count // 10 + (count % 10 if i == 0 else 0)
            started.append(processes.start([*args, "-c", load.clients // 10, "-n", share, *login, *what]))
        for process in started:
            if process.wait(TIMEOUT):
                raise Failed(f"redis-benchmark: {log_of(process)}")
            with open(process.log) as file:
                texts.append(file.read())
    except subprocess.TimeoutExpired:
        raise Failed(f"redis-benchmark did not end in {TIMEOUT} s") from None
    finally:
        for process in started:
            processes.stop(process, at_once=True)
    return report(texts)


def report(texts):
    """The figures of redis-benchmarks that ran at once."""
    reports = []
    for text in texts:
        lines = text.splitlines()
        start = next((i for i, line in enumerate(lines) if line.startswith('"test"')), None)
        refused = next((line for line in lines if "rror" in line), None)
        if start is None or refused:
            raise Failed(f"redis-benchmark: {refused or text[-200:] or 'no output'}")
        reports.append(list(csv.DictReader(lines[start:]))[-1])
    return Sample(
        rate=sum(float(each["rps"]) for each in reports),
        p50=statistics.median(float(each["p50_latency_ms"]) for each in reports),
        p99=max(float(each["p99_latency_ms"]) for each in reports))


def alone(processes, stage, load, count):
    """One client that waits for each reply: by us, since redis-benchmark knows latencies only in steps of 8 microseconds."""
    client = Client(stage.port)
    get = load.test == "get"
    names = [b"key:%012d" % (i * 7919 % load.keys) for i in range(1000)]
    requests = [command("GET", name) if get else command("SET", name, b"v" * load.size) for name in names]
    expected = b"$%d\r\n%s\r\n" % (load.size, b"v" * load.size) if get else b"+OK\r\n"
    send, receive, clock = client.stream.sendall, client.stream.recv, time.perf_counter_ns
    took = []
    gc.disable()
    began = clock()
    try:
        for i in range(count):
            start = clock()
            send(requests[i % len(requests)])
            reply = receive(65536)
            # Nothing received is the end of the connection, and goes on as the wrong answer that it is.
            while len(reply) < len(expected) and reply and expected.startswith(reply):
                more = receive(65536)
                reply = more and reply + more
            took.append(clock() - start)
            if reply != expected:
                raise Failed(f"answered {reply[:80]!r}")
    finally:
        gc.enable()
        client.close()
    seconds = (clock() - began) / 1e9
    took.sort()
    return Sample(rate=count / seconds, p50=took[count // 2] / 1e6, p99=took[count * 99 // 100] / 1e6)


def idle(stage, count):
    """Connections that have each done one GET."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 2 * count + 1000:
        raise Failed(f"{count} connections need a hard limit of {2 * count + 1000} open files (ulimit -Hn), it is {hard}")
    first = Client(stage.port)
    first.ask("GET", "key:%012d" % 0)
    before, kept = resident(stage.server), [first]
    for i in range(count):
        client = Client(stage.port)
        if not client.ask("GET", "key:%012d" % (i % KEYS)).startswith(b"$64"):
            raise Failed("a GET of an existing key did not answer it")
        kept.append(client)
    after = resident(stage.server)
    for client in kept:
        client.close()
    return Sample(base=stage.base, peak=after, each=(after - before) / count)
