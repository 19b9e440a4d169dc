// How the page looks, wide and on a telephone, dark and light: nothing sticks out, nothing overlaps, everything can be read.
import assert from 'node:assert/strict';
import { DESKTOP, PHONE, run, shooting } from './browser.mjs';

/** WCAG 2.2, 1.4.3: between text and what is behind it. */
const CONTRAST = 4.5;
/** In CSS pixels. */
const SMALLEST_TEXT = 12;

/** In the page: every text in sight with its size and its contrast, and what is cut off or in the way of another one. */
function inspect() {
  const channels = (color) => {
    const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], [r2, g2, b2]) => [r * a + r2 * (1 - a), g * a + g2 * (1 - a), b * a + b2 * (1 - a)];
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(channels(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const texts = [], cut = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const top = document.querySelector('dialog[open]') ?? document.body;
  while (walk.nextNode()) {
    const node = walk.currentNode, element = node.parentElement;
    if (!node.data.trim() || !top.contains(element) || !element.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    if (['SCRIPT', 'STYLE'].includes(element.tagName)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    const back = behind(element), [a, b] = [luminance(over(channels(style.color), back)), luminance(back)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    texts.push({ text: node.data.trim().slice(0, 40), size: parseFloat(style.fontSize), contrast, element, box });
    // What hides its overflow without a scroll bar cuts its texts off, unless it shows an ellipsis and has the whole of it in a title.
    for (let e = element; e && e !== document.body; e = e.parentElement) {
      const s = getComputedStyle(e);
      if (s.overflowX === 'auto' || s.overflowX === 'scroll') break;
      if (s.overflowX !== 'hidden') continue;
      const frame = e.getBoundingClientRect(), told = s.textOverflow === 'ellipsis' && e.closest('[title]');
      if (!told && (box.right > frame.right + 1 || box.left < frame.left - 1)) cut.push(node.data.trim());
      break;
    }
  }
  // Texts in labels made of CSS are as large as those of elements.
  for (const cell of top.querySelectorAll('[data-label]')) {
    const before = getComputedStyle(cell, '::before');
    if (before.content !== 'none' && cell.checkVisibility()) texts.push({ text: before.content, size: parseFloat(before.fontSize), contrast: 21 });
  }
  // Of one row, one card, one tile: no two texts lie on each other.
  const overlaps = [];
  for (const group of top.querySelectorAll('.line, .card, .tile, .bar, .grid.head, h2, dl')) {
    const inside = texts.filter((t) => t.element && group.contains(t.element) && t.box.width > 0);
    inside.forEach((t, i) => {
      for (const u of inside.slice(i + 1)) {
        // An ellipsis leaves the box of the whole text, which ends where its element does.
        const [p, q] = [t, u].map(({ element, box }) => {
          const frame = element.getBoundingClientRect();
          return { left: Math.max(box.left, frame.left), right: Math.min(box.right, frame.right), top: box.top, bottom: box.bottom };
        });
        const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left), high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        if (wide > 1 && high > 3) overlaps.push(`${t.text} | ${u.text}`);
      }
    });
  }
  // A word that is the whole of a button stands in one line, and what a field says of itself fits in it.
  for (const button of top.querySelectorAll('button')) {
    const range = document.createRange();
    range.selectNodeContents(button);
    if (new Set([...range.getClientRects()].map((line) => line.top)).size > 1) cut.push(button.textContent);
  }
  const field = document.getElementById('search'), pen = document.createElement('canvas').getContext('2d');
  const { fontSize, fontFamily } = getComputedStyle(field);
  pen.font = `${fontSize} ${fontFamily}`;
  // Chromium keeps the place of the cross that clears it, as wide as the text is high.
  if (pen.measureText(field.placeholder).width > field.clientWidth - 20 - parseFloat(fontSize)) cut.push(field.placeholder);
  const root = document.scrollingElement;
  return {
    texts: texts.map(({ text, size, contrast, element }) => ({ text, size, contrast, where: element && `${element.tagName}.${element.className}` })),
    cut,
    overlaps,
    sideways: root.scrollWidth - innerWidth,
    hidden: [...document.querySelectorAll('.short')].filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.innerText.slice(0, 60)),
    width: innerWidth,
    background: getComputedStyle(document.body).backgroundColor,
  };
}

function check(name, seen, width) {
  assert(seen.texts.length > 10, `${name}: ${seen.texts.length} texts`);
  assert.equal(seen.width, width, `${name}: the layout is as wide as the screen`);
  assert(seen.sideways <= 0, `${name}: ${seen.sideways} px to scroll sideways`);
  const none = (what, found) => assert.equal(found.map((one) => `\n${JSON.stringify(one)}`).join(''), '', `${name}: ${what}`);
  if (width >= 375) none('only to be seen by scrolling', seen.hidden);
  none('small', seen.texts.filter((t) => t.size < SMALLEST_TEXT));
  none('pale', seen.texts.filter((t) => t.contrast < CONTRAST));
  none('cut off', seen.cut);
  none('on each other', seen.overlaps);
}

run(async (open) => {
  const [device] = process.argv.slice(3), options = { desktop: DESKTOP, phone: PHONE }[device];
  if (shooting) {
    const page = await open();
    for (let times = 0; times < 10; times += 1) await page.refreshed();
  }
  const backgrounds = [];
  for (const colorScheme of ['light', 'dark']) {
    const name = `${device}-${colorScheme}`;
    const page = await open({ ...options, colorScheme });
    await page.until('waits are shown', () => document.querySelector('#body .line .rate').textContent !== '0');
    await page.until('the lost upstream is shown', () => document.querySelector('#upstreams .badge.bad'));
    await page.until('scoped work is shown', () => !document.getElementById('jobs-section').hidden);
    assert.match(await page.page.locator('#phase.warn').innerText(), /^degraded$/);
    const seen = await page.look(inspect);
    await page.shoot(name);
    check(name, seen, options.viewport.width);
    backgrounds.push(seen.background);
    await page.page.locator('#body .line', { hasText: 'a-tenant-with' }).click();
    const dialog = await page.look(inspect);
    await page.shoot(`${name}-dialog`, {});
    check(`${name}, dialog`, dialog, options.viewport.width);
    await page.page.locator('#dialog button').click();
    for (const width of device === 'phone' ? [320, 600] : [800, 1150, 1920]) {
      await page.page.setViewportSize({ width, height: 900 });
      check(`${name}, ${width} px`, await page.look(inspect), width);
    }
    page.isQuiet();
    await page.page.close();
  }
  assert.notEqual(backgrounds[0], backgrounds[1], 'light and dark differ');
});
