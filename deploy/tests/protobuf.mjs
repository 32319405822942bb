// `kubectl create` sends objects in Kubernetes' protobuf: "k8s\0", then runtime.Unknown, which holds the type and the
// object. Here are the messages and fields of them that it fills for a namespace, a ConfigMap and a Secret.

const text = (bytes) => bytes.toString('utf8');
const base64 = (bytes) => bytes.toString('base64');
const map = (value) => (bytes, whole) => {
  const entry = {key: '', value: ''};
  read(bytes, {1: ['key', text], 2: ['value', value]}, entry);
  return {...whole, [entry.key]: entry.value};
};
const message = (fields) => (bytes) => read(bytes, fields);

const kMetadata =
    message({1: ['name', text], 3: ['namespace', text], 11: ['labels', map(text)], 12: ['annotations', map(text)]});
const kTypes = {
  Namespace: {1: ['metadata', kMetadata]},
  ConfigMap: {1: ['metadata', kMetadata], 2: ['data', map(text)]},
  Secret: {1: ['metadata', kMetadata], 2: ['data', map(base64)], 3: ['type', text]},
};
const kUnknown = {
  1: ['type', message({1: ['apiVersion', text], 2: ['kind', text]})],
  2: ['raw', (bytes) => bytes]
};

function read(bytes, fields, into = {}) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1;; scale *= 128) {
      const byte = bytes[at++];
      if (byte === undefined) throw new Error('a message ends within a number');
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    if (tag % 8 === 0) {
      varint();  // numbers and flags: none that is asked for
    } else if (tag % 8 === 2) {
      const size = varint();
      const value = bytes.subarray(at, at += size);
      const [name, decode] = fields[Math.floor(tag / 8)] ?? [];
      // What is empty is not set: kubectl writes every field of a message.
      if (name === undefined && size > 2)
        throw new Error(`field ${Math.floor(tag / 8)} of ${size} bytes is not known here`);
      if (name !== undefined && size > 0) into[name] = decode(value, into[name]);
    } else {
      throw new Error(`a field of wire type ${tag % 8}`);
    }
  }
  return into;
}

export function decode(bytes) {
  if (bytes.toString('latin1', 0, 4) !== 'k8s\0') throw new Error('neither JSON nor protobuf');
  const {type, raw} = read(bytes.subarray(4), kUnknown);
  if (kTypes[type.kind] === undefined) throw new Error(`${type.kind} in protobuf is not known here`);
  return {...type, ...read(raw, kTypes[type.kind])};
}
