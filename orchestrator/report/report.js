"use strict";
// Shows the values under the pointer, or of the step chosen with the arrow keys. The page is complete without it.
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot"), drawing = plot.querySelector("svg");
  const cross = plot.querySelector(".cross"), tip = plot.querySelector(".tip");
  const longest = data.series.reduce((a, b) => (b.steps.length > a.steps.length ? b : a));
  let chosen = -1;

  const middle = ([first, last]) => (first + last) / 2;
  const nearest = (steps, x) => {
    let low = 0, high = steps.length - 1;
    while (high - low > 1) {
      const mid = (low + high) >> 1;
      if (middle(steps[mid]) < x) low = mid; else high = mid;
    }
    return Math.abs(middle(steps[low]) - x) <= Math.abs(middle(steps[high]) - x) ? low : high;
  };
  const line = (text, colour) => {
    const row = document.createElement("span");
    if (colour) {
      const key = document.createElement("i");
      key.className = "c" + colour;
      row.append(key);
    }
    row.append(text);
    return row;
  };
  const show = (x) => {
    const share = (x - data.x[0]) / (data.x[1] - data.x[0] || 1);
    const box = drawing.getBoundingClientRect(), outer = plot.getBoundingClientRect();
    const left = box.left - outer.left + share * box.width;
    cross.style.left = left + "px";
    const at = longest.steps[nearest(longest.steps, x)];
    const format = (step) => step.toLocaleString("en");
    const rows = [line(at[0] === at[1] ? "step " + format(at[0]) : "steps " + format(at[0]) + " to " + format(at[1]))];
    for (const each of data.series) {
      rows.push(line(each.name + " " + each.values[nearest(each.steps, x)], each.colour));
    }
    for (const [step, what] of data.marks) {
      if (step >= at[0] && step <= at[1]) rows.push(line(what));
    }
    tip.replaceChildren(...rows);
    tip.hidden = cross.hidden = false;
    const room = outer.width - tip.offsetWidth - 4;
    tip.style.left = Math.max(0, Math.min(room, left + (left > outer.width / 2 ? -tip.offsetWidth - 12 : 12))) + "px";
  };
  const hide = () => { tip.hidden = cross.hidden = true; chosen = -1; };

  plot.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    show(data.x[0] + share * (data.x[1] - data.x[0]));
  });
  plot.addEventListener("pointerleave", hide);
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    const last = longest.steps.length - 1;
    const moves = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -last, End: last };
    if (event.key === "Escape") return hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    chosen = Math.min(last, Math.max(0, (chosen < 0 ? 0 : chosen) + moves[event.key]));
    show(middle(longest.steps[chosen]));
  });
}
