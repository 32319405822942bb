// Compares texts line by line.

// Lines of both, in order: [{kind: 'same' | 'removed' | 'added', line}]. The longest common subsequence stays; what a
// table of its lengths would be too large for is taken as replaced.
export function differences(before, after) {
  const a = before.split('\n');
  const b = after.split('\n');
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) ++start;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) ++end;
  const result = a.slice(0, start).map((line) => ({kind: 'same', line}));
  const x = a.slice(start, a.length - end);
  const y = b.slice(start, b.length - end);
  const width = y.length + 1;
  const table = x.length * y.length <= 4e6 ? new Uint32Array((x.length + 1) * width) : null;
  for (let i = x.length - 1; table !== null && i >= 0; --i) {
    for (let j = y.length - 1; j >= 0; --j) {
      table[i * width + j] = x[i] === y[j] ? table[(i + 1) * width + j + 1] + 1
                                           : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    }
  }
  let i = 0;
  let j = 0;
  while (i < x.length || j < y.length) {
    if (table !== null && i < x.length && j < y.length && x[i] === y[j]) {
      result.push({kind: 'same', line: x[i++]});
      ++j;
    } else if (i < x.length && (j === y.length || table === null || table[(i + 1) * width + j] >= table[i * width + j + 1])) {
      result.push({kind: 'removed', line: x[i++]});
    } else {
      result.push({kind: 'added', line: y[j++]});
    }
  }
  return result.concat(a.slice(a.length - end).map((line) => ({kind: 'same', line})));
}

// A job as a job file: a field a line, in the order of the coordinator's answer, without what is empty.
export function linesOf(value, indent = '') {
  const lines = [];
  for (const [name, item] of Object.entries(value)) {
    if (Array.isArray(item) && item.some((one) => one !== null && typeof one === 'object')) {
      lines.push(`${indent}${name}:`);
      for (const one of item) {
        const inner = linesOf(one, `${indent}    `);
        if (inner.length > 0) inner[0] = `${indent}  - ${inner[0].trimStart()}`;
        lines.push(...inner);
      }
    } else if (item !== null && typeof item === 'object' && !Array.isArray(item)) {
      const inner = linesOf(item, `${indent}  `);
      if (inner.length > 0) lines.push(`${indent}${name}:`, ...inner);
    } else if (!Array.isArray(item) || item.length > 0) {
      lines.push(`${indent}${name}: ${JSON.stringify(item)}`);
    }
  }
  return lines;
}
