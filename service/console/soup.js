// What is served: the mixture, the patch, the workers.

import { signedBars } from "./charts.js";
import { byId, el, fill } from "./dom.js";
import { mixture, patchText, percent, plural, when } from "./format.js";

const SOURCES = { default: "the base set\u2019s default", adapt: "an adaptation", dial: "the dial" };

export function updateSoup({ view, base, soups, jobs }) {
  const current = soups.find((soup) => soup.version === view.version);
  const scored = jobs.find((job) => job.ingredients !== null && Object.keys(job.ingredients).length > 0);
  const threats = new Map(
    (base?.ingredients ?? []).map(({ name, threat_model: threat }) => [name, threatText(threat)]),
  );
  const columns = [{ heading: "Trained against", isMinor: true, of: (name) => threats.get(name) ?? "" }];
  if (scored !== undefined) {
    columns.push({ heading: "Alone", of: (name) => percent(scored.ingredients[name]) });
  }
  const fact = (term, text) => [el("dt", {}, term), el("dd", {}, text)];
  fill(
    byId("soup"),
    el(
      "p",
      { class: "lead" },
      `Version ${view.version}`,
      current && ` from ${SOURCES[current.source]}, made ${when(current.created_at)}`,
    ),
    signedBars(view.coefficients, {
      caption: `The mixture of version ${view.version}: ${mixture(view.coefficients)}`,
      columns,
    }),
    scored &&
      el(
        "p",
        { class: "hint" },
        `Alone: accuracy of each on the ${plural(scored.support.n, "labelled image")} of ${when(scored.created_at)}.`,
      ),
    el(
      "dl",
      { class: "facts" },
      fact("Patch", patchText(view.patch)),
      fact("Temperature", view.temperature.toPrecision(3)),
      fact("BatchNorm", view.bn_mode),
      fact(
        "Recent images",
        view.reservoir === null ? "not kept" : `${view.reservoir.kept} of at most ${view.reservoir.size} kept`,
      ),
      fact("Watch", view.watch === null ? "off" : watchText(view.watch)),
    ),
  );
}

const watchText = ({ against }) => (against === null ? "on" : `on, compares with version ${against}`);

function threatText(threat) {
  if (threat === null || threat === undefined) {
    return "nothing";
  }
  const levels = threat.eps * 255;
  const isWhole = threat.norm === "Linf" && Math.abs(levels - Math.round(levels)) < 1e-6;
  return `${threat.norm} ${isWhole ? `${Math.round(levels)}/255` : threat.eps.toPrecision(3).replace(/\.?0+$/, "")}`;
}

/** The line below the name. */
export function updateSummary({ view, base }) {
  const serving = view.workers.filter((worker) => worker.version === view.version).length;
  const state = view.is_rolled_out ? "ok" : "waiting";
  fill(
    byId("summary"),
    el("span", { class: "badge" }, `version ${view.version}`),
    el("span", { class: `badge ${state}` }, `served by ${serving} of ${plural(view.workers.length, "worker")}`),
    el("span", {}, `Base set ${view.base_set}`, base && `: ${baseText(base)}`),
  );
}

function baseText({ architecture, class_names: classes, input }) {
  return `${architecture}, ${plural(classes.length, "class", "classes")}, ${input.width} \u00d7 ${input.height} pixels`;
}

export function updateWorkers({ view }) {
  const heading = (text) => el("th", { scope: "col" }, text);
  fill(
    byId("workers"),
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Workers" },
      el(
        "table",
        {},
        el("thead", {}, el("tr", {}, ["Worker", "Serves", "Runs on", "Last seen"].map(heading))),
        el(
          "tbody",
          {},
          view.workers.map((worker) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, `${worker.host}, process ${worker.pid}`),
              el("td", {}, worker.version === null ? "nothing yet" : `version ${worker.version}`),
              el("td", {}, (worker.provider ?? "\u2013").replace("ExecutionProvider", "")),
              el("td", {}, new Date(worker.heartbeat_at).toLocaleTimeString("en-GB")),
            ),
          ),
        ),
      ),
    ),
  );
}
