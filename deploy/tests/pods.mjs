// Runs rendered Kubernetes objects with podman on one machine, as faithfully as that goes: StatefulSets become pods by
// ordinal with a volume each, Deployments pods with drawn names, headless Services names that lead to the pods. Of the
// rest of Kubernetes there is nothing here: no API, no scheduler, no policies, no budgets.
import {execFileSync, spawn, spawnSync} from 'node:child_process';
import {randomBytes} from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {here} from './tools.mjs';

const kRunc = '/usr/sbin/runc';

export class Pods {
  // `objects` as kustomize renders them; `millrace`: the program, for probes; files go to `folder`; names begin with
  // `prefix`.
  constructor(objects, millrace, image, folder, prefix) {
    this.objects = objects;
    this.millrace = millrace;
    this.image = image;  // in place of whatever the manifests name
    this.folder = folder;
    this.network = prefix;
    this.prefix = prefix;
    this.pods = new Map();  // by name: {name, workload, address, container}
    this.addresses = 10;    // each pod gets one that no pod had before
    // crun, which podman takes by itself, refuses a machine that has both kinds of control groups.
    this.flags = fs.existsSync('/sys/fs/cgroup/unified') && fs.existsSync(kRunc) ? ['--runtime', kRunc] : [];
    if (!fs.existsSync('/run/systemd/system')) this.flags.push('--cgroup-manager', 'cgroupfs');
    this.environment = {...process.env, CONTAINERS_CONF: path.join(here, 'containers.conf')};
  }

  podman(args, options = {}) {
    const done = spawnSync('podman', [...this.flags, ...args], {encoding: 'utf8', env: this.environment, ...options});
    if (done.status !== 0 && !options.mayFail) {
      throw new Error(`podman ${args.join(' ')}: status ${done.status}\n${done.stderr}`);
    }
    return options.mayFail ? done : done.stdout.trim();
  }

  podmanStart(args) {
    return spawn('podman', [...this.flags, ...args], {env: this.environment, stdio: ['ignore', 'pipe', 'pipe']});
  }

  // The same as podman(), which may fail, while other things go on.
  podmanLater(args) {
    return new Promise((resolve) => {
      const child = this.podmanStart(args);
      const said = {stdout: '', stderr: ''};
      for (const stream of ['stdout', 'stderr']) child[stream].setEncoding('utf8').on('data', (text) => { said[stream] += text; });
      child.on('close', (status) => resolve({status, ...said}));
    });
  }

  // Those that pods may get.
  possibleAddresses() {
    return Array.from({length: 60}, (_, i) => `10.213.77.${10 + i}`);
  }

  open() {
    this.podman(['network', 'create', '--subnet', '10.213.77.0/24', this.network]);
  }

  close() {
    const mine = this.podman(['ps', '-a', '--filter', `name=^${this.prefix}-`, '--format', '{{.Names}}']);
    for (const name of mine.split('\n').filter(Boolean)) this.podman(['rm', '-f', '-t', '0', name], {mayFail: true});
    for (const name of this.podman(['volume', 'ls', '--quiet', '--filter', `name=^${this.prefix}-`]).split('\n').filter(Boolean)) {
      this.podman(['volume', 'rm', name], {mayFail: true});
    }
    this.podman(['network', 'rm', '-f', this.network], {mayFail: true});
  }

  workload(name) {
    const found = this.objects.find((object) => object.metadata.name === name && object.spec?.template !== undefined);
    if (found === undefined) throw new Error(`no workload ${name}`);
    return found;
  }

  // The names that lead to a pod: that of each headless Service that selects it and, in a StatefulSet, its own.
  #aliases(workload, name) {
    const labels = workload.spec.template.metadata.labels;
    const aliases = [];
    for (const service of this.objects.filter(({kind}) => kind === 'Service')) {
      if (!Object.entries(service.spec.selector).every(([key, value]) => labels[key] === value)) continue;
      const domain = `${service.metadata.name}.${service.metadata.namespace}.svc.cluster.local`;
      aliases.push(domain);
      if (workload.spec.serviceName === service.metadata.name) aliases.push(`${name}.${domain}`);
    }
    return aliases;
  }

  // A ConfigMap's or Secret's files as a kubelet lays them out: links to a folder that can be exchanged at once.
  #project(name, files, group, mode) {
    const folder = path.join(this.folder, name);
    fs.rmSync(folder, {recursive: true, force: true});
    fs.mkdirSync(path.join(folder, '..2026_01_01'), {recursive: true});
    fs.symlinkSync('..2026_01_01', path.join(folder, '..data'));
    for (const [file, content] of Object.entries(files)) {
      fs.writeFileSync(path.join(folder, '..data', file), content, {mode});
      if (group !== undefined) fs.chownSync(path.join(folder, '..data', file), 0, group);
      fs.symlinkSync(`..data/${file}`, path.join(folder, file));
    }
    return folder;
  }

  // Other files in place of those that a pod has of a ConfigMap or Secret, all at once, as a kubelet does it.
  exchange(pod, source, files) {
    const folder = path.join(this.folder, `${pod.name}-${source}`);
    const before = fs.readlinkSync(path.join(folder, '..data'));
    const {mode, gid} = fs.statSync(path.join(folder, Object.keys(files)[0]));
    const after = `${before}_`;
    fs.mkdirSync(path.join(folder, after));
    for (const [file, content] of Object.entries(files)) {
      fs.writeFileSync(path.join(folder, after, file), content, {mode});
      fs.chownSync(path.join(folder, after, file), 0, gid);
    }
    fs.symlinkSync(after, path.join(folder, '..data_tmp'));
    fs.renameSync(path.join(folder, '..data_tmp'), path.join(folder, '..data'));
    fs.rmSync(path.join(folder, before), {recursive: true});
  }

  // Starts one pod. `given`: files by the name of a ConfigMap or Secret that is not among the objects.
  start(workload, name, given = {}) {
    const pod = workload.spec.template.spec;
    if (pod.containers.length !== 1) throw new Error(`${name}: pods of one container only`);
    const [container] = pod.containers;
    const args = ['--name', `${this.prefix}-${name}`, '--hostname', name, '--detach', '--pull', 'never'];
    const address = `10.213.77.${this.addresses++}`;
    args.push('--network', `${this.network}:ip=${address}${this.#aliases(workload, name).map((alias) => `,alias=${alias}`).join('')}`);

    const security = {...pod.securityContext, ...container.securityContext};
    args.push('--user', `${security.runAsUser}:${security.runAsGroup}`);
    if (security.readOnlyRootFilesystem) args.push('--read-only', '--read-only-tmpfs=false');
    for (const capability of security.capabilities?.drop ?? []) args.push('--cap-drop', capability.toLowerCase());
    if (security.allowPrivilegeEscalation === false) args.push('--security-opt', 'no-new-privileges');
    const {limits} = container.resources;
    const cpus = limits.cpu.endsWith('m') ? Number(limits.cpu.slice(0, -1)) / 1000 : Number(limits.cpu);
    args.push('--memory', limits.memory.replace(/i$/, '').toLowerCase(), '--cpus', String(Math.min(cpus, os.cpus().length)));

    const values = {};
    for (const {name: variable, value, valueFrom} of container.env ?? []) {
      const field = valueFrom?.fieldRef?.fieldPath;
      const text = value ?? (field === 'metadata.namespace' ? workload.metadata.namespace
          : field === 'metadata.name' ? name
          : field?.startsWith('metadata.labels[') ? workload.spec.template.metadata.labels[field.split("'")[1]]
          : valueFrom?.resourceFieldRef?.resource === 'limits.cpu' ? String(Math.ceil(cpus))
          : undefined);
      if (text === undefined) throw new Error(`${name}: env ${variable} has a source that is not known here`);
      values[variable] = text;
      args.push('--env', `${variable}=${text}`);
    }

    for (const mount of container.volumeMounts ?? []) {
      const volume = (pod.volumes ?? []).find((other) => other.name === mount.name);
      const mode = mount.readOnly ? 'ro' : 'rw';
      if (volume === undefined) {  // of volumeClaimTemplates
        args.push('--volume', `${this.prefix}-${mount.name}-${name}:${mount.mountPath}:${mode}`);
      } else if (volume.emptyDir) {
        args.push('--tmpfs', `${mount.mountPath}:rw,mode=1777,size=${volume.emptyDir.sizeLimit.replace(/i$/, '').toLowerCase()}`);
      } else if (volume.configMap || volume.secret) {
        const source = volume.configMap?.name ?? volume.secret.secretName;
        const own = this.objects.find((object) => object.kind === 'ConfigMap' && object.metadata.name === source);
        const files = own?.data ?? given[source];
        if (files === undefined) throw new Error(`${name}: nothing is given for ${source}`);
        const fileMode = (volume.configMap ?? volume.secret).defaultMode ?? 0o644;
        args.push('--volume', `${this.#project(`${name}-${source}`, files, pod.securityContext.fsGroup, fileMode)}:${mount.mountPath}:ro`);
      } else if (volume.persistentVolumeClaim) {
        args.push('--volume', `${given[volume.persistentVolumeClaim.claimName]}:${mount.mountPath}:ro`);
      } else {
        throw new Error(`${name}: volume ${mount.name} is of a kind that is not known here`);
      }
    }
    const expanded = container.args.map((arg) => arg.replace(/\$\(([A-Z_]+)\)/g, (_, variable) => values[variable]));
    this.podman(['run', ...args, this.image, ...expanded]);
    const started = {name, workload, address, container: `${this.prefix}-${name}`, given};
    this.pods.set(name, started);
    return started;
  }

  // As a StatefulSet or a Deployment does it: up to `replicas` pods.
  scale(workloadName, replicas = undefined, given = {}) {
    const workload = this.workload(workloadName);
    const wanted = replicas ?? workload.spec.replicas ?? 1;
    const present = [...this.pods.values()].filter((pod) => pod.workload === workload);
    for (let ordinal = 0; present.length < wanted; ++ordinal) {
      const name = workload.kind === 'StatefulSet' ? `${workloadName}-${ordinal}` : `${workloadName}-${randomBytes(3).toString('hex')}`;
      if (!this.pods.has(name)) present.push(this.start(workload, name, given));
    }
    return present;
  }

  of(workloadName) {
    return [...this.pods.values()].filter((pod) => pod.workload.metadata.name === workloadName);
  }

  logs(pod) {
    const {stdout, stderr} = this.podman(['logs', pod.container], {mayFail: true});
    return stdout + stderr;
  }

  // Without a word, as when a node fails.
  kill(pod) {
    this.podman(['rm', '-f', '-t', '0', pod.container]);
    this.pods.delete(pod.name);
  }

  // As an eviction does it: SIGTERM, and SIGKILL when the grace period is over. Returns the exit status and the log.
  evict(pod) {
    const begun = Date.now();
    this.podman(['stop', '--time', String(pod.workload.spec.template.spec.terminationGracePeriodSeconds), pod.container]);
    const seconds = (Date.now() - begun) / 1000;
    const status = Number(this.podman(['inspect', '--format', '{{.State.ExitCode}}', pod.container]));
    const log = this.logs(pod);
    this.kill(pod);
    return {status, seconds, log};
  }

  // Starts a pod of that name (StatefulSet) or another one (Deployment) in its place.
  replace(pod) {
    const name = pod.workload.kind === 'StatefulSet' ? pod.name : `${pod.workload.metadata.name}-${randomBytes(3).toString('hex')}`;
    return this.start(pod.workload, name, pod.given);
  }

  // Asks the probe of that name as the kubelet does, by its manifest.
  probe(pod, which) {
    const {port, service} = pod.workload.spec.template.spec.containers[0][which].grpc;
    return spawnSync(this.millrace, ['health', `${pod.address}:${port}`, '--service', service, '--timeout', '1']).status === 0;
  }

  awaitReady(pod, seconds = 60) {
    const until = Date.now() + 1000 * seconds;
    while (!this.probe(pod, 'readinessProbe')) {
      if (Date.now() > until) throw new Error(`${pod.name} is not ready after ${seconds} s:\n${this.logs(pod)}`);
      execFileSync('sleep', ['0.1']);
    }
  }

  // Runs a Job to its end; its exit status.
  runToEnd(workload, given) {
    const pod = this.start(workload, workload.metadata.name, given);
    const status = Number(this.podman(['wait', pod.container]));
    const log = this.logs(pod);
    this.kill(pod);
    return {status, log};
  }
}
