// What accuracies between the evaluated soups are like: a quadratic in the free coefficients, by least squares.

const RIDGE = 1e-9;
const SMALLEST_PIVOT = 1e-8; // relative: below, the soups do not fix the fit

/** Return the terms of a soup: coefficients sum to 1, so the last one is not free. */
function terms(row, degree) {
  const free = row.slice(0, -1);
  const found = [1, ...free];
  if (degree === 2) {
    for (let i = 0; i < free.length; i++) {
      for (let j = i; j < free.length; j++) {
        found.push(free[i] * free[j]);
      }
    }
  }
  return found;
}

/** Return the solution of a positive definite system by Cholesky's method; null where it is close to singular. */
function solve(matrix, right) {
  const size = right.length;
  const lower = matrix.map((row) => row.slice());
  for (let j = 0; j < size; j++) {
    let pivot = lower[j][j];
    for (let k = 0; k < j; k++) {
      pivot -= lower[j][k] ** 2;
    }
    if (!(pivot > SMALLEST_PIVOT * matrix[j][j])) {
      return null;
    }
    lower[j][j] = Math.sqrt(pivot);
    for (let i = j + 1; i < size; i++) {
      let sum = lower[i][j];
      for (let k = 0; k < j; k++) {
        sum -= lower[i][k] * lower[j][k];
      }
      lower[i][j] = sum / lower[j][j];
    }
  }
  const x = right.slice();
  for (let i = 0; i < size; i++) {
    for (let k = 0; k < i; k++) {
      x[i] -= lower[i][k] * x[k];
    }
    x[i] /= lower[i][i];
  }
  for (let i = size - 1; i >= 0; i--) {
    for (let k = i + 1; k < size; k++) {
      x[i] -= lower[k][i] * x[k];
    }
    x[i] /= lower[i][i];
  }
  return x;
}

function leastSquares(rows, values, degree) {
  const design = rows.map((row) => terms(row, degree));
  const size = design[0].length;
  if (rows.length < size) {
    return null;
  }
  const matrix = Array.from({ length: size }, () => new Array(size).fill(0));
  const right = new Array(size).fill(0);
  design.forEach((row, at) => {
    for (let i = 0; i < size; i++) {
      right[i] += row[i] * values[at];
      for (let j = 0; j < size; j++) {
        matrix[i][j] += row[i] * row[j];
      }
    }
  });
  for (let i = 0; i < size; i++) {
    matrix[i][i] *= 1 + RIDGE;
  }
  return solve(matrix, right);
}

/**
 * Return what predicts a value at coefficients, and how: the best of what the soups fix; null if they fix nothing.
 *
 * rows: coefficients of the evaluated soups, each in ingredient order; values: one for each.
 */
export function fit(rows, values) {
  for (const [degree, kind] of [
    [2, "quadratic"],
    [1, "linear"],
  ]) {
    const weights = rows.length === 0 ? null : leastSquares(rows, values, degree);
    if (weights !== null) {
      const predict = (row) => terms(row, degree).reduce((sum, term, i) => sum + term * weights[i], 0);
      return { kind, count: rows.length, predict };
    }
  }
  return null;
}

/** Return all mixtures of `size` ingredients in steps of 1 / parts, none below zero. */
export function* lattice(size, parts) {
  function* rest(left, length) {
    if (length === 1) {
      yield [left];
      return;
    }
    for (let first = 0; first <= left; first++) {
      for (const others of rest(left - first, length - 1)) {
        yield [first, ...others];
      }
    }
  }
  for (const row of rest(parts, size)) {
    yield row.map((value) => value / parts);
  }
}

/** Return the mixture of the highest predicted value, none of its coefficients below zero. */
export function bestMixture(prediction, size) {
  const parts = size <= 4 ? 20 : size <= 6 ? 10 : 4;
  let best = null;
  for (const row of lattice(size, parts)) {
    const value = prediction.predict(row);
    if (best === null || value > best.value + 1e-12) {
      best = { row, value };
    }
  }
  return best.row;
}
