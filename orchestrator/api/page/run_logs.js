// The output of a run's workers as it comes.
import { path } from "./api.js";
import { el, fill, section } from "./dom.js";
import { plural } from "./text.js";
import { VisibleStream } from "./visible_stream.js";

const MOST_LINES = 2000;
const TAIL = 200;
const DRAWN_MS = 150;
const STATES = { open: "live", waiting: "reconnecting", ended: "complete: the run has ended", refused: "refused" };

export class LogsPanel {
  #timer = 0;
  #fresh = [];

  constructor({ api, onError }, id) {
    this.rank = el("input", { id: "rank", type: "number", min: 0, max: 1000000, placeholder: "all", on: { change: () => this.#again() } });
    this.following = el("input", { id: "follow", type: "checkbox", checked: true, on: { change: () => this.#scroll() } });
    this.state = el("span", { class: "live", role: "status" }, "connecting");
    this.output = el("pre", { class: "log", role: "log", tabindex: 0, "aria-label": "Output of the workers", on: {
      scroll: () => this.#scrolled() } });
    this.empty = el("p", { class: "note" }, "No worker has written anything yet.");
    this.element = section("logs", "Logs",
      el("div", { class: "controls" }, this.state, el("label", { for: "rank" }, "Worker "), this.rank,
        el("label", { for: "follow", class: "check" }, this.following, " Follow")),
      this.empty, this.output);
    this.output.hidden = true;
    this.stream = new VisibleStream((lastId) => api.stream(path("runs", id, "logs", "stream"),
      { rank: this.rank.value, tail: TAIL }, {
        lastId,
        onEvent: (event) => this.#take(event),
        onState: (state, error) => {
          fill(this.state, error ? `${error.message}${error.hint ? `: ${error.hint}` : ""}` : STATES[state]);
          if (error) onError(error);
        },
      }));
  }

  stop() {
    clearTimeout(this.#timer);
    this.stream.stop();
  }

  #again() {
    this.#fresh = [];
    fill(this.output);
    this.stream.reopen();
  }

  #take({ data, id }) {
    this.stream.lastId = id;
    this.#fresh.push(...JSON.parse(data).lines);
    this.#fresh.splice(0, this.#fresh.length - MOST_LINES);
    if (!this.#timer) this.#timer = setTimeout(() => this.#draw(), DRAWN_MS);
  }

  #draw() {
    this.#timer = 0;
    this.output.append(...this.#fresh.splice(0).map(({ rank, text }) =>
      el("div", {}, el("span", { class: "rank" }, rank), text || " ")));
    while (this.output.children.length > MOST_LINES) this.output.firstChild.remove();
    this.output.hidden = !this.output.children.length;
    this.empty.hidden = !this.output.hidden;
    this.output.setAttribute("aria-label", `Output of the workers, ${plural(this.output.children.length, "line")}`);
    this.#scroll();
  }

  #scroll() {
    if (this.following.checked) this.output.scrollTop = this.output.scrollHeight;
  }

  // Scrolling up ends following, scrolling to the end begins it again.
  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.output;
    this.following.checked = scrollHeight - scrollTop - clientHeight < 24;
  }
}
