// The switches of a deployment: whether it keeps recent images, and whether it goes back by itself.

import { at, call } from "./api.js";
import { announce, busy, byId, confirm, el, fill, showProblem } from "./dom.js";
import { percent, plural } from "./format.js";
import { guard } from "./session.js";

const RESERVOIR = {
  key: "reservoir",
  title: "Recent images",
  what: "A sample of the images that are classified, without labels. Adaptations estimate statistics on it.",
  on: "Keep recent images",
  off: "Keep none",
  fields: [
    { name: "size", label: "Most images", min: 1, step: 1, initial: 500 },
    { name: "retention_hours", label: "Hours until one is deleted", min: 0.01, max: 744, step: "any", initial: 24 },
  ],
  state: (plan) => (plan === null ? "None are kept." : `${plan.kept} of at most ${plan.size} are kept.`),
  loses: (plan) => plan !== null && `The ${plural(plan.kept, "image")} kept now will be deleted.`,
};

const WATCH = {
  key: "watch",
  title: "Watch",
  what: "Goes back to the version before when a promotion turns out less sure, or less often right.",
  on: "Watch",
  off: "Do not watch",
  fields: [
    { name: "min_images", label: "Images to judge on, at least", min: 50, max: 1000000, step: 1, initial: 200 },
    {
      name: "confidence_drop",
      label: "Fall of mean confidence allowed",
      min: 0.01,
      max: 0.99,
      step: 0.01,
      initial: 0.2,
    },
  ],
  state: watchState,
  loses: () => false,
};

/** Return what a watch sees; null: there is none. */
function watchState(plan) {
  if (plan === null) {
    return "Not watched.";
  }
  if (plan.against === null) {
    return "Watched; nothing is judged until the next promotion.";
  }
  const { images, mean } = plan.recent;
  const seen = images > 0 ? `, mean confidence ${percent(mean)} on ${plural(images, "image")}` : "";
  return `Watched against version ${plan.against}${seen}.`;
}

/** Return the floor of accuracy in words. */
function floorText(reference) {
  return reference === null
    ? "No reference images, so promotions keep no floor. A command sets them: service reference add."
    : `What is promoted keeps ${percent(reference.floor)} on ${plural(reference.n, "reference image")}.`;
}

export function createSwitches({ onChanged }) {
  const floor = el("p", {});
  const switches = [RESERVOIR, WATCH].map((kind) => createSwitch(kind, onChanged));
  fill(
    byId("switches"),
    switches.map(({ node }) => node),
    el("div", { class: "switch" }, el("h3", {}, "Floor"), floor),
  );

  function update({ view }) {
    switches.forEach((one) => one.update(view));
    fill(floor, floorText(view.reference));
  }

  return { update };
}

function createSwitch({ key, title, what, on, off, fields, state, loses }, onChanged) {
  const inputs = fields.map(({ name, label, initial, ...limits }) => {
    const id = `${key}-${name}`;
    const input = el("input", { type: "number", id, required: true, ...limits });
    return { name, initial, input, node: el("div", {}, el("label", { for: id }, label), input) };
  });
  const status = el("p", { class: "state" });
  const problem = el("div", {});
  const set = el("button", { type: "submit", id: `${key}-on` });
  const end = el("button", { type: "button", id: `${key}-off`, onclick: () => busy(end, turnOff) }, off);
  const form = el(
    "form",
    {},
    el(
      "div",
      { class: "row fields" },
      inputs.map(({ node }) => node),
    ),
    el("div", { class: "row" }, set, end),
  );
  const node = el(
    "div",
    { class: "switch" },
    el("h3", {}, title),
    el("p", { class: "hint" }, what),
    status,
    form,
    problem,
  );
  let name = null; // of the deployment
  let plan = null;
  let filled = ""; // what the fields were last filled with; what is typed stays until that changes
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(set, turnOn);
  });

  function update(view) {
    const wanted = inputs.map((field) => view[key]?.[field.name] ?? field.initial);
    const next = JSON.stringify([view.deployment, wanted]);
    if (next !== filled) {
      inputs.forEach(({ input }, i) => (input.value = String(wanted[i])));
      showProblem(problem, null);
      filled = next;
    }
    name = view.deployment;
    plan = view[key];
    status.textContent = state(plan);
    set.textContent = plan === null ? on : "Change";
    guard(set);
    guard(end, { isUsable: plan !== null });
  }

  async function turnOn() {
    const json = Object.fromEntries(inputs.map((field) => [field.name, field.input.valueAsNumber]));
    const isSame = plan !== null && inputs.every((field) => plan[field.name] === json[field.name]);
    const deployment = name; // another one may be shown when the question is answered
    if (isSame || (await agrees("Change"))) {
      await change(() => call("PUT", at(deployment, `/${key}`), { json }), `${title}: set`);
    }
  }

  async function turnOff() {
    const deployment = name;
    if (await agrees(off)) {
      await change(() => call("DELETE", at(deployment, `/${key}`)), `${title}: off`);
    }
  }

  /** Ask where something is lost. */
  async function agrees(action) {
    const lost = loses(plan);
    return !lost || confirm({ title: `${title}: ${action}?`, body: el("p", {}, lost), action, danger: true });
  }

  async function change(action, done) {
    showProblem(problem, null);
    try {
      await action();
      announce(done);
      await onChanged();
    } catch (error) {
      showProblem(problem, error);
    }
  }

  return { node, update };
}
