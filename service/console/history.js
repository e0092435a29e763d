// Versions with their evidence and the way back to each; adaptations, promoted or not; what happened.

import { cancelButton, isActive } from "./adapt.js";
import { miniBar } from "./charts.js";
import { busy, byId, el, fill } from "./dom.js";
import {
  attemptText,
  change,
  effortText,
  judgedText,
  mixture,
  pValue,
  patchText,
  percent,
  plural,
  points,
  range,
  when,
} from "./format.js";
import { guard } from "./session.js";
import { scrollable } from "./tables.js";

const SHOWN = 8; // rows before "Show all"
const SOURCES = { default: "Default", adapt: "Adaptation", dial: "Dial" };

export function createVersions({ serve, loadMore }) {
  const root = byId("versions");
  let isWhole = false;
  let model = null;

  function update(next) {
    isWhole = isWhole && model?.view.deployment === next.view.deployment;
    model = next;
    draw();
  }

  function draw() {
    const { soups, view, base, hasMore } = model;
    const isShown = (soup, at) => isWhole || at < SHOWN || soup.version === view.version;
    fill(
      root,
      scrollable(
        "Versions",
        ["Version", "From", "Mixture", "Patch", "Evidence", ""],
        soups.filter(isShown).map((soup) => row(soup, view, base)),
      ),
      !isWhole && soups.length > SHOWN && more(hasMore ? `${soups.length} versions` : `all ${soups.length} versions`),
      isWhole && hasMore && older(),
    );
  }

  function more(what) {
    const all = () => {
      isWhole = true;
      draw();
      root.querySelector(".scroll").focus();
    };
    return el("button", { type: "button", class: "small", onclick: all }, `Show ${what}`);
  }

  function older() {
    const button = el(
      "button",
      { type: "button", class: "small", onclick: () => busy(button, loadMore) },
      "Show older versions",
    );
    return button;
  }

  function row(soup, view, base) {
    const isCurrent = soup.version === view.version;
    const isUsable = soup.base_digest === base?.digest;
    const verb = soup.version < view.version ? "Roll back to" : "Promote";
    const button = el(
      "button",
      { type: "button", class: "small", onclick: () => busy(button, () => serve(soup.version)) },
      `${verb} ${soup.version}`,
    );
    const served = el("span", { class: "badge ok" }, "served");
    const otherWeights = el("span", { class: "hint" }, "made for other weights");
    return el(
      "tr",
      { class: isCurrent ? "current" : null, "data-version": soup.version },
      el("th", { scope: "row" }, `${soup.version}`),
      el("td", {}, SOURCES[soup.source] ?? soup.source, el("span", { class: "hint block" }, when(soup.created_at))),
      el("td", {}, miniBar(soup.coefficients), el("span", { class: "hint block" }, mixture(soup.coefficients))),
      el("td", {}, soup.patch === null ? "none" : patchText(soup.patch)),
      el("td", { class: "evidence" }, evidence(soup)),
      el("td", { class: "action" }, isCurrent ? served : isUsable ? guard(button) : otherWeights),
    );
  }

  return { update };
}

/** Return what stands behind a version: numbers, and the rest on request. */
export function evidence({ evidence: found, source }) {
  if (found === null) {
    return el(
      "span",
      { class: "hint" },
      source === "dial" ? "Unproven: set by hand" : "Best on the clean validation images of the base set",
    );
  }
  const { accuracy, reason, support, reference } = found;
  const judged = judgedText(accuracy?.judged);
  const attempt = attemptText(found);
  return [
    accuracy ? el("span", {}, change(accuracy)) : el("span", { class: "hint" }, "Unproven: no images to judge it on"),
    el(
      "details",
      {},
      el("summary", {}, "Evidence"),
      el("p", {}, reason),
      accuracy &&
        el("p", {}, `Gain ${points(accuracy.candidate - accuracy.current)} points, ${range(accuracy.interval)}.`),
      judged && el("p", {}, `Both were judged ${judged}.`),
      attempt && el("p", {}, attempt),
      el("p", {}, imagesText(support)),
      reference && el("p", {}, floorText(reference)),
    ),
  ];
}

function imagesText({ n, unlabelled, per_class: perClass }) {
  const classes = Object.entries(perClass).map(([name, count]) => `${name} ${count}`);
  const labelled = n > 0 && `${plural(n, "labelled image")} (${classes.join(", ")})`;
  return [labelled, unlabelled > 0 && `${plural(unlabelled, "image")} without a label`].filter(Boolean).join("; ");
}

const floorText = ({ n, accuracy, floor }) =>
  `${percent(accuracy)} on ${plural(n, "reference image")}, where ${percent(floor)} is the least.`;

export function createJobs({ showOnMap, cancel }) {
  const root = byId("jobs");

  function update({ jobs, landscapeJob }) {
    if (jobs.length === 0) {
      fill(root, el("p", { class: "empty" }, "None yet."));
      return;
    }
    fill(
      root,
      scrollable(
        "Adaptations",
        ["When", "State", "Images", "Accuracy of both", "Reason", ""],
        jobs.map((job) =>
          el(
            "tr",
            { "data-job": job.job },
            el("th", { scope: "row" }, when(job.created_at)),
            el(
              "td",
              {},
              el("span", { class: `badge ${{ promoted: "ok", failed: "bad" }[job.state] ?? ""}` }, job.state),
              job.support.n > 0 && el("span", { class: "hint block" }, effortText(job)),
            ),
            el("td", {}, images(job)),
            el("td", {}, job.accuracy ? compared(job) : "\u2013"),
            el("td", { class: "reason" }, isActive(job) ? job.message : job.reason),
            el("td", { class: "action" }, isActive(job) ? ending(job) : onMap(job, landscapeJob)),
          ),
        ),
      ),
    );
  }

  function ending(job) {
    return cancelButton(job, cancel, { "aria-label": `Cancel the adaptation of ${when(job.created_at)}` });
  }

  function onMap(job, shown) {
    if (job.search === null || job.support.n === 0) {
      return null;
    }
    if (shown?.job === job.job) {
      return el("span", { class: "badge" }, "on the map");
    }
    const button = el(
      "button",
      {
        type: "button",
        class: "small",
        "aria-label": `Show the search of ${when(job.created_at)} on the map`,
        onclick: () => busy(button, () => showOnMap(job)),
      },
      "Show on the map",
    );
    return button;
  }

  return { update };
}

/** Return the accuracies of a comparison, each with the version that it is of. */
function compared({ accuracy, base_version: base, candidate_version: found }) {
  const what = found === null ? "found" : `version ${found}`;
  return [
    el("span", { class: "block" }, `version ${base}: ${percent(accuracy.current)}`),
    el("span", { class: "block" }, `${what}: ${percent(accuracy.candidate)}`),
    el("span", { class: "hint block" }, pValue(accuracy.p_value)),
  ];
}

const images = ({ support }) =>
  [support.n > 0 && `${support.n} labelled`, support.unlabelled > 0 && `${support.unlabelled} without`]
    .filter(Boolean)
    .join(", ");

const KINDS = {
  created: "Made",
  promoted: "Promoted",
  dial: "Dialled",
  rebased: "Moved to other weights",
  reservoir_on: "Keeps recent images",
  reservoir_off: "Keeps no recent images",
  watch_on: "Watched",
  watch_off: "Not watched",
  reference_on: "Reference images set",
  reference_off: "Reference images removed",
  samples_deleted: "Labelled images deleted",
  deleted: "Deleted",
};

/** Return what happened, in words. */
function eventText({ kind, from_version: from, to_version: to }) {
  if (kind === "rollback") {
    return to > from ? `Promoted version ${to} by hand` : `Back to version ${to}`;
  }
  return KINDS[kind] ?? kind;
}

/** Show what happened to the deployment, the newest first. */
export function updateEvents({ events }) {
  const version = (number) => (number === null ? "\u2013" : `${number}`);
  const flag = (event) => event.unproven && el("span", { class: "badge waiting" }, "unproven");
  const rows = events.map((event) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, when(event.at)),
      el(
        "td",
        {},
        eventText(event),
        " ",
        flag(event),
        event.reason && el("span", { class: "hint block" }, event.reason),
      ),
      el("td", {}, version(event.from_version)),
      el("td", {}, version(event.to_version)),
      el("td", {}, event.who ?? "\u2013"),
    ),
  );
  fill(byId("events"), scrollable("Events", ["When", "What", "From version", "To version", "Key"], rows));
}
