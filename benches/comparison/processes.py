"""The processes of a comparison: started, measured through /proc, and ended, whatever happens. Linux only."""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile

HOST = "127.0.0.1"
# The longest that one load may take, in seconds: past it somebody lost a reply.
TIMEOUT = 300
TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A measurement that cannot be had; the text says why."""


class Processes:
    """All that is started, each in a session of its own. Leaving the context ends it all, also after Ctrl-C or SIGTERM."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="keyfence-compare-")
        self.running, self.held, self.interrupted, self.logs = [], False, False, 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_):
        self.held = True
        for process in list(self.running):
            self.stop(process, at_once=True)
        self.folder.cleanup()

    def _interrupt(self, number, _):
        # Between a fork and the note of it nothing may be thrown, or the child would be forgotten.
        self.interrupted = number
        if not self.held:
            sys.exit(128 + number)

    def start(self, args, **more):
        """Starts `args` with its output in a log, or where `more` (of subprocess.Popen) puts it."""
        self.logs += 1
        with open(os.path.join(self.folder.name, f"{self.logs}.log"), "wb") as log:
            self.held = True
            process = subprocess.Popen([str(arg) for arg in args], start_new_session=True, stdin=subprocess.DEVNULL,
                                       **{"stdout": log, "stderr": log, **more})
            process.log = log.name
            self.running.append(process)
            self.held = False
        if self.interrupted:
            sys.exit(128 + self.interrupted)
        return process

    def output(self, args):
        """What `args` prints on its standard output."""
        process = self.start(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            return process.communicate(timeout=TIMEOUT)[0]
        except subprocess.TimeoutExpired:
            raise Failed(f"{args[0]} did not end in {TIMEOUT} s") from None
        finally:
            self.stop(process, at_once=True)

    def stop(self, process, at_once=False):
        """Asks it to end, and after ten seconds (or `at_once`, or when all is to end) ends it with all of its session."""
        try:
            if not at_once and not self.interrupted:
                process.terminate()
                process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        if process in self.running:
            self.running.remove(process)


def log_of(process):
    with open(process.log, errors="replace") as file:
        return " ".join(file.read().split())[-300:]


def cpu(process):
    """Seconds of user and system time so far of a process that Processes started and of what it started: all threads of its session."""
    total = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == process.pid:
                total += int(fields[11]) + int(fields[12])
    return total / TICK


def resident(process):
    """Resident memory in bytes. Not VmRSS of `status`, which the kernel gathers from its cores only now and then."""
    with open(f"/proc/{process.pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:")) << 10


def forget_peak(process):
    with open(f"/proc/{process.pid}/clear_refs", "w") as file:
        file.write("5")


def peak(process):
    """The most resident memory in bytes since its start or `forget_peak`."""
    with open(f"/proc/{process.pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) << 10


def free_port(used=set()):
    """A port that nobody listens on, below those that Linux gives to outgoing connections; never the same twice."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in used:
            used.add(port)
            return port


def command(*args):
    args = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(arg), arg) for arg in args)


class Client:
    """A blocking client for replies of one line or one bulk string."""

    def __init__(self, port, timeout=60):
        self.stream = socket.create_connection((HOST, port), timeout)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, *args):
        self.stream.sendall(command(*args))
        return self.reply()

    def reply(self):
        data = b""
        while True:
            end = data.find(b"\r\n")
            if end >= 0 and (data[:1] != b"$" or data[1:2] == b"-" or len(data) >= end + 4 + int(data[1:end])):
                return data
            more = self.stream.recv(1 << 20)
            if not more:
                raise Failed(f"closed the connection after {data[:60]!r}")
            data += more

    def close(self):
        self.stream.close()
