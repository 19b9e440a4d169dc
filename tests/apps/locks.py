"""Locks of redis-py and pottery's Redlock: one holder at a time of a lock that both tenants name alike."""

import threading
import time

import redis
from connection import LOGIN, TENANT
from pottery import Redlock
from redis.exceptions import LockError, LockNotOwnedError

client = redis.Redis(**LOGIN)

# Held by each tenant for half a second, so that both hold it at once.
lock = client.lock("lock", timeout=2)
assert lock.acquire(blocking=False)
assert not client.lock("lock", timeout=2).acquire(blocking=False)
assert lock.owned() and client.lock("lock").locked()
time.sleep(0.5)
assert lock.extend(3) and lock.reacquire()
assert lock.owned()
lock.release()
try:
    lock.release()
    raise SystemExit("released twice")
except LockError:
    pass

# Lost to its own time.
lost = client.lock("lost", timeout=0.1)
assert lost.acquire()
assert client.lock("lost", timeout=5, blocking_timeout=3).acquire()
try:
    lost.release()
    raise SystemExit("released what another holds")
except LockNotOwnedError:
    pass

# Eight threads, ten turns each: a read and a write that nothing else makes whole.
client.set("turns", 0)


def turns():
    mine = redis.Redis(**LOGIN)
    for _ in range(10):
        with mine.lock("turn", timeout=5, sleep=0.005):
            mine.set("turns", int(mine.get("turns")) + 1)


threads = [threading.Thread(target=turns) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert client.get("turns") == b"80", client.get("turns")

# Redlock.
red = Redlock(key="red", masters={client}, auto_release_time=2)
other = Redlock(key="red", masters={client}, auto_release_time=2)
assert red.acquire(blocking=False)
assert not other.acquire(blocking=False)
assert 0 < red.locked() <= 2
red.extend()
client.set("who", TENANT)
time.sleep(0.3)
red.release()
assert other.acquire(blocking=False)
other.release()
assert client.get("who").decode() == TENANT
