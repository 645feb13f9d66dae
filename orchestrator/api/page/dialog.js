// A question before something happens.
import { el } from "./dom.js";

// `act(number)` is called after a yes and awaited; `asks`: {label, value} of a number that is wanted too.
export function confirmed({ title, text, yes, danger = false, asks = null }, act) {
  const field = asks
    ? el("input", { type: "number", id: "asked", min: 1, max: 100000, required: true, value: asks.value }) : null;
  const go = el("button", { type: "submit", class: danger ? "danger" : "primary" }, yes);
  const back = el("button", { type: "button", on: { click: () => dialog.close() } }, "Back");
  const submit = async (event) => {
    event.preventDefault();
    go.disabled = true;
    await act(field?.valueAsNumber);
    dialog.close();
  };
  const dialog = el("dialog", { "aria-labelledby": "dialog-title", on: { close: () => dialog.remove() } },
    el("form", { on: { submit } }, el("h2", { id: "dialog-title" }, title), el("p", {}, text),
      asks ? el("p", {}, el("label", { for: "asked" }, `${asks.label} `), field) : null,
      el("div", { class: "actions" }, back, go)));
  document.body.append(dialog);
  dialog.showModal();
  (field || back).focus();
}
