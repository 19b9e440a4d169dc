"""From samples to tables: ratios, the bars that keyfence is held to, and docs/performance.md."""

import os
import platform
import statistics
from datetime import datetime, timezone

from .contenders import KEYS

MIB = 1 << 20
SCALE = "## Scale\n"


class Results:
    """The samples of every load and contender, one a round; None for a round that failed."""

    def __init__(self, rows, contenders):
        self.rows, self.contenders, self.samples, self.failures = rows, contenders, {}, []

    def add(self, load, contender, sample):
        self.samples.setdefault((load.name, contender.name), []).append(sample)

    def values(self, load, contender, of):
        """`of` each round's sample; None for a round in which it is not known."""
        return [sample and of(sample) for sample in self.samples.get((load, contender), [])]

    def median(self, load, contender, of):
        known = [value for value in self.values(load, contender, of) if value is not None]
        return statistics.median(known) if known else None

    def ratios(self, load, of, other, contender="keyfence", other_load=None):
        """Contender's figure in units of the other's, for each round in which both are known."""
        pairs = zip(self.values(load, contender, of), self.values(other_load or load, other, of))
        return [mine / theirs for mine, theirs in pairs if mine is not None and theirs]

    def ratio(self, load, of, other):
        known = self.ratios(load, of, other)
        return statistics.median(known) if known else None


def proxy(sample):
    return sample.proxy


def upstream(sample):
    return sample.upstream


def rate(sample):
    return sample.rate or None


class Bars:
    """The bars, each with its figure: the median of the rounds' own, in brackets the least and the most of the rounds."""

    def __init__(self, results):
        self.results, self.lines, self.met, self.missed = results, [], 0, 0
        self.labels = {load.name: load.label for row in results.rows for load in row.loads}
        for load in self.labels:
            self.of_load(load)
        for row in results.rows:
            for load in row.loads:
                if load.test != "idle" and not row.contenders:
                    self.at_most(load.name, "CPU of the upstream, of twemproxy's", results.ratios(load.name, upstream, "twemproxy"), 1.0)

    def of_load(self, load):
        ratios = self.results.ratios
        if load.startswith(("get-64-", "set-64-")):
            floor, twemproxy = {"c50-p1": (1.20, 0.80), "c50-p16": (1.70, 0.30), "c500-p1": (1.20, 0.80)}.get(load[7:], (None, None))
            if floor:
                self.at_most(load, "CPU, of the floor's", ratios(load, proxy, "floor"), floor)
                self.at_most(load, "CPU, of twemproxy's", ratios(load, proxy, "twemproxy"), twemproxy)
            if load.endswith("c500-p1"):
                self.bar(load, "throughput, of direct Redis's", ratios(load, rate, "direct"), 1.0, "x", least=True)
        if load == "get-1k-c50-p16":
            self.at_most(load, "CPU, of twemproxy's", ratios(load, proxy, "twemproxy"), 0.5)
            self.at_most(load, "CPU, of HAProxy's", ratios(load, proxy, "HAProxy"), 1.0)
        if load.endswith("-c1-p1"):
            self.added_latency(load)
        if load.startswith(("mget", "mset")):
            self.at_most(load, "CPU, of twemproxy's", ratios(load, proxy, "twemproxy"), 0.5)
        if load.startswith("1mib"):
            self.at_most(load, "CPU per MiB, of HAProxy's", ratios(load, proxy, "HAProxy"), 1.0)
            self.at_most(load, "peak resident memory above base", self.known(load, lambda s: (s.peak - s.base) / MIB), 16, " MiB")
        if load == "idle":
            self.at_most(load, "bytes each after a GET", self.known(load, lambda s: s.each), 2048, " bytes")
            self.at_most(load, "base resident memory", self.known(load, lambda s: s.base / MIB), 12, " MiB")
        if load == "tenants-10":
            self.at_most(load, "CPU, of one tenant's", ratios(load, proxy, "keyfence", other_load="tenants-1"), 1.15)
        if load.startswith("resp3") and load.endswith("-3"):
            self.at_most(load, "CPU, of RESP2's", ratios(load, proxy, "keyfence", other_load=load[:-1] + "2"), 1.05)

    def known(self, load, of):
        return [value for value in self.results.values(load, "keyfence", of) if value is not None]

    def added_latency(self, load):
        added = {name: [] for name in ("keyfence", "HAProxy")}
        for name, values in added.items():
            pairs = zip(self.results.values(load, name, lambda s: s.p50), self.results.values(load, "direct", lambda s: s.p50))
            values += [(there - direct) * 1000 for there, direct in pairs if there is not None and direct is not None]
        limit = statistics.median(added["HAProxy"]) if added["HAProxy"] else None
        self.at_most(load, "added median latency, HAProxy's the bar", added["keyfence"] if limit is not None else [], limit, " us")

    def at_most(self, load, what, figures, limit, unit="x"):
        self.bar(load, what, figures, limit, unit)

    def bar(self, load, what, figures, limit, unit, least=False):
        if not figures:
            self.lines.append((self.labels[load], what, "", "", "not measured"))
            return
        figure = statistics.median(figures)
        met = figure >= limit if least else figure <= limit
        self.met, self.missed = self.met + met, self.missed + (not met)
        shown = f"{number(figure)}{unit} ({number(min(figures))} to {number(max(figures))})"
        self.lines.append((self.labels[load], what, f"at {'least' if least else 'most'} {number(limit)}{unit}", shown, "met" if met else "**missed**"))


def number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 20 else f"{value:.2f}"


def table(head, lines):
    """A Markdown table that is readable as text too: the first column to the left, the others to the right."""
    lines = [[str(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def shown(line):
        return "| " + " | ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths))) + " |"

    rule = "| " + " | ".join("-" * (width - 1) + ":" if i else "-" * width for i, width in enumerate(widths)) + " |"
    return "\n".join([shown(head), rule, *(shown(line) for line in lines)])


def matrix(results, cell, names=None):
    """A line for each load, a column for each contender, without those of which nothing is known; "" when nothing is."""
    names = names or [contender.name for contender in results.contenders]
    lines = []
    for row in results.rows:
        for load in row.loads:
            cells = [cell(load.name, name) for name in names]
            if any(cells):
                lines.append([load.label, *cells])
    if not lines:
        return ""
    kept = [0] + [i + 1 for i in range(len(names)) if any(line[i + 1] for line in lines)]
    return table([["load", *names][i] for i in kept], [[line[i] for i in kept] for line in lines])


def figures(results, of):
    return matrix(results, lambda load, name: number(results.median(load, name, of)))


def tables(results):
    """All of it as Markdown, without title and machine."""
    bars = Bars(results)
    others = [contender.name for contender in results.contenders if contender.name != "keyfence"]

    def latencies(load, name):
        p50, p99 = (results.median(load, name, of) for of in (lambda s: s.p50 or None, lambda s: s.p99 or None))
        return f"{p50:.3f} / {p99:.3f}" if p50 else ""

    parts = [
        ("The bars", f"{bars.met} met, {bars.missed} missed.\n\n" + table(["load", "what", "bar", "keyfence", ""], bars.lines)),
        ("keyfence's CPU per request, as a ratio to each", matrix(results, lambda load, name: number(results.ratio(load, proxy, name)), others)),
        ("The upstream's CPU behind keyfence, as a ratio to each", matrix(results, lambda load, name: number(results.ratio(load, upstream, name)), others)),
        ("keyfence's throughput, as a ratio to each", matrix(results, lambda load, name: number(results.ratio(load, rate, name)), others)),
        ("CPU of the contender, microseconds per request", figures(results, proxy)),
        ("CPU of the upstream, microseconds per request", figures(results, upstream)),
        ("Throughput, requests per second", figures(results, rate)),
        ("Latency, p50 / p99 in ms", matrix(results, latencies)),
        ("Resident memory before the load, MiB", figures(results, lambda s: s.base / MIB)),
        ("Resident memory at most under the load, MiB", figures(results, lambda s: s.peak / MIB)),
        ("An idle connection that has done one GET, bytes", figures(results, lambda s: s.each)),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts if text)


def machine():
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) / MIB
    return f"{len(models) or '?'} cores, {models[0] if models else platform.machine()}; {memory:.0f} GiB of memory; Linux {platform.release()}"


def document(results, command, rounds, quick):
    """docs/performance.md."""
    lines = [f"- {contender.name}: {contender.version() if contender.path else 'not installed, so not measured: ' + contender.hint}"
             for contender in results.contenders]
    failures = "".join(f"- {failure}\n" for failure in results.failures)
    return f"""# What keyfence costs

Written by `{command}` ({'`make bench` calls it; ' if not quick else 'a trial with few requests: these figures mean nothing; '}do not edit).
Other proxies and a direct Redis under the same load, by turns, on one machine; one worker thread each.

- Machine: {machine()}
- Date: {datetime.now(timezone.utc):%Y-%m-%d}
- Rounds: {rounds}; figures are medians of the rounds
{chr(10).join(lines)}

## How to read it

- **CPU per request** is user and system time of the process by /proc, all threads. It survives a busy machine best. Throughput and
  latency do not: the load, the proxy and Redis share the cores.
- **Ratios** are taken within a round, in which the contenders run one after the other, and the figure is their median, with the
  least and the most of them in brackets where there is room. They are not quotients of the medians in the other tables. Where the range of
  rounds reaches over a bar, another run may decide otherwise.
- **c50 P16**: 50 clients, each with 16 requests at once. A request is one command, an MGET or MSET of ten keys too; values without a
  size are 64 bytes.
- **direct** is Redis alone; its CPU stands under the upstream's, its memory is Redis's own. **floor** (`benches/floor.c`) forwards on one
  shared connection like a proxy, frames requests and replies, and does nothing else.
- HAProxy copies bytes and has an upstream connection for each client. twemproxy, Envoy, the floor and keyfence share few. Only keyfence
  rewrites what it forwards, and its connections upstream are logged in as the ACL user that confines the prefix.
- Each measurement has a fresh Redis with {KEYS:,} keys (8 for 1 MiB values) and a fresh proxy, warmed up by a tenth of the load. It counts
  only if every request arrived at Redis and every read found its key.
- redis-benchmark is the load, with latencies in steps of 8 us; one client alone (c1) is timed by the harness itself, which adds a few
  microseconds to every contender's latency alike.
- Memory of an idle connection: resident memory of the process after all have done a GET, less that before, by their number.

{tables(results)}
{chr(10) + '## What failed' + chr(10) * 2 + failures if failures else ''}
{notes()}"""


def notes():
    """What stands in the way of the bars that are missed: written by hand."""
    with open(os.path.join(os.path.dirname(__file__), "notes.md")) as file:
        return file.read()


def write(root, comparison=None, scale=None):
    """Puts the part before "Scale", or that from there on, into docs/performance.md."""
    path = os.path.join(root, "docs", "performance.md")
    old = ""
    if os.path.exists(path):
        with open(path) as file:
            old = file.read()
    before, found, after = old.partition(SCALE)
    comparison, scale = comparison or before, scale or found + after
    with open(path, "w") as file:
        file.write("\n\n".join(part.strip() for part in (comparison, scale) if part.strip()) + "\n")
