// The map of the soups that a search evaluated, with the accuracy between them.

import { named } from "./charts.js";
import { byId, el, fill } from "./dom.js";
import { bestUnder, dialMark, frame, legend, position, soupsPicture, surfacePicture, words } from "./drawing.js";
import { surface } from "./forecast.js";
import { coefficient, percent, plural, when } from "./format.js";

const KINDS = { plain: "as the dial serves them", recalibrated: "with new statistics" };
const INGREDIENTS_IN_A_PLANE = 4; // with more, too many mixtures fall together for a surface

export function createMap({ onPick }) {
  const root = byId("map");
  let names = [];
  let landscape = null;
  let job = null;
  let kind = "plain";
  let half = null; // the width and height of the drawing, halved
  let dialled = null;
  const mark = dialMark();

  function update(model) {
    const found = Object.keys(model.view.coefficients);
    if (landscape === model.landscape && names.join() === found.join()) {
      return;
    }
    const isSameSearch = job !== null && job.job === model.landscapeJob?.job; // it was completed
    names = found;
    ({ landscape, landscapeJob: job } = model);
    if (landscape !== null && !isSameSearch) {
      const chosen = landscape.points[landscape.chosen]?.kind;
      kind = chosen in KINDS ? chosen : "plain";
    }
    draw();
  }

  function draw() {
    half = frame(
      names.length,
      (landscape?.points ?? []).map((point) => point.coefficients),
    );
    if (landscape === null) {
      const label = `An empty map with ${names.join(", ")} at its corners`;
      const drawing = soupsPicture({ names, points: [], half, range: [0, 1], label });
      drawing.append(mark);
      const text =
        "No search on labelled images yet. Adapt, and the soups that it tries appear here, with their accuracies.";
      fill(root, el("p", { class: "lead" }, text), framed(null, drawing), legend(null));
      return;
    }
    const here = surface(landscape, kind);
    const accuracies = here.points.map((point) => point.accuracy);
    const range = [Math.min(...accuracies), Math.max(...accuracies, Math.min(...accuracies) + 0.01)];
    const hasSurface = here.accuracy !== null && names.length <= INGREDIENTS_IN_A_PLANE;
    const [current, chosen] = [landscape.points[landscape.current], landscape.points[landscape.chosen]];
    const drawing = soupsPicture({
      names,
      points: here.points,
      half,
      current,
      chosen,
      range,
      label: label(here.points),
    });
    drawing.append(mark);
    const readout = el("p", { class: "readout" }, "\u00a0");
    const picture = hasSurface && surfacePicture(half, names.length, here.accuracy, range);
    const figure = framed(picture, drawing);
    if (hasSurface) {
      followPointer(figure, readout, here.accuracy);
    }
    fill(
      root,
      el("p", { class: "lead" }, lead(here.points.length)),
      choice(),
      figure,
      legend(range),
      readout,
      el("p", { class: "hint" }, explanation(here, hasSurface)),
      table(here.points),
    );
  }

  function framed(picture, drawing) {
    const figure = el("div", { class: picture ? "figure live" : "figure" }, picture, drawing);
    figure.style.aspectRatio = half[0] / half[1];
    if (dialled !== null) {
      markDial(dialled);
    }
    return figure;
  }

  function label(points) {
    const best = points.reduce((one, other) => (other.accuracy > one.accuracy ? other : one));
    const top = `${percent(best.accuracy)} at ${words(names, best.coefficients)}`;
    return `Map of ${plural(points.length, "evaluated soup")}, the most accurate ${top}. A table follows.`;
  }

  const lead = (count) =>
    `${plural(count, "soup")} on ${plural(landscape.n, "labelled image")}, adaptation of ${when(job.created_at)}`;

  function choice() {
    const kinds = Object.keys(KINDS).filter((name) => landscape.points.some((point) => point.kind === name));
    if (kinds.length < 2) {
      return null;
    }
    const radio = (name) =>
      el("input", {
        type: "radio",
        name: "map-kind",
        value: name,
        checked: name === kind,
        onchange: () => {
          show(name);
          root.querySelector(`input[value="${name}"]`).focus();
        },
      });
    return el(
      "fieldset",
      { class: "choice" },
      el("legend", {}, "Soups"),
      kinds.map((name) => el("label", {}, radio(name), KINDS[name])),
    );
  }

  function show(name) {
    kind = name;
    draw();
  }

  function table(points) {
    const heading = (text, kind) => el("th", { scope: "col", class: kind }, text);
    const row = (point) =>
      el(
        "tr",
        {},
        point.coefficients.map((value) => el("td", { class: "number" }, coefficient(value))),
        el("td", { class: "number" }, percent(point.accuracy)),
        el("td", { class: "number" }, point.temp_ce.toFixed(3)),
        el("td", {}, role(point)),
        el("td", {}, setButton(point)),
      );
    const sorted = points.slice().sort((one, other) => one.temp_ce - other.temp_ce);
    const columns = names.map((name, at) => heading(named(name, at), "number"));
    return el(
      "details",
      {},
      el("summary", {}, "The same as a table"),
      el(
        "div",
        { class: "scroll high", tabindex: "0", role: "region", "aria-label": "Evaluated soups" },
        el(
          "table",
          {},
          el("caption", { class: "hidden" }, "Evaluated soups, the least cross-entropy first"),
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              columns,
              heading("Accuracy", "number"),
              heading("Cross-entropy", "number"),
              heading("Role"),
              el("td"),
            ),
          ),
          el("tbody", {}, sorted.map(row)),
        ),
      ),
    );
  }

  function role(point) {
    const at = landscape.points.indexOf(point);
    return [at === landscape.current && "current then", at === landscape.chosen && "chosen"].filter(Boolean).join(", ");
  }

  function setButton({ coefficients: row }) {
    const text = `Set the dial to ${words(names, row)}`;
    return el(
      "button",
      { type: "button", class: "small", "aria-label": text, onclick: () => onPick(row) },
      "Set the dial",
    );
  }

  function followPointer(figure, readout, prediction) {
    const under = (event) => {
      const box = figure.getBoundingClientRect();
      const x = (2 * (event.clientX - box.left)) / box.width - 1;
      const y = 1 - (2 * (event.clientY - box.top)) / box.height;
      return bestUnder([x, y], half, names.length, prediction);
    };
    figure.addEventListener("pointermove", (event) => {
      const found = under(event);
      readout.textContent = found ? `${words(names, found.row)}: about ${percent(found.value, 0)}` : "\u00a0";
    });
    figure.addEventListener("pointerleave", () => (readout.textContent = "\u00a0"));
    figure.addEventListener("click", (event) => {
      const found = under(event);
      if (found) {
        onPick(found.row);
      }
    });
  }

  function explanation({ accuracy }, hasSurface) {
    if (!hasSurface) {
      return "Dots are evaluated soups, each at the weighted mean of its ingredients\u2019 corners.";
    }
    const what = `Dots are evaluated soups, the colours between them a ${accuracy.kind} fit to their accuracies.`;
    const how = names.length === 4 ? "If several mixtures share a place, the map shows the best." : "";
    return `${what} ${how} Click a place to set the dial to it.`;
  }

  /** Show where the dial is. */
  function markDial(row) {
    dialled = row;
    const [x, y] = position(row, half);
    mark.setAttribute("transform", `translate(${x} ${y})`);
  }

  /** The dial was turned: it serves plain soups, so these are shown. */
  function turned(row) {
    if (landscape !== null && kind !== "plain" && landscape.points.some((point) => point.kind === "plain")) {
      show("plain");
    }
    markDial(row);
  }

  return { update, turned, markDial };
}
