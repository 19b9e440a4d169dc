#!/usr/bin/env python3
"""What a reload of 1,000 tenants does to those who stay: keyfence in front of a Redis, both started here, python3 and nothing else.

    cargo build --release && python3 benches/reload.py target/release/keyfence [reloads of each kind, default 5]

Twenty clients of as many tenants ask for one key each, one after another, each as fast as it can, in two processes. Told is the longest reply while
nothing is reloaded, and during reloads that change nothing, that change every tenant's password (of those who are not connected), and
that replace half of the tenants. The bar: none over 50 ms. A reply may be late because the machine is busy with something else: the first line says how late
without any reload, and "straight" how late one was at the same time that did not pass keyfence.
"""
import os, select, signal, sys, time
from multiprocessing import Pipe, Process

import tenants
from tenants import Client, DIR, cmd, keyfence, redis, stop, wait

RELOADS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
TENANTS = 1000
CLIENTS = 20


def watch(at, users, pipe):
    """The longest reply in ms, how many there were, and how many were errors, each time it is asked, since it was last asked."""
    clients = [Client(at, user) for user in users]
    ask = cmd("GET", "k")
    poll = select.poll()
    sent = {}
    for c in clients:
        c.ask(cmd("SET", "k", "v"))
        poll.register(c.s, select.POLLIN)
        sent[c.s.fileno()] = (time.monotonic(), c)
        c.s.sendall(ask)
    worst = count = errors = 0
    while True:
        for fd, _ in poll.poll(100):
            began, c = sent[fd]
            errors += c.reply() != b"v"
            worst, count = max(worst, time.monotonic() - began), count + 1
            sent[fd] = (time.monotonic(), c)
            c.s.sendall(ask)
        if pipe.poll():
            if pipe.recv() == "stop":
                return
            pipe.send((worst * 1e3, count, errors))
            worst = count = errors = 0


def settings(at, who, password):
    path = os.path.join(DIR, "%d.toml" % at)
    with open(path + ".new", "w") as f:
        for i in who:
            f.write('[tenants.t%d]\npasswords = ["%s"]\n' % (i, "pt%d" % i if i < CLIENTS else password % i))
    os.rename(path + ".new", path)


def main():
    up = redis()
    at, p, took = keyfence(up, TENANTS)
    print("start-up with %d tenants: %.2f s" % (TENANTS, took), flush=True)
    pipes, watchers = [], []
    for half in range(2):
        ours, theirs = Pipe()
        users = ["t%d" % i for i in range(half, CLIENTS, 2)]
        watchers.append(Process(target=watch, args=(at, users, theirs)))
        watchers[-1].start()
        pipes.append(ours)
    straight, theirs = Pipe()
    watchers.append(Process(target=watch, args=(up, [None], theirs)))
    watchers[-1].start()

    def told():
        for pipe in pipes + [straight]:
            pipe.send("?")
        all = [pipe.recv() for pipe in pipes]
        return max(a[0] for a in all), sum(a[1] for a in all), sum(a[2] for a in all), straight.recv()[0]

    def show(name, results):
        print("%-36s longest reply %7.2f ms, straight %7.2f ms (each time: %s), of %d, %d errors" % (
            name, max(r[0] for r in results), max(r[3] for r in results), " ".join("%.1f/%.1f" % (r[0], r[3]) for r in results), sum(r[1] for r in results), sum(r[2] for r in results)), flush=True)

    time.sleep(1)
    told()
    quiet = []
    for _ in range(RELOADS):
        time.sleep(1)
        quiet.append(told())
    show("no reload", quiet)
    fresh = TENANTS
    for name in ["the same settings", "other passwords", "half of the tenants replaced"]:
        results = []
        for turn in range(RELOADS):
            who, password, known = list(range(TENANTS)), "pt%d", TENANTS - 1
            if name == "other passwords":
                password = "p" + "x" * (turn + 1) + "t%d"
            if name.startswith("half"):
                who = list(range(TENANTS // 2)) + list(range(fresh, fresh + TENANTS // 2))
                fresh, known = fresh + TENANTS // 2, who[-1] + 0
            settings(at, who, password)
            told()
            p.send_signal(signal.SIGHUP)
            end = time.monotonic() + 1.0
            if password == "pt%d":
                wait(at, "t%d" % known)
            time.sleep(max(0, end - time.monotonic()))
            results.append(told())
        show(name, results)
    for pipe in pipes + [straight]:
        pipe.send("stop")
    for watcher in watchers:
        watcher.join()
    stop(p)


if __name__ == "__main__":
    tenants.run(main)
