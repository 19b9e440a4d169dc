// A thousand tenants: the page stays quick, finds and sorts them, and a refresh moves nothing.
import assert from 'node:assert/strict';
import { ask, run } from './browser.mjs';

const number = (text) => (text === '–' ? -1 : parseFloat(text) * ({ k: 1e3, M: 1e6 }[text.at(-1)] ?? 1));
const count = (page) => page.page.locator('#tenant-count').innerText();
const scrollTo = async (page, top) => {
  await page.look((to) => document.getElementById('scroll').scrollTo(0, to ?? document.getElementById('body').offsetHeight), top);
  await page.look(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
};
const place = (page) => page.look(() => document.getElementById('scroll').scrollTop);

run(async (open) => {
  const page = await open();
  await ask('traffic');
  await page.until('all clients are counted', () => document.querySelector('#tiles').textContent.includes('31connected'));
  assert.equal(await count(page), '1,000');
  assert((await page.rows()).length < 60, 'only rows in sight are elements');

  // As numbers, not as texts, both ways: 10, 9 and 2 clients, and the others' none.
  await page.sort('Clients', 'descending');
  const most = (await page.rows()).slice(0, 5).map((row) => [row.name, row.clients]);
  assert.deepEqual(most, [['t8', '10'], ['t9', '9'], ['t4', '7'], ['t5', '3'], ['t7', '2']]);
  await page.shoot('many', {});
  await page.sort('Clients', 'ascending');
  assert.equal((await page.rows())[0].clients, '0');
  await scrollTo(page);
  const last = (await page.rows()).slice(-5).map((row) => row.name);
  assert.deepEqual(last, ['t7', 't5', 't4', 't9', 't8']);
  await scrollTo(page, 0);
  await page.until('rates are shown', () => [...document.querySelectorAll('#tiles .value')].every((tile) => !/^[0–]/.test(tile.textContent)));
  for (const [label, column] of [['Per second', '/s'], ['p50', 'p50'], ['Errors/s', 'errors']]) {
    await page.sort(label, 'descending');
    const rows = await page.rows();
    const shown = rows.map((row) => (column === 'p50' ? time(row[column]) : number(row[column])));
    assert.deepEqual(shown, [...shown].sort((a, b) => b - a), label);
    assert(shown[0] > shown.at(-1), `${label}: ${shown}`);
  }
  await page.sort('Tenant', 'ascending');
  const names = (await page.rows()).map((row) => row.name);
  assert.deepEqual(names, [...names].sort());

  // A word that some have, and one that nobody has.
  await page.search('t99');
  assert.equal(await count(page), '11 of 1,000');
  const found = (await page.rows()).map((row) => row.name);
  assert.deepEqual(found, ['t99', ...Array.from({ length: 10 }, (_, n) => `t99${n}`)]);
  await page.search('nobody');
  assert.equal(await count(page), '0 of 1,000');
  assert((await page.page.locator('#body').innerText()).includes('No tenant matches'));

  // What the next answer brings does not move what is looked at, and neither does loading it anew.
  await page.search('t1');
  assert.equal(await count(page), '111 of 1,000');
  await page.sort('Tenant', 'descending');
  await scrollTo(page, 1200);
  await page.page.locator('#search').focus();
  const before = [await place(page), (await page.rows()).map((row) => row.name)];
  const stays = async () => {
    assert.deepEqual([await place(page), (await page.rows()).map((row) => row.name)], before);
    assert.equal(await page.page.locator('#search').inputValue(), 't1');
    assert.equal(await page.page.locator('#head [aria-sort=descending]').innerText(), 'Tenant');
    assert.equal(await count(page), '111 of 1,000');
  };
  assert.equal(before[0], 1200);
  assert(before[1].length > 10 && !before[1].includes('t199'));
  await page.refreshed();
  await stays();
  assert.equal(await page.look(() => document.activeElement.id), 'search');
  await page.page.reload();
  await page.until('tenants are shown again', () => document.querySelector('#body .line'));
  await page.look(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
  await stays();
  page.isQuiet();
});

/** A duration as the page writes it, in seconds. */
function time(text) {
  const [value, unit] = text.split(' ');
  return text === '–' ? -1 : value * { 'µs': 1e-6, ms: 1e-3, s: 1 }[unit];
}
