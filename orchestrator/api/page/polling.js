// What is asked again and again: only while the tab is visible, later and later while the server does not answer.
import { OfflineError } from "./api.js";

const WAITS_MS = [1000, 2000, 4000, 8000, 15000];

// Whether the server answers. `onChange(error, retryMs)`: error is null once it answers again.
export class Connection {
  #failures = 0;
  #retryAt = 0;

  constructor(onChange) {
    this.onChange = onChange;
  }

  answered() {
    if (this.#failures) this.onChange(null, 0);
    this.#failures = this.#retryAt = 0;
  }

  // Milliseconds until the next try: all that is polled is tried again at the same moment.
  failed(error) {
    const now = performance.now();
    if (now < this.#retryAt) return this.#retryAt - now;
    const waitMs = Math.max(WAITS_MS[Math.min(this.#failures++, WAITS_MS.length - 1)], 1000 * (error.retryAfterS || 0));
    this.#retryAt = now + waitMs;
    this.onChange(error, waitMs);
    return waitMs;
  }
}

// Asks every `seconds` until `stop`. `ask` may throw: OfflineError and 429, 503 are tried again, the rest goes to
// `onError` and is tried again too. `ask` returning false ends it.
export class Poll {
  #timer = 0;
  #stopped = false;
  #asking = false;

  constructor(connection, seconds, ask, onError) {
    Object.assign(this, { connection, seconds, ask, onError });
    this.visible = () => {
      if (!document.hidden) this.now();
    };
    document.addEventListener("visibilitychange", this.visible);
    window.addEventListener("online", this.visible);
    this.now();
  }

  get stopped() {
    return this.#stopped;
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
    document.removeEventListener("visibilitychange", this.visible);
    window.removeEventListener("online", this.visible);
  }

  async now() {
    clearTimeout(this.#timer);
    if (this.#stopped || this.#asking || document.hidden) return;
    this.#asking = true;
    let waitMs = 1000 * this.seconds;
    try {
      if ((await this.ask()) === false) this.#stopped = true;
      this.connection.answered();
    } catch (error) {
      if (this.#stopped) return;
      if (error instanceof OfflineError || error.status === 503) {
        waitMs = this.connection.failed(error);
      } else if (error.status === 429) {
        waitMs = 1000 * Math.max(error.retryAfterS, this.seconds);
      } else {
        this.connection.answered();
        this.onError(error);
      }
    } finally {
      this.#asking = false;
    }
    if (!this.#stopped) this.#timer = setTimeout(() => this.now(), waitMs);
  }
}
