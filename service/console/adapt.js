// Adapt: labelled images in, progress, what came out.

import { ApiError, call, follow } from "./api.js";
import { announce, busy, byId, el, fill, showProblem } from "./dom.js";
import { percent } from "./format.js";
import { resultCard, resultTitle } from "./result.js";
import { may, ownRole } from "./session.js";
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

export function createAdapt({ onFinished, serve, cancel }) {
  const root = byId("adapt");
  const staging = createStaging({ onChange: allowStart });
  const promote = el(
    "select",
    { id: "promote", "aria-describedby": "promote-hint", onchange: () => (hint.hidden = promote.value !== "likely") },
    el("option", { value: "auto" }, "only if it is proven better"),
    el("option", { value: "likely" }, "if it is probably better"),
    el("option", { value: "never" }, "never, keep it as a candidate"),
    el("option", { value: "always" }, "always, even unproven (admin only)"),
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
  const samples = el(
    "select",
    { id: "samples", onchange: allowStart },
    el("option", { value: "new" }, "the images given here"),
    el("option", { value: "all" }, "these and all kept ones"),
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
  const results = new Map(); // by the place that shows it: { job, served, role }, the version that it says is served, to whom

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
      el("div", {}, el("label", { for: "samples" }, "Search on"), samples),
      start,
    ),
    hint,
    fair,
    problem,
    progress,
    later,
  );

  /** Kept images are enough where they are searched on. */
  function allowStart() {
    start.disabled = staging.isEmpty() && !(samples.value === "all" && model?.samples.images > 0);
  }

  const placeOf = (job) => (job.follows === null ? progress : later);

  function update(next) {
    const isOther = model === null || model.view.deployment !== next.view.deployment;
    if (isOther || model.base?.digest !== next.base?.digest) {
      staging.setClasses(next.base === null ? [] : next.base.class_names);
    }
    model = next;
    if (isOther) {
      stop();
      results.clear();
      fill(progress);
      fill(later);
      showProblem(problem, null);
    }
    [...promote.options].at(-1).disabled = !may("admin");
    refreshResults();
    allowStart();
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
    const query = new URLSearchParams({ deployment: name, ...asked, samples: samples.value, wait: 0 });
    fill(progress, el("p", { class: "lead" }, "Sending the images\u2026"));
    announce("Sending the images");
    try {
      const job = await call("POST", `adapt?${query}`, { body: staging.isEmpty() ? undefined : form });
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
    const place = placeOf(job);
    const hadFocus = place.contains(document.activeElement);
    results.set(place, { job, served: job.version, role: ownRole() });
    fill(place, resultCard(job, job.version, { serve }));
    announce(`${resultTitle(job, job.version)}. ${job.reason ?? ""}`);
    if (hadFocus) {
      place.querySelector("h3").focus({ preventScroll: true }); // what had the focus is gone: go on from here
    }
  }

  /** Have the results say what is served now. */
  function refreshResults() {
    const served = model.view.version;
    const role = ownRole();
    for (const [place, shown] of results) {
      const isOld = shown.served !== served || shown.role !== role;
      if (shown.job.state !== "failed" && isOld && place.querySelector(".result") !== null) {
        Object.assign(shown, { served, role });
        fill(place, resultCard(shown.job, served, { serve }));
      }
    }
  }

  return { update };
}

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
