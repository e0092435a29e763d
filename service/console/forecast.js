// What a mixture is predicted to do on the labelled images of the last search.

import { el } from "./dom.js";
import { fit } from "./fit.js";
import { judgedText, patchText, percent, plural } from "./format.js";
import { stacked } from "./tables.js";

export const FEW = 20; // labelled images: with fewer, chance alone is more than 20 points, so nothing is predicted

/** Return half the 95 % interval (Wilson's) of a share of n images, in points, rounded up. */
export function chancePoints(share, n) {
  const z = 1.96;
  return Math.ceil((100 * z * Math.sqrt((share * (1 - share)) / n + (z / (2 * n)) ** 2)) / (1 + z ** 2 / n));
}

/** Return the points of a kind, and the fits to their accuracies and cross-entropies; fits may be null. */
export function surface(landscape, kind) {
  const found = landscape.points.filter((point) => point.kind === kind);
  const rows = found.map((point) => point.coefficients);
  const fitTo = (value) => fit(rows, found.map(value));
  return { points: found, accuracy: fitTo((point) => point.accuracy), loss: fitTo((point) => point.temp_ce) };
}

/** Return what a mixture does by the fits to plain soups, null where there are none. */
export function predicted(plain, row) {
  if (plain === null || plain.accuracy === null) {
    return null;
  }
  return {
    accuracy: Math.min(Math.max(plain.accuracy.predict(row), 0), 1),
    loss: Math.max(plain.loss.predict(row), 0),
  };
}

/**
 * Return what is known of the soup that is served: by the search on the map, where that judged it on images that it was
 * not made from; else predicted.
 */
function served({ view, landscapeJob: job }, plain) {
  const judged = judgedText(job.accuracy?.judged);
  if (judged !== null && job.base_version === view.version) {
    return { accuracy: job.accuracy.current, how: judged };
  }
  if (job.accuracy !== null && job.candidate_version === view.version) {
    return { accuracy: job.accuracy.candidate, how: "held-out images" };
  }
  return view.patch === null ? { ...predicted(plain, Object.values(view.coefficients)), how: "predicted" } : null;
}

/** Return a table of the mixture on the dial and the soup that is served, and where the numbers come from. */
export function forecastTable(model, plain, here) {
  const { landscape, view } = model;
  const now = served(model, plain);
  const error = `\u00b1${chancePoints(here.accuracy, landscape.n)}`;
  const cell = (text) => el("td", { class: "number" }, text);
  const line = (id, title, found, how) =>
    el(
      "tr",
      { id },
      el("th", { scope: "row" }, title),
      el("td", { class: "number strong" }, found ? percent(found.accuracy) : "unknown"),
      cell(found?.loss === undefined ? "\u2013" : found.loss.toFixed(3)),
      el("td", { class: "hint" }, how),
    );
  const heading = (text, kind) => el("th", { scope: "col", class: kind }, text);
  return [
    stacked(
      el(
        "table",
        { class: "forecast" },
        el("caption", { class: "hidden" }, `On the ${plural(landscape.n, "labelled image")} of the search on the map`),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("td", {}),
            heading("Accuracy", "number"),
            heading("Cross-entropy", "number"),
            heading("How known"),
          ),
        ),
        el(
          "tbody",
          {},
          line("forecast-dial", "Dial", here, "predicted"),
          line("forecast-now", `Version ${view.version}, served now`, now, now?.how ?? "not on the map"),
        ),
      ),
    ),
    el(
      "p",
      { class: "hint" },
      `Predictions are a ${plain.accuracy.kind} fit through ${plural(plain.accuracy.count, "evaluated soup")} of the `,
      `search on the map. With ${plural(landscape.n, "image")}, chance alone is ${error} points.`,
      view.patch !== null && ` The dial drops the patch of version ${view.version}: ${patchText(view.patch)}.`,
    ),
  ];
}
