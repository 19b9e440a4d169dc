// What the page shows of what goes on, that it shows it as text, and that it talks to nobody else.
import assert from 'node:assert/strict';
import { ask, run, shooting } from './browser.mjs';

/** A name that would do something if it were read as HTML. */
const HOSTILE = "<img/src=x/onerror=document.title='planted'>";
/** What a duration looks like. */
const TIME = /^\d[\d.]* (µs|ms|s)$/;

run(async (open) => {
  const page = await open();
  await page.until('keyfence serves', () => document.getElementById('phase').textContent === 'serving');
  await page.until('the connection is called live', () => document.getElementById('live').textContent === 'live');
  const row = async (name) => (await page.rows()).find((found) => found.name === name);
  assert.equal((await row('idle'))['/s'], '0');
  assert.equal((await row('idle')).p99, '–');

  await ask('traffic');
  await page.until(
    'the traffic is shown',
    (names) =>
      names.every((name) =>
        [...document.querySelectorAll('#body .line')].some(
          (line) => line.querySelector('.who span').textContent === name && line.querySelector('.rate').textContent !== '0',
        ),
      ),
    ['acme', 'beta', HOSTILE],
  );
  const errors = (count) =>
    page.until(`${count} errors`, (text) => document.getElementById('tiles').textContent.includes(text), `${count} since start`);
  await errors(31);
  await page.until('waits are shown', () => document.querySelector('#body [data-label=p99]').textContent !== '–');
  const acme = await row('acme');
  assert.match(acme.p50, TIME);
  assert.match(acme.p99, TIME);
  assert.equal(acme.clients, '1');
  assert.equal((await row('idle'))['/s'], '0');
  await page.until('a share of hits is shown', () => /^[1-9]\d* %$/.test(document.querySelector('#body .tierhit').textContent));

  // Numbers move with what goes on.
  await ask('more');
  await errors(41);
  await page.page.locator('#body .line', { hasText: 'beta' }).click();
  await page.until('errors by kind', () => /wrongtype\s*40 errors/.test(document.getElementById('dialog').textContent));
  await page.page.locator('#dialog button').click();
  assert.equal((await page.rows())[0].name, 'acme', 'the busiest is first');
  const tiles = await page.look(() => [...document.querySelectorAll('#tiles .tile')].map((tile) => tile.innerText));
  assert.deepEqual(tiles.map((text) => text.split('\n')[0]), ['Commands', 'Wait of clients', 'Errors', 'Clients']);
  assert.match(tiles[1], /p99 · .* p50/);
  await page.until('a line is drawn', () => document.querySelector('#tiles .stroke').getBoundingClientRect().width > 0);

  const cards = await page.look(() => [...document.querySelectorAll('#upstreams .card')].map((card) => card.innerText));
  assert.equal(cards.length, 2);
  assert(cards.every((card) => card.includes('wall stands')), cards.join('\n'));

  await ask('scan');
  await page.until('scoped work is shown', () => {
    const jobs = document.getElementById('jobs');
    return !document.getElementById('jobs-section').hidden && /beta\s*DBSIZE/.test(jobs.textContent) && jobs.querySelector('progress').value > 0;
  });
  await page.until('the slow log is shown', () => /beta\s*GET/.test(document.getElementById('slow').textContent));

  // Names are texts, and of keys, values and passwords there is nothing at all.
  const text = await page.look(() => document.body.textContent);
  for (const shown of [HOSTILE, '<i>folder</i>', 'shutdown_grace', '***']) assert(text.includes(shown), shown);
  await page.page.locator('#body .line', { hasText: HOSTILE }).click();
  assert((await page.page.locator('#dialog h3').innerText()).startsWith(HOSTILE));
  await page.shoot('dialog', {});
  await page.page.locator('#dialog button').click();
  const made = await page.look(() => [document.querySelectorAll('img, body b b, i:not([class]):not([style]), script').length, document.title]);
  assert.equal(made[0], 1, 'no element but the script of the page itself');
  assert(made[1].endsWith('· keyfence'), made[1]);
  assert(!(await page.page.content()).includes('secret-'), 'a password, a key, a value or a name of a client');

  if (shooting) {
    for (let second = 0; second < 8; second += 1) {
      await page.refreshed();
    }
    await page.shoot('live');
  }
  page.isQuiet();
});
