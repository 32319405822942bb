// Does cert-manager's part where there is none: signs what a Certificate asks for, with openssl.
import {execFileSync} from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';

const kUsages = {
  'digital signature': ['keyUsage', 'digitalSignature'],
  'server auth': ['extendedKeyUsage', 'serverAuth'],
  'client auth': ['extendedKeyUsage', 'clientAuth']
};

// The files of the Secret that `certificate` names, signed by ca.crt and ca.key of `authority`; `addresses` are IP
// addresses to put in besides. Writes to `folder`.
export function sign(certificate, authority, addresses, folder) {
  const {commonName, dnsNames = [], uris = [], usages, privateKey, duration} = certificate.spec;
  const extensions = {
    basicConstraints: ['CA:FALSE'],
    keyUsage: [],
    extendedKeyUsage: [],
    subjectAltName: [
      ...dnsNames.map((name) => `DNS:${name}`), ...uris.map((uri) => `URI:${uri}`), ...addresses.map((ip) => `IP:${ip}`)
    ]
  };
  for (const usage of usages) extensions[kUsages[usage][0]].push(kUsages[usage][1]);
  fs.mkdirSync(folder, {recursive: true});
  const file = (name) => path.join(folder, name);
  const openssl = (...args) => execFileSync('openssl', args, {stdio: 'pipe'});
  fs.writeFileSync(
      file('extensions'), Object.entries(extensions).map(([name, values]) => `${name}=${values.join(',')}\n`).join(''));
  if (privateKey.algorithm !== 'ECDSA' || privateKey.size !== 256)
    throw new Error(`a key of ${privateKey.algorithm} ${privateKey.size}`);
  openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out', file('tls.key'));
  openssl('req', '-new', '-key', file('tls.key'), '-subj', `/CN=${commonName}`, '-out', file('request'));
  openssl(
      'x509', '-req', '-in', file('request'), '-CA', path.join(authority, 'ca.crt'), '-CAkey',
      path.join(authority, 'ca.key'), '-CAcreateserial', '-days', String(parseInt(duration) / 24), '-extfile',
      file('extensions'), '-out', file('tls.crt'));
  fs.copyFileSync(path.join(authority, 'ca.crt'), file('ca.crt'));
  return Object.fromEntries(
      ['tls.crt', 'tls.key', 'ca.crt'].map((name) => [name, fs.readFileSync(file(name), 'utf8')]));
}
