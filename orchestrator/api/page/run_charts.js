// The curves of one run: loss, throughput, and where the time of a step goes.
import { Chart } from "./chart.js";
import { brief, count, loss } from "./text.js";

// Phases in the order in which they are stacked, with the colours that reports have.
const PHASES = { data_wait: 5, forward: 1, backward: 4, optimizer: 3, checkpoint: 6, snapshot: 2 };
export const CURVES = ["loss", "tokens_per_s", ...Object.keys(PHASES).map((phase) => `${phase}_s`)];
const NOTHING = "No step was finished yet.";

export class RunCharts {
  constructor() {
    this.loss = new Chart("Loss", { format: loss, tick: (value) => String(Number(value.toPrecision(4))), note: "nats per token; vertical lines: recoveries and changes of size", tall: true, empty: NOTHING });
    this.speed = new Chart("Throughput", { format: (value) => `${count(value)} tokens/s`, tick: count, fromZero: true, note: "tokens per second", empty: NOTHING });
    this.phases = new Chart("Phases of a step", { format: brief, stacked: true, fromZero: true, note: "mean over the workers", empty: NOTHING });
    this.elements = [this.loss.element, this.speed.element, this.phases.element];
  }

  // curves: as the API sends them; happenings: see `RunHistory`.
  update(curves, { marks, validation }) {
    const found = (name) => curves[name] || [];
    this.loss.update([
      { name: "training loss", colour: 1, samples: found("loss") },
      { name: "validation loss", colour: 2, samples: validation, dots: true },
    ], marks);
    this.speed.update([{ name: "throughput", colour: 3, samples: found("tokens_per_s") }], marks);
    const phases = Object.entries(PHASES).map(([phase, colour]) =>
      ({ name: phase.replaceAll("_", " "), colour, samples: found(`${phase}_s`) }));
    this.phases.update(phases.filter(({ samples }) => samples.some((sample) => sample.mean > 0)), []);
  }

  stop() {
    for (const chart of [this.loss, this.speed, this.phases]) chart.stop();
  }
}
