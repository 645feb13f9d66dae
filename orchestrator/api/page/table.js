// A table whose cells change only if their content does. On a phone each row becomes a card.
import { el, fill, fillIfChanged } from "./dom.js";
import { DASH } from "./text.js";

export class Table {
  #rows = new Map();

  // columns: [{name, number (aligned right), wide (may be broken), half (of a card)}]; `empty`: in place of a table without rows.
  constructor(caption, columns, empty) {
    this.columns = columns;
    this.body = el("tbody", { role: "rowgroup" });
    const heads = columns.map(({ name, number }) =>
      el("th", { scope: "col", role: "columnheader", class: number ? "number" : null }, name),
    );
    this.table = el(
      "table",
      { class: "plain cards", role: "table" },
      el("caption", { class: "unseen" }, caption),
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads)),
      this.body,
    );
    this.empty = el("p", { class: "empty" }, empty);
    this.element = el("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: 0 }, this.table, this.empty);
    this.update([]);
  }

  // rows: [{key, cells: [[value, make]]}]. A cell is made again if the JSON of its value differs; without `make` the
  // value is its text.
  update(rows) {
    const kept = new Map();
    for (const { key, cells } of rows) {
      const row = this.#rows.get(key) || this.#row(key);
      cells.forEach(([value, make], index) => {
        const cell = row.children[index];
        fillIfChanged(cell, value, make || (() => value));
        cell.toggleAttribute("data-empty", cell.textContent === DASH);
      });
      kept.set(key, row);
    }
    const wanted = [...kept.values()];
    const same = wanted.length === this.body.children.length && wanted.every((row, i) => row === this.body.children[i]);
    if (!same) this.#order(wanted);
    this.#rows = kept;
    this.table.hidden = !wanted.length;
    this.empty.hidden = wanted.length > 0;
  }

  // Puts the rows into their order without taking out the one that has the focus.
  #order(wanted) {
    for (const row of [...this.body.children]) if (!wanted.includes(row)) row.remove();
    wanted.forEach((row, index) => {
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] || null);
    });
  }

  #row(key) {
    const cells = this.columns.map(({ name, number, wide, half }) =>
      el("td", { role: "cell", "data-label": name, class: number ? "number" : wide ? "wide" : half ? "half" : "short" }),
    );
    return el("tr", { role: "row", "data-key": key }, cells);
  }
}

// A list of facts, two columns.
export function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter((pair) => pair[1] !== null).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

export function showError(place, error) {
  place.hidden = !error;
  if (error) fill(place, error.message, error.hint ? el("span", { class: "hint" }, error.hint) : null);
}
