// Caching in the client (node-redis): a second read asks nobody, a write by another connection of the tenant drops the entry, and what the
// other tenant writes to a key of the same name does not.
import assert from 'node:assert/strict';
import { BasicClientSideCache, createClient } from 'redis';
import { tenant, until, url } from './connection.mjs';

const cache = new BasicClientSideCache({ ttl: 0, maxEntries: 100, recordStats: true });
const caching = await createClient({ url, RESP: 3, clientSideCache: cache }).connect();
const writer = await createClient({ url }).connect();
let dropped = 0;
cache.on('invalidate', () => dropped++);

await writer.set('cached', `${tenant}0`);
for (let i = 0; i < 5; i++) assert.equal(await caching.get('cached'), `${tenant}0`);
assert.equal(cache.size(), 1);
assert.equal(cache.stats().hitCount, 4);

for (let i = 1; i <= 50; i++) {
  await writer.set('cached', `${tenant}${i}`);
  await until(async () => (await caching.get('cached')) === `${tenant}${i}`, 'the invalidation');
}
assert.equal(dropped, 50);

// A transaction, a script, an expiry and a deletion each tell the cache.
const writes = [
  () => writer.multi().set('cached', 'multi').exec(),
  () => writer.eval("return redis.call('SET', KEYS[1], 'lua')", { keys: ['cached'] }),
  () => writer.pExpire('cached', 50),
];
for (const [i, write] of writes.entries()) {
  await caching.get('cached');
  await write();
  await until(() => dropped >= 51 + i, 'the invalidation');
}
await until(async () => (await caching.get('cached')) === null, 'the expiry');
await writer.hSet('hash', { tenant });
assert.deepEqual({ ...(await caching.hGetAll('hash')) }, { tenant });
assert.deepEqual({ ...(await caching.hGetAll('hash')) }, { tenant });
await writer.del('hash');
await until(async () => Object.keys(await caching.hGetAll('hash')).length === 0, 'the deletion');
caching.destroy();
writer.destroy();
