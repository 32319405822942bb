// Holds objects to Kubernetes' own schemas, with unknown fields refused.

// Gives `value` so that `notes` has, for every object in it, which of its fields were looked at: the validators are
// code that looks at the fields that a schema knows, so a field that was not looked at is unknown.
function watched(value, where, notes, made = new Map()) {
  if (value === null || typeof value !== 'object') return value;
  if (made.has(value)) return made.get(value);
  const seen = new Set();
  if (!Array.isArray(value)) notes.push({value, where, seen});
  const proxy = new Proxy(value, {
    get(target, field) {
      if (typeof field === 'string') seen.add(field);
      return watched(target[field], `${where}/${String(field)}`, notes, made);
    },
  });
  made.set(value, proxy);
  return proxy;
}

// Fields that Kubernetes has and kubernetes-models has not.
const kNotInModels = new Set(['PriorityClass/description']);

// What is wrong with one object, a line each.
export async function againstSchema(tools, object) {
  const validate = await tools.schemaOf(object);
  const name = `${object.kind}/${object.metadata?.name}`;
  if (validate === null) return [`${name}: there is no ${object.kind} in ${object.apiVersion}`];
  const notes = [];
  const wrong = [];
  if (!validate(watched(object, '', notes))) {
    for (const error of validate.errors) {
      wrong.push(`${name}: ${error.instancePath || '/'}: ${error.keyword} ${JSON.stringify(error.params)}`);
    }
  }
  for (const {value, where, seen} of notes) {
    for (const field of Object.keys(value)) {
      if (!seen.has(field) && !kNotInModels.has(`${object.kind}${where}/${field}`)) {
        wrong.push(`${name}: ${where}/${field}: there is no such field`);
      }
    }
  }
  return wrong;
}
