#!/usr/bin/env python3
"""The whole process under load, next to a direct Redis: what a command costs, what a connection weighs, what FLUSHDB does to others.

    cargo build --release && benches/load.py [throughput|idle|large|flush]…

Needs redis-server, redis-benchmark and a built target/release/keyfence (or KEYFENCE_BINARY). Prints figures and asserts nothing: CPU
time per command is the one that survives a noisy machine. Linux only, as it reads /proc.
"""

import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time

BINARY = os.environ.get("KEYFENCE_BINARY", os.path.join(os.path.dirname(__file__), "..", "target", "release", "keyfence"))
TICK = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def connect(port, timeout=60):
    stream = socket.create_connection(("127.0.0.1", port), timeout)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def until_up(port, process):
    while True:
        try:
            return connect(port).close()
        except OSError:
            if process.poll() is not None:
                sys.exit(f"it ended with {process.returncode}")


def command(*args):
    args = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(arg), arg) for arg in args)


def lines(stream, count=1):
    data = b""
    while data.count(b"\r\n") < count:
        more = stream.recv(65536)
        if not more:
            sys.exit(f"closed after {data!r}")
        data += more
    return data


class World:
    """A Redis and a keyfence with one worker in front of it, started with these further arguments."""

    def __init__(self, *further):
        self.further = further

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.redis_port, self.port = free_port(), free_port()
        self.redis = subprocess.Popen(
            ["redis-server", "--port", str(self.redis_port), "--save", "", "--maxclients", "20000", "--dir", self.folder.name],
            stdout=subprocess.DEVNULL)
        until_up(self.redis_port, self.redis)
        self.fence = subprocess.Popen(
            [os.path.abspath(BINARY), "run", "--listen", f"127.0.0.1:{self.port}", "--upstream", f"redis://127.0.0.1:{self.redis_port}",
             "--prefix", "keyfence:", "--workers", "1", "--admin", "", *self.further],
            cwd=self.folder.name, stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith("KEYFENCE_")})
        until_up(self.port, self.fence)
        return self

    def __exit__(self, *_):
        for process in (self.fence, self.redis):
            process.kill()
            process.wait()
        self.folder.cleanup()

    def cpu(self, process=None):
        """Seconds of user and system time so far, of keyfence unless another process is named."""
        with open(f"/proc/{(process or self.fence).pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self, field):
        """KiB of keyfence."""
        with open(f"/proc/{self.fence.pid}/status") as file:
            return next(int(entry.split()[1]) for entry in file if entry.startswith(field + ":"))

    def fill(self, port, name, count, value=b"v"):
        stream = connect(port)
        for start in range(0, count, 10_000):
            batch = range(start, min(start + 10_000, count))
            stream.sendall(b"".join(command("SET", f"{name}{i}", value) for i in batch))
            left = len(b"+OK\r\n") * len(batch)
            while left:
                left -= len(stream.recv(min(left, 1 << 20)))
        stream.close()


def throughput():
    print("one worker, 64-byte values          keyfence                                 direct")
    print("clients  pipeline  command    commands/s   CPU us/command   p99 ms    commands/s   p99 ms   of direct")
    with World() as world:
        for clients, pipeline, count in ((50, 1, 300_000), (50, 16, 2_000_000), (500, 1, 300_000)):
            for test in ("set", "get"):
                figures = []
                for port in (world.port, world.redis_port):
                    before = world.cpu()
                    report = subprocess.run(
                        ["redis-benchmark", "-p", str(port), "-c", str(clients), "-P", str(pipeline), "-n", str(count), "-d", "64",
                         "-r", "10000", "-t", test, "--csv"], capture_output=True, text=True, check=True).stdout
                    row = report.strip().splitlines()[-1].replace('"', "").split(",")
                    figures += [float(row[1]), (world.cpu() - before) / count * 1e6, float(row[6])]
                rate, cost, slow, direct_rate, _, direct_slow = figures
                print(f"{clients:7}  {pipeline:8}  {test:7}  {rate:12,.0f}   {cost:14.2f}   {slow:6.2f}  {direct_rate:12,.0f}   {direct_slow:6.2f}"
                      f"      {rate / direct_rate:6.1%}", flush=True)


def idle():
    count = 5000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 3 * count)), hard))
    with World() as world:
        stream = connect(world.port)
        stream.sendall(command("PING"))
        lines(stream)
        before = world.memory("VmRSS")
        kept = []
        for i in range(count):
            stream = connect(world.port)
            # Each has worked before it idles.
            stream.sendall(command("SET", f"k{i}", "v" * 64) + command("GET", f"k{i}"))
            lines(stream, 3)
            kept.append(stream)
        print(f"{count} idle connections: {(world.memory('VmRSS') - before) * 1024 / count:,.0f} bytes each")


def large():
    size = 100 << 20
    with World() as world:
        stream = connect(world.port)
        stream.sendall(command("SET", "small", "v"))
        lines(stream)
        for what in ("SET", "GET"):
            request = command("SET", "large", b"x" * size) if what == "SET" else command("GET", "large")
            before = world.memory("VmRSS")
            with open(f"/proc/{world.fence.pid}/clear_refs", "w") as file:
                file.write("5")
            start = time.perf_counter()
            stream.sendall(request)
            left = len(b"+OK\r\n") if what == "SET" else size + len(b"$%d\r\n\r\n" % size)
            while left:
                left -= len(stream.recv(min(left, 1 << 20)))
            took = time.perf_counter() - start
            print(f"{what} of 100 MB: {took:.2f} s, at most {world.memory('VmHWM') - before:,} KiB above the base of {before:,} KiB")


def flush():
    count = 1_000_000
    with World() as world:
        print(f"FLUSHDB of {count:,} own keys among {count:,} foreign ones", flush=True)
        world.fill(world.redis_port, "foreign:", count, b"theirs")
        world.fill(world.port, "own:", count)
        latencies, done = [], threading.Event()

        def foreign():
            stream = connect(world.redis_port)
            i = 0
            while not done.is_set():
                i = (i * 1103515245 + 12345) % count
                request = command("GET", f"foreign:{i}")
                start = time.perf_counter()
                stream.sendall(request)
                lines(stream, 2)
                latencies.append(time.perf_counter() - start)

        worker = threading.Thread(target=foreign)
        worker.start()

        def figures(work):
            start, mark = time.perf_counter(), len(latencies)
            work()
            took, sample = time.perf_counter() - start, sorted(latencies[mark:])
            return sample[len(sample) * 99 // 100] * 1e3, sample[len(sample) // 2] * 1e3, took

        stream = connect(world.port, None)

        def flushdb():
            stream.sendall(command("FLUSHDB"))
            assert lines(stream) == b"+OK\r\n"

        figures(lambda: time.sleep(1))
        before = figures(lambda: time.sleep(5))
        during = figures(flushdb)
        done.set()
        worker.join()
        stream.sendall(command("DBSIZE"))
        direct = connect(world.redis_port)
        direct.sendall(command("DBSIZE"))
        print(f"took {during[2]:.1f} s; keys left: own {lines(stream).decode().strip()}, all {lines(direct).decode().strip()}")
        print(f"a foreign client's p99: {before[0]:.3f} ms before, {during[0]:.3f} ms during ({during[0] / before[0]:.2f}x);"
              f" median {before[1]:.3f} ms, {during[1]:.3f} ms")


if __name__ == "__main__":
    for name in sys.argv[1:] or ["throughput", "idle", "large", "flush"]:
        {"throughput": throughput, "idle": idle, "large": large, "flush": flush}[name]()
