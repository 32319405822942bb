// The rating page: shows what the coordinator says and sends what people choose.
//
// Nothing counts as saved before the coordinator has confirmed it: what is on the screen is always its last answer, and
// while a request is under way no other is made.
import {Refused, get, post, takeTokenFromLink} from './api.js';

const API = '/api/v1/ratings';
const SESSION = 'millrace-rater';
const SAID = {left: 'answer 1 is better', right: 'answer 2 is better', tie: 'a tie', skip: 'skipped'};

const element = (id) => document.getElementById(id);
const buttons = document.querySelectorAll('#actions button');

let who = null;    // {set, rater}
let state = null;  // the coordinator's last answer about it
let busy = false;

function tell(text) {
  element('status').textContent = text;
}

function showTrouble(text) {
  element('trouble').textContent = text;
  element('trouble').hidden = text === '';
}

// Runs one request at a time; `waiting` says what is not done yet as long as the coordinator does not answer. Returns
// null if it refused.
async function ask(request, waiting) {
  busy = true;
  showActions();
  try {
    const answer = await request((why) => showTrouble(`${why} ${waiting} Trying again …`));
    showTrouble('');
    return answer;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const hint = error.status === 401 ? ' Open the link that you were given, with its token.' : '';
    showTrouble(`${error.message}.${hint}`);
    tell('');
    return null;
  } finally {
    busy = false;
    showActions();
  }
}

// ---- choosing a set and a name ----

async function showStart() {
  who = null;
  state = null;
  element('rating').hidden = true;
  element('who').hidden = true;
  const list = await ask((onTrouble) => get(`${API}/sets`, {}, onTrouble), 'The sets are not there yet.');
  if (list === null) return;
  const options = list.sets.map((set) => {
    const option = document.createElement('option');
    option.value = set.id;
    option.textContent = `${set.id}: ${set.title} (${set.done} of ${set.pairs} done)`;
    return option;
  });
  element('set').replaceChildren(...options);
  element('start').hidden = false;
  if (options.length === 0) {
    tell('There are no pairs to rate yet. Load this page again later.');
    return;
  }
  tell('');
  element(options.length > 1 ? 'set' : 'rater').focus();
}

async function enter(set, rater) {
  const waiting = 'Your pairs are not there yet.';
  const answer = await ask((onTrouble) => get(`${API}/state`, {set, rater}, onTrouble), waiting);
  if (answer === null) return false;
  who = {set, rater};
  sessionStorage.setItem(SESSION, JSON.stringify(who));
  element('start').hidden = true;
  element('rating').hidden = false;
  element('who').hidden = false;
  element('who-text').textContent = rater;
  tell('');
  show(answer);
  return true;
}

function leave() {
  if (busy) return;
  sessionStorage.removeItem(SESSION);
  showStart();
}

// ---- showing ----

function showActions() {
  const pair = state === null ? null : state.pair;
  for (const button of buttons) {
    const possible = button.id === 'undo' ? state !== null && state.last !== null : pair !== null;
    // Not `disabled`: that would lose the focus.
    button.setAttribute('aria-disabled', String(busy || !possible));
  }
}

function showProgress(bar, text, value, max) {
  element(bar).max = Math.max(max, 1);
  element(bar).value = value;
  element(text).textContent = `${value} of ${max}`;
}

function show(answer) {
  state = answer;
  element('title').textContent = state.set.title;
  showProgress('mine', 'mine-text', state.rated, state.rated + state.left);
  showProgress('all', 'all-text', state.set.done, state.set.pairs);
  const pair = state.pair;
  element('pair').hidden = pair === null;
  element('finished').hidden = pair !== null;
  element('strength').value = '0';
  element('flagged').checked = false;
  element('note').value = '';
  if (pair !== null) {
    element('prompt').replaceChildren(...pair.prompt.map(messageOf));
    element('left').textContent = pair.left;
    element('right').textContent = pair.right;
  }
  showActions();
  element(pair === null ? 'finished' : 'prompt-heading').focus({preventScroll: true});
  scrollTo(0, 0);
  if (element('agreement').open) showAgreement();
}

function messageOf(message) {
  const box = document.createElement('div');
  box.className = 'message';
  const role = document.createElement('div');
  role.className = 'role';
  role.textContent = message.role;
  const text = document.createElement('div');
  text.className = 'text';
  text.dir = 'auto';
  text.textContent = message.content;
  box.append(role, text);
  return box;
}

async function showAgreement() {
  const {set} = who;
  const answer = await get(`${API}/agreement`, {set}, showTrouble);
  if (who === null || who.set !== set) return;
  showTrouble('');
  element('kappa').textContent = answer.kappa === null ?
    'No kappa yet: it takes pairs that several people have rated differently.' :
    `${answer.method} kappa ${answer.kappa.toFixed(2)} over ${answer.items} pairs`;
  element('raters').replaceChildren(...answer.raters.map((rater) => {
    const row = document.createElement('tr');
    const agrees = rater.compared === 0 ? '–' : `${Math.round(100 * rater.equal / rater.compared)} %`;
    for (const text of [rater.rater, rater.rated, rater.skipped, rater.flagged, agrees]) {
      row.insertCell().textContent = text;
    }
    return row;
  }));
}

// ---- rating ----

async function rate(choice) {
  if (busy || state === null || state.pair === null) return;
  const strength = choice === 'left' || choice === 'right' ? Number(element('strength').value) : 0;
  const body = {
    ...who, pair: state.pair.pair, choice, strength, flagged: element('flagged').checked, note: element('note').value,
  };
  tell('Saving …');
  const answer = await ask((onTrouble) => post(`${API}/rate`, body, onTrouble), 'Your rating is not saved yet.');
  if (answer === null) return;
  tell(`Saved: ${SAID[choice]}.`);
  show(answer);
}

async function undo() {
  if (busy || state === null || state.last === null) return;
  const body = {...who, pair: state.last};
  tell('Undoing …');
  const answer = await ask((onTrouble) => post(`${API}/undo`, body, onTrouble), 'Your rating is not undone yet.');
  if (answer === null) return;
  tell('Undone: rate this pair again.');
  show(answer);
}

function openMore() {
  element('more').open = true;
}

function flag() {
  openMore();
  element('flagged').checked = !element('flagged').checked;
  tell(element('flagged').checked ? 'Flagged; now choose.' : 'Not flagged.');
}

function cycleStrength() {
  openMore();
  const strength = element('strength');
  strength.selectedIndex = (strength.selectedIndex + 1) % strength.options.length;
  tell(`How much better: ${strength.selectedOptions[0].textContent}.`);
}

function writeNote() {
  openMore();
  element('note').focus();
}

const KEYS = {
  '1': () => rate('left'), 'arrowleft': () => rate('left'),
  '2': () => rate('right'), 'arrowright': () => rate('right'),
  '0': () => rate('tie'), 't': () => rate('tie'),
  's': () => rate('skip'),
  'f': flag, 'm': cycleStrength, 'n': writeNote, 'u': undo,
};

function onKey(event) {
  // A held key must not rate pair after pair.
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || element('help').open) return;
  if (event.target.closest('input:not([type=checkbox]), textarea, select') !== null) {
    if (event.key === 'Escape') element('prompt-heading').focus();
    return;
  }
  if (event.key === '?') {
    event.preventDefault();
    element('help').showModal();
    return;
  }
  const act = KEYS[event.key.toLowerCase()];
  if (act === undefined || who === null) return;
  event.preventDefault();
  act();
}

// ---- the beginning ----

function begin() {
  takeTokenFromLink();
  document.addEventListener('keydown', onKey);
  for (const button of buttons) {
    button.addEventListener('click', () => {
      if (button.getAttribute('aria-disabled') === 'true') return;
      if (button.id === 'undo') undo(); else rate(button.dataset.choice);
    });
  }
  element('help-button').addEventListener('click', () => element('help').showModal());
  element('leave').addEventListener('click', leave);
  element('agreement').addEventListener('toggle', () => element('agreement').open && showAgreement());
  element('start').addEventListener('submit', (event) => {
    event.preventDefault();
    if (!busy) enter(element('set').value, element('rater').value.trim());
  });
  const before = JSON.parse(sessionStorage.getItem(SESSION));
  if (before === null) {
    showStart();
  } else {
    enter(before.set, before.rater).then((entered) => entered || leave());
  }
}

begin();
