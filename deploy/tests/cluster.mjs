// Kubernetes' API for one machine, as much of it as docs/deploy.md needs: kubectl, which is the real one, applies,
// creates, reads, watches, patches, scales and deletes objects here, reads logs and forwards ports. What the objects
// ask for is run by podman (pods.mjs), or with --paper not at all: then pods are ready and Jobs complete at once.
//   node cluster.mjs KUBECONFIG FOLDER TOOLS_FOLDER [--paper]
// Writes the kubeconfig once it answers. FOLDER/images lists the images that nodes have, FOLDER/claims/NAME is what a
// PersistentVolumeClaim holds. Ends on SIGTERM, with all its pods.
//
// As in Kubernetes, a namespace has to be there before what is in it, unknown fields are refused, and a pod waits for
// its image, its ConfigMaps, Secrets and claims. Missing are admission but for the schemas, scheduling, policies,
// budgets, quotas, autoscaling, rolling updates, who may do what, and lists in patches.
import {spawn} from 'node:child_process';
import {randomBytes, randomUUID} from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import {createRequire} from 'node:module';
import net from 'node:net';
import path from 'node:path';
import {PassThrough} from 'node:stream';

import {serveForward} from './forward.mjs';
import {Pods} from './pods.mjs';
import {decode} from './protobuf.mjs';
import {againstSchema} from './schemas.mjs';
import {sources, Tools} from './tools.mjs';

const kVerbs = ['create', 'delete', 'get', 'list', 'patch', 'watch'];
// By group and version: kind, plural, and whether it is in a namespace.
const kKinds = {
  'v1': [
    ['Namespace', 'namespaces', false], ['ServiceAccount', 'serviceaccounts'], ['ConfigMap', 'configmaps'],
    ['Secret', 'secrets'], ['Service', 'services'], ['PersistentVolumeClaim', 'persistentvolumeclaims'],
    ['Pod', 'pods'], ['ResourceQuota', 'resourcequotas'], ['LimitRange', 'limitranges']
  ],
  'apps/v1': [['StatefulSet', 'statefulsets'], ['Deployment', 'deployments']],
  'batch/v1': [['Job', 'jobs']],
  'policy/v1': [['PodDisruptionBudget', 'poddisruptionbudgets']],
  'networking.k8s.io/v1': [['NetworkPolicy', 'networkpolicies']],
  'scheduling.k8s.io/v1': [['PriorityClass', 'priorityclasses', false]],
  'autoscaling/v2': [['HorizontalPodAutoscaler', 'horizontalpodautoscalers']],
  // As if their operators were there.
  'cert-manager.io/v1': [['Issuer', 'issuers'], ['Certificate', 'certificates']],
  'monitoring.coreos.com/v1': [['ServiceMonitor', 'servicemonitors'], ['PrometheusRule', 'prometheusrules']],
};
const kScaled = ['statefulsets', 'deployments'];

class Refusal extends Error {
  constructor(code, reason, message) {
    super(message);
    this.status = {kind: 'Status', apiVersion: 'v1', status: 'Failure', code, reason, message};
  }
}

const millrace = path.join(sources, 'build/bin/millrace');

// ---- what runs pods: podman, or nothing ----

class Containers {
  constructor(folder, objects) {
    this.folder = folder;
    this.bridges = new Map();  // by the path of their sockets
    const version =
        /^project\(millrace VERSION ([0-9.]+)/m.exec(fs.readFileSync(path.join(sources, 'CMakeLists.txt'), 'utf8'))[1];
    this.pods = new Pods(objects, millrace, `localhost/millrace:${version}`, folder, 'millrace-test');
    this.pods.close();
    this.pods.open();
  }

  // Why it cannot start yet, or null. A registry that is nobody's (example.com) has what the nodes have.
  lacks(image) {
    const list = path.join(this.folder, 'images');
    const loaded = fs.existsSync(list) ? fs.readFileSync(list, 'utf8').split('\n').filter(Boolean) : [];
    const wanted = image.replace(/^registry\.example\.com\/[^:]*\//, 'localhost/');
    return loaded.includes(wanted) ? null : `no node has the image ${image}`;
  }

  start(workload, name, given) {
    return this.pods.start(workload, name, given).address;
  }

  async states() {
    const {stdout} = await this.pods.podmanLater(['ps', '-a', '--format', 'json']);
    this.found = new Map();
    for (const {Names: [name], State: state, ExitCode: code, Pid: pid} of JSON.parse(stdout || '[]')) {
      const pod = {running: state === 'running', exited: state === 'exited', code, pid};
      this.found.set(name.slice(this.pods.prefix.length + 1), pod);
    }
    return this.found;
  }

  isReady(name) {
    const pod = this.pods.pods.get(name);
    const probe = pod.workload.spec.template.spec.containers[0].readinessProbe?.grpc;
    if (probe === undefined) return Promise.resolve(true);
    return new Promise((resolve) => {
      spawn(millrace, ['health', `${pod.address}:${probe.port}`, '--service', probe.service, '--timeout', '1'], {
        stdio: 'ignore'
      }).on('exit', (code) => resolve(code === 0));
    });
  }

  restart(name) {
    return this.pods.podmanLater(['start', this.pods.pods.get(name).container]);
  }

  async remove(name, grace) {
    const {container} = this.pods.pods.get(name);
    if (grace > 0) await this.pods.podmanLater(['stop', '--time', String(grace), container]);
    await this.pods.podmanLater(['rm', '-f', '-t', '0', container]);
    this.pods.pods.delete(name);
  }

  log(name, follow) {
    return this.pods.podmanStart(['logs', ...(follow ? ['--follow'] : []), this.pods.pods.get(name).container]);
  }

  // As a kubelet forwards a port: to the pod's own loopback. A process that is in the pod's network, and stays, takes
  // connections by a socket in the file system.
  async connect(name, port) {
    const {pid} = this.found.get(name);
    const at = path.join(this.folder, `${name}-${pid}-${port}`);
    if (!this.bridges.has(at)) {
      const bridge = `
          const net = require('net');
          const both = {allowHalfOpen: true};
          net.createServer(both, (here) => {
            const there = net.connect({port: ${port}, host: '127.0.0.1', ...both});
            here.on('error', () => there.destroy()).pipe(there).on('error', () => here.destroy()).pipe(here);
          }).listen(process.argv[1], () => console.log('listens'));`;
      const child = spawn(
          'nsenter', ['--target', String(pid), '--net', process.execPath, '-e', bridge, at],
          {stdio: ['ignore', 'pipe', 'inherit']});
      this.bridges.set(at, {child, listens: new Promise((resolve) => child.stdout.once('data', resolve))});
    }
    await this.bridges.get(at).listens;
    return net.connect({path: at, allowHalfOpen: true});
  }

  close() {
    for (const {child} of this.bridges.values()) child.kill();
    this.pods.close();
  }
}

class Paper {
  constructor() {
    this.names = new Map();
  }
  lacks() {
    return null;
  }
  start(workload, name) {
    this.names.set(name, workload);
    return '192.0.2.1';
  }
  async states() {
    return new Map(
        [...this.names].map(([name, {kind}]) => [name, {running: kind !== 'Job', exited: kind === 'Job', code: 0}]));
  }
  async isReady() {
    return true;
  }
  async restart() {}
  async remove(name) {
    this.names.delete(name);
  }
  log() {
    return spawn('echo', ['nothing ran']);
  }
  async connect() {
    return new PassThrough().end();
  }
  close() {}
}

// ---- the objects ----

class Cluster {
  constructor(tools, folder, paper) {
    this.tools = tools;
    this.folder = folder;
    this.objects = [];  // pods.mjs looks names of Services up in it
    this.runtime = paper ? new Paper() : new Containers(folder, this.objects);
    this.version = 0;
    this.events = [];  // {version, plural, type, object}
    this.watchers = new Set();
    this.add('namespaces', {apiVersion: 'v1', kind: 'Namespace', metadata: {name: 'default'}});
  }

  tell(plural, type, object) {
    object.metadata.resourceVersion = String(++this.version);
    const event = {version: this.version, plural, type, object: structuredClone(object)};
    this.events.push(event);
    for (const watcher of this.watchers) watcher(event);
  }

  static pluralOf(object) {
    return kKinds[object.apiVersion]?.find(([kind]) => kind === object.kind)?.[1];
  }

  find(plural, namespace, name) {
    return this.objects.find(
        (object) => Cluster.pluralOf(object) === plural && object.metadata.name === name &&
            (namespace === undefined || object.metadata.namespace === namespace));
  }

  list(plural, matches) {
    return this.objects.filter((object) => Cluster.pluralOf(object) === plural && matches(object));
  }

  add(plural, object) {
    Object.assign(
        object.metadata,
        {uid: randomUUID(), creationTimestamp: new Date().toISOString().replace(/\..*/, 'Z'), generation: 1});
    this.objects.push(object);
    this.tell(plural, 'ADDED', object);
    return object;
  }

  changed(object) {
    this.tell(Cluster.pluralOf(object), 'MODIFIED', object);
  }

  remove(object) {
    this.objects.splice(this.objects.indexOf(object), 1);
    this.tell(Cluster.pluralOf(object), 'DELETED', object);
  }

  async create(plural, namespace, object) {
    if (namespace !== undefined) {
      object.metadata.namespace ??= namespace;
      if (!this.find('namespaces', undefined, namespace))
        throw new Refusal(404, 'NotFound', `namespaces "${namespace}" not found`);
    }
    const {name} = object.metadata;
    if (this.find(plural, namespace, name))
      throw new Refusal(409, 'AlreadyExists', `${plural} "${name}" already exists`);
    const wrong = await againstSchema(this.tools, object);
    if (wrong.length > 0) throw new Refusal(400, 'BadRequest', `strict decoding error: ${wrong.join('; ')}`);
    this.add(plural, object);
    if (plural === 'jobs') {
      const labels = {'batch.kubernetes.io/controller-uid': object.metadata.uid, 'batch.kubernetes.io/job-name': name};
      object.spec.selector = {matchLabels: {'batch.kubernetes.io/controller-uid': object.metadata.uid}};
      Object.assign(object.spec.template.metadata.labels, labels);
    }
    return object;
  }

  merge(object, patch) {
    for (const [field, value] of Object.entries(patch)) {
      if (Array.isArray(value)) throw new Refusal(422, 'Invalid', `a patch of the list ${field} is not known here`);
      if (value === null)
        delete object[field];
      else if (typeof value === 'object')
        object[field] = this.merge(object[field] ?? {}, value);
      else
        object[field] = value;
    }
    return object;
  }

  // ---- the controllers ----

  // What a pod's volumes hold, or why it has to wait for them.
  given(workload) {
    const given = {};
    const inNamespace = (plural, name) => this.find(plural, workload.metadata.namespace, name);
    for (const {configMap, secret, persistentVolumeClaim: claim} of workload.spec.template.spec.volumes ?? []) {
      const name = configMap?.name ?? secret?.secretName ?? claim?.claimName;
      if (name === undefined) continue;
      const plural = configMap ? 'configmaps' : secret ? 'secrets' : 'persistentvolumeclaims';
      const object = inNamespace(plural, name);
      if (object === undefined) return `${plural} "${name}" not found`;
      if (claim) {
        given[name] = path.join(this.folder, 'claims', name);
        fs.mkdirSync(given[name], {recursive: true});
      } else {
        given[name] = secret ?
            Object.fromEntries(
                Object.entries(object.data ?? {}).map(([file, text]) => [file, Buffer.from(text, 'base64')])) :
            object.data;
      }
    }
    return given;
  }

  podsOf(workload) {
    return this.list('pods', (pod) => pod.metadata.ownerReferences?.[0].uid === workload.metadata.uid);
  }

  createPod(workload, name) {
    const {apiVersion, kind, metadata: {uid, namespace}, spec: {template}} = workload;
    this.add('pods', {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: {
        name,
        namespace,
        labels: {...template.metadata.labels},
        ownerReferences: [{apiVersion, kind, name: workload.metadata.name, uid, controller: true}]
      },
      spec: structuredClone(template.spec),
      status: {phase: 'Pending', conditions: [{type: 'Ready', status: 'False'}]},
    });
  }

  setStatus(object, status) {
    if (JSON.stringify(object.status) === JSON.stringify(status)) return;
    object.status = status;
    this.changed(object);
  }

  scale(workload) {
    const {name} = workload.metadata;
    const wanted = workload.spec.replicas ?? 1;
    const all = this.podsOf(workload);
    const live = all.filter((pod) => pod.metadata.deletionTimestamp === undefined);
    for (let i = live.length; i > wanted; --i) this.evict(live[i - 1]);
    if (workload.kind === 'StatefulSet') {
      for (let ordinal = 0; ordinal < wanted; ++ordinal) {
        if (!all.some((pod) => pod.metadata.name === `${name}-${ordinal}`))
          this.createPod(workload, `${name}-${ordinal}`);
      }
    } else {
      for (let i = live.length; i < wanted; ++i) this.createPod(workload, `${name}-${randomBytes(3).toString('hex')}`);
    }
    const ready = live.filter((pod) => pod.status.conditions[0].status === 'True').length;
    this.setStatus(workload, {
      observedGeneration: workload.metadata.generation,
      replicas: live.length,
      updatedReplicas: live.length,
      readyReplicas: ready,
      availableReplicas: ready
    });
  }

  runJob(job) {
    if (job.status?.conditions !== undefined) return;
    const pods = this.podsOf(job);
    const failed = pods.filter((pod) => pod.status.phase === 'Failed');
    if (pods.some((pod) => pod.status.phase === 'Succeeded')) {
      this.setStatus(job, {succeeded: 1, conditions: [{type: 'Complete', status: 'True'}]});
    } else if (failed.length > (job.spec.backoffLimit ?? 6)) {
      this.setStatus(
          job, {failed: failed.length, conditions: [{type: 'Failed', status: 'True', reason: 'BackoffLimitExceeded'}]});
    } else if (failed.length === pods.length) {
      this.createPod(job, `${job.metadata.name}-${randomBytes(3).toString('hex')}`);
    }
  }

  async runPod(pod, states) {
    const {name} = pod.metadata;
    const owner = this.objects.find(({metadata}) => metadata.uid === pod.metadata.ownerReferences[0].uid);
    if (owner === undefined) return this.evict(pod);
    if (['Succeeded', 'Failed'].includes(pod.status.phase)) return;
    const [{image, name: container}] = pod.spec.containers;
    const status = (phase, ready, more = {}) =>
        this.setStatus(pod, {phase, conditions: [{type: 'Ready', status: ready ? 'True' : 'False'}], ...more});
    if (pod.address === undefined) {
      const given = this.given(owner);
      const lacks = typeof given === 'string' ? given : this.runtime.lacks(image);
      if (lacks !== null) return status('Pending', false, {message: lacks});
      // Not a field of the object: where it is.
      Object.defineProperty(pod, 'address', {value: this.runtime.start(owner, name, given)});
      return;
    }
    const state = states.get(name);
    if (state === undefined) return;  // started since they were asked for
    const said = (ready, what) => ({
      podIP: pod.address,
      containerStatuses: [{name: container, image, imageID: '', ready, restartCount: 0, state: what}]
    });
    if (state.running) {
      const ready = await this.runtime.isReady(name);
      if (pod.metadata.deletionTimestamp === undefined) status('Running', ready, said(ready, {running: {}}));
    } else if (state.exited && owner.kind === 'Job') {
      status(state.code === 0 ? 'Succeeded' : 'Failed', false, said(false, {terminated: {exitCode: state.code}}));
    } else if (state.exited) {
      await this.runtime.restart(name);
    }
  }

  evict(pod, seconds = pod.spec.terminationGracePeriodSeconds ?? 30) {
    if (pod.metadata.deletionTimestamp !== undefined) return;
    pod.metadata.deletionTimestamp = new Date().toISOString().replace(/\..*/, 'Z');
    pod.metadata.deletionGracePeriodSeconds = seconds;
    this.changed(pod);
    const gone = pod.address === undefined ? Promise.resolve() : this.runtime.remove(pod.metadata.name, seconds);
    gone.then(() => this.remove(pod));
  }

  async reconcile() {
    for (const workload of [...this.list('statefulsets', () => true), ...this.list('deployments', () => true)])
      this.scale(workload);
    this.list('jobs', () => true).forEach((job) => this.runJob(job));
    const states = await this.runtime.states();
    const live = this.list('pods', ({metadata}) => metadata.deletionTimestamp === undefined);
    for (const pod of live.filter(({address}) => address === undefined)) {
      await new Promise(setImmediate);  // requests are answered between two pods that start
      await this.runPod(pod, states);
    }
    await Promise.all(live.map((pod) => this.runPod(pod, states)));
  }

  async run() {
    for (;;) {
      await this.reconcile();
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
}

// ---- HTTP ----

// What a request is about: /api/v1/… or /apis/GROUP/VERSION/…, then [namespaces/NAMESPACE/]PLURAL[/NAME[/PART]].
function target(pathname) {
  const words = pathname.split('/').slice(1);
  const apiVersion = words.shift() === 'api' ? words.shift() : words.splice(0, 2).join('/');
  const namespace = words[0] === 'namespaces' && words.length > 2 ? words.splice(0, 2)[1] : undefined;
  const [plural, name, part] = words;
  return {apiVersion, namespace, plural, name, part, known: kKinds[apiVersion]?.find((kind) => kind[1] === plural)};
}

function discovery(pathname) {
  const groups = Object.keys(kKinds).filter((version) => version !== 'v1');
  const roots = {
    '/api': {kind: 'APIVersions', versions: ['v1']},
    '/version': {major: '1', minor: '35', gitVersion: 'v1.35.2'}
  };
  if (roots[pathname]) return roots[pathname];
  if (pathname === '/apis') {
    return {
      kind: 'APIGroupList',
      apiVersion: 'v1',
      groups: groups.map((groupVersion) => {
        const [name, version] = groupVersion.split('/');
        return {name, versions: [{groupVersion, version}], preferredVersion: {groupVersion, version}};
      })
    };
  }
  if (pathname === '/openapi/v3') {
    return {
      paths: Object.fromEntries(Object.keys(kKinds)
                                    .map((version) => version === 'v1' ? 'api/v1' : `apis/${version}`)
                                    .map((where) => [where, {serverRelativeURL: `/openapi/v3/${where}`}]))
    };
  }
  const [, asked, groupVersion] = /^(\/openapi\/v3)?\/apis?\/(.*)$/.exec(pathname) ?? [];
  const kinds = kKinds[groupVersion];
  if (kinds === undefined) return null;
  if (asked === undefined) {
    return {
      kind: 'APIResourceList',
      apiVersion: 'v1',
      groupVersion,
      resources: kinds.flatMap(
          ([kind, name, namespaced = true]) =>
              [{name, singularName: kind.toLowerCase(), namespaced, kind, verbs: kVerbs},
               ...(kScaled.includes(name) ? [{
                 name: `${name}/scale`,
                 singularName: '',
                 namespaced,
                 group: 'autoscaling',
                 version: 'v1',
                 kind: 'Scale',
                 verbs: ['get', 'patch']
               }] :
                                            []),
               ...(name === 'pods' ?
                       [
                         {name: 'pods/log', singularName: '', namespaced, kind, verbs: ['get']}, {
                           name: 'pods/portforward',
                           singularName: '',
                           namespaced,
                           kind: 'PodPortForwardOptions',
                           verbs: ['create', 'get']
                         }
                       ] :
                       []),
    ])
    };
  }
  // Tells kubectl that unknown fields are refused here (fieldValidation).
  const [version, group = ''] = groupVersion.split('/').reverse();
  return {
    openapi: '3.0.0',
    info: {title: 'Kubernetes', version: 'v1.35.2'},
    paths: Object.fromEntries(
        kinds.map(([kind, name]) => [`/${name}/{name}`, {
                    patch: {
                      parameters: [{name: 'fieldValidation', in : 'query', schema: {type: 'string'}}],
                      responses: {},
                      'x-kubernetes-group-version-kind': {group, version, kind}
                    }
                  }]))
  };
}

// What labelSelector and fieldSelector ask for.
function selection(query) {
  const terms = (name) => (query.get(name) ?? '').split(',').filter(Boolean).map((term) => {
    const parsed = /^([^=!]+)==?([^=]*)$/.exec(term);
    if (parsed === null) throw new Refusal(400, 'BadRequest', `a selector as ${term} is not known here`);
    return parsed.slice(1);
  });
  const labels = terms('labelSelector');
  const fields = terms('fieldSelector');
  return (object) => labels.every(([key, value]) => object.metadata.labels?.[key] === value) &&
      fields.every(([field, value]) => field.split('.').reduce((part, name) => part?.[name], object) === value);
}

async function bodyOf(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  const bytes = Buffer.concat(pieces);
  if (bytes.length === 0) return {};
  return request.headers['content-type']?.includes('protobuf') ? decode(bytes) : JSON.parse(bytes.toString('utf8'));
}

function watch(cluster, plural, matches, query, request, response) {
  response.writeHead(200, {'Content-Type': 'application/json'});
  const write = (type, object) => response.write(`${JSON.stringify({type, object})}\n`);
  const fits = (event) => event.plural === plural && matches(event.object);
  const since = Number(query.get('resourceVersion') ?? 0);
  if (query.get('sendInitialEvents') === 'true' || since === 0) {
    for (const object of cluster.list(plural, matches)) write('ADDED', object);
    if (query.get('sendInitialEvents') === 'true') {
      const [apiVersion, [[kind]]] =
          Object.entries(kKinds)
              .map(([version, kinds]) => [version, kinds.filter(([, name]) => name === plural)])
              .find(([, kinds]) => kinds.length > 0);
      write('BOOKMARK', {
        apiVersion,
        kind,
        metadata: {resourceVersion: String(cluster.version), annotations: {'k8s.io/initial-events-end': 'true'}}
      });
    }
  } else {
    for (const event of cluster.events) {
      if (event.version > since && fits(event)) write(event.type, event.object);
    }
  }
  const watcher = (event) => {
    if (fits(event)) write(event.type, event.object);
  };
  cluster.watchers.add(watcher);
  request.on('close', () => cluster.watchers.delete(watcher));
  response.on('close', () => cluster.watchers.delete(watcher));
}

async function answer(cluster, request, response) {
  const {pathname, searchParams: query} = new URL(request.url, 'http://cluster');
  const reply = (object, code = 200) => {
    response.writeHead(code, {'Content-Type': 'application/json'});
    response.end(JSON.stringify(object));
  };
  const found = request.method === 'GET' ? discovery(pathname) : null;
  if (found !== null) return reply(found);
  const {apiVersion, namespace, plural, name, part, known} = target(pathname);
  if (known === undefined) throw new Refusal(404, 'NotFound', 'the server could not find the requested resource');
  const inNamespace = (object) => namespace === undefined || object.metadata.namespace === namespace;
  if (name === undefined) {
    if (request.method === 'POST') return reply(await cluster.create(plural, namespace, await bodyOf(request)), 201);
    if (request.method !== 'GET') throw new Refusal(405, 'MethodNotAllowed', 'collections are only read here');
    const chosen = selection(query);
    const matches = (object) => inNamespace(object) && chosen(object);
    if (query.get('watch') === 'true' || query.get('watch') === '1')
      return watch(cluster, plural, matches, query, request, response);
    return reply({
      kind: `${known[0]}List`,
      apiVersion,
      metadata: {resourceVersion: String(cluster.version)},
      items: cluster.list(plural, matches)
    });
  }
  const object = cluster.find(plural, namespace, name);
  if (object === undefined) {
    const [, group] = apiVersion.split('/').reverse();
    throw new Refusal(404, 'NotFound', `${plural}${group ? `.${group}` : ''} "${name}" not found`);
  }
  if (part === 'log') {
    if (object.address === undefined)
      throw new Refusal(400, 'BadRequest', `pod "${name}" has not started: ${object.status.message}`);
    response.writeHead(200, {'Content-Type': 'text/plain'});
    const log = cluster.runtime.log(name, query.get('follow') === 'true');
    log.stderr.pipe(response, {end: false});
    log.stdout.pipe(response, {end: false});
    log.on('close', () => response.end());
    response.on('close', () => log.kill());
    return;
  }
  if (part !== undefined && !(part === 'scale' && kScaled.includes(plural))) {
    throw new Refusal(404, 'NotFound', `the server could not find the requested resource`);
  }
  if (request.method === 'PATCH') {
    const patch = await bodyOf(request);
    if (part === 'scale' && Object.keys(patch).join() !== 'spec')
      throw new Refusal(422, 'Invalid', 'only spec.replicas is scaled');
    cluster.merge(object, patch);
    ++object.metadata.generation;
    cluster.changed(object);
  } else if (request.method === 'DELETE') {
    const {gracePeriodSeconds} = await bodyOf(request);
    if (plural === 'pods')
      cluster.evict(object, gracePeriodSeconds);
    else if (plural === 'namespaces')
      throw new Refusal(405, 'MethodNotAllowed', 'namespaces stay: kind delete cluster');
    else
      cluster.remove(object);
  } else if (request.method !== 'GET') {
    throw new Refusal(405, 'MethodNotAllowed', `${request.method} is not known here`);
  }
  if (part === 'scale') {
    const {replicas = 1} = object.spec;
    return reply({
      kind: 'Scale',
      apiVersion: 'autoscaling/v1',
      metadata: object.metadata,
      spec: {replicas},
      status: {replicas: object.status?.replicas ?? 0}
    });
  }
  return reply(object);
}

function upgrade(cluster, dictionary, request, socket, first) {
  const {plural, name, namespace, part} = target(new URL(request.url, 'http://cluster').pathname);
  const pod = cluster.find('pods', namespace, name);
  // kubectl tries a WebSocket first, which older API servers do not have either.
  if (plural !== 'pods' || part !== 'portforward' || pod?.status.phase !== 'Running' ||
      request.headers.upgrade.toUpperCase() !== 'SPDY/3.1') {
    socket.end('HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
    return;
  }
  socket.write(
      'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n' +
      'X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n');
  serveForward(socket, first, dictionary, (port) => cluster.runtime.connect(name, port));
}

const [kubeconfig, folder, toolsFolder, paper] = process.argv.slice(2);
fs.mkdirSync(folder, {recursive: true});
const tools = Tools.install(toolsFolder);
const dictionary = createRequire(path.join(tools.folder, 'package.json'))(
    'spdy-transport/lib/spdy-transport/protocol/spdy/dictionary.js')[3.1];
const cluster = new Cluster(tools, folder, paper === '--paper');
// kubectl sends the next request on a connection that this process, busy with pods, must not have closed meanwhile.
const server = http.createServer({keepAliveTimeout: 600_000}, (request, response) => {
  answer(cluster, request, response).catch((error) => {
    if (!(error instanceof Refusal)) console.error(error);
    const status = error.status ?? {
      kind: 'Status',
      apiVersion: 'v1',
      status: 'Failure',
      code: 500,
      reason: 'InternalError',
      message: String(error)
    };
    response.writeHead(status.code, {'Content-Type': 'application/json'});
    response.end(JSON.stringify(status));
  });
});
server.on('upgrade', (request, socket, first) => upgrade(cluster, dictionary, request, socket, first));
process.on('SIGTERM', () => {
  cluster.runtime.close();
  process.exit(0);
});
server.listen(0, '127.0.0.1', () => {
  const entry = (name, value) => [{name: 'kind-kind', [name]: value}];
  fs.writeFileSync(
      `${kubeconfig}.new`, JSON.stringify({
        apiVersion: 'v1',
        kind: 'Config',
        'current-context': 'kind-kind',
        clusters: entry('cluster', {server: `http://127.0.0.1:${server.address().port}`}),
        contexts: entry('context', {cluster: 'kind-kind', user: 'kind-kind'}),
        users: entry('user', {}),
      }),
      {mode: 0o600});
  fs.renameSync(`${kubeconfig}.new`, kubeconfig);
  cluster.run().catch((error) => {
    console.error(error);
    cluster.runtime.close();
    process.exit(1);
  });
});
