// What the map is drawn with: the surface, the soups, the marks.

import { el, svg } from "./dom.js";
import { coefficient, percent } from "./format.js";
import { bestAt, corners, place, viridis } from "./geometry.js";

// Half the width and height of the drawing; the corners are 1 from its middle.
const LEAST = { 2: [1.3, 0.75], 3: [1.3, 1.2], 4: [1.3, 1.25] };
const LEAST_OF_MANY = [1.3, 1.25];
const BESIDE = 0.1; // between a corner and its name
const LETTER = 0.05; // width of a letter, as a part of half the width
const MOST_LETTERS = 12; // of a name beside its corner; the rest is cut off
const MARGIN = 0.14; // around soups that lie further out
const PIXELS = 160; // from side to side
const BAND = 0.12; // half the height of the surface of two ingredients, which is a line
const RING = 0.165; // of the dial, around the other marks
const SAME = 1e-6; // coefficients closer than this are the same

/** Return half the width and height that show all of these soups. */
export function frame(names, rows) {
  const places = rows.map(place);
  const [width, height] = LEAST[names.length] ?? LEAST_OF_MANY;
  const widths = names.map((name, at) => {
    const [x] = corners(names.length)[at];
    return isInTheMiddle(x) ? 0 : (Math.abs(x) + BESIDE) / (1 - LETTER * short(name).length);
  });
  const least = [Math.max(width, ...widths), height];
  return least.map((length, axis) => Math.max(length, ...places.map((where) => Math.abs(where[axis]) + MARGIN)));
}

/** Return the best mixture at a place of the drawing, given from -1 to 1 along both sides; null outside of the map. */
export function bestUnder([x, y], half, count, prediction) {
  const where = [half[0] * x, half[1] * y];
  if (count === 2) {
    return Math.abs(where[1]) < BAND ? bestAt([where[0], 0], 2, prediction) : null;
  }
  return bestAt(where, count, prediction);
}

/** Return a picture of what is predicted at every place. */
export function surfacePicture(half, count, prediction, [low, high]) {
  const height = Math.round((PIXELS * half[1]) / half[0]);
  const canvas = el("canvas", { width: PIXELS, height, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const image = context.createImageData(PIXELS, height);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < PIXELS; column++) {
      const where = [(2 * (column + 0.5)) / PIXELS - 1, 1 - (2 * (row + 0.5)) / height];
      const found = bestUnder(where, half, count, prediction);
      if (found !== null) {
        image.data.set([...viridis((found.value - low) / (high - low)), 255], 4 * (row * PIXELS + column));
      }
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Return the outline with the ingredients at its corners, and the soups at their places. */
export function soupsPicture({ names, points, half, current, chosen, range: [low, high], label }) {
  const text = (point) => `${words(names, point.coefficients)}: ${percent(point.accuracy)}`;
  const dots = points.slice().sort((one, other) => one.accuracy - other.accuracy); // the best on top
  const outline = corners(names.length).map(([x, y]) => `${x},${-y}`);
  return svg(
    "svg",
    { viewBox: `${-half[0]} ${-half[1]} ${2 * half[0]} ${2 * half[1]}`, role: "img", "aria-label": label },
    svg("polygon", { class: "outline", points: outline.join(" ") }),
    dots.map((point) => {
      const [x, y] = position(point.coefficients, half);
      const dot = svg("circle", { class: "dot", cx: x, cy: y, r: 0.042 }, svg("title", {}, text(point)));
      dot.style.fill = `rgb(${viridis((point.accuracy - low) / (high - low)).join(" ")})`;
      return dot;
    }),
    current && square(position(current.coefficients, half), `Current when the search began: ${text(current)}`),
    chosen && star(position(chosen.coefficients, half), `Chosen: ${text(chosen)}`),
    names.map((name, at) => corner(name, corners(names.length)[at], half, accuracyAlone(points, at))),
  );
}

export const words = (names, row) => names.map((name, at) => `${name} ${coefficient(row[at])}`).join(", ");

/** Return where coefficients are drawn; what lies outside of the drawing, at its edge. */
export function position(row, half) {
  const [x, y] = place(row);
  return [x, -y].map((value, axis) => Math.min(Math.max(value, MARGIN - half[axis]), half[axis] - MARGIN));
}

function accuracyAlone(points, at) {
  const isAlone = ({ coefficients: row }) => row.every((value, i) => Math.abs(value - Number(i === at)) < SAME);
  return points.find(isAlone)?.accuracy;
}

const isInTheMiddle = (x) => Math.abs(x) < 0.2;

const short = (name) => (name.length > MOST_LETTERS ? `${name.slice(0, MOST_LETTERS - 1)}\u2026` : name);

/** Return an ingredient's name beside its corner, outside of the outline, and below it how accurate it is alone. */
function corner(name, [x, y], half, accuracy) {
  const isMiddle = isInTheMiddle(x);
  const side = isMiddle ? 1 : Math.sign(x);
  const left = isMiddle ? 0.2 : x + side * BESIDE;
  const line = (text, down) => svg("tspan", { x: left, y: down }, text);
  const size = 0.07 * half[0];
  const middle = (isMiddle ? -1.1 : -1) * y;
  const top = accuracy === undefined ? middle + 0.35 * size : middle - 0.15 * size;
  const text = svg(
    "text",
    { class: "corner", "text-anchor": side > 0 ? "start" : "end" },
    line(short(name), top),
    accuracy !== undefined && line(percent(accuracy, 0), top + 1.1 * size),
    svg("title", {}, name),
  );
  text.style.fontSize = `${size}px`;
  return text;
}

function square([x, y], title) {
  const side = 0.18;
  const box = { x: x - side / 2, y: y - side / 2, width: side, height: side };
  return svg(
    "g",
    { class: "shape" },
    svg("rect", { ...box, class: "halo" }),
    svg("rect", box),
    svg("title", {}, title),
  );
}

function star([x, y], title) {
  const spikes = Array.from({ length: 10 }, (_, at) => {
    const [radius, angle] = [at % 2 ? 0.058 : 0.135, (Math.PI * at) / 5 - Math.PI / 2];
    return `${x + radius * Math.cos(angle)},${y + radius * Math.sin(angle)}`;
  });
  const points = { points: spikes.join(" ") };
  const halo = svg("polygon", { ...points, class: "halo" });
  return svg("g", { class: "shape star" }, halo, svg("polygon", points), svg("title", {}, title));
}

/** Return the mark of the dial; `position` says where it belongs. */
export function dialMark() {
  return svg("g", { class: "shape ring" }, svg("circle", { r: RING, class: "halo" }), svg("circle", { r: RING }));
}

/** Return what colours and marks mean, on so many images. */
export function legend(range, n) {
  const box = { viewBox: "-0.24 -0.24 0.48 0.48", class: "sample", "aria-hidden": "true" };
  const entry = (shape, text) => el("span", {}, svg("svg", box, shape), text);
  const bar = el("span", { class: "viridis", "aria-hidden": "true" });
  return el(
    "div",
    { class: "legend" },
    range && el("span", {}, percent(range[0], 0), bar, percent(range[1], 0)),
    range && el("span", {}, `one image is ${(100 / n).toFixed(n < 100 ? 0 : 1)} points`),
    range && entry(square([0, 0], "Square"), "current then"),
    range && entry(star([0, 0], "Star"), "chosen"),
    entry(dialMark(), "dial"),
  );
}
