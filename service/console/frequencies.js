// The class frequencies that an adaptation estimated.

import { el } from "./dom.js";
import { percent } from "./format.js";

const SHOWN = 10; // classes; those farthest from what is expected

/** Return the estimates of a job with their intervals, folded up; null where there are none. */
export function classTable(classes, { isServed }) {
  if (!classes) {
    return null;
  }
  const change = ({ estimated, expected }) => Math.abs(estimated - expected);
  const shown = [...classes].sort((one, other) => change(other) - change(one)).slice(0, SHOWN);
  const others = classes.length - shown.length;
  const heading = (text, kind) => el("th", { scope: "col", class: kind }, text);
  return el(
    "details",
    { class: "class-frequencies" },
    el("summary", {}, "Class frequencies"),
    el("p", { class: "hint" }, isServed ? "The candidate answers at these." : "Estimated, not part of the candidate."),
    el(
      "table",
      {},
      el("caption", { class: "hidden" }, "Estimated class frequencies, farthest from what is expected first"),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          heading("Class"),
          heading("Expected", "number"),
          heading("Estimated", "number"),
          heading("95\u202f% interval", "number"),
        ),
      ),
      el(
        "tbody",
        {},
        shown.map(({ name, expected, estimated, low, high }) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, name),
            el("td", { class: "number" }, percent(expected)),
            el("td", { class: "number" }, percent(estimated)),
            el("td", { class: "number" }, `${percent(low)} to ${percent(high)}`),
          ),
        ),
      ),
    ),
    others > 0 && el("p", { class: "hint" }, `${others} more classes are closer to what is expected.`),
  );
}
