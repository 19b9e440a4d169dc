// ioredis: promises, pipelines, transactions, streams of names, blocking calls, its own key prefix, scripts.
import assert from "node:assert/strict";
import Redis from "ioredis";

const where = { host: process.env.KEYFENCE_HOST, port: Number(process.env.KEYFENCE_PORT) };
const redis = new Redis({ ...where, connectionName: "ioredis-test" });

assert.equal(await redis.ping(), "PONG");
assert.equal(await redis.client("GETNAME"), "ioredis-test");
assert.equal(await redis.set("k", "v", "EX", 1000), "OK");
assert.equal(await redis.get("k"), "v");
assert.equal(await redis.get("missing"), null);
assert.deepEqual(await redis.getBuffer("k"), Buffer.from("v"));
assert.equal(await redis.hset("h", { a: 1, b: 2 }), 2);
assert.deepEqual(await redis.hgetall("h"), { a: "1", b: "2" });
assert.equal(await redis.rpush("l", "x", "y", "z"), 3);
assert.deepEqual(await redis.blpop("nothing", "l", 1), ["l", "x"]);
assert.equal(await redis.blpop("nothing", 0.01), null);
assert.deepEqual(await redis.zadd("z", 1, "a", 2, "b"), 2);
assert.deepEqual(await redis.zrange("z", 0, -1, "WITHSCORES"), ["a", "1", "b", "2"]);
const id = await redis.xadd("x", "*", "f", "v");
assert.deepEqual(await redis.xread("STREAMS", "x", "0"), [["x", [[id, ["f", "v"]]]]]);

const many = redis.pipeline();
for (let i = 0; i < 1000; i++) many.set(`p:${i}`, i).get(`p:${i}`);
const results = await many.exec();
for (let i = 0; i < 1000; i++) assert.deepEqual(results[2 * i + 1], [null, String(i)]);

assert.deepEqual(await redis.multi().set("n", 1).incr("n").lpop("l").exec(), [[null, "OK"], [null, 2], [null, "y"]]);
await redis.watch("n");
const second = new Redis(where);
await second.incr("n");
assert.equal(await redis.multi().get("n").exec(), null);
await assert.rejects(redis.incr("k"), /not an integer/);
await assert.rejects(redis.call("NOSUCH", "x"), /unknown command 'NOSUCH'/);

const names = new Set();
for await (const page of redis.scanStream({ match: "p:*", count: 100 })) page.forEach((name) => names.add(name));
assert.equal(names.size, 1000);
assert.ok([...names].every((name) => name.startsWith("p:")));
assert.deepEqual((await redis.keys("?")).sort(), ["h", "k", "l", "n", "x", "z"]);

const waiting = second.brpop("jobs", 0);
await redis.lpush("jobs", "job");
assert.deepEqual(await waiting, ["jobs", "job"]);

const prefixed = new Redis({ ...where, keyPrefix: "mine:" });
await prefixed.set("k", "prefixed");
assert.equal(await redis.get("mine:k"), "prefixed");

// A subscriber: messages as they are published, by channel and by pattern.
const subscriber = redis.duplicate();
const heard = [];
const all = new Promise((resolve) => {
  const note = (...message) => { if (heard.push(message.map(String)) === 4) resolve(); };
  subscriber.on("message", note);
  subscriber.on("pmessageBuffer", note);
});
assert.equal(await subscriber.subscribe("news", "chat"), 2);
assert.equal(await subscriber.psubscribe("n*"), 3);
assert.deepEqual(await redis.pubsub("NUMSUB", "news", "none"), ["news", 1, "none", 0]);
assert.equal(await redis.publish("news", "one"), 2);
assert.equal(await redis.publish("chat", "two"), 1);
assert.equal(await redis.publish("nobody", "three"), 1);
await all;
assert.deepEqual(heard.sort(), [["chat", "two"], ["n*", "news", "one"], ["n*", "nobody", "three"], ["news", "one"]].sort());
await subscriber.unsubscribe("news", "chat");
await subscriber.punsubscribe("n*");
assert.equal(await subscriber.get("k"), "v");
await subscriber.quit();
redis.defineCommand("pushAll", { numberOfKeys: 1, lua: "redis.call('RPUSH', KEYS[1], unpack(ARGV)) return redis.call('LRANGE', KEYS[1], 0, -1)" });
assert.deepEqual(await redis.pushAll("pushed", "a", "b"), ["a", "b"]);
assert.deepEqual(await redis.pushAll("pushed", "c"), ["a", "b", "c"]);
assert.equal(await redis.script("FLUSH"), "OK");
assert.deepEqual(await redis.pushAll("pushed", "d"), ["a", "b", "c", "d"]);
assert.equal(await redis.script("FLUSH"), "OK");
assert.deepEqual(await redis.pipeline().del("pushed").pushAll("pushed", 1).pushAll("pushed", 2).exec(), [[null, 1], [null, ["1"]], [null, ["1", "2"]]]);
assert.deepEqual(await redis.multi().del("pushed").pushAll("pushed", 1).exec(), [[null, 1], [null, ["1"]]]);
prefixed.defineCommand("whose", { numberOfKeys: 1, lua: "return {KEYS[1], redis.call('GET', KEYS[1])}" });
assert.deepEqual(await prefixed.whose("k"), ["mine:k", "prefixed"]);
await assert.rejects(redis.eval("return redis.call('HGET', KEYS[1], 'f')", 1, "k"), /WRONGTYPE .* script: [0-9a-f]{40}, on @user_script:1\./);

const pooled = Array.from({ length: 20 }, () => new Redis(where));
await Promise.all(pooled.map(async (client, tag) => {
  for (let i = 0; i < 50; i++) {
    await client.set(`t:${tag}`, i);
    assert.equal(await client.get(`t:${tag}`), String(i));
  }
}));
assert.equal(await redis.flushdb(), "OK");
assert.equal(await redis.dbsize(), 0);
for (const client of [redis, second, prefixed, ...pooled]) await client.quit();
