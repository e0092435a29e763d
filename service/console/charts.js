// Charts that are tables: every bar stands beside its number.

import { el } from "./dom.js";
import { coefficient, percent, points } from "./format.js";

/** Return the class of an ingredient's colour. */
export const colour = (position) => `i${position % 16}`;

/** Return a name with its colour before it. */
export function named(name, position) {
  return el("span", { class: "named" }, el("span", { class: `swatch ${colour(position)}` }), name);
}

function bar(low, high, from, to, kind) {
  const node = el("span", { class: `bar ${kind}` });
  const share = (value) => (100 * (value - low)) / (high - low);
  node.style.left = `${share(Math.min(from, to))}%`;
  node.style.width = `${Math.abs(share(to) - share(from))}%`;
  return node;
}

function line(low, high, value, kind) {
  const node = el("span", { class: `line ${kind}` });
  node.style.left = `${(100 * (value - low)) / (high - low)}%`;
  return node;
}

/**
 * Return coefficients as signed bars around zero.
 *
 * columns: more columns, each a heading and a text by ingredient; minor ones are left out where there is no room.
 */
export function signedBars(coefficients, { caption, columns = [] }) {
  const values = Object.values(coefficients);
  const low = Math.min(-0.25, ...values);
  const high = Math.max(1, ...values);
  const rows = Object.entries(coefficients).map(([name, value], position) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, named(name, position)),
      el(
        "td",
        { class: "track-cell" },
        el(
          "span",
          { class: "track", "aria-hidden": "true" },
          bar(low, high, 0, value, colour(position)),
          line(low, high, 0, "zero"),
        ),
      ),
      el("td", { class: "number" }, coefficient(value, 3)),
      columns.map(({ of, isMinor }) => el("td", { class: isMinor ? "number minor" : "number" }, of(name))),
    ),
  );
  return el(
    "table",
    { class: "bars" },
    el("caption", { class: "hidden" }, caption),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col" }, "Ingredient"),
        el("td", {}),
        el("th", { scope: "col", class: "number" }, "Coefficient"),
        columns.map(({ heading, isMinor }) =>
          el("th", { scope: "col", class: isMinor ? "number minor" : "number" }, heading),
        ),
      ),
    ),
    el("tbody", {}, rows),
  );
}

/** Return coefficients as one small stacked bar; the numbers stand beside it. */
export function miniBar(coefficients) {
  const values = Object.values(coefficients);
  const below = values.reduce((sum, value) => sum + Math.min(value, 0), 0);
  const above = values.reduce((sum, value) => sum + Math.max(value, 0), 0);
  const [low, high] = [Math.min(-0.25, below), Math.max(1.25, above)];
  let [down, up] = [0, 0];
  const parts = values.map((value, position) => {
    const from = value < 0 ? down : up;
    if (value < 0) {
      down += value;
    } else {
      up += value;
    }
    return bar(low, high, from, from + value, colour(position));
  });
  return el("span", { class: "track mini", "aria-hidden": "true" }, parts, line(low, high, 0, "zero"));
}

/** Return the accuracies of a job before and after, and the gain with its interval. */
export function beforeAfter({ current, candidate, interval }, names) {
  const row = (name, value, kind) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el(
        "td",
        { class: "track-cell" },
        el("span", { class: "track", "aria-hidden": "true" }, bar(0, 1, 0, value, kind)),
      ),
      el("td", { class: "number" }, percent(value)),
    );
  const gain = candidate - current;
  const reach = Math.max(0.1, 1.15 * Math.max(...[...interval, gain].map(Math.abs)));
  return el(
    "table",
    { class: "bars" },
    el("caption", { class: "hidden" }, "Accuracy on images that did not choose the candidate"),
    el(
      "thead",
      { class: "hidden" },
      el(
        "tr",
        {},
        ["Soup", "Bar", "Accuracy"].map((text) => el("th", { scope: "col" }, text)),
      ),
    ),
    el(
      "tbody",
      {},
      row(names[0], current, "before"),
      row(names[1], candidate, "after"),
      el(
        "tr",
        {},
        el("th", { scope: "row" }, "Gain"),
        el(
          "td",
          { class: "track-cell" },
          el(
            "span",
            { class: "track", "aria-hidden": "true" },
            bar(-reach, reach, interval[0], interval[1], "interval"),
            line(-reach, reach, 0, "zero"),
            line(-reach, reach, gain, "mark"),
          ),
        ),
        el("td", { class: "number" }, `${points(gain)} points`),
      ),
    ),
  );
}

/** Return the most probable classes of one image. */
export function classBars(prediction, caption) {
  return el(
    "table",
    { class: "bars" },
    el("caption", { class: "hidden" }, caption),
    el(
      "thead",
      { class: "hidden" },
      el(
        "tr",
        {},
        ["Class", "Bar", "Confidence"].map((text) => el("th", { scope: "col" }, text)),
      ),
    ),
    el(
      "tbody",
      {},
      prediction.top_k.map(({ label, confidence }, rank) =>
        el(
          "tr",
          { class: rank === 0 ? "first" : null },
          el("th", { scope: "row" }, label),
          el(
            "td",
            { class: "track-cell" },
            el(
              "span",
              { class: "track", "aria-hidden": "true" },
              bar(0, 1, 0, confidence, rank === 0 ? "after" : "before"),
            ),
          ),
          el("td", { class: "number" }, percent(confidence)),
        ),
      ),
    ),
  );
}
