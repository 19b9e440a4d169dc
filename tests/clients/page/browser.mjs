// The status page in a headless Chromium: what the scripts beside this one have in common. Each is called as `SCRIPT URL`, and asks its
// caller for what it cannot do itself, such as traffic: a line `@ WORD` goes out, and a line comes in once that is done.
import assert from 'node:assert/strict';
import { accessSync, constants, mkdirSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

/** How long what must happen may take until it counts as a hang, in milliseconds. */
const HANG = 20_000;
/** A folder for screenshots; without it none are made. */
const SCREENSHOTS = process.env.KEYFENCE_SCREENSHOTS;

export const DESKTOP = { viewport: { width: 1366, height: 900 } };
export const PHONE = { viewport: { width: 375, height: 812 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Has the caller do something, and waits until it has. */
export async function ask(word) {
  process.stdout.write(`@ ${word}\n`);
  assert.equal((await answers.next()).value, word, 'the caller has not done it');
}

function installed() {
  for (const name of ['chromium', 'chromium-browser', 'google-chrome']) {
    for (const folder of process.env.PATH.split(delimiter)) {
      try {
        accessSync(join(folder, name), constants.X_OK);
        return join(folder, name);
      } catch {}
    }
  }
  throw new Error('no chromium on PATH: run tools/ensure-browser.sh');
}

/** A page, what it has asked for, and what it has complained of. */
export class Page {
  asked = [];
  complaints = [];

  constructor(page, url) {
    this.page = page;
    this.url = url;
    page.context().on('request', (request) => this.asked.push(request.url()));
    page.on('console', (message) => this.complaints.push(`${message.type()}: ${message.text()}`));
    page.on('pageerror', (error) => this.complaints.push(error.stack));
    page.on('dialog', (dialog) => {
      this.complaints.push(`dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
  }

  /** Runs a function in the page. */
  look(what, argument) {
    return this.page.evaluate(what, argument);
  }

  /** Waits until a function of the page's says yes; returns what it says. */
  async until(what, holds, argument) {
    try {
      const found = await this.page.waitForFunction(holds, argument, { timeout: HANG, polling: 50 });
      return await found.jsonValue();
    } catch (error) {
      const text = await this.page.evaluate(() => document.body.innerText).catch(() => '');
      assert.fail(`${what}: ${error.message}\n${this.complaints.join('\n')}\n${text.slice(0, 2000)}`);
    }
  }

  /** Waits until what is shown was asked for after this call. */
  async refreshed() {
    for (let times = 0; times < 2; times += 1) {
      const answer = await this.page.waitForResponse((r) => r.url().endsWith('/api/status'), { timeout: HANG });
      await answer.finished();
    }
  }

  /** The rows in sight, from the top, as texts by column. */
  rows() {
    return this.look(() =>
      [...document.querySelectorAll('#body .line')].map((line) => ({
        name: line.querySelector('.who span').textContent,
        ...Object.fromEntries([...line.querySelectorAll('[data-label]')].map((c) => [c.dataset.label, c.textContent])),
      })),
    );
  }

  async search(text) {
    await this.page.fill('#search', text);
  }

  /** Clicks a column's head until it sorts that way. */
  async sort(label, way) {
    const head = this.page.locator('#head [role=columnheader]', { hasText: label });
    for (let times = 0; times < 3 && (await head.getAttribute('aria-sort')) !== way; times += 1) {
      await head.locator('button').click();
    }
    assert.equal(await head.getAttribute('aria-sort'), way);
  }

  /** For people to look at. */
  async shoot(name, options = { fullPage: true }) {
    if (!SCREENSHOTS) return;
    mkdirSync(SCREENSHOTS, { recursive: true });
    await this.page.screenshot({ path: join(SCREENSHOTS, `${name}.png`), ...options });
  }

  /** It has talked to none but where it comes from, only of what it needs, and has had no reason to complain. */
  isQuiet() {
    const own = [this.url, new URL('/api/status', this.url).href];
    assert.deepEqual(this.asked.filter((url) => !own.includes(url.replace(/#.*/, ''))), [], 'asked for something else');
    assert(this.asked.includes(own[1]));
    assert.deepEqual(this.complaints, []);
  }
}

/** Whether screenshots are made: then charts are worth some seconds of waiting. */
export const shooting = Boolean(SCREENSHOTS);

/** Runs `test(open)` with a browser; `open(options)` shows the page in a window of its own. Ends the process. */
export async function run(test) {
  const url = process.argv[2];
  let status = 0;
  const browser = await chromium.launch({ executablePath: installed(), timeout: HANG });
  try {
    await test(async (options = DESKTOP) => {
      const context = await browser.newContext(options);
      context.setDefaultTimeout(HANG);
      const page = new Page(await context.newPage(), url);
      await page.page.goto(url);
      await page.until('tenants are shown', () => document.querySelector('#body .line'));
      return page;
    });
  } catch (error) {
    console.error(error);
    status = 1;
  }
  await browser.close();
  process.exit(status);
}
