"""redis-py on asyncio: concurrency, and calls that are cancelled in the middle."""

import asyncio
import os

import redis.asyncio as redis

HOST, PORT = os.environ["KEYFENCE_HOST"], int(os.environ["KEYFENCE_PORT"])


async def main():
    for protocol in (2, 3):
        r = redis.Redis(connection_pool=redis.BlockingConnectionPool.from_url(
            f"redis://{HOST}:{PORT}", protocol=protocol, decode_responses=True, max_connections=20, timeout=None))

        async def work(tag):
            for i in range(50):
                await r.set(f"k:{tag}", f"{tag} {i}")
                assert await r.get(f"k:{tag}") == f"{tag} {i}"

        await asyncio.gather(*(work(tag) for tag in range(50)))
        assert await r.dbsize() == 50
        async with r.pipeline(transaction=True) as pipe:
            result = await pipe.set("n", 1).incr("n").get("n").execute()
        assert result == [True, 2, "2"], result
        assert {name async for name in r.scan_iter("k:*")} == {f"k:{tag}" for tag in range(50)}

        # Cancelled at any point: nobody else may get what the cancelled call was to get.
        async def read(tag):
            for _ in range(30):
                value = await r.get(f"k:{tag}")
                assert value == f"{tag} 49", value

        for turn in range(40):
            tasks = [asyncio.create_task(read(tag)) for tag in range(20)]
            for _ in range(turn):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                assert result is None or isinstance(result, asyncio.CancelledError), repr(result)

        # A cancelled wait takes nothing with it.
        waits = asyncio.create_task(r.blpop("jobs"))
        while not any(client["cmd"] == "blpop" for client in await r.client_list()):
            await asyncio.sleep(0)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        while any(client["cmd"] == "blpop" for client in await r.client_list()):
            await asyncio.sleep(0)
        assert await r.rpush("jobs", "job") == 1
        popped = await r.blpop("jobs")
        assert tuple(popped) == ("jobs", "job")
        await r.flushdb()
        await r.aclose()


asyncio.run(main())
