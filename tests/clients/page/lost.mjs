// The page when keyfence has gone: it says so, and passes nothing old off as new. When keyfence is back, so is the page.
import assert from 'node:assert/strict';
import { ask, run } from './browser.mjs';

run(async (open) => {
  const page = await open();
  await page.until('it is live', () => document.getElementById('live').textContent === 'live');
  await page.until('keyfence serves', () => document.getElementById('phase').textContent === 'serving');
  page.isQuiet();

  await ask('stop');
  await page.until('it says so', () => document.getElementById('live').textContent.startsWith('no answer for'));
  assert.equal(await page.page.locator('#phase').innerText(), 'unknown');
  assert.equal(await page.page.locator('.badge.good').count(), 0, 'nothing is called good that is not known');
  assert.match(await page.page.locator('#notes').innerText(), /^keyfence does not answer.*what is below is from \d\d:\d\d:\d\d/i);
  assert(await page.page.locator('#facts').isHidden(), 'so are the facts of the process');
  assert.match(await page.page.title(), /^no answer · keyfence$/);
  assert(await page.look(() => Number(getComputedStyle(document.getElementById('tiles')).filter.match(/grayscale\((.*)\)/)[1]) === 1), 'what is old looks old');
  await page.until('the time goes on', () => /for ([2-9]|\d\d) s/.test(document.getElementById('live').textContent));
  await page.shoot('lost');

  await ask('start');
  await page.until('it is live again', () => document.getElementById('live').textContent === 'live');
  assert.equal(await page.look(() => getComputedStyle(document.getElementById('tiles')).filter), 'none');
  assert(await page.page.locator('#notes').isHidden());
  assert.match(await page.page.title(), /\/s · keyfence$/);
});
