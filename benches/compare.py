#!/usr/bin/env python3
"""keyfence beside direct Redis, a floor in C, HAProxy, twemproxy and Envoy under the same loads, and the bars that it is held to.

    cargo build --release && benches/compare.py [--rounds 3] [--quick] [--only 'get-64-*']…

Needs redis-server and redis-benchmark 7 and a C compiler; the others are left out where they are not installed. It starts everything
itself on free ports of this machine, in temporary folders, and ends it. It prints tables, and a whole run writes docs/performance.md. A bar
that is missed is only said; the exit status is 1 when a measurement failed. Linux only, as it reads /proc.
"""

import argparse
import fnmatch
import os
import resource
import sys
import time

from comparison import contenders, loads, report
from comparison.processes import Failed, Processes

BINARY = os.environ.get("KEYFENCE_BINARY", os.path.join(contenders.ROOT, "target", "release", "keyfence"))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="Rows: " + " ".join(row.name for row in loads.rows()))
    parser.add_argument("--binary", default=BINARY, help="keyfence; default: KEYFENCE_BINARY, or target/release/keyfence")
    parser.add_argument("--rounds", type=int, help="how often everything is measured; default 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="few requests, to try the harness: the figures mean nothing")
    parser.add_argument("--only", metavar="ROW", action="append", help="only this row; a glob; may be repeated")
    parser.add_argument("--output", metavar="FILE", help="where to write the tables; default docs/performance.md, with --quick and --only nowhere")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.rows = [row for row in loads.rows() if not args.only or any(fnmatch.fnmatch(row.name, glob) for glob in args.only)]
    if not args.rows:
        parser.error(f"no row is called {' or '.join(args.only)}; there are: {' '.join(row.name for row in loads.rows())}")
    return args


def measured(processes, args, present):
    direct = present[0]
    results = report.Results(args.rows, present)
    began = time.monotonic()
    for turn in range(args.rounds):
        for row in args.rows:
            among = [contender for contender in present if contender.path and (not row.contenders or contender.name in row.contenders)]
            # Each round another one is first, so that nobody always follows the same neighbour.
            for contender in among[turn % len(among):] + among[: turn % len(among)]:
                for load in row.loads:
                    try:
                        sample = loads.measure(processes, direct, contender, load, args.quick)
                    except (Failed, OSError) as error:
                        sample = None
                        results.failures.append(f"{load.label}, {contender.name}, round {turn + 1}: {error}")
                        print("failed: " + results.failures[-1], file=sys.stderr)
                    results.add(load, contender, sample)
            print(f"{time.monotonic() - began:6.0f} s  round {turn + 1} of {args.rounds}  {row.name}", file=sys.stderr)
    return results


def main():
    args = arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Processes() as processes:
        present = contenders.found(args.binary, processes)
        for contender in present:
            if not contender.path:
                print(f"{contender.name} is not installed and left out; to have it: {contender.hint}", file=sys.stderr)
        if not present[0].path or not present[-1].path:
            sys.exit("nothing to compare without Redis and keyfence")
        results = measured(processes, args, present)
        command = " ".join(["python3 benches/compare.py", f"--rounds {args.rounds}", *["--quick"] * args.quick, *(f"--only '{glob}'" for glob in args.only or [])])
        text = report.document(results, command, args.rounds, args.quick)
    print(text)
    if args.output:
        with open(args.output, "w") as file:
            file.write(text)
    elif not args.quick and not args.only:
        report.write(contenders.ROOT, comparison=text)
    sys.exit(1 if results.failures else 0)


if __name__ == "__main__":
    main()
