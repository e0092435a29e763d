// The dial: coefficients by hand, what they are predicted to do, and the way to serve them.

import { at, call } from "./api.js";
import { LIMIT, ONE, rebalanced, whole } from "./balance.js";
import { colour, named } from "./charts.js";
import { announce, busy, byId, confirm, el, fill, showProblem } from "./dom.js";
import { bestMixture } from "./fit.js";
import { forecastTable, predicted, surface } from "./forecast.js";
import { coefficient, mixture, patchText, percent } from "./format.js";

const NARROW = [-0.5, 1.5]; // of the sliders, unless a coefficient lies outside

export function createDial({ onSet, onTurn, onServed }) {
  const root = byId("dial");
  let model = null;
  let names = [];
  let basis = null; // the view of the deployment that the dial was last set to
  let values = [];
  let anchor = []; // what a slider that is being moved started from
  let isHeld = [];
  let rows = [];
  let plain = null;
  const problem = el("div", {});
  const moved = el("div", {});
  const forecast = el("div", {});

  function update(next) {
    const { view } = next;
    const isOther =
      model === null ||
      model.view.deployment !== view.deployment ||
      names.join() !== Object.keys(view.coefficients).join();
    const isUntouched = isOther || isSame(values, whole(Object.values(basis.coefficients)));
    const before = model;
    model = next;
    if (isOther) {
      build();
    }
    if (isOther || before.landscape !== next.landscape) {
      plain =
        next.landscape && next.landscape.ingredients.join() === names.join() ? surface(next.landscape, "plain") : null;
      shortcuts();
    }
    if (isOther || (isUntouched && basis.version !== view.version)) {
      start();
    } else {
      refresh();
      onSet(shares(values));
    }
  }

  /** Set the dial to what is served now. */
  function start() {
    basis = model.view;
    values = whole(Object.values(basis.coefficients));
    anchor = values;
    showProblem(problem, null);
    refresh();
    onSet(shares(values));
  }

  function build() {
    names = Object.keys(model.view.coefficients);
    isHeld = names.map(() => false);
    values = whole(Object.values(model.view.coefficients));
    basis = model.view;
    rows = names.map(makeRow);
    const serve = el(
      "button",
      { type: "button", class: "primary", id: "dial-serve", onclick: () => busy(serve, apply) },
      "Serve this mixture",
    );
    fill(
      root,
      el(
        "p",
        { class: "lead" },
        "Coefficients by hand. They always sum to 1: the others follow what you set, unless held.",
      ),
      el("div", { class: "row", id: "dial-shortcuts" }),
      el(
        "div",
        { class: "knobs" },
        rows.map((row) => row.node),
      ),
      forecast,
      moved,
      problem,
      el("div", { class: "row" }, serve),
    );
  }

  function makeRow(name, position) {
    const id = `dial-${position}`;
    const slider = el("input", { type: "range", id, step: 0.01, class: colour(position), "aria-label": name });
    const exact = el("input", {
      type: "number",
      step: 0.01,
      min: -LIMIT / ONE,
      max: LIMIT / ONE,
      "aria-label": `${name}, exact`,
    });
    const hold = el("input", { type: "checkbox", "aria-label": `Hold ${name}` });
    slider.addEventListener("input", () => turn(rebalanced(anchor, isHeld, position, slider.valueAsNumber * ONE)));
    slider.addEventListener("change", settle);
    exact.addEventListener("change", () => {
      if (Number.isFinite(exact.valueAsNumber)) {
        turn(rebalanced(values, isHeld, position, exact.valueAsNumber * ONE));
      }
      refresh();
      settle();
    });
    hold.addEventListener("change", () => (isHeld[position] = hold.checked));
    const node = el(
      "div",
      { class: "knob" },
      el("label", { for: id }, named(name, position)),
      slider,
      exact,
      el("label", { class: "hold" }, hold, "hold"),
    );
    return { node, slider, exact };
  }

  function settle() {
    anchor = values;
    const said = prediction(values);
    announce(said === null ? mixtureText() : `${mixtureText()}: predicted accuracy ${percent(said.accuracy)}`);
  }

  const mixtureText = () => mixture(Object.fromEntries(names.map((name, i) => [name, values[i] / ONE])));

  function turn(next) {
    values = next;
    refresh();
    onTurn(shares(values));
  }

  /** Set the dial to coefficients in ingredient order. */
  function set(row) {
    turn(whole(row));
    settle();
  }

  function refresh() {
    const isWide = values.some((value) => value < NARROW[0] * ONE || value > NARROW[1] * ONE);
    const [low, high] = isWide ? [-LIMIT / ONE, LIMIT / ONE] : NARROW;
    rows.forEach(({ slider, exact }, i) => {
      slider.min = low;
      slider.max = high;
      slider.value = values[i] / ONE;
      const [from, to] = [0, values[i] / ONE]
        .map((value) => (100 * (value - low)) / (high - low))
        .sort((a, b) => a - b);
      slider.style.setProperty("--from", `${from}%`);
      slider.style.setProperty("--to", `${to}%`);
      slider.setAttribute("aria-valuetext", coefficient(values[i] / ONE));
      if (Math.round(exact.valueAsNumber * ONE) !== values[i]) {
        exact.value = String(values[i] / ONE);
      }
    });
    showForecast();
    showMoved();
    const isCurrent = isSame(values, whole(Object.values(model.view.coefficients)));
    byId("dial-serve").disabled = isCurrent && model.view.patch === null;
  }

  const prediction = (row) => predicted(plain, shares(row));

  function showForecast() {
    const here = prediction(values);
    const none = "No predictions: no search on labelled images has looked at these weights yet.";
    fill(forecast, here === null ? el("p", { class: "empty" }, none) : forecastTable(model, plain, here));
  }

  function showMoved() {
    const isMoved = basis.version !== model.view.version;
    fill(
      moved,
      isMoved &&
        el(
          "p",
          { class: "note" },
          `Version ${model.view.version} is served now; you started from version ${basis.version}. `,
          el("button", { type: "button", class: "small", onclick: rebase }, `Go on from version ${model.view.version}`),
          " ",
          el("button", { type: "button", class: "small", onclick: start }, "Start again"),
        ),
    );
  }

  /** Keep what is set, and let it replace the version that is served now. */
  function rebase() {
    basis = model.view;
    showProblem(problem, null);
    refresh();
    byId("dial-serve").focus();
  }

  function shortcuts() {
    const button = (text, action) => el("button", { type: "button", class: "small", onclick: action }, text);
    const chosen = plain && model.landscape.points[model.landscape.chosen];
    fill(
      byId("dial-shortcuts"),
      button("As served", start),
      button("Equal parts", () => set(names.map(() => 1 / names.length))),
      chosen && button("Chosen by the search", () => set(chosen.coefficients)),
      plain?.accuracy && button("Best predicted", () => set(bestMixture(plain.accuracy, names.length))),
    );
  }

  async function apply() {
    const { view } = model;
    const coefficients = Object.fromEntries(names.map((name, i) => [name, values[i] / ONE]));
    const here = prediction(values);
    const agreed = await confirm({
      title: "Serve this mixture?",
      body: [
        el("p", {}, el("strong", {}, mixture(coefficients, 4))),
        el(
          "p",
          {},
          `It becomes a new version of ${view.deployment} in the place of version ${basis.version}. `,
          "Every worker serves it at once.",
        ),
        el(
          "p",
          {},
          here === null
            ? "Nothing is known about its accuracy."
            : `Predicted accuracy: ${percent(here.accuracy)}. No test supports it; it is marked unproven.`,
        ),
        view.patch !== null &&
          el("p", {}, `The patch of version ${view.version} is dropped: ${patchText(view.patch)}.`),
      ],
      action: "Serve it",
    });
    if (!agreed) {
      return;
    }
    showProblem(problem, null);
    try {
      const served = await call("PUT", at(view.deployment, "/soup"), {
        json: { coefficients, expected_version: basis.version },
      });
      announce(`Version ${served.version} is served`);
      basis = served;
      await onServed();
    } catch (error) {
      showProblem(
        problem,
        error,
        error.status === 409 && el("p", {}, "Somebody else changed it meanwhile. What you set is still here."),
      );
      if (error.status === 409) {
        await onServed();
      }
    }
  }

  return { update, set };
}

const shares = (row) => row.map((value) => value / ONE);

const isSame = (one, other) => one.length === other.length && one.every((value, i) => Math.abs(value - other[i]) <= 1);
