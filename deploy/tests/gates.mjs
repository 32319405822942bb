// The rules that Millrace's manifests keep. Each takes all objects of an overlay and says what is wrong, one line each.

const kExternal = {
  // Made by whoever installs (docs/deploy.md).
  ConfigMap: new Set(['tiny']),
  PersistentVolumeClaim: new Set(['millrace-text']),
  Secret: new Set(['millrace-coordinator-tls', 'millrace-shard-tls', 'millrace-worker-tls', 'millrace-client-tls',
                   'millrace-tokens', 'millrace-client-token']),
};
export const external = () => Object.values(kExternal).flatMap((names) => [...names]);
const kClusterWide = new Set(['Namespace', 'PriorityClass']);
const kMinimumUid = 10000;
const kGrace = 60;  // seconds, of `millrace ps`

const nameOf = (object) => `${object.kind}/${object.metadata.name}`;
const ofKind = (objects, ...kinds) => objects.filter((object) => kinds.includes(object.kind));
const workloads = (objects) => ofKind(objects, 'StatefulSet', 'Deployment', 'Job');
const lasting = (objects) => ofKind(objects, 'StatefulSet', 'Deployment');
const podOf = (workload) => workload.spec.template.spec;
const podLabels = (workload) => workload.spec.template.metadata?.labels ?? {};
const containersOf = (workload) => [...(podOf(workload).initContainers ?? []), ...podOf(workload).containers];

export function selects(selector, labels) {
  if (selector === undefined) return false;
  for (const [key, value] of Object.entries(selector.matchLabels ?? {})) {
    if (labels[key] !== value) return false;
  }
  for (const {key, operator, values} of selector.matchExpressions ?? []) {
    const has = Object.hasOwn(labels, key);
    const holds = operator === 'In'          ? has && values.includes(labels[key])
        : operator === 'NotIn'               ? !has || !values.includes(labels[key])
        : operator === 'Exists'              ? has
                                             : !has;
    if (!holds) return false;
  }
  return true;
}

function* each(objects, look) {
  for (const workload of workloads(objects)) {
    for (const container of containersOf(workload)) {
      for (const wrong of look(container, workload)) yield `${nameOf(workload)}, container ${container.name}: ${wrong}`;
    }
  }
}

// Of a quantity, as 250m or 8Gi.
function amount(text) {
  const [, digits, unit] = /^([0-9.]+)([a-zA-Z]*)$/.exec(text);
  const scale = {'': 1, m: 0.001, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40}[unit];
  if (scale === undefined) throw new Error(`${text}: a quantity in ${unit}`);
  return Number(digits) * scale;
}

export const gates = {
  * resources(objects) {
    yield* each(objects, function* ({resources = {}}) {
      for (const which of ['requests', 'limits']) {
        for (const what of ['cpu', 'memory', 'ephemeral-storage']) {
          if (resources[which]?.[what] === undefined) yield `no resources.${which}.${what}`;
        }
      }
    });
  },

  * image(objects) {
    yield* each(objects, function* ({image, imagePullPolicy}) {
      const tag = /:([^:/@]+)(@sha256:[0-9a-f]{64})?$/.exec(image)?.[1];
      if (tag === undefined || tag === 'latest') yield `image ${image} has no fixed tag`;
      if (imagePullPolicy !== 'IfNotPresent') yield 'imagePullPolicy is not IfNotPresent';
    });
  },

  * disruptionBudget(objects) {
    for (const workload of lasting(objects)) {
      const budgets = ofKind(objects, 'PodDisruptionBudget').filter(
          (budget) => selects(budget.spec.selector, podLabels(workload)));
      if (budgets.length !== 1) yield `${nameOf(workload)}: ${budgets.length} PodDisruptionBudgets where there has to be one`;
    }
    for (const budget of ofKind(objects, 'PodDisruptionBudget')) {
      if (budget.spec.maxUnavailable === 0 || budget.spec.maxUnavailable === '0%') {
        yield `${nameOf(budget)} never lets a node be drained`;
      }
      if (!lasting(objects).some((workload) => selects(budget.spec.selector, podLabels(workload)))) {
        yield `${nameOf(budget)} selects no pod`;
      }
    }
  },

  * networkPolicy(objects) {
    const policies = ofKind(objects, 'NetworkPolicy');
    const closed = policies.some((policy) => Object.keys(policy.spec.podSelector).length === 0 &&
                                     ['Ingress', 'Egress'].every((type) => policy.spec.policyTypes.includes(type)) &&
                                     policy.spec.ingress === undefined && policy.spec.egress === undefined);
    if (policies.length > 0 && !closed) yield 'no NetworkPolicy denies what no other allows';
    const isJobAlone = lasting(objects).length === 0;  // jobs/: the policies are the cluster's
    if (policies.length === 0 && !isJobAlone) yield 'no NetworkPolicy';
    for (const workload of lasting(objects)) {
      const own = policies.filter((policy) => Object.keys(policy.spec.podSelector).length > 0 &&
                                      selects(policy.spec.podSelector, podLabels(workload)));
      if (!own.some((policy) => policy.spec.egress !== undefined)) yield `${nameOf(workload)} may reach nothing`;
      // What it serves can be reached.
      const allowed = new Set(own.flatMap(
          (policy) => (policy.spec.ingress ?? []).flatMap((rule) => rule.ports.map(({port}) => port))));
      for (const {name, containerPort} of containersOf(workload).flatMap(({ports = []}) => ports)) {
        if (name !== 'health' && !allowed.has(containerPort)) {
          yield `${nameOf(workload)}: no policy lets anybody in at port ${name} (${containerPort})`;
        }
      }
    }
    for (const policy of policies) {
      for (const rule of [...(policy.spec.ingress ?? []), ...(policy.spec.egress ?? [])]) {
        if ((rule.from ?? rule.to) === undefined) yield `${nameOf(policy)}: a rule lets in, or out to, everybody`;
        if (rule.ports === undefined) yield `${nameOf(policy)}: a rule opens all ports`;
      }
    }
  },

  * probes(objects) {
    for (const workload of lasting(objects)) {
      for (const container of podOf(workload).containers) {
        const where = `${nameOf(workload)}, container ${container.name}`;
        const {startupProbe: startup, readinessProbe: ready, livenessProbe: live} = container;
        if (!startup || !ready || !live) {
          yield `${where}: startup, readiness and liveness probes are not all there`;
          continue;
        }
        const port = container.ports?.find(({name}) => name === 'health')?.containerPort;
        for (const probe of [startup, ready, live]) {
          if (probe.grpc?.port !== port) yield `${where}: a probe does not ask the port named health`;
        }
        if (ready.grpc?.service !== 'ready') yield `${where}: the readiness probe does not ask for "ready"`;
        if (live.grpc?.service !== 'live') {
          yield `${where}: the liveness probe asks for something else than "live", which depends on nobody`;
        }
        const patience = ({periodSeconds = 10, failureThreshold = 3}) => periodSeconds * failureThreshold;
        if (patience(live) < 30) yield `${where}: the liveness probe kills after less than 30 s`;
        if (patience(startup) < patience(live)) yield `${where}: less patience at the start than later`;
        if (!container.args.includes(`--health=0.0.0.0:${port}`)) yield `${where}: --health is not the probes' port`;
      }
    }
  },

  * securityContext(objects) {
    for (const workload of workloads(objects)) {
      const pod = podOf(workload).securityContext ?? {};
      if (pod.runAsNonRoot !== true) yield `${nameOf(workload)}: runAsNonRoot is not true`;
      if (!(pod.runAsUser > kMinimumUid)) yield `${nameOf(workload)}: runAsUser is not above ${kMinimumUid}`;
      if (pod.seccompProfile?.type !== 'RuntimeDefault') yield `${nameOf(workload)}: seccompProfile is not RuntimeDefault`;
      for (const name of ['hostNetwork', 'hostPID', 'hostIPC']) {
        if (podOf(workload)[name]) yield `${nameOf(workload)}: ${name}`;
      }
      for (const volume of podOf(workload).volumes ?? []) {
        if (volume.hostPath) yield `${nameOf(workload)}: volume ${volume.name} is a hostPath`;
        if (volume.emptyDir && volume.emptyDir.sizeLimit === undefined) yield `${nameOf(workload)}: volume ${volume.name} has no sizeLimit`;
      }
    }
    yield* each(objects, function* ({securityContext: context = {}}) {
      if (context.allowPrivilegeEscalation !== false) yield 'allowPrivilegeEscalation is not false';
      if (context.readOnlyRootFilesystem !== true) yield 'readOnlyRootFilesystem is not true';
      if (!context.capabilities?.drop?.includes('ALL')) yield 'capabilities are not all dropped';
      if (context.capabilities?.add || context.privileged) yield 'capabilities are added';
    });
  },

  * spread(objects) {
    for (const workload of lasting(objects)) {
      const spread = (podOf(workload).topologySpreadConstraints ?? []).some(
          ({topologyKey, labelSelector}) => topologyKey === 'kubernetes.io/hostname' && selects(labelSelector, podLabels(workload)));
      if (!spread) yield `${nameOf(workload)}: nothing keeps its pods on different hosts`;
    }
  },

  * services(objects) {
    for (const service of ofKind(objects, 'Service')) {
      const targets = workloads(objects).filter((workload) => selects({matchLabels: service.spec.selector}, podLabels(workload)));
      if (targets.length === 0) yield `${nameOf(service)} selects no pod`;
      for (const target of targets) {
        const ports = containersOf(target).flatMap(({ports = []}) => ports);
        for (const {name, port, targetPort} of service.spec.ports) {
          const found = ports.find((other) => other.name === targetPort || other.containerPort === targetPort);
          if (!found) yield `${nameOf(service)}: ${nameOf(target)} has no port ${targetPort}`;
          // Headless: names lead to the pod, so the port is the container's.
          else if (found.containerPort !== port) yield `${nameOf(service)}, port ${name}: ${port} is not the container's`;
        }
      }
      if (service.spec.clusterIP === 'None' && service.spec.publishNotReadyAddresses !== true) {
        yield `${nameOf(service)}: members reach each other before they are ready: publishNotReadyAddresses`;
      }
    }
  },

  * statefulSets(objects) {
    for (const set of ofKind(objects, 'StatefulSet')) {
      const service = objects.find((object) => object.kind === 'Service' && object.metadata.name === set.spec.serviceName);
      if (service?.spec.clusterIP !== 'None') yield `${nameOf(set)}: serviceName is no headless Service here`;
      if (set.spec.podManagementPolicy !== 'Parallel') yield `${nameOf(set)}: podManagementPolicy is not Parallel`;
      if (set.spec.persistentVolumeClaimRetentionPolicy === undefined) yield `${nameOf(set)}: no persistentVolumeClaimRetentionPolicy`;
    }
    // A job waits for --shards shards.
    const coordinator = objects.find((object) => object.kind === 'StatefulSet' && object.metadata.name === 'millrace-coordinator');
    const shards = objects.find((object) => object.kind === 'StatefulSet' && object.metadata.name === 'millrace-shard');
    if (coordinator && shards) {
      const wanted = Number(podOf(coordinator).containers[0].args.find((arg) => arg.startsWith('--shards='))?.slice(9));
      if (!(shards.spec.replicas >= wanted)) {
        yield `${nameOf(shards)} has ${shards.spec.replicas} replicas, the coordinator waits for --shards=${wanted}`;
      }
      if (coordinator.spec.replicas !== 1) yield `${nameOf(coordinator)}: there can be one coordinator only`;
    }
  },

  * endings(objects) {
    for (const workload of lasting(objects)) {
      const grace = podOf(workload).terminationGracePeriodSeconds;
      const least = workload.kind === 'StatefulSet' ? 60 : 10;
      if (!(grace >= least)) yield `${nameOf(workload)}: terminationGracePeriodSeconds is ${grace}, not ${least} or more`;
      for (const {args} of podOf(workload).containers) {
        const waits = Number(args.find((arg) => arg.startsWith('--grace='))?.slice(8) ?? kGrace);
        if (args[0] === 'ps' && !(grace > waits)) yield `${nameOf(workload)}: is ended while it still waits for a checkpoint (--grace, ${waits} s)`;
      }
    }
    for (const job of ofKind(objects, 'Job')) {
      for (const field of ['backoffLimit', 'activeDeadlineSeconds', 'ttlSecondsAfterFinished', 'podFailurePolicy']) {
        if (job.spec[field] === undefined) yield `${nameOf(job)}: no ${field}`;
      }
      for (const {args} of podOf(job).containers) {
        if (args[0] === 'submit' && job.spec.backoffLimit > 0 && !args.some((arg) => arg.startsWith('--key='))) {
          yield `${nameOf(job)}: another attempt would submit another job: --key`;
        }
      }
      const rules = job.spec.podFailurePolicy?.rules ?? [];
      if (!rules.some(({action, onPodConditions}) => action === 'Ignore' && onPodConditions?.some(({type}) => type === 'DisruptionTarget'))) {
        yield `${nameOf(job)}: a node that is taken away counts as an attempt`;
      }
    }
  },

  * stableApi(objects) {
    for (const object of objects) {
      if (/alpha|beta/.test(object.apiVersion)) yield `${nameOf(object)}: ${object.apiVersion} is not stable`;
    }
  },

  * labels(objects) {
    const value = /^(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?$/;
    const check = function* (where, labels = {}, wanted = []) {
      for (const key of wanted) {
        if (labels[key] === undefined) yield `${where}: no label ${key}`;
      }
      for (const [key, text] of Object.entries(labels)) {
        if (typeof text !== 'string' || !value.test(text)) yield `${where}: label ${key} cannot be '${text}'`;
      }
    };
    const common = ['app.kubernetes.io/part-of', 'app.kubernetes.io/version'];
    const own = ['app.kubernetes.io/name', 'app.kubernetes.io/component', ...common];
    for (const object of objects) yield* check(nameOf(object), object.metadata.labels, common);
    for (const workload of workloads(objects)) {
      yield* check(nameOf(workload), workload.metadata.labels, own);
      yield* check(`${nameOf(workload)}'s pods`, podLabels(workload), own);
      if (workload.kind !== 'Job' && !selects(workload.spec.selector, podLabels(workload))) yield `${nameOf(workload)} does not select its own pods`;
    }
  },

  * autoscaler(objects) {
    for (const scaler of ofKind(objects, 'HorizontalPodAutoscaler')) {
      const {kind, name} = scaler.spec.scaleTargetRef;
      const target = objects.find((object) => object.kind === kind && object.metadata.name === name);
      if (target === undefined) yield `${nameOf(scaler)}: there is no ${kind}/${name}`;
      else if (target.spec.replicas !== undefined) yield `${nameOf(target)}: replicas would undo what ${nameOf(scaler)} chose`;
      if (kind === 'StatefulSet') yield `${nameOf(scaler)}: shards and coordinators are not scaled`;
      for (const metric of scaler.spec.metrics) {
        if (metric.type === 'Resource' && target !== undefined &&
            containersOf(target).some(({resources}) => resources?.requests?.[metric.resource.name] === undefined)) {
          yield `${nameOf(scaler)}: utilization of ${metric.resource.name} without a request of it`;
        }
      }
    }
  },

  * serviceAccounts(objects) {
    const accounts = new Map(ofKind(objects, 'ServiceAccount').map((account) => [account.metadata.name, account]));
    for (const workload of workloads(objects)) {
      const name = podOf(workload).serviceAccountName;
      if (name === undefined || name === 'default') yield `${nameOf(workload)}: no service account of its own`;
      if (lasting(objects).length > 0 && !accounts.has(name)) yield `${nameOf(workload)}: there is no ServiceAccount/${name}`;
      if (podOf(workload).automountServiceAccountToken !== false) yield `${nameOf(workload)}: a token is mounted that nobody needs`;
    }
    for (const object of ofKind(objects, 'Role', 'ClusterRole', 'RoleBinding', 'ClusterRoleBinding')) {
      yield `${nameOf(object)}: nothing here asks Kubernetes' API`;
    }
    for (const account of accounts.values()) {
      if (account.automountServiceAccountToken !== false) yield `${nameOf(account)}: automountServiceAccountToken is not false`;
    }
  },

  * namespace(objects) {
    for (const object of objects) {
      if (!kClusterWide.has(object.kind) && object.metadata.namespace !== 'millrace') yield `${nameOf(object)}: not in namespace millrace`;
    }
    for (const space of ofKind(objects, 'Namespace')) {
      if (space.metadata.labels?.['pod-security.kubernetes.io/enforce'] !== 'restricted') yield `${nameOf(space)}: pod security is not restricted`;
    }
    if (lasting(objects).length === 0) return;
    for (const kind of ['Namespace', 'ResourceQuota', 'LimitRange']) {
      if (ofKind(objects, kind).length !== 1) yield `there has to be one ${kind}`;
    }
  },

  * references(objects) {
    const names = (kind) => new Set(ofKind(objects, kind).map((object) => object.metadata.name));
    const known = (kind, name) => names(kind).has(name) || kExternal[kind]?.has(name);
    for (const workload of workloads(objects)) {
      const pod = podOf(workload);
      const volumes = new Set((pod.volumes ?? []).map(({name}) => name));
      for (const claim of workload.spec.volumeClaimTemplates ?? []) volumes.add(claim.metadata.name);
      for (const {name, configMap, secret, persistentVolumeClaim} of pod.volumes ?? []) {
        const wanted = configMap ? ['ConfigMap', configMap.name] : secret ? ['Secret', secret.secretName]
            : persistentVolumeClaim ? ['PersistentVolumeClaim', persistentVolumeClaim.claimName] : null;
        if (wanted && !known(...wanted)) yield `${nameOf(workload)}, volume ${name}: there is no ${wanted.join('/')}`;
      }
      for (const container of containersOf(workload)) {
        const mounted = new Set((container.volumeMounts ?? []).map(({name}) => name));
        for (const name of mounted) {
          if (!volumes.has(name)) yield `${nameOf(workload)}: volumeMount ${name} has no volume`;
        }
        for (const name of volumes) {
          if (!mounted.has(name)) yield `${nameOf(workload)}: volume ${name} is mounted nowhere`;
        }
        const variables = new Set((container.env ?? []).map(({name}) => name));
        for (const arg of container.args ?? []) {
          for (const [, name] of arg.matchAll(/\$\(([A-Z_]+)\)/g)) {
            if (!variables.has(name)) yield `${nameOf(workload)}: argument ${arg} names no variable of env`;
          }
        }
      }
      if (pod.priorityClassName && lasting(objects).length > 0 && !names('PriorityClass').has(pod.priorityClassName)) {
        yield `${nameOf(workload)}: there is no PriorityClass/${pod.priorityClassName}`;
      }
    }
  },

  // The dashboard and the rating page.
  * pages(objects) {
    for (const workload of lasting(objects)) {
      for (const {args, ports = []} of podOf(workload).containers) {
        const flag = (name) => args.find((arg) => arg.startsWith(`--${name}=`))?.slice(name.length + 3);
        const listens = flag('http');
        if (args[0] === 'coordinator' && listens === undefined) yield `${nameOf(workload)}: no dashboard`;
        if (listens === undefined || listens.startsWith('127.')) continue;
        if (flag('tokens') === undefined) yield `${nameOf(workload)}: the dashboard takes no tokens`;
        if (flag('http-token') === undefined) yield `${nameOf(workload)}: whoever reaches the pages may rate`;
        if (!ports.some(({name, containerPort}) => name === 'http' && listens.endsWith(`:${containerPort}`))) {
          yield `${nameOf(workload)}: --http=${listens} is not at the port named http`;
        }
      }
    }
  },

  // Names of those that pods mount change with what they hold, so that pods start anew; others are known by their names.
  * configMaps(objects) {
    const mounted = new Set(workloads(objects).flatMap((workload) => podOf(workload).volumes ?? []).map(({configMap}) => configMap?.name));
    for (const object of ofKind(objects, 'ConfigMap')) {
      const hashed = /-[bcdfghkmt2456789]{10}$/.test(object.metadata.name);
      if (hashed !== mounted.has(object.metadata.name)) yield `${nameOf(object)} is ${hashed ? 'hashed, and nobody here mounts it' : 'mounted, and its name has no hash'}`;
    }
  },

  // As many pods as there may be have room in the namespace.
  * quota(objects) {
    for (const {spec: {hard}} of ofKind(objects, 'ResourceQuota')) {
      const sums = {'pods': 0, 'requests.cpu': 0, 'requests.memory': 0, 'requests.storage': 0, 'persistentvolumeclaims': 0};
      for (const workload of lasting(objects)) {
        const scaler = ofKind(objects, 'HorizontalPodAutoscaler').find(({spec}) => spec.scaleTargetRef.name === workload.metadata.name);
        const count = scaler?.spec.maxReplicas ?? workload.spec.replicas ?? 1;
        sums.pods += count;
        for (const {resources} of containersOf(workload)) {
          sums['requests.cpu'] += count * amount(resources?.requests?.cpu);
          sums['requests.memory'] += count * amount(resources?.requests?.memory);
        }
        for (const {spec} of workload.spec.volumeClaimTemplates ?? []) {
          sums.persistentvolumeclaims += count;
          sums['requests.storage'] += count * amount(spec.resources.requests.storage);
        }
      }
      for (const [what, sum] of Object.entries(sums)) {
        if (sum > amount(hard[what])) yield `ResourceQuota: ${sum} of ${what} are asked for, ${hard[what]} allowed`;
      }
    }
  },

  // Where cert-manager is asked for certificates, they are what the roles look for (docs/security.md).
  * certificates(objects) {
    const certificates = ofKind(objects, 'Certificate');
    if (certificates.length === 0) return;
    const of = (workload) => {
      const secret = (podOf(workload).volumes ?? []).find(({name}) => name === 'tls')?.secret.secretName;
      return certificates.find(({spec}) => spec.secretName === secret);
    };
    const matches = (name, pattern) => name === pattern || pattern === name.replace(/^[^.]*/, '*');
    const roles = {coordinator: 'coordinator', ps: 'shard', worker: 'worker'};
    const coordinator = lasting(objects).find((workload) => podOf(workload).containers[0].args[0] === 'coordinator');
    for (const workload of workloads(objects)) {
      const certificate = of(workload);
      if (certificate === undefined) {
        yield `${nameOf(workload)}: no Certificate fills its Secret`;
        continue;
      }
      const {args, ports = []} = podOf(workload).containers[0];
      const {uris = [], usages = [], issuerRef} = certificate.spec;
      const role = roles[args[0]];
      if (role !== undefined && uris.join() !== `spiffe://millrace/${role}`) yield `${nameOf(certificate)}: the role is not ${role}`;
      for (const usage of ['client auth', ...(ports.some(({name}) => name === 'grpc') ? ['server auth'] : [])]) {
        if (!usages.includes(usage)) yield `${nameOf(certificate)}: not for ${usage}`;
      }
      if (!objects.some((object) => object.kind === issuerRef.kind && object.metadata.name === issuerRef.name)) {
        yield `${nameOf(certificate)}: there is no ${issuerRef.kind}/${issuerRef.name}`;
      }
      for (const [flag, dialled] of [['coordinator', of(coordinator)], ['advertise', certificate]]) {
        const name = args.find((arg) => arg.startsWith(`--${flag}=`))?.slice(flag.length + 3).replace(/:\d+$/, '')
                         .replace('$(NAMESPACE)', workload.metadata.namespace).replace('$(POD_NAME)', `${workload.metadata.name}-0`);
        if (name !== undefined && !(dialled?.spec.dnsNames ?? []).some((pattern) => matches(name, pattern))) {
          yield `${nameOf(workload)}: no certificate has the name that is dialled, ${name}`;
        }
      }
    }
  },

  * monitors(objects) {
    if (lasting(objects).length === 0) return;  // alone
    for (const monitor of ofKind(objects, 'ServiceMonitor')) {
      for (const {port} of monitor.spec.endpoints) {
        const found = ofKind(objects, 'Service').filter(({metadata, spec}) => selects(monitor.spec.selector, metadata.labels ?? {}) &&
                                                        spec.ports.some(({name}) => name === port));
        if (found.length !== 1) yield `${nameOf(monitor)} finds ${found.length} Services with a port ${port}, not one`;
      }
    }
  },
};
