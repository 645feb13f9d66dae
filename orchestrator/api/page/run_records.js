// How safe a run's state is, and what the time of its workers was spent on.
import { el, fill, fillIfChanged, section } from "./dom.js";
import { facts } from "./table.js";
import { duration, percent, plural, size, whole } from "./text.js";

const STYLES = { productive: "productive", idle_tail: "other", startup: "start", evaluation: "work", export: "work",
  checkpoint_stall: "work", snapshot_stall: "work", communication_wait: "work" };
const step = (value) => (value === null || value === undefined ? "none" : `step ${whole(value)}`);

export class RecordsPanel {
  constructor() {
    this.copies = el("div", {}, el("p", { class: "empty" }, "There is no survey of the copies yet."));
    this.time = el("div", {}, el("p", { class: "empty" }, "There is no account of the time yet."));
    this.durability = section("durability", "Durability", this.copies);
    this.goodput = section("goodput", "Where the time went", this.time);
  }

  // The files as the API sends them; null if there is none.
  update(copies, spent) {
    if (copies) fillIfChanged(this.copies, copies, () => durabilityOf(copies));
    if (spent) fillIfChanged(this.time, spent, () => goodputOf(spent));
  }
}

function durabilityOf(found) {
  const exposed = found.unrecoverable || [];
  const where = found.safe_step ? `from ${step(found.safe_step)}` : "from the beginning";
  const repeated = found.steps_at_risk ? `${plural(found.steps_at_risk, "step")} would be repeated` : "no step would be repeated";
  const ended = found.kept ? `The driver has ended, and the nodes keep ${step(found.peers_step)} in memory.`
    : `The driver has ended. Training would continue from storage: ${step(found.storage_step)}.`;
  const nodes = found.nodes.map((node) => [
    `${(node.host || node.node).slice(0, 40)}`,
    `continues from ${step(node.from_step)}; holds ${size(node.memory_bytes)}${node.answers ? "" : ", does not answer"}${node.problem ? `; ${node.problem}` : ""}`,
  ]);
  return [
    el("p", { class: `proof ${exposed.length && !found.over_s ? "bad" : "ok"}` }, found.over_s ? ended
      : `After the loss of any one node training would continue ${where}: ${repeated}.`),
    facts([
      ["Last step", whole(found.step)],
      ["In the nodes' own memory", step(found.own_step)],
      ["In the memory of peers", step(found.peers_step)],
      ["In storage", step(found.storage_step)],
      ["Safe against the loss of a node", step(found.safe_step)],
      ["Copies of the rarest shard", whole(found.copies_min)],
    ]),
    nodes.length ? el("details", {}, el("summary", {}, `If a node is lost (${plural(nodes.length, "node")})`), facts(nodes)) : null,
  ];
}

function goodputOf(spent) {
  const reserved = spent.reserved_s || 0;
  const classes = Object.entries(spent.seconds).sort((a, b) => b[1] - a[1]);
  const rows = classes.map(([name, seconds]) => el("tr", {},
    el("th", { scope: "row" }, name.replaceAll("_", " ")),
    el("td", { class: "number" }, duration(seconds)),
    el("td", { class: "number" }, percent(seconds / reserved, 1)),
    el("td", { class: "bars" }, el("i", { class: `bar ${STYLES[name] || "lost"}`, css: { width: `${(100 * seconds) / reserved}%` } }))));
  const cost = spent.cost ? ` It cost $${spent.cost.spent_usd.toFixed(2)}.` : "";
  return [
    el("p", { class: "lead" }, `${percent(spent.goodput)} of ${duration(reserved)} of worker time was spent on training steps that count (goodput). Effective training time ratio: ${percent(spent.ettr)}.${cost}`),
    reserved ? el("table", { class: "waterfall" }, el("caption", { class: "unseen" }, "Worker time by class"),
      el("thead", { class: "unseen" }, el("tr", {}, ["class", "time", "share", ""].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, rows)) : null,
  ];
}
