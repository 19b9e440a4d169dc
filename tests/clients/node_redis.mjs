// node-redis: RESP2 and RESP3, transactions, scanning, blocking calls on connections of their own.
import assert from "node:assert/strict";
import { createClient } from "redis";

const url = `redis://${process.env.KEYFENCE_HOST}:${process.env.KEYFENCE_PORT}`;

for (const RESP of [2, 3]) {
  const client = await createClient({ url, RESP, name: "node-redis-test" }).connect();
  assert.equal(await client.ping(), "PONG");
  assert.equal(await client.clientGetName(), "node-redis-test");
  assert.equal(await client.set("k", "v", { expiration: { type: "EX", value: 1000 } }), "OK");
  assert.equal(await client.get("k"), "v");
  assert.equal(await client.get("missing"), null);
  assert.equal(await client.hSet("h", { a: "1", b: "2" }), 2);
  assert.deepEqual({ ...(await client.hGetAll("h")) }, { a: "1", b: "2" });
  assert.equal(await client.rPush("l", ["x", "y"]), 2);
  assert.deepEqual({ ...(await client.blPop("l", 1)) }, { key: "l", element: "x" });
  assert.equal(await client.blPop("nothing", 0.01), null);
  await client.zAdd("z", [{ score: 1, value: "a" }, { score: 2.5, value: "b" }]);
  assert.deepEqual((await client.zRangeWithScores("z", 0, -1)).map((pair) => [pair.value, pair.score]), [["a", 1], ["b", 2.5]]);
  const id = await client.xAdd("x", "*", { f: "v" });
  const read = JSON.stringify(await client.xRead({ key: "x", id: "0" }));
  assert.ok(read.includes(id) && read.includes('"x"') && !read.includes("keyfence:"), read);
  assert.deepEqual(await client.multi().set("n", "1").incr("n").get("n").exec(), ["OK", 2, "2"]);
  await assert.rejects(client.incr("k"), /not an integer/);

  await Promise.all(Array.from({ length: 1000 }, async (_, i) => {
    await client.set(`p:${i}`, `${i}`);
    assert.equal(await client.get(`p:${i}`), `${i}`);
  }));
  const names = new Set();
  for await (const page of client.scanIterator({ MATCH: "p:*", COUNT: 100 })) [page].flat().forEach((name) => names.add(name));
  assert.equal(names.size, 1000);
  assert.deepEqual((await client.keys("?")).sort(), ["h", "k", "l", "n", "x", "z"]);

  const blocked = client.duplicate();
  await blocked.connect();
  const waiting = blocked.blPop("jobs", 0);
  await client.lPush("jobs", "job");
  assert.deepEqual({ ...(await waiting) }, { key: "jobs", element: "job" });
  await blocked.close();

  // A subscriber, by channel, by pattern and by shard channel.
  const subscriber = client.duplicate();
  await subscriber.connect();
  const heard = [];
  let done;
  const all = new Promise((resolve) => { done = resolve; });
  const note = (message, channel) => { if (heard.push([channel, message]) === 3) done(); };
  await subscriber.subscribe("news", note);
  await subscriber.pSubscribe("n*", note);
  await subscriber.sSubscribe("shard", note);
  assert.equal(await client.publish("news", "one"), 2);
  assert.equal(await client.sPublish("shard", "two"), 1);
  assert.deepEqual(await client.pubSubChannels(), ["news"]);
  await all;
  assert.deepEqual(heard.sort(), [["news", "one"], ["news", "one"], ["shard", "two"]]);
  await subscriber.unsubscribe("news");
  await subscriber.close();

  assert.equal(await client.flushDb(), "OK");
  assert.equal(await client.dbSize(), 0);
  await client.close();
}
