// What a run's events say, kept in bounded memory: recoveries, changes of size, validation losses.
const MOST_INCIDENTS = 100;
const MOST_MARKS = 60;
const MOST_VALIDATIONS = 800;

const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

export class RunHistory {
  incidents = new Map(); // by number, in order
  resizes = [];
  validation = [];
  kept = false; // its state is kept in memory, so there will be a survey of it

  add(event) {
    const { kind, data, time_s: timeS, source } = event;
    if (source !== "run") return;
    const step = number(data.step);
    if (kind === "vaults.planned") this.kept = true;
    if (kind === "recovery.started" && step !== null) {
      this.incidents.set(data.incident, { ...this.incidents.get(data.incident), ...data, detectedS: number(data.detected_s) ?? timeS });
      while (this.incidents.size > MOST_INCIDENTS) this.incidents.delete(this.incidents.keys().next().value);
    } else if (kind === "recovery.finished" && this.incidents.has(data.incident)) {
      Object.assign(this.incidents.get(data.incident), { tookS: number(data.seconds), repeated: number(data.steps_recomputed), workers: number(data.world_size) });
    } else if (kind === "gang.resized" && step !== null) {
      this.resizes = [...this.resizes, { step, before: number(data.before), workers: number(data.world_size), timeS }].slice(-MOST_INCIDENTS);
    } else if (kind === "eval" && step !== null && number(data.loss) !== null) {
      this.validation = [...this.validation.filter((each) => each.step < step), { step, mean: data.loss, low: data.loss, high: data.loss }].slice(-MOST_VALIDATIONS);
    }
  }

  // For the charts.
  get marks() {
    const recoveries = [...this.incidents.values()].map(({ step, rank, reason }) => ({
      step, colour: "bad", text: reason === "numeric_fault" ? "rolled back" : `worker ${rank} lost`,
    }));
    const resizes = this.resizes.map(({ step, before, workers }) => ({ step, colour: "c4", text: `${before} to ${workers} workers` }));
    return [...recoveries.slice(-MOST_MARKS), ...resizes.slice(-MOST_MARKS)];
  }
}
