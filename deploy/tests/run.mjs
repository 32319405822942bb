// Runs overlays/local by podman, trains in it, takes pods away in every way, and compares the weights with those of
// `millrace train` on this machine. Called by deploy/tests/run.
import {execFileSync, spawnSync} from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {Pods} from './pods.mjs';
import {sources, Tools} from './tools.mjs';

const millrace = path.join(sources, 'build/bin/millrace');
const tools = Tools.install(path.join(sources, 'build/deploy-tools'));
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'millrace-pods-'));
const objects = [...tools.render(path.join(sources, 'deploy/kubernetes/overlays/local')),
                 ...tools.render(path.join(sources, 'deploy/kubernetes/jobs/tiny'))];
const pods = new Pods(objects, millrace, work, 'millrace-test');
// What `kubectl create configmap tiny --from-file=…` makes.
const given = {tiny: Object.fromEntries(['tiny.yaml', 'tiny.txt'].map(
                   (name) => [name, fs.readFileSync(path.join(sources, 'examples', name), 'utf8')]))};

const rows = [];
let failures = 0;
function record(fault, happened, well) {
  rows.push([fault, happened, well ? 'yes' : 'NO']);
  if (!well) ++failures;
  console.log(`${well ? 'ok  ' : 'FAIL'} ${fault}: ${happened}`);
}

const run = (args, options = {}) => execFileSync(millrace, args, {encoding: 'utf8', ...options}).trim();
const [coordinatorPod] = [() => pods.of('millrace-coordinator')[0]];
const at = () => `${coordinatorPod().address}:7400`;
const jobs = () => JSON.parse(run(['jobs', '--json', '--coordinator', at()]));
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
  const job = JSON.parse(run(['submit', path.join(sources, 'examples/tiny.yaml'), '--json', '--coordinator', at(),
                              ...[...overrides, 'data.sources.0.path=/text/tiny/tiny.txt'].flatMap((o) => ['--set', o])]));
  return job.id;
}

const kLong = ['phases.0.stop.max_steps=400'];
// No checkpoint is due before the end.
const kWithoutCheckpoints = [...kLong, 'phases.0.checkpoint.every_steps=100000', 'phases.0.evaluate.every_steps=100000'];

// Submits from outside, does `harm` at step 100, and compares the end.
function fault(name, overrides, harm) {
  const begun = Date.now();
  const id = submit(overrides);
  awaitJob(id, 'step 100', (job) => Number(job.step) >= 100 || ended(job));
  const what = harm(id);
  const job = awaitJob(id, 'its end', ended);
  const digest = job.state.toLowerCase() === 'succeeded' ? run(['digest', `${id}@last`, '--coordinator', at()]) : job.state;
  const same = digest === reference(overrides);
  record(name, `${what}; ended after ${((Date.now() - begun) / 1000).toFixed(1)} s, weights ${same ? 'the same' : `other: ${digest}`}`, same);
}
const logsOf = (id) => run(['logs', id, '--coordinator', at()]);

function main() {
  pods.close();
  pods.open();
  const begun = Date.now();
  const [coordinator] = pods.scale('millrace-coordinator', undefined, given);
  const shards = pods.scale('millrace-shard');
  const workers = pods.scale('millrace-worker');
  for (const pod of [coordinator, ...shards, ...workers]) pods.awaitReady(pod);
  record('start', `${pods.pods.size} pods ready after ${((Date.now() - begun) / 1000).toFixed(1)} s`, true);
  const checked = [...pods.pods.values()].filter((pod) => pods.podman(['healthcheck', 'run', pod.container], {mayFail: true}).status === 0);
  record('container health checks', `${checked.length} of ${pods.pods.size} healthy`, checked.length === pods.pods.size);

  // In the cluster, as `kubectl apply -k deploy/kubernetes/jobs/tiny` does it.
  const inside = pods.runToEnd(pods.workload('tiny'), given);
  const golden = /^f32 ([0-9a-f]{64})/m.exec(fs.readFileSync(path.join(sources, 'tests/golden/tiny.digest'), 'utf8'))[1];
  const digest = inside.status === 0 ? run(['digest', 'tiny@last', '--coordinator', at()]) : inside.log;
  record('no fault, submitted by a Job in the cluster', `status ${inside.status}, weights ${digest === golden ? 'as tests/golden/tiny.digest' : digest}`,
         inside.status === 0 && digest === golden);

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
    const checkpoints = JSON.parse(run(['checkpoints', id, '--json', '--coordinator', at()]));
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
    const checkpoints = JSON.parse(run(['checkpoints', id, '--json', '--coordinator', at()]));
    if (status !== 0 || !checkpoints.some(({step}) => Number(step) >= before)) throw new Error(`status ${status}`);
    return `status 0 after ${seconds.toFixed(1)} s, checkpointed first`;
  });
  fault('workers are scaled from 2 to 4', kLong, () => {
    const all = pods.scale('millrace-worker', 4);
    all.forEach((pod) => pods.awaitReady(pod));
    return `${all.length} ready`;
  });

  const metrics = execFileSync('curl', ['--silent', '--fail', `http://${coordinatorPod().address}:9400/metrics`], {encoding: 'utf8'});
  record('metrics', 'the coordinator counts steps', /^millrace_steps_total\S* [1-9]/m.test(metrics) || /^millrace_\S*steps_total\S* [1-9]/m.test(metrics));
  for (const pod of [...pods.of('millrace-worker'), ...pods.of('millrace-shard'), coordinatorPod()]) {
    const {status, seconds, log} = pods.evict(pod);
    record(`${pod.name} ends`, `status ${status} after ${seconds.toFixed(1)} s`, status === 0);
    if (status !== 0) console.error(log.slice(-2000));
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
