// socket.io over streams.
import { createAdapter } from '@socket.io/redis-streams-adapter';
import { Redis } from 'ioredis';
import { connection } from './connection.mjs';
import { talk } from './socketio.mjs';

const clients = [new Redis(connection), new Redis(connection)];
await talk(clients.map((client) => createAdapter(client)));
for (const client of clients) client.disconnect();
// The timers that an adapter has set for late answers do not matter any more.
process.exit();
