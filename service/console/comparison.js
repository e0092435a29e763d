// The tables of two versions on many images: accuracy, by class, and what is taken for what.

import { el } from "./dom.js";
import { FEW, chancePoints } from "./forecast.js";
import { percent, plural } from "./format.js";
import { scrollable } from "./tables.js";

const MOST = 12; // classes of a confusion table: those with the most wrong answers

/** Return tables of a tally (compare.js) of two versions. */
export function comparison(found, versions) {
  const { n, unlabelled, agreed } = found;
  const total = n + unlabelled;
  return [
    el("h3", { tabindex: "-1" }, `${plural(total, "image")} on both versions`),
    el("p", {}, `The same answer to ${agreed} of ${total}.`),
    unlabelled > 0 &&
      el("p", { class: "hint" }, `${plural(unlabelled, "image")} without a label: no folder named after a class.`),
    n > 0 && [
      el("p", { class: "verdict" }, accuracies(found, versions)),
      el(
        "p",
        {},
        `Right by version ${versions[0]} alone: ${found.only[0]}; by version ${versions[1]} alone: ${found.only[1]}.`,
      ),
      n < FEW && el("p", { class: "note" }, `Nothing can be said from fewer than ${FEW} labelled images.`),
      el("p", { class: "hint" }, "A version that was made from some of these images looks better here than it is."),
      classes(found, versions),
      versions.map((version, side) => confusionTable(found.confusion[side], version)),
    ],
  ];
}

function accuracies({ n, right }, versions) {
  return versions.map((version, side) => {
    const share = right[side] / n;
    const text = `Version ${version}: ${percent(share)}`;
    return [side > 0 && "; ", el("strong", {}, text), ` \u00b1${chancePoints(share, n)} points`];
  });
}

function classes({ perClass }, versions) {
  const rows = perClass.map(({ label, n, right }) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, label),
      el("td", {}, String(n)),
      right.map((count) => el("td", {}, `${percent(count / n)} (${count})`)),
    ),
  );
  return scrollable("Accuracy by class", ["Class", "Images", ...versions.map((version) => `Version ${version}`)], rows);
}

/** Return which labels a version takes for which classes. */
function confusionTable(found, version) {
  const wrong = (label) => Object.entries(found[label]).reduce((sum, [said, n]) => sum + (said === label ? 0 : n), 0);
  const labels = Object.keys(found).sort((one, other) => wrong(other) - wrong(one));
  const shown = labels.slice(0, MOST).sort();
  const said = [...new Set([...shown, ...shown.flatMap((label) => Object.keys(found[label]))])].sort();
  const row = (label) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, label),
      said.map((name) =>
        el("td", { class: name === label ? "number strong" : "number" }, String(found[label][name] ?? 0)),
      ),
    );
  return el(
    "details",
    {},
    el("summary", {}, `What version ${version} takes for what`),
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": `Confusion table of version ${version}` },
      el(
        "table",
        { class: "confusion" },
        el("caption", {}, "Rows: the label. Columns: the answer. Numbers of images."),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col" }, "Label"),
            said.map((name) => el("th", { scope: "col", class: "number" }, name)),
          ),
        ),
        el("tbody", {}, shown.map(row)),
      ),
    ),
    labels.length > shown.length && el("p", { class: "hint" }, `The ${MOST} classes with the most wrong answers.`),
  );
}
