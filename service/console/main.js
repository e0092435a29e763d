// The console: loads a deployment, hands it to its panels, keeps up with the service.

import { at, call, get, list } from "./api.js";
import { createAdapt, isActive } from "./adapt.js";
import { createDeployments, link } from "./deployments.js";
import { createDial } from "./dial.js";
import { announce, busy, byId, confirm, el, goOnFrom, showProblem } from "./dom.js";
import { mixture } from "./format.js";
import { createJobs, createVersions, evidence, updateEvents } from "./history.js";
import { createKept } from "./kept.js";
import { createMap } from "./map.js";
import { guard, identify, setUpSession, showFrame } from "./session.js";
import { updateSoup, updateSummary, updateWorkers } from "./soup.js";
import { createSwitches } from "./switches.js";
import { createTrial } from "./trial.js";

const DEFAULT = "default";
const EVENTS = 20; // shown
const VERSIONS = 100; // asked for at a time
const POLL_MS = 3000;
const LANDSCAPE_MS = 30000; // how long after a job's end its landscape may still grow

let bases = [];
let model = null; // of the deployment that is shown
let pinned = null; // the job whose landscape was asked for
let numVersions = VERSIONS; // of the deployment that is shown, that were asked for
let hasFailed = false; // the last load, whose problem is shown
let turn = 0; // of the latest load: answers of earlier ones are thrown away

const deployments = createDeployments({ onMade: select, onDeleted: () => select(DEFAULT) });
const map = createMap({ onPick: (row) => dial.set(row) });
const dial = createDial({ onSet: map.markDial, onTurn: map.turned, onServed: reload });
const adapt = createAdapt({ onFinished: reload, serve, cancel });
const versions = createVersions({ serve, loadMore });
const jobs = createJobs({ showOnMap, cancel });
const trial = createTrial();
const switches = createSwitches({ onChanged: reload });
const kept = createKept({ onChanged: reload });

/** Show a deployment, by its name in the address. */
async function select(name) {
  if (location.hash === link(name)) {
    await load(name);
  } else {
    location.hash = link(name); // the rest follows from that
  }
}

const wanted = () => (location.hash.startsWith("#/") ? decodeURIComponent(location.hash.slice(2)) : "") || DEFAULT;

async function load(name) {
  const mine = ++turn;
  numVersions = model?.view.deployment === name ? numVersions : VERSIONS;
  const identified = identify();
  try {
    const [all, view, soups, newest, log, samples] = await Promise.all([
      list("deployments", "deployments"),
      get(at(name)),
      list(at(name, "/soups"), "soups", numVersions),
      get(at(name, "/jobs")),
      get(at(name, `/events?limit=${EVENTS}`)),
      get(at(name, "/samples")),
      identified,
    ]);
    if (bases.length === 0 || !bases.some((base) => base.name === view.base_set)) {
      bases = (await get("bases")).bases;
    }
    if (mine !== turn) {
      return;
    }
    const isOther = model?.view.deployment !== name;
    hasFailed ||= isOther; // a problem of another deployment goes, too
    pinned = isOther ? null : pinned;
    const base = bases.find((known) => known.name === view.base_set) ?? null;
    if (!soups.found.some((soup) => soup.version === view.version)) {
      const served = await get(at(name, `/soups?limit=1&before=${view.version + 1}`)); // long ago
      soups.found.push(...served.soups);
    }
    const lists = { soups: soups.found, hasMore: soups.next !== null, jobs: newest.jobs, events: log.events, samples };
    const next = { view, ...lists, base, landscape: null, landscapeJob: null };
    [view, ...next.soups].forEach((soup) => (soup.coefficients = ordered(soup, base)));
    await findLandscape(next, isOther ? null : model);
    if (mine === turn) {
      model = next;
      deployments.update(all.found, bases, name);
      show();
    }
  } catch (error) {
    const isAllowed = await identified.catch(() => true);
    if (mine === turn && isAllowed) {
      fail(error);
    }
  }
}

/** Add the jobs that searched with these weights, and the landscape of the one that was asked for, else of the newest. */
async function findLandscape(next, before) {
  const ofTheseWeights = (job) =>
    next.soups.find((soup) => soup.version === job.candidate_version)?.base_digest === next.base?.digest;
  next.searched = next.jobs.filter(
    (job) => !isActive(job) && job.search !== null && job.support.n > 0 && ofTheseWeights(job),
  );
  const { searched } = next;
  const job = searched.find((found) => found.job === pinned) ?? searched[0];
  if (job === undefined) {
    return;
  }
  const isRecent = Date.now() - new Date(job.finished_at).getTime() < LANDSCAPE_MS;
  next.landscapeJob = job;
  if (before?.landscapeJob?.job === job.job && !(before.isRecent && isRecent)) {
    next.landscape = before.landscape;
  } else {
    next.landscape = await get(`jobs/${job.job}/landscape`);
    next.isRecent = isRecent;
    if (before?.landscapeJob?.job === job.job && before.landscape.points.length === next.landscape.points.length) {
      next.landscape = before.landscape; // nothing came since, so nothing is drawn again
    }
  }
}

/** Return coefficients in the order of the base set's ingredients; those of other weights as they come. */
function ordered({ coefficients, base_digest: digest }, base) {
  const isOfBase = base !== null && (digest === undefined || digest === base.digest);
  const names = isOfBase ? base.ingredients.map(({ name }) => name) : Object.keys(coefficients);
  return Object.fromEntries(names.map((name) => [name, coefficients[name]]));
}

function show() {
  const { view } = model;
  const section = document.activeElement.closest("section");
  showFrame();
  byId("deployment").hidden = false;
  byId("name").textContent = view.deployment;
  byId("delete").hidden = view.deployment === DEFAULT;
  guard(byId("delete"));
  guard(byId("make-it"));
  document.title = `${view.deployment} \u2013 Saucier console`;
  if (hasFailed) {
    showProblem(byId("page-problem"), null); // what an action met stays until the next one
    hasFailed = false;
  }
  updateSummary(model);
  updateSoup(model);
  map.update(model);
  dial.update(model);
  adapt.update(model);
  versions.update(model);
  jobs.update(model);
  trial.update(model);
  switches.update(model);
  kept.update(model);
  updateEvents(model);
  updateWorkers(model);
  goOnFrom(section);
}

function fail(error) {
  if (error.status === 401) {
    return; // the field for the key is there already
  }
  showFrame();
  const isGone = error.status === 404 && wanted() !== DEFAULT;
  byId("deployment").hidden = model === null || isGone;
  hasFailed = true;
  showProblem(
    byId("page-problem"),
    error,
    isGone && el("p", {}, el("a", { href: link(DEFAULT) }, `Go to ${DEFAULT}`)),
    error.status === 0 && el("p", {}, "The page tries again every few seconds."),
  );
  if (isGone) {
    model = null;
    list("deployments", "deployments").then(
      ({ found }) => deployments.update(found, bases, null),
      () => {},
    );
  }
}

function reload() {
  return load(wanted());
}

/** Look whether anything changed, and load it if so. */
async function poll() {
  if (document.hidden || !byId("sign-in").hidden) {
    return;
  }
  try {
    const view = await get(at(wanted()));
    byId("health").textContent = "";
    const isSame = (other) => JSON.stringify(stable(view)) === JSON.stringify(stable(other));
    if (model === null || !isSame(model.view) || model.isRecent) {
      await reload();
    }
  } catch (error) {
    if (error.status === 0 || error.status >= 500) {
      byId("health").textContent = "No answer from the service; trying again";
    } else if (error.status === 404) {
      fail(error);
    }
  }
}

/** Return a deployment without what changes every second. */
function stable({ workers, reservoir, watch, ...rest }) {
  const switches = [reservoir?.size, reservoir?.retention_hours, watch?.min_images, watch?.confidence_drop];
  return { ...rest, switches, against: watch?.against, workers: workers.map(({ id, version }) => [id, version]) };
}

function loadMore() {
  numVersions += VERSIONS;
  return reload();
}

async function showOnMap(job) {
  pinned = job.job;
  await reload();
  byId("map-title").scrollIntoView({ block: "nearest" });
  announce("The map shows that search");
}

/** Serve a version that is stored: a rollback, or the promotion of a candidate. */
async function serve(version) {
  const { view, soups } = model;
  const soup = soups.find((found) => found.version === version);
  const isBack = version < view.version;
  const agreed = await confirm({
    title: isBack ? `Roll back to version ${version}?` : `Promote version ${version}?`,
    body: soup && [
      el("p", {}, el("strong", {}, mixture(soup.coefficients))),
      el("div", {}, evidence(soup)),
      el(
        "p",
        {},
        `Every worker changes from version ${view.version} at once. Version ${view.version} stays in the list.`,
      ),
    ],
    action: isBack ? "Roll back" : "Promote",
  });
  if (agreed) {
    const json = { version, expected_version: view.version };
    await change(() => call("PUT", at(view.deployment, "/soup"), { json }), `Version ${version} is served`);
  }
}

/** Cancel a job that waits or runs. */
async function cancel(job) {
  const { version } = model.view;
  const agreed = await confirm({
    title: job.state === "queued" ? "Cancel the adaptation that waits?" : "Cancel the adaptation that runs?",
    body: [
      el("p", {}, `The search ends without a result, and version ${version} stays served.`),
      el("p", {}, "Its labelled images are kept. Its images without a label are deleted."),
    ],
    action: "Cancel the adaptation",
    otherwise: "Go on",
    danger: true,
  });
  if (agreed) {
    await change(() => call("DELETE", `jobs/${job.job}`), "The adaptation is cancelled");
  }
}

/** Change something and show what came of it. Who comes too late (409) changes nothing, and hears so. */
async function change(action, done) {
  showProblem(byId("page-problem"), null);
  try {
    await action();
    announce(done);
    await reload();
  } catch (error) {
    const isLate = error.status === 409;
    await reload();
    showProblem(
      byId("page-problem"),
      error,
      isLate && el("p", {}, "Nothing was changed. The page now shows how things stand."),
    );
    byId("page-problem").scrollIntoView({ block: "center" });
  }
}

function setUpTheme() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const tell = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("saucier-theme", document.documentElement.dataset.theme);
    tell();
  });
  system.addEventListener("change", tell);
  tell();
}

function start() {
  setUpTheme();
  setUpSession(reload);
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address names the deployment
    byId("main").focus();
  });
  byId("delete").addEventListener("click", (event) =>
    busy(event.currentTarget, () =>
      deployments.remove(model.view.deployment).catch((error) => showProblem(byId("page-problem"), error)),
    ),
  );
  window.addEventListener("hashchange", reload);
  for (const kind of ["dragover", "drop"]) {
    window.addEventListener(kind, (event) => event.preventDefault()); // a picture dropped beside a field opens no page
  }
  setInterval(poll, POLL_MS);
  document.addEventListener("visibilitychange", poll);
  reload();
}

start();
