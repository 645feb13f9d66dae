// The head of a run's page: what it is, what it does, why it waits, what may be done with it, and its figures.
import { badge, el, fill, fillIfChanged, meter, runLink, tiles } from "./dom.js";
import { runActions } from "./run_actions.js";
import { groupLink, stateOf, waitBox, workersOf } from "./runs_view.js";
import { facts, showError } from "./table.js";
import { age, amounts, count, duration, loss, percent, plural, when, whole } from "./text.js";

export class RunHead {
  constructor(context, onDone) {
    this.title = el("div", {});
    this.actions = runActions(context, onDone, (error) => this.fail(error));
    this.problem = el("p", { class: "reason", role: "alert", hidden: true });
    this.reason = el("p", { class: "reason", hidden: true });
    this.wait = el("div", { class: "wait", hidden: true });
    this.progress = el("div", { class: "whole-progress" });
    this.figures = el("dl", { class: "tiles" });
    this.element = el("header", { class: "run-head" }, this.title, this.actions.element, this.problem, this.reason,
      this.wait, this.progress, this.figures);
    this.figures.hidden = true;
  }

  fail(error) {
    showError(this.problem, error);
  }

  // `progress`: what the driver recorded; `goodput`: the ledger, or null.
  update(run, progress, goodput) {
    const state = stateOf(run);
    document.title = `${run.name} ${state} · Convoy`;
    fillIfChanged(this.title, [run, Math.floor(Date.now() / 60000)], () => headOf(run, state));
    this.actions.update(run);
    const reason = ["failed", "cancelled", "suspended", "suspending"].includes(run.state) ? run.reason : null;
    showError(this.reason, reason && !run.waits?.message.includes(reason) ? { message: reason } : null);
    waitBox(this.wait, run.waits);
    const step = Math.max(run.step, progress.step), total = run.total_steps ?? progress.total_steps;
    const text = `step ${whole(step)}${total ? ` of ${whole(total)}` : ""}`;
    fillIfChanged(this.progress, [step, total], () => (total ? meter(step / total, text, "large") : []));
    this.figures.hidden = false;
    const list = figuresOf(run, progress, goodput, step, total);
    fillIfChanged(this.figures, list, () => tiles(list));
  }
}

function headOf(run, state) {
  const now = Date.now() / 1000;
  const ended = run.ended_s ? `, ended ${when(run.ended_s)}` : "";
  return [
    el("p", { class: "eyebrow" }, `Run in queue ${run.queue}, priority ${run.priority}`),
    el("h1", {}, run.name, badge(state)),
    el("p", { class: "sub" }, el("code", {}, run.id), run.group ? [", of ", groupLink(run.group)] : null, ` by ${run.user} (${run.team}), `,
      `submitted ${age(now - run.submitted_s)} ago${ended}`),
  ];
}

function figuresOf(run, progress, goodput, step, total) {
  const pace = progress.step_time_s === null ? "" : `${duration(progress.step_time_s)} a step`;
  const share = total ? percent(step / total, step < total ? 1 : 0) : "";
  return [
    ["Step", whole(step), total ? `of ${whole(total)}, ${share}` : "", "step"],
    ["Training loss", loss(progress.loss ?? run.loss), "nats per token", "loss"],
    ["Validation loss", loss(progress.validation_loss), "", "validation_loss"],
    ["Tokens per second", count(progress.tokens_per_s), pace, "tokens_per_s"],
    ["Time left", duration(run.eta_s ?? progress.eta_s), run.started_s ? `began ${when(run.started_s)}` : "", "eta_s"],
    ["Workers", workersOf(run), plural(Object.keys(run.nodes).length, "node"), "workers"],
    ["Goodput", goodput ? percent(goodput.goodput) : percent(null), goodput ? `ETTR ${percent(goodput.ettr)}` : "", "goodput"],
    ["Recoveries", whole(progress.recoveries), run.attempt > 1 ? `attempt ${run.attempt}` : "", "recoveries"],
  ];
}

export function factsOf(run) {
  const nodes = Object.entries(run.nodes).map(([node, workers]) => `${node.slice(0, 12)} (${plural(workers, "worker")})`);
  const after = run.after.flatMap((id, index) => [index ? ", " : "", runLink(id)]);
  return facts([
    ["Id", run.id],
    ["Directory on the server", run.directory],
    ["Each worker has", amounts(run.worker_resources)],
    ["Workers", `${run.workers} now, ${run.min_workers} at least, ${run.max_workers} at most`],
    ["Nodes", nodes.join(", ") || "none"],
    ["Comes after", after.length ? after : null],
    ["Submitted", when(run.submitted_s)],
    ["Began", run.started_s ? when(run.started_s) : null],
    ["Ended", run.ended_s ? when(run.ended_s) : null],
    ["Tried again at", run.retry_at_s ? when(run.retry_at_s) : null],
    ["In a terminal", `convoy status ${run.id}`],
  ]);
}
