// The map of the soups that a search evaluated, with the accuracy between them.

import { named } from "./charts.js";
import { byId, el, fill } from "./dom.js";
import { bestUnder, dialMark, frame, legend, position, soupsPicture, surfacePicture, words } from "./drawing.js";
import { FEW, surface } from "./forecast.js";
import { coefficient, percent, plural, when } from "./format.js";
import { stacked } from "./tables.js";

const KINDS = { plain: "as the dial serves them", recalibrated: "with new statistics" };
const LEAST_RANGE = 0.1; // of the colours: smaller differences look small
const LEAST_IMAGES = 5; // that the colours range over, so that one image is no contrast
const INGREDIENTS_IN_A_PLANE = 4; // with more, too many mixtures fall together for a surface

/** Return the accuracies that the first and the last colour stand for: at least ten points and five images apart. */
export function colourRange(accuracies, n) {
  const [low, high] = [Math.min(...accuracies), Math.max(...accuracies)];
  const width = Math.min(1, Math.max(high - low, LEAST_RANGE, LEAST_IMAGES / n));
  const from = Math.min(Math.max((low + high - width) / 2, 0), 1 - width);
  return [from, from + width];
}

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
      names,
      (landscape?.points ?? []).map((point) => point.coefficients),
    );
    if (landscape === null) {
      const label = `An empty map with ${names.join(", ")} at its corners`;
      const drawing = soupsPicture({ names, points: [], half, range: [0, 1], label });
      drawing.append(mark);
      const text =
        "No search on labelled images yet. Adapt, and the soups that it tries appear here, with their accuracies.";
      fill(root, el("p", { class: "lead" }, text), framed(null, drawing), legend(null, 0));
      return;
    }
    const here = surface(landscape, kind);
    const accuracies = here.points.map((point) => point.accuracy);
    const range = colourRange(accuracies, landscape.n);
    const hasSurface = here.accuracy !== null && names.length <= INGREDIENTS_IN_A_PLANE && landscape.n >= FEW;
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
      legend(range, landscape.n),
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

  /** Return how many soups the search tried, how many the map has, and how many are shown: three different numbers. */
  function lead(count) {
    const tried = job.search.candidates;
    const all = landscape.points.length;
    const images = plural(landscape.n, "labelled image");
    const search = `The search of ${when(job.created_at)} tried ${plural(tried, "soup")} on ${images}.`;
    const more = all > tried ? ` For the map ${plural(all - tried, "more plain soup")} were evaluated.` : "";
    const part = all < tried ? ` The map has ${all} of them.` : "";
    const shown = count < all ? ` Shown here: ${count} of ${all}, ${KINDS[kind]}.` : "";
    return `${search}${more}${part}${shown}`;
  }

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
        stacked(
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

  function explanation({ accuracy, points }, hasSurface) {
    const flattered = "Accuracies are those on the images of the search: the chosen soup looks better than it is.";
    const accuracies = points.map((point) => point.accuracy);
    const isTie = (Math.max(...accuracies) - Math.min(...accuracies)) * landscape.n < 1.5;
    const tie = isTie ? " All of these are within one image of each other, so the map shows no difference." : "";
    if (!hasSurface) {
      const few =
        landscape.n < FEW ? ` With ${FEW} labelled images or more, what lies between them is coloured, too.` : "";
      const dots = "Dots are evaluated soups, each at the weighted mean of its ingredients\u2019 corners.";
      return `${dots}${few} ${flattered}${tie}`;
    }
    const what = `Dots are evaluated soups, the colours between them a ${accuracy.kind} fit to their accuracies.`;
    const how = names.length === 4 ? "If several mixtures share a place, the map shows the best." : "";
    return `${what} ${how} Click a place to set the dial to it. ${flattered}${tie}`;
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
