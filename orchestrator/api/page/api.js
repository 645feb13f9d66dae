// Requests to the API of this server. Every failure is an ApiError (the server refused) or an OfflineError (no answer).
import { follow } from "./stream.js";

const LIMIT_MS = 15000;
const BASE = new URL("api/v1/", document.baseURI.split("#")[0]);
const VERSION = document.documentElement.dataset.api;

export class ApiError extends Error {
  constructor(status, body, retryAfterS) {
    super(body.message || `the server answered with status ${status}`);
    Object.assign(this, { status, code: body.code || "error", hint: body.hint || "", retryAfterS });
  }
}

export class OfflineError extends Error {}

// A path below /api/v1 from parts of it; what is in a part cannot lead to another path.
export const path = (...parts) => parts.map(encodeURIComponent).join("/");

export class Api {
  #token;

  constructor(token) {
    this.#token = token;
  }

  get(where, parameters = {}) {
    return this.#request("GET", where, parameters);
  }

  post(where, body = undefined) {
    return this.#request("POST", where, {}, body);
  }

  // Server-sent events: see `follow`. Returns a function that ends it.
  stream(where, parameters, handlers) {
    const connect = async (lastId, signal) => {
      const headers = { ...this.#headers(), Accept: "text/event-stream" };
      if (lastId !== null) headers["Last-Event-ID"] = lastId;
      const answer = await reached(fetch(address(where, parameters), { headers, signal, cache: "no-store" }));
      if (!answer.ok) throw await errorOf(answer);
      return answer.body;
    };
    return follow(connect, handlers);
  }

  async #request(method, where, parameters, body) {
    const headers = { ...this.#headers(), Accept: "application/json" };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const answer = await reached(
      fetch(address(where, parameters), {
        method, headers, cache: "no-store", signal: AbortSignal.timeout(LIMIT_MS),
        body: body === undefined ? undefined : JSON.stringify(body),
      }),
    );
    if (!answer.ok) throw await errorOf(answer);
    return reached(answer.json());
  }

  #headers() {
    return { Authorization: `Bearer ${this.#token}`, "Convoy-Api-Version": VERSION };
  }
}

function address(where, parameters) {
  const url = new URL(where, BASE);
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "") url.searchParams.append(name, each);
    }
  }
  return url;
}

async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    throw new OfflineError(error.name === "TimeoutError" ? "the server does not answer" : "the server cannot be reached");
  }
}

async function errorOf(answer) {
  const body = await answer.json().catch(() => ({}));
  return new ApiError(answer.status, body, Number(answer.headers.get("Retry-After")) || 0);
}
