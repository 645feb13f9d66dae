// A chart of curves over the steps, drawn by uPlot, with what happened as vertical lines and the values under the pointer.
import { el, fill } from "./dom.js";
import { whole } from "./text.js";
import uPlot from "./vendor/uPlot.esm.js";

const STEPS = [1, 2, 5].flatMap((digit) => [...Array(8).keys()].map((power) => digit * 10 ** power)).sort((a, b) => a - b);
const dark = matchMedia("(prefers-color-scheme: dark)");
const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export class Chart {
  #plot = null;
  #lines = [];
  #marks = [];
  #x = [];

  // format: a value as text; tick: the same, shorter, for the axis; stacked: areas on top of each other; fromZero: the
  // axis begins with 0; empty: in place of a chart without values.
  constructor(title, { format, tick = format, stacked = false, fromZero = false, note = "", tall = false, empty }) {
    Object.assign(this, { title, format, tick, stacked, fromZero });
    this.place = el("div", { class: "uplot-place" });
    this.tip = el("div", { class: "tip", hidden: true });
    this.legend = el("ul", { class: "legend" });
    this.empty = el("p", { class: "empty" }, empty);
    this.surface = el("div", { class: "surface", role: "img", tabindex: 0, "aria-label": title, on: {
      keydown: (event) => this.#key(event), blur: () => this.#hide(),
    } }, this.place, this.tip);
    this.height = tall ? 300 : 190;
    this.element = el("figure", { class: "chart" },
      el("figcaption", {}, el("h3", {}, title), this.legend, note ? el("span", { class: "note" }, note) : null),
      this.surface, this.empty);
    this.observer = new ResizeObserver(() => this.#fit());
    this.observer.observe(this.place);
    this.redraw = () => this.#build();
    dark.addEventListener("change", this.redraw);
    this.update([], []);
  }

  stop() {
    this.observer.disconnect();
    dark.removeEventListener("change", this.redraw);
    this.#plot?.destroy();
  }

  // lines: [{name, colour (1 to 6), samples: [{step, mean, low, high}], dots}]; marks: [{step, text, colour}].
  update(lines, marks) {
    const shown = lines.filter((line) => line.samples.length);
    const same = this.#lines.map((line) => line.name).join() === shown.map((line) => line.name).join();
    this.#lines = shown;
    this.#marks = marks;
    this.empty.hidden = shown.length > 0;
    this.surface.hidden = !shown.length;
    if (!same || !this.#plot) this.#build();
    else this.#give();
    this.surface.setAttribute("aria-label", this.#words());
  }

  #words() {
    const parts = this.#lines.map(({ name, samples }) => {
      const [first, last] = [samples[0], samples.at(-1)];
      return `${name} from ${this.format(first.mean)} at step ${whole(first.step)} to ${this.format(last.mean)} at step ${whole(last.step)}`;
    });
    return `${this.title}: ${parts.join("; ")}${this.#marks.length ? `; ${this.#marks.length} marks` : ""}`;
  }

  // uPlot's columns: steps, then a column for each line; of a line with a range also its highest and lowest values.
  #columns() {
    const steps = [...new Set(this.#lines.flatMap((line) => line.samples.map((sample) => sample.step)))].sort((a, b) => a - b);
    const index = new Map(steps.map((step, i) => [step, i]));
    const column = (samples, field) => {
      const values = Array(steps.length).fill(null);
      for (const sample of samples) values[index.get(sample.step)] = sample[field];
      return values;
    };
    const columns = this.#lines.map((line) => column(line.samples, "mean"));
    if (this.stacked) {
      for (let i = 1; i < columns.length; i++) columns[i] = columns[i].map((value, at) => (value || 0) + (columns[i - 1][at] || 0));
    } else {
      const ranged = this.#lines[0];
      columns.push(column(ranged.samples, "high"), column(ranged.samples, "low"));
    }
    this.#x = steps;
    return [steps, ...columns];
  }

  #build() {
    this.#plot?.destroy();
    this.#plot = null;
    fill(this.legend, this.#lines.length > 1
      ? this.#lines.map(({ name, colour }) => el("li", {}, el("i", { class: `c${colour}` }), name)) : []);
    if (!this.#lines.length) return;
    const width = this.place.clientWidth || 600;
    this.#plot = new uPlot(this.#options(width), this.#columns(), this.place);
  }

  #options(width) {
    const [ink, grid] = [colourOf("soft"), colourOf("grid")];
    const font = "12px system-ui, sans-serif";
    const axis = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1, size: 4 } };
    const count = this.#lines.length;
    const line = ({ name, colour, dots }) => {
      const stroke = colourOf(`c${colour}`);
      return { label: name, stroke, width: this.stacked ? 0.75 : 1.75, spanGaps: true, points: dots ? { show: true, size: 6, fill: stroke } : { show: false },
        fill: this.stacked ? `${stroke}cc` : undefined };
    };
    const unseen = { stroke: "transparent", width: 0, points: { show: false } };
    const bands = this.stacked
      ? [...Array(count - 1).keys()].map((i) => ({ series: [i + 2, i + 1] }))
      : [{ series: [count + 1, count + 2], fill: `${colourOf(`c${this.#lines[0].colour}`)}29` }];
    return {
      width, height: this.height, padding: [8, 22, 0, 0], legend: { show: false },
      cursor: { y: false, drag: { x: true, y: false, setScale: true }, points: { show: false } },
      scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
        y: { range: (_, low, high) => this.#range(low, high) } },
      axes: [
        { ...axis, incrs: STEPS, values: (_, ticks) => ticks.map(whole), space: 70, size: 34 },
        { ...axis, values: (_, ticks) => ticks.map(this.tick), size: width < 480 ? 52 : 64, space: 32 },
      ],
      series: [{}, ...this.#lines.map(line), ...(this.stacked ? [] : [unseen, unseen])],
      bands,
      hooks: { draw: [(plot) => this.#drawMarks(plot)], setCursor: [(plot) => this.#point(plot)] },
    };
  }

  #range(low, high) {
    if (low === null || high === null) return [0, 1];
    const bottom = this.fromZero ? Math.min(0, low) : low;
    const room = 0.06 * (high - bottom || Math.abs(high) || 1);
    return [this.fromZero ? bottom : bottom - room, high + room];
  }

  #give() {
    const [low, high] = [this.#x[0], this.#x.at(-1)];
    const { min, max } = this.#plot.scales.x;
    const zoomed = this.#x.length > 1 && (min > low || max < high);
    this.#plot.setData(this.#columns(), !zoomed);
    if (zoomed) this.#plot.redraw();
  }

  #fit() {
    const width = this.place.clientWidth;
    if (this.#plot && width && width !== this.#plot.width) this.#plot.setSize({ width, height: this.height });
  }

  #drawMarks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.lineWidth = devicePixelRatio;
    for (const { step, colour } of this.#marks) {
      const x = Math.round(plot.valToPos(step, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = colourOf(colour);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  // Shows the values of the step under the pointer.
  #point(plot) {
    const index = plot.cursor.idx;
    if (index === null || index === undefined || plot.cursor.left < 0) {
      this.#hide();
      return;
    }
    const step = this.#x[index];
    const rows = [el("span", {}, `step ${whole(step)}`)];
    for (const { name, colour, samples } of this.#lines) {
      const sample = samples.find((each) => each.step === step);
      if (sample) rows.push(el("span", {}, el("i", { class: `c${colour}` }), `${name} ${this.format(sample.mean)}`));
    }
    const before = index ? this.#x[index - 1] : -Infinity;
    for (const mark of this.#marks) if (mark.step > before && mark.step <= step) rows.push(el("span", {}, mark.text));
    fill(this.tip, rows);
    this.tip.hidden = false;
    const [left, outer] = [plot.over.offsetLeft + plot.cursor.left, this.surface.clientWidth];
    const wanted = left > outer / 2 ? left - this.tip.offsetWidth - 12 : left + 12;
    this.tip.style.setProperty("left", `${Math.max(0, Math.min(outer - this.tip.offsetWidth - 4, wanted))}px`);
  }

  #hide() {
    this.tip.hidden = true;
  }

  #key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !this.#plot) return;
    event.preventDefault();
    const from = this.tip.hidden ? (move > 0 ? -1 : this.#x.length) : this.#plot.cursor.idx ?? -1;
    const index = Math.max(0, Math.min(this.#x.length - 1, from + move));
    this.#plot.setCursor({ left: this.#plot.valToPos(this.#x[index], "x"), top: 10 });
  }
}
