// Runs an overlay by podman, trains in it, takes pods away in every way, and compares the weights with those of
// `millrace train` on this machine. Called by deploy/tests/run.
//   node run.mjs local|production
import {execFileSync, spawnSync} from 'node:child_process';
import {randomUUID} from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {sign} from './certificates.mjs';
import {Pods} from './pods.mjs';
import {sources, Tools} from './tools.mjs';

const millrace = path.join(sources, 'build/bin/millrace');
const tools = Tools.install(path.join(sources, 'build/deploy-tools'));
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'millrace-pods-'));
const [overlay] = process.argv.slice(2);
const encrypted = overlay === 'production';
const objects = [...tools.render(path.join(sources, 'deploy/kubernetes/overlays', overlay)),
                 ...tools.render(path.join(sources, 'deploy/kubernetes/jobs', encrypted ? 'tiny-tls' : 'tiny'))];
const version = /^project\(millrace VERSION ([0-9.]+)/m.exec(fs.readFileSync(path.join(sources, 'CMakeLists.txt'), 'utf8'))[1];
const pods = new Pods(objects, millrace, `localhost/millrace:${version}`, work, 'millrace-test');

// ---- what whoever installs makes beside the manifests (docs/deploy.md) ----

// Of `kubectl create configmap tiny --from-file=…`.
const given = {tiny: Object.fromEntries(['tiny.yaml', 'tiny.txt'].map(
                   (name) => [name, fs.readFileSync(path.join(sources, 'examples', name), 'utf8')]))};
const clientFlags = [];
if (encrypted) {
  const text = path.join(work, 'text');
  fs.mkdirSync(path.join(text, 'tiny'), {recursive: true});
  for (const [name, content] of Object.entries(given.tiny)) fs.writeFileSync(path.join(text, 'tiny', name), content);
  given['millrace-text'] = text;

  // The authority and the people's certificates are `millrace certs`', those of roles what cert-manager would sign.
  const certs = path.join(work, 'certs');
  execFileSync(millrace, ['certs', '--out', certs]);
  Object.assign(given, signed());
  const token = spawnSync(millrace, ['certs', 'token', 'tester', 'operator'], {encoding: 'utf8'});
  given['millrace-tokens'] = {tokens: token.stderr, raters: 'r'.repeat(32)};
  given['millrace-client-token'] = {token: token.stdout};
  fs.mkdirSync(path.join(work, 'client'));
  fs.copyFileSync(path.join(certs, 'operator/ca.crt'), path.join(work, 'client/ca.crt'));
  fs.writeFileSync(path.join(work, 'token'), token.stdout, {mode: 0o600});
  clientFlags.push('--tls', path.join(work, 'client'), '--token-file', path.join(work, 'token'));
}

// What cert-manager puts into the Secrets of deploy/kubernetes/cert-manager, with new keys each time.
function signed() {
  const secrets = {};
  for (const certificate of tools.render(path.join(sources, 'deploy/kubernetes/cert-manager'))) {
    if (certificate.kind !== 'Certificate' || certificate.spec.isCA) continue;
    const {secretName} = certificate.spec;
    // Below, this machine calls the coordinator by its address.
    const addresses = secretName === 'millrace-coordinator-tls' ? pods.possibleAddresses() : [];
    secrets[secretName] = sign(certificate, path.join(work, 'certs'), addresses, path.join(work, secretName));
  }
  return secrets;
}

const rows = [];
let failures = 0;
function record(fault, happened, well) {
  rows.push([fault, happened, well ? 'yes' : 'NO']);
  if (!well) ++failures;
  console.log(`${well ? 'ok  ' : 'FAIL'} ${fault}: ${happened}`);
}

const run = (args, options = {}) => execFileSync(millrace, args, {encoding: 'utf8', ...options}).trim();
const coordinatorPod = () => pods.of('millrace-coordinator')[0];
const there = () => ['--coordinator', `${coordinatorPod().address}:7400`, ...clientFlags];
const jobs = () => JSON.parse(run(['jobs', '--json', ...there()]));
const jobOf = (id) => jobs().find((job) => job.id === id);
const pause = (seconds) => execFileSync('sleep', [String(seconds)]);

function awaitJob(id, what, holds, seconds = 120) {
  const until = Date.now() + 1000 * seconds;
  for (;;) {
    let job;
    try {
      job = jobOf(id);
    } catch (error) {
      if (Date.now() > until) throw error;
    }
    if (job !== undefined && holds(job)) return job;
    if (Date.now() > until) throw new Error(`${id}: waited ${seconds} s for ${what}: ${JSON.stringify(job)}`);
    pause(0.05);
  }
}
const ended = (job) => !['queued', 'preparing', 'running'].includes(job.state.toLowerCase());

// The same on one machine: what the weights have to be.
const references = new Map();
function reference(overrides) {
  const key = overrides.join(' ');
  if (!references.has(key)) {
    const directory = path.join(work, `reference-${references.size}`);
    run(['train', path.join(sources, 'examples/tiny.yaml'), '--dir', directory, ...overrides.flatMap((o) => ['--set', o])],
        {stdio: ['ignore', 'pipe', 'pipe']});
    references.set(key, run(['digest', 'tiny@last', '--dir', directory]));
  }
  return references.get(key);
}

function submit(overrides) {
  const job = JSON.parse(run(['submit', path.join(sources, 'examples/tiny.yaml'), '--json', ...there(),
                              ...[...overrides, 'data.sources.0.path=/text/tiny/tiny.txt'].flatMap((o) => ['--set', o])]));
  return job.id;
}

const kLong = ['phases.0.stop.max_steps=400'];
// No checkpoint is due before the end.
const kWithoutCheckpoints = [...kLong, 'phases.0.checkpoint.every_steps=100000', 'phases.0.evaluate.every_steps=100000'];

// The most seconds between two steps that lasted, of those that are told of, every 0.3 s or so.
function longestPause(id) {
  const [curve] = JSON.parse(run(['curves', id, '--metric', 'train_loss', '--json', ...there()])).curves;
  return Math.max(...curve.unix_ms.slice(1).map((time, i) => time - curve.unix_ms[i])) / 1000;
}

// Submits from outside, does `harm` at step 100, and compares the end.
function fault(name, overrides, harm) {
  const begun = Date.now();
  const id = submit(overrides);
  awaitJob(id, 'step 100', (job) => Number(job.step) >= 100 || ended(job));
  const what = harm(id);
  const job = awaitJob(id, 'its end', ended);
  const digest = job.state.toLowerCase() === 'succeeded' ? run(['digest', `${id}@last`, ...there()]) : job.state;
  const same = digest === reference(overrides);
  record(name, `${what}; longest time without a step that lasted ${longestPause(id).toFixed(1)} s, all ${((Date.now() - begun) / 1000).toFixed(1)} s, weights ${same ? 'the same' : `other: ${digest}`}`, same);
}
const logsOf = (id) => run(['logs', id, ...there()]);

function main() {
  pods.close();
  pods.open();
  const begun = Date.now();
  const [coordinator] = pods.scale('millrace-coordinator', undefined, given);
  const shards = pods.scale('millrace-shard', undefined, given);
  // This is one machine, whatever the overlay says.
  const workers = pods.scale('millrace-worker', 2, given);
  for (const pod of [coordinator, ...shards, ...workers]) pods.awaitReady(pod);
  record('start', `${pods.pods.size} pods ready after ${((Date.now() - begun) / 1000).toFixed(1)} s`, true);
  const checked = [...pods.pods.values()].filter((pod) => pods.podman(['healthcheck', 'run', pod.container], {mayFail: true}).status === 0);
  record('container health checks', `${checked.length} of ${pods.pods.size} healthy`, checked.length === pods.pods.size);

  // In the cluster, as `kubectl apply -k deploy/kubernetes/jobs/tiny` does it.
  const job = pods.workload('tiny');
  job.spec.template.metadata.labels['batch.kubernetes.io/controller-uid'] = randomUUID();
  const inside = pods.runToEnd(job, given);
  const golden = /^f32 ([0-9a-f]{64})/m.exec(fs.readFileSync(path.join(sources, 'tests/golden/tiny.digest'), 'utf8'))[1];
  const digest = inside.status === 0 ? run(['digest', 'tiny@last', ...there()]) : inside.log;
  record('no fault, submitted by a Job in the cluster', `status ${inside.status}, weights ${digest === golden ? 'as tests/golden/tiny.digest' : digest}`,
         inside.status === 0 && digest === golden);
  const again = pods.runToEnd(job, given);
  record('another attempt of that Job', `status ${again.status}, ${jobs().length} job submitted in all`, again.status === 0 && jobs().length === 1);

  if (encrypted) {
    // All roles get new certificates, and show them; what follows goes on with them.
    const renewed = signed();
    Object.assign(given, renewed);
    const shown = (pod, port) => {
      const {stdout} = spawnSync('openssl', ['s_client', '-connect', `${pod.address}:${port}`, '-alpn', 'h2'], {encoding: 'utf8', input: ''});
      return /-----BEGIN CERTIFICATE-----[^]*?-----END CERTIFICATE-----/.exec(stdout)?.[0];
    };
    const servers = [[pods.of('millrace-coordinator')[0], 'millrace-coordinator-tls', 7400],
                     ...pods.of('millrace-shard').map((pod) => [pod, 'millrace-shard-tls', 7401])];
    const exchanged = Date.now();
    for (const pod of pods.of('millrace-worker')) pods.exchange(pod, 'millrace-worker-tls', renewed['millrace-worker-tls']);
    for (const [pod, secret] of servers) pods.exchange(pod, secret, renewed[secret]);
    const left = () => servers.filter(([pod, secret, port]) => shown(pod, port) !== renewed[secret]['tls.crt'].trim());
    while (left().length > 0 && Date.now() < exchanged + 30_000) pause(0.2);
    record('certificates are renewed', `${servers.length - left().length} of ${servers.length} servers show theirs after ${((Date.now() - exchanged) / 1000).toFixed(1)} s`,
           left().length === 0);
  }

  fault('a worker is killed', kLong, () => {
    const [worker] = pods.of('millrace-worker');
    pods.kill(worker);
    return `${pods.replace(worker).name} takes its place`;
  });
  fault('a worker is evicted', kLong, () => {
    const [worker] = pods.of('millrace-worker');
    const {status, seconds} = pods.evict(worker);
    if (status !== 0) throw new Error(`status ${status}`);
    pods.replace(worker);
    return `status 0 after ${seconds.toFixed(1)} s, another takes its place`;
  });
  fault('a shard is killed', kLong, () => {
    const [shard] = pods.of('millrace-shard');
    pods.kill(shard);
    const other = pods.replace(shard);
    return `${other.name} comes back at ${other.address}, was at ${shard.address}`;
  });
  fault('a shard is evicted, no checkpoint due', kWithoutCheckpoints, (id) => {
    const [shard] = pods.of('millrace-shard');
    const {status, seconds} = pods.evict(shard);
    const said = /a shard leaves at step (\d+), which is checkpointed/.exec(logsOf(id));
    const checkpoints = JSON.parse(run(['checkpoints', id, '--json', ...there()]));
    pods.replace(shard);
    if (status !== 0 || said === null) throw new Error(`status ${status}: ${logsOf(id)}`);
    if (!checkpoints.some(({step}) => Number(step) === Number(said[1]))) throw new Error(`no checkpoint of ${said[1]}`);
    return `status 0 after ${seconds.toFixed(1)} s, checkpointed at step ${said[1]} first, nothing computed twice`;
  });
  fault('the coordinator is killed', kLong, () => {
    const pod = coordinatorPod();
    pods.kill(pod);
    const other = pods.replace(pod);
    pods.awaitReady(other);
    return `comes back at ${other.address}, was at ${pod.address}; all find it by its name`;
  });
  fault('the coordinator is evicted, no checkpoint due', kWithoutCheckpoints, (id) => {
    const pod = coordinatorPod();
    const before = Number(jobOf(id).step);
    const {status, seconds} = pods.evict(pod);
    pods.awaitReady(pods.replace(pod));
    const checkpoints = JSON.parse(run(['checkpoints', id, '--json', ...there()]));
    if (status !== 0 || !checkpoints.some(({step}) => Number(step) >= before)) throw new Error(`status ${status}`);
    return `status 0 after ${seconds.toFixed(1)} s, checkpointed first`;
  });
  fault('workers are scaled from 2 to 4', kLong, () => {
    const all = pods.scale('millrace-worker', 4, given);
    all.forEach((pod) => pods.awaitReady(pod));
    return `${all.length} ready`;
  });

  if (encrypted) {
    const [ca] = clientFlags.slice(1);
    const refused = (what, args, pattern) => {
      const {status, stderr} = spawnSync(millrace, ['jobs', '--coordinator', `${coordinatorPod().address}:7400`, ...args], {encoding: 'utf8'});
      record(`a client ${what}`, stderr.trim().split('\n')[0], status === 1 && pattern.test(stderr));
    };
    refused('with a worker\'s certificate', ['--tls', path.join(work, 'certs/worker')], /worker/);
    fs.writeFileSync(path.join(work, 'wrong'), 'x'.repeat(40), {mode: 0o600});
    refused('with a wrong token', ['--tls', ca, '--token-file', path.join(work, 'wrong')], /token/i);
    refused('without TLS', [], /no coordinator answers/);
  }
  const metrics = execFileSync('curl', ['--silent', '--fail', `http://${coordinatorPod().address}:9400/metrics`], {encoding: 'utf8'});
  record('metrics', 'the coordinator counts steps', /^millrace_steps_total\S* [1-9]/m.test(metrics) || /^millrace_\S*steps_total\S* [1-9]/m.test(metrics));
  for (const pod of [...pods.of('millrace-worker'), ...pods.of('millrace-shard'), coordinatorPod()]) {
    const {status, seconds, log} = pods.evict(pod);
    record(`${pod.name} ends`, `status ${status} after ${seconds.toFixed(1)} s`, status === 0);
    if (status !== 0 || seconds > 5) console.error(log.slice(-2000), new Date().toISOString());
  }
}

try {
  main();
} catch (error) {
  ++failures;
  console.error(error);
  for (const pod of pods.pods.values()) console.error(`---- ${pod.name}\n${pods.logs(pod).slice(-3000)}`);
} finally {
  pods.close();
  fs.rmSync(work, {recursive: true, force: true});
}
console.log(`\n| fault | what happened | well |\n|---|---|---|\n${rows.map((row) => `| ${row.join(' | ')} |`).join('\n')}`);
process.exit(failures === 0 ? 0 : 1);
