// socket.io over publish/subscribe, with ioredis and with node-redis.
import { createAdapter } from '@socket.io/redis-adapter';
import { Redis } from 'ioredis';
import { createClient } from 'redis';
import { connection, url } from './connection.mjs';
import { talk } from './socketio.mjs';

const kinds = [
  () => Array.from({ length: 4 }, () => new Redis(connection)),
  () => Promise.all(Array.from({ length: 4 }, () => createClient({ url }).connect())),
];
for (const kind of kinds) {
  const clients = await kind();
  await talk([createAdapter(clients[0], clients[1]), createAdapter(clients[2], clients[3])]);
  for (const client of clients) await client.quit();
}
// The timers that an adapter has set for late answers do not matter any more.
process.exit();
