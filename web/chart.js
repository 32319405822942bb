// Draws curves of several jobs over each other, against steps, tokens or time.

// Distinguishable on white and on black (Okabe and Ito's, without black and yellow), then again with other dashes.
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00'];
const DASHES = [null, [6, 3], [2, 2], [8, 3, 2, 3]];
const MOST_ROWS = 2000;
const NAMES = {
  train_loss: 'training loss', held_out_loss: 'held-out loss', learning_rate: 'learning rate',
  gradient_norm: 'gradient norm', tokens_per_second: 'tokens a second',
};

// Its legend is made of inline styles, which this page refuses: Chart has one of its own.
Dygraph.PLUGINS = Dygraph.PLUGINS.filter((plugin) => plugin !== Dygraph.Plugins.Legend);

export function colourOf(index) {
  return COLOURS[index % COLOURS.length];
}

export function metricName(metric) {
  return NAMES[metric] ?? metric.replace('/', ': ').replaceAll('_', ' ');
}

// Curves as one table with a row for each x that any of them has: what Dygraph takes. A table of many curves has at most
// MOST_ROWS, which is finer than a screen: an x goes to the nearest.
export function tableOf(curves, axis) {
  const rows = new Map();
  const xsOf = (curve) => axis === 'time' ? curve.unix_ms : curve[axis];
  let cells = 0, first = Infinity, last = -Infinity;
  for (const curve of curves) {
    const xs = xsOf(curve);
    cells += xs.length;
    first = Math.min(first, xs[0] + curve.offset[axis]);
    last = Math.max(last, xs.at(-1) + curve.offset[axis]);
  }
  const width = curves.length > 2 && cells > MOST_ROWS ? (last - first) / (MOST_ROWS - 1) : 0;
  curves.forEach((curve, column) => {
    // Phases count from 0 again: laid one behind the other.
    xsOf(curve).forEach((x, i) => {
      let at = x + curve.offset[axis];
      if (width > 0) at = Math.round(first + width * Math.round((at - first) / width));
      let row = rows.get(at);
      if (row === undefined) {
        row = new Array(curves.length).fill(null);
        rows.set(at, row);
      }
      row[column] = curve.values[i];
    });
  });
  return [...rows.keys()].sort((a, b) => a - b).map((x) => [axis === 'time' ? new Date(x) : x, ...rows.get(x)]);
}

// Gives each curve where its phase begins on each axis: behind the phases of its job before it.
export function layPhases(curves, phaseOrder) {
  const ends = new Map();
  for (const curve of curves) {
    const key = `${curve.job_id}\n${curve.phase}`;
    const end = ends.get(key) ?? {steps: 0, tokens: 0};
    end.steps = Math.max(end.steps, curve.steps.at(-1));
    end.tokens = Math.max(end.tokens, curve.tokens.at(-1));
    ends.set(key, end);
  }
  for (const curve of curves) {
    curve.offset = {steps: 0, tokens: 0, time: 0};
    for (const phase of phaseOrder(curve.job_id)) {
      if (phase === curve.phase) break;
      const end = ends.get(`${curve.job_id}\n${phase}`);
      if (end === undefined) continue;
      curve.offset.steps += end.steps;
      curve.offset.tokens += end.tokens;
    }
  }
}

// A chart with its choices of metric, axis and scale. `onChoice` is called when another metric is wanted.
export class Chart {
  constructor(box, onChoice) {
    this.onChoice = onChoice;
    this.metrics = ['train_loss', 'held_out_loss'];
    this.graph = null;
    this.curves = [];
    this.box = box;
    box.classList.add('chart');
    const id = box.id;
    box.innerHTML = `
      <p class="filters">
        <label for="${id}-metric">Show</label><select id="${id}-metric"></select>
        <label for="${id}-axis">against</label>
        <select id="${id}-axis"><option value="steps">steps</option><option value="tokens">tokens</option><option value="time">time</option></select>
        <label><input id="${id}-log" type="checkbox"> logarithmic</label>
      </p>
      <div class="chart-box" role="img" aria-label="Curves"></div>
      <p class="chart-legend" aria-hidden="true"></p>
      <p class="chart-empty" hidden>Nothing has been measured yet.</p>`;
    this.metricChoice = box.querySelector(`#${id}-metric`);
    this.axisChoice = box.querySelector(`#${id}-axis`);
    this.logChoice = box.querySelector(`#${id}-log`);
    this.offer([]);
    this.metricChoice.addEventListener('change', () => {
      this.metrics = this.metricChoice.value === '' ? ['train_loss', 'held_out_loss'] : [this.metricChoice.value];
      this.onChoice();
    });
    this.axisChoice.addEventListener('change', () => this.draw());
    this.logChoice.addEventListener('change', () => this.draw());
  }

  // The metrics that can be chosen, besides the losses.
  offer(metrics) {
    const names = ['', ...new Set([...Object.keys(NAMES), ...metrics])];
    if (names.length === this.metricChoice.options.length) return;
    const chosen = this.metricChoice.value;
    this.metricChoice.replaceChildren(...names.map((name) => {
      const option = document.createElement('option');
      option.value = name;
      option.textContent = name === '' ? 'losses' : metricName(name);
      return option;
    }));
    this.metricChoice.value = names.includes(chosen) ? chosen : '';
  }

  // `colours`: index by job.
  show(curves, colours) {
    this.curves = curves;
    this.colours = colours;
    this.draw();
  }

  // What is under the pointer; without points, nothing is.
  tell(axis, x, points = []) {
    this.at.textContent = points.length === 0 ? '' : axis === 'time' ? new Date(x).toLocaleString() : `${axis} ${x.toLocaleString()}`;
    const values = new Map(points.map(({name, yval}) => [name, yval]));
    for (const [label, value] of this.values) value.textContent = values.has(label) ? values.get(label).toPrecision(5) : '';
  }

  draw() {
    const {curves} = this;
    const empty = curves.length === 0;
    this.box.querySelector('.chart-empty').hidden = !empty;
    this.box.querySelector('.chart-box').hidden = empty;
    this.box.querySelector('.chart-legend').hidden = empty;
    if (empty) {
      this.graph?.destroy();
      this.graph = null;
      return;
    }
    const axis = this.axisChoice.value;
    const several = new Set(curves.map(({job_id}) => job_id)).size > 1;
    const phases = new Set(curves.map(({phase}) => phase)).size > 1;
    const metrics = [...new Set(curves.map(({metric}) => metric))];
    const labels = curves.map((curve) => [
      several ? curve.job_id : '', phases ? curve.phase : '', metrics.length > 1 || !several ? metricName(curve.metric) : '',
    ].filter((part) => part !== '').join(', '));
    const series = {};
    const colours = [];
    curves.forEach((curve, i) => {
      const kind = metrics.indexOf(curve.metric);
      const index = several ? this.colours.get(curve.job_id) ?? 0 : i;
      colours.push(colourOf(index));
      series[labels[i]] = {
        strokePattern: several ? DASHES[(Math.floor(index / COLOURS.length) + kind) % DASHES.length] : null,
        strokeWidth: curve.metric.startsWith('held_out') ? 2.5 : 1.5,
        drawPoints: curve.values.length < 60, pointSize: 3, connectSeparatedPoints: true,
      };
    });
    const ink = getComputedStyle(document.body).color;
    const options = {
      file: tableOf(curves, axis), labels: [axis, ...labels], colors: colours, series, logscale: this.logChoice.checked,
      axisLineColor: ink, gridLineColor: 'rgba(128, 128, 128, 0.3)', highlightCircleSize: 4,
      labelsKMB: true, digitsAfterDecimal: 4,
      highlightCallback: (event, x, points) => this.tell(axis, x, points), unhighlightCallback: () => this.tell(axis),
    };
    this.values = new Map();
    this.at = document.createElement('span');
    this.box.querySelector('.chart-legend').replaceChildren(...labels.flatMap((label, i) => {
      const swatch = document.createElement('span');
      swatch.className = 'swatch';
      swatch.style.background = colours[i];
      const value = document.createElement('b');
      this.values.set(label, value);
      const entry = document.createElement('span');
      entry.className = 'entry';
      entry.append(swatch, `${label} `, value);
      return [entry];
    }), this.at);
    if (this.graph === null) {
      this.graph = new Dygraph(this.box.querySelector('.chart-box'), options.file, {...options, file: undefined});
    } else {
      this.graph.updateOptions(options);
    }
  }
}
