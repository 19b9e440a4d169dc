"""redis-py, synchronous: the usual calls, RESP2 and RESP3, pools, pipelines, transactions, blocking, scanning, scripts and locks."""

import os
import threading

import redis

HOST, PORT = os.environ["KEYFENCE_HOST"], int(os.environ["KEYFENCE_PORT"])

for protocol in (2, 3):
    r = redis.Redis(HOST, PORT, protocol=protocol, decode_responses=True, client_name="redis-py-test")
    assert r.ping()
    assert r.client_getname() == "redis-py-test"
    assert r.set("k", "v", ex=1000) and r.get("k") == "v"
    assert 0 < r.ttl("k") <= 1000
    assert r.get("missing") is None
    assert r.mset({"a": 1, "b": 2}) and r.mget("a", "b", "missing") == ["1", "2", None]
    assert r.incrby("n", 5) == 5
    assert r.hset("h", mapping={"f": "1", "g": "2"}) == 2 and r.hgetall("h") == {"f": "1", "g": "2"}
    assert r.rpush("l", "x", "y", "z") == 3 and r.lrange("l", 0, -1) == ["x", "y", "z"]
    assert r.blpop(["nothing", "l"], timeout=1) in (("l", "x"), ["l", "x"])
    assert r.blpop("nothing", timeout=0.01) is None
    assert r.lmpop(1, "l", direction="LEFT") == ["l", ["y"]]
    assert r.sadd("s", "a", "b") == 2 and r.smembers("s") == {"a", "b"}
    assert r.zadd("z", {"a": 1, "b": 2.5}) == 2
    assert [tuple(pair) for pair in r.zrange("z", 0, -1, withscores=True)] == [("a", 1.0), ("b", 2.5)]
    assert r.zscore("z", "b") == 2.5
    popped = r.bzpopmin("z", timeout=1)
    assert (popped[0], popped[1], float(popped[2])) == ("z", "a", 1.0)
    first = r.xadd("x", {"f": "v"})
    read = r.xread({"x": "0"})
    assert (read["x"][0] if protocol == 3 else read[0][1])[0 if protocol == 2 else 0], read
    assert first in str(read) and "'x'" in str(read) and "keyfence" not in str(read)
    assert r.xgroup_create("x", "g", id="0")
    assert first in str(r.xreadgroup("g", "c", {"x": ">"}))
    try:
        r.xreadgroup("none", "c", {"x": ">"})
        raise AssertionError("no error")
    except redis.ResponseError as error:
        assert "No such key 'x' or consumer group 'none'" in str(error), error
    with r.pipeline() as pipe:
        pipe.watch("n")
        n = int(pipe.get("n"))
        pipe.multi()
        pipe.set("n", n + 1).get("n")
        assert pipe.execute() == [True, str(n + 1)]
    with r.pipeline() as pipe:
        pipe.watch("n")
        r.incr("n")
        pipe.multi()
        pipe.get("n")
        try:
            pipe.execute()
            raise AssertionError("the watch failed")
        except redis.WatchError:
            pass
    with r.pipeline(transaction=False) as pipe:
        for i in range(1000):
            pipe.set(f"p:{i}", i).get(f"p:{i}")
        assert pipe.execute()[1::2] == [str(i) for i in range(1000)]
    assert sorted(r.scan_iter("p:*")) == sorted(f"p:{i}" for i in range(1000))
    assert set(r.keys("?")) == {"k", "a", "b", "n", "h", "l", "s", "z", "x"} - {"l"} | ({"l"} if r.exists("l") else set())
    assert r.dbsize() == len(r.keys("*"))
    assert r.randomkey() in r.keys("*")
    assert r.type("h") == "hash" and r.type("missing") == "none"
    assert r.sort("s", alpha=True) == ["a", "b"]
    try:
        r.incr("k")
        raise AssertionError("no error")
    except redis.ResponseError as error:
        assert "not an integer" in str(error)
    assert r.eval("return {KEYS[1], ARGV[1], redis.call('GET', KEYS[1])}", 1, "k", "arg") == ["k", "arg", "v"]
    push = r.register_script("redis.call('RPUSH', KEYS[1], unpack(ARGV)) return redis.call('LLEN', KEYS[1])")
    assert push(keys=["pushed"], args=[1, 2, 3]) == 3
    assert r.script_exists(push.sha) == [True]
    assert r.script_flush() and r.script_exists(push.sha) == [False]
    library = "#!lua name=lib\nredis.register_function{function_name='get', callback=function(keys, args) " \
              "return {keys[1], args[1], redis.call('GET', keys[1])} end, flags={'no-writes'}}"
    assert r.function_load(library) == "lib" and r.function_load(library, replace=True) == "lib"
    assert r.fcall("get", 1, "k", "arg") == r.fcall_ro("get", 1, "k", "arg") == ["k", "arg", "v"]
    listed = str(r.function_list(library="l*", withcode=True))
    assert "'lib'" in listed and "'get'" in listed and "no-writes" in listed and "keyfence" not in listed, listed
    assert "keyfence" not in str(r.function_stats())
    assert r.function_delete("lib") and r.function_flush() and r.function_list() == []
    assert push(keys=["pushed"], args=[4]) == 4
    for transaction in (True, False):
        with r.pipeline(transaction=transaction) as pipe:
            pipe.delete("pushed")
            push(keys=["pushed"], args=["a", "b"], client=pipe)
            pipe.lrange("pushed", 0, -1)
            assert pipe.execute() == [1, 2, ["a", "b"]], transaction
    lock = r.lock("lock", timeout=10)
    assert lock.acquire(blocking=False) and not r.lock("lock").acquire(blocking=False)
    assert lock.extend(10) and lock.reacquire() and lock.owned()
    lock.release()
    assert not r.exists("lock")
    try:
        lock.release()
        raise AssertionError("released twice")
    except redis.exceptions.LockError:
        pass
    assert r.info("server")["redis_version"]
    assert r.flushdb()
    assert r.dbsize() == 0

    def work(tag):
        for i in range(200):
            r.set(f"{tag}", i)
            assert r.get(f"{tag}") == str(i)

    threads = [threading.Thread(target=work, args=(tag,)) for tag in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert r.dbsize() == 8
    assert r.flushall()
    r.close()

# A waiting client is served by another one.
r = redis.Redis(HOST, PORT, decode_responses=True)
served = []
waiter = threading.Thread(target=lambda: served.append(redis.Redis(HOST, PORT, decode_responses=True).blpop("jobs")))
waiter.start()
r.rpush("jobs", "job")
waiter.join()
assert tuple(served[0]) == ("jobs", "job")

# A subscriber, in both versions of the protocol.
for protocol in (2, 3):
    r = redis.Redis(HOST, PORT, protocol=protocol, decode_responses=True)
    with r.pubsub() as listener:
        listener.subscribe("news", "chat")
        listener.psubscribe("n*")
        acks = [listener.get_message(timeout=20) for _ in range(3)]
        assert [(a["type"], a["channel"], a["data"]) for a in acks] == [("subscribe", "news", 1), ("subscribe", "chat", 2), ("psubscribe", "n*", 3)]
        assert r.publish("news", "one") == 2 and r.publish("other", "two") == 0
        assert sorted(r.pubsub_channels()) == ["chat", "news"] and r.pubsub_numpat() == 1
        got = [listener.get_message(timeout=20) for _ in range(2)]
        assert [(m["type"], m["pattern"], m["channel"], m["data"]) for m in got] == [("message", None, "news", "one"), ("pmessage", "n*", "news", "one")]
        listener.ping()
        listener.unsubscribe()
    r.close()
