#!/usr/bin/env python3
"""Publish/subscribe next to a direct Redis, in the same run: how fast one message reaches many, and what a subscriber weighs.

    cargo build --release && benches/pubsub.py [fanout|memory]…

Needs redis-server and a built target/release/keyfence (or KEYFENCE_BINARY). Linux only, as it reads /proc. Prints figures and asserts
nothing. One process reads for all subscribers: it waits with epoll and counts bytes, so that most of the time is the servers'.
"""
import multiprocessing
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time

BINARY = os.environ.get("KEYFENCE_BINARY", os.path.join(os.path.dirname(__file__), "..", "target", "release", "keyfence"))
SECONDS = float(os.environ.get("SECONDS", "3"))
TICK = os.sysconf("SC_CLK_TCK")
CHILDREN = []


def command(*args):
    args = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(arg), arg) for arg in args)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def connect(port):
    stream = socket.create_connection(("127.0.0.1", port), 60)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def start(port, *words):
    plain = {k: v for k, v in os.environ.items() if not k.startswith("KEYFENCE_")}
    child = subprocess.Popen(words, env=plain, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    CHILDREN.append(child)
    while True:
        try:
            connect(port).close()
            return child
        except OSError:
            if child.poll() is not None:
                sys.exit(f"{words[0]} ended with {child.returncode}")
            time.sleep(0.05)


def world(workers):
    """Ports of a Redis and of a keyfence in front of it, and the two processes."""
    redis, fence = free_port(), free_port()
    server = start(redis, "redis-server", "--port", str(redis), "--save", "", "--maxclients", "30000")
    config = tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False)
    config.write("max_clients = 30000\n")
    config.close()
    words = ["run", "-c", config.name, "--listen", f"127.0.0.1:{fence}", "--upstream", f"redis://127.0.0.1:{redis}"]
    proxy = start(fence, BINARY, *words, "--admin", "", "--workers", str(workers))
    return (redis, server), (fence, proxy)


def cpu(process):
    """Seconds of processor time."""
    with open(f"/proc/{process.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss(process):
    """Resident bytes."""
    with open(f"/proc/{process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def read_exactly(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            sys.exit(f"closed after {data!r}")
        data += more
    return data


def subscribe(port, channels):
    stream = connect(port)
    stream.sendall(command("SUBSCRIBE", *channels))
    length = sum(len(b"*3\r\n$9\r\nsubscribe\r\n") + len(b"$%d\r\n%s\r\n:%d\r\n" % (len(c), c.encode(), i + 1)) for i, c in enumerate(channels))
    read_exactly(stream, length)
    return stream


def publish(port, window, line, stop):
    """Publishes until told to stop, `window` replies being owed at any time."""
    stream = connect(port)
    stream.sendall(line * window)
    while not stop.is_set():
        replies = stream.recv(65536).count(b"\n")
        stream.sendall(line * replies)
    os._exit(0)


def fan_out(port, subscribers, window, payload=64):
    """Messages delivered per second."""
    streams = [subscribe(port, ["news"]) for _ in range(subscribers)]
    message = len(command("message", "news", b"x" * payload))
    epoll = select.epoll()
    by_fd = {}
    for stream in streams:
        stream.setblocking(False)
        by_fd[stream.fileno()] = stream
        epoll.register(stream.fileno(), select.EPOLLIN)
    buffer = bytearray(1 << 20)
    stop = multiprocessing.Event()
    publisher = multiprocessing.Process(target=publish, args=(port, window, command("PUBLISH", "news", b"x" * payload), stop))
    publisher.start()
    begin, received = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < SECONDS:
        for fd, _ in epoll.poll(1):
            n = by_fd[fd].recv_into(buffer)
            if n == 0:
                sys.exit("a connection was closed")
            received += n
    stop.set()
    publisher.kill()
    publisher.join()
    for stream in streams:
        stream.close()
    return received / message / elapsed


def fanout():
    print(f"messages delivered per second, 1 publisher, 64 bytes, {SECONDS:g} s each")
    for workers in (1, 2):
        (redis, server), (fence, proxy) = world(workers)
        for subscribers, window in ((1000, 1), (1000, 16), (1000, 100), (10, 100)):
            total = [[0.0, 0.0], [0.0, 0.0]]
            for _ in range(2):
                for at, (port, process) in enumerate(((redis, server), (fence, proxy))):
                    before = cpu(process)
                    rate = fan_out(port, subscribers, window)
                    total[at][0] += rate / 2
                    total[at][1] += (cpu(process) - before) / (rate * SECONDS) * 1e6 / 2
                    time.sleep(0.3)
            (direct, own), (through, cost) = total
            print(
                f"  {workers} worker(s), {subscribers:5} subscribers, {window:3} on their way: direct {direct:9.0f} ({own:.2f} µs each)  "
                f"keyfence {through:9.0f} ({cost:.2f} µs each)  ratio {through / direct:.2f}",
                flush=True,
            )


def memory():
    print("resident memory of keyfence per subscriber, 10,000 of them on 100 channels")
    for each, what in ((1, "one channel each"), (100, "all hundred each")):
        _, (fence, proxy) = world(1)
        warm = [subscribe(fence, ["warm"]) for _ in range(100)]
        before = rss(proxy)
        streams = []
        for i in range(10_000):
            channels = [f"channel:{(i + j) % 100}" for j in range(each)]
            streams.append(subscribe(fence, channels))
        after = rss(proxy)
        publisher = connect(fence)
        publisher.sendall(command("PUBLISH", "channel:7", "x"))
        reached = publisher.recv(100)
        print(f"  {what}: {(after - before) / len(streams) / 1024:.1f} KiB; a message reaches {reached!r}", flush=True)
        for stream in [*streams, *warm]:
            stream.close()


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        for what in sys.argv[1:] or ["fanout", "memory"]:
            {"fanout": fanout, "memory": memory}[what]()
    finally:
        for child in CHILDREN:
            child.kill()
