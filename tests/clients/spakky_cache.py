"""The cache plugin that keyfence grew from, as its users call it: `sync` or `async`, by the argument."""

import asyncio
import os
import sys
from datetime import timedelta

os.environ["SPAKKY_REDIS__HOST"] = os.environ["KEYFENCE_HOST"]
os.environ["SPAKKY_REDIS__PORT"] = os.environ["KEYFENCE_PORT"]
os.environ["SPAKKY_REDIS__SOCKET_TIMEOUT"] = "30"

import redis
from spakky.cache import CacheHit, CacheMiss
from spakky.plugins.redis.cache import RedisCache

raw = redis.Redis(os.environ["KEYFENCE_HOST"], int(os.environ["KEYFENCE_PORT"]))
os.environ["SPAKKY_REDIS__KEY_PREFIX"] = "one:"
cache = RedisCache()
os.environ["SPAKKY_REDIS__KEY_PREFIX"] = "two:"
other = RedisCache()

VALUE = {"name": "value", "list": [1, 2, 3], "bytes": b"\r\n\x00\xff"}


def hit(result, value):
    return isinstance(result, CacheHit) and result.value == value


def miss(result):
    return isinstance(result, CacheMiss)


def synchronous():
    cache.set("k", VALUE, ttl=1000)
    assert hit(cache.get("k"), VALUE)
    assert miss(cache.get("missing"))
    assert miss(other.get("k"))
    assert 0 < raw.ttl("one:k") <= 1000
    cache.set("short", VALUE, ttl=timedelta(milliseconds=30))
    while not miss(cache.get("short")):
        pass
    cache.set("forever", 1)
    assert raw.ttl("one:forever") == -1
    assert cache.delete("k") and not cache.delete("k")
    assert miss(cache.get("k"))
    fill()
    cache.clear()
    emptied()


async def asynchronous():
    await cache.set_async("a", VALUE, ttl=1000)
    assert hit(await cache.get_async("a"), VALUE)
    assert miss(await cache.get_async("missing"))
    await cache.set_async("short", VALUE, ttl=0.03)
    while not miss(await cache.get_async("short")):
        pass
    assert await cache.delete_async("a") and not await cache.delete_async("a")
    await asyncio.gather(*(cache.set_async(f"many:{i}", i) for i in range(100)))
    values = await asyncio.gather(*(cache.get_async(f"many:{i}") for i in range(100)))
    assert all(hit(value, i) for i, value in enumerate(values))
    fill()
    await cache.clear_async()
    emptied()


def fill():
    with raw.pipeline(transaction=False) as pipe:
        for i in range(100_000):
            pipe.set(f"one:{i}", b"x")
            if i % 10 == 0:
                pipe.set(f"two:{i}", b"theirs")
        pipe.execute()


def emptied():
    assert not list(raw.scan_iter("one:*", count=10_000))
    left = {name: raw.get(name) for name in raw.scan_iter("two:*", count=10_000)}
    assert len(left) == 10_000 and set(left.values()) == {b"theirs"}


if sys.argv[1] == "sync":
    synchronous()
else:
    asyncio.run(asynchronous())
