// All runs, the newest first.
import { badge, el, fill, fillIfChanged, meter, runLink } from "./dom.js";
import { Poll } from "./polling.js";
import { Table, showError } from "./table.js";
import { age, duration, loss, plural, when, whole } from "./text.js";

const REFRESH_S = 2;
const PAGE = 100;
const MOST = 1000; // of one answer of the API
export const STATES = {
  all: ["All", []],
  active: ["Active", ["starting", "active", "suspending", "pausing", "cancelling"]],
  waiting: ["Waiting", ["blocked", "queued", "suspended", "paused", "backoff"]],
  succeeded: ["Succeeded", ["succeeded"]],
  failed: ["Failed", ["failed"]],
  cancelled: ["Cancelled", ["cancelled"]],
};
const ONLY = ["group", "queue", "user"]; // filters that the address may have too
const COLUMNS = [
  { name: "Run", wide: true }, { name: "State", half: true }, { name: "Progress", half: true }, { name: "Loss", number: true },
  { name: "Workers", number: true }, { name: "Queue" }, { name: "Priority" }, { name: "User" },
  { name: "Age", number: true }, { name: "Time left", number: true },
];

// What a run does, in one word: its driver knows more than the queue.
export const stateOf = (run) => (run.state === "active" && run.run_state ? run.run_state : run.state);

const listPath = (filters) => `#/runs${Object.keys(filters).length ? `?${new URLSearchParams(filters)}` : ""}`;
export const groupLink = (group) => el("a", { href: listPath({ group }) }, group);

export function runsView({ api, connection, onError }, parameters) {
  const chosen = Object.hasOwn(STATES, parameters.get("state") || "") ? parameters.get("state") : "all";
  const table = new Table("Runs", COLUMNS, chosen === "all"
    ? "No runs yet. `convoy submit job.yaml` queues the first one." : `No run is ${STATES[chosen][0].toLowerCase()}.`);
  const only = Object.fromEntries(ONLY.map((name) => [name, parameters.get(name)]).filter(([, value]) => value));
  const problem = el("p", { class: "reason", role: "alert", hidden: true });
  const shown = el("p", { class: "note", "aria-live": "polite" });
  const more = el("button", { type: "button", hidden: true }, "Show older runs");
  const search = el("input", { type: "search", placeholder: "Name, id, user or queue", "aria-label": "Show only runs whose name, id, user or queue has this text" });
  let limit = PAGE, newest = { runs: [], next_cursor: null }, ready = false;

  const draw = () => {
    const text = search.value.trim().toLowerCase();
    const runs = newest.runs.filter((run) =>
      [run.name, run.id, run.user, run.queue, run.group || ""].some((part) => part.toLowerCase().includes(text)));
    table.update(runs.map(rowOf));
    table.element.hidden = !ready;
    more.hidden = !newest.next_cursor || limit >= MOST;
    const end = !newest.next_cursor ? "" : limit >= MOST ? `: the newest; \`convoy ps\` lists all` : ", the newest";
    fillIfChanged(shown, [runs.length, end, ready], () => (ready ? `${plural(runs.length, "run")}${end}` : "Loading"));
  };
  const poll = new Poll(connection, REFRESH_S, async () => {
    newest = await api.get("runs", { state: STATES[chosen][1], limit, ...only });
    ready = true;
    showError(problem, null);
    draw();
  }, (error) => onError(error) || showError(problem, error));
  more.addEventListener("click", () => {
    limit = Math.min(MOST, limit * 3);
    poll.seconds = REFRESH_S + limit / PAGE; // a long list is asked for less often
    poll.now();
  });
  search.addEventListener("input", draw);

  const filters = Object.entries(STATES).map(([name, [title]]) => el("li", {}, el("a",
    { href: listPath({ ...only, ...(name === "all" ? {} : { state: name }) }), "aria-current": name === chosen ? "true" : null }, title)));
  const chosenOnly = Object.entries(only).map(([name, value]) => `${name} ${value}`).join(", ");
  const element = el("div", {},
    el("header", { class: "page-head" }, el("h1", {}, "Runs"), search),
    chosenOnly ? el("p", { class: "lead" }, `Only ${chosenOnly}. `, el("a", { href: "#/runs" }, "Show all")) : null,
    el("ul", { class: "filters", "aria-label": "State" }, filters),
    problem, el("section", { class: "bare" }, table.element), el("div", { class: "under" }, shown, more));
  draw();
  return { element, title: "Runs", stop: () => poll.stop() };
}

function rowOf(run) {
  const { id, name, group, step, total_steps: total } = run;
  const state = stateOf(run);
  const why = run.waits ? run.waits.message : ["failed", "cancelled"].includes(run.state) ? run.reason || "" : "";
  const now = Date.now() / 1000;
  return { key: id, cells: [
    [[id, name, group], () => [runLink(id, name), el("span", { class: "fine-print" }, id, group ? [", of ", groupLink(group)] : null)]],
    [[state, why], () => [badge(state), why ? el("span", { class: "fine-print why", title: why }, why) : null]],
    [[step, total], () => progress(step, total)],
    [loss(run.loss)],
    [workersOf(run)],
    [run.queue],
    [run.priority],
    [run.user],
    [age(now - run.submitted_s), () => el("span", { title: `submitted ${when(run.submitted_s)}` }, age(now - run.submitted_s))],
    [duration(run.eta_s)],
  ] };
}

export function progress(step, total) {
  const text = total ? `${whole(step)} / ${whole(total)}` : whole(step);
  return el("div", { class: "progress" }, total ? meter(step / total, `step ${text}`) : null, el("span", {}, text));
}

export function workersOf({ workers, min_workers: min, max_workers: max }) {
  return min === max ? `${workers} / ${max}` : `${workers} / ${min}–${max}`;
}

// Why a run waits, as a box with all that is known.
export function waitBox(place, waits) {
  place.hidden = !waits;
  if (!waits) return;
  fill(place,
    el("p", {}, el("b", {}, waits.position ? `Waits, position ${waits.position}: ` : "Waits: "), waits.message),
    waits.may_start_s ? el("p", { class: "note" }, `May start at ${when(waits.may_start_s)}, in ${age(waits.may_start_s - Date.now() / 1000)}`) : null,
    waits.blockers.length ? el("p", { class: "note" }, "Before it: ", blockersOf(waits)) : null);
}

export function blockersOf(waits) {
  return waits.blockers.slice(0, 10).flatMap((id, index) => [index ? ", " : "", runLink(id)])
    .concat(waits.blockers.length > 10 ? [` and ${waits.blockers.length - 10} more`] : []);
}
