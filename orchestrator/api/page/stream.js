// Server-sent events over fetch: EventSource cannot send a token in a header.
// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

const SILENT_MS = 45000; // the server sends a comment every 15 s
const WAITS_MS = [1000, 2000, 4000, 8000, 15000];
const LONGEST_FIELD = 4 << 20;

// Parses a stream piece by piece and hands over each event: {type, data, id}.
export class EventParser {
  #rest = "";
  #type = "";
  #data = [];

  constructor(onEvent) {
    this.onEvent = onEvent;
    this.lastId = null;
  }

  add(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    if (this.#rest.length > LONGEST_FIELD) throw new Error("a line of the stream is too long");
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (line === "") {
      if (this.#data.length) {
        this.onEvent({ type: this.#type || "message", data: this.#data.join("\n"), id: this.lastId });
      }
      this.#type = "";
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#type = value;
    else if (field === "id" && !value.includes("\0")) this.lastId = value;
  }
}

// Follows a stream until it has ended, and resumes it from the last event after a break.
// connect(lastId, signal): opens it and gives its body. handlers: onEvent(event), onState("open" | "waiting" | "ended" |
// "refused", error), lastId: of the last event that is known. Returns a function that ends it.
export function follow(connect, { onEvent, onState, lastId: known = null }) {
  let stopped = false, failures = 0, lastId = known, timer = 0, abort = new AbortController();

  const run = async () => {
    abort = new AbortController();
    let ended = false, watchdog = 0;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => abort.abort(), SILENT_MS);
    };
    try {
      alive();
      const body = await connect(lastId, abort.signal);
      onState("open");
      const parser = new EventParser((event) => {
        lastId = event.id;
        failures = 0;
        if (event.type === "end") ended = true;
        else if (event.type !== "error" && !stopped) onEvent(event);
      });
      parser.lastId = lastId;
      const reader = body.pipeThrough(new TextDecoderStream()).getReader();
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        alive();
        parser.add(piece.value);
      }
    } catch (error) {
      if (!stopped && error.status >= 400 && error.status < 500 && error.status !== 429) {
        stopped = true;
        onState("refused", error);
      }
    } finally {
      clearTimeout(watchdog);
      abort.abort();
    }
    if (stopped) return;
    if (ended) {
      onState("ended");
      return;
    }
    onState("waiting");
    timer = setTimeout(run, WAITS_MS[Math.min(failures++, WAITS_MS.length - 1)]);
  };

  run();
  return () => {
    stopped = true;
    clearTimeout(timer);
    abort.abort();
  };
}
