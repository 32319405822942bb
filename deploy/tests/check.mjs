// Holds deploy/kubernetes to Kubernetes' own schemas, with unknown fields refused, to the rules of gates.mjs and to the
// flags of the program; and makes sure that each of these would notice.
//   node check.mjs MILLRACE TOOLS_FOLDER
// Exit status 77: skipped, because npm could not fetch the tools.
import {execFileSync} from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import {external, gates} from './gates.mjs';
import {againstSchema} from './schemas.mjs';
import {sources, Tools} from './tools.mjs';

const kubernetes = path.join(sources, 'deploy/kubernetes');

// ---- the program's flags ----

const helps = new Map();
function flagsOf(millrace, command) {
  if (!helps.has(command)) {
    const help = execFileSync(millrace, [command, '--help'], {encoding: 'utf8'});
    helps.set(command, new Set([...help.matchAll(/--([a-z][a-z-]*)/g)].map(([, name]) => name)));
  }
  return helps.get(command);
}

function* againstFlags(millrace, objects) {
  for (const object of objects) {
    for (const container of object.spec?.template?.spec?.containers ?? []) {
      const [command, ...rest] = container.args;
      for (const arg of rest) {
        const flag = /^--([a-z-]+)/.exec(arg)?.[1];
        if (flag !== undefined && !flagsOf(millrace, command).has(flag)) {
          yield `${object.kind}/${object.metadata.name}: millrace ${command} has no flag --${flag}`;
        }
      }
    }
  }
}

async function faults(tools, millrace, objects) {
  const found = [];
  for (const object of objects) {
    for (const wrong of await againstSchema(tools, object)) found.push(`schema: ${wrong}`);
  }
  if (found.length > 0) return found;
  for (const [name, gate] of Object.entries(gates)) {
    for (const wrong of gate(objects)) found.push(`${name}: ${wrong}`);
  }
  for (const wrong of againstFlags(millrace, objects)) found.push(`flags: ${wrong}`);
  return found;
}

// ---- what has to be noticed ----

const find = (objects, kind, name) => objects.find((object) => object.kind === kind && object.metadata.name === name);
const pod = (objects, kind, name) => find(objects, kind, name).spec.template.spec;
const worker = (objects) => pod(objects, 'Deployment', 'millrace-worker');
const shard = (objects) => pod(objects, 'StatefulSet', 'millrace-shard');
const coordinator = (objects) => pod(objects, 'StatefulSet', 'millrace-coordinator');
const without = (objects, kind, name) => objects.splice(objects.indexOf(find(objects, kind, name)), 1);

// What is done to the autoscaling overlay and its companions, by the gate that has to say so.
const mutations = [
  ['schema', 'a misspelt field', (o) => { worker(o).containers[0].imagePullPolcy = 'Never'; }],
  ['schema', 'a misspelt field deep inside', (o) => { shard(o).containers[0].readinessProbe.grpc.sevice = 'ready'; }],
  ['schema', 'a word for a number', (o) => { find(o, 'StatefulSet', 'millrace-shard').spec.replicas = 'two'; }],
  ['schema', 'a value that does not exist', (o) => { find(o, 'StatefulSet', 'millrace-shard').spec.podManagementPolicy = 'Serial'; }],
  ['schema', 'a kind that does not exist', (o) => { find(o, 'Deployment', 'millrace-worker').kind = 'Deploiment'; }],
  ['resources', 'no limit', (o) => { delete worker(o).containers[0].resources.limits['ephemeral-storage']; }],
  ['image', 'latest', (o) => { worker(o).containers[0].image = 'registry.example.com/millrace:latest'; }],
  ['image', 'no tag', (o) => { worker(o).containers[0].image = 'registry.example.com:5000/millrace'; }],
  ['disruptionBudget', 'no budget', (o) => { without(o, 'PodDisruptionBudget', 'millrace-shard'); }],
  ['disruptionBudget', 'a budget of nothing', (o) => { find(o, 'PodDisruptionBudget', 'millrace-shard').spec.selector.matchLabels['app.kubernetes.io/component'] = 'shards'; }],
  ['networkPolicy', 'no denial', (o) => { without(o, 'NetworkPolicy', 'default-deny'); }],
  ['networkPolicy', 'a closed port', (o) => { without(o, 'NetworkPolicy', 'metrics'); }],
  ['networkPolicy', 'an open door', (o) => { delete find(o, 'NetworkPolicy', 'coordinator').spec.ingress[0].from; }],
  ['probes', 'the same probe twice', (o) => { const c = shard(o).containers[0]; c.readinessProbe = c.livenessProbe; }],
  ['probes', 'another port', (o) => { shard(o).containers[0].livenessProbe.grpc.port = 7401; }],
  ['probes', 'no startup probe', (o) => { delete coordinator(o).containers[0].startupProbe; }],
  ['securityContext', 'root', (o) => { worker(o).securityContext.runAsUser = 0; }],
  ['securityContext', 'a writable root', (o) => { worker(o).containers[0].securityContext.readOnlyRootFilesystem = false; }],
  ['securityContext', 'the node\'s files', (o) => { coordinator(o).volumes.push({name: 'x', hostPath: {path: '/'}}); }],
  ['spread', 'other pods\' labels', (o) => { shard(o).topologySpreadConstraints[0].labelSelector.matchLabels['app.kubernetes.io/component'] = 'worker'; }],
  ['services', 'a selector of nothing', (o) => { find(o, 'Service', 'millrace-shards').spec.selector['app.kubernetes.io/component'] = 'ps'; }],
  ['services', 'another port', (o) => { find(o, 'Service', 'millrace-shards').spec.ports[0].port = 7400; }],
  ['statefulSets', 'too few shards', (o) => { find(o, 'StatefulSet', 'millrace-shard').spec.replicas = 1; }],
  ['statefulSets', 'no service', (o) => { find(o, 'StatefulSet', 'millrace-shard').spec.serviceName = 'shards'; }],
  ['endings', 'no time', (o) => { shard(o).terminationGracePeriodSeconds = 1; }],
  ['stableApi', 'beta', (o) => { find(o, 'PriorityClass', 'millrace-worker').apiVersion = 'scheduling.k8s.io/v1beta1'; }],
  ['labels', 'no name', (o) => { delete find(o, 'Deployment', 'millrace-worker').spec.template.metadata.labels['app.kubernetes.io/version']; }],
  ['labels', 'a bad value', (o) => { find(o, 'Service', 'millrace-shards').metadata.labels['app.kubernetes.io/name'] = 'the shards'; }],
  ['autoscaler', 'no target', (o) => { find(o, 'HorizontalPodAutoscaler', 'millrace-worker').spec.scaleTargetRef.name = 'worker'; }],
  ['autoscaler', 'replicas', (o) => { find(o, 'Deployment', 'millrace-worker').spec.replicas = 3; }],
  ['serviceAccounts', 'a token', (o) => { delete worker(o).automountServiceAccountToken; }],
  ['serviceAccounts', 'somebody else\'s', (o) => { worker(o).serviceAccountName = 'default'; }],
  ['namespace', 'elsewhere', (o) => { find(o, 'Service', 'millrace-shards').metadata.namespace = 'default'; }],
  ['namespace', 'not restricted', (o) => { find(o, 'Namespace', 'millrace').metadata.labels['pod-security.kubernetes.io/enforce'] = 'baseline'; }],
  ['references', 'no volume', (o) => { worker(o).containers[0].volumeMounts = [...(worker(o).containers[0].volumeMounts ?? []), {name: 'x', mountPath: '/x'}]; }],
  ['references', 'no config map', (o) => { (worker(o).volumes ??= []).push({name: 'x', configMap: {name: 'x'}}); }],
  ['references', 'no variable', (o) => { shard(o).containers[0].env = shard(o).containers[0].env.filter(({name}) => name !== 'POD_NAME'); }],
  ['endings', 'less time than a shard waits', (o) => { shard(o).containers[0].args.push('--grace=200'); }],
  ['endings', 'a job for each attempt', (o) => { const c = pod(o, 'Job', 'tiny').containers[0]; c.args = c.args.filter((arg) => !arg.startsWith('--key')); }],
  ['endings', 'attempts that nodes take', (o) => { find(o, 'Job', 'tiny').spec.podFailurePolicy.rules.pop(); }],
  ['serviceAccounts', 'a right', (o) => { o.push({apiVersion: 'rbac.authorization.k8s.io/v1', kind: 'Role', metadata: {name: 'x', namespace: 'millrace'}, rules: []}); }],
  ['pages', 'no tokens', (o) => { const c = coordinator(o).containers[0]; c.args = c.args.filter((arg) => !arg.startsWith('--tokens')); }],
  ['pages', 'no secret of raters', (o) => { const c = coordinator(o).containers[0]; c.args = c.args.filter((arg) => !arg.startsWith('--http-token')); }],
  ['pages', 'another port', (o) => { coordinator(o).containers[0].ports.find(({name}) => name === 'http').containerPort = 80; }],
  ['networkPolicy', 'closed pages', (o) => { without(o, 'NetworkPolicy', 'pages'); }],
  ['configMaps', 'a hash', (o) => { find(o, 'ConfigMap', 'millrace-prometheus').metadata.name += '-7d2cb945bb'; }],
  ['quota', 'too many', (o) => { find(o, 'HorizontalPodAutoscaler', 'millrace-worker').spec.maxReplicas = 100; }],
  ['quota', 'too much', (o) => { find(o, 'StatefulSet', 'millrace-coordinator').spec.volumeClaimTemplates[0].spec.resources.requests.storage = '1Ti'; }],
  ['certificates', 'another role', (o) => { find(o, 'Certificate', 'millrace-shard').spec.uris = ['spiffe://millrace/worker']; }],
  ['certificates', 'another name', (o) => { find(o, 'Certificate', 'millrace-shard').spec.dnsNames = ['millrace-shards.millrace.svc.cluster.local']; }],
  ['certificates', 'no client', (o) => { find(o, 'Certificate', 'millrace-coordinator').spec.usages = ['server auth']; }],
  ['certificates', 'none', (o) => { without(o, 'Certificate', 'millrace-worker'); }],
  ['certificates', 'no issuer', (o) => { without(o, 'Issuer', 'millrace-ca'); }],
  ['schema', 'a misspelt field of cert-manager\'s', (o) => { find(o, 'Certificate', 'millrace-ca').spec.isCa = true; }],
  ['monitors', 'no port', (o) => { find(o, 'ServiceMonitor', 'millrace-shard').spec.endpoints[0].port = 'http-metrics'; }],
  ['flags', 'a misspelt flag', (o) => { worker(o).containers[0].args.push('--thread=2'); }],
];

async function main([millrace, folder]) {
  const tools = Tools.install(folder);
  let failures = 0;
  const overlays = [...fs.readdirSync(path.join(kubernetes, 'overlays')).map((name) => `overlays/${name}`),
                    ...fs.readdirSync(path.join(kubernetes, 'jobs')).map((name) => `jobs/${name}`),
                    'cert-manager', 'prometheus-operator'].sort();
  for (const overlay of overlays) {
    const objects = tools.render(path.join(kubernetes, overlay));
    const found = await faults(tools, millrace, objects);
    failures += found.length;
    for (const fault of found) console.error(`${overlay}: ${fault}`);
    console.log(`${overlay}: ${objects.length} objects, ${found.length} faults`);
  }
  const documented = fs.readFileSync(path.join(sources, 'docs/deploy.md'), 'utf8');
  for (const [, folder] of documented.matchAll(/-k deploy\/kubernetes\/([\w/-]+)/g)) {
    if (overlays.includes(folder)) continue;
    ++failures;
    console.error(`docs/deploy.md: there is no ${folder}`);
  }
  for (const name of [...overlays, ...external()]) {
    if (documented.includes(`\`${name}\``)) continue;
    ++failures;
    console.error(`docs/deploy.md does not tell of ${name}`);
  }
  // All that can be in one cluster.
  const together = ['overlays/autoscale', 'jobs/tiny-tls', 'cert-manager', 'prometheus-operator'].flatMap(
      (folder) => tools.render(path.join(kubernetes, folder)));
  const among = await faults(tools, millrace, together);
  failures += among.length;
  for (const fault of among) console.error(`together: ${fault}`);
  for (const [gate, what, change] of mutations) {
    const objects = structuredClone(together);
    change(objects);
    const found = await faults(tools, millrace, objects);
    if (found.some((fault) => fault.startsWith(`${gate}: `))) continue;
    ++failures;
    console.error(`gate ${gate} does not notice ${what}: ${found.join('; ') || 'nothing is found'}`);
  }
  const untried = ['schema', ...Object.keys(gates), 'flags'].filter((name) => !mutations.some(([gate]) => gate === name));
  for (const name of untried) console.error(`gate ${name} is not tried`);
  console.log(`${mutations.length} changes for the worse, ${failures + untried.length} failures in all`);
  return failures + untried.length === 0 ? 0 : 1;
}

if (process.argv.length !== 4) {
  console.error('usage: node check.mjs MILLRACE TOOLS_FOLDER');
  process.exit(2);
}
process.exit(await main(process.argv.slice(2)));
