// What a person may do with a run. Nothing happens without a confirmation.
import { path } from "./api.js";
import { confirmed } from "./dialog.js";
import { el, fill } from "./dom.js";

const FINAL = ["succeeded", "failed", "cancelled"];
const ACTIONS = {
  pause: {
    title: "Pause", fits: (state) => !FINAL.includes(state) && !["paused", "pausing", "cancelling"].includes(state),
    text: "Its state is saved and its workers are released. It continues with the next step when it is resumed.",
  },
  resume: { title: "Resume", fits: (state) => state === "paused", text: "It is queued again and continues with its next step." },
  retry: {
    title: "Retry", fits: (state) => state === "failed" || state === "cancelled",
    text: "It is queued again and continues from its newest state.",
  },
  scale: {
    title: "Scale", fits: (state) => !FINAL.includes(state) && state !== "cancelling", asks: true,
    text: "From now on it has at most so many workers, and as many if there is room.",
  },
  cancel: {
    title: "Cancel", fits: (state) => !FINAL.includes(state) && state !== "cancelling", danger: true,
    text: "It ends for good. Checkpoints that it has written are kept.",
  },
};

const permits = ({ role, team }, run) => role === "admin" || (role === "submitter" && team === run.team);

export function runActions({ api, holder, onError }, onDone, onRefused) {
  const element = el("div", { class: "actions" });
  let shown = "";

  const ask = (name, run) => {
    const { title, text, asks, danger } = ACTIONS[name];
    const question = { title: `${title} ${run.name}?`, text, yes: `${title} the run`, danger,
      asks: asks ? { label: "Workers", value: run.max_workers } : null };
    confirmed(question, async (workers) => {
      try {
        await api.post(path("runs", run.id, name), asks ? { workers } : undefined);
        onRefused(null);
      } catch (error) {
        if (!onError(error)) onRefused(error);
      }
      onDone();
    });
  };

  return { element, update: (run) => {
    const fitting = permits(holder, run) ? Object.keys(ACTIONS).filter((name) => ACTIONS[name].fits(run.state)) : [];
    const signature = JSON.stringify([fitting, run.max_workers]);
    if (signature === shown) return;
    shown = signature;
    fill(element, fitting.map((name) => el("button",
      { type: "button", class: ACTIONS[name].danger ? "danger" : "", "data-action": name, on: { click: () => ask(name, run) } },
      ACTIONS[name].title)));
  } };
}
