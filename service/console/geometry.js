// Where soups lie on the map: each at the weighted mean of its ingredients' corners, a regular polygon.

/** Return the corners of `count` ingredients; two lie on a line. */
export function corners(count) {
  if (count === 2) {
    return [
      [-1, 0],
      [1, 0],
    ];
  }
  return Array.from({ length: count }, (_, at) => {
    const angle = Math.PI / 2 + (2 * Math.PI * at) / count;
    return [Math.cos(angle), Math.sin(angle)];
  });
}

/** Return the place of coefficients. */
export function place(row) {
  const found = [0, 0];
  corners(row.length).forEach(([x, y], at) => {
    found[0] += row[at] * x;
    found[1] += row[at] * y;
  });
  return found;
}

const STEPS = 16; // mixtures looked at per place, where many fall together
const EDGE = -1e-9;

/** Return the mixtures, none of their coefficients below zero, that lie at a place: of 2 to 4 ingredients. */
export function mixturesAt([x, y], count) {
  if (count === 2) {
    return Math.abs(x) <= 1 ? [[(1 - x) / 2, (1 + x) / 2]] : [];
  }
  if (count === 3) {
    const first = (1 + 2 * y) / 3;
    const difference = x / Math.cos(Math.PI / 6); // of the third and the second
    const row = [first, (1 - first - difference) / 2, (1 - first + difference) / 2];
    return row.every((value) => value >= EDGE) ? [row] : [];
  }
  const [low, high] = [Math.abs(y), 1 - Math.abs(x)]; // of the first and the third together
  if (low > high + 1e-9) {
    return [];
  }
  return Array.from({ length: STEPS + 1 }, (_, at) => {
    const both = low + ((high - low) * at) / STEPS;
    return [(both + y) / 2, (1 - both - x) / 2, (both - y) / 2, (1 - both + x) / 2];
  });
}

/** Return the best mixture at a place and its predicted value; null where there is none. */
export function bestAt(where, count, prediction) {
  let best = null;
  for (const row of mixturesAt(where, count)) {
    const value = prediction.predict(row);
    if (best === null || value > best.value) {
      best = { row, value };
    }
  }
  return best;
}

// Viridis: even steps look even, in grey too.
const STOPS = [
  [68, 1, 84],
  [72, 40, 120],
  [62, 74, 137],
  [49, 104, 142],
  [38, 130, 142],
  [31, 158, 137],
  [53, 183, 121],
  [110, 206, 88],
  [181, 222, 43],
  [253, 231, 37],
];

/** Return the colour [r, g, b] of a value between 0 and 1. */
export function viridis(value) {
  const at = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
  const below = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[below].map((channel, i) => Math.round(channel + (at - below) * (STOPS[below + 1][i] - channel)));
}
