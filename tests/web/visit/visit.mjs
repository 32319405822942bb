// A person's first half hour with the dashboard, in Chromium, over a cluster that really trains: they submit a job file,
// see it train and what it writes, pause it, ask it, take a checkpoint home, resume it, and cancel another.
//   node visit.mjs http://HOST:PORT MILLRACE SOURCE_FOLDER HOST:PORT
// where the dashboard is, and the coordinator.
// With MILLRACE_PICTURES=FOLDER it takes the pictures of docs/images there.
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {mkdtempSync, readFileSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {chromium} from 'playwright-core';

const [address, millrace, source, coordinator] = process.argv.slice(2);
const pictures = process.env.MILLRACE_PICTURES;
const PROMPTS = ['The child asked:', 'At noon'];
const JOB = `${readFileSync(join(source, 'examples/tiny.yaml'), 'utf8')
    .replace('name: tiny', 'name: visited')
    .replace('evaluate: {every_steps: 20}',
             `evaluate: {every_steps: 100, samples: {prompts: ${JSON.stringify(PROMPTS)}, max_tokens: 16, temperature: 0.5}}`)
    .replace('max_steps: 60', 'max_steps: 900')}\nlabels: {team: bakery}\n`;

const work = mkdtempSync(join(tmpdir(), 'visit-'));
const browser = await chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync'],
});
const complaints = [];

async function open(options = {}) {
  const context = await browser.newContext({viewport: {width: 1280, height: 900}, acceptDownloads: true, ...options});
  context.setDefaultTimeout(30_000);
  const page = await context.newPage();
  page.on('console', (message) => { if (['error', 'warning'].includes(message.type())) complaints.push(message.text()); });
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('request', (request) => {
    if (!request.url().startsWith(address) && !request.url().startsWith('blob:')) complaints.push(`asks ${request.url()}`);
  });
  return page;
}
const state = (page) => page.locator('#job-facts .state');
const awaitState = (page, name) => state(page).filter({hasText: name}).waitFor();

// Presses a button that asks before it does anything.
async function press(page, button, question) {
  await page.getByRole('button', {name: button, exact: true}).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByText(question).waitFor();
  await dialog.getByRole('button', {name: `${button} it`}).click();
}

// Whether something is painted in the chart.
const isPainted = (page, chart) => page.locator(`${chart} canvas`).evaluateAll((canvases) => canvases.some((canvas) =>
    canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((byte) => byte !== 0)));

async function visit() {
  const page = await open();
  await page.goto(`${address}/`);
  await page.getByText('0 running, 0 queued · 2 workers, 2/2 shards').waitFor();

  // Submitting: a mistake is told, the rest checked, and nothing done unasked.
  await page.getByRole('link', {name: 'Submit'}).click();
  await page.getByRole('textbox', {name: 'Job file', exact: true}).fill(JOB.replace('every_steps', 'evry_steps'));
  await page.getByLabel('Folder on the coordinator').fill(join(source, 'examples'));
  await page.getByRole('button', {name: 'Check'}).click();
  await page.getByRole('alert').filter({hasText: "did you mean 'every_steps'?"}).waitFor();
  assert.match(complaints.pop(), /400/);
  await page.getByRole('textbox', {name: 'Job file', exact: true}).fill(JOB);
  await press(page, 'Submit', 'Submit visited?');

  // It trains: curves, events, and what the model writes.
  await page.getByRole('heading', {name: 'visited'}).waitFor();
  await awaitState(page, 'running');
  const sample = page.locator('#samples-table tbody tr').filter({hasText: PROMPTS[0]}).locator('td').first();
  await sample.waitFor();
  const first = await sample.textContent();
  assert.ok(first.replace(' …', '').length > 0);
  await page.locator('#events li').filter({hasText: 'pretrain step 100: held-out loss'}).waitFor();
  await page.locator('#job-chart .entry').filter({hasText: 'held-out loss'}).waitFor();
  assert.ok(await isPainted(page, '#job-chart'));

  await press(page, 'Pause', 'Pause visited?');
  await awaitState(page, 'paused');
  const row = page.locator('#checkpoints tbody tr').first();
  await row.waitFor();

  // The model is asked.
  await page.getByRole('textbox', {name: 'Prompt', exact: true}).fill('The child');
  await page.getByLabel('Tokens').fill('12');
  await page.getByRole('button', {name: 'Ask'}).click();
  await page.locator('#prompt-answer b').filter({hasText: 'The child'}).waitFor();
  assert.ok((await page.locator('#prompt-answer').textContent()).length > 'The child'.length);

  // A checkpoint comes home whole.
  const coming = page.waitForEvent('download');
  await row.getByRole('button', {name: /^Download/}).click();
  const archive = join(work, 'checkpoint.tar');
  const download = await coming;
  assert.match(download.suggestedFilename(), /^visited-pretrain-\d+\.tar$/);
  await download.saveAs(archive);
  execFileSync('tar', ['-xf', archive, '-C', work]);
  const folder = join(work, execFileSync('tar', ['-tf', archive], {encoding: 'utf8'}).split('/')[0]);
  const digest = await row.locator('td.code').textContent();
  assert.match(execFileSync(millrace, ['digest', folder], {encoding: 'utf8'}), new RegExp(digest));

  await press(page, 'Resume', 'Resume visited?');
  await awaitState(page, 'running');

  // Another, like it, is given up while the first trains.
  const other = await open();
  await other.goto(`${address}/#/submit/visited`);
  const file = other.getByRole('textbox', {name: 'Job file', exact: true});
  await other.waitForFunction(() => document.querySelector('#submit-yaml').value.includes('visited'));
  await file.fill((await file.inputValue()).replace('"visited"', '"unwanted"'));
  await other.getByLabel('Folder on the coordinator').fill(join(source, 'examples'));
  await press(other, 'Submit', 'Submit unwanted?');
  await other.getByRole('heading', {name: 'unwanted'}).waitFor();
  await state(other).waitFor();
  await press(other, 'Cancel', 'Cancel unwanted?');
  await awaitState(other, 'cancelled');
  await other.context().close();

  await awaitState(page, 'succeeded');
  const steps = await page.locator('#samples-table thead th').allTextContents();
  assert.deepEqual(steps, ['Prompt', ...[1, 2, 3, 4, 5, 6, 7, 8, 9].map((i) => `step ${100 * i}`)]);
  assert.equal(await sample.textContent(), first);  // what was written stays, through the pause
  // What is shown is what `millrace` tells.
  const told = execFileSync(millrace, ['watch', 'visited', '--json', '--coordinator', coordinator], {encoding: 'utf8'});
  const events = told.trim().split('\n').map((line) => JSON.parse(line)).filter(({samples}) => samples !== undefined);
  for (const [i, prompt] of PROMPTS.entries()) {
    const cells = await page.locator('#samples-table tbody tr').nth(i).locator('td').allTextContents();
    assert.deepEqual(cells, events.map(({samples}) =>
        `${samples.samples[i].text}${samples.samples[i].ended ? '' : ' …'}`), prompt);
  }
  await page.getByRole('link', {name: 'Jobs'}).click();
  await page.locator('#jobs-table tbody tr').nth(1).waitFor();
  assert.deepEqual(await page.locator('#jobs-table tbody tr').evaluateAll((rows) => rows.map(({dataset}) => dataset.id)),
                   ['unwanted', 'visited']);
  await page.locator('#compare-chart .entry').first().waitFor();
  assert.ok(await isPainted(page, '#compare-chart'));
  await page.context().close();
}

// Two more jobs like the first, then what the document shows.
async function takePictures() {
  const page = await open({viewport: {width: 1280, height: 1000}});
  await page.goto(`${address}/`);
  const call = (method, request) => page.evaluate(async ([name, body]) => (await fetch(`/api/v1/jobs/${name}`, {
    method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body),
  })).json(), [method, request]);
  for (const [name, override] of [['wider', 'model.hidden_size=64'], ['slower', 'phases.0.optimizer.lr=3e-3']]) {
    const job = await call('SubmitJob', {template_job_id: 'visited', overrides: [`name=${name}`, override]});
    assert.equal(job.id, name, JSON.stringify(job));
    while ((await call('GetJob', {job_id: name})).state !== 'SUCCEEDED') {
      assert.notEqual((await call('GetJob', {job_id: name})).state, 'FAILED');
      await page.waitForTimeout(500);
    }
  }
  await page.goto(`${address}/#/jobs/visited,wider,slower`);
  await page.reload();
  await page.locator('#compare-chart .entry').nth(5).waitFor();
  await page.screenshot({path: join(pictures, 'dashboard-jobs.png')});
  await page.emulateMedia({colorScheme: 'dark'});
  await page.goto(`${address}/#/job/wider`);
  await page.locator('#job-chart .entry').nth(1).waitFor();
  await page.locator('#checkpoints tbody tr').first().waitFor();
  await page.screenshot({path: join(pictures, 'dashboard-job.png'), fullPage: true, clip: {x: 0, y: 0, width: 1280, height: 1800}});
  await page.emulateMedia({colorScheme: 'light'});
  await page.locator('#samples .scroll').evaluate((box) => { box.scrollLeft = 0; });
  await page.locator('#samples').screenshot({path: join(pictures, 'dashboard-samples.png')});
  await page.context().close();
  const telephone = await open({viewport: {width: 480, height: 1000}, isMobile: true, hasTouch: true});
  await telephone.goto(`${address}/#/job/visited`);
  await telephone.locator('#job-chart .entry').nth(1).waitFor();
  await telephone.locator('#job-chart-axis').selectOption('tokens');
  await telephone.locator('#job-progress-text').evaluate((text) => text.scrollIntoView());
  await telephone.screenshot({path: join(pictures, 'dashboard-telephone.png')});
  await telephone.context().close();
}

try {
  await visit();
  if (pictures !== undefined) await takePictures();
  assert.deepEqual(complaints, []);
  console.log('The visit went well.');
} finally {
  await browser.close();
  rmSync(work, {recursive: true});
}
