// Tables that scroll on their own where they are wide, and become blocks where the screen is small.

import { el } from "./dom.js";

/** Let a table become one block a row on small screens, where each cell says the heading of its column. */
export function stacked(table) {
  const headings = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  table.classList.add("stacked");
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, at) => headings[at] && (cell.dataset.label = headings[at]));
  }
  return table;
}

/** Return rows as a table with a name; an empty heading is that of buttons. */
export function scrollable(label, headings, rows) {
  const heading = (text) => (text === "" ? el("td", {}) : el("th", { scope: "col" }, text));
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    stacked(el("table", {}, el("thead", {}, el("tr", {}, headings.map(heading))), el("tbody", {}, rows))),
  );
}
