// Elements. What comes from the API becomes text nodes: no function of the page takes markup.

// A character that controls something (a terminal, the direction of text) is shown as a replacement character.
const COLOURS = /\u001b\[[0-9;]*m/g;
const CONTROL = /[^\P{C}\n\t]/gu;

export const printable = (value) => String(value).replace(COLOURS, "").replace(CONTROL, "\ufffd");

// An element. `attributes`: `class`, `on` (listeners by event), `css` (properties of its style), and others as they are;
// null and false leave an attribute out. Children are elements or text; null is left out.
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (key === "css") {
      for (const [property, text] of Object.entries(value)) made.style.setProperty(property, text);
    } else {
      made.setAttribute(key, value === true ? "" : printable(value));
    }
  }
  made.append(...nodes(children));
  return made;
}

export function fill(parent, ...children) {
  parent.replaceChildren(...nodes(children));
}

function nodes(children) {
  const given = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  return given.map((child) => (child instanceof Node ? child : document.createTextNode(printable(child))));
}

// Replaces the content of `parent` if what it is made from has changed: a selection and the focus survive otherwise.
export function fillIfChanged(parent, value, make) {
  const signature = JSON.stringify(value);
  if (parent.signature === signature) return;
  parent.signature = signature;
  const focused = parent.contains(document.activeElement) ? [...parent.querySelectorAll("a, button")] : [];
  const index = focused.indexOf(document.activeElement);
  fill(parent, make());
  if (index >= 0) parent.querySelectorAll("a, button")[index]?.focus();
}

export const runLink = (id, text = id) => el("a", { href: runPath(id) }, text);
export const runPath = (id) => `#/runs/${encodeURIComponent(id)}`;

export function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), ...children);
}

export function badge(state) {
  return el("span", { class: `badge ${/^[a-z_]+$/.test(state) ? state : ""}` }, state.replaceAll("_", " "));
}

// A bar of 0 to 1; `label` says in words what it shows.
export function meter(share, label, style = "") {
  const percent = Math.round(1000 * Math.min(1, Math.max(0, share || 0))) / 10;
  return el(
    "div",
    { class: `gauge ${style}`, role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100,
      "aria-valuenow": percent },
    el("i", { css: { width: `${percent}%` } }),
  );
}

// Tiles as in a report: [name, value, detail].
export function tiles(list) {
  return list.map(([name, value, detail, key]) =>
    el("div", {}, el("dt", {}, name), el("dd", { "data-figure": key }, value), el("dd", { class: "detail" }, detail || "")),
  );
}
