// Try an image: what two versions say about it, side by side.

import { at, call } from "./api.js";
import { classBars } from "./charts.js";
import { announce, byId, el, fill, showProblem } from "./dom.js";
import { PICTURES_ACCEPTED, acceptDrops, isPicture } from "./files.js";
import { percent } from "./format.js";

const TOP = 5;

export function createTrial() {
  const root = byId("trial");
  const input = el("input", { type: "file", id: "trial-file", accept: PICTURES_ACCEPTED, class: "hidden" });
  const preview = el("img", { class: "preview", alt: "", hidden: true });
  const zone = el(
    "div",
    { class: "drop slim" },
    preview,
    el("p", {}, "Drop an image."),
    el("span", { class: "picker" }, input, el("label", { for: "trial-file", class: "button" }, "Choose an image")),
  );
  const sides = ["Left", "Right"].map((side) => makeSide(side));
  const problem = el("div", {});
  let model = null;
  let picture = null;
  let asked = 0;

  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = "";
  });
  acceptDrops(zone, (found) => take(found.map(({ file }) => file)));
  fill(
    root,
    zone,
    problem,
    el(
      "div",
      { class: "sides" },
      sides.map(({ node }) => node),
    ),
  );

  function makeSide(side) {
    const id = `trial-${side.toLowerCase()}`;
    const select = el("select", { id, onchange: () => ask() });
    const answer = el("div", { class: "answer" });
    const node = el("div", {}, el("label", { for: id }, `${side} version`), select, answer);
    return { select, answer, node };
  }

  function update(next) {
    const isOther = model === null || model.view.deployment !== next.view.deployment;
    const before = model;
    model = next;
    if (isOther) {
      forget();
    }
    const numbers = next.soups.map((soup) => soup.version);
    const [left, right] = sides.map(({ select }) => (isOther || select.value === "" ? null : Number(select.value)));
    const wasCurrent = left === null || left === before?.view.version;
    const current = next.view.version;
    options(sides[0].select, numbers, wasCurrent || !numbers.includes(left) ? current : left);
    options(
      sides[1].select,
      numbers,
      numbers.includes(right) ? right : (numbers.find((number) => number < current) ?? current),
    );
    if (!isOther && before.view.version !== current) {
      ask();
    }
  }

  function options(select, numbers, chosen) {
    const text = (number) => `${number}${number === model.view.version ? " (served)" : ""}`;
    fill(
      select,
      numbers.map((number) => el("option", { value: number }, text(number))),
    );
    select.value = String(chosen);
  }

  function forget() {
    picture = null;
    preview.hidden = true;
    sides.forEach(({ answer }) => fill(answer));
    showProblem(problem, null);
  }

  function take(files) {
    const found = files.find(isPicture);
    if (found === undefined) {
      return;
    }
    picture = found;
    if (preview.src) {
      URL.revokeObjectURL(preview.src);
    }
    preview.src = URL.createObjectURL(picture);
    preview.alt = picture.name;
    preview.hidden = false;
    ask();
  }

  async function ask() {
    if (picture === null) {
      return;
    }
    const turn = ++asked;
    showProblem(problem, null);
    try {
      const answers = await Promise.all(sides.map(({ select }) => predict(Number(select.value))));
      if (turn === asked) {
        show(answers);
      }
    } catch (error) {
      if (turn === asked) {
        sides.forEach(({ answer }) => fill(answer));
        showProblem(problem, error);
      }
    }
  }

  /** Ask a version; the served one is asked as everybody asks it. */
  async function predict(version) {
    const { view } = model;
    const body = new FormData();
    body.append("images", picture, picture.name);
    const path =
      version === view.version
        ? `predict?${new URLSearchParams({ deployment: view.deployment, top_k: TOP })}`
        : at(view.deployment, `/soups/${version}/predict?top_k=${TOP}`);
    return call("POST", path, { body });
  }

  function show(answers) {
    const said = answers.map(
      ({ version, predictions: [first] }) => `Version ${version}: ${first.label}, ${percent(first.confidence)}`,
    );
    announce(said.join(". "));
    answers.forEach(({ version, predictions: [first] }, i) => {
      fill(
        sides[i].answer,
        el("p", { class: "verdict" }, el("strong", {}, first.label), ` ${percent(first.confidence)}`),
        classBars(first, `The most probable classes by version ${version}`),
      );
    });
  }

  return { update };
}
