// Runs docs/deploy.md: every line of its sh blocks as it stands, in order, with the real kubectl, against
// deploy/tests/cluster.mjs in place of a cluster; looks at what came out. Called by deploy/tests/run.
//   node document.mjs local|production [--have-image]   the blocks without TLS, or those under "TLS and tokens"
//   node document.mjs --paper [MILLRACE TOOLS_FOLDER]   the lines that need no container, without any; part of ./test
import {spawn, spawnSync} from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';

import {here, sources, Tools} from './tools.mjs';

const flags = process.argv.slice(2);
const paper = flags.includes('--paper');
const [millrace = path.join(sources, 'build/bin/millrace'), toolsFolder = path.join(sources, 'build/deploy-tools')] =
    paper ? flags.filter((flag) => flag !== '--paper') : [];
const tools = Tools.install(toolsFolder);

// The document's blocks: {title, lines}.
const blocks = [];
let title = '';
let inside = null;
for (const line of fs.readFileSync(path.join(sources, 'docs/deploy.md'), 'utf8').split('\n')) {
  if (line.startsWith('## ')) title = line.slice(3);
  if (!line.startsWith('```'))
    inside?.push(line);
  else if (line === '```sh')
    blocks.push({title, lines: inside = []});
  else
    inside = null;
}
const kSecured = 'TLS and tokens';
const kFirst = blocks[0];

// ---- where it runs: a folder that looks like the sources ----

const work = fs.mkdtempSync(path.join(os.tmpdir(), 'millrace-document-'));
for (const name of ['deploy', 'examples']) fs.symlinkSync(path.join(sources, name), path.join(work, name));
fs.mkdirSync(path.join(work, 'build/bin'), {recursive: true});
fs.symlinkSync(millrace, path.join(work, 'build/bin/millrace'));
const clusterFolder = path.join(work, 'cluster');
const environment = {
  ...process.env,
  PATH: `${path.join(here, 'bin')}:${tools.folder}:${process.env.PATH}`,  // kind's stand-in; kubectl
  KUBECONFIG: path.join(work, 'kubeconfig'),
  KUBECACHEDIR: path.join(work, 'cache'),
  CLUSTER_FOLDER: clusterFolder,
  CLUSTER_FLAGS: `${tools.folder}${paper ? ' --paper' : ''}`,
};

const rows = [];
const forwards = [];

function shell(line, cwd, seconds) {
  return new Promise((resolve) => {
    const child =
        spawn('bash', ['-c', line], {cwd, env: environment, stdio: ['ignore', 'pipe', 'pipe'], detached: true});
    const timer = setTimeout(() => process.kill(-child.pid, 'SIGKILL'), 1000 * seconds);
    let out = '', err = '';
    child.stdout.on('data', (text) => {
      out += text;
    });
    child.stderr.on('data', (text) => {
      err += text;
    });
    child.on('close', (status) => {
      clearTimeout(timer);
      resolve({status, out, err});
    });
  });
}

// A forwarded port stays open beside what follows.
function forward(line) {
  return new Promise((resolve) => {
    const child =
        spawn('bash', ['-c', `exec ${line}`], {cwd: work, env: environment, stdio: ['ignore', 'pipe', 'pipe']});
    forwards.push(child);
    const done = {status: 0, out: '', err: ''};
    const wanted = line.match(/\b\d+:\d+\b/g).length;
    const look = (text) => {
      done.out += text;
      if ((done.out.match(/Forwarding from 127\.0\.0\.1:/g) ?? []).length === wanted) resolve(done);
    };
    child.stdout.on('data', look);
    child.stderr.on('data', (text) => {
      done.err += text;
    });
    child.on('exit', (status) => resolve({...done, status: status ?? 1}));
  });
}

function isFree(port) {
  return new Promise((resolve) => {
    const server = net.createServer().on('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}

// ---- what has to come out ----

function expect(holds, what) {
  if (!holds) throw new Error(what);
}

async function statusOf(url, options = {}) {
  try {
    return (await fetch(url, {signal: AbortSignal.timeout(10_000), ...options})).status;
  } catch (error) {
    return error.cause?.code ?? error.name;
  }
}

const asked = (token) => ({
  method: 'POST',
  body: '{}',
  headers: {'Content-Type': 'application/json', ...(token ? {Authorization: `Bearer ${token}`} : {})}
});

async function lookAtPages(secured) {
  const read = (name) => fs.readFileSync(path.join(work, name), 'utf8').trim();
  const jobs = '/api/v1/jobs/ListJobs', sets = '/api/v1/ratings/sets';
  const {out} = await shell('kubectl get --namespace millrace pod millrace-coordinator-0 -o json', work, 30);
  const pod = `http://${JSON.parse(out).status.podIP}:8080`;
  const forwarded = 'http://localhost:8080';
  const cases = secured ?
      [
        ['the page, forwarded', `${forwarded}/`, {}, 200],
        ['the page, at the pod', `${pod}/`, {}, 200],
        ...[forwarded, pod].flatMap(
            (where) => [
                [`jobs without a token at ${where}`, where + jobs, asked(), 401],
                [`jobs with a wrong token at ${where}`, where + jobs, asked('x'.repeat(40)), 401],
                [`jobs with a token at ${where}`, where + jobs, asked(read('alice.token')), 200],
                [`ratings without the secret at ${where}`, where + sets, {}, 401],
                [
                  `ratings with the secret at ${where}`, where + sets,
                  {headers: {Authorization: `Bearer ${read('raters')}`}}, 200
                ],
  ]),
      ] :
      [
        ['the page, forwarded', `${forwarded}/`, {}, 200],
        ['jobs, forwarded', forwarded + jobs, asked(), 200],
        ['the page, at the pod', `${pod}/`, {}, 'ECONNREFUSED'],
      ];
  for (const [what, url, options, wanted] of cases) {
    const status = await statusOf(url, options);
    expect(status === wanted, `${what}: ${status}, not ${wanted}`);
  }
  return `${cases.length} requests to the pages answered or refused as they should be`;
}

const golden = /^f32 ([0-9a-f]{64})/m.exec(fs.readFileSync(path.join(sources, 'tests/golden/tiny.digest'), 'utf8'))[1];

// By how a line begins: what it has to print, or do. Returns what to tell.
const checks = [
  [/^kubectl wait .*job\//, ({out}) => expect(/condition met/.test(out), 'the Job is not complete')],
  [/^kubectl logs/, ({out}) => expect(paper || /\b60\b/.test(out), 'the log does not tell of step 60')],
  [/^kubectl port-forward/, (_, secured) => lookAtPages(secured)],
  [
    /^build\/bin\/millrace digest/,
    ({out}) => expect(out.includes(golden), `not the digest of tests/golden/tiny.digest: ${out}`)
  ],
  [/^build\/bin\/millrace generate/, ({out}) => expect(out.trim().length > 8, 'no text')],
  [
    /^build\/bin\/millrace submit .*--watch/,
    ({out, err}) => expect(/succeeded/i.test(out + err), 'the job has not succeeded')
  ],
  [/^build\/bin\/millrace jobs/, ({out}) => expect(/^tiny\b.*succeeded/m.test(out), 'tiny has not succeeded')],
  [/^curl/, ({out}) => expect(JSON.parse(out).jobs.some(({id}) => id === 'tiny'), 'tiny is not listed')],
  [
    /^kubectl scale/,
    async () => {
      const wait =
          await shell('kubectl rollout status deployment/millrace-worker --namespace millrace --timeout=60s', work, 90);
      expect(wait.status === 0, wait.err);
      const {out} = await shell(
          'kubectl get pods --namespace millrace --selector app.kubernetes.io/component=worker -o json', work, 30);
      expect(JSON.parse(out).items.length === 4, 'there are not 4 workers');
    }
  ],
  [
    /^kubectl delete pod/,
    async () => {
      const wait = await shell(
          'kubectl wait --namespace millrace --for=jsonpath={.status.readyReplicas}=2 --timeout=60s statefulset/millrace-shard',
          work, 90);
      expect(wait.status === 0, wait.err);
    }
  ],
  [
    /^build\/bin\/millrace watch/,
    async ({out, err}) => {
      expect(/succeeded/i.test(out + err), 'the job has not succeeded');
      expect(/a shard leaves at step \d+/.test(out + err), `the job does not tell of the shard that went: ${out}`);
      const alone = path.join(work, 'alone');
      const run = async (args) => (await shell(`build/bin/millrace ${args}`, work, 300)).out.trim();
      await run(`train examples/tiny.yaml --set phases.0.stop.max_steps=1000 --dir ${alone}`);
      const there = await run('digest tiny-3@last --coordinator localhost:7400');
      const here = await run(`digest tiny@last --dir ${alone}`);
      expect(/[0-9a-f]{64}/.test(there) && there === here, `weights ${there}, and ${here} without any fault`);
      return 'weights as without any fault';
    }
  ],
];

// What the document leaves to whoever installs.
async function before(line) {
  if (!/^kubectl apply -k .*overlays\/production/.test(line)) return;
  const claim = {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: {name: 'millrace-text', namespace: 'millrace'},
    spec: {accessModes: ['ReadOnlyMany'], resources: {requests: {storage: '1Gi'}}}
  };
  fs.writeFileSync(path.join(work, 'claim.json'), JSON.stringify(claim));
  const {status, err} = await shell('kubectl apply -f claim.json', work, 30);
  expect(status === 0, err);
  fs.mkdirSync(path.join(clusterFolder, 'claims/millrace-text/tiny'), {recursive: true});
  fs.copyFileSync(
      path.join(sources, 'examples/tiny.txt'), path.join(clusterFolder, 'claims/millrace-text/tiny/tiny.txt'));
}

const kOnPaper = /^(kind (create|delete)|kubectl|for |openssl|build\/bin\/millrace certs)/;
const kMakesImage = /^(\.\/quickstart|deploy\/build-image|kind load)/;

async function runLine(line, block) {
  if (paper && !kOnPaper.test(line)) return;
  if (paper && line.startsWith('kubectl port-forward') && !(await isFree(7400) && await isFree(8080))) {
    console.error(`SKIPPED, port 7400 or 8080 of this machine is taken: ${line}`);
    return;
  }
  if (flags.includes('--have-image') && /^(\.\/quickstart|deploy\/build-image)/.test(line)) return;
  await before(line);
  console.log(`== ${line}`);
  const begun = Date.now();
  // The image is made where the sources are.
  const done = line.startsWith('kubectl port-forward') ?
      await forward(line) :
      await shell(line, kMakesImage.test(line) ? sources : work, kMakesImage.test(line) ? 3600 : 660);
  const seconds = (Date.now() - begun) / 1000;
  let said;
  try {
    expect(done.status === 0, `status ${done.status}`);
    for (const [pattern, check] of checks) {
      if (pattern.test(line) && !(paper && /port-forward/.test(line)))
        said = await check(done, block.title === kSecured) ?? said;
    }
  } catch (error) {
    console.error(`${done.out}${done.err}\ndocs/deploy.md, "${block.title}": ${line}\n${error.message}`);
    throw error;
  }
  if (said) console.log(`   ${said}`);
  rows.push([line, seconds]);
}

// What has to fail on paper: a test that lets these pass would let anything pass.
const kWrong = [
  ['kubectl wait --namespace millrace --for=condition=complete --timout=10m job/tiny', /unknown flag/],
  ['kubectl apply -k deploy/kubernetes/overlays/nowhere', /no such file|must build at directory/],
  ['kubectl create configmap x --namespace nowhere --from-literal=a=b', /namespaces "nowhere" not found/],
  ['kubectl create configmap tiny --namespace millrace --from-literal=a=b', /already exists/],
  ['kubectl scale deployment/millrace-workers --namespace millrace --replicas=4', /not found/],
  ['kubectl logs --namespace millrace job/small', /not found/],
  ['kubectl port-forward --namespace millrace pod/millrace-coordinator 7400:7400', /not found/],
  [
    `echo '{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "namespace": "millrace"}, "spec": {"port": []}}' | kubectl apply -f -`,
    /no such field/
  ],
  [
    `echo '{"apiVersion": "v1", "kind": "Servise", "metadata": {"name": "x", "namespace": "millrace"}}' | kubectl apply -f -`,
    /no matches for kind|error validating/
  ],
  ['kubectl wait --namespace millrace --for=condition=failed --timeout=1s job/tiny', /timed out/],
];

async function tryWrong() {
  for (const [line, pattern] of kWrong) {
    const {status, out, err} = await shell(line, work, 60);
    expect(status !== 0 && pattern.test(err), `${line}: status ${status}: ${out}${err}`);
  }
  console.log(`${kWrong.length} wrong commands fail as they should.`);
}

async function main() {
  const secured = flags.includes('production');
  const chosen = blocks.filter((block) => paper || (block.title === kSecured) === secured);
  expect(kFirst.lines.length <= 8, `docs/deploy.md takes ${kFirst.lines.length} commands to a finished job`);
  for (const port of paper ? [] : [7400, 8080]) expect(await isFree(port), `port ${port} of this machine is taken`);
  for (const block of chosen) {
    if (block.title === kSecured && !fs.existsSync(environment.KUBECONFIG)) {
      // A cluster and an image are there already, says the document.
      await runLine('kind create cluster', block);
      await runLine('kind load image-archive build/image/millrace.tar', block);
    }
    for (const line of block.lines.filter((line) => line !== '' && !line.startsWith('#'))) {
      await runLine(line, block);
      if (paper && line.startsWith('kubectl logs')) await tryWrong();
      if (line === 'kind delete cluster') forwards.splice(0).forEach((child) => child.kill());
    }
  }
}

let failed = false;
try {
  const stopped = new Promise((_, reject) => {
    for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => reject(new Error(signal)));
  });
  await Promise.race([main(), stopped]);
} catch (error) {
  failed = true;
  console.error(error.message);
  const log = path.join(clusterFolder, 'log');
  if (fs.existsSync(log)) console.error(`---- the cluster\n${fs.readFileSync(log, 'utf8').slice(-3000)}`);
  if (!paper && fs.existsSync(environment.KUBECONFIG)) {
    const pods =
        'kubectl get pods --namespace millrace -o name | while read -r pod; do echo "---- $pod"; kubectl logs --namespace millrace "$pod" | tail -n 15; done';
    console.error((await shell(pods, work, 60)).out);
  }
} finally {
  forwards.forEach((child) => child.kill());
  if (fs.existsSync(path.join(clusterFolder, 'pid'))) spawnSync('kind', ['delete', 'cluster'], {env: environment});
  fs.rmSync(work, {recursive: true, force: true});
}
console.log(`\n${rows.map(([line, seconds]) => `${seconds.toFixed(1).padStart(7)} s  ${line}`).join('\n')}`);
const total = rows.reduce((sum, [, seconds]) => sum + seconds, 0);
console.log(
    `${rows.length} of docs/deploy.md's commands ran, ${total.toFixed(0)} s, ${failed ? 'one failed' : 'all well'}.`);
process.exit(failed ? 1 : 0);
