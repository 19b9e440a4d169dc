"""A listener of expired keys: it hears of this tenant's, by the names that the tenant gave them, and of no other's."""

import threading

import redis
from connection import LOGIN, TENANT, until

client = redis.Redis(**LOGIN, decode_responses=True)
heard = []
listener = client.pubsub()
listener.psubscribe(**{"__keyevent@0__:expired": lambda message: heard.append((message["channel"], message["data"]))})
listener.get_message(timeout=5)
thread = listener.run_in_thread(sleep_time=0.05, daemon=True)
client.set("session", TENANT, px=100)
client.set(f"session of {TENANT}", TENANT, px=200)
until(lambda: len(heard) >= 2, "the expired keys")
threading.Event().wait(0.5)
thread.stop()
thread.join()
wanted = {("__keyevent@0__:expired", name) for name in ("session", f"session of {TENANT}")}
assert set(heard) == wanted and len(heard) == 2, heard
