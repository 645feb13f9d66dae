// One run, live.
import { path } from "./api.js";
import { el, fill, section } from "./dom.js";
import { Poll } from "./polling.js";
import { CURVES, RunCharts } from "./run_charts.js";
import { EventsPanel } from "./run_events.js";
import { RunHead, factsOf } from "./run_head.js";
import { LogsPanel } from "./run_logs.js";
import { RecordsPanel } from "./run_records.js";

const REFRESH_S = 2, CURVES_S = 4, RECORDS_S = 8;
const FINAL = ["succeeded", "failed", "cancelled"];
const NOTHING = { step: 0, total_steps: null, loss: null, validation_loss: null, tokens_per_s: null, step_time_s: null,
  eta_s: null, recoveries: 0 };

export function runView(context, query) {
  const view = new RunPage(context, query);
  return { element: view.element, title: query, stop: () => view.stop() };
}

class RunPage {
  #polls = [];
  #panels = null;
  #curves = {};
  #goodput = null;
  #shown = null; // the run and its progress, as last asked for
  #step = 0;
  #over = false;
  #refused = ""; // the state in which there was no record
  #asked = false; // for the survey of its copies

  constructor(context, query) {
    Object.assign(this, { context, id: query });
    this.head = new RunHead(context, () => this.refresh.now());
    this.body = el("div", {});
    this.element = el("div", {}, this.head.element, this.body);
    this.refresh = new Poll(context.connection, REFRESH_S, () => this.#look(), (error) => this.#failed(error));
  }

  stop() {
    this.refresh.stop();
    this.#end();
  }

  #failed(error) {
    if (!this.context.onError(error)) this.head.fail(error);
  }

  async #look() {
    const { api } = this.context;
    const run = await api.get(path("runs", this.id));
    const progress = await this.#progressOf(run);
    if (this.refresh.stopped) return;
    const again = this.#over && !FINAL.includes(run.state);
    this.id = run.id;
    this.#over = FINAL.includes(run.state);
    this.#step = progress.step;
    if (again) this.#end();
    if (!this.#panels) this.#begin();
    this.#shown = [run, progress];
    this.head.update(run, progress, this.#goodput);
    fill(this.#panels.facts, factsOf(run));
  }

  // What its driver has recorded; nothing of a run that has had none. A refusal is not asked for again in the same state.
  async #progressOf(run) {
    const begun = run.run_state !== null || run.step > 0 || (FINAL.includes(run.state) && run.started_s !== null);
    const state = `${run.state} ${run.run_state} ${run.attempt}`;
    if (!begun || this.#refused === state) return NOTHING;
    try {
      return await this.context.api.get(path("runs", run.id, "progress"));
    } catch (error) {
      if (error.status !== 404) throw error;
      this.#refused = state;
      return NOTHING;
    }
  }

  // The parts that have requests of their own. A run that is tried again gets new ones.
  #begin() {
    const charts = new RunCharts();
    const draw = () => {
      charts.update(this.#curves, events.history);
      if (events.history.kept && !this.#asked) this.#polls[1]?.now();
    };
    const events = new EventsPanel(this.context, this.id, draw);
    const logs = new LogsPanel(this.context, this.id);
    const records = new RecordsPanel();
    const facts = el("div", {});
    this.#panels = { charts, events, logs, records, facts };
    fill(this.body,
      section("training", "Training", charts.loss.element,
        el("div", { class: "pair" }, charts.speed.element, charts.phases.element)),
      events.incidents, records.durability, records.goodput, events.element, logs.element,
      section("facts", "About this run", facts));
    const { connection } = this.context;
    const failed = (error) => this.#failed(error);
    this.#polls = [
      new Poll(connection, CURVES_S, () => this.#untilOver(() => this.#askCurves(draw)), failed),
      new Poll(connection, RECORDS_S, () => this.#untilOver(() => this.#askRecords()), failed),
    ];
  }

  #end() {
    for (const poll of this.#polls.splice(0)) poll.stop();
    for (const part of ["charts", "events", "logs"]) this.#panels?.[part].stop();
    this.#panels = null;
    this.#asked = false;
  }

  // Asks once more after the end of the run, and then no more.
  async #untilOver(ask) {
    const over = this.#over;
    await ask();
    return !over;
  }

  async #askCurves(draw) {
    const found = await this.context.api.get(path("runs", this.id, "steps"), { curve: CURVES, points: 400 });
    this.#curves = found.curves;
    if (this.#panels) draw();
  }

  // What would be refused, since there is nothing yet, is not asked for.
  async #askRecords() {
    if (!this.#panels || !this.#step) return;
    const get = (what) => this.context.api.get(path("runs", this.id, what));
    const { events, records } = this.#panels;
    this.#asked = events.history.kept;
    const [spent, copies] = await Promise.all([get("goodput"), events.history.kept ? get("durability") : null]);
    this.#goodput = spent.recorded;
    records.update(copies?.recorded ?? null, spent.recorded);
    this.head.update(...this.#shown, this.#goodput);
  }
}
