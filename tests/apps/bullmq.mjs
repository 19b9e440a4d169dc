// BullMQ: add, process, delay, repeat, priority, flow, pause and resume, retry, obliterate.
import assert from 'node:assert/strict';
import { FlowProducer, Queue, QueueEvents, Worker } from 'bullmq';
import { connection, tenant, until } from './connection.mjs';

const done = [];
const failures = [];
const errors = [];
const attempts = new Map();

async function work(job) {
  assert.equal(job.data.tenant, tenant, `job ${job.name} is somebody else's`);
  if (job.name === 'flaky') {
    attempts.set(job.id, (attempts.get(job.id) ?? 0) + 1);
    if (attempts.get(job.id) < 3) throw new Error('not yet');
  }
  if (job.name === 'parent') {
    const children = Object.values(await job.getChildrenValues()).sort();
    assert.deepEqual(children, [`${tenant}:left`, `${tenant}:right`]);
  }
  await job.updateProgress(50);
  await job.log(`${tenant} works`);
  done.push(job.name);
  return `${tenant}:${job.name}`;
}

const queue = new Queue('jobs', { connection });
const events = new QueueEvents('jobs', { connection });
const worker = new Worker('jobs', work, { connection, concurrency: 1 });
const flow = new FlowProducer({ connection });
worker.on('failed', (job, error) => failures.push([job?.name, error.message]));
const open = [queue, events, worker, flow];
for (const part of open) part.on('error', (error) => errors.push(error));
await Promise.all(open.map((part) => part.waitUntilReady?.()));

const heard = [];
events.on('completed', ({ returnvalue }) => heard.push(returnvalue));
const data = { tenant };

// Add and process, one and many.
const plain = await queue.add('plain', data);
assert.equal(await plain.waitUntilFinished(events, 8000), `${tenant}:plain`);
assert.deepEqual((await queue.getJobLogs(plain.id)).logs, [`${tenant} works`]);
await queue.addBulk(Array.from({ length: 20 }, () => ({ name: 'bulk', data })));
await until(() => done.filter((name) => name === 'bulk').length === 20, 'the bulk');

// Delayed.
const sent = Date.now();
const delayed = await queue.add('delayed', data, { delay: 300 });
assert.equal(await delayed.getState(), 'delayed');
assert.equal(await delayed.waitUntilFinished(events, 8000), `${tenant}:delayed`);
assert(Date.now() - sent >= 300);

// Three attempts.
const flaky = await queue.add('flaky', data, { attempts: 3, backoff: { type: 'fixed', delay: 50 } });
assert.equal(await flaky.waitUntilFinished(events, 8000), `${tenant}:flaky`);
assert.equal(attempts.get(flaky.id), 3);
assert.deepEqual(failures, [['flaky', 'not yet'], ['flaky', 'not yet']]);

// A parent after its children.
const tree = await flow.add({
  name: 'parent',
  queueName: 'jobs',
  data,
  children: [
    { name: 'left', queueName: 'jobs', data },
    { name: 'right', queueName: 'jobs', data },
  ],
});
assert.equal(await tree.job.waitUntilFinished(events, 8000), `${tenant}:parent`);

// Paused, nothing runs; resumed, the most urgent comes first.
await queue.pause();
assert.equal(await queue.isPaused(), true);
for (const [name, priority] of [['low', 9], ['middle', 5], ['high', 1]]) await queue.add(name, data, { priority });
await new Promise((resolve) => setTimeout(resolve, 200));
assert(!done.includes('high'));
await queue.resume();
await until(() => done.includes('low'), 'the least urgent');
assert.deepEqual(done.slice(-3), ['high', 'middle', 'low']);

// Repeated, at an interval.
await queue.upsertJobScheduler('every', { every: 200 }, { name: 'tick', data });
await until(() => done.filter((name) => name === 'tick').length >= 3, 'three ticks');
assert.equal((await queue.getJobSchedulers()).length, 1);
assert.equal(await queue.removeJobScheduler('every'), true);

// What was counted and heard is this tenant's own.
await until(async () => (await queue.getJobCounts('active')).active === 0, 'the last job');
await until(() => heard.length >= done.length, 'the events');
assert.equal((await queue.getJobCounts('completed')).completed, done.length);
for (const value of heard) assert(value.startsWith(`${tenant}:`), `heard ${value}`);
assert.equal((await queue.getWorkers()).length, 1, 'CLIENT LIST shows other than this worker');

await worker.close();
await queue.add('left over', data);
await queue.obliterate({ force: true });
assert.deepEqual(await queue.getJobs(), []);
await Promise.all([queue.close(), events.close(), flow.close()]);
assert.deepEqual(errors, []);
