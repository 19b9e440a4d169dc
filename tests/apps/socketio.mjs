// Two socket.io servers of one tenant with an adapter between them, and what they say to each other's clients. The other tenant has the
// same channel and stream names and hears nothing.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { Server } from 'socket.io';
import { io } from 'socket.io-client';
import { tenant, until } from './connection.mjs';

async function server(adapter) {
  const http = createServer();
  const sockets = new Server(http, { adapter, serveClient: false });
  await new Promise((resolve) => http.listen(0, '127.0.0.1', resolve));
  return { sockets, url: `http://127.0.0.1:${http.address().port}` };
}

async function client(url, heard) {
  const socket = io(url, { transports: ['websocket'], reconnection: false });
  socket.onAny((event, who) => heard.push([event, who]));
  await new Promise((resolve, reject) => socket.on('connect', resolve).on('connect_error', reject));
  return socket;
}

export async function talk(adapters) {
  const [left, right] = [await server(adapters[0]), await server(adapters[1])];
  const heard = { left: [], right: [] };
  right.sockets.on('connection', (socket) => {
    socket.join('room');
    socket.on('question', (reply) => reply(tenant));
  });
  const leftClient = await client(left.url, heard.left);
  const rightClient = await client(right.url, heard.right);
  rightClient.on('ask', (reply) => reply(tenant));
  leftClient.on('ask', (reply) => reply(tenant));

  // Both servers know of both clients, of this tenant's alone.
  await until(async () => (await left.sockets.fetchSockets()).length === 2, 'the servers to know of each other');
  assert.deepEqual(new Set((await left.sockets.fetchSockets()).map(({ id }) => id)), new Set([leftClient.id, rightClient.id]));

  left.sockets.emit('all', tenant);
  left.sockets.to('room').emit('room', tenant);
  right.sockets.to(leftClient.id).emit('one', tenant);
  await until(() => heard.right.length >= 2 && heard.left.length >= 2, 'what was sent');

  // With answers from the clients of both servers.
  assert.deepEqual(await left.sockets.timeout(4000).emitWithAck('ask'), [tenant, tenant]);

  // A server speaks to the other servers.
  const server2server = new Promise((resolve) => right.sockets.on('to servers', resolve));
  left.sockets.serverSideEmit('to servers', tenant);
  assert.equal(await server2server, tenant);

  // A room joined, and a socket ended, from the other server.
  right.sockets.in(leftClient.id).socketsJoin('second');
  await until(async () => (await left.sockets.in('second').fetchSockets()).length === 1, 'the room');
  const gone = new Promise((resolve) => rightClient.on('disconnect', resolve));
  left.sockets.in('room').disconnectSockets(true);
  await gone;

  // Time for what should not come.
  await new Promise((resolve) => setTimeout(resolve, 300));
  const sorted = (list) => list.filter(([event]) => event !== 'ask').sort();
  assert.deepEqual(sorted(heard.left), [['all', tenant], ['one', tenant]]);
  assert.deepEqual(sorted(heard.right), [['all', tenant], ['room', tenant]]);
  leftClient.disconnect();
  await Promise.all([left.sockets.close(), right.sockets.close()]);
}
