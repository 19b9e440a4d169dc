// Redlock: one holder at a time of a lock that both tenants name alike, extended, released, and gone by itself.
import assert from 'node:assert/strict';
import { Redis } from 'ioredis';
import Redlock from 'redlock';
import { connection } from './connection.mjs';

const redis = new Redis(connection);
const patient = new Redlock([redis], { retryCount: 400, retryDelay: 10, retryJitter: 5 });
const hasty = new Redlock([redis], { retryCount: 0 });
const refused = { name: 'LockError' };

// Held for a second by each tenant, so that both hold it at once.
const lock = await hasty.lock('lock', 1000);
await assert.rejects(hasty.lock('lock', 1000), refused);
await lock.extend(1000);
await new Promise((resolve) => setTimeout(resolve, 500));
await lock.unlock();
await assert.rejects(lock.unlock(), refused);

// Ten at once: never two inside.
let inside = 0;
await Promise.all(
  Array.from({ length: 10 }, async () => {
    const mine = await patient.lock('lock', 2000);
    assert.equal(++inside, 1);
    await redis.incr('turns');
    inside--;
    await mine.unlock();
  }),
);
assert.equal(await redis.get('turns'), '10');

// Several resources as one, and a lock whose time is over.
const both = await hasty.lock(['left', 'right'], 2000);
await assert.rejects(hasty.lock('right', 100), refused);
await both.unlock();
await hasty.lock('short', 100);
await (await patient.lock('short', 100)).unlock();
assert.deepEqual(await redis.keys('*'), ['turns']);
await redis.quit();
