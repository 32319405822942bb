// Calls the coordinator (docs/ratings.md and coordinator/page_http.h have the requests).

const TOKEN = 'millrace-token';
const TIMEOUT_MS = 10000;
const SLOW_TIMEOUT_MS = 300000;
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 5000;

// The coordinator understood, and said no.
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// A link may bring the token once, best behind #, which no server and no proxy gets to see; it is kept for this tab and
// taken out of the address.
export function takeTokenFromLink() {
  take();
  // Another link to the same page does not load it again.
  addEventListener('hashchange', () => {
    if (take()) location.reload();
  });
}

function take() {
  const address = new URL(location.href);
  const behind = address.hash.startsWith('#token=') ? address.hash.slice('#token='.length) : null;
  const token = behind ?? address.searchParams.get('token');
  if (token === null) return false;
  rememberToken(token);
  if (behind !== null) address.hash = '';
  address.searchParams.delete('token');
  history.replaceState(null, '', address);
  return true;
}

// For this tab, from now on.
export function rememberToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

async function once(path, {read = (reply) => reply.json(), slow = false, ...options}) {
  const headers = {...options.headers};
  const token = sessionStorage.getItem(TOKEN);
  if (token !== null) headers.Authorization = `Bearer ${token}`;
  const reply = await fetch(path, {
    ...options, headers, cache: 'no-store', credentials: 'omit', signal: AbortSignal.timeout(slow ? SLOW_TIMEOUT_MS : TIMEOUT_MS),
  });
  if (reply.ok) return read(reply);
  throw new Refused(reply.status, (await reply.json()).error.message);
}

// Resolves after a pause, or when the network comes back.
function pause(milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, milliseconds);
    function done() {
      clearTimeout(timer);
      removeEventListener('online', done);
      resolve();
    }
    addEventListener('online', done);
  });
}

// Sends the same request until the coordinator answers; all of ours may be repeated. `onTrouble` hears why it did not,
// after each attempt. Throws Refused for an answer that another attempt would not change.
async function untilAnswered(path, options, onTrouble) {
  for (let wait = FIRST_PAUSE_MS;; wait = Math.min(2 * wait, LONGEST_PAUSE_MS)) {
    try {
      return await once(path, options);
    } catch (error) {
      if (error instanceof Refused && error.status < 500) throw error;
      onTrouble(error instanceof Refused ? error.message : 'Connection lost: the coordinator does not answer.');
    }
    await pause(wait);
  }
}

// `read`: what is made of the reply, if not JSON, which may take long.
export function get(path, parameters, onTrouble, read) {
  const options = read === undefined ? {} : {read, slow: true};
  return untilAnswered(`${path}?${new URLSearchParams(parameters)}`, {method: 'GET', ...options}, onTrouble);
}

export function post(path, body, onTrouble, {slow = false} = {}) {
  const headers = {'Content-Type': 'application/json'};
  return untilAnswered(path, {method: 'POST', headers, slow, body: JSON.stringify(body)}, onTrouble);
}
