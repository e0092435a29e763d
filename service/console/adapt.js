// Adapt: labelled images in, progress, what came out.

import { ApiError, call, follow } from "./api.js";
import { beforeAfter, miniBar } from "./charts.js";
import { announce, busy, byId, el, fill, showProblem } from "./dom.js";
import { attemptText, duration, judgedText, mixture, pValue, patchText, percent, plural, range } from "./format.js";
import { classTable } from "./frequencies.js";
import { createStaging } from "./staging.js";

const ANNOUNCE_MS = 4000; // between two announcements of progress
const LIKELY =
  "Promotes a candidate that should gain accuracy and has a chance below 5\u202f% of losing more than SAUCIER_HARM " +
  "(2 points unless set); the event is marked unproven unless the test proves the gain.";
const FAIR =
  "Classes are as frequent among these labelled images as among those to be served. Then the labels may judge the " +
  "class frequencies, and a better candidate answers at them.";
const ACTIVE = ["queued", "running"];

export const isActive = (job) => ACTIVE.includes(job.state);
const isCancelled = (job) => /^cancelled(:| by |$)/.test(job.reason ?? "");

export function createAdapt({ onFinished, serve, cancel }) {
  const root = byId("adapt");
  const staging = createStaging({ onChange: () => (start.disabled = staging.isEmpty()) });
  const promote = el(
    "select",
    { id: "promote", "aria-describedby": "promote-hint", onchange: () => (hint.hidden = promote.value !== "likely") },
    el("option", { value: "auto" }, "only if it is proven better"),
    el("option", { value: "likely" }, "if it is probably better"),
    el("option", { value: "never" }, "never, keep it as a candidate"),
    el("option", { value: "always" }, "always, even unproven"),
  );
  const hint = el("p", { id: "promote-hint", class: "hint", hidden: true }, LIKELY);
  const draw = el(
    "select",
    { id: "draw", "aria-describedby": "draw-hint", onchange: () => (fair.hidden = draw.value !== "fair") },
    el("option", { value: "any" }, "chosen in any way"),
    el("option", { value: "fair" }, "a fair draw"),
  );
  const fair = el("p", { id: "draw-hint", class: "hint", hidden: true }, FAIR);
  const strategy = el(
    "select",
    { id: "strategy" },
    el("option", { value: "auto" }, "automatic"),
    el("option", { value: "surrogate" }, "surrogate, then verify"),
    el("option", { value: "grid" }, "the whole grid"),
  );
  const effort = el(
    "select",
    { id: "effort" },
    el("option", { value: "auto" }, "answer soon, then train"),
    el("option", { value: "quick" }, "answer soon, train nothing"),
    el("option", { value: "full" }, "train before the answer"),
  );
  const start = el(
    "button",
    { type: "button", class: "primary", id: "adapt-start", disabled: true, onclick: () => busy(start, send) },
    "Adapt",
  );
  const problem = el("div", {});
  const progress = el("div", {});
  const later = el("div", {}); // of a follow-up, below the result of the job that it follows
  let model = null;
  let following = null; // { job, stop }

  fill(
    root,
    staging.zone,
    staging.list,
    el(
      "div",
      { class: "row fields" },
      el("div", {}, el("label", { for: "promote" }, "Promote"), promote),
      el("div", {}, el("label", { for: "strategy" }, "Search"), strategy),
      el("div", {}, el("label", { for: "effort" }, "Effort"), effort),
      el("div", {}, el("label", { for: "draw" }, "Labelled images"), draw),
      start,
    ),
    hint,
    fair,
    problem,
    progress,
    later,
  );

  const placeOf = (job) => (job.follows === null ? progress : later);

  function update(next) {
    const isOther = model === null || model.view.deployment !== next.view.deployment;
    model = next;
    if (isOther) {
      stop();
      staging.setClasses(next.base === null ? [] : next.base.class_names);
      fill(progress);
      fill(later);
      showProblem(problem, null);
    }
    const running = next.jobs.find(isActive);
    if (running !== undefined && following === null) {
      track(running);
    }
  }

  function stop() {
    following?.stop.abort();
    following = null;
  }

  async function send() {
    showProblem(problem, null);
    const { form, sources, missing } = staging.payload();
    if (missing !== undefined) {
      showProblem(problem, new ApiError(0, "", missing));
      return;
    }
    const name = model.view.deployment;
    const asked = { promote: promote.value, strategy: strategy.value, effort: effort.value, draw: draw.value };
    const query = new URLSearchParams({ deployment: name, ...asked, wait: 0 });
    fill(progress, el("p", { class: "lead" }, "Sending the images\u2026"));
    announce("Sending the images");
    try {
      const job = await call("POST", `adapt?${query}`, { body: form });
      if (model.view.deployment === name) {
        staging.clear();
        await track(job);
      }
    } catch (error) {
      fill(progress);
      showProblem(problem, withFiles(error, sources));
    }
  }

  /** Follow a job to its end. */
  async function track(job) {
    stop();
    const stopper = new AbortController();
    following = { job: job.job, stop: stopper };
    let told = -Infinity;
    if (job.follows === null) {
      fill(later);
    }
    try {
      let latest = job;
      showProgress(latest);
      if (isActive(latest)) {
        for await (latest of follow(job.job, stopper.signal)) {
          showProgress(latest);
          if (isActive(latest) && latest.follows === null && latest.message && performance.now() - told > ANNOUNCE_MS) {
            announce(`${percent(latest.progress, 0)}: ${latest.message}`);
            told = performance.now();
          }
        }
      }
      if (!stopper.signal.aborted) {
        showResult(latest);
        following = null;
        await onFinished();
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        following = null;
        fill(placeOf(job));
        showProblem(problem, error);
      }
    }
  }

  function showProgress(job) {
    const place = placeOf(job);
    if (place.querySelector("progress") === null) {
      fill(
        place,
        el("label", { for: "job-progress", class: "progress-text" }),
        el("progress", { id: "job-progress", max: 1 }),
        cancelButton(job, cancel, { id: "adapt-cancel" }),
      );
    }
    place.querySelector("label").textContent = `${stepText(job)}\u2026 ${percent(job.progress, 0)}`;
    place.querySelector("progress").value = job.progress;
  }

  function showResult(job) {
    const isPromoted = job.state === "promoted";
    const title = (job.follows === null ? TITLES : FOLLOW_UP_TITLES)[job.state](job);
    const heading = el("h3", { tabindex: "-1" }, title);
    const hadFocus = placeOf(job).contains(document.activeElement);
    const isCandidateNew = job.candidate_version !== null && job.candidate_version !== job.version;
    announce(`${title}. ${job.reason ?? ""}`);
    fill(
      placeOf(job),
      el(
        "div",
        { class: `result ${job.state}` },
        heading,
        el("p", {}, sentence(job.reason)),
        job.accuracy && beforeAfter(job.accuracy, ["Before", isPromoted ? "After" : "Candidate"]),
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
            el(
              "button",
              { type: "button", onclick: () => serve(job.previous_version) },
              `Roll back to version ${job.previous_version}`,
            ),
          !isPromoted &&
            isCandidateNew &&
            el(
              "button",
              { type: "button", onclick: () => serve(job.candidate_version) },
              `Promote version ${job.candidate_version} all the same`,
            ),
        ),
      ),
    );
    if (hadFocus) {
      heading.focus({ preventScroll: true }); // what had the focus is gone: go on from here
    }
  }

  return { update };
}

const TITLES = {
  promoted: (job) => `Promoted: version ${job.version} is served`,
  kept: () => "Kept the served version",
  failed: (job) => (isCancelled(job) ? "Cancelled" : "Failed"),
};

const FOLLOW_UP_TITLES = {
  promoted: (job) => `Follow-up promoted: version ${job.version} is served`,
  kept: () => "Follow-up kept what was served",
  failed: (job) => (isCancelled(job) ? "Follow-up cancelled" : "Follow-up failed"),
};

/** Return what a job that waits or runs is doing. */
function stepText({ follows, state, message }) {
  if (follows === null) {
    return state === "queued" ? "Waiting for the adapter" : message || "Starting";
  }
  return state === "queued" ? "The follow-up waits; requests come first" : `Follow-up: ${message || "starting"}`;
}

/** Return the button that ends a job which waits or runs; whoever sees jobs may cancel them. */
export function cancelButton(job, cancel, properties = {}) {
  const button = el(
    "button",
    { type: "button", class: "small", ...properties, onclick: () => busy(button, () => cancel(job)) },
    "Cancel",
  );
  return button;
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

/** Return an error that names the files at fault, where the service could only count them. */
function withFiles(error, sources) {
  const errors = (error.errors ?? []).map(({ field, message }) => {
    const [, part, index] = /^(images|unlabelled|labels)\[(\d+)\]/.exec(field) ?? [];
    const file = (sources[part === "labels" ? "images" : part] ?? [])[index];
    return { field: file ?? field, message };
  });
  const detail =
    errors.length === 1 && errors[0].field !== error.errors[0].field
      ? `${errors[0].field}: ${errors[0].message}`
      : error.message;
  return new ApiError(error.status, error.title, detail, errors);
}
