// Try images: what two versions say about one, side by side, or how often they are right on many.

import { ApiError, at, call } from "./api.js";
import { classBars } from "./charts.js";
import { classOf, parts, tally } from "./compare.js";
import { comparison } from "./comparison.js";
import { announce, byId, el, fill, showProblem } from "./dom.js";
import { PICTURES_ACCEPTED, acceptDrops, chosenFiles, isHiddenFile, isPicture } from "./files.js";
import { percent, plural } from "./format.js";

const TOP = 5;

export function createTrial() {
  const root = byId("trial");
  const input = el("input", {
    type: "file",
    id: "trial-file",
    accept: PICTURES_ACCEPTED,
    multiple: true,
    class: "hidden",
  });
  const folder = el("input", { type: "file", id: "trial-folder", webkitdirectory: true, class: "hidden" });
  const preview = el("img", { class: "preview", alt: "", hidden: true });
  const zone = el(
    "div",
    { class: "drop slim" },
    preview,
    el("p", {}, "Drop a picture, or a folder with one folder per class."),
    el("span", { class: "picker" }, input, el("label", { for: "trial-file", class: "button" }, "Choose pictures")),
    el("span", { class: "picker" }, folder, el("label", { for: "trial-folder", class: "button" }, "Choose a folder")),
  );
  const sides = ["Left", "Right"].map((side) => makeSide(side));
  const problem = el("div", {});
  let model = null;
  let picture = null; // the one that is shown
  let many = []; // or many: { file, folder }
  const result = el("div", { id: "trial-result" });
  let asked = 0;

  for (const chosen of [input, folder]) {
    chosen.addEventListener("change", () => {
      take(chosenFiles(chosen));
      chosen.value = "";
    });
  }
  acceptDrops(zone, take);
  fill(
    root,
    zone,
    problem,
    el(
      "div",
      { class: "sides" },
      sides.map(({ node }) => node),
    ),
    result,
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
    [picture, many] = [null, []];
    asked++;
    preview.hidden = true;
    sides.forEach(({ answer }) => fill(answer));
    fill(result);
    showProblem(problem, null);
  }

  function take(found) {
    const pictures = found.filter(({ file }) => isPicture(file) && !isHiddenFile(file));
    if (pictures.length === 0) {
      showProblem(problem, new ApiError(0, "", "No pictures among these files."));
      return;
    }
    forget();
    if (pictures.length > 1) {
      many = pictures;
      ask();
      return;
    }
    picture = pictures[0].file;
    if (preview.src) {
      URL.revokeObjectURL(preview.src);
    }
    preview.src = URL.createObjectURL(picture);
    preview.alt = picture.name;
    preview.hidden = false;
    ask();
  }

  async function ask() {
    if (many.length > 0) {
      return askMany();
    }
    if (picture === null) {
      return;
    }
    const turn = ++asked;
    showProblem(problem, null);
    try {
      const answers = await Promise.all(sides.map(({ select }) => predict(Number(select.value), [picture])));
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

  /** Ask both versions about all images, in parts, and show who is right how often. */
  async function askMany() {
    const turn = ++asked;
    const files = many.map(({ file }) => file);
    const versions = sides.map(({ select }) => Number(select.value));
    const answers = [[], []];
    const progress = el("progress", { max: files.length, value: 0, "aria-label": "Images asked" });
    showProblem(problem, null);
    fill(
      result,
      el("p", { class: "lead" }, `Asking both versions about ${plural(files.length, "image")}\u2026`),
      progress,
    );
    try {
      for (const part of parts(files)) {
        const said = await Promise.all(versions.map((version) => predict(version, part)));
        if (turn !== asked) {
          return;
        }
        said.forEach(({ predictions }, side) => answers[side].push(...predictions.map(({ label }) => label)));
        progress.value = answers[0].length;
      }
      const classes = model.base?.class_names ?? [];
      const labels = many.map((one) => classOf(one.folder, classes));
      fill(result, comparison(tally(labels, answers), versions));
      announce(result.querySelector(".verdict")?.textContent ?? result.querySelector("p").textContent);
    } catch (error) {
      if (turn === asked) {
        fill(result);
        showProblem(problem, withFile(error, files.slice(answers[0].length)));
      }
    }
  }

  /** Ask a version; the served one is asked as everybody asks it, but for many images, which are no traffic. */
  async function predict(version, pictures) {
    const { view } = model;
    const body = new FormData();
    pictures.forEach((one) => body.append("images", one, one.name));
    const path =
      version === view.version && pictures.length === 1
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

/** Return an error that names the file at fault, where the service could only count it. */
function withFile(error, files) {
  const [first] = error.errors ?? [];
  const [, at] = /^images\[(\d+)\]/.exec(first?.field ?? "") ?? [];
  const file = files[at];
  return file === undefined ? error : new ApiError(error.status, error.title, `${file.name}: ${first.message}`);
}
