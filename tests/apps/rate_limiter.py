"""A rate limiter (GCRA) in one Lua script, called by its digest, and a queue whose delayed jobs another script moves: ZPOP and BRPOP."""

import threading
import time

import redis
from connection import LOGIN, TENANT, until

client = redis.Redis(**LOGIN, decode_responses=True)

# One sorted instant per key: the time at which a new request would conform. Times in microseconds, from the server's own clock.
GCRA = """
local period, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local after = arrival + period * cost
local early = after - period * burst - now
if early > 0 then
  return {0, math.floor((now + period * burst - arrival) / period), early}
end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000) + 1)
return {1, math.floor(-early / period), 0}
"""
digest = client.script_load(GCRA)
assert client.script_exists(digest) == [True]


def allowed(key, cost=1):
    return client.evalsha(digest, 1, key, 1_000_000, 5, cost)


# Five at once, then one each second. Both tenants have the same name for it and five each.
answers = [allowed("limit") for _ in range(8)]
assert [answer[0] for answer in answers] == [1, 1, 1, 1, 1, 0, 0, 0], answers
assert [answer[1] for answer in answers[:5]] == [4, 3, 2, 1, 0], answers
assert 0 < answers[-1][2] <= 1_000_000, answers
assert 4000 < client.pttl("limit") <= 5001
assert allowed("other", 5)[0] == 1 and allowed("other")[0] == 0
until(lambda: allowed("limit")[0] == 1, "the next second")

# In a pipeline and in a transaction.
with client.pipeline(transaction=True) as pipe:
    for _ in range(6):
        pipe.evalsha(digest, 1, "third", 1_000_000, 5, 1)
    assert [answer[0] for answer in pipe.execute()] == [1, 1, 1, 1, 1, 0]

# A digest nobody loaded, then the text itself: the way of every client library.
limiter = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
assert [limiter(keys=["count"], args=[3]) for _ in range(2)] == [3, 6]

# Delayed jobs: a script takes what is due, one by one, and pushes it to the queue.
ZPOP = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 1)
if due[1] then
  redis.call('ZREM', KEYS[1], due[1])
  redis.call('SADD', KEYS[3], ARGV[2])
  redis.call('LPUSH', KEYS[2], due[1])
end
return due[1]
"""
zpop = client.register_script(ZPOP)
fetched = []


def fetch():
    mine = redis.Redis(**LOGIN, decode_responses=True)
    while len(fetched) < 15:
        # The queues in the order of their weight; a short wait, as a worker has it.
        taken = mine.brpop(["queue:critical", "queue:default"], timeout=1)
        if taken:
            fetched.append(taken)


workers = [threading.Thread(target=fetch) for _ in range(3)]
for worker in workers:
    worker.start()
now = time.time()
client.zadd("schedule", {f"{TENANT}:{i}": now + i * 0.02 for i in range(10)})
client.zadd("schedule", {f"{TENANT}:never": now + 3600})
client.sadd("queues", "critical")
client.lpush("queue:critical", *(f"{TENANT}:urgent{i}" for i in range(5)))


def schedule():
    while zpop(keys=["schedule", "queue:default", "queues"], args=[time.time(), "default"]):
        pass
    return client.zcard("schedule") == 1


until(schedule, "the schedule")
until(lambda: len(fetched) == 15, "the jobs")
for worker in workers:
    worker.join()
wanted = sorted([("queue:default", f"{TENANT}:{i}") for i in range(10)] + [("queue:critical", f"{TENANT}:urgent{i}") for i in range(5)])
assert sorted(map(tuple, fetched)) == wanted, fetched
assert client.smembers("queues") == {"critical", "default"}
