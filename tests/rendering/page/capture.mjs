// node capture.mjs BUNDLE DATA OUT: pictures of the dashboards in DATA, and what is wrong with them as JSON.
import { readFileSync, writeFileSync } from 'node:fs';
import { chromium } from 'playwright-core';
import { inspect } from './inspect.mjs';

const [bundle, data, out] = process.argv.slice(2);
const WIDTHS = [1280, 1920], MODES = ['dark', 'light'], LIMIT_MS = 60000, FIRST_SCREEN = 900;
const PAGE = '<!doctype html><html><body style="margin:0"><div id="root" style="position:relative"></div></body></html>';
const script = readFileSync(bundle, 'utf8');
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
const found = [];
try {
  for (const dashboard of JSON.parse(readFileSync(data, 'utf8'))) {
    for (const width of WIDTHS) {
      for (const mode of MODES) {
        const page = await browser.newPage({ viewport: { width, height: 1080 }, deviceScaleFactor: 1 });
        const complaints = [];
        page.on('console', (message) => message.type() === 'error' && complaints.push(`console: ${message.text()}`));
        page.on('pageerror', (error) => complaints.push(`error: ${error.stack ?? error}`));
        await page.route('**/*', (route) => route.fulfill({ contentType: 'text/html', body: PAGE }));
        await page.goto('http://dashboards.test/');
        await page.evaluate((value) => { window.dashboard = value; }, { ...dashboard, mode });
        await page.addScriptTag({ content: script });
        await page.waitForFunction(() => window.done || window.failed, null, { timeout: LIMIT_MS }).catch((error) => complaints.push(String(error)));
        await page.waitForTimeout(400);
        const failed = await page.evaluate(() => window.failed);
        if (failed) complaints.push(failed);
        else complaints.push(...(await page.evaluate(inspect)));
        const name = `${dashboard.uid}-${width}-${mode}`;
        await page.screenshot({ path: `${out}/${name}.png`, fullPage: true });
        const session = await page.context().newCDPSession(page);
        const { data: small } = await session.send('Page.captureScreenshot', {
          format: 'webp', quality: 82, clip: { x: 0, y: 0, width, height: FIRST_SCREEN, scale: 1 }, captureBeyondViewport: true,
        });
        writeFileSync(`${out}/${name}.webp`, Buffer.from(small, 'base64'));
        found.push({ name, complaints });
        await page.close();
      }
    }
  }
} finally {
  await browser.close();
}
writeFileSync(`${out}/complaints.json`, JSON.stringify(found, null, 1));
