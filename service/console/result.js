// What an adaptation came to: a card that stays true when another version is served later.

import { beforeAfter, miniBar } from "./charts.js";
import { el } from "./dom.js";
import { attemptText, duration, judgedText, mixture, pValue, patchText, plural, range } from "./format.js";
import { classTable } from "./frequencies.js";
import { guard } from "./session.js";

const isCancelled = (job) => /^cancelled(:| by |$)/.test(job.reason ?? "");

const TITLES = {
  promoted: (job) => `Promoted: version ${job.version} is served`,
  kept: () => "Kept what was served",
  failed: (job) => (isCancelled(job) ? "Cancelled" : "Failed"),
};

const LATER_TITLES = {
  promoted: (job, served) => `Promoted version ${job.version}; version ${served} is served now`,
  kept: (job, served) => `Kept version ${job.version}; version ${served} is served now`,
};

/** Say if another version is served than at the end of the job. */
const isPast = (job, served) => job.state in LATER_TITLES && job.version !== served;

/** Return what a job came to, in one line. */
export function resultTitle(job, served) {
  const title = isPast(job, served) ? LATER_TITLES[job.state](job, served) : TITLES[job.state](job);
  return job.follows === null ? title : `Follow-up ${title[0].toLowerCase()}${title.slice(1)}`;
}

/** Return what a job came to, with the way back or on. `served`: the version that is served now. */
export function resultCard(job, served, { serve }) {
  const isPromoted = job.state === "promoted";
  const found = job.candidate_version;
  const names = [`Version ${job.base_version}`, found === null ? "Found" : `Version ${found}`];
  return el(
    "div",
    { class: `result ${isPast(job, served) ? "past" : job.state}` },
    el("h3", { tabindex: "-1" }, resultTitle(job, served)),
    el("p", {}, sentence(job.reason)),
    job.accuracy && beforeAfter(job.accuracy, names),
    job.accuracy && el("p", { class: "hint" }, gainText(job)),
    job.coefficients &&
      el(
        "p",
        { class: "found" },
        miniBar(job.coefficients),
        ` ${mixture(job.coefficients)}${job.patch ? `; replaces ${patchText(job.patch)}` : ""}`,
      ),
    job.search && el("p", { class: "hint" }, searchText(job)),
    job.followed_by && el("p", { class: "hint" }, "A follow-up tries on the same images what takes longer."),
    classTable(job.classes, { isServed: job.patch?.rungs.includes("frequencies") ?? false }),
    el(
      "div",
      { class: "row" },
      isPromoted &&
        !isPast(job, served) &&
        serving(`Roll back to version ${job.previous_version}`, job.previous_version),
      !isPromoted &&
        ![null, job.version, served].includes(found) &&
        serving(`Promote version ${found} all the same`, found),
    ),
  );

  function serving(text, version) {
    return guard(el("button", { type: "button", onclick: () => serve(version) }, text));
  }
}

function gainText(job) {
  const { interval, p_value: p, labels_needed: count, judged } = job.accuracy;
  const fair = "Every image was held out from the choice that it judges.";
  const more = count === null ? "" : ` About ${count} labelled images would prove a gain of this size.`;
  const images = judged ? ` Both soups are judged ${judgedText(judged)}.` : "";
  const attempt = attemptText(job);
  return `${range(interval)} points; ${pValue(p)}, one-sided.${images} ${fair}${attempt ? ` ${attempt}` : ""}${more}`;
}

const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "");

function searchText({ search, support }) {
  const images = [
    plural(support.n, "labelled image"),
    support.unlabelled > 0 && `${support.unlabelled} without a label`,
  ];
  const what = `${plural(search.candidates, "soup")} tried on ${images.filter(Boolean).join(" and ")}`;
  return `${what} in ${duration(search.seconds)}.`;
}
