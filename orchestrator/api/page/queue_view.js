// The queues with their shares, and who waits for what.
import { path } from "./api.js";
import { badge, el, fill, fillIfChanged, meter, runLink, section } from "./dom.js";
import { Poll } from "./polling.js";
import { blockersOf, stateOf, workersOf } from "./runs_view.js";
import { Table, facts, showError } from "./table.js";
import { age, amount, plural, when, whole } from "./text.js";

const REFRESH_S = 3;
const MOST = 1000; // runs of one answer
const FIRST = 25; // of each queue, if more wait than one answer has
const ELIGIBLE = ["queued", "suspended"];
const LATER = ["blocked", "paused", "backoff"];
const COLUMNS = [
  { name: "Position", number: true }, { name: "Run", wide: true }, { name: "Why it waits", wide: true },
  { name: "Before it", wide: true }, { name: "May start at", half: true }, { name: "Queue" }, { name: "Priority" }, { name: "User" },
  { name: "Workers", number: true }, { name: "Age", number: true },
];

export function queueView({ api, connection, onError }) {
  const waiting = new Table("Waiting for capacity", COLUMNS, "No run waits for capacity.");
  const later = new Table("Not in line", COLUMNS.filter(({ name }) => name !== "Position"), "No run is paused, blocked or backing off.");
  const problem = el("p", { class: "reason", role: "alert", hidden: true });
  const queues = el("div", { class: "queues" }, el("p", { class: "empty" }, "Loading"));
  const note = el("p", { class: "note" });
  const poll = new Poll(connection, REFRESH_S, async () => {
    const [shares, listed, others] = await Promise.all([api.get("queues"),
      api.get("runs", { state: ELIGIBLE, limit: MOST }), api.get("runs", { state: LATER, limit: MOST })]);
    const runs = listed.next_cursor ? await firstOf(api, shares) : listed.runs;
    const total = shares.reduce((sum, queue) => sum + queue.waiting.length, 0);
    showError(problem, null);
    fillIfChanged(queues, shares, () => shares.map(queueOf));
    const order = new Map(shares.flatMap((queue) => queue.waiting).map((id, index) => [id, index]));
    const place = (run) => run.waits?.position ?? Infinity;
    runs.sort((a, b) => place(a) - place(b) || (order.get(a.id) ?? 0) - (order.get(b.id) ?? 0));
    waiting.update(runs.map((run) => rowOf(run, true)));
    later.update(others.runs.map((run) => rowOf(run, false)));
    fill(note, runs.length < total ? `The first ${FIRST} of each queue; ${plural(total, "run")} in all.` : "");
  }, (error) => onError(error) || showError(problem, error));
  const element = el("div", {}, el("header", { class: "page-head" }, el("h1", {}, "Queue")), problem, queues,
    section("waiting", "Waiting for capacity", waiting.element, note),
    section("later", "Paused, blocked or backing off", later.element));
  return { element, title: "Queue", stop: () => poll.stop() };
}

// The next runs of every queue, one by one.
async function firstOf(api, shares) {
  const ids = shares.flatMap((queue) => queue.waiting.slice(0, FIRST)).slice(0, 4 * FIRST);
  const found = await Promise.all(ids.map((id) => api.get(path("runs", id))));
  return found.filter((run) => ELIGIBLE.includes(run.state));
}

function rowOf(run, inLine) {
  const { id, name, waits } = run;
  const now = Date.now() / 1000;
  const state = stateOf(run);
  const showState = !inLine || state !== "queued";
  const start = waits?.may_start_s ?? null;
  const cells = [
    [waits?.position ? whole(waits.position) : "–"],
    [[id, name, state], () => [runLink(id, name), showState ? [" ", badge(state)] : null, el("span", { class: "fine-print" }, id)]],
    [waits ? waits.message : "it is about to start"],
    [waits?.blockers ?? [], () => (waits?.blockers.length ? blockersOf(waits) : "–")],
    [start, () => (start === null ? "not known" : [when(start), el("span", { class: "fine-print" }, start > now ? `in ${age(start - now)}` : "now")])],
    [run.queue], [run.priority], [run.user], [workersOf(run)], [age(now - run.submitted_s)],
  ];
  return { key: id, cells: inLine ? cells : cells.slice(1) };
}

function queueOf(queue) {
  const { name, weight, quota, limit, used, borrowed, running, waiting } = queue;
  const names = [...new Set([...Object.keys(quota), ...Object.keys(limit), ...Object.keys(used)])];
  const resources = names.map((resource) => {
    const [taken, own, most, lent] = [used, quota, limit, borrowed].map((table) => table[resource]);
    const bound = own ?? most;
    const words = [`${amount(resource, taken ?? 0)} used`];
    if (own !== undefined) words.push(`quota ${amount(resource, own)}`);
    if (most !== undefined) words.push(`limit ${amount(resource, most)}`);
    if (lent) words.push(`${amount(resource, lent)} borrowed`);
    const text = words.join(", ");
    return el("div", { class: "resource" }, el("span", {}, text),
      bound ? meter((taken ?? 0) / bound, `${name}: ${text}`, lent ? "borrowed" : "") : null);
  });
  return el("section", { class: "queue", "data-queue": name },
    el("h2", {}, name),
    facts([["Weight", String(weight)], ["Running", whole(running)], ["Waiting", whole(waiting.length)]]),
    resources.length ? resources : el("p", { class: "note" }, "No quota and no limit; nothing is used."));
}
