#!/usr/bin/env python3
"""What tenants cost and what they do to each other: keyfence in front of a Redis, both started here, python3 and nothing else.

    cargo build --release && python3 benches/tenants.py target/release/keyfence [seconds per measurement, default 4]

1. Start-up with 1 and with 1,000 tenants, and CPU of keyfence per command: all load on one tenant, and on ten of the thousand (500 clients
   without pipelining by redis-benchmark, and few clients with deep pipelines, where what one tenant's clients ask for leaves in one write
   and that of ten in ten).
2. A reload that replaces 500 of 1,000 tenants, under the load of one that stays: its longest reply.
3. The noisy neighbour: a victim at 500 GET/s, quiet and while another tenant floods, through keyfence and (the same flood, the same run)
   straight to a plain Redis; and with ops_per_second on the flooder. Medians of three.
"""
import os, random, resource, socket, subprocess, sys, tempfile, time
from multiprocessing import Process, Pipe

BINARY = sys.argv[1] if len(sys.argv) > 1 else "target/release/keyfence"
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 4.0
HOST = "127.0.0.1"
DIR = tempfile.mkdtemp(prefix="keyfence-bench-")
CHILDREN = []


def port():
    with socket.socket() as s:
        s.bind((HOST, 0))
        return s.getsockname()[1]


def cmd(*args):
    args = [a if isinstance(a, bytes) else str(a).encode() for a in args]
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in args)


class Client:
    def __init__(self, at, user=None):
        self.s = socket.create_connection((HOST, at))
        self.s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buf = b""
        if user:
            assert self.ask(cmd("AUTH", user, "p" + user)) == b"+OK"

    def line(self):
        while b"\r\n" not in self.buf:
            more = self.s.recv(1 << 18)
            if not more:
                raise EOFError
            self.buf += more
        head, self.buf = self.buf.split(b"\r\n", 1)
        return head

    def reply(self):
        head = self.line()
        if head[:1] == b"$" and head != b"$-1":
            need = int(head[1:]) + 2
            while len(self.buf) < need:
                self.buf += self.s.recv(1 << 18)
            head, self.buf = self.buf[: need - 2], self.buf[need:]
        elif head[:1] == b"*":
            for _ in range(int(head[1:])):
                self.reply()
        return head

    def ask(self, data):
        self.s.sendall(data)
        return self.reply()


def redis():
    at = port()
    CHILDREN.append(subprocess.Popen(["redis-server", "--port", str(at), "--bind", HOST, "--save", "", "--dir", DIR], stdout=subprocess.DEVNULL))
    wait(at)
    return at


def wait(at, user=None):
    while True:
        try:
            c = Client(at, user)
            if c.ask(cmd("EXISTS", "x"))[:1] == b":":
                return
        except (OSError, EOFError, AssertionError):
            pass
        time.sleep(0.002)


def settings(path, tenants, limits=""):
    with open(path + ".new", "w") as f:
        for i in tenants:
            f.write('[tenants.t%d]\npasswords = ["pt%d"]\n%s\n' % (i, i, limits if i == 1 else ""))
    os.rename(path + ".new", path)


def keyfence(upstream, tenants, limits=""):
    at = port()
    path = os.path.join(DIR, "%d.toml" % at)
    settings(path, range(tenants), limits)
    start = time.monotonic()
    args = [BINARY, "run", "-c", path, "--listen", "%s:%d" % (HOST, at), "--upstream", "redis://%s:%d" % (HOST, upstream), "--workers", "1", "--admin", ""]
    p = subprocess.Popen(args, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    CHILDREN.append(p)
    wait(at, "t%d" % (tenants - 1))
    return at, p, time.monotonic() - start


def cpu(pid):
    fields = open("/proc/%d/stat" % pid).read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stop(p):
    p.terminate()
    p.wait()


def cost(at, pid, users, together):
    """CPU microseconds of keyfence per command, ten connections, 16 commands a write; all at once (so that requests of one tenant can leave
    in one write upstream), or one after the other."""
    clients = [Client(at, users[i % len(users)]) for i in range(10)]
    block = b"".join(cmd("SET", "k%d" % i, "v" * 64) + cmd("GET", "k%d" % i) for i in range(8))
    done, before, end = 0, cpu(pid), time.monotonic() + SECONDS
    while time.monotonic() < end:
        for group in [clients] if together else [[c] for c in clients]:
            for c in group:
                c.s.sendall(block)
            for c in group:
                for _ in range(16):
                    c.reply()
        done += 16 * len(clients)
    return (cpu(pid) - before) / done * 1e6


def cost_of_many(at, pid, users):
    """The same for 500 clients without pipelining, 50 in each of ten processes."""
    before, each = cpu(pid), 20000
    command = ["redis-benchmark", "-p", str(at), "-c", "50", "-n", str(each), "-d", "64", "-t", "get", "-q"]
    loads = [subprocess.Popen(command + ["--user", u, "-a", "p" + u], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
             for u in (users * 10)[:10]]
    for load in loads:
        load.wait()
    return (cpu(pid) - before) / (10 * each) * 1e6


def reload(at, p):
    """Longest reply of a tenant that stays, in ms, over five reloads that replace half of the thousand tenants."""
    path = os.path.join(DIR, "%d.toml" % at)
    watcher = Client(at, "t0")
    watcher.ask(cmd("SET", "k", "v"))
    worst, count = 0, 0
    for turn in range(5):
        settings(path, list(range(500)) + list(range(500 + (turn + 1) * 1000, 1000 + (turn + 1) * 1000)))
        p.send_signal(1)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            start = time.monotonic()
            assert watcher.ask(cmd("GET", "k")) == b"v"
            worst, count = max(worst, time.monotonic() - start), count + 1
        wait(at, "t%d" % (500 + (turn + 1) * 1000))
    return worst * 1e3, count


def victim(at, user, pipe):
    c = Client(at, user)
    c.ask(cmd("SET", "k", "v" * 64))
    ask, took, next_at, worst = cmd("GET", "k"), [], time.monotonic(), b""
    end = next_at + SECONDS
    while next_at < end:
        time.sleep(max(0, next_at - time.monotonic()))
        start = max(next_at, time.monotonic()) if not took else time.monotonic()
        reply = c.ask(ask)
        took.append(time.monotonic() - start)
        if reply[:1] == b"-":
            worst = reply
        next_at += 0.002
    took.sort()
    pipe.send((took[len(took) // 2] * 1e3, took[int(len(took) * 0.99)] * 1e3, took[-1] * 1e3, len(took), worst))


def flood_sets(at, user, stop_at):
    clients = [Client(at, user) for _ in range(50)]
    block = b"".join(cmd("SET", "flood%d" % random.randrange(1000), "v" * 64) for _ in range(100))
    while time.monotonic() < stop_at:
        for c in clients:
            c.s.sendall(block)
        for c in clients:
            for _ in range(100):
                c.reply()


def flood_keys(at, user, stop_at):
    c = Client(at, user)
    while time.monotonic() < stop_at:
        c.ask(cmd("KEYS", "*none*"))
        c.ask(cmd("DBSIZE"))


def flood_flush(at, user, stop_at):
    c = Client(at, user)
    # Plain Redis has no tenants: there the flood flushes another database, as big.
    if not user:
        c.ask(cmd("SELECT", 1))
    fill(c, 200000)
    while time.monotonic() < stop_at:
        c.ask(cmd("FLUSHDB"))
        fill(c, 20000)


def flood_unread(at, user, stop_at):
    c = Client(at, user)
    c.ask(cmd("SET", "big", "x" * (1 << 20)))
    clients = [Client(at, user) for _ in range(10)]
    for d in clients:
        d.s.sendall(cmd("GET", "big") * 500)
    time.sleep(max(0, stop_at - time.monotonic()))


def flood_idle(at, user, stop_at):
    clients = [Client(at, user) for _ in range(2000)]
    time.sleep(max(0, stop_at - time.monotonic()))


def fill(c, n):
    for i in range(0, n, 1000):
        c.s.sendall(b"".join(cmd("SET", "fill%d" % j, "v") for j in range(i, i + 1000)))
        for _ in range(1000):
            c.reply()


def measure(at, vic, flooder=None, user=None):
    noise = None
    if flooder:
        noise = Process(target=flooder, args=(at, user, time.monotonic() + SECONDS + 3.5))
        noise.start()
        time.sleep(2)
    mine, theirs = Pipe()
    p = Process(target=victim, args=(at, vic, theirs))
    p.start()
    result = mine.recv()
    p.join()
    if noise:
        noise.terminate()
        noise.join()
    return result


def show(name, r):
    print("%-44s p50 %7.2f ms  p99 %7.2f ms  max %7.2f ms  of %d%s" % (name, *r[:4], "  ERROR %s" % r[4] if r[4] else ""), flush=True)


def main():
    up = redis()
    _, p, took = keyfence(up, 1)
    stop(p)
    at, p, took1000 = keyfence(up, 1000)
    print("start-up until served: 1 tenant %.2f s, 1,000 tenants %.2f s" % (took, took1000), flush=True)
    for together in [True, False]:
        one, ten = [], []
        for _ in range(3):
            one.append(cost(at, p.pid, ["t0"], together))
            ten.append(cost(at, p.pid, ["t%d" % i for i in range(0, 1000, 100)], together))
        one, ten = sorted(one)[1], sorted(ten)[1]
        how = "all at once" if together else "in turn"
        print("CPU per command, %s: 1 active tenant %.2f us, 10 active %.2f us, ratio %.2f" % (how, one, ten, ten / one), flush=True)
    one, ten = [], []
    for _ in range(3):
        one.append(cost_of_many(at, p.pid, ["t0"]))
        ten.append(cost_of_many(at, p.pid, ["t%d" % i for i in range(0, 1000, 100)]))
    one, ten = sorted(one)[1], sorted(ten)[1]
    print("CPU per command, 500 clients: 1 active tenant %.2f us, 10 active %.2f us, ratio %.2f" % (one, ten, ten / one), flush=True)
    print("five reloads of 1,000 tenants, 500 of them replaced: longest reply of another tenant %.2f ms, of %d" % reload(at, p), flush=True)
    stop(p)
    at, p, _ = keyfence(up, 2)
    plain = redis()
    fill(Client(at, "t1"), 200000)
    # On the plain server the other tenant's keys stand beside the victim's, as they would.
    fill(Client(plain), 200000)
    quiet = measure(at, "t0")
    show("quiet, keyfence", quiet)
    show("quiet, plain Redis", measure(plain, None))
    for name, flooder in [("SETs on 50 connections", flood_sets), ("KEYS and DBSIZE of 200,000", flood_keys), ("FLUSHDB of 200,000", flood_flush),
                          ("10 that never read", flood_unread), ("2,000 idle connections", flood_idle)]:
        pairs = [(measure(at, "t0", flooder, "t1"), measure(plain, None, flooder, None)) for _ in range(3)]
        k, r = (sorted(results, key=lambda m: m[1])[1] for results in zip(*pairs))
        show(name + ", keyfence", k)
        show(name + ", plain Redis", r)
        print("    p99 ratio to plain Redis %.2f, to quiet %.2f" % (k[1] / r[1], k[1] / quiet[1]), flush=True)
    stop(p)
    at, p, _ = keyfence(up, 2, "limits = { ops_per_second = 1000 }")
    pairs = [(measure(at, "t0"), measure(at, "t0", flood_sets, "t1")) for _ in range(3)]
    for quiet, limited in pairs:
        show("quiet", quiet)
        show("SETs, flooder limited to 1,000 ops/s", limited)
    print("    p99 ratio to quiet, median of three: %.2f" % sorted(limited[1] / quiet[1] for quiet, limited in pairs)[1], flush=True)


def run(main):
    """Runs it with room for its connections, and ends what it started."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20000) if hard > 0 else 20000, hard))
    try:
        main()
    finally:
        for child in CHILDREN:
            if child.poll() is None:
                child.kill()
                child.wait()


if __name__ == "__main__":
    run(main)
