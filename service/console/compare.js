// Two versions on many images: asking them in parts, and counting who is right.

const MOST_IMAGES = 32; // of a request
const MOST_BYTES = 1e6; // of a request, unless one image alone is larger

/** Yield files in parts that a request takes. */
export function* parts(files) {
  let part = [];
  let bytes = 0;
  for (const file of files) {
    if (part.length > 0 && (part.length === MOST_IMAGES || bytes + file.size > MOST_BYTES)) {
      yield part;
      [part, bytes] = [[], 0];
    }
    part.push(file);
    bytes += file.size;
  }
  if (part.length > 0) {
    yield part;
  }
}

/** Return the class that a folder is named after, null if none. */
export function classOf(folder, classes) {
  return classes.find((name) => name === folder) ?? classes.find((name) => same(name, folder)) ?? null;
}

const same = (one, other) => one.toLowerCase() === other.toLowerCase();

/**
 * Return what two versions make of labelled images.
 *
 * labels: by image, a class or null; answers: of each version, a class by image.
 */
export function tally(labels, answers) {
  const labelled = labels.map((label, at) => at).filter((at) => labels[at] !== null);
  const isRight = answers.map((said) => (at) => said[at] === labels[at]);
  const count = (condition, among = labelled) => among.filter(condition).length;
  const [left, right] = isRight;
  const perClass = [...new Set(labelled.map((at) => labels[at]))].sort().map((label) => {
    const ofClass = labelled.filter((at) => labels[at] === label);
    return { label, n: ofClass.length, right: isRight.map((condition) => count(condition, ofClass)) };
  });
  return {
    n: labelled.length,
    unlabelled: labels.length - labelled.length,
    agreed: labels.filter((_, at) => answers[0][at] === answers[1][at]).length,
    right: isRight.map((condition) => count(condition)),
    only: [count((at) => left(at) && !right(at)), count((at) => right(at) && !left(at))],
    perClass,
    confusion: answers.map((said) => confusion(labelled.map((at) => [labels[at], said[at]]))),
  };
}

/** Return how often each pair of label and answer occurs: { label: { answer: count } }. */
function confusion(pairs) {
  const found = {};
  for (const [label, said] of pairs) {
    found[label] ??= {};
    found[label][said] = (found[label][said] ?? 0) + 1;
  }
  return found;
}
