// The dashboard: what a coordinator's jobs and members do, and what people ask of them.
import {Refused, get, post, rememberToken, takeTokenFromLink} from './api.js';
import {Chart, colourOf, layPhases} from './chart.js';
import {differences, linesOf} from './difference.js';

const POLL_MS = 2000;
const PAGE = 100;
const SHOWN_EVENTS = 500;
const SHOWN_SAMPLES = 40;  // evaluations
const CURVE_POINTS = 1000;      // of one of few
const ALL_CURVE_POINTS = 20000;  // of all that are drawn over each other

const element = (id) => document.getElementById(id);
const call = (method, request) => post(`/api/v1/jobs/${method}`, request, showConnection);

let view = null;             // what is shown now: {refresh, leave}
let timer = null;
let jobs = [];               // those in the table, the newest first
let drawn = new Map();       // index of the colour by job
let nextPage = '';
let at = -1;                 // of the table's row that keys go to
let finding = false;         // the jobs are opened to find one

function tell(text) { element('status').textContent = text; }

// Of what went wrong, what people asked for comes before what the page asks for by itself, which goes away by itself.
const troubles = {asked: '', polled: '', connection: ''};

function showTrouble(kind, text) {
  troubles[kind] = text;
  const shown = troubles.asked || troubles.polled || troubles.connection;
  element('trouble').textContent = shown;
  element('trouble').hidden = shown === '';
}

function showConnection(text) { showTrouble('connection', text); }

// What `ask` gives; null if the coordinator refused, which is shown.
async function tryTo(ask, kind = 'asked') {
  try {
    const answer = await ask();
    showConnection('');
    showTrouble(kind, '');
    return answer;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    showConnection('');
    showTrouble(kind, error.message);
    if (error.status === 401 && !element('token-dialog').open) element('token-dialog').showModal();
    return null;
  }
}
const tryToPoll = (ask) => tryTo(ask, 'polled');

let answerConfirm = null;  // settles what `confirmed` waits for

// Whether people say yes. A question that is not answered when another is asked is answered with no.
function confirmed(question, answer) {
  answerConfirm?.(false);
  element('confirm-text').textContent = question;
  element('confirm-yes').textContent = answer;
  if (!element('confirm').open) element('confirm').showModal();
  return new Promise((resolve) => { answerConfirm = resolve; });
}
element('confirm-yes').addEventListener('click', () => {
  answerConfirm?.(true);
  answerConfirm = null;
});
element('confirm').addEventListener('close', () => {
  // This comes after the dialog has closed: it may be open again, for another question.
  if (element('confirm').open) return;
  answerConfirm?.(false);
  answerConfirm = null;
});

// ---- pieces ----

function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function when(unixMs) {
  if (!unixMs) return '';
  const date = new Date(unixMs);
  return make('time', {dateTime: date.toISOString(), textContent: date.toLocaleString()});
}

function bytes(number) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  for (; number >= 1000 && unit + 1 < units.length; ++unit) number /= 1000;
  return `${unit === 0 ? number : number.toFixed(1)} ${units[unit]}`;
}

function duration(seconds) {
  if (!(seconds > 0)) return '';
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return 'less than 1 s';
  return parts.slice(first, first + 2).map(([size, unit], i) =>
      `${Math.floor((i === 0 ? seconds : seconds % parts[first][0]) / size)} ${unit}`).join(' ');
}

function stateOf(job) {
  const state = make('span', {className: `state ${job.state}`, textContent: job.state.toLowerCase()});
  if (job.queue_position > 0) state.append(` (${job.queue_position === 1 ? 'next' : `no. ${job.queue_position}`})`);
  if (job.stop_reason === 'halved') state.append(' (halved)');
  return state;
}

const loss = (job, number) => job.step > 0 && number !== 0 && number !== null ? number.toFixed(4) : '–';
const cell = (content, className = '') => make('td', {className}, content);

// Replaces rows only where something is new, so that focus and selection stay.
function setRows(body, rows) {
  const now = [...body.rows];
  rows.forEach((row, i) => {
    const old = now[i];
    if (old === undefined) {
      body.append(row);
    } else if (old.innerHTML !== row.innerHTML || old.dataset.id !== row.dataset.id) {
      if (old.contains(document.activeElement) && old.dataset.id === row.dataset.id) {
        const index = [...old.querySelectorAll('a, input, button')].indexOf(document.activeElement);
        old.replaceWith(row);
        row.querySelectorAll('a, input, button')[index]?.focus();
      } else {
        old.replaceWith(row);
      }
    }
  });
  now.slice(rows.length).forEach((row) => row.remove());
}

// ---- the jobs ----

const compareChart = new Chart(element('compare-chart'), () => drawComparison());

function filters() {
  const request = {newest_first: true, page_size: PAGE, brief: true};
  const text = element('filter').value.trim();
  const label = text.match(/^([\w.-]+)=(.*)$/);
  if (label !== null && label[1] === 'user') request.user = label[2];
  if (label !== null && label[1] !== 'user') request.labels = {[label[1]]: label[2]};
  if (label === null && text !== '') request.name_prefix = text;
  if (element('state-filter').value !== '') request.states = [element('state-filter').value];
  return request;
}

async function refreshJobs() {
  const reply = await tryToPoll(() => call('ListJobs', filters()));
  if (reply === null) return;
  // Older pages that were asked for stay below.
  const fresh = new Set(reply.jobs.map(({id}) => id));
  const older = jobs.length > PAGE ? jobs.slice(PAGE).filter(({id}) => !fresh.has(id)) : [];
  jobs = [...reply.jobs, ...older];
  if (older.length === 0) nextPage = reply.next_page_token;
  element('more-button').hidden = nextPage === '';
  tell(`${reply.total} ${reply.total === 1 ? 'job' : 'jobs'}`);
  showJobs();
  if (drawn.size === 0) {
    // What is most likely wanted: what trains, or else the newest.
    const first = jobs.find(({state}) => state === 'RUNNING') ?? jobs.find(({step}) => step > 0);
    if (first !== undefined) draw(first.id, true);
  } else {
    drawComparison();
  }
}

function showJobs() {
  const rows = jobs.map((job, i) => {
    const box = make('input', {type: 'checkbox', checked: drawn.has(job.id)});
    box.setAttribute('aria-label', `Draw ${job.id}`);
    // In the markup too, by which rows are compared.
    if (box.checked) box.setAttribute('checked', '');
    const swatch = make('span', {className: 'swatch'});
    if (drawn.has(job.id)) swatch.style.background = colourOf(drawn.get(job.id));
    const name = make('td', {}, swatch, make('a', {href: `#/job/${job.id}`, textContent: job.id}));
    for (const [label, value] of Object.entries(job.spec.labels)) {
      name.append(make('span', {className: 'label', textContent: `${label}=${value}`}));
    }
    const row = make('tr', {}, cell(box), name, cell(stateOf(job)), cell(job.phase),
                     cell(job.max_steps > 0 ? `${job.step} / ${job.max_steps}` : '', 'number'),
                     cell(loss(job, job.train_loss), 'number'), cell(loss(job, job.held_out_loss), 'number'),
                     cell(when(job.submitted_unix_ms)), cell(job.user));
    row.dataset.id = job.id;
    row.classList.toggle('at', i === at);
    return row;
  });
  setRows(element('jobs-table').tBodies[0], rows);
}

function draw(id, yes) {
  if (yes && !drawn.has(id)) {
    const used = new Set(drawn.values());
    let free = 0;
    while (used.has(free)) ++free;
    drawn.set(id, free);
  } else if (!yes) {
    drawn.delete(id);
  }
  // A link to this comparison.
  const ids = [...drawn.keys()].map(encodeURIComponent).join(',');
  history.replaceState(null, '', ids === '' ? '#/' : `#/jobs/${ids}`);
  showJobs();
  drawComparison();
}

let comparing = false;
let known = new Map();  // what came of jobs' curves: {of, curves} by job
let shownCurves = '';   // of what the chart's are

// Asks for curves again only where a job has moved on, and draws only if something is new: a hundred jobs that have
// ended cost nothing.
async function drawComparison() {
  if (comparing || view !== jobsView) return;
  comparing = true;
  const {metrics} = compareChart;
  const ids = [...drawn.keys()];
  const points = Math.max(100, Math.min(CURVE_POINTS, Math.floor(ALL_CURVE_POINTS / Math.max(ids.length, 1))));
  const listed = new Map(jobs.map((job) => [job.id, job]));
  // Of jobs that are not in the list it is not known whether they have moved on.
  const of = (id) => {
    const job = listed.get(id);
    return job === undefined ? null : JSON.stringify([job.submitted_unix_ms, job.state, job.phase, job.step, job.held_out_loss, metrics, points]);
  };
  const states = new Map(ids.map((id) => [id, of(id)]));
  const moved = ids.filter((id) => states.get(id) === null || known.get(id)?.of !== states.get(id));
  // A metric that only some jobs have is asked of all, so that some have it.
  const asked = moved.length > 0 && metrics.some((metric) => metric.includes('/')) ? ids : moved;
  const reply = asked.length === 0 ? {curves: []} : await tryToPoll(() => call('GetCurves', {
    job_ids: asked, metrics, max_points: points,
  }));
  comparing = false;
  if (reply === null) {
    // A job is gone, or has no such metric: begin again with what there is.
    drawn = new Map([...drawn].filter(([id]) => jobs.some((job) => job.id === id)));
    known = new Map();
    return;
  }
  for (const id of asked) known.set(id, {of: states.get(id), curves: []});
  for (const curve of reply.curves) known.get(curve.job_id)?.curves.push(curve);
  known = new Map([...known].filter(([id]) => drawn.has(id)));
  const now = JSON.stringify([metrics, [...drawn]]);
  if (asked.length === 0 && now === shownCurves) return;
  shownCurves = now;
  const curves = ids.flatMap((id) => known.get(id)?.curves ?? []);
  layPhases(curves, (id) => listed.get(id)?.spec.phases.map(({name}) => name) ?? []);
  compareChart.show(curves, drawn);
  if ([...drawn.keys()].join('\n') !== ids.join('\n')) drawComparison();
}

const jobsView = {
  name: 'jobs-view',
  enter() {
    at = -1;
    if (finding) element('filter').focus();
    finding = false;
  },
  refresh: refreshJobs,
};

element('jobs-table').addEventListener('change', (event) => {
  const row = event.target.closest('tr');
  draw(row.dataset.id, event.target.checked);
});
for (const id of ['filter', 'state-filter']) {
  element(id).addEventListener('input', () => {
    jobs = [];
    nextPage = '';
    refreshJobs();
  });
}
element('more-button').addEventListener('click', async () => {
  const reply = await tryTo(() => call('ListJobs', {...filters(), page_token: nextPage}));
  if (reply === null) return;
  jobs = [...jobs, ...reply.jobs];
  nextPage = reply.next_page_token;
  element('more-button').hidden = nextPage === '';
  showJobs();
});

// ---- one job ----

const jobChart = new Chart(element('job-chart'), () => view?.drawCurves?.());

function eventText({state, step, evaluation, checkpoint, log, data}) {
  if (state) return `${state.state.toLowerCase()}${state.stop_reason ? ` (${state.stop_reason})` : ''}${state.error ? `: ${state.error}` : ''}`;
  if (evaluation) {
    const more = Object.entries(evaluation.statistics).map(([name, value]) => `, ${name} ${value.toPrecision(4)}`).join('');
    return `${evaluation.phase} step ${evaluation.step}: held-out loss ${evaluation.loss.toFixed(4)}${more}${evaluation.best ? ' – the best so far' : ''}`;
  }
  if (checkpoint) return `${checkpoint.phase} step ${checkpoint.step}: checkpoint ${checkpoint.digest.slice(0, 12)}…`;
  if (log) return log.text;
  if (data) return `${data.phase || 'text'}: ${data.documents} documents, ${data.train_tokens} tokens to learn, ${data.held_out_tokens} held out`;
  return step ? `${step.phase} step ${step.step}: loss ${step.loss.toFixed(4)}` : '';
}

function newJobView(id) {
  let job = null;
  let after = 0;
  let last = null;      // step
  let evaluated = null;
  const written = new Map();  // what the model wrote, by phase and step: later news of the same replaces it
  let writtenIsNew = false;
  element('events').replaceChildren();
  element('job-file').replaceChildren();
  element('checkpoints').tBodies[0].replaceChildren();
  element('prompt-answer').hidden = true;
  element('samples').hidden = true;
  jobChart.show([], new Map());

  async function readEvents() {
    for (;;) {
      const reply = await tryToPoll(() => get('/api/v1/events', {job: id, after, steps: 'last'}, showConnection));
      if (reply === null || view !== this_) return;
      const list = element('events');
      const bottom = list.scrollTop + list.clientHeight >= list.scrollHeight - 4;
      for (const event of reply.events) {
        after = event.sequence;
        if (event.step) {
          last = event.step;
          continue;
        }
        if (event.samples) {
          written.set(`${event.samples.phase}\n${event.samples.step}`, event.samples);
          writtenIsNew = true;
          continue;
        }
        if (event.evaluation) evaluated = event.evaluation;
        list.append(make('li', {className: event.log?.severity ?? ''}, when(event.unix_ms), eventText(event)));
      }
      while (list.children.length > SHOWN_EVENTS) list.firstChild.remove();
      if (bottom) list.scrollTop = list.scrollHeight;
      if (!reply.more) return;
    }
  }

  // Prompts as rows and evaluations as columns, the newest at the right, so that a row shows what was learnt.
  function showSamples() {
    if (!writtenIsNew) return;
    writtenIsNew = false;
    const all = [...written.values()];
    const columns = all.length > SHOWN_SAMPLES ? [all[0], ...all.slice(1 - SHOWN_SAMPLES)] : all;
    const table = element('samples-table');
    const box = table.parentElement;
    const right = box.scrollLeft + box.clientWidth >= box.scrollWidth - 4;
    const phases = new Set(columns.map(({phase}) => phase)).size > 1;
    table.tHead.rows[0].replaceChildren(make('th', {scope: 'col', textContent: 'Prompt'}), ...columns.map(({phase, step}) =>
        make('th', {scope: 'col', textContent: `${phases ? `${phase}, ` : ''}step ${step}`})));
    const prompts = [...new Set(columns.flatMap(({samples}) => samples.map(({prompt}) => prompt)))];
    setRows(table.tBodies[0], prompts.map((prompt) => {
      const head = make('th', {scope: 'row', className: 'text', dir: 'auto', textContent: prompt === '' ? '(nothing)' : prompt});
      const row = make('tr', {}, head, ...columns.map(({samples}) => {
        const sample = samples.find((one) => one.prompt === prompt);
        const text = sample === undefined ? '' : `${sample.text}${sample.ended ? '' : ' …'}`;
        return make('td', {className: 'text', dir: 'auto', textContent: text});
      }));
      row.dataset.id = prompt;
      return row;
    }));
    element('samples').hidden = false;
    if (right) box.scrollLeft = box.scrollWidth;
  }

  function showFacts() {
    const facts = [
      ['State', stateOf(job)], ['User', job.user], ['Priority', job.spec.priority],
      ['Submitted', when(job.submitted_unix_ms)], ['Started', when(job.started_unix_ms)], ['Ended', when(job.ended_unix_ms)],
      ['Why it ended', job.error || job.stop_reason],
      ['Training loss', loss(job, job.train_loss)],
      ['Perplexity', evaluated === null || !evaluated.perplexity ? '' : evaluated.perplexity.toFixed(3)],
      ['Bits a byte', evaluated === null || !evaluated.bits_per_byte ? '' : evaluated.bits_per_byte.toFixed(4)],
      ['Held-out loss', loss(job, job.held_out_loss)],
      ['Best', job.best_step > 0 ? `${job.best_held_out_loss.toFixed(4)} at step ${job.best_step}` : ''],
      ['Tokens a second', last === null ? '' : Math.round(last.tokens_per_second).toLocaleString()],
      ['Time left', job.state === 'RUNNING' && last !== null ? duration(last.eta_seconds) : ''],
      ['Workers', last === null ? '' : last.workers], ['Sweep', job.sweep_id], ['Folder', job.directory],
    ].filter(([, value]) => value !== '' && value !== undefined);
    element('job-facts').replaceChildren(...facts.map(([name, value]) =>
        make('div', {}, make('dt', {textContent: name}), make('dd', {}, value instanceof Node ? value : String(value)))));
    element('job-progress').max = Math.max(job.max_steps, 1);
    element('job-progress').value = job.step;
    element('job-progress-text').textContent = job.max_steps > 0 ? `Step ${job.step} of ${job.max_steps}` : 'Not begun';
    const now = job.spec.phases.findIndex(({name}) => name === job.phase);
    element('phases').replaceChildren(...job.spec.phases.map((phase, i) => make('li', {
      className: i === now ? 'now' : '',
      textContent: `${phase.name}: ${phase.objective}${i < now || job.state === 'SUCCEEDED' ? ', done' : i === now ? ', at present' : ''}`,
    })));
    const can = {
      pause: ['QUEUED', 'PREPARING', 'RUNNING'], resume: ['PAUSED', 'FAILED', 'CANCELLED'],
      cancel: ['QUEUED', 'PREPARING', 'RUNNING', 'PAUSED'], delete: ['PAUSED', 'SUCCEEDED', 'FAILED', 'CANCELLED'],
    };
    for (const [action, states] of Object.entries(can)) element(action).hidden = !states.includes(job.state);
    element('again').href = `#/submit/${job.id}`;
  }

  async function showCheckpoints() {
    const reply = await tryToPoll(() => call('ListCheckpoints', {job_id: id}));
    if (reply === null || view !== this_) return;
    const newest = [...reply.checkpoints].reverse();
    setRows(element('checkpoints').tBodies[0], newest.map((checkpoint) => {
      const which = `${checkpoint.phase}-${checkpoint.step}`;
      const link = make('button', {type: 'button', className: 'plain', textContent: 'Download'});
      link.setAttribute('aria-label', `Download ${which}`);
      link.dataset.which = which;
      const row = make('tr', {}, cell(`${checkpoint.phase}${checkpoint.best ? ' (best)' : ''}`), cell(String(checkpoint.step), 'number'),
                       cell(checkpoint.held_out_loss === 0 ? '–' : checkpoint.held_out_loss.toFixed(4), 'number'),
                       cell(bytes(checkpoint.bytes), 'number'), cell(checkpoint.digest, 'code'), cell(link));
      row.dataset.id = which;
      return row;
    }));
    const choice = element('prompt-checkpoint');
    const names = newest.map(({phase, step}) => `${phase}-${step}`);
    if ([...choice.options].map(({value}) => value).join() !== names.join()) {
      const chosen = choice.value;
      choice.replaceChildren(...newest.map(({phase, step, best}) =>
          make('option', {value: `${phase}-${step}`, textContent: `${phase}, step ${step}${best ? ' (best)' : ''}`})));
      const best = newest.find((one) => one.best);
      choice.value = names.includes(chosen) ? chosen : best === undefined ? names[0] ?? '' : `${best.phase}-${best.step}`;
    }
    element('prompt-form').hidden = names.length === 0;
  }

  async function drawCurves() {
    const reply = await tryToPoll(() => call('GetCurves', {job_ids: [id], metrics: jobChart.metrics, max_points: CURVE_POINTS}));
    if (reply === null || view !== this_) return;
    layPhases(reply.curves, () => job.spec.phases.map(({name}) => name));
    jobChart.show(reply.curves, new Map([[id, 0]]));
  }

  async function showFile() {
    const other = element('other-job').value;
    const lines = linesOf(job.spec).join('\n');
    if (other === '') {
      element('job-file').textContent = lines;
      return;
    }
    const reply = await tryTo(() => call('GetJob', {job_id: other}));
    if (reply === null || view !== this_) return;
    element('job-file').replaceChildren(...differences(linesOf(reply.spec).join('\n'), lines).map(({kind, line}) =>
        make('span', {className: kind, textContent: kind === 'same' ? `${line}\n` : line})));
  }

  const this_ = {
    name: 'job-view', id, drawCurves, showFile, job: () => job,
    async enter() {
      element('job-heading').textContent = id;
      const reply = await tryTo(() => call('ListJobs', {newest_first: true, page_size: 1000, brief: true}));
      if (reply === null) return;
      element('other-job').replaceChildren(make('option', {value: '', textContent: 'nothing'}),
          ...reply.jobs.filter((other) => other.id !== id).map((other) => make('option', {value: other.id, textContent: other.id})));
    },
    async refresh() {
      const before = job;
      const reply = await tryToPoll(() => call('GetJob', {job_id: id}));
      if (reply === null || view !== this_) return;
      job = reply;
      await readEvents();
      if (view !== this_) return;
      showFacts();
      showSamples();
      if (before === null) showFile();
      // What has ended changes no more.
      if (before !== null && before.state === job.state && ['SUCCEEDED', 'FAILED', 'CANCELLED', 'PAUSED'].includes(job.state)) return;
      await showCheckpoints();
      jobChart.offer([...Object.keys(last?.statistics ?? {}).map((name) => `train/${name}`),
                      ...Object.keys(evaluated?.statistics ?? {}).map((name) => `held_out/${name}`)]);
      await drawCurves();
    },
  };
  return this_;
}

const QUESTIONS = {
  pause: ['PauseJob', (id) => `Pause ${id}? It checkpoints and makes room for the next job.`, 'Pause it'],
  resume: ['ResumeJob', (id) => `Resume ${id}? It waits for its turn and goes on from its last checkpoint.`, 'Resume it'],
  cancel: ['CancelJob', (id) => `Cancel ${id}? Its checkpoints stay.`, 'Cancel it'],
  delete: ['DeleteJob', (id) => `Delete ${id} with all its checkpoints and files? They cannot be brought back.`, 'Delete it'],
};
for (const [action, [method, question, answer]] of Object.entries(QUESTIONS)) {
  element(action).addEventListener('click', async () => {
    const {id} = view;
    if (!await confirmed(question(id), answer)) return;
    const reply = await tryTo(() => call(method, {job_id: id}));
    if (reply === null) return;
    if (action === 'delete') {
      drawn.delete(id);
      location.hash = '#/';
    } else {
      view.refresh();
    }
  });
}
element('other-job').addEventListener('change', () => view.showFile());
element('checkpoints').addEventListener('click', async (event) => {
  const {which} = event.target.dataset;
  if (which === undefined) return;
  const {id} = view;
  tell(`Downloading ${which} …`);
  // With the token, which a plain link could not bring.
  const blob = await tryTo(() => get('/api/v1/checkpoint', {job: id, which}, showConnection, (reply) => reply.blob()));
  if (blob === null) return;
  const link = make('a', {href: URL.createObjectURL(blob), download: `${id}-${which}.tar`});
  link.click();
  URL.revokeObjectURL(link.href);
  tell(`${which} is downloaded`);
});
element('prompt-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const box = element('prompt-answer');
  const prompt = element('prompt-text').value;
  box.hidden = false;
  box.textContent = '…';
  const reply = await tryTo(() => post('/api/v1/prompt', {
    job: view.id, which: element('prompt-checkpoint').value, prompt, max_tokens: Number(element('prompt-tokens').value),
    temperature: Number(element('prompt-temperature').value), seed: Math.floor(Math.random() * 2 ** 31),
  }, showConnection, {slow: true}));
  box.hidden = reply === null;
  if (reply !== null) box.replaceChildren(make('b', {textContent: prompt}), reply.text);
});

// ---- the cluster ----

const clusterView = {
  name: 'cluster-view',
  enter() {},
  async refresh() {
    const reply = await tryToPoll(() => call('ListMembers', {}));
    if (reply === null) return;
    const shards = reply.members.filter(({role}) => role === 'shard').length;
    const workers = reply.members.length - shards;
    element('cluster-summary').textContent =
        `${workers} workers; ${shards} of ${reply.wanted_shards} shards${shards < reply.wanted_shards ? ': jobs wait for the others' : ''}`;
    setRows(element('members').tBodies[0], reply.members.map((member) => {
      const silent = Math.max(0, (Date.now() - member.last_heard_unix_ms) / 1000);
      const health = silent < 5 ? make('span', {className: 'state well', textContent: 'well'})
                                : make('span', {className: 'state ill', textContent: `silent for ${silent.toFixed(0)} s`});
      const row = make('tr', {}, cell(member.name), cell(member.role), cell(health), cell(member.address, 'code'),
                       cell(String(member.threads), 'number'), cell(bytes(member.resident_bytes), 'number'),
                       cell(member.processor), cell(member.build));
      row.dataset.id = member.id;
      return row;
    }));
  },
};

// ---- submitting ----

function newSubmitView(like) {
  return {
    name: 'submit-view',
    async enter() {
      element('checked').hidden = true;
      if (like !== undefined) {
        const job = await tryTo(() => call('GetJob', {job_id: like}));
        if (job !== null) element('submit-yaml').value = linesOf(job.spec).join('\n');
      }
      element('submit-yaml').focus();
    },
    async refresh() {},
  };
}

function submission() {
  return {job_yaml: element('submit-yaml').value, base_directory: element('submit-directory').value.trim()};
}
element('check').addEventListener('click', async () => {
  const job = await tryTo(() => call('SubmitJob', {...submission(), validate_only: true}));
  element('checked').hidden = job === null;
  if (job === null) return;
  tell('The job file is well-formed.');
  element('checked').textContent = linesOf(job.spec).join('\n');
});
element('submit-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  // Sent again after a lost connection, it makes no second job.
  const request = {...submission(), idempotency_key: crypto.randomUUID?.() ?? String(Math.random())};
  const checked = await tryTo(() => call('SubmitJob', {...request, validate_only: true}));
  if (checked === null || !await confirmed(`Submit ${checked.spec.name}?`, 'Submit it')) return;
  const job = await tryTo(() => call('SubmitJob', request));
  if (job !== null) location.hash = `#/job/${job.id}`;
});

// ---- moving about ----

async function summarise() {
  const [members, running, queued] = await Promise.all([
    call('ListMembers', {}), call('ListJobs', {states: ['RUNNING', 'PREPARING'], page_size: 1, brief: true}),
    call('ListJobs', {states: ['QUEUED'], page_size: 1, brief: true}),
  ]);
  const shards = members.members.filter(({role}) => role === 'shard').length;
  element('summary').textContent = `${running.total} running, ${queued.total} queued · ` +
      `${members.members.length - shards} workers, ${shards}/${members.wanted_shards} shards`;
}

async function poll() {
  clearTimeout(timer);
  const polled = view;
  if (!document.hidden) {
    await polled.refresh();
    await tryToPoll(summarise);
  }
  if (view === polled) {
    clearTimeout(timer);
    timer = setTimeout(poll, POLL_MS);
  }
}

async function go() {
  const [, page = '', name] = location.hash.slice(1).split('/');
  if (page === 'jobs' && name) drawn = new Map(name.split(',').slice(0, 100).map((id, i) => [decodeURIComponent(id), i]));
  const next = page === 'job' && name ? newJobView(decodeURIComponent(name))
             : page === 'cluster'     ? clusterView
             : page === 'submit'      ? newSubmitView(name && decodeURIComponent(name))
                                      : jobsView;
  view = next;
  for (const section of document.querySelectorAll('main > section')) section.hidden = section.id !== next.name;
  for (const link of document.querySelectorAll('nav a')) {
    const here = link.getAttribute('href') === `#/${['job', 'jobs'].includes(page) ? '' : page}`;
    if (here) link.setAttribute('aria-current', 'page'); else link.removeAttribute('aria-current');
  }
  tell('');
  showTrouble('asked', '');
  showTrouble('polled', '');
  element('main').focus({preventScroll: true});
  await next.enter();
  if (view === next) poll();
}

function moveTo(row) {
  if (jobs.length === 0) return;
  at = Math.max(0, Math.min(row, jobs.length - 1));
  showJobs();
  element('jobs-table').tBodies[0].rows[at].querySelector('a').focus();
}

addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector('dialog[open]') !== null) return;
  if (event.target.matches('input:not([type=checkbox]), textarea, select')) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  const keys = {
    '/': () => {
      finding = view !== jobsView;
      location.hash = '#/';
      element('filter').focus();
    },
    'j': () => view === jobsView && moveTo(at + 1),
    'k': () => view === jobsView && moveTo(at - 1),
    'x': () => view === jobsView && at >= 0 && draw(jobs[at].id, !drawn.has(jobs[at].id)),
    'g': () => { location.hash = '#/'; },
    'c': () => { location.hash = '#/cluster'; },
    'n': () => { location.hash = '#/submit'; },
    '?': () => element('help').showModal(),
  };
  if (keys[event.key] === undefined) return;
  event.preventDefault();
  keys[event.key]();
});
element('help-button').addEventListener('click', () => element('help').showModal());
element('token-dialog').addEventListener('close', () => {
  const token = element('token').value.trim();
  element('token').value = '';
  if (token !== '') rememberToken(token);
  go();
});
addEventListener('hashchange', go);
document.addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  compareChart.draw();
  jobChart.draw();
});
takeTokenFromLink();
go();
