// The page: who is signed in, which view is shown, and whether the server answers.
import { Api, OfflineError } from "./api.js";
import { el, fill } from "./dom.js";
import { nodesView } from "./nodes_view.js";
import { Connection, Poll } from "./polling.js";
import { queueView } from "./queue_view.js";
import { runView } from "./run_view.js";
import { runsView } from "./runs_view.js";
import { forget, signInForm, store, stored, takeFromAddress, whoIs } from "./session.js";

const VIEWS = { runs: ["Runs", runsView], queue: ["Queue", queueView], nodes: ["Nodes", nodesView] };
const SERVER_S = 10;

const main = document.getElementById("main");
const bar = document.getElementById("bar");
const banner = document.getElementById("banner");
const connection = new Connection(showConnection);
let session = null; // {api, holder, poll}
let view = null; // {element, title, stop}

function showConnection(error, retryMs) {
  banner.hidden = !error;
  if (!error) return;
  const what = error instanceof OfflineError ? "Connection lost" : "The server cannot answer now";
  fill(banner, `${what}: ${error.message}. Trying again in ${retryMs / 1000} s. What is shown may be old.`);
}

// #/runs?state=active -> {name: "runs", id: null, parameters}
function route() {
  const [where, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, id] = where.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { name: Object.hasOwn(VIEWS, name) ? name : "runs", id: name === "runs" ? id || null : null, parameters: new URLSearchParams(query) };
}

function show() {
  view?.stop();
  const { name, id, parameters } = route();
  const context = { api: session.api, holder: session.holder, connection, onError: onViewError };
  view = id ? runView(context, id) : VIEWS[name][1](context, parameters);
  document.title = `${view.title} · Convoy`;
  for (const link of bar.querySelectorAll("nav a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const within = main.contains(document.activeElement);
  fill(main, view.element);
  if (within) main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

// An error that no view can deal with: the token was revoked, or the page is older than the server.
function onViewError(error) {
  if (error.status === 401) {
    signOut(error);
    return true;
  }
  if (error.status === 426) {
    banner.hidden = false;
    fill(banner, "The server has another version now: reload this page.");
    return true;
  }
  return false;
}

function drawBar() {
  const links = Object.entries(VIEWS).map(([name, [title]]) =>
    el("li", {}, el("a", { href: `#/${name}`, "data-view": name }, title)));
  const state = el("span", { class: "server", id: "server" });
  const { user, role } = session.holder;
  const leave = el("button", { type: "button", class: "quiet", on: { click: () => signOut(null) } }, "Sign out");
  fill(bar, el("div", { class: "topbar" }, el("a", { class: "brand", href: "#/runs" }, "Convoy"),
    el("nav", { "aria-label": "Views" }, el("ol", {}, links)), state,
    el("span", { class: "who", title: `team ${session.holder.team}` }, `${user} (${role})`), leave));
  session.poll = new Poll(connection, SERVER_S, async () => {
    const server = await session.api.get("server");
    const trouble = !server.cluster ? "the cluster does not answer" : !server.acting ? "another server acts" : "";
    state.classList.toggle("bad", Boolean(trouble));
    fill(state, trouble || `Convoy ${server.version}`);
    state.title = `cluster ${server.cluster || "-"}, server ${server.server_id}`;
  }, onViewError);
}

function signOut(refused) {
  forget();
  view?.stop();
  session?.poll?.stop();
  view = session = null;
  fill(bar);
  const form = signInForm(refused, (token, holder) => {
    store(token);
    begin(token, holder);
  });
  document.title = "Sign in · Convoy";
  fill(main, form);
  form.querySelector("input").focus();
}

function begin(token, holder) {
  session?.poll?.stop();
  session = { api: new Api(token), holder, poll: null };
  drawBar();
  show();
}

// With the token of this tab, if it has one that is valid.
function resume() {
  const token = stored();
  if (!token) {
    signOut(null);
    return;
  }
  const poll = new Poll(connection, 1, async () => {
    begin(token, await whoIs(token));
    return false;
  }, (error) => {
    poll.stop();
    if (!onViewError(error)) signOut(error);
  });
}

window.addEventListener("hashchange", () => {
  if (takeFromAddress()) resume();
  else if (session) show();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
takeFromAddress();
resume();
