// The nodes of the cluster: what each has, what is booked on it and by whom.
import { path } from "./api.js";
import { confirmed } from "./dialog.js";
import { el, fillIfChanged, meter, runLink } from "./dom.js";
import { Poll } from "./polling.js";
import { showError } from "./table.js";
import { amount, plural, when } from "./text.js";

const REFRESH_S = 3;
const SHOWN_FIRST = ["GPU", "CPU", "memory"];
const HIDDEN = /^(node:|bundle|object_store_memory$|accelerator_type:)/; // of Ray, and the same for all

export function nodesView({ api, holder, connection, onError }) {
  const problem = el("p", { class: "reason", role: "alert", hidden: true });
  const sum = el("p", { class: "sub" });
  const list = el("div", { class: "nodes" }, el("p", { class: "empty" }, "Loading"));
  const poll = new Poll(connection, REFRESH_S, async () => {
    const nodes = await api.get("nodes");
    showError(problem, null);
    const draining = nodes.filter((node) => node.draining).length;
    fillIfChanged(sum, [nodes.length, draining], () => `${plural(nodes.length, "node")}${draining ? `, ${draining} draining` : ""}`);
    fillIfChanged(list, nodes, () => (nodes.length ? nodes.map((node) => nodeOf(node, holder.role === "admin" ? drain : null))
      : el("p", { class: "empty" }, "No node is known: the cluster does not answer, or has none. `convoy server status` says which.")));
  }, (error) => onError(error) || showError(problem, error));
  const drain = ({ id, address }) => confirmed({
    title: `Drain ${address} (${id.slice(0, 12)})?`, yes: "Drain the node", danger: true,
    text: "Its workers leave at the next step boundary, and no others are placed on it. It drains until it leaves the cluster.",
  }, async () => {
    try {
      await api.post(path("nodes", id, "drain"), { deadline_s: null });
      showError(problem, null);
    } catch (error) {
      if (!onError(error)) showError(problem, error);
    }
    poll.now();
  });
  const element = el("div", {}, el("header", { class: "page-head" }, el("h1", {}, "Nodes"), sum), problem, list);
  return { element, title: "Nodes", stop: () => poll.stop() };
}

function nodeOf(node, drain) {
  const { id, address, total, booked, runs, draining, deadline_s: deadlineS, labels } = node;
  const rank = (name) => (SHOWN_FIRST.indexOf(name) + 1 || 99);
  const names = [...new Set([...Object.keys(total), ...Object.keys(booked)])]
    .filter((name) => !HIDDEN.test(name) || booked[name]).sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  const resources = names.map((name) => {
    const text = `${amount(name, booked[name] ?? 0)} of ${amount(name, total[name] ?? 0)} booked`;
    return el("div", { class: "resource" }, el("span", {}, text), meter((booked[name] ?? 0) / (total[name] || 1), `${address}: ${text}`));
  });
  const members = Object.entries(runs);
  const shown = Object.entries(labels).filter(([name]) => !name.startsWith("ray.io/node-id")).slice(0, 8);
  return el("section", { class: "node", "data-node": id },
    el("h2", {}, address || id.slice(0, 12),
      draining ? el("span", { class: "badge waiting" }, deadlineS ? `draining, leaves at ${when(deadlineS)}` : "draining") : null),
    el("p", { class: "note" }, el("code", {}, id.slice(0, 24)), address ? null : ", gone"),
    resources,
    members.length
      ? el("ul", { class: "members" }, members.map(([run, workers]) => el("li", {}, runLink(run), ` ${plural(workers, "worker")}`)))
      : el("p", { class: "note" }, "No run is on it."),
    shown.length ? el("p", { class: "note labels" }, shown.map(([name, value]) => `${name}=${value}`).join(", ")) : null,
    drain && !draining ? el("div", { class: "actions" }, el("button", { type: "button", "data-action": "drain", on: { click: () => drain(node) } }, "Drain")) : null);
}
