// Coefficients that always sum to 1, counted in ten-thousandths so that they do so exactly.

export const ONE = 10000;
export const LIMIT = 2 * ONE;

/** Return coefficients as whole ten-thousandths that sum to one; the largest takes what rounding leaves. */
export function whole(row) {
  const found = row.map((value) => Math.round(value * ONE));
  const largest = found.indexOf(Math.max(...found));
  found[largest] += ONE - found.reduce((sum, value) => sum + value, 0);
  return found;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/**
 * Return coefficients with one set anew and the others moved so that the sum stays: in proportion to what they hold,
 * or alike where they hold nothing. Those that are held stay; what cannot be reached is met as closely as possible.
 *
 * values, wanted: whole ten-thousandths; isHeld: one for each.
 */
export function rebalanced(values, isHeld, at, wanted) {
  const free = values.map((_, i) => i).filter((i) => i !== at && !isHeld[i]);
  const sum = free.reduce((total, i) => total + values[i], 0);
  const room = LIMIT * free.length;
  const reachable = clamp(clamp(Math.round(wanted), -LIMIT, LIMIT), values[at] + sum - room, values[at] + sum + room);
  const result = values.slice();
  result[at] = reachable;
  let left = values[at] - reachable; // for the others, who share it
  const positive = free.reduce((total, i) => total + Math.max(values[i], 0), 0);
  if (positive > 0) {
    const part = Math.max(left, -positive);
    for (const i of free) {
      const change = clamp(
        Math.trunc((part * Math.max(values[i], 0)) / positive),
        -LIMIT - values[i],
        LIMIT - values[i],
      );
      result[i] += change;
      left -= change;
    }
  }
  while (left !== 0) {
    const step = Math.sign(left);
    const open = free.filter((i) => Math.abs(result[i] + step) <= LIMIT);
    const each = Math.trunc(left / open.length) || step;
    for (const i of open) {
      const change = clamp(left === 0 ? 0 : each, -LIMIT - result[i], LIMIT - result[i]);
      result[i] += change;
      left -= change;
    }
  }
  return result;
}
