// The events of a run as they come, and the incidents and changes of size among them.
import { path } from "./api.js";
import { el, fill, section } from "./dom.js";
import { RunHistory } from "./run_history.js";
import { Table } from "./table.js";
import { clock, duration, plural, when, whole } from "./text.js";
import { VisibleStream } from "./visible_stream.js";

const MOST_SHOWN = 300;
const MOST_DATA = 400;
const DRAWN_MS = 150;
const INCIDENTS = [
  { name: "Incident", number: true }, { name: "Detected" }, { name: "Who" }, { name: "Cause", wide: true },
  { name: "After step", number: true }, { name: "Continued from" }, { name: "Took", number: true },
  { name: "Steps repeated", number: true },
];
const RESIZES = [
  { name: "When" }, { name: "After step", number: true }, { name: "Workers before", number: true },
  { name: "Workers then", number: true },
];
const STATES = { open: "live", waiting: "reconnecting", ended: "complete: the run has ended", refused: "refused" };

export class EventsPanel {
  #timer = 0;
  #fresh = [];

  // `onHistory`: called after incidents, changes of size or validation losses may have changed.
  constructor({ api, onError }, id, onHistory) {
    this.history = new RunHistory();
    this.onHistory = onHistory;
    this.list = el("ol", { class: "events", role: "log", tabindex: 0, "aria-label": "Events, the newest first" });
    this.state = el("span", { class: "live", role: "status" }, "connecting");
    this.table = new Table("Recoveries", INCIDENTS, "No worker was lost.");
    this.resizes = new Table("Changes of size", RESIZES, "The number of workers has not changed.");
    this.incidents = section("incidents", "Incidents", this.table.element, el("h3", { class: "apart" }, "Changes of size"), this.resizes.element);
    this.element = section("events", "Events", el("p", { class: "lead" }, this.state), this.list);
    this.stream = new VisibleStream((lastId) => api.stream(path("runs", id, "events", "stream"), {}, {
      lastId,
      onEvent: (event) => this.#take(event),
      onState: (state, error) => {
        fill(this.state, error ? `${STATES[state]}: ${error.message}` : STATES[state]);
        if (error) onError(error);
      },
    }));
  }

  stop() {
    clearTimeout(this.#timer);
    this.stream.stop();
  }

  #take({ data, id }) {
    const event = JSON.parse(data);
    this.stream.lastId = id;
    this.history.add(event);
    this.#fresh.push(event);
    if (this.#fresh.length > MOST_SHOWN) this.#fresh.shift();
    if (!this.#timer) this.#timer = setTimeout(() => this.#draw(), DRAWN_MS);
  }

  #draw() {
    this.#timer = 0;
    this.list.prepend(...this.#fresh.splice(0).reverse().map(itemOf));
    while (this.list.children.length > MOST_SHOWN) this.list.lastChild.remove();
    this.table.update([...this.history.incidents.values()].reverse().map(incidentRow));
    this.resizes.element.hidden = this.resizes.element.previousSibling.hidden = !this.history.resizes.length;
    this.resizes.update([...this.history.resizes].reverse().map(({ step, before, workers, timeS }) =>
      ({ key: timeS, cells: [[when(timeS)], [whole(step)], [whole(before)], [whole(workers)]] })));
    this.onHistory();
  }
}

function incidentRow({ incident, detectedS, rank, reason, cause, step, from_step: from, source, tookS, repeated, workers }) {
  const took = tookS === undefined ? "not over" : duration(tookS);
  const line = String(cause || "").split("\n")[0].slice(0, 300);
  const left = workers ? `, ${plural(workers, "worker")} then` : "";
  return { key: incident, cells: [
    [whole(incident)], [when(detectedS)], [reason === "numeric_fault" ? "all workers" : `worker ${rank}`],
    [`${String(reason || "").replaceAll("_", " ")}: ${line}${left}`], [whole(step)],
    [`${whole(from)}${source ? ` (${source})` : ""}`], [took], [whole(repeated)],
  ] };
}

const KNOWN = ["state", "reason", "message", "user", "places", "from", "to"]; // the message has them
const UNIX = 1e9; // larger ones are times, not durations

function itemOf({ time_s: timeS, source, kind, message, data }) {
  const rest = Object.entries(data).filter(([name, value]) => value !== null && !KNOWN.includes(name))
    .map(([name, value]) => `${name.replace(/_s$/, "")} ${valueOf(name, value)}`);
  if (data.to) rest.unshift(data.from ? `${data.from} → ${data.to}` : `→ ${data.to}`);
  const said = message.startsWith(`${kind}: `) ? message.slice(kind.length + 2) : message === kind ? "" : message;
  return el("li", { class: source === "queue" ? "from-queue" : "" },
    el("time", { title: when(timeS) }, clock(timeS)),
    el("b", {}, source === "queue" ? `queue ${kind}` : kind),
    el("span", {}, said, " ", el("span", { class: "data" }, rest.join(", ").slice(0, MOST_DATA))));
}

function valueOf(name, value) {
  if (typeof value === "object") return JSON.stringify(value);
  if (typeof value !== "number") return value;
  if (!name.endsWith("_s")) return Number.isInteger(value) ? value : Number(value.toPrecision(4));
  return value > UNIX ? when(value) : duration(value);
}
