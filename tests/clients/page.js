// The status page in a browser's stead: loads it from keyfence, lets its script run, and looks at what it shows. `page.js URL`
'use strict';
const assert = require('node:assert');
const { JSDOM, VirtualConsole } = require('jsdom');

const url = process.argv[2];
const errors = [];

async function until(what, holds) {
  for (const end = Date.now() + 20_000; Date.now() < end; ) {
    const found = holds();
    if (found) return found;
    await new Promise((done) => setTimeout(done, 20));
  }
  assert.fail(`${what} never came; errors: ${errors.join('\n')}`);
}

async function main() {
  const html = await (await fetch(url)).text();
  const asked = new Set();
  const virtualConsole = new VirtualConsole();
  virtualConsole.on('jsdomError', (error) => errors.push(error.message));
  const dom = new JSDOM(html, {
    url,
    runScripts: 'dangerously',
    pretendToBeVisual: true,
    virtualConsole,
    beforeParse(window) {
      window.fetch = (path) => (asked.add(path), fetch(new URL(path, url)));
      window.AbortSignal.timeout = () => undefined;
      window.HTMLDialogElement.prototype.showModal = function () { this.open = true; };
    },
  });
  const { document } = dom.window;
  const rows = () => [...document.querySelectorAll('.line')];
  const names = () => rows().map((row) => row.querySelector('.who span').textContent);

  await until('a row', () => rows().length > 0);
  assert.equal(document.getElementById('tenant-count').textContent, '400');
  assert(rows().length < 60, `${rows().length} rows are drawn of 400`);
  await until('the busiest first', () => names()[0] === '<b>x</b>');
  assert.equal(document.querySelectorAll('.line b').length, 0, 'a name is a text');
  assert.equal(await until('ready', () => document.getElementById('phase').textContent === 'serving' && 'ok'), 'ok');
  assert.equal(document.querySelectorAll('#upstreams .card').length, 1);
  assert(document.querySelector('#upstreams').textContent.includes('wall stands'));
  assert.equal(document.querySelectorAll('#tiles .tile').length, 4);
  await until('the slow log', () => document.querySelector('#slow').textContent.includes('SET'));
  assert(document.querySelector('#settings').textContent.includes('shutdown_grace'));
  assert(!document.documentElement.textContent.includes('planted'), 'a secret or a value is shown');

  const search = document.getElementById('search');
  search.value = 't39';
  search.dispatchEvent(new dom.window.Event('input'));
  assert.deepEqual(names().sort(), ['t39', ...Array.from({ length: 10 }, (_, i) => `t39${i}`)].sort());
  assert.equal(document.getElementById('tenant-count').textContent, '11 of 400');
  assert(dom.window.location.hash.includes('q=t39'));
  document.querySelector('#head button').click();
  assert.deepEqual(names(), [...names()].sort(), 'sorted by name');
  search.value = '<b>';
  search.dispatchEvent(new dom.window.Event('input'));
  rows()[0].click();
  assert(document.getElementById('dialog').open);
  assert(document.querySelector('#dialog h3').textContent.startsWith('<b>x</b>'));

  assert.deepEqual([...asked], ['/api/status']);
  assert.deepEqual(errors, []);
  dom.window.close();
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
