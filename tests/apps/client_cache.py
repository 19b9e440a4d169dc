"""redis-py's client-side cache: reads answered from the process, and forgotten when the key is changed elsewhere."""

import redis
from redis.cache import CacheConfig

from connection import LOGIN, TENANT, until

cached = redis.Redis(protocol=3, decode_responses=True, cache_config=CacheConfig(max_size=100), **LOGIN)
other = redis.Redis(decode_responses=True, **LOGIN)


def kept():
    """How many replies the cache holds."""
    return cached.get_cache().size


other.set("colour", f"{TENANT} blue")
other.hset("car", mapping={"owner": TENANT, "doors": "4"})
assert cached.get("colour") == f"{TENANT} blue"
assert cached.hgetall("car") == {"owner": TENANT, "doors": "4"}
assert kept() == 2, kept()
# From the cache: the same object for as long as nothing changes.
assert cached.get("colour") == f"{TENANT} blue" and kept() == 2

for turn in range(50):
    other.set("colour", f"{TENANT} {turn}")

    # The invalidation travels on another connection than the reply to SET.
    def fresh():
        colour = cached.get("colour")
        assert colour.startswith(TENANT), colour
        return colour == f"{TENANT} {turn}"

    until(fresh, f"turn {turn}")

other.flushdb()
until(lambda: cached.get("colour") is None and not cached.hgetall("car"), "the flush")
print("ok")
