"""Django's Redis cache, and its sessions in it."""

import time

import django
import redis
from connection import LOGIN, TENANT, URL
from django.conf import settings

settings.configure(
    CACHES={"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": URL, "KEY_PREFIX": "site"}},
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
)
django.setup()
from django.contrib.sessions.backends.cache import SessionStore  # noqa: E402
from django.core.cache import cache  # noqa: E402

client = redis.Redis(**LOGIN, decode_responses=True)

# Django.
cache.set("who", {"tenant": TENANT, "list": [1, 2]}, 60)
assert cache.get("who") == {"tenant": TENANT, "list": [1, 2]}
assert cache.add("who", "other") is False
assert cache.get_or_set("made", lambda: TENANT) == TENANT
cache.set_many({f"many{i}": f"{TENANT}{i}" for i in range(50)}, 60)
assert cache.get_many([f"many{i}" for i in range(51)]) == {f"many{i}": f"{TENANT}{i}" for i in range(50)}
cache.set("count", 1)
assert cache.incr("count", 4) == 5 and cache.decr("count") == 4
assert cache.touch("who", 100) and cache.has_key("who") and not cache.touch("nothing")
assert 0 < client.ttl("site:1:who") <= 100
cache.delete_many(["many0", "many1"])
assert cache.delete("made") and cache.get("made", "gone") == "gone"
session = SessionStore()
session["tenant"] = TENANT
session.save()
assert SessionStore(session.session_key)["tenant"] == TENANT

# A second later, when the other tenant has written to the same names: still this one's.
time.sleep(1)
assert cache.get("who") == {"tenant": TENANT, "list": [1, 2]} and cache.get("count") == 4
assert len(cache.get_many([f"many{i}" for i in range(50)])) == 48
assert client.dbsize() == 51, client.keys()

# The cache is cleared, of this tenant alone.
cache.clear()
assert client.dbsize() == 0
